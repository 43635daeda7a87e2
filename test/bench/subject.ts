/** One who copies: ours or a peer. */
import type { Volume } from './volumes.ts';

export interface Subject {
  name: string;
  /** As a person would type it, to be printed. */
  command: string;
  /** On the way from one side to the other, both ways, since the machine or the subject was started. */
  wireBytes(): number;
  /** Processes whose cost counts, with all below them. */
  roots(): number[];
  /** Nothing of the volume is on the target side. */
  reset(volume: Volume): Promise<void>;
  /** The source has changed since the last call, or everything is new: durable on the target side when it returns. */
  copy(volume: Volume): Promise<void>;
  /** @throws when the target is not the source */
  check(volume: Volume): Promise<void>;
  /** Where the volume must lie, when anywhere else will not do. */
  volumes?: string;
  stop(): Promise<void>;
}

/** It cannot be had here. */
export class Missing extends Error {}
