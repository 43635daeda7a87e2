import fc from 'fast-check';
import t from 'tap';
import { choosePoint, commonMoment, type Choosable } from '../../../../master/recovery/point.ts';
import type { Point } from '../../../../master/replica/horizon.ts';

function point(sequence: number, ms: number, groupCut = ''): Point {
  return {
    ...{ sequence, sourceUs: ms * 1000 + 7, committedUs: ms * 1000 + 9 },
    ...{ consistency: 'crash', digest: Buffer.alloc(16), groupCut },
  };
}
function member(replication: string, points: Point[], goodAsOfMs = 0, snapshots: [string, Point][] = []): Choosable {
  return { replication, points, goodAsOfMs, snapshots: new Map(snapshots), isFinal: false };
}

t.test('a point by each choice', async (t) => {
  const one = member('a', [point(3, 300), point(4, 400)], 450, [
    ['old', point(1, 100)],
    ['new', point(3, 300)],
  ]);
  t.equal(choosePoint('latest-data', one).sequence, 4);
  t.equal(choosePoint('latest-snapshot', one).sequence, 3);
  t.equal(choosePoint({ snapshot: 'old' }, one).sequence, 1);
  const at = (ms: number) => choosePoint({ time: new Date(ms).toISOString() }, one).sequence;
  t.equal(at(399), 3);
  t.equal(at(400), 4, 'a time names all that lies in its millisecond');
  t.equal(at(299), 1, 'older than the journal: a snapshot');
  t.throws(() => at(99), { code: 'PointGone' });
  t.throws(() => choosePoint({ snapshot: 'none' }, one), { code: 'PointGone', message: /no snapshot none of a/ });
  t.throws(() => choosePoint('latest-data', member('b', [])), { code: 'PointGone' });
  t.throws(() => choosePoint('latest-snapshot', member('b', [point(1, 1)])), { code: 'PointGone' });
});

t.test(
  'times that go back a little, as those of an agent that was killed: a time names the point that shows it',
  async (t) => {
    const one = member('a', [point(3, 300), point(4, 290), point(5, 500)]);
    const at = (ms: number) => choosePoint({ time: new Date(ms).toISOString() }, one).sequence;
    t.same([at(299), at(300), at(499), at(500)], [4, 3, 3, 5]);
    t.equal(choosePoint('latest-data', member('b', [point(3, 300), point(4, 290)])).sequence, 4);
  },
);

t.test('a group goes to what was cut on all members together', async (t) => {
  const a = member('a', [point(1, 100, 'x'), point(2, 200, 'y')], 290);
  const b = member('b', [point(7, 100, 'x'), point(8, 250)], 260);
  const moment = commonMoment('latest-data', [a, b]);
  t.equal(moment, 100.007, 'not the newest of each, which are of no common cut');
  t.same(
    [a, b].map((one) => choosePoint('latest-data', one, moment).sequence),
    [1, 7],
  );
  const before = commonMoment({ time: new Date(99).toISOString() }, [a, b]);
  t.equal(before, undefined, 'none is as old as that');
});

t.test('a member that was demoted is as good at any moment after its last cut', async (t) => {
  const a = { ...member('a', [point(1, 100, 'x'), point(2, 200)], 200), isFinal: true };
  const b = member('b', [point(7, 100, 'x'), point(8, 250, 'y')], 260);
  const c = member('c', [point(3, 100, 'x'), point(4, 250, 'y')], 260);
  const chosen = (members: Choosable[]) => {
    const moment = commonMoment('latest-data', members);
    return members.map((one) => choosePoint('latest-data', one, moment).sequence);
  };
  t.same(chosen([a, b, c]), [2, 8, 4]);
  t.same(chosen([a, { ...b, isFinal: true }]), [2, 8], 'all of them: the last cut of each');
  const before = member('b', [point(7, 100, 'x'), point(8, 150, 'y')], 150);
  const beside = member('c', [point(3, 100, 'x'), point(4, 150, 'y')], 150);
  t.same(chosen([a, before, beside]), [1, 8, 4], 'what was cut before that goes with what it was then');
});

t.test('without common cuts no member is newer than the oldest', async (t) => {
  const some = fc.array(
    fc.record({ times: fc.uniqueArray(fc.nat(1000), { minLength: 1, maxLength: 8 }), proved: fc.nat(200) }),
    { minLength: 1, maxLength: 5 },
  );
  fc.assert(
    fc.property(some, (members) => {
      const list = members.map(({ times, proved }, index) => {
        const sorted = times.toSorted((x, y) => x - y);
        const points = sorted.map((ms, number) => point(number + 1, ms));
        return member(`m${index}`, points, (sorted.at(-1) ?? 0) + 0.007 + proved);
      });
      const moment = commonMoment('latest-data', list) ?? NaN;
      const newest = Math.min(...list.map(({ goodAsOfMs }) => goodAsOfMs));
      const begun = Math.max(...list.map(({ points }) => (points[0]?.sourceUs ?? 0) / 1000));
      if (moment !== Math.max(newest, begun))
        throw new Error('neither the oldest of the newest nor where all have begun');
      for (const one of list) {
        const fitting = one.points.filter(({ sourceUs }) => sourceUs / 1000 <= moment);
        if (choosePoint('latest-data', one, moment) !== fitting.at(-1)) throw new Error('not the newest up to then');
      }
    }),
  );
  t.pass('always');
});
