/**
 * What a storage class is going to need, told before it hurts (MISSION S4): source + changed data x kept snapshots. Pure.
 *
 * An estimate from what is there now: the replica's own bytes, the journal grown to its length at the present rate of change,
 * and of each schedule as many snapshots as it keeps - each of the bytes changed in between where copies share blocks, never
 * more than a whole one; a whole one where they do not. Snapshots by hand count as they are.
 */
import type { SnapshotPeriod, SnapshotSchedule } from './resources.ts';

export interface Demand {
  /** What the replica's newest data holds. */
  baseBytes: number;
  journalBytes: number;
  snapshotBytes: number;
  /** Journaled per second, over the journal that there is. */
  changedBytesPerSecond: number;
  journalSeconds: number;
  maxJournalBytes: number;
  schedules: readonly Pick<SnapshotSchedule, 'period' | 'every' | 'retain'>[];
  /** Taken by schedules, there now. */
  scheduledSnapshots: number;
  /** All that are there now. */
  snapshots: number;
  /** Copies share blocks. */
  reflink: boolean;
}

const periodSeconds: Record<SnapshotPeriod, number> = {
  minute: 60,
  hour: 3600,
  day: 86_400,
  week: 604_800,
  month: 2_629_746,
};

/** Bytes that the replica will hold when journal and schedules are full. */
export function needOf(demand: Demand): number {
  const { baseBytes, changedBytesPerSecond: rate, reflink } = demand;
  const journal = Math.max(demand.journalBytes, Math.min(demand.maxJournalBytes, rate * demand.journalSeconds));
  const scheduled = demand.schedules.reduce((sum, { period, every, retain }) => {
    const changed = Math.min(baseBytes, rate * periodSeconds[period] * every);
    return sum + retain * (reflink ? changed : baseBytes);
  }, 0);
  const byHand = demand.snapshots - demand.scheduledSnapshots;
  // Shared blocks count for each copy in what storage tells; by hand we only know that they are older.
  return Math.round(baseBytes + journal + scheduled + (reflink ? 0 : byHand * baseBytes));
}

/** What to say of a class whose replicas need more than they can have; undefined: it will do. */
export function shortage(
  storageClass: string,
  needBytes: number,
  heldBytes: number,
  freeBytes: number,
): string | undefined {
  const more = needBytes - heldBytes;
  if (more <= freeBytes) return undefined;
  return (
    `storage class ${storageClass} has ${gib(freeBytes)} free, its replicas are going to need ${gib(more)} more ` +
    '(source, journal, and changed data for each snapshot that schedules keep); add space, keep fewer snapshots or shorten journalSeconds'
  );
}

function gib(bytes: number): string {
  return `${(bytes / 2 ** 30).toFixed(1)} GiB`;
}
