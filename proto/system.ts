/**
 * The real clock, randomness and disk behind proto/effects.ts.
 *
 * Guarantees: reads fill their buffer and writes write all, however short the kernel makes them; what cannot be punched as a
 * hole is written as zeros; a clone that fails or is aborted leaves nothing behind. Where the filesystem cannot tell holes
 * (or the path is a block device) everything counts as data. Failures are Node's system errors; after a failed sync nothing
 * since the last good one may be relied on, as the kernel forgets what it could not write.
 *
 * New files are for their owner only (0600). No locking, no retries, no caching of descriptors: that is for those who call.
 */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { constants, promises as fs } from 'node:fs';
import { join } from 'node:path';
import { systemErrorCode } from './errors.ts';
import type { Clock, Disk, DiskFile, Effects, Random } from './effects.ts';
import {
  blkgetsize64,
  copyFileRange,
  fallocatePunch,
  ficlone,
  realtimeMs,
  seekData,
  seekHole,
  setImmutable,
  startWriteback,
} from './libc.ts';

/** Pieces in which a clone without reflink is copied: how soon an abort is seen and progress told. */
const copyBytes = 1 << 20;
const zeros = Buffer.alloc(copyBytes);
const longestTimerMs = 2 ** 31 - 1; // setTimeout fires at once beyond it

export const systemClock: Clock = {
  nowMs: realtimeMs,
  monotonicMs: () => performance.now(),
  async sleep(ms, signal) {
    const end = performance.now() + ms;
    do {
      const leftMs = Math.min(Math.max(0, end - performance.now()), longestTimerMs);
      signal?.throwIfAborted();
      await new Promise<void>((resolve, reject) => {
        const aborted = (): void => {
          clearTimeout(timer);
          reject(signal?.reason as Error);
        };
        const timer = setTimeout(() => {
          signal?.removeEventListener('abort', aborted);
          resolve();
        }, Math.ceil(leftMs));
        signal?.addEventListener('abort', aborted, { once: true });
      });
    } while (performance.now() < end);
  },
};

export const systemRandom: Random = { bytes: (length) => randomBytes(length) };

export const systemDisk: Disk = {
  async open(path, mode) {
    const flags = mode === 'read' ? constants.O_RDONLY : constants.O_RDWR | constants.O_CREAT;
    return diskFile(await fs.open(path, flags, 0o600));
  },
  async mkdir(path) {
    await fs.mkdir(path, { recursive: true });
  },
  async list(path) {
    return (await fs.readdir(path).catch(ifAbsent([]))).sort();
  },
  async size(path) {
    const file = await fs.open(path, constants.O_RDONLY | constants.O_NONBLOCK).catch(ifAbsent(undefined));
    if (!file) return undefined;
    await using held = file;
    return await sizeOf(held); // awaited here: else the descriptor is closed under the call
  },
  async rename(from, to) {
    await fs.rename(from, to);
  },
  async remove(path) {
    await fs.rm(path, { recursive: true, force: true });
  },
  async syncDirectory(path) {
    await using directory = await fs.open(path, constants.O_RDONLY | constants.O_DIRECTORY);
    await directory.sync();
  },
  async clone(from, to, signal, progress) {
    signal?.throwIfAborted();
    await using source = await fs.open(from, constants.O_RDONLY);
    const target = await fs.open(to, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o600);
    try {
      return await cloneInto(source, target, signal, progress);
    } catch (error) {
      await fs.rm(to, { force: true });
      throw error;
    } finally {
      await target.close();
    }
  },
  async immutable(path, on) {
    await using file = await fs.open(path, constants.O_RDONLY);
    try {
      await setImmutable(file.fd, on);
      return true;
    } catch (error) {
      if (!isUnsupported(error) && systemErrorCode(error) !== 'EPERM') throw error;
      return false;
    }
  },
  async usage(path) {
    const stat = await fs.lstat(path).catch(ifAbsent(undefined));
    if (!stat) return 0;
    let bytes = stat.blocks * 512;
    if (!stat.isDirectory()) return bytes;
    // One after the other: millions of files must not be in memory, nor keep others from the disk.
    for await (const entry of await fs.opendir(path)) bytes += (await systemDisk.usage?.(join(path, entry.name))) ?? 0;
    return bytes;
  },
  async space(path) {
    const { blocks, bavail, bsize } = await fs.statfs(path);
    return { capacityBytes: blocks * bsize, freeBytes: bavail * bsize };
  },
};

export const systemEffects: Effects = { clock: systemClock, random: systemRandom, disk: systemDisk };

/** An open file of node:fs as the interface of the effects; close() closes it. */
export function diskFile(file: fs.FileHandle): DiskFile {
  const writeback = new Writeback(file.fd);
  return {
    async read(buffer, position) {
      let done = 0;
      while (done < buffer.length) {
        const { bytesRead } = await file.read(buffer, done, buffer.length - done, position + done);
        if (bytesRead === 0) break;
        done += bytesRead;
      }
      return done;
    },
    write: (buffers, position) => writeAll(file, buffers, position),
    async zero(position, length) {
      const end = Math.min(position + length, await sizeOf(file));
      if (end <= position) return;
      try {
        await fallocatePunch(file.fd, position, end - position);
      } catch (error) {
        if (!isUnsupported(error)) throw error;
        for (let at = position; at < end; at += copyBytes) {
          await writeAll(file, [zeros.subarray(0, Math.min(copyBytes, end - at))], at);
        }
      }
    },
    nextData: (position) => nextData(file, position),
    nextHole: (position) => nextHole(file, position),
    startSync: (position, length) => writeback.start(position, position + length),
    async truncate(size) {
      await file.truncate(size);
    },
    size: () => sizeOf(file),
    async sync() {
      // fdatasync: leaves out only what reading the bytes back does not need, that is the times; size and extents are in.
      await file.datasync();
    },
    async close() {
      await writeback.ended;
      await file.close();
    },
  };
}

