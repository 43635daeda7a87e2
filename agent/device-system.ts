/**
 * Real block volumes behind agent/device.ts: image files and block devices. Opened for reading only.
 *
 * A block device is read with O_DIRECT: its page cache is not that of the filesystem mounted on it, and buffered reads of
 * a mounted device were measured to be stale. An image file is read through the page cache, which loop devices and other
 * writers share.
 */
import { constants, promises as fs, statfsSync } from 'node:fs';
import type { Clock, DiskFile } from '../proto/effects.ts';
import { asReplicationError, messageOf, ReplicationError } from '../proto/errors.ts';
import { blkgetsize64, ficlone, syncfs } from '../proto/libc.ts';
import { diskFile } from '../proto/system.ts';
import { blockStatOf, countsReads, tryBlockStat } from './blockstat.ts';
import type { BlockDevice, Frozen, View } from './device.ts';
import { freezable, type Freeze, type Guard } from './guard.ts';
import { HookError } from './hooks.ts';
import { mappingDigest } from './mapping.ts';
import { deviceText, readBlockDevices, readMounts, wholeFilesystem, type Mount } from './mounts.ts';
import { Refusal, refusalOf } from './refusal.ts';
import { sourceFacts } from './source-facts.ts';
import { groupTarget } from './standstill.ts';
import { workloadOf } from './workload.ts';

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
  /** Whose pods' processes may be stopped; nobody's unless given. */
  kubelet?: string;
}

/**
 * Opened at use and closed by `rest`, so that an idle replication keeps nobody from detaching the device, and what is read
 * next is what stands at the path then.
 */
export function systemDevice(options: SystemDeviceOptions): BlockDevice {
  const { path, clock } = options;
  let opened: Promise<{ file: fs.FileHandle; reader: DiskFile; block: boolean }> | undefined;
  const use = () => (opened ??= open(path));
  let known: { key: string; facts: { sizeBytes: number; sourceId: string } } | undefined;
  const rest = async (): Promise<void> => {
    const last = opened;
    opened = undefined;
    await last?.then(
      ({ file }) => file.close(),
      () => undefined,
    );
  };
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
      // Asked for at each look: they are read only when something was written, or something else stands at the path. The key
      // first: what is written meanwhile makes another one.
      const key = await factsKey(path, clock);
      if (key !== undefined && known?.key === key) return known.facts;
      const { exists, sizeBytes, sourceId } = await sourceFacts(path, 'Block');
      if (!exists) {
        throw new ReplicationError('SourceGone', `${path} does not exist; bring it back or delete the replication`);
      }
      const facts = { sizeBytes, sourceId };
      known = key === undefined ? undefined : { key, facts };
      return facts;
    },
    async size() {
      const { file, block } = await use();
      return block ? await blkgetsize64(file.fd) : (await file.stat()).size;
    },
    async stamp() {
      const { file, block } = await use();
      if (!block) return imageStamp(file, clock);
      const stamp = await deviceStamp(path, file);
      // What is read after this shall be what the stamp is of.
      if (stamp.stamp === undefined) await rest();
      return stamp;
    },
    flush: () => flush(options),
    freeze: (maxFreezeMs, signal, ready) => freeze(options, maxFreezeMs, signal, ready),
    async stopWriters(maxFreezeMs, signal, ready) {
      const { file } = await use();
      return stopWriters(options, file, { maxFreezeMs, ready }, signal);
    },
    async reflink() {
      const { file, block } = await use();
      return block ? 'a block device has no reflinks' : reflink(path, file);
    },
    rest,
  };
}

