/**
 * When a planned recovery is due. Pure.
 *
 * Times are counted from startTime: hours by elapsed time; days, weeks and months by the calendar of the time zone at the
 * start's time of day there (calendar.ts says what a change of the clocks does). A month that is shorter than the day asked
 * for has its last one instead.
 */
import { zonedAt, type Zoned } from '../calendar.ts';
import type { RecoveryTiming, Weekday } from '../resources.ts';

const hourMs = 3_600_000;
const weekdays: readonly Weekday[] = ['monday', 'tuesday', 'wednesday', 'thursday', 'friday', 'saturday', 'sunday'];
const weeks = ['first', 'second', 'third', 'fourth'];

/** First due time after `afterMs`, up to the end. Undefined: none comes any more. */
export function nextDue(timing: RecoveryTiming, afterMs: number): number | undefined {
  const startMs = Date.parse(timing.startTime);
  const endMs = timing.endTime === null ? Infinity : Date.parse(timing.endTime);
  const found = first(timing, startMs, Math.max(afterMs, startMs - 1));
  return found === undefined || found > endMs ? undefined : found;
}

/** Newest due time after `sinceMs` and not after `nowMs`: of those that were missed the others are let go. */
export function newestDue(timing: RecoveryTiming, sinceMs: number, nowMs: number): number | undefined {
  // Two lengths back, there is one if there is any; the rest is a step or two.
  let at = nextDue(timing, Math.max(sinceMs, nowMs - 2 * longestMs[timing.repeat]));
  let newest: number | undefined;
  while (at !== undefined && at <= nowMs) {
    newest = at;
    at = nextDue(timing, at);
  }
  return newest;
}
const longestMs = {
  once: Infinity,
  hourly: hourMs,
  daily: 25 * hourMs,
  weekly: 169 * hourMs,
  monthly: 36 * 24 * hourMs,
};

/** First one after `afterMs`, which is not before the start but for the last millisecond. */
function first(timing: RecoveryTiming, startMs: number, afterMs: number): number | undefined {
  if (timing.repeat === 'once') return startMs > afterMs ? startMs : undefined;
  if (timing.repeat === 'hourly') return startMs + (Math.floor((afterMs - startMs) / hourMs) + 1) * hourMs;
  const start = zonedAt(startMs, timing.timeZone);
  // Days since the start, or months, a little early; then on until it fits.
  const from = zonedAt(afterMs, timing.timeZone);
  const isMonthly = timing.repeat === 'monthly';
  const months = (from.year - start.year) * 12 + from.month - start.month;
  const days = Math.floor((afterMs - startMs) / (24 * hourMs));
  for (let number = Math.max(0, (isMonthly ? months : days) - 1); ; number++) {
    const at = isMonthly ? inMonth(timing, start, number) : onDay(timing, start, number);
    if (at !== undefined && at >= startMs && at > afterMs) return at;
  }
}

function onDay(timing: RecoveryTiming, start: Zoned, number: number): number | undefined {
  const day = start.add({ days: number });
  const wanted = timing.weekday === null ? start.dayOfWeek : weekdays.indexOf(timing.weekday) + 1;
  return timing.repeat === 'daily' || day.dayOfWeek === wanted ? day.epochMilliseconds : undefined;
}

function inMonth(timing: RecoveryTiming, start: Zoned, number: number): number {
  // The first of the month has every month; the time of day is the start's.
  const month = start.with({ day: 1 }).add({ months: number });
  if (timing.week === null) return month.with({ day: timing.day ?? start.day }).epochMilliseconds;
  const wanted = timing.weekday === null ? start.dayOfWeek : weekdays.indexOf(timing.weekday) + 1;
  const days = (wanted - month.dayOfWeek + 7) % 7;
  const which = weeks.indexOf(timing.week);
  if (which >= 0) return month.add({ days: days + 7 * which }).epochMilliseconds;
  const fifth = month.add({ days: days + 28 });
  return (fifth.month === month.month ? fifth : month.add({ days: days + 21 })).epochMilliseconds;
}
