import t, { type Test } from 'tap';
import { spawn, spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
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

for (const volumeMode of ['Block', 'Filesystem'] as const)
  await t.test(`a filesystem that somebody else holds frozen (${volumeMode})`, { skip: missingForLoop('ext4') }, (t) => heldFrozen(t, volumeMode)); // prettier-ignore

async function heldFrozen(t: Test, volumeMode: 'Block' | 'Filesystem'): Promise<void> {
  const { device, mountPoint } = await loopMount(t, 'ext4', 64);
  const source = volumeMode === 'Block' ? device : mountPoint;
  const world = await openWorld(t, { allow: [source] });
  await world.startAgent();
  await world.replicate('held', source, { volumeMode, consistency: 'filesystem' });
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
  const ended = (await world.events()).find(({ code }) => code === 'SourceTrouble');
  t.equal(ended, undefined, 'one session all the time');
}

await t.test('an agent killed while the filesystem is frozen', { skip: missingForLoop('ext4') }, async (t) => {
  const { device, mountPoint, directory } = await loopMount(t, 'ext4', 128);
  const world = await openWorld(t, { allow: [device] });
  const fill = join(directory, 'fill');
  writeFileSync(fill, noise(32 << 20));
  // Much is left to the freeze, so that it lasts.
  const writer = spawn('sh', [
    '-c',
    `i=0; while :; do i=$((i+1)); dd if=${fill} of=${mountPoint}/written bs=1M count=24 skip=$((i % 8)) conv=notrunc status=none; echo $i > ${mountPoint}/rounds; sleep 0.1; done`,
  ]);
  t.teardown(() => void writer.kill('SIGKILL'));
  await world.startAgent();
  await world.replicate('killed', device, { consistency: 'filesystem', maxFreezeMs: 60_000, rpoSeconds: 2 });
  await world.normal('killed');
  const isFrozen = async (): Promise<boolean> => {
    process.kill(world.agent.pid, 'SIGSTOP');
    if (spawnSync('fsfreeze', ['--freeze', mountPoint]).status !== 0) return true;
    spawnSync('fsfreeze', ['--unfreeze', mountPoint]);
    process.kill(world.agent.pid, 'SIGCONT');
    // Somewhere else in its second.
    await sleep(Math.random() * 300);
    return false;
  };
  await world.until('its agent stands still in the middle of a freeze', isFrozen, 120);
  const points = (await world.points('killed')).length;
  await world.agent.kill();
  const rounds = (): string => readFileSync(join(mountPoint, 'rounds'), 'utf8');
  const before = rounds();
  // Long before maxFreezeMs would let it.
  await world.until('the workload goes on', async () => rounds() !== before, 30);
  await world.degraded('killed', 'AgentGone');
  t.equal((await world.points('killed')).length, points, 'the point is not made');
  await world.startAgent();
  await world.normal('killed', Date.now());
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
