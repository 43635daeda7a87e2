/**
 * The proof that no event was missed: the disk's own counter of sectors written and discarded moves by exactly what the
 * events say. Pure.
 *
 * counter = offset + events, where the offset never changes. Each look (counter before, sum of the events taken, counter
 * after) bounds the offset: before - events <= offset <= after - events. A look that leaves nothing of the bounds means
 * that events are missing (or not ours). While nothing is written the bounds are one number.
 *
 * Which of the kernel's two events tells of a driver's writes is learned here too: both are bounded until one of them
 * stops to fit. Sectors are of 512 bytes.
 */
import type { EventKind } from './ring.ts';

interface Bounds {
  low: number;
  high: number;
}

export type Sums = Record<EventKind, number>;

export class Proof {
  #bounds: Map<EventKind, Bounds>;

  /** @param offset when it is known from before, with the sums at 0 then; undefined: to be found */
  constructor(offset?: number) {
    const bounds = { low: offset ?? -Infinity, high: offset ?? Infinity };
    this.#bounds = new Map([
      ['rq', { ...bounds }],
      ['bio', { ...bounds }],
    ]);
  }

  /**
   * Whether the look fits. One that does not changes nothing, so that it can be tried again. `pending`: sectors of bios whose
   * completion was not told yet and may be counted already.
   */
  fits(before: number, sums: Sums, after: number, pending = 0): boolean {
    const fitting = new Map<EventKind, Bounds>();
    for (const [kind, { low, high }] of this.#bounds) {
      const early = kind === 'bio' ? pending : 0;
      const now = { low: Math.max(low, before - sums[kind] - early), high: Math.min(high, after - sums[kind]) };
      if (now.low <= now.high) fitting.set(kind, now);
    }
    if (fitting.size === 0) return false;
    // While writes go on one kind may lag; at rest it is the wrong one.
    if (before === after) this.#bounds = fitting;
    else for (const [kind, bounds] of fitting) this.#bounds.set(kind, bounds);
    return true;
  }

  /** What the counter was when exactly these events had been taken; undefined while that is not known to the sector. */
  counterAt(sums: Sums): number | undefined {
    const known = [...this.#bounds].filter(([, { low, high }]) => low === high);
    if (known.length === 0 || known.length < this.#bounds.size) return undefined;
    return Math.max(...known.map(([kind, { low }]) => low + sums[kind]));
  }
}
