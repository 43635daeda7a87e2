/**
 * The bytes of a volume at one commit, with their index: the checkpoint that the journal is applied to, a snapshot, or a
 * copy in the making. `BlockBase` is an image file, `TreeBase` a directory tree.
 *
 * Guarantees: `settle` moves bytes first and the index after them, so a crash leaves an index that is too old and the
 * same epochs are applied again (apply is idempotent); a tree's names move after its index, which keeps what is left to do
 * and does it before anything else. Only committed epochs are ever given to it (I2).
 */
import { ReplicationError } from '../../proto/errors.ts';
import { unknownHash } from '../../proto/granule.ts';
import type { Data } from '../../proto/wire.ts';
import type { CommitRecord, JournalRecord } from './frame.ts';
import type { Journal } from './journal.ts';
import type { RecordLimits } from './records.ts';
import type { VolumeIndex } from './volumeindex.ts';

/** A granule of a file's content; of object 0 one of a block volume, or the node in that slot of a tree. */
export interface Piece {
  object: number;
  granule: number;
}

/** What one call of `prove` has read. */
export interface Slice {
  bad: Piece[];
  readBytes: number;
  /** Of the volume, holes among them. */
  doneBytes: number;
  /** Where to go on; absent: that was all. */
  next?: Piece;
}

export interface Base {
  readonly index: VolumeIndex;
  /** The index's file. */
  readonly indexPath: string;
  /** Content of an epoch that is committed in the journal. Nothing of it counts before `settle`. */
  write(record: Exclude<JournalRecord, { commit: unknown }>): Promise<void>;
  /** Only the bytes, into place, before their epoch is committed (placing.ts). Absent: not for this kind. */
  place?(data: Data, raw: Buffer): Promise<void>;
  /** After `place`: what lies beyond the size of the index is cut off, what is there is durable. */
  cut?(): Promise<void>;
  /** A commit that is passed on the way to the next settle: what is written next belongs to a later epoch. */
  endEpoch?(): Promise<void>;
  /** Everything written is durable and the index stands at this commit. */
  settle(commit: CommitRecord): Promise<void>;
  /**
   * A second one with the same content: bytes at `contentPath` (absent, its parent exists; an empty directory will do
   * for a tree, else TargetRefused and nothing is touched), index at `indexPath`. Durable only after its next `settle` or `sync`.
   */
  cloneTo(contentPath: string, indexPath: string, signal: AbortSignal, progress: Progress): Promise<Base>;
  /**
   * All that it holds, as records that make it from nothing and end with its commit. Nothing else may be asked of it until
   * that is over.
   */
  records(signal: AbortSignal, limits?: RecordLimits): AsyncGenerator<JournalRecord>;
  sync(): Promise<void>;
  /** Re-reads every byte, or the granules of these windows (placing.ts); answers what is not as the index says. */
  verify(
    signal: AbortSignal,
    progress: Progress,
    windows?: readonly number[],
  ): Promise<{ readBytes: number; bad: { object: number; granule: number }[] }>;
  /**
   * Reads content again as it lies, as a clone takes it over, from a piece on until `isOver` says so. What is wrong is answered and
   * noted nowhere.
   */
  prove(from: Piece, signal: AbortSignal, isOver: () => boolean): Promise<Slice>;
  /** Of what `verify` found bad, for people. */
  nameOf(piece: Piece): string;
  /** How much of it the kernel refused to this process: kept in the index, not in the bytes. Absent = nothing ever is. */
  readonly withheld?: number;
  close(): Promise<void>;
}

/** Bytes, of a total that may be an estimate. */
export type Progress = (bytesDone: number, bytesTotal: number) => void;

/** Written between two settles at most: bounds what the index keeps in memory and what a crash does again. */
const settleBytes = 256 << 20;

/** Brings the base from where it is to epoch `through`. */
export async function redo(
  base: Base,
  journal: Journal,
  through: number,
  signal: AbortSignal,
  progress?: (bytes: number) => void,
): Promise<void> {
  await apply(base, journal, through, signal, progress, () => true);
}

