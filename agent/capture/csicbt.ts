/**
 * Capture `csi-cbt`: the storage takes a snapshot at each cut, and its driver tells what differs between two of them. The cut is
 * read from the snapshot.
 *
 * As with `extents` nothing runs between cuts: while the snapshot of the newest cut is there, it proves, over crashes and reboots,
 * what has changed since. Where the driver cannot tell (`NoDelta`) everything counts as changed, and what the snapshot has
 * not allocated is not read. Storage whose driver never tells is read whole at each cut (`scan`), and what the replica has goes
 * no further.
 */
import { messageOf } from '../../proto/errors.ts';
import type { View } from '../device.ts';
import type { BlockCapture, Drained, MarkBytes } from './block.ts';
import { NoDelta, type ByteRange, type SnapshotMetadata } from './snapshotmetadata.ts';

/** Snapshots of one volume, as its storage makes them. */
export interface VolumeSnapshots {
  /** Of this instant; lasting until removed. Answers its name. What is left of others than `keep` goes. */
  take(keep: readonly string[]): Promise<string>;
  /** Its content. @throws Error when it is gone */
  open(name: string): Promise<View>;
  /** What the storage calls it; undefined: it is gone. */
  handle(name: string): Promise<string | undefined>;
  /** No error when it is gone. */
  remove(name: string): Promise<void>;
  /** All that were made for this replication. */
  list(): Promise<string[]>;
}

/** What storage makes of a volume at an instant; of clones it tells nothing. */
export type StorageCopies = 'snapshots' | 'clones';
/** As a spec asks for them, and as ways of a cut. */
export const copyMethods = { snapshots: 'Snapshot', clones: 'Clone' };
export const copyWays = { snapshots: 'snapshot of the storage', clones: 'clone of the storage' };

export interface CsiCbtOptions {
  /** Default snapshots. */
  kind?: StorageCopies;
  snapshots: VolumeSnapshots;
  /** undefined: its driver has no such service. */
  metadata: SnapshotMetadata | undefined;
}

/** Snapshots whose map could not be kept; with more of them the oldest go. */
const maxStale = 2;
/** Beyond it the unallocated parts are read like any other. */
const maxAllocatedRanges = 200_000;

export class CsiCbt implements BlockCapture {
  readonly method: 'csi-cbt' | 'scan';
  readonly reason: string;
  readonly lostEvents = 0;
  marks: MarkBytes = () => undefined;
  onMarks = (): void => undefined;
  readonly #options: CsiCbtOptions;
  #newest: string | undefined;
  /** Replaced, and perhaps what a kept map still needs. */
  readonly #stale: string[] = [];
  readonly #closing = new AbortController();

  constructor(options: CsiCbtOptions) {
    this.#options = options;
    this.method = options.metadata ? 'csi-cbt' : 'scan';
    this.reason = options.metadata
      ? 'its storage takes snapshots, and tells what differs between two of them'
      : options.kind === 'clones'
        ? 'its storage makes clones, and nothing tells what differs between two of them'
        : 'its storage takes snapshots; its driver offers no SnapshotMetadata service that tells what differs';
  }