/** Another one whenever facts may be others; undefined while that cannot be told. */
async function factsKey(path: string, clock: Clock): Promise<string | undefined> {
  try {
    const stat = await fs.stat(path, { bigint: true });
    const { dev, ino, rdev, size, mtimeNs, ctimeNs } = stat;
    if (stat.isBlockDevice()) {
      const { bootId, device, diskseq, sizeBytes, sectors, counted, writing } = blockStatOf(deviceText(rdev));
      if (counted !== 'yes' || writing > 0) return undefined;
      return [bootId, device, diskseq, sizeBytes, sectors].join(' ');
    }
    const ageMs = clock.nowMs() - Number((mtimeNs > ctimeNs ? mtimeNs : ctimeNs) / 1_000_000n);
    return ageMs < tickMs ? undefined : [dev, ino, size, mtimeNs, ctimeNs].join(' ');
  } catch {
    return undefined; // said by what reads them
  }
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

/** Sectors written and discarded, by the kernel's own counters, and what tells that it is the same device with the same content. */
async function deviceStamp(path: string, file: fs.FileHandle): Promise<{ stamp: string | undefined; reason: string }> {
  const stat = tryBlockStat(path);
  if (typeof stat === 'string') return { stamp: undefined, reason: stat };
  const { device, diskseq, attached, sizeBytes, sectors, counted, writing, mapping } = stat;
  if (device !== deviceText((await file.stat({ bigint: true })).rdev))
    return { stamp: undefined, reason: 'another device is behind the path' };
  if (counted === 'no')
    return { stamp: undefined, reason: 'queue/iostats of the device is off; turn it on so that writes are counted' };
  if (counted === 'perhaps' && !(await countsReads(path)))
    return { stamp: undefined, reason: 'reads of the device do not show in its counters, so writes may not either' };
  if (writing > 0) return { stamp: undefined, reason: 'writes are under way' };
  return {
    stamp: [device, diskseq, attached, sizeBytes, sectors, mappingDigest(mapping)].join(':'),
    reason: '',
  };
}

/** What may be frozen, or why nothing may. */
async function freezeTarget(options: SystemDeviceOptions): Promise<Mount | string> {
  const [mounts, devices] = await Promise.all([readMounts(), readBlockDevices()]);
  const { mount, reason } = await wholeFilesystem(options.path, mounts, devices);
  if (!mount) return reason;
  const refusal = freezable(mount.mountPoint, mounts, devices, options.protectedPaths);
  return refusal ?? mount;
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
): Promise<Frozen | Refusal> {
  const target = await freezeTarget(options);
  if (typeof target === 'string') return new Refusal('unsupported', target);
  try {
    const held = await options.guard.freeze(target.mountPoint, maxFreezeMs, signal, ready);
    const before = sectorsWritten(options.path);
    return {
      async thaw() {
        return { held: await held.thaw(), freezeUs: held.frozenUs };
      },
      isAlone: () => before !== undefined && sectorsWritten(options.path) === before + thawSectors(target),
    };
  } catch (error) {
    signal.throwIfAborted();
    // What a hook prevents shall not become a point of a lesser kind.
    if (error instanceof HookError) throw error;
    return refusalOf(asReplicationError(error), 'freeze');
  }
}

/** Flushed before, so that there is little to flush while they stand, and then all that is left. */
async function stopWriters(
  options: SystemDeviceOptions,
  file: fs.FileHandle,
  { maxFreezeMs, ready }: { maxFreezeMs: number; ready: (() => Promise<void>) | undefined },
  signal: AbortSignal,
): Promise<Frozen | Refusal> {
  const { path, kubelet, guard } = options;
  if (kubelet === undefined) return new Refusal('unsupported', 'it is used by no pod');
  const workload = await workloadOf(path, kubelet);
  if (typeof workload === 'string') return new Refusal('unsupported', workload);
  await flushAll(path, file);
  let held: Freeze;
  try {
    held = await guard.freeze(groupTarget(workload.folder), maxFreezeMs, signal, ready);
  } catch (error) {
    signal.throwIfAborted();
    return refusalOf(asReplicationError(error), 'freeze');
  }
  try {
    await flushAll(path, file);
  } catch (error) {
    await held.thaw();
    throw error;
  }
  return {
    async thaw() {
      return { held: await held.thaw(), freezeUs: held.frozenUs };
    },
    isAlone: () => false,
  };
}

/** What is written and not yet on the volume: in its own page cache, and in that of a filesystem on it. */
async function flushAll(path: string, file: fs.FileHandle): Promise<void> {
  const { mount } = await wholeFilesystem(path, await readMounts(), await readBlockDevices());
  const mounted = mount && (await fs.open(mount.mountPoint, constants.O_RDONLY | constants.O_DIRECTORY).catch(() => undefined)); // prettier-ignore
  if (mounted) {
    await using held = mounted;
    await syncfs(held.fd);
  }
  await file.datasync();
}

/**
 * Sectors written to the volume, whoever wrote them; undefined while a write is under way, or when they are not counted. Of an
 * image nobody counts them: what is mounted does not see what is written to the file beside it.
 */
function sectorsWritten(path: string): number | undefined {
  const stat = tryBlockStat(path);
  return typeof stat !== 'string' && stat.counted === 'yes' && stat.writing === 0 ? stat.sectors : undefined;
}

/** What FITHAW itself writes: ext4 and ext2 their superblock, one block. The others nothing. */
function thawSectors({ type, mountPoint }: Mount): number {
  return type.startsWith('ext') ? statfsSync(mountPoint).bsize / 512 : 0;
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
