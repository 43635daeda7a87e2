/**
 * What the kernel says of a block device in /sys: which disk it is, what was written to it, what is under way.
 *
 * Synchronous: these files are answered from memory, and a cut counts every millisecond. Nothing is opened but /sys, so
 * that the device may be detached at any time. Documentation/admin-guide/iostats, Documentation/ABI/stable/sysfs-block.
 */
import fs from 'node:fs';
import { messageOf } from '../proto/errors.ts';
import { deviceText } from './mounts.ts';

export interface BlockStat {
  /** Of this boot of the kernel. */
  bootId: string;
  /** `major:minor` of the volume. */
  device: string;
  /** major << 20 | minor of the whole disk: writes to its partitions are told under this number. */
  disk: number;
  /** Where the volume begins on that disk, in sectors of 512 bytes. */
  startSector: number;
  sizeBytes: number;
  /** Another one whenever a disk was attached; empty where the kernel does not count them (before 5.15). */
  diskseq: string;
  /**
   * Whether the counters count. `perhaps`: queue/iostats is off on a driver without requests (dm before Linux 6.4, zram), many of
   * which count all the same; that they do must be seen.
   */
  counted: 'yes' | 'perhaps' | 'no';
  /** Of device-mapper, and without requests. */
  splitsBios: boolean;
  /** Sectors written and discarded. */
  sectors: number;
  /** Writes under way; read before the sectors, so that what ended in between is counted there. */
  writing: number;
}

/** @param path of a block device; links are followed. @throws Error when it is none or gone */
export function blockStat(path: string): BlockStat {
  const stat = fs.statSync(path, { bigint: true });
  if (!stat.isBlockDevice()) throw new Error(`${path} is no block device`);
  const device = deviceText(stat.rdev);
  const sys = `/sys/dev/block/${device}`;
  const isPartition = fs.existsSync(`${sys}/partition`);
  const diskSys = isPartition ? `${sys}/..` : sys;
  const [major = 0, minor = 0] = text(`${diskSys}/dev`).split(':').map(Number);
  const writing = Number(text(`${sys}/inflight`).split(/\s+/)[1]);
  const hasRequests = fs.existsSync(`${diskSys}/mq`);
  const fields = text(`${sys}/stat`).split(/\s+/).map(Number);
  return {
    bootId: (bootId ??= text('/proc/sys/kernel/random/boot_id')),
    device,
    disk: major * 2 ** 20 + minor,
    startSector: isPartition ? Number(text(`${sys}/start`)) : 0,
    sizeBytes: Number(text(`${sys}/size`)) * 512,
    diskseq: optional(`${diskSys}/diskseq`),
    counted: text(`${diskSys}/queue/iostats`) === '1' ? 'yes' : hasRequests ? 'no' : 'perhaps',
    splitsBios: !hasRequests && fs.existsSync(`${diskSys}/dm`),
    // Fields 7 and 14: sectors written, sectors discarded.
    sectors: (fields[6] ?? 0) + (fields[13] ?? 0),
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

let bootId: string | undefined;

function text(path: string): string {
  return fs.readFileSync(path, 'utf8').trim();
}

function optional(path: string): string {
  try {
    return text(path);
  } catch {
    return '';
  }
}
