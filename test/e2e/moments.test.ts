/**
 * Any moment of a database's life is recovered while it lives on: PostgreSQL under pgbench on a traced ext4, drills to moments chosen by
 * chance within the journal. Of each copy the digest is computed here from its bytes, the database starts from it, and its newest
 * transaction is the one that the point's source time promises. At the end drills at once, beside the age of mirroring
 * before them.
 *
 * `npm run e2e -- moments`: 100 moments over an hour, 10 drills at once; else a few. MOMENTS and MOMENTS_SECONDS change that,
 * REPLICATOR_SEED chooses the same moments.
 */
import t from 'tap';
import assert from 'node:assert/strict';
import fs, { chmodSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Recovery } from '../../master/resources.ts';
import { RunningDigest } from '../../proto/digest.ts';
import { granuleBytes, granuleHash } from '../../proto/granule.ts';
import { loopMount, missingForLoop, mountImage } from '../loop.ts';
import { chosenSeed } from '../seed.ts';
import { Dice } from '../sim/dice.ts';
import { missingPostgres, startCluster } from './postgres.ts';
import { act, reaches } from './recovering.ts';
import { long, openWorld, type World } from './world.ts';

const moments = Number(process.env['MOMENTS'] ?? (long ? 100 : 4));
const seconds = Number(process.env['MOMENTS_SECONDS'] ?? (long ? 3600 : 12));
const atOnce = long ? 10 : 3;
const ageMs = long ? 60_000 : 4000;
const seed = chosenSeed();
/** What a cut may take after the instant that its point is told of: a freeze, and what was under way when it began. */
const cutMs = 3000;
t.setTimeout(7_200_000);

function digestOf(path: string): string {
  const file = fs.openSync(path, 'r');
  try {
    const { size } = fs.fstatSync(file);
    const running = new RunningDigest();
    const buffer = Buffer.alloc(granuleBytes);
    for (let at = 0; at < size; at += granuleBytes) {
      const length = fs.readSync(file, buffer, 0, granuleBytes, at);
      running.add(granuleHash(buffer.subarray(0, length)));
    }
    return running.digest(size).toString('hex');
  } finally {
    fs.closeSync(file);
  }
}

/** Milliseconds of age by the API, in ascending order, until `over`. */
async function ages(world: World, over: Promise<unknown>): Promise<number[]> {
  const found: number[] = [];
  let isOver = false;
  const end = (): boolean => (isOver = true);
  void over.then(end, end);
  while (!isOver) {
    const { lagSeconds } = (await world.get('pg')).status;
    if (lagSeconds !== null) found.push(lagSeconds * 1000);
    await sleep(100);
  }
  return found.sort((a, b) => a - b);
}
const told = (all: number[]): string => {
  const at = (part: number): string => ((all[Math.floor((all.length - 1) * part)] ?? NaN) / 1000).toFixed(2);
  return `age p50 ${at(0.5)} s, p99 ${at(0.99)} s, most ${at(1)} s (${all.length} samples)`;
};

