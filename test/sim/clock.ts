/**
 * Virtual time. It stands still while anything can still run and then jumps to the next timer, so hours pass in seconds.
 *
 * Deterministic as far as the program is: timers fire one by one in order of time and making. Real I/O is left in two places,
 * SQLite and the making and copying of its files (realfiles.ts), both synchronous; the clock waits until the latter is told to
 * have been done, so that it takes no virtual time.
 */
import type { Clock } from '../../proto/effects.ts';
import { isWorkingForReal } from './realfiles.ts';
import { turn } from './turns.ts';

interface Timer {
  atMs: number;
  number: number;
  fire: () => void;
}

export class SimClock {
  #nowMs = 0;
  #timers: Timer[] = [];
  #made = 0;
  /** Timers fired. */
  fired = 0;

  get nowMs(): number {
    return this.#nowMs;
  }

  /** Answers how to take it back. */
  after(ms: number, fire: () => void): () => void {
    const timer = { atMs: this.#nowMs + Math.max(0, ms), number: this.#made++, fire };
    let at = this.#timers.length;
    while (at > 0 && later(this.#timers[at - 1], timer)) at--;
    this.#timers.splice(at, 0, timer);
    return () => {
      const found = this.#timers.indexOf(timer);
      if (found >= 0) this.#timers.splice(found, 1);
    };
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        reject(signal.reason as Error);
        return;
      }
      const aborted = (): void => {
        cancel();
        reject(signal?.reason as Error);
      };
      const cancel = this.after(ms, () => {
        signal?.removeEventListener('abort', aborted);
        resolve();
      });
      signal?.addEventListener('abort', aborted, { once: true });
    });
  }

  /** A machine's clock: its wall clock is `aheadMs()` ahead of the truth. */
  machine(epochMs: number, aheadMs: () => number): Clock {
    return {
      nowMs: () => epochMs + this.#nowMs + aheadMs(),
      monotonicMs: () => this.#nowMs,
      sleep: (ms, signal) => this.sleep(ms, signal),
    };
  }

  /** Lets time pass until `done` or that instant; answers whether it was `done`. */
  async runUntil(done: () => boolean, latestMs: number): Promise<boolean> {
    for (;;) {
      await quiet();
      if (done()) return true;
      const next = this.#timers[0];
      if (!next || next.atMs > latestMs) {
        this.#nowMs = Math.max(this.#nowMs, latestMs);
        return false;
      }
      this.#timers.shift();
      this.#nowMs = next.atMs;
      this.fired++;
      next.fire();
    }
  }
}

function later(a: Timer | undefined, b: Timer): boolean {
  return a !== undefined && (a.atMs > b.atMs || (a.atMs === b.atMs && a.number > b.number));
}

/** Nothing can run any more but by a timer. */
async function quiet(): Promise<void> {
  do await turn();
  while (isWorkingForReal());
}
