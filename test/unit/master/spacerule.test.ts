import t from 'tap';
import { needOf, shortage, type Demand } from '../../../master/spacerule.ts';

const gib = 2 ** 30;
const demand: Demand = {
  baseBytes: 10 * gib,
  journalBytes: 0,
  snapshotBytes: 0,
  changedBytesPerSecond: 0,
  journalSeconds: 3600,
  maxJournalBytes: 64 * gib,
  schedules: [{ period: 'hour', every: 1, retain: 24 }],
  scheduledSnapshots: 0,
  snapshots: 0,
  reflink: true,
};

t.test('source, journal, and changed data for each kept snapshot', async (t) => {
  t.equal(needOf(demand), 10 * gib, 'a quiet volume needs itself');
  const rate = gib / 3600;
  t.equal(needOf({ ...demand, changedBytesPerSecond: rate }), 35 * gib, '10 + 1 of journal + 24 x 1');
  t.equal(
    needOf({ ...demand, changedBytesPerSecond: 100 * rate }),
    (10 + 64 + 240) * gib,
    'never more than whole ones',
  );
  t.equal(needOf({ ...demand, reflink: false }), 250 * gib, 'without shared blocks each is whole');
  t.equal(needOf({ ...demand, reflink: false, snapshots: 3, scheduledSnapshots: 1 }), 270 * gib, 'two by hand');
});

t.test('what will do is not told, what will not says how much and what to do', async (t) => {
  t.equal(shortage('local', 35 * gib, 10 * gib, 25 * gib), undefined);
  t.match(shortage('local', 35 * gib, 10 * gib, 24 * gib), /local has 24.0 GiB free.*25.0 GiB more.*add space/);
});