const skip = missingForLoop('ext4') || missingForLoop('xfs') || missingPostgres();
t.test(`${moments} moments of a database in ${seconds} s (REPLICATOR_SEED=${seed})`, { skip }, async (t) => {
  const dice = new Dice(seed, 'moments');
  const volume = await loopMount(t, 'ext4', 400);
  const target = await loopMount(t, 'xfs', long ? 20_000 : 4000);
  const copies = join(target.mountPoint, 'copies');
  mkdirSync(copies);
  // Each drill is asked for by itself.
  const config = join(t.testdir({ 'c.yaml': 'requestsPerSecond: 1000\n' }), 'c.yaml');
  const masterFlags = ['--allow', copies, '--config', config];
  const world = await openWorld(t, { allow: [volume.device], masterFlags });
  const mounts = mkdtempSync(join(tmpdir(), 'replicator-mounts-'));
  t.teardown(() => rmSync(mounts, { recursive: true, force: true }));
  // The user postgres must get there.
  for (const folder of [mounts, volume.directory]) chmodSync(folder, 0o755);
  const cluster = await startCluster(t, volume.mountPoint);
  await world.client.send('POST', '/storageclasses', {
    metadata: { name: 'fast' },
    spec: { driver: 'directory', parameters: { path: join(target.mountPoint, 'class') } },
  });
  await world.startAgent();
  await world.replicate('pg', volume.device, {
    storageClass: 'fast',
    rpoSeconds: 2,
    journalSeconds: 2 * seconds + 600,
  });
  await world.normal('pg');
  const load = cluster.load(t);
  const beganMs = Date.now();
  await world.normal('pg', beganMs);

  const seen = new Set<number>();
  const lost: number[] = [];
  for (let round = 0; round < moments; round++) {
    const dueMs = beganMs + ((round + 1) / moments) * seconds * 1000;
    await sleep(Math.max(0, dueMs - Date.now()));
    const first = (await world.points('pg')).find(({ sourceTime }) => Date.parse(sourceTime) >= beganMs);
    assert(first, 'there are points');
    const fromMs = Date.parse(first.sourceTime);
    const momentMs = fromMs + dice.below(Math.max(1, Math.floor(Date.now() - fromMs)));
    const time = new Date(momentMs).toISOString();
    const before = await world.points('pg');
    const path = join(copies, `moment-${round}`);
    const recovery = await world.drill('pg', { time }, path);
    const { outcome, verified, point, message } = recovery.status;
    assert(outcome === 'success' && verified === true && point, `${time}: ${outcome} ${message}`);
    const sourceMs = Date.parse(point.sourceTime);
    const newest = before.filter((one) => Date.parse(one.sourceTime) <= momentMs).at(-1);
    // One that was committed since may be nearer.
    assert(newest && point.sequence >= newest.sequence && sourceMs <= momentMs, `${time} got ${point.sourceTime}`);
    assert.equal(digestOf(path), point.digest, `the copy of ${time}`);
    seen.add(point.sequence);

    const mountPoint = join(mounts, `${round}`);
    const own: (() => unknown)[] = [];
    mountImage({ teardown: (end) => void own.push(end) }, path, mountPoint);
    const copy = await startCluster({ teardown: (end) => void own.push(end) }, mountPoint);
    const [last = 0, count, atMs = 0] = copy
      .sql('SELECT coalesce(max(number), 0), count(*), coalesce(extract(epoch from max(at)) * 1000, 0) FROM instant')
      .split('|')
      .map(Number);
    const promised = load.commits.reduce((most, ms, number) => (ms < sourceMs ? number : most), 0);
    assert.equal(count, last, `${time}: no committed row is missing between`);
    assert(
      last >= promised,
      `${time}: row ${promised} was committed before ${point.sourceTime}, the newest is ${last}`,
    );
    assert(atMs <= sourceMs + cutMs, `${time}: a row of ${new Date(atMs).toISOString()} is in ${point.sourceTime}`);
    lost.push(momentMs - sourceMs);
    await copy.stop();
    for (const end of own.reverse()) await end();
    await act(world, recovery, 'rollback');
    await reaches(world, recovery, 'RolledBack');
  }
  // A few may fall together.
  t.ok(seen.size > (long ? moments / 2 : 1), `${seen.size} points of ${moments} moments`);
  lost.sort((a, b) => a - b);
  t.comment(
    `${moments} moments, ${seen.size} points; a moment is ${lost[lost.length >> 1]} ms after its point (median), ${lost.at(-1)} ms at most`,
  );

  await world.normal('pg', Date.now());
  const quiet = await ages(world, sleep(ageMs));
  const pointsBefore = (await world.points('pg')).length;
  const drills = Array.from({ length: atOnce }, (_, n) =>
    world.drill('pg', 'latest-data', join(copies, `once-${n}`), 600),
  );
  const all = Promise.all(drills);
  // As long as without them, or as they last.
  const busy = await ages(world, Promise.all([all, sleep(ageMs)]));
  for (const { status } of await all)
    t.match(status, { outcome: 'success', verified: true } satisfies Partial<Recovery['status']>);
  t.ok((await world.points('pg')).length > pointsBefore, 'mirroring went on');
  t.comment(`without drills: ${told(quiet)}`);
  t.comment(`${atOnce} drills at once: ${told(busy)}`);
  await load.stop();
  await cluster.stop();
});
