/**
 * Hashes of the granules of every file of a tree, in pages of 256, so that one changed granule of a large file rewrites 4 KiB.
 * A page ends at its last hash that is not zero, and pages of zeros are not stored: a small file costs 16 bytes, a hole
 * nothing. Transactions are the caller's.
 */
import type { DatabaseSync, StatementSync } from 'node:sqlite';
import { Blake3Hasher } from '@napi-rs/blake-hash';
import { contentRoot, hashBytes, isZeroHash } from '../../proto/granule.ts';
import { asBuffer, countUnknown, eachPart, markDifferent, pageHashes } from './hashpages.ts';

const pageBytes = pageHashes * hashBytes;
const zeroPage = Buffer.alloc(pageBytes);
const none = Buffer.alloc(0);

export class TreeContent {
  readonly #select: StatementSync;
  readonly #pages: StatementSync;
  readonly #put: StatementSync;
  readonly #delete: StatementSync;
  readonly #deleteFrom: StatementSync;

  constructor(database: DatabaseSync) {
    database.exec(`CREATE TABLE IF NOT EXISTS content (slot INTEGER NOT NULL, number INTEGER NOT NULL, hashes BLOB NOT NULL,
      PRIMARY KEY (slot, number)) STRICT, WITHOUT ROWID`);
    this.#select = database.prepare('SELECT hashes FROM content WHERE slot = ? AND number = ?');
    this.#pages = database.prepare(
      'SELECT number, hashes FROM content WHERE slot = ? AND number >= ? ORDER BY number LIMIT 256',
    );
    this.#put = database.prepare('INSERT OR REPLACE INTO content (slot, number, hashes) VALUES (?, ?, ?)');
    this.#delete = database.prepare('DELETE FROM content WHERE slot = ? AND number = ?');
    this.#deleteFrom = database.prepare('DELETE FROM content WHERE slot = ? AND number >= ?');
  }

  want(slot: number, first: number, hashes: Buffer): Buffer {
    const count = hashes.length / hashBytes;
    const bitmap = Buffer.alloc(Math.ceil(count / 8));
    eachPart(first, count, (number, inPage, length, done) => {
      markDifferent(bitmap, hashes, done, this.#page(slot, number), inPage, length);
    });
    return bitmap;
  }

  hashes(slot: number, first: number, count: number): Buffer {
    const result = Buffer.alloc(count * hashBytes);
    eachPart(first, count, (number, inPage, length, done) => {
      this.#page(slot, number).copy(result, done * hashBytes, inPage * hashBytes, (inPage + length) * hashBytes);
    });
    return result;
  }

  put(slot: number, first: number, hashes: Buffer): void {
    eachPart(first, hashes.length / hashBytes, (number, inPage, length, done) => {
      const old = length === pageHashes ? none : this.#stored(slot, number);
      const page = Buffer.alloc(Math.max(old.length, (inPage + length) * hashBytes));
      old.copy(page);
      hashes.copy(page, inPage * hashBytes, done * hashBytes, (done + length) * hashBytes);
      this.#store(slot, number, page);
    });
  }

  zero(slot: number, first: number, count: number): void {
    const end = first + count;
    const firstWhole = Math.ceil(first / pageHashes);
    const endWhole = Math.floor(end / pageHashes);
    if (firstWhole > endWhole) return this.#zeroPart(slot, first, end);
    this.#zeroPart(slot, first, firstWhole * pageHashes);
    // Only what is stored costs: a hole of a terabyte in a new file is nothing to do.
    this.#removePages(slot, firstWhole, endWhole);
    this.#zeroPart(slot, endWhole * pageHashes, end);
  }

  #removePages(slot: number, from: number, to: number): void {
    for (let at = from; at < to;) {
      const rows = this.#pages.all(slot, at);
      for (const row of rows) if (Number(row['number']) < to) this.#delete.run(slot, Number(row['number']));
      const last = rows.at(-1);
      if (!last) return;
      at = Number(last['number']) + 1;
    }
  }

  /** Within one page. */
  #zeroPart(slot: number, from: number, to: number): void {
    if (from >= to) return;
    const number = Math.floor(from / pageHashes);
    const inPage = from % pageHashes;
    const old = this.#stored(slot, number);
    if (old.length <= inPage * hashBytes) return;
    this.#store(
      slot,
      number,
      Buffer.concat([old], pageBytes).fill(0, inPage * hashBytes, (inPage + to - from) * hashBytes),
    );
  }

  /** The file has that many granules: nothing is left of those beyond. */
  end(slot: number, count: number): void {
    const page = Math.floor(count / pageHashes);
    this.#zeroPart(slot, count, (page + 1) * pageHashes);
    this.#deleteFrom.run(slot, page + 1);
  }

  /** Whether something is there beyond that many granules. */
  reachesBeyond(slot: number, count: number): boolean {
    const page = Math.floor(count / pageHashes);
    if (this.#stored(slot, page).length > (count % pageHashes) * hashBytes) return true;
    return this.#pages.get(slot, page + 1) !== undefined;
  }

  remove(slot: number): void {
    this.#deleteFrom.run(slot, 0);
  }

  /** contentRoot of the first `count` granules, and how many of them are unknown. */
  root(slot: number, count: number): { root: Buffer; unknown: number } {
    if (count <= pageHashes) {
      const hashes = Buffer.concat([this.#stored(slot, 0)], count * hashBytes);
      return { root: contentRoot(hashes), unknown: countUnknown(hashes) };
    }
    const hasher = new Blake3Hasher();
    let unknown = 0;
    let next = 0;
    const zerosUntil = (number: number): void => {
      for (; next < number; next++) hasher.update(zeroPage);
    };
    const pages = Math.ceil(count / pageHashes);
    while (next < pages) {
      const rows = this.#pages.all(slot, next);
      if (rows.length === 0) break;
      for (const row of rows) {
        const number = Number(row['number']);
        if (number >= pages) break;
        zerosUntil(number);
        const page = padded(asBuffer(row['hashes']));
        unknown += countUnknown(page);
        hasher.update(page.subarray(0, (count - number * pageHashes) * hashBytes));
        next = number + 1;
      }
      if (Number(rows.at(-1)?.['number']) >= pages) break;
    }
    const whole = Math.floor(count / pageHashes);
    zerosUntil(whole);
    if (next === whole && count % pageHashes > 0) hasher.update(zeroPage.subarray(0, (count % pageHashes) * hashBytes));
    return { root: hasher.digestBuffer().subarray(0, hashBytes), unknown };
  }

  #page(slot: number, number: number): Buffer {
    const stored = this.#stored(slot, number);
    return stored.length === 0 ? zeroPage : padded(stored);
  }

  /** Up to the last hash that is not zero. */
  #stored(slot: number, number: number): Buffer {
    const row = this.#select.get(slot, number);
    return row ? asBuffer(row['hashes']) : none;
  }

  /** What the page does not reach is zero. */
  #store(slot: number, number: number, page: Buffer): void {
    let length = page.length / hashBytes;
    while (length > 0 && isZeroHash(page, length - 1)) length--;
    if (length === 0) this.#delete.run(slot, number);
    else this.#put.run(slot, number, page.subarray(0, length * hashBytes));
  }
}

function padded(hashes: Buffer): Buffer {
  return hashes.length === pageBytes ? hashes : Buffer.concat([hashes], pageBytes);
}
