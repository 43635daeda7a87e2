/**
 * The wall clock of the master's machine, which somebody sets now and then, and what agents call instants by it. The journal's time is
 * that of production's trusted clock, whose state outlasts the master's processes.
 */
import { trustedClock } from '../../master/trustedclock.ts';
import type { Clock } from '../../proto/effects.ts';
import type { SimClock } from './clock.ts';

export class MasterClock {
  /** Of one process after the other. */
  readonly clock: Clock;
  readonly #epochMs: number;
  #aheadMs = 0;
  #isStepped = false;
  /** A process that starts believes a step forwards: what came before it may have had its time. ms of the simulation */
  believedMs = 0;
  readonly #named = new Map<number, number>();
  readonly #records = new Map<string, string>();

  constructor(clock: SimClock, epochMs: number) {
    this.#epochMs = epochMs;
    this.clock = clock.machine(epochMs, () => this.#aheadMs);
  }

  set(byMs: number): void {
    this.#aheadMs += byMs;
    this.#isStepped ||= byMs > 0;
  }

  /** For a process that starts. */
  trusted(): Clock {
    if (this.#isStepped) this.believedMs = this.clock.monotonicMs();
    this.#isStepped = false;
    const store = {
      getRecord: (_table: string, key: string) => this.#records.get(key),
      putRecord: (_table: string, key: string, value: string | undefined) => void this.#records.set(key, value ?? ''),
    };
    return trustedClock(this.clock, store, () => undefined);
  }

  /** What an agent calls an instant; `trueUs` since the epoch. */
  name(trueUs: number): number {
    const masterUs = trueUs + this.#aheadMs * 1000;
    this.#named.set(masterUs, trueUs / 1000 - this.#epochMs);
    return masterUs;
  }

  /** When an instant was that an agent named; ms of the simulation. */
  trueMs(masterUs: number): number {
    return this.#named.get(masterUs) ?? masterUs / 1000 - this.#epochMs;
  }
}
