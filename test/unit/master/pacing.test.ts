import t from 'tap';
import { pauseAfter } from '../../../master/pacing.ts';

t.test('a look at everything takes a twentieth of the time at most, and is never put off for long', async (t) => {
  t.equal(pauseAfter(1000, 0), 1000);
  t.equal(pauseAfter(1000, 50), 1000);
  t.equal(pauseAfter(1000, 200), 3800);
  t.equal(pauseAfter(1000, 60_000), 30_000);
});
