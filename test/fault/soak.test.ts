/**
 * A database and a tree of files in use, for hours: either side is killed, the line is cut or silent, four times in a row, and a
 * point of each is restored and its content looked at: a round, of half a minute if the machine is quick enough. In the last third nobody
 * is killed: then memory and descriptors of both programs must be flat.
 *
 * `npm run e2e -- soak`: two hours, or SOAK_MINUTES; what it did is told at the end, and what the programs held is drawn to the file
 * SOAK_PLOT. Else three rounds. REPLICATOR_SEED chooses the same faults again.
 */
import t, { type Test } from 'tap';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { TreeMutator } from '../conformance/treemutator.ts';
import { random } from '../e2e/content.ts';
import { missingPostgres, startCluster } from '../e2e/postgres.ts';
import { missingRsync, rsyncDifferences } from '../e2e/treevolume.ts';
import { killed, long, openWorld, verified, type World } from '../e2e/world.ts';
import { loopMount, missingForLoop, mountImage, run } from '../loop.ts';
import { drawn, grown, sample, type Sample } from './flat.ts';
import { chosenSeed } from '../seed.ts';

t.setTimeout(6 * 3_600_000);
const seed = chosenSeed();
const soakMs = Number(process.env['SOAK_MINUTES'] ?? (long ? 120 : 0)) * 60_000;
const fewestRounds = 3;
const roundMs = 30_000;
/** Of the time, that with kills. */
const killShare = 2 / 3;
/** One after the other, before a round's restores. */
const faultsInRound = soakMs > 0 ? 4 : 1;
/** Rounds between two looks that read everything: all rows and indexes, and the tree as rsync sees it. */
const wholeEvery = 5;
const faults = ['kill agent', 'kill master', 'kill both', 'cut', 'silence', 'none'] as const;
type Fault = (typeof faults)[number];

interface Soak {
  world: World;
  next: () => number;
  /** Where copies of the database are mounted. */
  mounts: string;
  tree: string;
  writer: Writer;
  /** When each row was promised, ms. */
  commits: number[];
}

interface Writer {
  /** Resolves when nothing is being written, until `go`. */
  rest(): Promise<void>;
  go(): void;
}

function startChurn(t: Test, mutator: TreeMutator): Writer {
  let work: Promise<void> | undefined;
  let resting = true;
  const writer: Writer = {
    async rest() {
      resting = true;
      await work;
    },
    go() {
      resting = false;
      work = (async () => {
        for (; !resting; await sleep(100)) await mutator.change(5);
      })();
      work.catch(() => undefined); // told by `rest`
    },
  };
  t.teardown(() => writer.rest());
  writer.go();
  return writer;
}

async function disturb({ world, next }: Soak, fault: Fault): Promise<void> {
  if (fault === 'none') return;
  if (fault === 'cut') world.proxy?.cut(true);
  else if (fault === 'silence') world.proxy?.silence();
  else return killed(world, fault.slice('kill '.length) as 'agent' | 'master' | 'both');
  await sleep(500 + 4000 * next());
  world.proxy?.heal();
}

/** A copy of the newest or of another point starts, has all rows that were promised, and none is missing between. */
async function restoreDatabase(t: Test, { world, next, mounts, commits }: Soak, isWhole: boolean): Promise<void> {
  const points = await world.points('database');
  const wanted = next() < 0.5 ? points.at(-1) : points[Math.floor(next() * points.length)];
  const { path, recovery } = await world.copyOf('database', { time: wanted?.sourceTime ?? '' });
  const sourceTime = recovery.status.point?.sourceTime ?? '';
  const promised = commits.reduce((most, ms, number) => (ms < Date.parse(sourceTime) ? number : most), 0);
  await t.test(`the database of ${sourceTime}`, async (t) => {
    mountImage(t, path, join(mounts, 'copy'));
    const copy = await startCluster(t, join(mounts, 'copy'));
    const last = Number(copy.sql('SELECT coalesce(max(number), 0) FROM instant'));
    t.ok(last >= promised, `row ${promised} was promised, ${last} is the newest`);
    t.equal(Number(copy.sql('SELECT count(*) FROM instant')), last, 'no row is missing between');
    if (isWhole) t.equal(copy.check(), '', 'pg_amcheck finds nothing');
    await copy.stop();
  });
  rmSync(path);
}

/** A drill reads its copy and holds it to the point's digest; a whole look holds one to the source that rested. */
async function restoreTree(t: Test, { world, next, tree, writer }: Soak, isWhole: boolean): Promise<void> {
  const points = await world.points('tree');
  const wanted = points[Math.floor(next() * points.length)];
  const { path } = await world.copyOf('tree', { time: wanted?.sourceTime ?? '' });
  rmSync(path, { recursive: true });
  if (!isWhole) return;
  await writer.rest();
  const source = join(world.dir, 'source');
  run('cp', '-a', tree, source);
  await world.normal('tree', Date.now(), 300);
  writer.go();
  const copy = await world.copyOf('tree');
  const differing = rsyncDifferences(source, copy.path, ['-aHAXSnc', '--numeric-ids', '--modify-window=-1']);
  t.same(differing.slice(0, 5), [], 'the newest copy of the tree is the source that rested');
  for (const folder of [source, copy.path]) rmSync(folder, { recursive: true });
}

