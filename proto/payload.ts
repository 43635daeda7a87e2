/**
 * Content on its way: packing granules into Data messages and proving them on arrival.
 *
 * Guarantees: `unpack` answers bytes only when every granule has the hash that came with it (end to end: the sender hashed
 * what it read from the source), else HashMismatch; it never inflates beyond what the runs name.
 */
import { promisify } from 'node:util';
import { zstdCompress, zstdDecompressSync, constants } from 'node:zlib';
import { compress as lz4Compress, uncompressSync as lz4UncompressSync } from 'lz4-napi';
import { granuleBytes, hash, hashBytes } from './granule.ts';
import { ReplicationError } from './errors.ts';
import { type Data, type Run, maxDataBytes } from './wire.ts';

export const compressions = { none: 0, lz4: 1, zstd: 2 } as const;
export type CompressionChoice = 'auto' | 'none' | 'lz4' | 'zstd';

const zstd = promisify(zstdCompress);
/** Compressed must save at least an eighth, or it is not worth the receiver's time. */
const worthRatio = 7 / 8;
/** How much of a payload `auto` tries before it compresses all of it. */
const sampleBytes = 16384;
/**
 * Over a line as fast as this (half a gigabit) content goes as it is: zstd at its fastest takes 4 ms for a MiB of text and saves
 * 1.2 ms of the work of sending it, so below that both sides would only be kept from the next MiB.
 */
export const fastLineBytesPerSecond = 64e6;

/** One run's granule lengths follow from it: all full but the last. */
export function runBytes(run: Run): number {
  return (run.count - 1) * granuleBytes + run.tailBytes;
}

/**
 * Compresses off the main thread when that is worth it. `raw` is not kept when the answer is another buffer.
 * auto: zstd at its fastest where the line is known to be slow, after a sample from the middle shows that it shrinks;
 * incompressible data is left alone.
 */
export async function packPayload(
  raw: Buffer,
  choice: CompressionChoice,
  lineBytesPerSecond?: number,
): Promise<{ compression: number; payload: Buffer }> {
  const plain = { compression: compressions.none, payload: raw };
  if (choice === 'none' || raw.length === 0) return plain;
  if (choice === 'auto' && !((lineBytesPerSecond ?? Infinity) < fastLineBytesPerSecond)) return plain;
  if (choice === 'auto' && raw.length > sampleBytes * 2) {
    const middle = raw.subarray(raw.length >> 1, (raw.length >> 1) + sampleBytes);
    const sample = await zstd(middle, zstdFast);
    if (sample.length > middle.length * worthRatio) return plain;
  }
  const payload = choice === 'lz4' ? await lz4Compress(raw) : await zstd(raw, zstdFast);
  if (payload.length > raw.length * worthRatio) return plain;
  return { compression: choice === 'lz4' ? compressions.lz4 : compressions.zstd, payload };
}

/** In one piece: the default hands out pieces of 16 KiB, to be put together again. */
const zstdFast = { params: { [constants.ZSTD_c_compressionLevel]: 1 }, chunkSize: maxDataBytes };

/** The raw payload, every granule proven. @throws HashMismatch, BadMessage */
export function unpack(data: Data): Buffer {
  const raw = inflate(data);
  let hashAt = 0;
  let at = 0;
  for (const run of data.runs) {
    if (run.zero) continue;
    for (let granule = 0; granule < run.count; granule++) {
      const length = granule === run.count - 1 ? run.tailBytes : granuleBytes;
      const sum = hash(raw.subarray(at, at + length));
      if (sum.compare(data.hashes, hashAt, hashAt + hashBytes) !== 0) {
        throw new ReplicationError(
          'HashMismatch',
          `granule ${run.first + granule} of object ${run.object} does not have the hash that came with it`,
        );
      }
      hashAt += hashBytes;
      at += length;
    }
  }
  return raw;
}

function inflate(data: Data): Buffer {
  if (data.compression === compressions.none) return data.payload;
  let raw: Buffer;
  try {
    raw =
      data.compression === compressions.zstd
        ? zstdDecompressSync(data.payload, {
            maxOutputLength: Math.max(1, data.rawBytes),
            chunkSize: Math.max(64, data.rawBytes),
          })
        : lz4Checked(data);
  } catch (error) {
    throw new ReplicationError('HashMismatch', 'Data.payload cannot be decompressed', { cause: error });
  }
  if (raw.length !== data.rawBytes) {
    throw new ReplicationError(
      'HashMismatch',
      `Data.payload has ${raw.length} bytes, not the ${data.rawBytes} of its runs`,
    );
  }
  return raw;
}

/** The library trusts the length in front of the block; a hostile one must not make us allocate. */
function lz4Checked(data: Data): Buffer {
  if (data.payload.length < 4 || data.payload.readUInt32LE(0) !== data.rawBytes) {
    throw new ReplicationError('HashMismatch', 'Data.payload does not begin with its length');
  }
  return lz4UncompressSync(data.payload);
}
