/** Answering the offers of a Restore that only compares: reads the volume as a source is read, and writes nothing. */
import type { BlockDevice } from './device.ts';
import { granuleBytes, granuleHash, hashBytes, zeroHash } from '../proto/granule.ts';
import { alignedPool } from '../proto/libc.ts';

const pieceBytes = 1 << 20;

/** Hashes of granules as they are on the volume now; what lies beyond its end is as if it were zeros. */
export async function readHashes(
  device: BlockDevice,
  sizeBytes: number,
  first: number,
  count: number,
): Promise<Buffer> {
  const [buffer = Buffer.alloc(0)] = alignedPool(pieceBytes);
  const result = Buffer.alloc(count * hashBytes);
  const end = Math.min(sizeBytes, (first + count) * granuleBytes);
  let done = 0;
  for (let at = first * granuleBytes; at < end; at += pieceBytes) {
    const length = Math.min(pieceBytes, end - at);
    const data = await device.nextData(at);
    const isHole = data === undefined || data >= at + length;
    const got = isHole ? 0 : await device.read(buffer.subarray(0, length), at);
    buffer.fill(0, got, length);
    for (let from = 0; from < length; from += granuleBytes, done += hashBytes)
      (isHole ? zeroHash : granuleHash(buffer.subarray(from, Math.min(length, from + granuleBytes)))).copy(
        result,
        done,
      );
  }
  return result;
}
