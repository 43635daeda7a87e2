/**
 * Granules: the pieces of 64 KiB in which a volume is compared, hashed and sent, and their hashes.
 *
 * hash = BLAKE3 truncated to 128 bits (https://github.com/BLAKE3-team/BLAKE3-specs); a granule of zeros has the hash of
 * sixteen zero bytes instead, so that holes cost nothing to compare and blank trees nothing to store. BLAKE3 answering
 * sixteen zero bytes for other content has a chance of 2^-128 and is as unlikely as any other collision.
 */
import { blake3 } from '@napi-rs/blake-hash';

export const granuleBytes = 65536;
export const hashBytes = 16;
export const zeroHash: Buffer = Buffer.alloc(hashBytes);
/** Stands in an index for bytes that are not known; matches no content (BLAKE3 answers it with a chance of 2^-128). */
export const unknownHash: Buffer = Buffer.alloc(hashBytes, 0xff);
const zeroGranule = Buffer.alloc(granuleBytes);

/** 16 bytes; also for what is no granule (nodes, pages). Never the zero hash by way of zeros: see granuleHash. */
export function hash(...parts: Uint8Array[]): Buffer {
  if (parts.length === 1 && parts[0] !== undefined) return blake3(asBuffer(parts[0])).subarray(0, hashBytes);
  return blake3(Buffer.concat(parts)).subarray(0, hashBytes);
}

/** A view, no copy: what the native library takes. */
function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** Of one granule's bytes (1 .. granuleBytes of them). */
export function granuleHash(bytes: Uint8Array): Buffer {
  return isZero(bytes) ? zeroHash : hash(bytes);
}

export function isZero(bytes: Uint8Array): boolean {
  // The first bytes settle nearly all data that is not zero without touching the rest.
  if (bytes.length > 0 && (bytes[0] !== 0 || bytes[bytes.length - 1] !== 0)) return false;
  for (let at = 0; at < bytes.length; at += granuleBytes) {
    const length = Math.min(granuleBytes, bytes.length - at);
    if (Buffer.compare(bytes.subarray(at, at + length), zeroGranule.subarray(0, length)) !== 0) return false;
  }
  return true;
}

export function isZeroHash(hashes: Uint8Array, index = 0): boolean {
  return zeroHash.equals(hashes.subarray(index * hashBytes, (index + 1) * hashBytes));
}

/** How many granules an object of this size has. */
export function granuleCount(sizeBytes: number): number {
  return Math.ceil(sizeBytes / granuleBytes);
}

/** Length of granule `index` in an object of this size: granuleBytes but for the last one. */
export function granuleLength(index: number, sizeBytes: number): number {
  return Math.max(0, Math.min(granuleBytes, sizeBytes - index * granuleBytes));
}

/** Digest over the hashes of a file's granules: what Node.content_root holds. An empty file has the hash of nothing. */
export function contentRoot(hashes: Uint8Array): Buffer {
  return hash(hashes);
}

/** Bit i set: the hashes at i are not the same. As in Want.bitmap. */
export function markDifferences(own: Buffer, other: Buffer): Buffer {
  const bitmap = Buffer.alloc(Math.ceil(other.length / hashBytes / 8));
  for (let i = 0; i * hashBytes < other.length; i++) {
    const at = i * hashBytes;
    if (own.compare(other, at, at + hashBytes, at, at + hashBytes) !== 0)
      bitmap[i >> 3] = (bitmap[i >> 3] ?? 0) | (1 << (i & 7));
  }
  return bitmap;
}
