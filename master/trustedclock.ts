/**
 * A wall clock for what must not end too early: locks of snapshots and the journal's length.
 *
 * Guarantees: a step of the machine's clock backwards is followed at once (things last longer); a step forwards is not
 * followed until the machine has kept the new time for a day of steady time, and `onJump` hears of it so that a person
 * can look. What it had reached is kept over restarts: after a pause of up to a week the machine's clock is believed, after
 * a longer one it waits out that day. It is never ahead of the machine's clock.
 * Not here: someone who can set the machine's clock and wait for a day, or change the master's data, can end a lock.
 */
import type { Clock } from '../proto/effects.ts';
import type { Store } from './store.ts';

/** What the two clocks may drift apart, or the machine's be slewed, between two looks. */
const slackMs = 5000;
const believeAfterMs = 24 * 3600_000;
const pauseMs = 7 * 24 * 3600_000;

export interface ClockState {
  /** Time that is believed. */
  trustedMs: number;
  /** How long the machine's clock has been ahead without another step, in steady time; 0: it is not. */
  aheadMs: number;
  /** What it was ahead by, trusted time subtracted. */
  aheadBy: number;
}

/** One look at the machine's clock, `elapsedMs` of steady time after the last one. */
export function follow(state: ClockState, wallMs: number, elapsedMs: number): ClockState {
  const expectedMs = state.trustedMs + elapsedMs;
  if (wallMs <= expectedMs + slackMs) return { trustedMs: wallMs, aheadMs: 0, aheadBy: 0 };
  const aheadBy = wallMs - expectedMs;
  const same = state.aheadMs > 0 && Math.abs(aheadBy - state.aheadBy) <= slackMs;
  const aheadMs = same ? state.aheadMs + elapsedMs : 1;
  if (aheadMs > believeAfterMs) return { trustedMs: wallMs, aheadMs: 0, aheadBy: 0 };
  return { trustedMs: expectedMs, aheadMs, aheadBy: same ? state.aheadBy : aheadBy };
}

/** The state at a start: what was kept, if it can be, and the machine's clock. */
export function resume(kept: ClockState | undefined, wallMs: number): ClockState {
  if (!kept || wallMs <= kept.trustedMs + pauseMs) return { trustedMs: wallMs, aheadMs: 0, aheadBy: 0 };
  return follow(kept, wallMs, 0);
}

const table = 'trusted-clock';
const keepEveryMs = 60_000;

export function trustedClock(
  clock: Clock,
  store: Pick<Store, 'getRecord' | 'putRecord'>,
  onJump: (aheadMs: number) => void,
): Clock {
  const text = store.getRecord(table, 'state');
  let state = resume(text === undefined ? undefined : (JSON.parse(text) as ClockState), clock.nowMs());
  let seenMs = clock.monotonicMs();
  let keptMs = -Infinity;
  let told = false;
  return {
    nowMs() {
      const nowMs = clock.monotonicMs();
      state = follow(state, clock.nowMs(), nowMs - seenMs);
      seenMs = nowMs;
      if (state.aheadMs > 0 && !told) onJump(state.aheadBy);
      told = state.aheadMs > 0;
      if (nowMs - keptMs >= keepEveryMs) {
        keptMs = nowMs;
        store.putRecord(table, 'state', JSON.stringify(state));
      }
      return state.trustedMs;
    },
    monotonicMs: () => clock.monotonicMs(),
    sleep: (ms, signal) => clock.sleep(ms, signal),
  };
}