/**
 * As `redo`, of a block volume that nobody reads before it is there: what a later epoch brings anew is neither read nor
 * written, so that the time follows what the volume holds, not how often that was written. Broken off it is of no use.
 */
export async function redoNewest(
  base: Base,
  journal: Journal,
  through: number,
  signal: AbortSignal,
  progress?: (bytes: number) => void,
): Promise<void> {
  const newest = new Newest();
  let number = 0;
  for await (const record of journal.read(base.index.sequence, through, () => false)) {
    signal.throwIfAborted();
    number++;
    if (!('data' in record)) continue;
    for (const { first, count } of record.data.runs) newest.set(first, count, number);
    if (newest.isFull) return redo(base, journal, through, signal, progress);
  }
  let at = 0;
  await apply(base, journal, through, signal, progress, (record) => {
    at++;
    if (!('data' in record)) return true;
    const own = at;
    return record.data.runs.some(({ first, count }) => newest.has(first, count, own));
  });
}

const pageGranules = 4096;
/** 64 MiB. */
const maxPages = 4096;

/** Which record brings a granule last, by number. */
class Newest {
  readonly #pages = new Map<number, Uint32Array>();

  get isFull(): boolean {
    return this.#pages.size > maxPages;
  }

  set(first: number, count: number, number: number): void {
    for (const [page, from, to] of pagesOf(first, count)) {
      if (this.isFull) return;
      const numbers = this.#pages.get(page) ?? new Uint32Array(pageGranules);
      this.#pages.set(page, numbers);
      numbers.fill(number, from, to);
    }
  }

  /** Any of them is brought last by this one. */
  has(first: number, count: number, number: number): boolean {
    for (const [page, from, to] of pagesOf(first, count))
      if (this.#pages.get(page)?.subarray(from, to).includes(number)) return true;
    return false;
  }
}

function* pagesOf(first: number, count: number): Generator<[page: number, from: number, to: number]> {
  for (let at = first; at < first + count;) {
    const page = Math.floor(at / pageGranules);
    const end = Math.min(first + count, (page + 1) * pageGranules);
    yield [page, at - page * pageGranules, end - page * pageGranules];
    at = end;
  }
}

async function apply(
  base: Base,
  journal: Journal,
  through: number,
  signal: AbortSignal,
  progress: ((bytes: number) => void) | undefined,
  wants: (record: JournalRecord) => boolean,
): Promise<void> {
  // Of a redo that was broken off: it is read again.
  base.index.discard();
  let bytes = 0;
  let { sizeBytes } = base.index;
  let isWanted = true;
  const wanted = (record: JournalRecord): boolean => (isWanted = wants(record));
  for await (const record of journal.read(base.index.sequence, through, wanted)) {
    signal.throwIfAborted();
    if (!('commit' in record)) {
      if (isWanted) await writeOrMark(base, record);
      if ('data' in record) {
        if (isWanted) bytes += record.data.rawBytes;
        progress?.(record.data.rawBytes);
      }
    } else {
      // A volume that shrinks loses its end there and then: growing again later brings zeros, not what was there before.
      const isResized = record.commit.sizeBytes !== sizeBytes;
      ({ sizeBytes } = record.commit);
      if (record.commit.sequence === through || bytes >= settleBytes || isResized) {
        await base.settle(record.commit);
        bytes = 0;
      } else {
        await base.endEpoch?.();
      }
    }
  }
}

/**
 * Bytes that rotted in the journal are not applied: their granules become unknown, which spoils the points until a later
 * epoch brings them again (recovery refuses those by their digest) and lets the newer ones be.
 */
export async function writeOrMark(base: Base, record: Exclude<JournalRecord, { commit: unknown }>): Promise<void> {
  if ('data' in record && record.placed) {
    base.index.stageData(record.data);
    return;
  }
  try {
    await base.write(record);
  } catch (error) {
    if (!(error instanceof ReplicationError) || error.code !== 'HashMismatch' || !('data' in record)) throw error;
    base.index.stageData({ ...record.data, hashes: Buffer.alloc(record.data.hashes.length, unknownHash) });
  }
}
