import t from 'tap';
import { rate } from '../../../master/rate.ts';

t.test('a burst is granted, then as many as have come back, each key by itself', async (t) => {
  const limit = rate(3, 0.5);
  const taken = (key: string, nowMs: number): boolean[] => [0, 1, 2, 3].map(() => limit.take(key, nowMs));
  t.same(taken('a', 0), [true, true, true, false]);
  t.equal(limit.allows('a', 1999), false);
  t.equal(limit.allows('a', 2000), true);
  t.same(taken('a', 4000), [true, true, false, false]);
  t.same(taken('b', 4000), [true, true, true, false]);
  t.same(taken('a', 1e9), [true, true, true, false]);
  t.equal(limit.take('a', 0), false, 'a clock that goes back gives nothing');
});

t.test('keys are bounded, the one used longest ago is forgotten', async (t) => {
  const limit = rate(1, 0, 2);
  for (const key of ['a', 'b', 'a', 'c']) limit.take(key, 0);
  t.equal(limit.allows('a', 0), false);
  t.equal(limit.allows('b', 0), true);
});
