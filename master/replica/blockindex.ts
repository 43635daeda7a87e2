/**
 * Index of a block volume: one hash per granule, in pages of 256 (4 KiB), one level above in memory (16 bytes per 16 MiB
 * of volume), the digest over that level and the size. Pages of zeros are not stored, so a blank 1 TiB costs 1 MiB.
 */
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import assert from 'node:assert/strict';
import { granuleCount, hash, hashBytes, unknownHash } from '../../proto/granule.ts';
import { ReplicationError } from '../../proto/errors.ts';
import type { Data, Node } from '../../proto/wire.ts';
import type { CommitRecord } from './frame.ts';
import { openIndexDatabase, readPosition, transaction, writePosition } from './indexdatabase.ts';
import type { VolumeIndex } from './volumeindex.ts';

const pageGranules = 256;
const pageBytes = pageGranules * hashBytes;
const zeroPage = Buffer.alloc(pageBytes);
const zeroPageHash = hash(zeroPage);

export class BlockIndex implements VolumeIndex {
  readonly database: DatabaseSync;
  readonly #selectPage: StatementSync;
  readonly #putPage: StatementSync;
  readonly #deletePage: StatementSync;
  /** Hash of each page of the newest commit. */
  #level: Buffer;
  /** Pages of the open epoch, by number; the shared zeroPage for blank ones. */
  #staged = new Map<number, Buffer>();
  newest: CommitRecord | undefined;
  unknown: number;

