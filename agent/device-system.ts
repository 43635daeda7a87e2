/**
 * Real block volumes behind agent/device.ts: image files and block devices. Opened for reading only.
 *
 * A block device is read with O_DIRECT: its page cache is not that of the filesystem mounted on it, and buffered reads of
 * a mounted device were measured to be stale. An image file is read through the page cache, which loop devices and other
 * writers share.
 */
import { constants, promises as fs } from 'node:fs';
import type { Clock, DiskFile } from '../proto/effects.ts';
import { messageOf, ReplicationError } from '../proto/errors.ts';
import { blkgetsize64, ficlone, syncfs } from '../proto/libc.ts';
import { diskFile } from '../proto/system.ts';
import type { BlockDevice, Frozen, View } from './device.ts';
import { freezable, type Guard } from './guard.ts';
import { HookError } from './hooks.ts';
import { deviceText, readBlockDevices, readMounts, wholeFilesystem } from './mounts.ts';
import { sourceFacts } from './source-facts.ts';

/**
 * A file's times move in the kernel's ticks (4 ms at 250 Hz): a stamp younger than this could hide a write in the same tick.
 */
const tickMs = 20;

export interface SystemDeviceOptions {
  path: string;
  clock: Clock;
  guard: Guard;
  /** Resolved paths whose filesystems must never be frozen: the agent's own data. */
  protectedPaths: string[];
}

/**
 * Opened at use and closed by `rest`, so that an idle replication keeps nobody from detaching the device, and what is read
 * next is what stands at the path then.
 */
export function systemDevice(options: SystemDeviceOptions): BlockDevice {
  const { path, clock } = options;
  let opened: Promise<{ file: fs.FileHandle; reader: DiskFile; block: boolean }> | undefined;
  const use = () => (opened ??= open(path));
  return {
    async read(buffer, position) {
      const { reader, block } = await use();
      return readDirect(reader, block, buffer, position);
    },
    async nextData(position) {
      const { reader, block } = await use();
      // A block device has no holes that could be asked for.
      return block ? position : reader.nextData(position);
    },
    async nextHole(position) {
      const { reader, block } = await use();
      return block ? reader.size() : reader.nextHole(position);
    },
    async facts() {
      const facts = await sourceFacts(path, 'Block');
      if (!facts.exists) {
        throw new ReplicationError('SourceGone', `${path} does not exist; bring it back or delete the replication`);
      }
      return { sizeBytes: facts.sizeBytes, sourceId: facts.sourceId };
    },
    async stamp() {
      const { file, block } = await use();
      return block ? deviceStamp(file) : imageStamp(file, clock);
    },
    flush: () => flush(options),
    freeze: (maxFreezeMs, signal, ready) => freeze(options, maxFreezeMs, signal, ready),
    async reflink() {
      const { file, block } = await use();
      return block ? 'a block device has no reflinks' : reflink(path, file);
    },
    async rest() {
      const last = opened;
      opened = undefined;
      await last?.then(
        ({ file }) => file.close(),
        () => undefined,
      );
    },
  };
}

async function open(path: string): Promise<{ file: fs.FileHandle; reader: DiskFile; block: boolean }> {
  const block = await isBlockDevice(path);
  const file = await fs.open(path, constants.O_RDONLY | constants.O_NOCTTY | (block ? constants.O_DIRECT : 0));
  return { file, reader: diskFile(file), block };
}

async function isBlockDevice(path: string): Promise<boolean> {
  try {
    const stat = await fs.stat(path);
    if (stat.isBlockDevice()) return true;
    if (stat.isFile()) return false;
  } catch (error) {
    throw new ReplicationError(
      'SourceGone',
      `${path} cannot be read: ${messageOf(error)}; bring it back or delete the replication`,
    );
  }
  throw new ReplicationError('SourceGone', `${path} is neither an image file nor a block device`);
}

/** O_DIRECT wants lengths of whole sectors: the last read is longer than asked for, if the device is no multiple of them. */
async function readDirect(reader: DiskFile, block: boolean, buffer: Buffer, position: number): Promise<number> {
  const whole = Math.ceil(buffer.length / 4096) * 4096;
  if (!block || whole === buffer.length) return reader.read(buffer, position);
  const wider = Buffer.from(buffer.buffer, buffer.byteOffset, whole);
  return Math.min(buffer.length, await reader.read(wider, position));
}

/**
 * Times, size and inode of the image. fdatasync first: a page that is mapped and dirty is then written back, and the
 * next store through the mapping faults and moves the times. It is not a write to the volume.
 */
async function imageStamp(file: fs.FileHandle, clock: Clock): Promise<{ stamp: string; reason: string }> {
  for (;;) {
    await file.datasync();
    const { ino, size, mtimeNs, ctimeNs } = await file.stat({ bigint: true });
    const ageMs = clock.nowMs() - Number((mtimeNs > ctimeNs ? mtimeNs : ctimeNs) / 1_000_000n);
    // A clock that was set back would make us wait for long; then the stamp is simply another one next time.
    if (ageMs >= tickMs || ageMs < -1000) return { stamp: `${ino}:${size}:${mtimeNs}:${ctimeNs}`, reason: '' };
    await clock.sleep(tickMs - ageMs);
  }
}

