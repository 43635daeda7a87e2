/** How far the base may follow the journal: which points stay recoverable. Pure. */

export interface Point {
  sequence: number;
  /** Master's clock, microseconds since the epoch. */
  sourceUs: number;
  committedUs: number;
  consistency: string;
  digest: Buffer;
  /** The cut of its whole group that it is part of; empty = none. */
  groupCut: string;
}

/** Sequences that something still needs, asked for when the base is about to move. */
export type Pins = () => readonly number[];
export const noPins: Pins = () => [];

/**
 * The point that the base should stand at: the newest that is at least `journalUs` old, so that every moment of that
 * time can be recovered; never beyond `pinned` (the oldest point that some work still reads from).
 * When the journal is over its limit the oldest points are given up first, a quarter at a time (`short`).
 * @param points ascending, those that can be recovered now
 */
export function baseTarget(input: {
  points: readonly Point[];
  nowUs: number;
  journalUs: number;
  journalBytes: number;
  maxJournalBytes: number;
  pinned: number | undefined;
}): { sequence: number | undefined; short: boolean } {
  const { points } = input;
  const expired = points.findLastIndex((point) => point.committedUs <= input.nowUs - input.journalUs);
  let index = Math.max(0, expired);
  let short = false;
  if (input.journalBytes > input.maxJournalBytes && index < points.length - 1) {
    index = Math.min(points.length - 1, Math.max(index, Math.ceil(points.length / 4)));
    short = index > expired;
  }
  if (input.pinned !== undefined) {
    const pin = input.pinned;
    while (index > 0 && (points[index]?.sequence ?? 0) > pin) index--;
  }
  return { sequence: points[index]?.sequence, short };
}
