import fc from 'fast-check';
import t from 'tap';
import { follow, resume, trustedClock, type ClockState } from '../../../master/trustedclock.ts';

const hourMs = 3600_000;
const dayMs = 24 * hourMs;

function run(state: ClockState, startMs: number, wall: (elapsedMs: number) => number, forMs: number): ClockState {
  for (let at = hourMs; at <= forMs; at += hourMs) state = follow(state, wall(startMs + at), hourMs);
  return state;
}

t.test('time that passes is followed; a step ahead is not, until it has been so for a day', async (t) => {
  const begin = resume(undefined, 1000);
  t.same(follow(begin, 1000 + hourMs, hourMs).trustedMs, 1000 + hourMs);
  const ahead = (at: number) => 1000 + at + 1000 * dayMs;
  const soon = run(begin, 0, ahead, 23 * hourMs);
  t.equal(soon.trustedMs, 1000 + 23 * hourMs, 'steady time goes on');
  const later = run(begin, 0, ahead, 26 * hourMs);
  t.equal(later.trustedMs, ahead(26 * hourMs), 'after a day it is believed');
});

t.test('a step back is followed at once, and ends the doubt', async (t) => {
  const ahead = follow(resume(undefined, 0), 10 * dayMs, hourMs);
  t.equal(ahead.trustedMs, hourMs);
  const back = follow(ahead, 2 * hourMs, hourMs);
  t.same(back, { trustedMs: 2 * hourMs, aheadMs: 0, aheadBy: 0 });
  t.equal(follow(back, 0, hourMs).trustedMs, 0, 'things last longer then');
});

t.test('each further step ahead begins the day anew', async (t) => {
  let state = resume(undefined, 0);
  for (let day = 1; day <= 10; day++)
    state = run(state, (day - 1) * 20 * hourMs, (at) => at + day * 100 * dayMs, 20 * hourMs);
  t.equal(state.trustedMs, 200 * hourMs);
});

t.test('it is never ahead of the machine, and never faster than time while in doubt', async (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.integer({ min: 0, max: 2 * hourMs }), fc.integer({ min: -dayMs, max: 400 * dayMs })), {
        maxLength: 60,
      }),
      (steps) => {
        let state = resume(undefined, 0);
        let elapsed = 0;
        let wall = 0;
        for (const [passed, jump] of steps) {
          elapsed += passed;
          wall += passed + (Math.abs(jump) % 3 === 0 ? jump : 0);
          const before = state.trustedMs;
          state = follow(state, wall, passed);
          if (state.trustedMs > wall) return false;
          if (elapsed < dayMs && state.trustedMs > before + passed + 5000) return false;
        }
        return true;
      },
    ),
    { numRuns: 1000 },
  );
  t.pass('1000 runs');
});

t.test('what it had reached is kept over a restart, and a long pause waits out the day', async (t) => {
  const records = new Map<string, string>();
  const store = {
    getRecord: (table: string, key: string) => records.get(`${table}/${key}`),
    putRecord: (table: string, key: string, value: string | undefined) =>
      void records.set(`${table}/${key}`, value ?? ''),
  };
  let wall = 0;
  let steady = 0;
  const clock = { nowMs: () => wall, monotonicMs: () => steady, sleep: async () => undefined };
  const jumps: number[] = [];
  const open = () => trustedClock(clock, store, (aheadMs) => void jumps.push(aheadMs));
  t.equal(open().nowMs(), 0);
  wall = 6 * dayMs;
  t.equal(open().nowMs(), 6 * dayMs, 'a week is believed');
  wall = 600 * dayMs;
  const late = open();
  t.equal(late.nowMs(), 6 * dayMs);
  steady += 2 * hourMs;
  wall += 2 * hourMs;
  t.equal(late.nowMs(), 6 * dayMs + 2 * hourMs);
  t.same(jumps, [594 * dayMs], 'told once');
});