/** Sectors written and discarded, by the kernel's own counters, and the sequence number that a re-attached disk changes. */
async function deviceStamp(file: fs.FileHandle): Promise<{ stamp: string | undefined; reason: string }> {
  const sys = `/sys/dev/block/${deviceText((await file.stat({ bigint: true })).rdev)}`;
  try {
    // First, and alone: a write that is over by then is counted in what is read next. The other way round one that ends
    // in between would be seen by neither.
    const inflight = await fs.readFile(`${sys}/inflight`, 'utf8');
    const [stat, iostats, diskseq] = await Promise.all([
      fs.readFile(`${sys}/stat`, 'utf8'),
      fs.readFile(`${sys}/queue/iostats`, 'utf8').catch(() => fs.readFile(`${sys}/../queue/iostats`, 'utf8')),
      fs.readFile(`${sys}/diskseq`, 'utf8').catch(() => ''),
    ]);
    if (iostats.trim() !== '1')
      return { stamp: undefined, reason: `${sys}/queue/iostats is off; turn it on so that writes are counted` };
    // Documentation/admin-guide/iostats: field 7 sectors written, 14 sectors discarded; inflight: reads, writes.
    const fields = stat.trim().split(/\s+/);
    if (Number(inflight.trim().split(/\s+/)[1]) > 0) return { stamp: undefined, reason: 'writes are under way' };
    return { stamp: `${diskseq.trim()}:${await blkgetsize64(file.fd)}:${fields[6]}:${fields[13] ?? ''}`, reason: '' };
  } catch (error) {
    return { stamp: undefined, reason: `the device's counters cannot be read: ${messageOf(error)}` };
  }
}

/** The mount point of what may be frozen, or why nothing may. */
async function freezeTarget(options: SystemDeviceOptions): Promise<{ mountPoint: string } | string> {
  const [mounts, devices] = await Promise.all([readMounts(), readBlockDevices()]);
  const { mount, reason } = await wholeFilesystem(options.path, mounts, devices);
  if (!mount) return reason;
  const refusal = freezable(mount.mountPoint, mounts, devices, options.protectedPaths);
  return refusal ?? { mountPoint: mount.mountPoint };
}

async function flush(options: SystemDeviceOptions): Promise<void> {
  const target = await freezeTarget(options);
  if (typeof target === 'string') return;
  // Unmounted meanwhile, perhaps: then that has flushed it.
  const file = await fs.open(target.mountPoint, constants.O_RDONLY | constants.O_DIRECTORY).catch(() => undefined);
  if (!file) return;
  await using held = file;
  await syncfs(held.fd);
}

async function freeze(
  options: SystemDeviceOptions,
  maxFreezeMs: number,
  signal: AbortSignal,
  ready?: () => Promise<void>,
): Promise<Frozen | string> {
  const target = await freezeTarget(options);
  if (typeof target === 'string') return target;
  try {
    const held = await options.guard.freeze(target.mountPoint, maxFreezeMs, signal, ready);
    return {
      async thaw() {
        return { held: await held.thaw(), freezeUs: held.frozenUs };
      },
    };
  } catch (error) {
    signal.throwIfAborted();
    // What a hook prevents shall not become a point of a lesser kind.
    if (error instanceof HookError) throw error;
    return messageOf(error);
  }
}

/**
 * A clone into a nameless file beside the image (O_TMPFILE): it shares the blocks, is gone when closed or when we die,
 * and never shows in the folder.
 */
async function reflink(path: string, source: fs.FileHandle): Promise<View | string> {
  const folder = await fs.realpath(path).then((real) => real.slice(0, real.lastIndexOf('/')) || '/');
  let clone: fs.FileHandle;
  try {
    clone = await fs.open(folder, O_TMPFILE | constants.O_RDWR, 0o600);
  } catch (error) {
    return `no nameless file can be made in ${folder}: ${messageOf(error)}`;
  }
  try {
    await ficlone(clone.fd, source.fd);
    const reader = diskFile(clone);
    return {
      sizeBytes: await reader.size(),
      read: (buffer, position) => reader.read(buffer, position),
      nextData: (position) => reader.nextData(position),
      nextHole: (position) => reader.nextHole(position),
      release: () => clone.close(),
    };
  } catch (error) {
    await clone.close();
    return `the filesystem of ${path} has no reflinks: ${messageOf(error)}`;
  }
}

/** open(2); Node has no name for it. The same on x86-64 and arm64 but for O_DIRECTORY, which it includes. */
const O_TMPFILE = 0o20000000 | constants.O_DIRECTORY;
