import t from 'tap';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { sameBytes, writeNoise } from './content.ts';
import { openWorld } from './world.ts';

t.test('cut and silent lines are told of, and mirroring goes on by itself', async (t) => {
  const world = await openWorld(t, { proxied: true });
  const { proxy } = world;
  if (!proxy) throw new Error('the world was asked for a proxy');
  const source = join(world.sources, 'image');
  writeNoise(source, 32 << 20);
  await world.startAgent();
  await world.replicate('cut', source);
  const before = await world.normal('cut');

  await t.test('a cut that heals at once is no trouble', async (t) => {
    proxy.cut(false);
    const now = await world.normal('cut', Date.now());
    t.equal(now.status.state, 'NORMAL');
    t.ok((now.status.recoveryPoint?.sequence ?? 0) >= (before.status.recoveryPoint?.sequence ?? Infinity));
  });

  await t.test('an agent that cannot be reached is AgentGone, the copy stays', async (t) => {
    proxy.cut(true);
    const gone = await world.degraded('cut', 'AgentGone');
    t.equal(gone.status.state, 'ERROR');
    t.equal(gone.status.phase, 'Disconnected');
    t.match(gone.status.conditions.find(({ type }) => type === 'Degraded')?.message, /node-a is not connected/);
    writeFileSync(source, 'written while the line was cut', { flag: 'r+' });
    const { path } = await world.copyOf('cut');
    t.notOk(sameBytes(source, path), 'the newest point is recovered meanwhile');
    proxy.heal();
    await world.normal('cut', Date.now());
    const healed = await world.copyOf('cut');
    t.ok(sameBytes(source, healed.path), 'what was written meanwhile is there');
  });

  await t.test('a line that went silent is given up by both sides', async (t) => {
    proxy.silence();
    writeFileSync(source, 'written while the line was silent', { flag: 'r+' });
    const gone = await world.degraded('cut', 'AgentGone', 90);
    t.equal(gone.status.phase, 'Disconnected');
    proxy.heal();
    await world.normal('cut', Date.now());
    const { path } = await world.copyOf('cut');
    t.ok(sameBytes(source, path));
  });
  t.match(
    (await world.events()).map(({ code }) => code),
    /AgentDisconnected/,
  );
});
