import t from 'tap';
import { spawnSync } from 'node:child_process';
import { mkdirSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { loopMount, missingForLoop, run } from '../loop.ts';
import { noise } from './content.ts';
import { openWorld, type World } from './world.ts';

/** Hooks that fail or hang: test/e2e/hooks.test.ts; processes that cannot be stopped: test/unit/agent/standstill.test.ts. */
const refused = (world: World, reason: string): Promise<number> =>
  world.metric('cuts_refused_total', `reason="${reason}"`);

async function whyDegraded(world: World, name: string): Promise<string> {
  const { conditions } = (await world.get(name)).status;
  return conditions.find(({ type, reason }) => type === 'Degraded' && reason === 'NoConsistentCut')?.message ?? '';
}

await t.test('a filesystem that somebody else holds frozen', { skip: missingForLoop('ext4') }, async (t) => {
  const { device, mountPoint } = await loopMount(t, 'ext4', 64);
  const world = await openWorld(t, { allow: [device] });
  await world.startAgent();
  await world.replicate('held', device, { consistency: 'filesystem' });
  await world.normal('held');
  const before = await refused(world, 'freeze');
  writeFileSync(join(mountPoint, 'written'), noise(1 << 20));
  spawnSync('fsfreeze', ['--freeze', mountPoint]);
  await world.until('the reason is shown', async () => /somebody else has frozen it/.test(await whyDegraded(world, 'held'))); // prettier-ignore
  await world.until('it is counted', async () => (await refused(world, 'freeze')) > before);
  const points = (await world.points('held')).length;
  t.ok(
    (await world.events()).some(({ code, message }) => code === 'CutRefused' && /somebody else/.test(message)),
    'and told as an event',
  );
  t.equal(spawnSync('fsfreeze', ['--unfreeze', mountPoint]).status, 0, 'it was not thawed by us');
  writeFileSync(join(mountPoint, 'goes on'), noise(1 << 20), { flush: true });
  t.equal(statSync(join(mountPoint, 'goes on')).size, 1 << 20, 'the workload goes on');
  await world.normal('held', Date.now());
  t.ok((await world.points('held')).length > points, 'and so do the points');
  t.equal(await whyDegraded(world, 'held'), '');
});

const needsRoot = process.getuid?.() !== 0 && 'needs root';

await t.test('a filesystem that cannot be frozen', { skip: needsRoot }, async (t) => {
  const world = await openWorld(t);
  const tree = join(world.sources, 'tree');
  mkdirSync(tree);
  run('mount', '-t', 'tmpfs', 'none', tree);
  t.teardown(() => void spawnSync('umount', [tree]));
  writeFileSync(join(tree, 'first'), noise(100_000));
  await world.startAgent();
  await world.replicate('plain', tree, { volumeMode: 'Filesystem', consistency: 'filesystem' });
  await world.until('the reason is shown', async () => /tmpfs on .* cannot be frozen/.test(await whyDegraded(world, 'plain'))); // prettier-ignore
  await world.until('it is counted', async () => (await refused(world, 'unsupported')) > 0);
  t.equal((await world.points('plain')).length, 0, 'no point');
  writeFileSync(join(tree, 'goes on'), noise(100_000), { flush: true });
  t.equal(statSync(join(tree, 'goes on')).size, 100_000, 'the workload goes on');
  await world.client.send('PATCH', '/replications/plain', { spec: { consistency: null } });
  await world.normal('plain', Date.now());
});