/** One call at a time: when the disk is slower than what comes, the ranges that wait become one. */
class Writeback {
  readonly #fd: number;
  #waiting: { from: number; to: number } | undefined;
  /** No call uses the descriptor any more. */
  ended: Promise<void> | undefined;

  constructor(fd: number) {
    this.#fd = fd;
  }

  start(from: number, to: number): void {
    const { from: first = from, to: last = to } = this.#waiting ?? {};
    this.#waiting = { from: Math.min(from, first), to: Math.max(to, last) };
    this.ended ??= this.#run();
  }

  async #run(): Promise<void> {
    for (let next = this.#waiting; next; next = this.#waiting) {
      this.#waiting = undefined;
      // Where it cannot be, the sync that follows does all the work, and says what fails.
      await startWriteback(this.#fd, next.from, next.to - next.from).catch(() => undefined);
    }
    this.ended = undefined;
  }
}

async function writeAll(file: fs.FileHandle, buffers: Uint8Array[], position: number): Promise<void> {
  let left = buffers.filter((buffer) => buffer.length > 0);
  let at = position;
  while (left.length > 0) {
    let { bytesWritten } = await file.writev(left, at);
    assert(bytesWritten > 0, 'a write of nothing');
    at += bytesWritten;
    let whole = 0;
    for (const buffer of left) {
      if (bytesWritten < buffer.length) break;
      bytesWritten -= buffer.length;
      whole++;
    }
    left = left.slice(whole);
    if (bytesWritten > 0 && left[0]) left[0] = left[0].subarray(bytesWritten);
  }
}

async function sizeOf(file: fs.FileHandle): Promise<number> {
  const stat = await file.stat();
  return stat.isBlockDevice() ? blkgetsize64(file.fd) : stat.size;
}

async function nextData(file: fs.FileHandle, position: number): Promise<number | undefined> {
  try {
    return await seekData(file.fd, position);
  } catch (error) {
    if (!isUnsupported(error)) throw error;
    return position < (await sizeOf(file)) ? position : undefined;
  }
}

async function nextHole(file: fs.FileHandle, position: number): Promise<number> {
  try {
    return (await seekHole(file.fd, position)) ?? (await sizeOf(file));
  } catch (error) {
    if (!isUnsupported(error)) throw error;
    return sizeOf(file);
  }
}

async function cloneInto(
  source: fs.FileHandle,
  target: fs.FileHandle,
  signal: AbortSignal | undefined,
  progress: ((bytesDone: number) => void) | undefined,
): Promise<'reflink' | 'copy'> {
  const size = await sizeOf(source);
  try {
    await ficlone(target.fd, source.fd);
    progress?.(size);
    return 'reflink';
  } catch (error) {
    if (!isUnsupported(error)) throw error;
  }
  await target.truncate(size);
  const copyPiece = copier(source, target);
  let at = (await nextData(source, 0)) ?? size;
  while (at < size) {
    const end = Math.min(size, await nextHole(source, at));
    while (at < end) {
      signal?.throwIfAborted();
      at += await copyPiece(at, Math.min(copyBytes, end - at));
      progress?.(at);
    }
    at = (await nextData(source, at)) ?? size;
  }
  signal?.throwIfAborted();
  progress?.(size);
  return 'copy';
}

/** Copies a piece inside the kernel as long as it can, else through a buffer. Answers how many bytes, at least 1. */
function copier(source: fs.FileHandle, target: fs.FileHandle): (at: number, length: number) => Promise<number> {
  let buffer: Buffer | undefined;
  return async (at, length) => {
    if (!buffer) {
      try {
        const copied = await copyFileRange(source.fd, at, target.fd, at, length);
        if (copied > 0) return copied;
      } catch (error) {
        if (!isUnsupported(error)) throw error;
      }
      buffer = Buffer.alloc(copyBytes);
    }
    const { bytesRead } = await source.read(buffer, 0, length, at);
    if (bytesRead === 0) throw Object.assign(new Error('EIO: the file became shorter, copy'), { code: 'EIO' });
    await writeAll(target, [buffer.subarray(0, bytesRead)], at);
    return bytesRead;
  };
}

/** The kernel, the filesystem or the pair of them cannot do this; there is another way. */
function isUnsupported(error: unknown): boolean {
  return ['ENOTSUP', 'ENOSYS', 'EXDEV', 'EINVAL', 'ENOTTY', 'ENODEV'].includes(systemErrorCode(error) ?? '');
}

function ifAbsent<T>(value: T): (error: unknown) => T {
  return (error) => {
    if (!['ENOENT', 'ENOTDIR'].includes(systemErrorCode(error) ?? '')) throw error;
    return value;
  };
}
