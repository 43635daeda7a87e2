/**
 * Cron expressions of five fields (minute, hour, day of month, month, day of week), in UTC, read by node-cron: `*`, lists,
 * ranges, steps, three-letter names, 7 for Sunday, and @hourly @daily @weekly @monthly @yearly. As in cron, when both days
 * are given either one is enough. Pure: node-cron's own next time goes by the computer's clock, so it is found here.
 */
import { validateDetailed } from 'node-cron';

export interface Cron {
  minutes: Set<number>;
  hours: Set<number>;
  days: Set<number>;
  months: Set<number>;
  weekdays: Set<number>;
  /** Both days restrict: one of them is enough. */
  eitherDay: boolean;
}

/** Long enough for 29 February on a given weekday. */
const searchYears = 29;
const example = 'give a cron expression of five fields such as "*/5 * * * *"';

/** @throws Error whose message says what is wrong and gives an example */
export function parseCron(text: string): Cron {
  const words = text.trim().split(/\s+/);
  const alias = words.length === 1 && text.startsWith('@');
  const { fields, errors } = validateDetailed(text);
  const [wrong] = errors;
  if (wrong)
    throw new Error(`has ${JSON.stringify(wrong.value ?? text)} as ${wrong.field}, which is not valid; ${example}`);
  if (!fields || (words.length !== 5 && !alias)) throw new Error(`has ${words.length} fields; ${example}`);
  const days = [...fields.dayOfMonth, ...fields.dayOfWeek].find((day) => typeof day === 'string');
  if (days !== undefined) throw new Error(`has ${JSON.stringify(days)} as a day; write days as numbers or names`);
  return {
    minutes: new Set(fields.minute),
    hours: new Set(fields.hour),
    days: new Set(fields.dayOfMonth.map(Number)),
    months: new Set(fields.month),
    weekdays: new Set(fields.dayOfWeek.map((day) => Number(day) % 7)),
    eitherDay: !alias && !(words[2] ?? '').startsWith('*') && !(words[4] ?? '').startsWith('*'),
  };
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
