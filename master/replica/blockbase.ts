/** A block volume's bytes: one sparse image file of exactly the source's size, and a BlockIndex. */
import type { Disk, DiskFile } from '../../proto/effects.ts';
import { asReplicationError, ReplicationError, systemErrorCode } from '../../proto/errors.ts';
import { granuleBytes, granuleCount, granuleHash, hashBytes, isZeroHash } from '../../proto/granule.ts';
import { runBytes, unpack } from '../../proto/payload.ts';
import type { Base, Piece, Progress, Slice } from './base.ts';
import { BlockIndex } from './blockindex.ts';
import type { Data } from '../../proto/wire.ts';
import type { CommitRecord, JournalRecord } from './frame.ts';
import { copyIndex } from './indexdatabase.ts';
import { windowGranules } from './placing.ts';
import { blockRecords, recordLimits } from './records.ts';

/** Read at once while verifying: 16 MiB is one page of the index. */
const chunkGranules = 256;
const readBytes = 1 << 20;
/** Written before the disk is set to work on it: the commit then waits for the rest of it only. */
const startSyncBytes = 8 << 20;

export class BlockBase implements Base {
  readonly index: BlockIndex;
  readonly #disk: Disk;
  readonly #imagePath: string;
  readonly indexPath: string;
  readonly #image: DiskFile;
  /** Written since the disk was last set to work. */
  #written = { from: Infinity, to: 0, bytes: 0 };

  private constructor(disk: Disk, imagePath: string, indexPath: string, image: DiskFile) {
    this.#disk = disk;
    this.#imagePath = imagePath;
    this.indexPath = indexPath;
    this.#image = image;
    this.index = new BlockIndex(indexPath);
  }

  static async open(
    disk: Disk,
    imagePath: string,
    indexPath: string,
    access: 'read' | 'write' = 'write',
  ): Promise<BlockBase> {
    const image = await disk.open(imagePath, access);
    try {
      return new BlockBase(disk, imagePath, indexPath, image);
    } catch (error) {
      await image.close();
      throw error;
    }
  }

  async write(record: Exclude<JournalRecord, { commit: unknown }>): Promise<void> {
    if (!('data' in record)) throw new ReplicationError('ReplicaDamaged', 'nodes in the journal of a block volume');
    const { data } = record;
    await this.place(data, unpack(data));
    this.index.stageData(data);
  }

  async place(data: Data, raw: Buffer): Promise<void> {
    let at = 0;
    for (const run of data.runs) {
      const position = run.first * granuleBytes;
      const length = runBytes(run);
      if (run.zero) {
        // Zeros have one hash whatever their length: a last granule that was shorter then is zero to its end.
        await this.#image.zero(position, run.count * granuleBytes);
      } else {
        await this.#image.write([raw.subarray(at, at + length)], position);
        at += length;
        this.#startSync(position, length);
      }
    }
  }

