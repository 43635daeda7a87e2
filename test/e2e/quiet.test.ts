/** Volumes that nobody writes to: they cost their node next to nothing, and nothing freezes them for having been frozen. */
import { spawnSync } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { loopMount, missingForLoop } from '../loop.ts';
import { cpuSeconds } from '../bench/processes.ts';
import { long, openWorld } from './world.ts';

/** What ext4 writes by itself in the first minutes of its life. */
const settled = ['-E', 'lazy_itable_init=0,lazy_journal_init=0'];

const skip = missingForLoop('ext4') || missingForLoop('xfs');
t.test('a mounted volume at rest is frozen once, and stays as young as the last look', { skip }, async (t) => {
  const volumes = { ext4: await loopMount(t, 'ext4', 100, settled), xfs: await loopMount(t, 'xfs', 320) };
  const world = await openWorld(t, { allow: Object.values(volumes).map(({ device }) => device) });
  await world.startAgent();
  for (const [name, { device }] of Object.entries(volumes))
    await world.replicate(name, device, { rpoSeconds: 2, consistency: 'filesystem', maxFreezeMs: 20_000 });
  for (const name of Object.keys(volumes)) {
    await world.normal(name);
    // The first cut of a busy machine may come before the last write of mkfs and mount.
    const points = await world.until(`${name} is at rest`, async () => {
      const before = (await world.points(name)).length;
      await world.normal(name, Date.now());
      return (await world.points(name)).length === before && before;
    });
    for (let looks = 0; looks < 3; looks++) await world.normal(name, Date.now());
    t.equal((await world.points(name)).length, points, `${name}: no point for what a thaw writes`);
    t.equal((await world.get(name)).status.state, 'NORMAL');
  }

  await t.test('an agent that starts thaws what one of its own may have left frozen, and nothing else', async (t) => {
    const stranger = await loopMount(t, 'ext4', 20);
    await world.agent.kill();
    for (const { mountPoint } of [volumes.ext4, stranger]) spawnSync('fsfreeze', ['--freeze', mountPoint]);
    await world.startAgent();
    await world.normal('ext4', Date.now());
    t.not(spawnSync('fsfreeze', ['--unfreeze', volumes.ext4.mountPoint]).status, 0, 'thawed already');
    t.notMatch(world.agent.logEnd(), stranger.mountPoint, 'what somebody else has frozen is left alone');
  });

  if (!long) return;
  const seconds = 60;
  const pids = { agent: [world.agent.pid], master: [world.master.pid] };
  await sleep(10_000);
  const before = { agent: cpuSeconds(pids.agent), master: cpuSeconds(pids.master) };
  await sleep(seconds * 1000);
  for (const name of ['agent', 'master'] as const) {
    const percent = ((cpuSeconds(pids[name]) - before[name]) / seconds) * 100;
    t.comment(`${name}: ${percent.toFixed(2)} % of one processor with two volumes at rest`);
  }
});
