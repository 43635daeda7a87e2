/**
 * Which replications have to be looked at now, though nothing was told of them. Pure.
 *
 * What happens to a replication settles it at once; this is for what time alone changes, so that thousands of them at rest cost a
 * comparison each second and no read of the store. Whatever might be forgotten here is found by the look of every minute.
 */
import { mustReopen, type Mirror } from './mirrorstate.ts';

/** Bases follow their journals at most this often. */
export const advanceEveryMs = 5000;
/** However little there is to do. */
const leastEveryMs = 60_000;

export interface Moment {
  /** Of the wall clock. */
  nowMs: number;
  monotonicMs: number;
  /** Whether the agent's line is up. */
  connected: boolean;
  /** A line that broke this recently is not called gone. */
  graceMs: number;
}

export function isDue(mirror: Mirror, { nowMs, monotonicMs, connected, graceMs }: Moment): boolean {
  const { replica, openFailure } = mirror;
  if (mirror.stale || mirror.newsWait || monotonicMs - mirror.settledMs >= leastEveryMs) return true;
  if (replica === undefined) return openFailure === undefined || monotonicMs >= openFailure.againMs;
  if (mustReopen(replica) || replica.writtenBytes > mirror.toldBytes) return true;
  if (replica.owes && !mirror.advancing && monotonicMs - mirror.advancedMs >= advanceEveryMs) return true;
  if (connected !== mirror.wasConnected) return true;
  const goneMs = monotonicMs - mirror.lastConnectedMs;
  if (!connected && goneMs >= graceMs && mirror.settledMs - mirror.lastConnectedMs < graceMs) return true;
  const isPast = (ms: number | undefined): boolean => ms !== undefined && ms <= nowMs;
  return isPast(mirror.nextCronMs) || isPast(mirror.nextSnapshot?.ms) || isPast(mirror.rpoMissedMs);
}