  #startSync(position: number, length: number): void {
    const { from, to, bytes } = this.#written;
    this.#written = {
      from: Math.min(from, position),
      to: Math.max(to, position + length),
      bytes: bytes + length,
    };
    if (this.#written.bytes < startSyncBytes) return;
    this.#image.startSync?.(this.#written.from, this.#written.to - this.#written.from);
    this.#written = { from: Infinity, to: 0, bytes: 0 };
  }

  async cut(): Promise<void> {
    await this.#image.truncate(this.index.sizeBytes);
    await this.#image.sync();
  }

  async settle(commit: CommitRecord): Promise<void> {
    if ((await this.#image.size()) !== commit.sizeBytes) await this.#image.truncate(commit.sizeBytes);
    await this.#image.sync();
    this.index.commit(commit);
  }

  async cloneTo(contentPath: string, indexPath: string, signal: AbortSignal, progress: Progress): Promise<Base> {
    const total = this.index.sizeBytes;
    if ((await this.#disk.size(contentPath)) !== undefined) {
      throw new ReplicationError('TargetRefused', `${contentPath} exists; name a path that does not`);
    }
    try {
      await this.#disk.clone(this.#imagePath, contentPath, signal, (done) => progress(done, total));
    } catch (error) {
      if (systemErrorCode(error) !== 'EEXIST') throw error;
      throw new ReplicationError('TargetRefused', `${contentPath} exists; name a path that does not`, { cause: error });
    }
    try {
      await copyIndex(this.index.database, this.indexPath, indexPath);
      return await BlockBase.open(this.#disk, contentPath, indexPath);
    } catch (error) {
      await this.#disk.remove(contentPath);
      throw error;
    }
  }

  records(signal: AbortSignal, limits = recordLimits): AsyncGenerator<JournalRecord> {
    return blockRecords(this.#image, this.index, signal, limits);
  }

  async sync(): Promise<void> {
    await this.#image.sync();
  }

  async verify(
    signal: AbortSignal,
    progress: Progress,
    windows?: readonly number[],
  ): Promise<{ readBytes: number; bad: { object: number; granule: number }[] }> {
    const size = this.index.sizeBytes;
    const count = granuleCount(size);
    const bad: { object: number; granule: number }[] = [];
    const buffer = Buffer.alloc(readBytes);
    let read = 0;
    // A short image reads as if the rest were damaged, a long one is no danger: settle cuts it.
    for (let first = 0; first < count; first += chunkGranules) {
      signal.throwIfAborted();
      if (windows && !windows.includes(Math.floor(first / windowGranules))) continue;
      const end = Math.min(size, (first + chunkGranules) * granuleBytes);
      read += await this.#verifyChunk(first, end, buffer, bad);
      progress(end, size);
    }
    return { readBytes: read, bad };
  }

  async prove(from: Piece, signal: AbortSignal, isOver: () => boolean): Promise<Slice> {
    const size = this.index.sizeBytes;
    const buffer = Buffer.alloc(readBytes);
    const slice: Slice = { bad: [], readBytes: 0, doneBytes: 0 };
    let at = from.granule * granuleBytes;
    while (at < size) {
      signal.throwIfAborted();
      const end = Math.min(size, at + chunkGranules * granuleBytes);
      slice.readBytes += await this.#verifyChunk(at / granuleBytes, end, buffer, slice.bad);
      slice.doneBytes += end - at;
      at = end;
      if (isOver()) break;
    }
    if (at < size) slice.next = { object: 0, granule: at / granuleBytes };
    return slice;
  }

  nameOf({ granule }: { object: number; granule: number }): string {
    return `byte ${granule * granuleBytes}`;
  }

  /** The granules from `first` up to byte `end`. Answers how many bytes were read. */
  async #verifyChunk(first: number, end: number, buffer: Buffer, bad: Piece[]): Promise<number> {
    const hashes = this.index.hashes(first, granuleCount(end) - first);
    const data = await this.#image.nextData(first * granuleBytes);
    if (data === undefined || data >= end) {
      for (let i = 0; i * hashBytes < hashes.length; i++)
        if (!isZeroHash(hashes, i)) bad.push({ object: 0, granule: first + i });
      return 0;
    }
    let read = 0;
    for (let at = first * granuleBytes; at < end; at += readBytes) {
      const want = Math.min(readBytes, end - at);
      let got = 0;
      try {
        got = await this.#image.read(buffer.subarray(0, want), at);
      } catch (error) {
        // An unreadable sector is damage like any other: named, and asked for again.
        if (asReplicationError(error).code === 'TargetFull') throw error;
      }
      read += got;
      for (let from = 0; from < want; from += granuleBytes) {
        const granule = at / granuleBytes + from / granuleBytes;
        const to = Math.min(want, from + granuleBytes);
        const own = (granule - first) * hashBytes;
        const right = to <= got && granuleHash(buffer.subarray(from, to)).compare(hashes, own, own + hashBytes) === 0;
        if (!right) bad.push({ object: 0, granule });
      }
    }
    return read;
  }

  async close(): Promise<void> {
    await this.#image.close();
    this.index.close();
  }
}
