/**
 * A receiver's clock is its master's: what that told last, and the steady time since. So points, journals and locks go by one
 * clock wherever a replica lies, and the clock of a storage node is of no weight. Behind by what a message was under way.
 */
import type { Clock } from '../../proto/effects.ts';

export interface ToldClock {
  /** As the master sees it: points. */
  readonly now: Clock;
  /** By which journals and locks end. */
  readonly trusted: Clock;
  tell(nowUs: number, trustedUs: number): void;
}

/** Until something was told it is the machine's own. */
export function toldClock(clock: Clock): ToldClock {
  let ahead = { now: clock.nowMs() - clock.monotonicMs(), trusted: clock.nowMs() - clock.monotonicMs() };
  const going = (which: keyof typeof ahead): Clock => ({
    nowMs: () => clock.monotonicMs() + ahead[which],
    monotonicMs: () => clock.monotonicMs(),
    sleep: (ms, signal) => clock.sleep(ms, signal),
  });
  return {
    now: going('now'),
    trusted: going('trusted'),
    tell(nowUs, trustedUs) {
      const atMs = clock.monotonicMs();
      ahead = { now: nowUs / 1000 - atMs, trusted: trustedUs / 1000 - atMs };
    },
  };
}
