/**
 * A file's bytes as pieces: granules of 64 KiB with their hashes, zeros and holes as such, and the digest over all of them.
 *
 * Holes are found with SEEK_DATA and not read. A file that becomes shorter while it is read ends there, one that grows is read
 * up to the size that it had; whether what was read is of one moment is for the caller to find out.
 * Memory: one piece of 1 MiB at a time, and whatever the taker has not released.
 */
import fs from 'node:fs';
import { promisify } from 'node:util';
import { Blake3Hasher } from '@napi-rs/blake-hash';
import { systemErrorCode } from '../../proto/errors.ts';
import { granuleBytes, granuleCount, granuleHash, hashBytes, isZeroHash } from '../../proto/granule.ts';
import { seekData } from '../../proto/libc.ts';
import { maxDataBytes } from '../../proto/wire.ts';
import type { Piece } from '../source.ts';

const readCall = promisify(fs.read);
const zeroHashes = Buffer.alloc(4096 * hashBytes);

export interface Asking {
  offer: boolean;
  expectSame: boolean;
}

/** Fills the buffer from the position; fewer bytes only at the end of the file. */
export async function readAt(fd: number, buffer: Buffer, position: number): Promise<number> {
  let done = 0;
  while (done < buffer.length) {
    const { bytesRead } = await readCall(fd, buffer, done, buffer.length - done, position + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return done;
}

export function granuleHashes(bytes: Buffer): Buffer {
  const hashes = Buffer.allocUnsafe(granuleCount(bytes.length) * hashBytes);
  for (let at = 0, index = 0; at < bytes.length; at += granuleBytes, index++) {
    granuleHash(bytes.subarray(at, at + granuleBytes)).copy(hashes, index * hashBytes);
  }
  return hashes;
}

/** Granules back to back from `first` on, cut into runs of content and of zeros. */
export function* piecesOf(
  object: number,
  first: number,
  bytes: Buffer,
  hashes: Buffer,
  asking: Asking,
): Generator<Piece> {
  const granules = granuleCount(bytes.length);
  for (let at = 0; at < granules;) {
    const zero = isZeroHash(hashes, at);
    let end = at + 1;
    while (end < granules && isZeroHash(hashes, end) === zero) end++;
    const part = bytes.subarray(at * granuleBytes, end * granuleBytes);
    if (zero) {
      yield zeros(object, first + at, part.length, asking);
    } else {
      yield {
        kind: 'content',
        object,
        first: first + at,
        hashes: hashes.subarray(at * hashBytes, end * hashBytes),
        bytes: part,
        ...asking,
        release: () => undefined,
      };
    }
    at = end;
  }
}

function zeros(object: number, first: number, lengthBytes: number, { expectSame }: Asking): Piece {
  const count = granuleCount(lengthBytes);
  return { kind: 'zeros', object, first, count, tailBytes: lengthBytes - (count - 1) * granuleBytes, expectSame };
}

export interface Content {
  root: Buffer;
  /** As read. */
  sizeBytes: number;
}

/** @param onRead hears of each stretch: bytes gone through, and how many of them were read */
export async function* streamFile(
  fd: number,
  object: number,
  sizeBytes: number,
  asking: Asking,
  onRead: (bytes: number, readBytes: number) => Promise<void>,
): AsyncGenerator<Piece, Content> {
  const hasher = new Blake3Hasher();
  let at = 0;
  let end = sizeBytes;
  while (at < end) {
    const data = Math.min(end, await nextData(fd, at));
    const start = data >= end ? end : data - (data % granuleBytes);
    if (start > at) {
      for (let left = granuleCount(start - at); left > 0; left -= 4096) {
        hasher.update(zeroHashes.subarray(0, Math.min(4096, left) * hashBytes));
      }
      await onRead(start - at, 0);
      yield zeros(object, at / granuleBytes, start - at, asking);
      at = start;
      continue;
    }
    const buffer = Buffer.allocUnsafeSlow(Math.min(maxDataBytes, end - at));
    const length = await readAt(fd, buffer, at);
    if (length < buffer.length) end = at + length;
    const bytes = buffer.subarray(0, length);
    const hashes = granuleHashes(bytes);
    hasher.update(hashes);
    await onRead(length, length);
    yield* piecesOf(object, at / granuleBytes, bytes, hashes, asking);
    at += length;
  }
  return { root: hasher.digestBuffer().subarray(0, hashBytes), sizeBytes: end };
}

async function nextData(fd: number, position: number): Promise<number> {
  try {
    return (await seekData(fd, position)) ?? Infinity;
  } catch (error) {
    if (['EINVAL', 'ENOTSUP'].includes(systemErrorCode(error) ?? '')) return position;
    throw error;
  }
}
