/** The digest of a whole block volume: over the hashes of pages of 256 granules' hashes, and the size. */
import { granuleCount, hash, hashBytes } from './granule.ts';

export const pageHashes = 256;

/** @param level hash of each page, back to back */
export function levelDigest(level: Buffer, sizeBytes: number): Buffer {
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(sizeBytes));
  return hash(level, size);
}

/** The same from hashes as they come, in order: 16 bytes of memory for each 16 MiB of volume. */
export class RunningDigest {
  readonly #level: Buffer[] = [];
  readonly #page = Buffer.alloc(pageHashes * hashBytes);
  #inPage = 0;
  #count = 0;

  add(hashes: Buffer): void {
    for (let at = 0; at < hashes.length;) {
      const length = Math.min(hashes.length - at, this.#page.length - this.#inPage);
      hashes.copy(this.#page, this.#inPage, at, at + length);
      this.#inPage += length;
      at += length;
      if (this.#inPage === this.#page.length) this.#close();
    }
    this.#count += hashes.length / hashBytes;
  }

  /** Of all that was added, which must be all granules of a volume of this size. */
  digest(sizeBytes: number): Buffer {
    if (this.#inPage > 0) this.#close();
    if (this.#count !== granuleCount(sizeBytes)) throw new RangeError('not the hashes of a volume of this size');
    return levelDigest(Buffer.concat(this.#level), sizeBytes);
  }

  /** What a short last page lacks counts as zeros. */
  #close(): void {
    this.#page.fill(0, this.#inPage);
    this.#level.push(hash(this.#page));
    this.#inPage = 0;
  }
}
