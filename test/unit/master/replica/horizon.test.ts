import fc from 'fast-check';
import t from 'tap';
import { baseTarget, type Point } from '../../../../master/replica/horizon.ts';

const point = (sequence: number, us: number): Point => ({
  sequence,
  sourceUs: us,
  committedUs: us,
  consistency: 'crash',
  digest: Buffer.alloc(16),
  groupCut: '',
});

const input = fc
  .record({
    gaps: fc.array(fc.tuple(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 0, max: 100 })), { maxLength: 40 }),
    nowUs: fc.integer({ min: 0, max: 5000 }),
    journalUs: fc.integer({ min: 0, max: 3000 }),
    journalBytes: fc.integer({ min: 0, max: 200 }),
    maxJournalBytes: fc.constant(100),
    pin: fc.option(fc.nat({ max: 39 }), { nil: undefined }),
  })
  .map(({ gaps, pin, ...rest }) => {
    let [sequence, us] = [0, 0];
    const points = gaps.map(([more, later]) => point((sequence += more), (us += later)));
    return { ...rest, points, pinned: pin === undefined ? undefined : points[pin]?.sequence };
  });

t.test('the base goes to a listed point, and to none that work still reads from', async () => {
  fc.assert(
    fc.property(input, (given) => {
      const { sequence } = baseTarget(given);
      if (given.points.length === 0) return sequence === undefined;
      const isListed = given.points.some((one) => one.sequence === sequence);
      return isListed && (given.pinned === undefined || (sequence ?? 0) <= given.pinned);
    }),
  );
});

t.test('unless the journal is too large, every moment of its time can be recovered', async () => {
  fc.assert(
    fc.property(input, (given) => {
      const { sequence, short } = baseTarget({ ...given, journalBytes: 0 });
      const fromUs = given.nowUs - given.journalUs;
      // What stays is everything from the base's point on: nothing of the time may lie before it.
      const lost = given.points.filter((one) => one.sequence < (sequence ?? 0));
      const kept = given.points.filter((one) => one.sequence >= (sequence ?? 0));
      const covers = lost.length === 0 || (kept[0]?.committedUs ?? Infinity) <= fromUs;
      return !short && covers;
    }),
  );
});

t.test('a journal that is too large always gives something up, says so, and keeps the newest point', async () => {
  fc.assert(
    fc.property(input, (given) => {
      const { points } = given;
      fc.pre(points.length > 1);
      const calm = baseTarget({ ...given, journalBytes: 0, pinned: undefined });
      const pressed = baseTarget({ ...given, journalBytes: 1000, pinned: undefined });
      const moved = (pressed.sequence ?? 0) > (points[0]?.sequence ?? 0);
      return (
        moved &&
        (pressed.sequence ?? 0) >= (calm.sequence ?? 0) &&
        (pressed.short || calm.sequence === pressed.sequence)
      );
    }),
  );
});

t.test('the base never goes back as time goes on', async () => {
  fc.assert(
    fc.property(input, fc.nat({ max: 1000 }), (given, laterUs) => {
      const now = baseTarget(given).sequence ?? 0;
      return (baseTarget({ ...given, nowUs: given.nowUs + laterUs }).sequence ?? 0) >= now;
    }),
  );
});
