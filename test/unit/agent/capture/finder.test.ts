import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { Finder, isDue } from '../../../../agent/capture/finder.ts';
import { openTree } from '../../../../agent/capture/tree.ts';
import { openManifest } from '../../../../agent/manifest.ts';
import { systemClock } from '../../../../proto/system.ts';
import { missingForFanotify } from '../../../conformance/treeplace.ts';

/** Time from the beginning of a scan until the next one is due, in steps of 10 ms. */
function pace(costMs: number, intervalMs: number, ratio = 0.05): number {
  for (let sinceMs = 0; sinceMs < 1e6; sinceMs += 10) if (isDue({ costMs, sinceMs, intervalMs, ratio })) return sinceMs;
  return Infinity;
}

t.test('a scan that is cheap beside the time between cuts is part of every look', async (t) => {
  t.equal(pace(40, 1000), 0);
  t.equal(pace(3000, 60_000), 0);
});

t.test('one that is not comes with each cut, within a fifth of the time', async (t) => {
  t.equal(pace(60, 1000), 1000);
  t.equal(pace(200, 1000), 1000);
  t.equal(pace(300, 1000), 1500);
  t.equal(pace(2000, 1000), 10_000);
});

t.test('and no oftener than a twentieth of the time where that is enough', async (t) => {
  t.equal(pace(4000, 60_000), 60_000);
  t.equal(pace(2900, 60_000), 0);
});

t.test('never when only those are wanted that are asked for', async (t) => {
  t.equal(pace(1, 1000, 0), Infinity);
});

async function rests(hints: 'fanotify' | 'scan', work: (finder: Finder, look: () => Promise<void>) => Promise<void>) {
  const folder = fs.mkdtempSync(join(fs.realpathSync(tmpdir()), 'finder-'));
  const manifest = openManifest(join(folder, 'data'));
  const tree = await openTree(folder, undefined);
  const counters = { readBytes: 0, skippedSameBytes: 0, skippedZeroBytes: 0, fullScans: 0, fullScanReason: '', lostEvents: 0 }; // prettier-ignore
  const finder = new Finder({
    manifest,
    clock: systemClock,
    agentUs: () => 0,
    counters,
    cutIntervalSeconds: 3600,
    hints,
    scanRatio: 0.05,
  });
  try {
    await finder.begin(tree);
    await work(finder, async () => {
      await using _looks = await finder.look(tree, false, new AbortController().signal);
    });
  } finally {
    await finder.close();
    await tree.close();
    manifest.close();
    fs.rmSync(folder, { recursive: true });
  }
  return counters;
}

t.test('no rest is needed after scans at their own pace', { skip: await missingForFanotify() }, async (t) => {
  const { fullScans } = await rests('fanotify', async (finder, look) => {
    for (let looks = 0; looks < 3; looks++) {
      await look();
      t.notOk(finder.needsRest());
    }
    finder.doubt('events were lost');
    await look();
    t.ok(finder.needsRest(), 'one that was forced may be forced again by the next look');
    t.notOk(finder.needsRest(), 'asked for once');
  });
  t.equal(fullScans, 4);
});

t.test('without prompt hints a look costs what the tree costs', async (t) => {
  await rests('scan', async (finder, look) => {
    await look();
    t.ok(finder.needsRest());
  });
});
