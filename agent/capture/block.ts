/**
 * How a block volume's changes are known. Three captures: `ftrace.ts` (every completed write, told by the kernel),
 * `extents.ts` (clones of an image compared) and `rescan.ts` (nothing but "something may have changed").
 *
 * What every capture guarantees: never too few. All that was written between `begin` and a later `drain` or `hold` has been
 * marked when that answers, or the answer carries a doubt, and then everything counts as changed. A capture never writes
 * to its volume.
 */
import type { View } from '../device.ts';

/** Bytes of the volume that changed, or may have. */
export type MarkBytes = (offset: number, length: number) => void;

export interface Drained {
  /** Why marks may be missing; the next answers are about what is written from now on. */
  doubt: string | undefined;
  /** No write was under way at this moment. Equal in two answers: the volume was not written to between them. */
  still: string | undefined;
  /** Why not, where it is not. */
  busy: string;
}

export interface BlockCapture {
  readonly method: 'ftrace' | 'extents' | 'scan' | 'csi-cbt';
  /** Why this one. */
  readonly reason: string;
  /** Events that were lost, since it was made. */
  readonly lostEvents: number;
  /** What changes is marked here from `begin` on. */
  marks: MarkBytes;
  /** Called when marks came that nobody asked for. */
  onMarks: () => void;
  /**
   * Begins. `state` is what `state()` answered when the dirty map was last kept, perhaps by an agent before us; undefined =
   * nothing is kept. Answers whether all that changed since then has been or will be marked, and how that is known.
   */
  begin(state: unknown): Promise<{ proven: boolean; reason: string }>;
  /** All that was written before the call is marked when it returns. */
  drain(): Promise<Drained>;
  /**
   * Captures that see the volume by views: a view of this instant, from which what is marked is to be read. Quick, for the
   * time of a freeze; a string says why there is none. `settle` marks what changed, at leisure.
   */
  hold?(): Promise<{ view: View; settle(): Promise<{ doubt: string | undefined }> } | string>;
  /** What the next `begin` needs to go on from the marks made so far. JSON. */
  state(): unknown;
  /** Lasts until the state is kept: what the state before needed may go. */
  kept(): Promise<void>;
  close(): Promise<void>;
}
