import fc from 'fast-check';
import t from 'tap';
import { nextStep, type PlanInput } from '../../../agent/plan.ts';

const calm: PlanInput = {
  nowMs: 100_000,
  assignment: {
    paused: false,
    continuous: true,
    cutIntervalSeconds: 5,
    syncRequest: 0,
    resyncRequest: 0,
    verifyRequest: 0,
  },
  done: { sync: 0, resync: 0, verify: 0 },
  resyncing: false,
  initialized: true,
  whole: false,
  last: { startMs: 99_000, endMs: 99_100, whole: false },
  called: false,
  refused: false,
};
const given = (change: Partial<PlanInput>, assignment: Partial<PlanInput['assignment']> = {}): PlanInput => ({
  ...calm,
  ...change,
  assignment: { ...calm.assignment, ...assignment },
});
const sync = { kind: 'sync', whole: false, asked: true };

t.test('what comes first', async (t) => {
  t.same(nextStep(given({ whole: true }, { paused: true, resyncRequest: 1 })), { kind: 'pause' });
  t.same(nextStep(given({}, { resyncRequest: 1 })), { kind: 'reopen' });
  const resync = given({ resyncing: true }, { resyncRequest: 1, verifyRequest: 1, syncRequest: 1 });
  t.same(nextStep(resync), { ...sync, why: 'Resyncing', whole: true });
  t.same(nextStep(given({}, { verifyRequest: 1, syncRequest: 1 })), { ...sync, why: 'Verifying', whole: true });
  t.same(nextStep(given({}, { syncRequest: 1 })), { ...sync, why: 'Mirroring' });
  t.same(nextStep(given({ whole: true }, { syncRequest: 1 })), { ...sync, why: 'Resyncing', whole: true });
});

t.test('the first copy goes before a verify, and is not held up by an interval that has not begun', async (t) => {
  const first = given({ initialized: false, last: undefined }, { verifyRequest: 1, continuous: false });
  t.same(nextStep(first), { ...sync, why: 'InitialSync' });
});

t.test('what the replica holds is not known: the first round offers all of it, at once', async (t) => {
  t.same(nextStep(given({ whole: true, last: undefined })), { ...sync, why: 'Resyncing', whole: true });
});

t.test('what is done is not done again', async (t) => {
  const asked = given(
    { done: { sync: 2, resync: 3, verify: 4 } },
    { syncRequest: 2, resyncRequest: 3, verifyRequest: 4 },
  );
  t.same(nextStep(asked), nextStep(calm));
});

t.test('cuts keep to the interval, from start to start', async (t) => {
  t.same(nextStep(calm), { kind: 'wait', untilMs: 104_000 });
  t.same(nextStep(given({ nowMs: 104_000 })), { ...sync, why: 'Mirroring', asked: false });
  t.same(nextStep(given({ last: undefined })), { ...sync, why: 'Mirroring', asked: false });
});

t.test('a slow volume is read at most a third of the time, and waits two minutes at most', async (t) => {
  const slow = given({ last: { startMs: 70_000, endMs: 100_000, whole: false } });
  t.same(nextStep(slow), { kind: 'wait', untilMs: 160_000 });
  const slower = given({ last: { startMs: -500_000, endMs: 100_000, whole: false } });
  t.same(nextStep(slower), { kind: 'wait', untilMs: 220_000 });
});

t.test('what had to be read whole does not put off the next cut', async (t) => {
  const first = given({ last: { startMs: 40_000, endMs: 100_000, whole: true } });
  t.same(nextStep(first), { ...sync, why: 'Mirroring', asked: false });
});

t.test('without a trigger it waits to be asked; what was refused is asked for at the pace of cuts', async (t) => {
  t.same(nextStep(given({}, { continuous: false })), { kind: 'wait', untilMs: Infinity });
  t.same(nextStep(given({ refused: true }, { syncRequest: 1 })), { kind: 'wait', untilMs: 104_000 });
  t.same(nextStep(given({ refused: true }, { verifyRequest: 1 })), { kind: 'wait', untilMs: 104_000 });
  t.same(nextStep(given({ refused: true, resyncing: true }, { resyncRequest: 1 })), { kind: 'wait', untilMs: 104_000 });
});

t.test('it never waits for the past, and never waits when nothing was done yet', async () => {
  const count = fc.nat({ max: 2 });
  const counts = fc.record({ sync: count, resync: count, verify: count });
  const input = fc.record({
    nowMs: fc.nat({ max: 1e6 }),
    assignment: fc.record({
      paused: fc.boolean(),
      continuous: fc.constant(true),
      cutIntervalSeconds: fc.integer({ min: 1, max: 60 }),
      syncRequest: count,
      resyncRequest: count,
      verifyRequest: count,
    }),
    done: counts,
    resyncing: fc.boolean(),
    initialized: fc.boolean(),
    whole: fc.boolean(),
    last: fc.option(
      fc
        .record({ startMs: fc.nat({ max: 1e6 }), endMs: fc.nat({ max: 1e6 }), whole: fc.boolean() })
        .map(({ startMs, endMs, whole }) => ({
          startMs: Math.min(startMs, endMs),
          endMs: Math.max(startMs, endMs),
          whole,
        })),
      { nil: undefined },
    ),
    called: fc.boolean(),
    refused: fc.boolean(),
  });
  fc.assert(
    fc.property(input, (one) => {
      const step = nextStep(one);
      if (step.kind !== 'wait') return true;
      return step.untilMs > one.nowMs && one.last !== undefined;
    }),
  );
});
