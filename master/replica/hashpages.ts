/**
 * A long array of hashes in SQLite: pages of 256 (4 KiB), one level above in memory (16 bytes per page), a digest over that
 * level. `BlockIndex` keeps a volume's granules in it, `TreeIndex` its nodes. Pages of zeros are not stored, so a blank
 * 1 TiB costs 1 MiB.
 *
 * Changes are staged; `write` puts them into the caller's transaction, `settled` makes them the present state once that is
 * committed, `discard` forgets them. Transactions are the caller's.
 */
import type { DatabaseSync, StatementSync } from 'node:sqlite';
import { levelDigest, pageHashes } from '../../proto/digest.ts';
import { hash, hashBytes, unknownHash } from '../../proto/granule.ts';
import { asBytes, IndexDamaged } from './indexdatabase.ts';

export { pageHashes };
const pageBytes = pageHashes * hashBytes;
const zeroPage = Buffer.alloc(pageBytes);
const zeroPageHash = hash(zeroPage);

export class HashPages {
  readonly #database: DatabaseSync;
  readonly #selectPage: StatementSync;
  readonly #putPage: StatementSync;
  readonly #deletePage: StatementSync;
  /** Hash of each page of the present state. */
  #level: Buffer;
  /** Staged pages by number; the shared zeroPage for blank ones. */
  #staged = new Map<number, Buffer>();
  #copies = 0;
  /** Hashes of staged pages that already are in the table (spill). */
  #spilled = new Map<number, Buffer>();
  /** A page was found to be another one than was stored. */
  damaged = false;
  /** Entries that hold unknownHash. */
  unknown = 0;

