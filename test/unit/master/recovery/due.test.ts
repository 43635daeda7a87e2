import fc from 'fast-check';
import t from 'tap';
import { zonedAt } from '../../../../master/calendar.ts';
import { newestDue, nextDue } from '../../../../master/recovery/due.ts';
import type { RecoveryTiming, Weekday } from '../../../../master/resources.ts';

const hourMs = 3_600_000;
const days: Weekday[] = ['monday', 'tuesday', 'wednesday', 'thursday', 'friday', 'saturday', 'sunday'];
const timing = (given: Partial<RecoveryTiming>): RecoveryTiming => ({
  ...{ repeat: 'once', startTime: '2026-11-20T18:30:00.000Z', endTime: null, timeZone: 'UTC' },
  ...{ weekday: null, week: null, day: null },
  ...given,
});

function first(given: Partial<RecoveryTiming>, count: number, after = '2026-01-01T00:00:00Z'): string[] {
  const found: string[] = [];
  let at: number | undefined = Date.parse(after);
  while (found.length < count && (at = nextDue(timing(given), at)) !== undefined)
    found.push(new Date(at).toISOString());
  return found;
}

t.test('known calendars', async (t) => {
  t.same(first({}, 3), ['2026-11-20T18:30:00.000Z'], 'once is once');
  t.same(first({ repeat: 'hourly' }, 2), ['2026-11-20T18:30:00.000Z', '2026-11-20T19:30:00.000Z']);
  t.same(first({ repeat: 'daily', endTime: '2026-11-21T18:30:00Z' }, 3), [
    '2026-11-20T18:30:00.000Z',
    '2026-11-21T18:30:00.000Z',
  ]);
  t.same(first({ repeat: 'weekly' }, 2), ['2026-11-20T18:30:00.000Z', '2026-11-27T18:30:00.000Z'], 'its own weekday');
  t.same(first({ repeat: 'weekly', weekday: 'monday' }, 2), ['2026-11-23T18:30:00.000Z', '2026-11-30T18:30:00.000Z']);
  t.same(
    first({ repeat: 'monthly', day: 31 }, 4),
    ['2026-11-30', '2026-12-31', '2027-01-31', '2027-02-28'].map((day) => `${day}T18:30:00.000Z`),
    'a short month has its last day',
  );
  t.same(first({ repeat: 'monthly', week: 'second', weekday: 'sunday' }, 2), [
    '2026-12-13T18:30:00.000Z',
    '2027-01-10T18:30:00.000Z',
  ]);
  t.same(first({ repeat: 'monthly', week: 'last', weekday: 'friday' }, 2), [
    '2026-11-27T18:30:00.000Z',
    '2026-12-25T18:30:00.000Z',
  ]);
  t.same(
    first({ repeat: 'daily', startTime: '2026-03-27T09:00:00Z', timeZone: 'Europe/Berlin' }, 4),
    ['2026-03-27T09', '2026-03-28T09', '2026-03-29T08', '2026-03-30T08'].map((hour) => `${hour}:00:00.000Z`),
    'the time of day stays when the clocks change',
  );
});

t.test('every due time is one by its own words, and none in between is left out', async (t) => {
  const some = fc.record({
    repeat: fc.constantFrom('hourly' as const, 'daily' as const, 'weekly' as const, 'monthly' as const),
    start: fc.integer({ min: Date.parse('2024-01-01'), max: Date.parse('2030-01-01') }),
    timeZone: fc.constantFrom('UTC', 'Asia/Seoul', 'America/New_York'),
    weekday: fc.constantFrom(null, ...days),
    week: fc.constantFrom(null, 'first' as const, 'third' as const, 'last' as const),
    day: fc.constantFrom(null, 1, 15, 31),
    after: fc.integer({ min: -40 * 24, max: 400 * 24 }),
  });
  fc.assert(
    fc.property(some, ({ start, after, ...given }) => {
      const one = timing({ ...given, startTime: new Date(start).toISOString() });
      const afterMs = start + after * hourMs;
      const found = nextDue(one, afterMs) ?? NaN;
      const fits = (ms: number): boolean => {
        const at = zonedAt(ms, one.timeZone);
        const from = zonedAt(start, one.timeZone);
        const weekday = one.weekday === null ? from.dayOfWeek : days.indexOf(one.weekday) + 1;
        const length = at.with({ day: 31 }).day;
        if (one.repeat === 'weekly') return at.dayOfWeek === weekday;
        if (one.repeat !== 'monthly') return true;
        if (one.week === null) return at.day === Math.min(length, one.day ?? from.day);
        const nth = { first: at.day <= 7, third: at.day > 14 && at.day <= 21, last: at.day > length - 7 };
        return at.dayOfWeek === weekday && nth[one.week as keyof typeof nth];
      };
      if (!(found > afterMs && found >= start && fits(found)))
        throw new Error(`${new Date(found).toISOString()} is none`);
      // Day by day, at the start's time of day: the model that has no cleverness.
      const from = zonedAt(start, one.timeZone);
      for (let number = 0; one.repeat !== 'hourly' && number < 500; number++) {
        const at = from.add({ days: number }).epochMilliseconds;
        if (at > afterMs && at < found - 2 * hourMs && fits(at))
          throw new Error(`${new Date(at).toISOString()} is left out`);
        if (at > found) break;
      }
      const again = newestDue(one, start - 1, found);
      if (again !== found) throw new Error('the newest due time at a due time is that');
      if (newestDue(one, found, found) !== undefined) throw new Error('what is done is not due again');
    }),
    { numRuns: 500 },
  );
  t.pass('500 timings');
});
