/**
 * A block volume as the agent meets it: bytes, size, and the ways to hold it still. `device-system.ts` is the real one
 * (image files and block devices); the simulator has its own.
 */
import type { Refusal } from './refusal.ts';

/** Something to read granules from: the live volume, or a frozen view of it. */
export interface Readable {
  /** Fills the buffer; fewer bytes only at the end. `position` and length are multiples of 64 KiB but at the end. */
  read(buffer: Buffer, position: number): Promise<number>;
  /** As in proto/effects.ts DiskFile. */
  nextData(position: number): Promise<number | undefined>;
  nextHole(position: number): Promise<number>;
}

export interface View extends Readable {
  sizeBytes: number;
  release(): Promise<void>;
}

export interface Frozen {
  /** Duration in microseconds, and whether it was still frozen when asked to thaw: only then the view was one instant. */
  thaw(): Promise<{ held: boolean; freezeUs: number }>;
  /** After thaw: whether nothing has written to the volume since the freeze but the thaw itself (ext4 notes it in its superblock). */
  isAlone(): boolean;
}

export interface BlockDevice extends Readable {
  /** @throws SourceGone */
  facts(): Promise<{ sizeBytes: number; sourceId: string }>;
  /** The present size alone, quickly: asked for while the volume is frozen. */
  size(): Promise<number>;
  /**
   * A mark that is another one after any write; undefined = writes cannot be told from a mark here, and `reason` says why.
   * Taken so that a write after it cannot hide in the same clock tick.
   */
  stamp(): Promise<{ stamp: string | undefined; reason: string }>;
  /** Has what the mounted filesystem holds in memory written to the volume, so that a freeze finds little to write. */
  flush(): Promise<void>;
  /**
   * Freezes the mounted filesystem that this volume is; a refusal says why that cannot be. `ready` is waited for when all that
   * goes before a freeze (hooks) is done.
   */
  freeze(maxFreezeMs: number, signal: AbortSignal, ready?: () => Promise<void>): Promise<Frozen | Refusal>;
  /** Stops the processes that use this volume; a refusal says why that cannot be. What they wrote is on the volume then. */
  stopWriters(maxFreezeMs: number, signal: AbortSignal, ready?: () => Promise<void>): Promise<Frozen | Refusal>;
  /** A view of this instant that shares the volume's blocks; a string says why that cannot be. */
  reflink(): Promise<View | string>;
  /** Lets go of the volume until it is used again. */
  rest(): Promise<void>;
}
