import fc from 'fast-check';
import t from 'tap';
import { isTimeZone } from '../../../master/calendar.ts';
import type { SnapshotPeriod } from '../../../master/resources.ts';
import { dueTime, nameOf, nextTime } from '../../../master/schedule.ts';

function schedule(period: SnapshotPeriod, every: number, startTime: string | null, timeZone: string) {
  return { period, every, startTime, timeZone };
}
const iso = (ms: number | undefined): string | undefined => (ms === undefined ? undefined : new Date(ms).toISOString());

t.test('times are counted from the start, in the time zone asked', async (t) => {
  const seoul = schedule('day', 1, '2026-11-20T00:00:00.000Z', 'Asia/Seoul');
  t.equal(iso(nextTime(seoul, Date.parse('2026-11-21T00:00:00Z'))), '2026-11-22T00:00:00.000Z', '09:00 in Seoul');
  t.equal(iso(dueTime(seoul, Date.parse('2026-11-19T23:59:59Z'))), undefined, 'nothing is due before the start');
  t.equal(iso(nextTime(seoul, 0)), '2026-11-20T00:00:00.000Z', 'the start is the first time');
  const minutes = schedule('minute', 15, null, 'UTC');
  t.equal(iso(dueTime(minutes, Date.parse('2026-11-20T10:44:59.999Z'))), '2026-11-20T10:30:00.000Z');
  t.equal(iso(dueTime(minutes, Date.parse('2026-11-20T10:45:00Z'))), '2026-11-20T10:45:00.000Z');
  const weeks = schedule('week', 1, null, 'Asia/Seoul');
  t.equal(iso(nextTime(weeks, Date.parse('2026-11-20T00:00:00Z'))), '2026-11-22T15:00:00.000Z', 'Monday there');
});

t.test('a change of the clocks neither loses nor doubles a day', async (t) => {
  const berlin = schedule('day', 1, '2026-01-01T01:30:00.000Z', 'Europe/Berlin'); // 02:30 there
  const at = (after: string) => iso(nextTime(berlin, Date.parse(after)));
  t.equal(at('2026-03-28T12:00:00Z'), '2026-03-29T01:30:00.000Z', '02:30 does not exist: 03:30 summer time');
  t.equal(at('2026-03-29T12:00:00Z'), '2026-03-30T00:30:00.000Z', '02:30 summer time');
  t.equal(at('2026-10-24T12:00:00Z'), '2026-10-25T00:30:00.000Z', '02:30 comes twice: the first one');
  t.equal(at('2026-10-25T00:30:00Z'), '2026-10-26T01:30:00.000Z', 'and not again an hour later');
});

t.test('a month without the day has its last one instead, and the day comes back', async (t) => {
  const monthly = schedule('month', 1, '2026-01-31T12:00:00.000Z', 'UTC');
  const days: string[] = [];
  for (let at = Date.parse('2026-01-01T00:00:00Z'); days.length < 5; days.push(iso(at)?.slice(5, 10) ?? ''))
    at = nextTime(monthly, at);
  t.same(days, ['01-31', '02-28', '03-31', '04-30', '05-31']);
});

t.test('the due time is the newest of the times, for any schedule and instant', async (t) => {
  const zones = ['UTC', 'Asia/Seoul', 'America/New_York', 'Europe/Berlin', 'Australia/Lord_Howe', 'America/St_Johns'];
  const day = 86_400_000;
  fc.assert(
    fc.property(
      fc.constantFrom<SnapshotPeriod>('minute', 'hour', 'day', 'week', 'month'),
      fc.integer({ min: 1, max: 40 }),
      fc.option(fc.integer({ min: 10_000 * day, max: 25_000 * day }), { nil: null }),
      fc.constantFrom(...zones),
      fc.integer({ min: 12_000 * day, max: 25_000 * day }),
      (period, every, startMs, zone, nowMs) => {
        const one = schedule(period, every, startMs === null ? null : new Date(startMs).toISOString(), zone);
        const due = dueTime(one, nowMs);
        const next = nextTime(one, nowMs);
        if (next <= nowMs) return false;
        if (due === undefined) return startMs !== null && startMs > nowMs && next === startMs;
        return (
          due <= nowMs && nextTime(one, due) === next && dueTime(one, next - 1) === due && dueTime(one, next) === next
        );
      },
    ),
    { numRuns: 2000 },
  );
  t.pass('2000 schedules');
});

t.test('names say the time, and differ where times do', async (t) => {
  t.equal(nameOf('hour', Date.parse('2026-11-20T09:00:00Z')), 'hour-20261120-0900');
  t.equal(nameOf('day', Date.parse('2026-11-20T09:00:05.007Z')), 'day-20261120-090005007');
});

t.test('time zones are names of the data base', async (t) => {
  for (const good of ['UTC', 'Asia/Seoul', 'Etc/GMT+5']) t.ok(isTimeZone(good), good);
  for (const bad of ['', '+09:00', 'Asia/Nowhere', '../etc/passwd', 'x'.repeat(64)]) t.notOk(isTimeZone(bad), bad);
});
