/**
 * Which snapshots have had their time. Pure: the same input gives the same answer, and nothing else decides.
 *
 * Only snapshots that a schedule took are ever named, and only while that schedule is there: of each schedule the newest
 * `retain` that are Ready stay. Never named: what is pinned, locked, used by anything, being made or being deleted. A failed
 * one goes when a newer one of its schedule is Ready. Snapshots are whole copies: none is the base of another.
 * The journal's points have their own pure rule, `baseTarget` in replica/horizon.ts.
 */
import type { SnapshotPeriod } from './resources.ts';

export interface Candidate {
  name: string;
  /** The kind of schedule that took it; null: a person. */
  schedule: SnapshotPeriod | null;
  state: 'Creating' | 'Ready' | 'Failed' | 'Deleting';
  createdMs: number;
  pinned: boolean;
  lockedUntilMs: number | null;
  /** A recovery that is planned, under way or holding its copy, or a person's schedule of one, names it. */
  referenced: boolean;
}

export function expired(input: {
  snapshots: readonly Candidate[];
  schedules: readonly { period: SnapshotPeriod; retain: number }[];
  nowMs: number;
}): string[] {
  return input.schedules.flatMap(({ period, retain }) => {
    const own = input.snapshots
      .filter(({ schedule }) => schedule === period)
      .sort((a, b) => b.createdMs - a.createdMs || (a.name < b.name ? 1 : -1));
    const ready = own.filter(({ state }) => state === 'Ready');
    const newestReadyMs = ready[0]?.createdMs ?? -Infinity;
    const failed = own.filter(({ state, createdMs }) => state === 'Failed' && createdMs < newestReadyMs);
    return [...ready.slice(retain), ...failed].filter((one) => mayGo(one, input.nowMs)).map(({ name }) => name);
  });
}

export function mayGo({ state, pinned, lockedUntilMs, referenced }: Candidate, nowMs: number): boolean {
  if (state !== 'Ready' && state !== 'Failed') return false;
  return !pinned && !referenced && (lockedUntilMs === null || lockedUntilMs <= nowMs);
}
