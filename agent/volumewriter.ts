/**
 * A block volume that a recovery writes: an image file or a block device of this node.
 *
 * Guarantees: opened only when nobody else uses it - a device exclusively (O_EXCL: not mounted, nothing built on it, and nobody
 * can do so meanwhile), an image when no other process has it open and no loop device lies on it; what is there already is
 * not written again; holes and zeros stay without bytes where the filesystem can.
 * Failure: TargetRefused, SourceInUse with what to do; a write that fails is the caller's to tell, the mark says that it is half.
 */
import { constants, promises as fs } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import type { DiskFile } from '../proto/effects.ts';
import { messageOf, ReplicationError, systemErrorCode } from '../proto/errors.ts';
import { granuleBytes, granuleHash, hashBytes, isZero, zeroHash } from '../proto/granule.ts';
import { alignedPool, hasOtherUsers } from '../proto/libc.ts';
import { runBytes, unpack } from '../proto/payload.ts';
import { diskFile } from '../proto/system.ts';
import type { Data } from '../proto/wire.ts';
import { readBlockDevices, readMounts, wholeFilesystem } from './mounts.ts';

const pieceBytes = 1 << 20;
/** What has just been let go, by a loop device say, is open for a moment more. */
const mostLooks = 10;
const lookAgainMs = 100;

export interface VolumeWriter {
  /** Of `count` granules from `first` on, as they are on the volume now. */
  hashes(first: number, count: number): Promise<Buffer>;
  /** Proves every granule, then writes what differs. @throws HashMismatch, TargetFailed */
  write(data: Data): Promise<void>;
  /** All that was written is durable. */
  sync(): Promise<void>;
  close(): Promise<void>;
}

/** Why it cannot be written now; undefined: it can. Looks only. */
export async function inUse(real: string): Promise<string | undefined> {
  const [mounts, devices] = await Promise.all([readMounts(), readBlockDevices()]);
  const { mount } = await wholeFilesystem(real, mounts, devices);
  if (mount) return `${real} is mounted at ${mount.mountPoint}; stop what uses it and unmount it`;
  const isDevice = (await fs.stat(real)).isBlockDevice();
  try {
    const file = await fs.open(real, constants.O_RDWR | constants.O_NOCTTY | (isDevice ? constants.O_EXCL : 0));
    await using held = file;
    if (isDevice) return undefined;
    for (let looks = 0; looks < mostLooks; looks++) {
      if (!(await hasOtherUsers(held.fd))) return undefined;
      await delay(lookAgainMs);
    }
    return `${real} is open elsewhere on this node (a process, or a loop device); end that first`;
  } catch (error) {
    if (systemErrorCode(error) !== 'EBUSY') throw error;
    return `${real} is in use: mounted, or part of a device that is built on it; end that first`;
  }
}

/**
 * @param real resolved, and allowed to be written
 * @param sizeBytes of what it shall hold; on a device more may follow, an image is cut or made longer
 * @param begin called when it is ours, before anything of it changes
 */
export async function openWriter(real: string, sizeBytes: number, begin: () => Promise<void>): Promise<VolumeWriter> {
  const why = await inUse(real);
  if (why !== undefined) throw new ReplicationError('SourceInUse', why);
  const isDevice = (await fs.stat(real)).isBlockDevice();
  const flags = constants.O_RDWR | constants.O_NOCTTY | constants.O_NOFOLLOW | (isDevice ? constants.O_EXCL : 0);
  const handle = await fs.open(real, flags).catch((error: unknown) => {
    throw new ReplicationError('SourceInUse', `${real} cannot be opened for writing: ${messageOf(error)}`);
  });
  try {
    const file = diskFile(handle);
    const size = await file.size();
    if (isDevice && size < sizeBytes)
      throw new ReplicationError(
        'TargetRefused',
        `${real} has ${size} bytes, what it shall hold ${sizeBytes}: grow it`,
      );
    await begin();
    if (!isDevice && size !== sizeBytes) await file.truncate(sizeBytes);
    // Its own cache must not stand in for the disk when a device is read again.
    const reading = isDevice ? await fs.open(real, constants.O_RDONLY | constants.O_DIRECT) : undefined;
    return writer(file, reading, sizeBytes);
  } catch (error) {
    await handle.close();
    throw error;
  }
}

function writer(file: DiskFile, direct: fs.FileHandle | undefined, sizeBytes: number): VolumeWriter {
  const reader = direct ? diskFile(direct) : file;
  const [buffer = Buffer.alloc(0)] = alignedPool(pieceBytes);

  /** Fills the buffer from there; whole pages of a device, whose last ones may lie beyond what we own. */
  async function read(position: number, length: number): Promise<Buffer> {
    const wanted = direct ? Math.min(pieceBytes, Math.ceil(length / 4096) * 4096) : length;
    const got = await reader.read(buffer.subarray(0, wanted), position);
    if (got < length) throw new ReplicationError('TargetFailed', `the volume ends at ${position + got} bytes`);
    return buffer.subarray(0, length);
  }

  async function isBlank(position: number, length: number): Promise<boolean> {
    const data = direct ? position : await file.nextData(position);
    if (data === undefined || data >= position + length) return true;
    for (let at = 0; at < length; at += pieceBytes)
      if (!isZero(await read(position + at, Math.min(pieceBytes, length - at)))) return false;
    return true;
  }

  async function zero(position: number, length: number): Promise<void> {
    for (let at = 0; at < length; at += pieceBytes) {
      const part = Math.min(pieceBytes, length - at);
      if (!(await isBlank(position + at, part))) await file.zero(position + at, part);
    }
  }

  return {
    async hashes(first, count) {
      const result = Buffer.alloc(count * hashBytes);
      const end = Math.min(sizeBytes, (first + count) * granuleBytes);
      let done = 0;
      for (let at = first * granuleBytes; at < end; at += pieceBytes) {
        const length = Math.min(pieceBytes, end - at);
        const data = direct ? at : await file.nextData(at);
        const bytes = data === undefined || data >= at + length ? undefined : await read(at, length);
        for (let from = 0; from < length; from += granuleBytes, done += hashBytes)
          (bytes ? granuleHash(bytes.subarray(from, Math.min(length, from + granuleBytes))) : zeroHash).copy(
            result,
            done,
          );
      }
      return result;
    },
    async write(data) {
      const raw = unpack(data);
      let from = 0;
      for (const run of data.runs) {
        const [position, length] = [run.first * granuleBytes, runBytes(run)];
        if (run.object !== 0 || position + length > sizeBytes)
          throw new ReplicationError('BadMessage', 'Data.runs: beyond the end of the volume');
        if (run.zero) await zero(position, length);
        else await file.write([raw.subarray(from, (from += length))], position);
      }
    },
    sync: () => file.sync(),
    async close() {
      await direct?.close();
      await file.close();
    },
  };
}
