/** What one replication's loop does next. Pure; instants are of the monotonic clock, milliseconds. */

export interface PlanInput {
  nowMs: number;
  assignment: {
    paused: boolean;
    /** Cuts by the interval; else only on request. */
    continuous: boolean;
    cutIntervalSeconds: number;
    /** Counters; larger than the one done = asked for. */
    syncRequest: number;
    resyncRequest: number;
    verifyRequest: number;
  };
  done: { sync: number; resync: number; verify: number };
  /** The session was opened for the resync that is asked for, if one is. */
  resyncing: boolean;
  /** The replica has a recovery point. */
  initialized: boolean;
  /** What the replica holds is not known: the next round offers everything. */
  whole: boolean;
  /** `whole`: how long it took says nothing about what the next cut costs (first copy, resync, verify, no need for a rest). */
  last: { startMs: number; endMs: number; whole: boolean } | undefined;
  /** The group that this replication is a member of takes a cut. */
  called: boolean;
  /** The newest attempt made no point: what was asked for is tried again at the pace of cuts. */
  refused: boolean;
}

export type Step =
  | { kind: 'pause' }
  /** Open a new session: a resync starts from what the replica says, and may need force. */
  | { kind: 'reopen' }
  | { kind: 'wait'; untilMs: number }
  /** `asked`: also when nothing seems to have changed. */
  | { kind: 'sync'; why: 'InitialSync' | 'Resyncing' | 'Verifying' | 'Mirroring'; whole: boolean; asked: boolean };

/** Reading the volume for changes takes at most a third of the time, however short the interval. */
const restFactor = 2;

export function nextStep(input: PlanInput): Step {
  const { assignment, done, last } = input;
  if (assignment.paused) return { kind: 'pause' };
  if (assignment.resyncRequest > done.resync) {
    if (!input.resyncing) return { kind: 'reopen' };
    return asked(input, { kind: 'sync', why: 'Resyncing', whole: true, asked: true });
  }
  if (assignment.verifyRequest > done.verify && input.initialized) {
    return asked(input, { kind: 'sync', why: 'Verifying', whole: true, asked: true });
  }
  if (!input.initialized)
    return pacedSync(input, { kind: 'sync', why: 'InitialSync', whole: input.whole, asked: true });
  if (assignment.syncRequest > done.sync) {
    return asked(input, {
      kind: 'sync',
      why: input.whole ? 'Resyncing' : 'Mirroring',
      whole: input.whole,
      asked: true,
    });
  }
  if (input.called)
    return { kind: 'sync', why: input.whole ? 'Resyncing' : 'Mirroring', whole: input.whole, asked: true };
  if (!assignment.continuous) return { kind: 'wait', untilMs: Infinity };
  if (input.whole) return pacedSync(input, { kind: 'sync', why: 'Resyncing', whole: true, asked: true });
  if (!last) return { kind: 'sync', why: 'Mirroring', whole: false, asked: false };
  return pacedSync(input, { kind: 'sync', why: 'Mirroring', whole: false, asked: false });
}

function asked(input: PlanInput, step: Step): Step {
  return input.refused ? pacedSync(input, step) : step;
}

function pacedSync(input: PlanInput, step: Step): Step {
  const { last, assignment, nowMs } = input;
  if (!last) return step;
  const restMs = last.whole ? 0 : restFactor * Math.min(last.endMs - last.startMs, 60_000);
  const dueMs = Math.max(last.startMs + assignment.cutIntervalSeconds * 1000, last.endMs + restMs);
  return nowMs >= dueMs ? step : { kind: 'wait', untilMs: dueMs };
}
