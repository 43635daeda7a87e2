import t from 'tap';
import { isDue } from '../../../../agent/capture/finder.ts';

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
