/** A rate limit: work is let through as it comes, up to `perSecond` on average, with bursts of one second. */
import type { Clock } from './effects.ts';

export class Pace {
  readonly #clock: Clock;
  #perSecond: number;
  /** Monotonic instant up to which the work taken so far has used up the rate. */
  #paidMs = -Infinity;

  /** @param perSecond 0 = no limit */
  constructor(clock: Clock, perSecond: number) {
    this.#clock = clock;
    this.#perSecond = perSecond;
  }

  get perSecond(): number {
    return this.#perSecond;
  }

  set perSecond(value: number) {
    this.#perSecond = value;
  }

  async take(amount: number, signal: AbortSignal): Promise<void> {
    if (this.#perSecond === 0) return;
    const nowMs = this.#clock.monotonicMs();
    this.#paidMs = Math.max(this.#paidMs, nowMs - 1000) + (amount / this.#perSecond) * 1000;
    if (this.#paidMs > nowMs) await this.#clock.sleep(this.#paidMs - nowMs, signal);
  }
}
