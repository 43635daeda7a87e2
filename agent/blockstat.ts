/**
 * What the kernel says of a block device in /sys: which disk it is, what was written to it, what is under way.
 *
 * Synchronous: these files are answered from memory, and a cut counts every millisecond. Nothing is opened but /sys, so
 * that the device may be detached at any time. Documentation/admin-guide/iostats, Documentation/ABI/stable/sysfs-block.
 */
import fs, { constants } from 'node:fs';
import { messageOf } from '../proto/errors.ts';
import { alignedPool } from '../proto/libc.ts';
import { readMapping, type Table } from './mapping.ts';
import { deviceText } from './mounts.ts';

export interface BlockStat {
  /** Of this boot of the kernel. */
  bootId: string;
  /** `major:minor` of the volume. */
  device: string;
  /** major << 20 | minor of the whole disk: writes to its partitions are told under this number. */
  disk: number;
  isPartition: boolean;
  /** Where the volume begins on that disk, in sectors of 512 bytes. */
  startSector: number;
  sizeBytes: number;
  /** Another one whenever a disk was attached; empty where the kernel does not count them (before 5.15). */
  diskseq: string;
  /** Another one whenever a disk or a loop device's file was attached, by what /sys has made for it. Of this boot. */
  attached: string;
  /** What it is made of, where it is of device-mapper. */
  mapping: readonly Table[];
  /**
   * Whether the counters count. `perhaps`: a driver without requests. Some of those never count (the head of several NVMe paths,
   * before Linux 6.4), whatever queue/iostats says; that they do must be seen: by reading, which is counted likewise.
   */
  counted: 'yes' | 'perhaps' | 'no';
  /** queue/iostats */
  iostats: boolean;
  /** Of device-mapper, and without requests. */
  splitsBios: boolean;
  /** Sectors written and discarded. */
  sectors: number;
  /** Sectors read. */
  readSectors: number;
  /** Writes under way; read before the sectors, so that what ended in between is counted there. */
  writing: number;
}

/** @param path of a block device; links are followed. @throws Error when it is none or gone */
export function blockStat(path: string): BlockStat {
  const stat = fs.statSync(path, { bigint: true });
  if (!stat.isBlockDevice()) throw new Error(`${path} is no block device`);
  return blockStatOf(deviceText(stat.rdev));
}

/** @param device `major:minor`. @throws Error when it is gone */
export function blockStatOf(device: string): BlockStat {
  const sys = `/sys/dev/block/${device}`;
  const isPartition = fs.existsSync(`${sys}/partition`);
  const diskSys = isPartition ? `${sys}/..` : sys;
  const [major = 0, minor = 0] = text(`${diskSys}/dev`).split(':').map(Number);
  const writing = Number(text(`${sys}/inflight`).split(/\s+/)[1]);
  const hasRequests = fs.existsSync(`${diskSys}/mq`);
  const fields = text(`${sys}/stat`).split(/\s+/).map(Number);
  const iostats = text(`${diskSys}/queue/iostats`) === '1';
  return {
    bootId: (bootId ??= text('/proc/sys/kernel/random/boot_id')),
    device,
    disk: major * 2 ** 20 + minor,
    isPartition,
    startSector: isPartition ? Number(text(`${sys}/start`)) : 0,
    sizeBytes: Number(text(`${sys}/size`)) * 512,
    diskseq: optional(`${diskSys}/diskseq`),
    attached: `${inode(diskSys)}.${inode(`${diskSys}/loop`)}`,
    mapping: readMapping(device),
    counted: !hasRequests ? 'perhaps' : iostats ? 'yes' : 'no',
    iostats,
    splitsBios: !hasRequests && fs.existsSync(`${diskSys}/dm`),
    // Fields 7, 14 and 3: sectors written, discarded, read.
    sectors: (fields[6] ?? 0) + (fields[13] ?? 0),
    readSectors: fields[2] ?? 0,
    writing,
  };
}

/** As blockStat, with the reason in place of an error. */
export function tryBlockStat(path: string): BlockStat | string {
  try {
    return blockStat(path);
  } catch (error) {
    return `the device's counters cannot be read: ${messageOf(error)}`;
  }
}

let page: Buffer | undefined;

/** Whether reading some of the device shows in its counters; then its writes do. */
export async function countsReads(path: string): Promise<boolean> {
  const before = blockStat(path).readSectors;
  page ??= alignedPool(4096)[0] as Buffer;
  await using file = await fs.promises.open(path, constants.O_RDONLY | constants.O_DIRECT);
  await file.read(page, 0, page.length, 0);
  return blockStat(path).readSectors !== before;
}

let bootId: string | undefined;

function text(path: string): string {
  return fs.readFileSync(path, 'utf8').trim();
}

function inode(path: string): string {
  return String(fs.statSync(path, { bigint: true, throwIfNoEntry: false })?.ino ?? '');
}

function optional(path: string): string {
  try {
    return text(path);
  } catch {
    return '';
  }
}
