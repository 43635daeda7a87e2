/**
 * The kernel's record of completed writes, as the tracer uses it: events that wait to be taken, and whether any were lost.
 * `tracefs.ts` is the real one; the simulator has its own, which loses events on purpose and outlives a killed agent.
 */

/** Which of the kernel's events told of a completed write: of request-based drivers, or of bio-based ones. */
export type EventKind = 'rq' | 'bio';
/** `queue`: a bio was given to its driver; its completion follows. */
export type RingEvent = EventKind | 'queue';

export interface Ring {
  /** Disks that were watched before us by an agent with our name, and still are: their events may wait. */
  readonly inherited: readonly number[];
  /** Those of them of which what is queued was told too. */
  readonly inheritedQueue: readonly number[];
  /**
   * Events of these disks (major << 20 | minor) are recorded from now on; others may be too. Of `withQueue`, the bio-based
   * ones among them, also what is queued. @throws Error saying why not
   */
  watch(devs: readonly number[], withQueue: readonly number[]): void;
  /**
   * Takes all that waits, in no order across processors. Synchronous and quick: it never waits for anything.
   * With a `reason` something may have been missed since the last call. `quickly`: only what the events themselves tell of that
   * is looked at; the rest is told by the next call without it.
   */
  take(
    each: (kind: RingEvent, dev: number, sector: number, sectors: number) => void,
    quickly?: boolean,
  ): {
    /** Events taken, of all disks. */
    taken: number;
    lost: number;
    reason: string | undefined;
  };
  close(): void;
}
