/**
 * When a schedule of snapshots is due. Pure.
 *
 * Times are counted from the start time: minutes and hours by elapsed time, days, weeks and months by the calendar of
 * the time zone, at the start's time of day there (calendar.ts says what a change of the clocks does); a month without
 * the start's day has its last one instead. Without a start time they are counted from midnight there of Monday,
 * 1 January 2001.
 */
import { midnight, zonedAt, type Zoned } from './calendar.ts';
import type { SnapshotPeriod, SnapshotSchedule } from './resources.ts';

const minuteMs = 60_000;
const hourMs = 60 * minuteMs;
const dayMs = 24 * hourMs;
/** About; only where to begin looking. */
const lengthMs: Record<SnapshotPeriod, number> = {
  minute: minuteMs,
  hour: hourMs,
  day: dayMs,
  week: 7 * dayMs,
  month: 30.44 * dayMs,
};

type Timing = Pick<SnapshotSchedule, 'period' | 'every' | 'startTime' | 'timeZone'>;

/** The newest due time that is not after `nowMs`; undefined before the first one. */
export function dueTime(schedule: Timing, nowMs: number): number | undefined {
  const number = newest(schedule, nowMs);
  return number < 0 ? undefined : timeOf(schedule, number);
}

/** The first due time after `afterMs`. */
export function nextTime(schedule: Timing, afterMs: number): number {
  return timeOf(schedule, Math.max(0, newest(schedule, afterMs) + 1));
}

/** Of a snapshot taken for that time; the same time gives the same name, so that none is taken twice. */
export function nameOf(period: SnapshotPeriod, dueMs: number): string {
  const digits = new Date(dueMs).toISOString().replace(/\D/g, '');
  return `${period}-${digits.slice(0, 8)}-${digits.slice(8, 12)}${digits.slice(12) === '00000' ? '' : digits.slice(12)}`;
}

/** Number of the newest due time that is not after `ms`, the start's being 0; -1 before it. */
function newest(schedule: Timing, ms: number): number {
  const startMs = start(schedule).epochMilliseconds;
  if (ms < startMs) return -1;
  let number = Math.max(0, Math.floor((ms - startMs) / (lengthMs[schedule.period] * schedule.every)));
  while (timeOf(schedule, number) > ms) number--;
  while (timeOf(schedule, number + 1) <= ms) number++;
  return number;
}

function timeOf(schedule: Timing, number: number): number {
  const from = start(schedule);
  const count = number * schedule.every;
  // Counted from the start each time: the 31st stays the 31st after a shorter month.
  switch (schedule.period) {
    case 'minute':
      return from.epochMilliseconds + count * minuteMs;
    case 'hour':
      return from.epochMilliseconds + count * hourMs;
    case 'day':
      return from.add({ days: count }).epochMilliseconds;
    case 'week':
      return from.add({ weeks: count }).epochMilliseconds;
    case 'month':
      return from.add({ months: count }).epochMilliseconds;
  }
}

function start({ startTime, timeZone }: Timing): Zoned {
  return startTime === null ? midnight(2001, 1, 1, timeZone) : zonedAt(Date.parse(startTime), timeZone);
}
