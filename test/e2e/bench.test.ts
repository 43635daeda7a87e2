/** Benches in small, so that they never rot: what they copy is compared, figures are only looked at for being there. */
import { mkdirSync, mkdtempSync, realpathSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { bench } from '../bench/bench.ts';
import { cases } from '../bench/cases.ts';
import { peers } from '../bench/peers.ts';
import { emptyResults, plot, table, type Result } from '../bench/results.ts';
import { remove } from '../bench/volumes.ts';
import { long } from './world.ts';

const all = Object.keys(cases).flatMap((name) => Object.keys(peers).map((peer) => [name, peer] as const));
const few = [
  ['change-image', 'rsync-stunnel'],
  ['move-tree', 'rsync'],
] as const;

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
        { folder: join(folder, 'own'), runs: 1, size: 12 << 20, content: 'mixed' },
        (line) => (why = line),
      );
      if (!result) {
        t.pass('not here', { skip: why || `${peer} does not copy this` });
        return;
      }
      results.push(result);
      t.ok(result.ours.wallSeconds > 0 && result.ours.cpuSeconds > 0 && result.ours.rssMaxMiB > 20);
      t.equal(result.theirs !== null, cases[name]?.theirs !== undefined);
    });
  }
  const shown = { ...emptyResults(), results };
  t.equal(
    table(shown)
      .split('\n')
      .filter((line) => line.startsWith('| ')).length,
    results.length + 1,
    'a row for each',
  );
  t.match(plot(shown), /^<svg /);
});