t.test('what only grows is noticed', (t) => {
  const samples = (agentMiB: (at: number) => number, masterFiles: (at: number) => number): Sample[] =>
    Array.from({ length: 100 }, (_, at) => ({
      ...{ seconds: at, agentMiB: agentMiB(at), masterMiB: 200, agentFiles: 40, masterFiles: masterFiles(at) },
    }));
  const breathing = (at: number): number => 150 + 20 * Math.sin(at);
  t.same(grown(samples(breathing, () => 60)), []);
  t.same(grown(samples((at) => 150 + 2 * at, (at) => 60 + at)), ['agentMiB from 224 to 324', 'masterFiles from 97 to 147']); // prettier-ignore
  t.end();
});

const missing = missingForLoop('ext4') || missingPostgres() || missingRsync;
t.test(`a database and a tree under kills and cuts (seed ${seed})`, { skip: missing }, async (t) => {
  const next = random(seed);
  const { device, mountPoint, directory } = await loopMount(t, 'ext4', 300);
  const mounts = mkdtempSync(join(tmpdir(), 'soak-'));
  for (const path of [directory, mounts]) chmodSync(path, 0o755);
  t.teardown(() => rmSync(mounts, { recursive: true, force: true }));
  const cluster = await startCluster(t, mountPoint);
  const load = cluster.load(t);
  const world = await openWorld(t, { allow: [device], proxied: true });
  const tree = join(world.sources, 'tree');
  mkdirSync(tree);
  const mutator = new TreeMutator(tree, seed, { maxEntries: 2000, maxBytes: 60 << 20 });
  await mutator.change(500);
  const soak: Soak = { world, next, mounts, tree, writer: startChurn(t, mutator), commits: load.commits };
  await world.startAgent();
  await world.replicate('database', device, { rpoSeconds: 2, journalSeconds: 120 });
  await world.replicate('tree', tree, { volumeMode: 'Filesystem', rpoSeconds: 2, journalSeconds: 120 });

  const startMs = performance.now();
  const elapsedMs = (): number => performance.now() - startMs;
  const samples: Sample[] = [];
  const sampling = setInterval(() => {
    const one = sample(elapsedMs() / 1000, { agent: world.agent.pid, master: world.master.pid });
    if (one) samples.push(one);
  }, 2000);
  t.teardown(() => clearInterval(sampling));

  const done: Partial<Record<Fault, number>> = {};
  let rounds = 0;
  let calmSinceSeconds = Infinity;
  for (; rounds < fewestRounds || elapsedMs() < soakMs; rounds++) {
    const roundEndMs = elapsedMs() + (soakMs > 0 ? roundMs : 0);
    const mayKill = soakMs === 0 || elapsedMs() < soakMs * killShare;
    const choice = mayKill ? faults : faults.filter((fault) => !fault.startsWith('kill'));
    if (!mayKill) calmSinceSeconds = Math.min(calmSinceSeconds, elapsedMs() / 1000);
    for (let number = 0; number < faultsInRound; number++) {
      if (number > 0) await sleep(3000 * next());
      const nth = rounds * faultsInRound + number;
      const fault = choice[nth < choice.length ? nth : Math.floor(next() * choice.length)] ?? 'none';
      done[fault] = (done[fault] ?? 0) + 1;
      await disturb(soak, fault);
    }
    const backMs = Date.now();
    for (const name of ['database', 'tree']) await world.normal(name, backMs, 300);
    const isWhole = rounds % wholeEvery === wholeEvery - 1 || soakMs === 0;
    await restoreDatabase(t, soak, isWhole);
    await restoreTree(t, soak, isWhole);
    if (isWhole && soakMs > 0)
      process.stderr.write(`${(elapsedMs() / 60_000).toFixed(0)} min, ${JSON.stringify(done)}\n`);
    await sleep(Math.max(0, roundEndMs - elapsedMs()));
  }

  for (const name of ['database', 'tree']) await verified(world, name);
  t.equal(await world.metric('verify_mismatched_bytes_total'), 0, 'verify finds both sides the same');
  const calm = samples.filter(({ seconds }) => seconds >= calmSinceSeconds);
  t.same(grown(calm), [], 'nothing grows while nobody is killed');
  const kills = faults.filter((fault) => fault.startsWith('kill')).reduce((sum, fault) => sum + (done[fault] ?? 0), 0);
  t.comment(
    `${(elapsedMs() / 60_000).toFixed(0)} min, ${rounds} rounds, ${kills} kills, ${2 * rounds} restores, ` +
      `${load.commits.length} rows; faults ${JSON.stringify(done)}; at the end ${JSON.stringify(samples.at(-1))}`,
  );
  const plot = process.env['SOAK_PLOT'];
  if (plot !== undefined) writeFileSync(plot, drawn(samples));
  await soak.writer.rest();
  await load.stop();
  await cluster.stop();
});
