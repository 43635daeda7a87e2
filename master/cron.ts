/**
 * Cron expressions of five fields (minute, hour, day of month, month, day of week), in UTC: `*`, lists, ranges, steps,
 * three-letter names, 7 for Sunday, and @hourly @daily @weekly @monthly @yearly. As in cron, when both days are given
 * either one is enough. Pure; knows no time zones.
 */

export interface Cron {
  minutes: Set<number>;
  hours: Set<number>;
  days: Set<number>;
  months: Set<number>;
  weekdays: Set<number>;
  /** Both days restrict: one of them is enough. */
  eitherDay: boolean;
}

const months = ['jan', 'feb', 'mar', 'apr', 'may', 'jun', 'jul', 'aug', 'sep', 'oct', 'nov', 'dec'];
const weekdays = ['sun', 'mon', 'tue', 'wed', 'thu', 'fri', 'sat'];
const aliases: Record<string, string> = {
  '@hourly': '0 * * * *',
  '@daily': '0 0 * * *',
  '@weekly': '0 0 * * 0',
  '@monthly': '0 0 1 * *',
  '@yearly': '0 0 1 1 *',
};
/** Long enough for 29 February on a given weekday. */
const searchYears = 29;

/** @throws Error whose message says what is wrong and gives an example */
export function parseCron(text: string): Cron {
  const fields = (Object.hasOwn(aliases, text) ? (aliases[text] ?? '') : text).trim().split(/\s+/);
  const [minute, hour, day, month, weekday] = fields;
  if (fields.length !== 5 || !minute || !hour || !day || !month || !weekday)
    throw new Error('is not a cron expression of five fields such as "*/5 * * * *"');
  const cron = {
    minutes: field('minute', minute, 0, 59),
    hours: field('hour', hour, 0, 23),
    days: field('day', day, 1, 31),
    months: field('month', month, 1, 12, months),
    weekdays: new Set([...field('day of week', weekday, 0, 7, weekdays)].map((value) => value % 7)),
    eitherDay: !day.startsWith('*') && !weekday.startsWith('*'),
  };
  if (nextTime(cron, Date.UTC(2000, 0, 1)) === undefined) throw new Error('names a day that never comes');
  return cron;
}

function field(what: string, text: string, min: number, max: number, names: string[] = []): Set<number> {
  const values = new Set<number>();
  const value = (word: string): number => {
    const index = names.indexOf(word.toLowerCase());
    const found = index >= 0 ? index + min : /^\d{1,2}$/.test(word) ? Number(word) : NaN;
    if (found >= min && found <= max) return found;
    throw new Error(`has "${word}" as ${what}; it must be within ${min}-${max}`);
  };
  for (const part of text.split(',')) {
    const match = /^(?:(\*)|(\w+)(?:-(\w+))?)(?:\/(\d{1,2}))?$/.exec(part);
    const step = Number(match?.[4] ?? 1);
    if (match === null || step < 1) throw new Error(`has "${part}" as ${what}; write it as *, 5, 1-5, */15 or 1,2`);
    const from = match[2] === undefined ? min : value(match[2]);
    const last = match[4] === undefined ? from : max;
    const to = match[1] !== undefined ? max : match[3] === undefined ? last : value(match[3]);
    if (to < from) throw new Error(`has "${part}" as ${what}; the range goes backwards`);
    for (let at = from; at <= to; at += step) values.add(at);
  }
  return values;
}

/** First whole minute after the time that fits, or undefined when none comes. */
export function nextTime(cron: Cron, afterMs: number): number | undefined {
  const at = new Date(Math.floor(afterMs / 60_000) * 60_000 + 60_000);
  const lastYear = at.getUTCFullYear() + searchYears;
  while (at.getUTCFullYear() <= lastYear) {
    if (!cron.months.has(at.getUTCMonth() + 1)) at.setTime(Date.UTC(at.getUTCFullYear(), at.getUTCMonth() + 1, 1));
    else if (!fitsDay(cron, at)) at.setUTCHours(24, 0);
    else if (!cron.hours.has(at.getUTCHours())) at.setUTCHours(at.getUTCHours() + 1, 0);
    else if (!cron.minutes.has(at.getUTCMinutes())) at.setUTCMinutes(at.getUTCMinutes() + 1);
    else return at.getTime();
  }
  return undefined;
}

function fitsDay(cron: Cron, at: Date): boolean {
  const day = cron.days.has(at.getUTCDate());
  const weekday = cron.weekdays.has(at.getUTCDay());
  return cron.eitherDay ? day || weekday : day && weekday;
}
