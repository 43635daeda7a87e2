/**
 * The kernel's record of completed writes, as the tracer uses it: events that wait to be taken, and whether any were lost.
 * `tracefs.ts` is the real one; the simulator has its own, which loses events on purpose and outlives a killed agent.
 */

/** Which of the kernel's two events told of it: of request-based drivers, or of bio-based ones. */
export type EventKind = 'rq' | 'bio';

export interface Ring {
  /** Disks that were watched before us by an agent with our name, and still are: their events may wait. */
  readonly inherited: readonly number[];
  /** Events of these disks (major << 20 | minor) are recorded from now on; others may be too. @throws Error saying why not */
  watch(devs: readonly number[]): void;
  /**
   * Takes all that waits, in no order across processors. Synchronous and quick: it never waits for anything.
   * `intact` false, or `lost` above 0: since the last call something may have been missed, `reason` says how.
   */
  take(each: (kind: EventKind, dev: number, sector: number, sectors: number) => void): {
    /** Events taken, of all disks. */
    taken: number;
    lost: number;
    reason: string | undefined;
  };
  close(): void;
}