  /** @param path of a file, made when absent */
  constructor(path: string) {
    this.database = openIndexDatabase(path);
    this.database.exec('CREATE TABLE IF NOT EXISTS page (number INTEGER PRIMARY KEY, hashes BLOB NOT NULL) STRICT');
    this.#selectPage = this.database.prepare('SELECT hashes FROM page WHERE number = ?');
    this.#putPage = this.database.prepare('INSERT OR REPLACE INTO page (number, hashes) VALUES (?, ?)');
    this.#deletePage = this.database.prepare('DELETE FROM page WHERE number = ?');
    this.newest = readPosition(this.database);
    this.#level = blankLevel(pageCount(this.sizeBytes));
    this.unknown = 0;
    for (const row of this.database.prepare('SELECT number, hashes FROM page').iterate()) {
      const page = row['hashes'] as Uint8Array;
      const number = Number(row['number']);
      if ((number + 1) * hashBytes > this.#level.length) continue;
      hash(page).copy(this.#level, number * hashBytes);
      this.unknown += countUnknown(Buffer.from(page.buffer, page.byteOffset, page.length));
    }
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
    return levelDigest(this.#level, this.sizeBytes);
  }

  want(object: number, first: number, hashes: Buffer): Buffer {
    if (object !== 0)
      throw new ReplicationError('BadMessage', `Offer.object ${object}: a block volume has only object 0`);
    const count = hashes.length / hashBytes;
    const bitmap = Buffer.alloc(Math.ceil(count / 8));
    for (let at = 0; at < count;) {
      const number = Math.floor((first + at) / pageGranules);
      const inPage = (first + at) % pageGranules;
      const length = Math.min(pageGranules - inPage, count - at);
      const page = this.#page(number);
      for (let i = 0; i < length; i++) {
        const own = (inPage + i) * hashBytes;
        const offered = (at + i) * hashBytes;
        const same = page.compare(hashes, offered, offered + hashBytes, own, own + hashBytes) === 0;
        if (!same) bitmap[(at + i) >> 3] = (bitmap[(at + i) >> 3] ?? 0) | (1 << ((at + i) & 7));
      }
      at += length;
    }
    return bitmap;
  }

  /** Hashes of `count` granules from `first` on, the open epoch taken into account. */
  hashes(first: number, count: number): Buffer {
    const result = Buffer.alloc(count * hashBytes);
    this.#eachPart(first, count, (number, inPage, length, done) => {
      this.#page(number).copy(result, done * hashBytes, inPage * hashBytes, (inPage + length) * hashBytes);
    });
    return result;
  }

  stageData(data: Data): void {
    let hashAt = 0;
    for (const run of data.runs) {
      if (run.object !== 0)
        throw new ReplicationError('BadMessage', `Run.object ${run.object}: a block volume has only object 0`);
      const from = hashAt;
      this.#eachPart(run.first, run.count, (number, inPage, length, done) => {
        if (run.zero && length === pageGranules) {
          this.#staged.set(number, zeroPage);
          return;
        }
        const page = this.#writable(number);
        if (run.zero) page.fill(0, inPage * hashBytes, (inPage + length) * hashBytes);
        else data.hashes.copy(page, inPage * hashBytes, from + done * hashBytes, from + (done + length) * hashBytes);
      });
      if (!run.zero) hashAt += run.count * hashBytes;
    }
  }

  manifest(): Iterable<Node> {
    return [];
  }

  stageNodes(): void {
    throw new ReplicationError('BadMessage', 'Nodes: a block volume has no nodes');
  }

  stagedDigest(sizeBytes: number): Buffer {
    return levelDigest(this.#stagedLevel(sizeBytes), sizeBytes);
  }

  stagedUnknown(): number {
    return this.unknown === 0 ? this.#countStagedUnknown() : this.#countUnknown();
  }

  commit(commit: CommitRecord): void {
    this.#dropBeyond(commit.sizeBytes);
    const unknown = this.stagedUnknown();
    const level = this.#stagedLevel(commit.sizeBytes);
    transaction(this.database, () => {
      for (const [number, page] of this.#staged) {
        if (page.equals(zeroPage)) this.#deletePage.run(number);
        else this.#putPage.run(number, page);
      }
      if (commit.sizeBytes < this.sizeBytes) {
        this.database.prepare('DELETE FROM page WHERE number >= ?').run(pageCount(commit.sizeBytes));
      }
      writePosition(this.database, commit);
    });
    this.#staged = new Map();
    this.#level = level;
    this.newest = commit;
    this.unknown = unknown;
  }

  discard(): void {
    this.#staged = new Map();
  }

  markUnknown(object: number, granule: number): void {
    assert.equal(object, 0);
    const number = Math.floor(granule / pageGranules);
    const page = Buffer.from(this.#page(number));
    unknownHash.copy(page, (granule % pageGranules) * hashBytes);
    this.#putPage.run(number, page);
    hash(page).copy(this.#level, number * hashBytes);
    this.unknown = this.#countUnknown();
  }

  close(): void {
    this.database.close();
  }

  /** A shorter volume has no hashes beyond its end. */
  #dropBeyond(sizeBytes: number): void {
    if (sizeBytes >= this.sizeBytes) return;
    const count = granuleCount(sizeBytes);
    const last = Math.floor(count / pageGranules);
    if (count % pageGranules > 0) this.#writable(last).fill(0, (count % pageGranules) * hashBytes);
    for (const number of [...this.#staged.keys()]) if (number >= pageCount(sizeBytes)) this.#staged.delete(number);
  }

  #stagedLevel(sizeBytes: number): Buffer {
    const pages = pageCount(sizeBytes);
    const level = blankLevel(pages);
    this.#level.copy(level, 0, 0, Math.min(level.length, this.#level.length));
    for (const [number, page] of this.#staged) {
      if (number < pages) (page === zeroPage ? zeroPageHash : hash(page)).copy(level, number * hashBytes);
    }
    return level;
  }

  #countStagedUnknown(): number {
    let count = 0;
    for (const page of this.#staged.values()) if (page !== zeroPage) count += countUnknown(page);
    return count;
  }

  /** In the whole volume as the open epoch will leave it. */
  #countUnknown(): number {
    let count = this.#countStagedUnknown();
    for (const row of this.database.prepare('SELECT number, hashes FROM page').iterate()) {
      if (this.#staged.has(Number(row['number']))) continue;
      const page = row['hashes'] as Uint8Array;
      count += countUnknown(Buffer.from(page.buffer, page.byteOffset, page.length));
    }
    return count;
  }

  #page(number: number): Buffer {
    const staged = this.#staged.get(number);
    if (staged) return staged;
    const row = this.#selectPage.get(number);
    if (!row) return zeroPage;
    const page = row['hashes'] as Uint8Array;
    return Buffer.from(page.buffer, page.byteOffset, page.length);
  }

  #writable(number: number): Buffer {
    let page = this.#staged.get(number);
    if (!page || page === zeroPage) {
      page = Buffer.from(this.#page(number));
      this.#staged.set(number, page);
    }
    return page;
  }

  /** Cuts granules first .. first + count - 1 at page borders. */
  #eachPart(
    first: number,
    count: number,
    part: (number: number, inPage: number, length: number, done: number) => void,
  ): void {
    for (let done = 0; done < count;) {
      const inPage = (first + done) % pageGranules;
      const length = Math.min(pageGranules - inPage, count - done);
      part(Math.floor((first + done) / pageGranules), inPage, length, done);
      done += length;
    }
  }
}

function pageCount(sizeBytes: number): number {
  return Math.ceil(granuleCount(sizeBytes) / pageGranules);
}

function blankLevel(pages: number): Buffer {
  return Buffer.alloc(pages * hashBytes, zeroPageHash);
}

function levelDigest(level: Buffer, sizeBytes: number): Buffer {
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(sizeBytes));
  return hash(level, size);
}

function countUnknown(page: Buffer): number {
  if (!page.includes(unknownHash)) return 0;
  let count = 0;
  for (let at = 0; at < page.length; at += hashBytes)
    if (page.compare(unknownHash, 0, hashBytes, at, at + hashBytes) === 0) count++;
  return count;
}