  async begin(state: unknown): Promise<{ proven: boolean; reason: string }> {
    const { snapshots } = this.#options;
    const before = typeof state === 'string' && (await snapshots.handle(state)) !== undefined ? state : undefined;
    for (const name of await snapshots.list()) if (name !== before) await snapshots.remove(name);
    if (!this.#options.metadata) return { proven: false, reason: this.reason };
    this.#newest = before ?? (await snapshots.take([]));
    return before === undefined
      ? { proven: false, reason: 'there is no snapshot of an earlier cut' }
      : { proven: true, reason: 'the snapshot of the last cut is there to compare with' };
  }

  /** Nothing is known between cuts, and nothing needs to be. */
  async drain(): Promise<Drained> {
    return { doubt: undefined, still: undefined, busy: 'the volume is seen by its snapshots alone' };
  }

  async hold(): Promise<{ view: View; settle(): Promise<{ doubt: string | undefined }> }> {
    const { snapshots } = this.#options;
    const name = await snapshots.take([...this.#stale, ...(this.#newest === undefined ? [] : [this.#newest])]);
    let settled = false;
    let view: View;
    try {
      view = await snapshots.open(name);
    } catch (error) {
      await snapshots.remove(name);
      throw error;
    }
    let allocated: ByteRange[] | undefined;
    const seen = (): Pick<View, 'nextData' | 'nextHole'> => (allocated ? sparse(view, allocated) : view);
    return {
      view: {
        sizeBytes: view.sizeBytes,
        read: (buffer, position) => view.read(buffer, position),
        nextData: (position) => seen().nextData(position),
        nextHole: (position) => seen().nextHole(position),
        async release() {
          await view.release();
          if (!settled) await snapshots.remove(name);
        },
      },
      settle: async () => {
        if (!this.#options.metadata) {
          this.marks(0, view.sizeBytes);
          return { doubt: undefined };
        }
        const doubt = await this.#compare(this.#options.metadata, name);
        if (doubt !== undefined) allocated = await this.#allocated(this.#options.metadata, name);
        settled = true;
        if (this.#newest !== undefined) this.#stale.push(this.#newest);
        this.#newest = name;
        for (const one of this.#stale.splice(0, Math.max(0, this.#stale.length - maxStale)))
          await snapshots.remove(one);
        return { doubt };
      },
    };
  }

  async #compare(metadata: SnapshotMetadata, name: string): Promise<string | undefined> {
    const base = this.#newest === undefined ? undefined : await this.#options.snapshots.handle(this.#newest);
    if (base === undefined) return 'the snapshot of the last cut is gone';
    try {
      for await (const { offset, length } of metadata.delta(base, name, this.#closing.signal))
        this.marks(offset, length);
      return undefined;
    } catch (error) {
      this.#closing.signal.throwIfAborted();
      const why = error instanceof NoDelta ? 'the storage cannot tell what differs' : 'its driver does not answer';
      return `${why}: ${messageOf(error)}`;
    }
  }

  /** Undefined where that is not known, or is too much to be kept. */
  async #allocated(metadata: SnapshotMetadata, name: string): Promise<ByteRange[] | undefined> {
    const ranges: ByteRange[] = [];
    try {
      for await (const range of metadata.allocated(name, this.#closing.signal)) {
        const last = ranges.at(-1);
        if (last && last.offset + last.length >= range.offset) last.length = range.offset + range.length - last.offset;
        else ranges.push({ ...range });
        if (ranges.length > maxAllocatedRanges) return undefined;
      }
      return ranges;
    } catch {
      this.#closing.signal.throwIfAborted();
      return undefined;
    }
  }

  state(): string | undefined {
    return this.#newest;
  }

  async kept(): Promise<void> {
    for (const one of this.#stale.splice(0)) await this.#options.snapshots.remove(one);
  }

  async close(): Promise<void> {
    // The snapshot stays for the next agent.
    this.#closing.abort(new Error('the capture has ended'));
    this.#options.metadata?.close();
  }
}

/** What is not allocated reads as zeros. Ranges ascending, with gaps between them. */
function sparse(view: View, ranges: readonly ByteRange[]): Pick<View, 'nextData' | 'nextHole'> {
  const at = (position: number): ByteRange | undefined => {
    let [low, high] = [0, ranges.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      const one = ranges[middle];
      if (one && one.offset + one.length <= position) low = middle + 1;
      else high = middle;
    }
    return ranges[low];
  };
  return {
    async nextData(position) {
      const next = at(position);
      return next && Math.max(position, next.offset);
    },
    async nextHole(position) {
      const next = at(position);
      return next && next.offset <= position ? Math.min(view.sizeBytes, next.offset + next.length) : position;
    },
  };
}
