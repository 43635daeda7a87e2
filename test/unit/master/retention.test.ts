import fc from 'fast-check';
import t from 'tap';
import type { SnapshotPeriod } from '../../../master/resources.ts';
import { expired, type Candidate } from '../../../master/retention.ts';

const periods: SnapshotPeriod[] = ['minute', 'hour', 'day', 'week', 'month'];
const nowMs = 1000;
const candidates = fc
  .array(
    fc.record({
      schedule: fc.option(fc.constantFrom(...periods), { nil: null }),
      state: fc.constantFrom<Candidate['state']>('Creating', 'Ready', 'Ready', 'Ready', 'Failed', 'Deleting'),
      createdMs: fc.integer({ min: 0, max: 50 }),
      pinned: fc.boolean(),
      lockedUntilMs: fc.option(fc.integer({ min: 900, max: 1100 }), { nil: null }),
      referenced: fc.boolean(),
    }),
    { maxLength: 60 },
  )
  .map((list) => list.map((one, index): Candidate => ({ ...one, name: `s${index}` })));
const schedules = fc.uniqueArray(
  fc.record({ period: fc.constantFrom(...periods), retain: fc.integer({ min: 1, max: 6 }) }),
  {
    selector: ({ period }) => period,
  },
);

t.test('nothing that a person, a lock or a recovery holds is ever named, nor what no schedule took', async (t) => {
  fc.assert(
    fc.property(candidates, schedules, (snapshots, rules) => {
      const gone = new Set(expired({ snapshots, schedules: rules, nowMs }));
      return snapshots.every(
        (one) =>
          !gone.has(one.name) ||
          (!one.pinned &&
            !one.referenced &&
            (one.lockedUntilMs === null || one.lockedUntilMs <= nowMs) &&
            rules.some(({ period }) => period === one.schedule) &&
            (one.state === 'Ready' || one.state === 'Failed')),
      );
    }),
    { numRuns: 2000 },
  );
  t.pass('2000 sets');
});

t.test('of each schedule the newest stay, whatever else is there', async (t) => {
  fc.assert(
    fc.property(candidates, schedules, (snapshots, rules) => {
      const gone = new Set(expired({ snapshots, schedules: rules, nowMs }));
      return rules.every(({ period, retain }) => {
        const ready = snapshots.filter(({ schedule, state }) => schedule === period && state === 'Ready');
        const left = ready.filter(({ name }) => !gone.has(name));
        if (left.length < Math.min(retain, ready.length)) return false;
        // What went is no newer than anything of the retained that stayed.
        const newest = [...ready].sort((a, b) => b.createdMs - a.createdMs).slice(0, retain);
        const oldestKeptMs = Math.min(...newest.map(({ createdMs }) => createdMs));
        return ready.every(({ name, createdMs }) => !gone.has(name) || createdMs <= oldestKeptMs);
      });
    }),
    { numRuns: 2000 },
  );
  t.pass('2000 sets');
});

t.test('what may go beyond the number goes, and once is enough', async (t) => {
  fc.assert(
    fc.property(candidates, schedules, (snapshots, rules) => {
      const gone = new Set(expired({ snapshots, schedules: rules, nowMs }));
      const left = snapshots.filter(({ name }) => !gone.has(name));
      if (expired({ snapshots: left, schedules: rules, nowMs }).length > 0) return false;
      return rules.every(({ period, retain }) => {
        const free = left.filter(
          (one) =>
            one.schedule === period &&
            one.state === 'Ready' &&
            !one.pinned &&
            !one.referenced &&
            (one.lockedUntilMs ?? 0) <= nowMs,
        );
        return free.length <= retain;
      });
    }),
    { numRuns: 2000 },
  );
  t.pass('2000 sets');
});

t.test('a failed one goes when a newer one of its schedule is there, and not before', async (t) => {
  const one = (name: string, state: Candidate['state'], createdMs: number): Candidate => {
    return { name, state, createdMs, schedule: 'hour', pinned: false, lockedUntilMs: null, referenced: false };
  };
  const rules = [{ period: 'hour' as const, retain: 2 }];
  const failedLast = [one('a', 'Ready', 1), one('b', 'Failed', 2)];
  t.same(expired({ snapshots: failedLast, schedules: rules, nowMs }), []);
  t.same(expired({ snapshots: [...failedLast, one('c', 'Ready', 3)], schedules: rules, nowMs }), ['b']);
});
