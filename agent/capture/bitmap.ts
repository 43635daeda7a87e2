/**
 * A set of granule numbers as bits, in pages of 4 KiB that exist only where there is something: 10 TiB take 20 MiB at most,
 * a volume with few changes next to nothing.
 *
 * Pure. Numbers beyond `length` are never in it: marks of what lies behind the volume's end are left out.
 */
import assert from 'node:assert/strict';

export const pageBytes = 4096;
/** Granules of one page: 2 GiB of a volume. */
export const pageGranules = pageBytes * 8;

export class Bitmap {
  readonly #pages = new Map<number, Buffer>();
  #length: number;
  #count = 0;

  constructor(length: number) {
    this.#length = length;
  }

  /** Numbers are below it. */
  get length(): number {
    return this.#length;
  }

  /** How many are in the set. */
  get count(): number {
    return this.#count;
  }

  has(index: number): boolean {
    const page = this.#pages.get(Math.floor(index / pageGranules));
    return page !== undefined && bit(page, index % pageGranules);
  }

  /** Adds `first` .. `end - 1`. Calls `touched` with the number of each page that became another one. */
  add(first: number, end: number, touched?: (page: number) => void): void {
    this.#change(first, end, true, touched);
  }

  delete(first: number, end: number, touched?: (page: number) => void): void {
    this.#change(first, end, false, touched);
  }

  #change(first: number, end: number, value: boolean, touched?: (page: number) => void): void {
    const last = Math.min(end, this.#length);
    for (let at = Math.max(0, first); at < last;) {
      const number = Math.floor(at / pageGranules);
      const stop = Math.min(last, (number + 1) * pageGranules);
      let page = this.#pages.get(number);
      if (!page && value) this.#pages.set(number, (page = Buffer.alloc(pageBytes)));
      const changed = page ? setBits(page, at % pageGranules, stop - number * pageGranules, value) : 0;
      this.#count += value ? changed : -changed;
      if (changed > 0) touched?.(number);
      at = stop;
    }
  }

  /** The first run at or after `from`, at most `most` long; undefined when there is none. */
  next(from: number, most = Infinity): { first: number; end: number } | undefined {
    const first = this.#find(from, true);
    if (first === undefined) return undefined;
    const end = Math.min(this.#find(first, false, first + most) ?? this.#length, first + most, this.#length);
    return { first, end };
  }

  /** Every run, ascending. */
  *runs(): Generator<{ first: number; end: number }> {
    for (let run = this.next(0); run; run = this.next(run.end)) yield run;
  }

  #find(from: number, value: boolean, stop = this.#length): number | undefined {
    const last = Math.min(stop, this.#length);
    for (let at = from; at < last;) {
      const number = Math.floor(at / pageGranules);
      const page = this.#pages.get(number);
      const end = Math.min(last, (number + 1) * pageGranules);
      if (!page) {
        if (!value) return at;
        at = end;
        continue;
      }
      const skip = value ? 0 : 0xff;
      while (at < end) {
        if (at % 8 === 0 && page[(at % pageGranules) >> 3] === skip) at += 8;
        else if (bit(page, at % pageGranules) === value) return at;
        else at++;
      }
      at = Math.min(at, end);
    }
    return undefined;
  }

  /** Everything of the other one too. Both have the same length. */
  addAll(other: Bitmap, touched?: (page: number) => void): void {
    assert.equal(other.length, this.#length);
    for (const { first, end } of other.runs()) this.add(first, end, touched);
  }

  clear(touched?: (page: number) => void): void {
    for (const number of this.#pages.keys()) touched?.(number);
    this.#pages.clear();
    this.#count = 0;
  }

  /** What is behind a shorter length goes; what a longer one adds is not in the set. */
  resize(length: number): void {
    if (length < this.#length) this.delete(length, this.#length);
    this.#length = length;
  }

  /** 4 KiB, least significant bit first; undefined = nothing in it. */
  page(number: number): Buffer | undefined {
    return this.#pages.get(number);
  }

  get pageCount(): number {
    return Math.ceil(this.#length / pageGranules);
  }

  /** Takes the page's bits (added to what is there). */
  load(number: number, bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; at++) {
      const byte = bytes[at] ?? 0;
      if (byte === 0) continue;
      const from = number * pageGranules + at * 8;
      if (byte === 0xff) this.add(from, from + 8);
      else for (let i = 0; i < 8; i++) if (byte & (1 << i)) this.add(from + i, from + i + 1);
    }
  }
}

function bit(page: Buffer, index: number): boolean {
  return ((page[index >> 3] ?? 0) & (1 << (index & 7))) !== 0;
}

/** Answers how many bits changed. */
function setBits(page: Buffer, first: number, end: number, value: boolean): number {
  let changed = 0;
  for (let at = first; at < end;) {
    const byte = at >> 3;
    const before = page[byte] ?? 0;
    if (at % 8 === 0 && end - at >= 8) {
      const set = ones[before] ?? 0;
      changed += value ? 8 - set : set;
      page[byte] = value ? 0xff : 0;
      at += 8;
      continue;
    }
    const mask = 1 << (at & 7);
    if (((before & mask) !== 0) !== value) {
      changed++;
      page[byte] = before ^ mask;
    }
    at++;
  }
  return changed;
}

const ones = Uint8Array.from({ length: 256 }, (_, byte) => {
  let count = 0;
  for (let bits = byte; bits > 0; bits &= bits - 1) count++;
  return count;
});
