import t from 'tap';
import { systemClock, systemRandom } from '../../../proto/system.ts';

t.test('the wall clock is that of the system, with fraction', async (t) => {
  const [before, now, after] = [Date.now(), systemClock.nowMs(), Date.now()];
  t.ok(before <= now && now < after + 1, `${before} ${now} ${after}`);
  const fractions = Array.from({ length: 20 }, () => systemClock.nowMs() % 1);
  t.ok(fractions.some((fraction) => fraction !== 0));
});

t.test('sleeping takes its time by the clock that never goes back', async (t) => {
  const start = systemClock.monotonicMs();
  await systemClock.sleep(30);
  t.ok(systemClock.monotonicMs() - start >= 30);
  await systemClock.sleep(0);
  await systemClock.sleep(-5);
});

t.test('sleeping ends with the reason of the signal, however long it is', async (t) => {
  const reason = new Error('stopped');
  await t.rejects(systemClock.sleep(10, AbortSignal.abort(reason)), reason);
  const stop = new AbortController();
  const long = systemClock.sleep(100 * 24 * 3600 * 1000, stop.signal); // more than a timer of the runtime can
  const first = await Promise.race([long, systemClock.sleep(20).then(() => 'still asleep')]);
  t.equal(first, 'still asleep');
  stop.abort(reason);
  await t.rejects(long, reason);
});

t.test('random bytes differ', async (t) => {
  t.equal(systemRandom.bytes(32).length, 32);
  t.notSame(systemRandom.bytes(32), systemRandom.bytes(32));
});
