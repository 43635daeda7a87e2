/** Pauses of loops that look at everything: the more there is, the rarer the look. */

/** A look at everything may take this part of the time, and no more. */
const part = 1 / 20;
/** What is due is not late by more. */
const longestMs = 30_000;

/** @param tookMs of the look that has just ended */
export function pauseAfter(everyMs: number, tookMs: number): number {
  return Math.max(everyMs, Math.min(longestMs, tookMs / part - tookMs));
}
