/** Benches in small, so that they never rot: what they copy is compared, figures are only looked at for being there. */
import { mkdirSync, mkdtempSync, realpathSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { ageOfPgbench, bucketQuantile, quantile } from '../bench/age.ts';
import { bench } from '../bench/bench.ts';
import { cases } from '../bench/cases.ts';
import { benchGranule } from '../bench/granuledurable.ts';
import { benchManyFiles, manyFilesPeers, manyFilesTable, steps } from '../bench/manyfiles.ts';
import { peers } from '../bench/peers.ts';
import { emptyResults, plot, table, type Result } from '../bench/results.ts';
import { remove } from '../bench/volumes.ts';
import { missingForLoop } from '../loop.ts';
import { missingPostgres } from './postgres.ts';
import { long } from './world.ts';

const all = Object.keys(cases).flatMap((name) => Object.keys(peers).map((peer) => [name, peer] as const));
const few = [
  ['change-image', 'rsync-stunnel'],
  ['move-tree', 'rsync'],
  ['wan-unchanged', 'rsync-stunnel'],
  ['change-tree', 'btrfs'],
  ['restart', 'rsync'],
  ['verify', 'rsync'],
] as const;

const line = { roundTripMs: 50, bitsPerSecond: 1e8 };

t.test('each case runs, and what was copied is right', async (t) => {
  const results: Result[] = [];
  for (const [name, peer] of long ? all : few) {
    await t.test(`${name}, ${peer}`, async (t) => {
      const folder = realpathSync(mkdtempSync(join(tmpdir(), 'replicator-bench-')));
      t.teardown(() => remove(folder));
      mkdirSync(join(folder, 'own'));
      let why = '';
      const result = await bench(
        name,
        peer,
        {
          folder: join(folder, 'own'),
          runs: 1,
          size: 12 << 20,
          content: 'mixed',
          line: { roundTripMs: 50, bitsPerSecond: 1e8 },
        },
        (line) => (why = line),
      );
      if (!result) {
        t.pass('not here', { skip: why || `${peer} does not copy this` });
        return;
      }
      results.push(result);
      t.ok(result.ours.wallSeconds > 0 && result.ours.cpuSeconds > 0 && result.ours.rssMaxMiB > 20);
      // Hashes, and what the control line says meanwhile.
      if (name === 'wan-zeros' || name === 'wan-unchanged') t.ok(result.ours.wireBytes < 1 << 20);
      if (name === 'wan') t.ok(result.ours.wallSeconds > (result.size * 8) / line.bitsPerSecond);
      t.equal(result.theirs !== null, cases[name]?.theirs !== undefined);
    });
  }
  await t.test('granule-durable', { skip: missingForLoop('ext4') }, async (t) => {
    const { ours, size } = await benchGranule(1 << 30, 1, () => undefined);
    t.equal(size, 1 << 30);
    t.ok(ours.wallSeconds > 0 && ours.rssMaxMiB > 20);
  });
  await t.test('age-pgbench', { skip: missingForLoop('ext4') || missingPostgres() }, async (t) => {
    const result = await ageOfPgbench({ runs: 1, size: 160 << 20, seconds: 3 }, () => undefined);
    const { age } = result;
    t.ok(age && age.age.samples > 0 && age.age.p50 > 0 && age.age.most >= age.age.p99);
    t.ok(age && age.paced.without > 0 && age.paced.mirrored > 0 && age.full.mirrored > 0);
    t.ok(age && age.cuts.made + age.cuts.refused > 0 && age.agentMiB > 20);
    const lines = table({ ...emptyResults(), results: [result] }).split('\n');
    t.equal(lines.filter((line) => line.startsWith('| ')).length, 2, 'a heading and a row');
  });
  t.equal(quantile([3, 1, 2, 4], 0.5), 2);
  t.equal(quantile([3, 1, 2, 4], 0.99), 4);
  const buckets = new Map([[0.1, 98], [0.01, 60], [Infinity, 100]]); // prettier-ignore
  t.equal(bucketQuantile(buckets, 0.5), 0.01);
  t.equal(bucketQuantile(buckets, 0.98), 0.1);
  t.equal(bucketQuantile(buckets, 0.99), Infinity);
  const shown = { ...emptyResults(), results };
  t.equal(
    table(shown)
      .split('\n')
      .filter((line) => line.startsWith('| ')).length,
    results.length + 1,
    'a row for each',
  );
  t.match(plot(shown), /^<svg /);
  const figures = { wallSeconds: 2, cpuSeconds: 1, rssMaxMiB: 1, wireBytes: 1 };
  const wan = { case: 'wan', size: 12.5e6, ours: figures, theirs: { ...figures, wallSeconds: 4 }, line, peer: 'rsync' };
  t.match(
    table({ ...emptyResults(), results: [{ ...wan, ratio: null } as Result] }),
    'wan: of 100 Mbit/s with 50 ms ours used 50 %, rsync 25 %.',
  );
});

for (const takeOver of [false, true])
  t.test(`many files: each step is timed for each, and the copies are right (taken over: ${takeOver})`, async (t) => {
    const folder = realpathSync(mkdtempSync(join(tmpdir(), 'replicator-bench-')));
    t.teardown(() => remove(folder));
    const said: string[] = [];
    const results = await benchManyFiles(
      { folder, files: 300, meanBytes: 2000, runs: 1, check: true, peers: manyFilesPeers, takeOver },
      (line) => said.push(line),
    );
    const skipped = said.filter((line) => line.startsWith('skipped'));
    t.equal(results.length + skipped.length, 1 + manyFilesPeers.length, skipped.join('; '));
    const hasLsyncd = results.some(({ subject }) => subject === 'lsyncd');
    for (const { subject, figures } of results) {
      // Where lsyncd cannot be had, syncthing takes rsync's copy.
      const makesFirst = ['ours', ...(takeOver ? [] : ['rsync']), ...(hasLsyncd ? ['syncthing'] : [])];
      const isFirst = makesFirst.includes(subject);
      t.equal(figures['first copy'] !== undefined, isFirst, subject);
      for (const step of steps.slice(isFirst ? 0 : 1))
        t.ok((figures[step]?.wallSeconds ?? 0) > 0, `${subject}, ${step}`);
    }
    t.ok((results[0]?.agentMiB ?? 0) > 20);
    t.equal(manyFilesTable(results).split('\n').length, 2 + results.length);
  });
