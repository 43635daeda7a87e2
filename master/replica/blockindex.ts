/** Index of a block volume: one hash per granule; the digest is over them and the size. */
import type { DatabaseSync } from 'node:sqlite';
import assert from 'node:assert/strict';
import { granuleBytes, granuleCount, granuleLength, hashBytes, isZeroHash, unknownHash } from '../../proto/granule.ts';
import { ReplicationError } from '../../proto/errors.ts';
import { transaction } from '../../proto/sqlite.ts';
import type { Data, Node, Run } from '../../proto/wire.ts';
import type { CommitRecord } from './frame.ts';
import { HashPages } from './hashpages.ts';
import { openIndexDatabase, readPosition, writePosition } from './indexdatabase.ts';
import type { VolumeIndex } from './volumeindex.ts';

export class BlockIndex implements VolumeIndex {
  readonly database: DatabaseSync;
  readonly #pages: HashPages;
  /** In bytes, of granules that the open epoch brought shorter than others, or that were the last one. */
  readonly #lengths = new Map<number, number>();
  newest: CommitRecord | undefined;

  /** @param path of a file, made when absent */
  constructor(path: string) {
    this.database = openIndexDatabase(path);
    this.newest = readPosition(this.database);
    this.#pages = new HashPages(this.database, granuleCount(this.sizeBytes));
  }

  get sequence(): number {
    return this.newest?.sequence ?? 0;
  }

  get sizeBytes(): number {
    return this.newest?.sizeBytes ?? 0;
  }

  get sourceId(): string {
    return this.newest?.sourceId ?? '';
  }

  get digest(): Buffer {
    return this.#pages.digest(this.sizeBytes);
  }

  get damaged(): boolean {
    return this.#pages.damaged;
  }

  unsound(): [] {
    return [];
  }

  get unknown(): number {
    return this.#pages.unknown;
  }

  want(object: number, first: number, hashes: Buffer): Buffer {
    if (object !== 0)
      throw new ReplicationError('BadMessage', `Offer.object ${object}: a block volume has only object 0`);
    return this.#pages.want(first, hashes);
  }

  /** Hashes of `count` granules from `first` on, the open epoch taken into account. */
  hashes(first: number, count: number): Buffer {
    return this.#pages.hashes(first, count);
  }

  stageData(data: Data): void {
    let hashAt = 0;
    for (const run of data.runs) {
      if (run.object !== 0)
        throw new ReplicationError('BadMessage', `Run.object ${run.object}: a block volume has only object 0`);
      this.#noteLengths(run);
      if (run.zero) {
        this.#pages.stageZeros(run.first, run.count);
      } else {
        this.#pages.stage(run.first, data.hashes.subarray(hashAt, (hashAt += run.count * hashBytes)));
      }
    }
  }

  /**
   * The open epoch ends at this size. A granule whose hash is of another length than it has now is unknown until it is
   * sent anew: it would pass for right when the volume has its former size again.
   */
  #stageSize(sizeBytes: number): void {
    const count = granuleCount(sizeBytes);
    this.#pages.stageEnd(count);
    const lengths = new Map(this.#lengths);
    const before = granuleCount(this.sizeBytes);
    const edge = Math.min(before, count) - 1;
    if (edge >= 0 && !lengths.has(edge)) lengths.set(edge, granuleLength(edge, this.sizeBytes));
    for (const [granule, bytes] of lengths) {
      const isRight = granule >= count || bytes === granuleLength(granule, sizeBytes);
      if (!isRight && !isZeroHash(this.#pages.hashes(granule, 1), 0)) this.#pages.stage(granule, unknownHash);
    }
  }

  /** Only of granules that are, or may become, the last one. */
  #noteLengths({ first, count, tailBytes }: Run): void {
    const [last, edge] = [first + count - 1, granuleCount(this.sizeBytes) - 1];
    for (const granule of [...this.#lengths.keys(), edge])
      if (granule >= first && granule <= last) this.#lengths.set(granule, granuleBytes);
    if (tailBytes < granuleBytes) this.#lengths.set(last, tailBytes);
  }

  manifest(): Iterable<Node> {
    return [];
  }

  stageNodes(): void {
    throw new ReplicationError('BadMessage', 'Nodes: a block volume has no nodes');
  }

  stagedDigest(sizeBytes: number): Buffer {
    this.#stageSize(sizeBytes);
    return this.#pages.stagedDigest(granuleCount(sizeBytes), sizeBytes);
  }

  get stagedPages(): number {
    return this.#pages.stagedPages;
  }

  stagedUnknown(sizeBytes: number): number {
    this.#stageSize(sizeBytes);
    return this.#pages.stagedUnknown(granuleCount(sizeBytes));
  }

  commit(commit: CommitRecord): void {
    const count = granuleCount(commit.sizeBytes);
    this.#stageSize(commit.sizeBytes);
    let state: ReturnType<HashPages['write']> | undefined;
    transaction(this.database, () => {
      state = this.#pages.write(count);
      writePosition(this.database, commit);
    });
    assert(state);
    this.#pages.settled(state);
    this.#lengths.clear();
    this.newest = commit;
  }

  discard(): void {
    this.#pages.discard();
    this.#lengths.clear();
  }

  markUnknown(object: number, granule: number): void {
    assert.equal(object, 0);
    // What the journal still has of a volume that was larger then is nobody's loss.
    if (granule < granuleCount(this.sizeBytes)) this.#pages.set(granule, unknownHash);
  }

  close(): void {
    this.database.close();
  }
}
