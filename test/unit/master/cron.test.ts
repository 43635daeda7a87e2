import t from 'tap';
import { nextTime, parseCron } from '../../../master/cron.ts';

function next(text: string, after: string): string | undefined {
  const ms = nextTime(parseCron(text), Date.parse(after));
  return ms === undefined ? undefined : new Date(ms).toISOString();
}

t.test('the next time is the first whole minute after the given one that fits', async (t) => {
  const cases: [string, string, string][] = [
    ['* * * * *', '2026-11-20T10:00:00.000Z', '2026-11-20T10:01:00.000Z'],
    ['*/5 * * * *', '2026-11-20T10:04:59.999Z', '2026-11-20T10:05:00.000Z'],
    ['*/5 * * * *', '2026-11-20T10:05:00.000Z', '2026-11-20T10:10:00.000Z'],
    ['30 2 * * *', '2026-11-20T02:30:00.000Z', '2026-11-21T02:30:00.000Z'],
    ['0 0 1 1 *', '2026-11-20T00:00:00.000Z', '2027-01-01T00:00:00.000Z'],
    ['0 12 29 feb *', '2026-11-20T00:00:00.000Z', '2028-02-29T12:00:00.000Z'],
    ['0 9 * * mon-fri', '2026-11-20T09:00:00.000Z', '2026-11-23T09:00:00.000Z'],
    ['0 9 * * 7', '2026-11-20T09:00:00.000Z', '2026-11-22T09:00:00.000Z'],
    ['0 0 13 * 5', '2026-11-21T00:00:00.000Z', '2026-11-27T00:00:00.000Z'],
    ['0 22-23,1 31 * *', '2026-11-20T00:00:00.000Z', '2026-12-31T01:00:00.000Z'],
    ['@hourly', '2026-12-31T23:59:00.000Z', '2027-01-01T00:00:00.000Z'],
  ];
  for (const [text, after, expected] of cases) t.equal(next(text, after), expected, `${text} after ${after}`);
});

t.test('it agrees with trying every minute', async (t) => {
  for (const text of ['7,21 */6 1-7 * 1', '0 0 */10 2,5 *', '59 23 31 dec *']) {
    const { minutes, hours, days, months, weekdays, eitherDay } = parseCron(text);
    let at = Date.parse('2027-01-01T00:00:00.000Z');
    for (let count = 0; count < 5; count++) {
      const found = nextTime(parseCron(text), at) ?? NaN;
      for (let minute = at + 60_000; minute <= found; minute += 60_000) {
        const date = new Date(minute);
        const [day, weekday] = [days.has(date.getUTCDate()), weekdays.has(date.getUTCDay())];
        const fits =
          minutes.has(date.getUTCMinutes()) &&
          hours.has(date.getUTCHours()) &&
          months.has(date.getUTCMonth() + 1) &&
          (eitherDay ? day || weekday : day && weekday);
        if (fits !== (minute === found)) t.fail(`${text}: ${date.toISOString()}`);
      }
      at = found;
    }
    t.pass(text);
  }
});

t.test('what is no cron expression is refused with what would be', async (t) => {
  for (const text of ['', '* * * *', '* * * * * *', '60 * * * *', '* 24 * * *', '* * 0 * *', '* * * 13 *', '* * * * 8'])
    t.throws(() => parseCron(text), text);
  for (const text of [
    'x * * * *',
    '*/0 * * * *',
    '1-2-3 * * * *',
    '-1 * * * *',
    '0 0 31 2 *',
    '@never',
    '0 0 L * *',
    '0 0 * * 5#2',
  ])
    t.throws(() => parseCron(text), text);
  t.throws(() => parseCron('61 * * * *'), /61.*minute/);
  t.throws(() => parseCron('0 0 30 2 *'), /30 2|dayOfMonth/);
});