  /** @param count of hashes in the present state; what is stored beyond is ignored */
  constructor(database: DatabaseSync, count: number) {
    this.#database = database;
    database.exec('CREATE TABLE IF NOT EXISTS page (number INTEGER PRIMARY KEY, hashes BLOB NOT NULL) STRICT');
    this.#selectPage = database.prepare('SELECT hashes FROM page WHERE number = ?');
    this.#putPage = database.prepare('INSERT OR REPLACE INTO page (number, hashes) VALUES (?, ?)');
    this.#deletePage = database.prepare('DELETE FROM page WHERE number = ?');
    this.#level = blankLevel(pageCount(count));
    for (const [number, page] of this.#stored()) {
      if ((number + 1) * hashBytes > this.#level.length) continue;
      hash(page).copy(this.#level, number * hashBytes);
      this.unknown += countUnknown(page);
    }
  }

  /** Over the present state. `sizeBytes` goes into it. */
  digest(sizeBytes: number): Buffer {
    return levelDigest(this.#level, sizeBytes);
  }

  /** Bit i set: hash `first + i` is another one, staged changes taken into account. */
  want(first: number, hashes: Buffer): Buffer {
    const count = hashes.length / hashBytes;
    const bitmap = Buffer.alloc(Math.ceil(count / 8));
    eachPart(first, count, (number, inPage, length, done) => {
      markDifferent(bitmap, hashes, done, this.#page(number), inPage, length);
    });
    return bitmap;
  }

  /** `count` hashes from `first` on, staged changes taken into account. */
  hashes(first: number, count: number): Buffer {
    const result = Buffer.alloc(count * hashBytes);
    eachPart(first, count, (number, inPage, length, done) => {
      this.#page(number).copy(result, done * hashBytes, inPage * hashBytes, (inPage + length) * hashBytes);
    });
    return result;
  }

  stage(first: number, hashes: Buffer): void {
    eachPart(first, hashes.length / hashBytes, (number, inPage, length, done) => {
      hashes.copy(this.#writable(number), inPage * hashBytes, done * hashBytes, (done + length) * hashBytes);
    });
  }

  stageZeros(first: number, count: number): void {
    eachPart(first, count, (number, inPage, length) => {
      if (length === pageHashes) this.#staged.set(number, zeroPage);
      else this.#writable(number).fill(0, inPage * hashBytes, (inPage + length) * hashBytes);
    });
  }

  /** The array ends there: nothing of it is left from `count` on. */
  stageEnd(count: number): void {
    if (count % pageHashes > 0)
      this.#writable(Math.floor(count / pageHashes)).fill(0, (count % pageHashes) * hashBytes);
    for (const number of [...this.#staged.keys()]) if (number >= pageCount(count)) this.#staged.delete(number);
  }

  stagedDigest(count: number, sizeBytes: number): Buffer {
    return levelDigest(this.#stagedLevel(count), sizeBytes);
  }

  /** What `unknown` will be when `count` hashes are left (see stageEnd). */
  stagedUnknown(count: number): number {
    return this.unknown === 0 ? this.#countStagedUnknown() : this.#countUnknown(pageCount(count));
  }

  /** Pages of their own in memory since the last settle or discard; the shared blank ones cost nothing. */
  get stagedPages(): number {
    return this.#copies;
  }

  /** Moves staged pages out of memory, into the transaction that the caller has open and will end. */
  spill(): void {
    for (const [number, page] of this.#staged) {
      this.#put(number, page);
      this.#spilled.set(number, hash(page));
    }
    this.#staged.clear();
    this.#copies = 0;
  }

  /** Inside the caller's transaction. Answers what to give to `settled` after it. */
  write(count: number): { level: Buffer; unknown: number } {
    const state = { level: this.#stagedLevel(count), unknown: this.stagedUnknown(count) };
    for (const [number, page] of this.#staged) this.#put(number, page);
    if (pageCount(count) * hashBytes < this.#level.length) {
      this.#database.prepare('DELETE FROM page WHERE number >= ?').run(pageCount(count));
    }
    return state;
  }

  settled(state: { level: Buffer; unknown: number }): void {
    this.#level = state.level;
    this.unknown = state.unknown;
    this.discard();
  }

  discard(): void {
    this.#staged = new Map();
    this.#spilled = new Map();
    this.#copies = 0;
  }

  /** At once, in the present state; nothing may be spilled. */
  set(at: number, value: Buffer): void {
    const number = Math.floor(at / pageHashes);
    if ((number + 1) * hashBytes > this.#level.length) return;
    const old = this.#storedPage(number);
    const page = Buffer.from(old);
    value.copy(page, (at % pageHashes) * hashBytes);
    this.#put(number, page);
    hash(page).copy(this.#level, number * hashBytes);
    this.unknown += countUnknown(page) - countUnknown(old);
  }

  #put(number: number, page: Buffer): void {
    if (page.equals(zeroPage)) this.#deletePage.run(number);
    else this.#putPage.run(number, page);
  }

  #stagedLevel(count: number): Buffer {
    const pages = pageCount(count);
    const level = blankLevel(pages);
    this.#level.copy(level, 0, 0, Math.min(level.length, this.#level.length));
    for (const [number, sum] of this.#spilled) if (number < pages) sum.copy(level, number * hashBytes);
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

  /** In the whole array as the staged changes will leave it. */
  #countUnknown(pages: number): number {
    let count = this.#countStagedUnknown();
    for (const [number, page] of this.#stored())
      if (number < pages && !this.#staged.has(number)) count += countUnknown(page);
    return count;
  }

  *#stored(): Generator<[number, Buffer]> {
    for (const row of this.#database.prepare('SELECT number, hashes FROM page').iterate()) {
      yield [Number(row['number']), asBuffer(row['hashes'])];
    }
  }

  #page(number: number): Buffer {
    return this.#staged.get(number) ?? this.#storedPage(number);
  }

  #storedPage(number: number): Buffer {
    const row = this.#selectPage.get(number);
    const page = row ? asBuffer(row['hashes']) : zeroPage;
    const at = number * hashBytes;
    const known = this.#spilled.get(number) ?? this.#level.subarray(at, at + hashBytes);
    const sum = page === zeroPage ? zeroPageHash : hash(page);
    // What SQLite's file holds can rot: then nothing is told of it, and nothing written on top.
    if (known.length === 0 || sum.equals(known)) return page;
    this.damaged = true;
    throw new IndexDamaged(`page ${number} of the index's hashes is not what was stored`);
  }

  #writable(number: number): Buffer {
    let page = this.#staged.get(number);
    if (!page || page === zeroPage) {
      page = Buffer.from(this.#page(number));
      this.#staged.set(number, page);
      this.#copies++;
    }
    return page;
  }
}

/** Cuts hashes first .. first + count - 1 at page borders. */
export function eachPart(
  first: number,
  count: number,
  part: (number: number, inPage: number, length: number, done: number) => void,
): void {
  for (let done = 0; done < count;) {
    const inPage = (first + done) % pageHashes;
    const length = Math.min(pageHashes - inPage, count - done);
    part(Math.floor((first + done) / pageHashes), inPage, length, done);
    done += length;
  }
}

/** Sets the bits of those of `length` offered hashes, from `done` on, that the page does not have from `inPage` on. */
export function markDifferent(
  bitmap: Buffer,
  hashes: Buffer,
  done: number,
  page: Buffer,
  inPage: number,
  length: number,
): void {
  for (let i = 0; i < length; i++) {
    const own = (inPage + i) * hashBytes;
    const offered = (done + i) * hashBytes;
    const same = page.compare(hashes, offered, offered + hashBytes, own, own + hashBytes) === 0;
    if (!same) bitmap[(done + i) >> 3] = (bitmap[(done + i) >> 3] ?? 0) | (1 << ((done + i) & 7));
  }
}

/** SQLite's bytes as a Buffer, not copied. */
export function asBuffer(value: unknown): Buffer {
  const bytes = asBytes(value);
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}

export function countUnknown(hashes: Buffer): number {
  if (!hashes.includes(unknownHash)) return 0;
  let count = 0;
  for (let at = 0; at < hashes.length; at += hashBytes)
    if (hashes.compare(unknownHash, 0, hashBytes, at, at + hashBytes) === 0) count++;
  return count;
}

function pageCount(count: number): number {
  return Math.ceil(count / pageHashes);
}

function blankLevel(pages: number): Buffer {
  return Buffer.alloc(pages * hashBytes, zeroPageHash);
}
