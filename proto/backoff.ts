/**
 * How long to wait before the next try: doubles from minMs to maxMs, each time somewhere between half and all of it, so
 * that agents which lost the same master do not come back in step.
 */
import type { Random } from './effects.ts';

export interface Backoff {
  /** Milliseconds to wait now; grows with each call. */
  nextMs(): number;
  /** After a success. */
  reset(): void;
}

export function backoff(minMs: number, maxMs: number, random: Random): Backoff {
  let ceilingMs = minMs;
  return {
    nextMs() {
      const waitMs = ceilingMs * (0.5 + random.bytes(4).readUInt32LE() / 2 ** 33);
      ceilingMs = Math.min(maxMs, ceilingMs * 2);
      return waitMs;
    },
    reset() {
      ceilingMs = minMs;
    },
  };
}
