/**
 * Calendar arithmetic in a named time zone, by the runtime's Temporal. Only what is used here has a type: TypeScript's own
 * come with a later version.
 *
 * A time of day that a change of the clocks leaves out is taken as much later as the clocks were put forward; one that
 * comes twice is taken the first time ("compatible", as in RFC 5545).
 */

interface Zoned {
  readonly epochMilliseconds: number;
  readonly year: number;
  readonly month: number;
  readonly day: number;
  /** 1 = Monday */
  readonly dayOfWeek: number;
  add(span: { days?: number; weeks?: number; months?: number; hours?: number; minutes?: number }): Zoned;
  with(fields: { day?: number; hour?: number; minute?: number; second?: number; millisecond?: number }): Zoned;
  startOfDay(): Zoned;
}
interface Zones {
  Temporal: {
    Instant: { fromEpochMilliseconds(ms: number): { toZonedDateTimeISO(zone: string): Zoned } };
    ZonedDateTime: { from(fields: Record<string, number | string>): Zoned };
  };
}
const { Temporal } = globalThis as unknown as Zones;

export type { Zoned };

/** @throws RangeError when there is no such time zone */
export function zonedAt(ms: number, timeZone: string): Zoned {
  return Temporal.Instant.fromEpochMilliseconds(Math.floor(ms)).toZonedDateTimeISO(timeZone);
}

/** Midnight of a day there. */
export function midnight(year: number, month: number, day: number, timeZone: string): Zoned {
  return Temporal.ZonedDateTime.from({ year, month, day, timeZone }).startOfDay();
}

/** A name of the IANA data base such as Asia/Seoul; fixed offsets are none. */
export function isTimeZone(name: string): boolean {
  if (!/^[A-Za-z]/.test(name)) return false;
  try {
    zonedAt(0, name);
    return true;
  } catch {
    return false;
  }
}
