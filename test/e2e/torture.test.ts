/**
 * A seeded run of everything that can be done to a tree, against the live agent: at cuts the writer rests, cp -a makes a
 * snapshot of the source, and the point that the replica is recovered to is compared with it by rsync, and by verify.
 *
 * `npm run e2e -- torture`: 1,000,000 operations with 50 cuts; else a short form of it. REPLICATOR_SEED replays a run.
 */
import t, { type Test } from 'tap';
import fs from 'node:fs';
import { join } from 'node:path';
import { setImmediate as breathe } from 'node:timers/promises';
import { seeded, TreeMutator } from '../conformance/treemutator.ts';
import { loopMount, missingForLoop, run } from '../loop.ts';
import { missingRsync, rsyncDifferences } from './treevolume.ts';
import { killed, long, openWorld, verified, type World } from './world.ts';
import { chosenSeed } from '../seed.ts';

t.setTimeout(7_200_000);
const seed = chosenSeed();
const operations = Number(process.env['REPLICATOR_OPERATIONS'] ?? (long ? 1_000_000 : 4000));
const cuts = Number(process.env['REPLICATOR_CUTS'] ?? (long ? 50 : 4));
const batch = 100;

interface Writer {
  /** Resolves when that many are done in all and none is under way; it rests then until it is let go on. */
  reach(operations: number): Promise<void>;
}

function startWriter(mutator: TreeMutator): Writer {
  let done = 0;
  return {
    async reach(wanted) {
      for (; done < wanted; done += batch) {
        await mutator.change(Math.min(batch, wanted - done));
        await breathe();
      }
    },
  };
}

async function torture(t: Test, world: World, source: string, consistency: string, seed: number): Promise<void> {
  const next = seeded(seed);
  const mutator = new TreeMutator(source, seed, { maxEntries: 2500, maxBytes: 150 << 20 });
  const writer = startWriter(mutator);
  await writer.reach(batch);
  await world.replicate('tree', source, { volumeMode: 'Filesystem', journalSeconds: 30 });
  await world.normal('tree', 0, 300);
  const marks = Array.from({ length: cuts - 1 }, () => next(operations)).sort((a, b) => a - b);
  const startMs = performance.now();
  for (const [index, mark] of [...marks, operations].entries()) {
    if (index % 5 === 4) {
      const who = (['agent', 'master', 'both'] as const)[next(3)] ?? 'both';
      const killing = killed(world, who);
      await writer.reach(mark);
      await killing;
    } else await writer.reach(mark);
    const snapshot = join(world.dir, 'snapshot');
    // Not by rsync, which keeps nanoseconds of files only.
    run('cp', '-a', source, snapshot);
    await world.normal('tree', Date.now(), 300);
    const { path, recovery } = await world.copyOf('tree');
    if (consistency !== '') t.equal(recovery.status.point?.consistency, consistency);
    // It goes on while the copy is compared.
    const later = writer.reach(Math.min(mark + 10 * batch, marks[index + 1] ?? operations));
    const differing = rsyncDifferences(snapshot, path, ['-aHAXSnc', '--numeric-ids', '--modify-window=-1']);
    t.same(differing.slice(0, 10), [], `cut ${index + 1} of ${cuts}, after ${mark} operations (seed ${seed})`);
    await later;
    await verified(world, 'tree');
    for (const one of [path, snapshot]) fs.rmSync(one, { recursive: true });
    if (differing.length > 0) break;
  }
  t.equal(await world.metric('verify_mismatched_bytes_total', '"tree"'), 0, 'verify found nothing wrong');
  const events = await world.events();
  t.notOk(events.some(({ code }) => code === 'VerifyMismatch' || code === 'ReplicaDamaged'));
  const troubles = events.filter(({ code }) => code === 'SourceTrouble').map(({ message }) => message);
  t.same(
    troubles.filter((message) => message.includes('which another one has')),
    [],
    'no epoch gives a name to two',
  );
  if (troubles.length > 0) t.comment(`sessions that ended with trouble: ${troubles.length}, such as: ${troubles[0]}`);
  const seconds = ((performance.now() - startMs) / 1000).toFixed(0);
  const points = (await world.points('tree')).at(-1)?.sequence;
  t.comment(`${operations} operations, ${cuts} cuts, ${seconds} s; newest commit ${points}`);
  t.comment([...mutator.done].map(([name, times]) => `${name} ${times}`).join(', '));
}

t.test(`a directory (seed ${seed})`, { skip: missingRsync }, async (t) => {
  const world = await openWorld(t);
  const source = join(world.sources, 'tree');
  fs.mkdirSync(source);
  await world.startAgent();
  await torture(t, world, source, 'file', seed);
});

const missing = missingRsync || missingForLoop('xfs') || (long && 'the long form runs on a directory');
t.test(`a filesystem of its own, cut in a freeze or file by file (seed ${seed})`, { skip: missing }, async (t) => {
  const { mountPoint } = await loopMount(t, 'xfs', 1024);
  const world = await openWorld(t, { allow: [mountPoint] });
  await world.startAgent();
  await torture(t, world, mountPoint, '', seed ^ 1);
});
