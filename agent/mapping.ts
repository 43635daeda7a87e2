/**
 * What a device-mapper device is made of: the kernel's table of it and of the mapped devices below it. A table can be replaced
 * under a live mapping without a write: then there is other content at the same device, and no event or counter tells.
 *
 * Asked by ioctl, as nothing in /sys tells it. Of what a target is given only a hash is kept: dm-crypt has its key there.
 * `sameContent` is pure. linux/dm-ioctl.h.
 */
import { createHash } from 'node:crypto';
import fs, { constants } from 'node:fs';
import koffi from 'koffi';
import { ioctlNow, systemError } from '../proto/libc.ts';

const control = '/dev/mapper/control';
const DM_TABLE_STATUS = 0xc138fd0c;
const headerBytes = 312;
const targetBytes = 40;
/** The table and not the state; no key stays in the kernel's copy of our buffer. */
const flags = { table: 1 << 4, full: 1 << 8, noFlush: 1 << 11, secure: 1 << 15 };
const firstBytes = 16 << 10;
const mostBytes = 16 << 20;
/** Deeper is a circle, which there is not. */
const maxDepth = 16;

export interface Target {
  /** Sectors of 512 bytes. */
  first: number;
  sectors: number;
  type: string;
  /** Of its arguments. */
  hash: string;
}

/** Of one mapped device. */
export interface Table {
  /** `major:minor` */
  device: string;
  targets: readonly Target[];
}

/** Of the device and of all that it lies on, itself first; empty when it is none of device-mapper's. @throws Error */
export function readMapping(device: string, depth = 0): Table[] {
  const sys = `/sys/dev/block/${device}`;
  if (depth > maxDepth || !fs.existsSync(`${sys}/dm`)) return [];
  const below = fs.readdirSync(`${sys}/slaves`).sort();
  return [
    { device, targets: readTable(device) },
    ...below.flatMap((name) => readMapping(fs.readFileSync(`${sys}/slaves/${name}/dev`, 'utf8').trim(), depth + 1)),
  ];
}

/** Whether what lay there before lies there still. What was added at the end is growth. */
export function sameContent(before: readonly Table[], after: readonly Table[]): boolean {
  return before.length === after.length && before.every((table, index) => sameTable(table, after[index]));
}

function sameTable(before: Table, after: Table | undefined): boolean {
  if (before.device !== after?.device || before.targets.length > after.targets.length) return false;
  return before.targets.every((one, index) => {
    const other = after.targets[index];
    if (other?.first !== one.first || other.type !== one.type || other.hash !== one.hash) return false;
    const mayGrow = one.type === 'linear' && index === before.targets.length - 1;
    return other.sectors === one.sectors || (mayGrow && other.sectors > one.sectors);
  });
}

/** Another one whenever anything is otherwise; empty of no mapping. */
export function mappingDigest(mapping: readonly Table[]): string {
  return mapping.length === 0 ? '' : createHash('sha256').update(JSON.stringify(mapping)).digest('hex').slice(0, 32);
}

function readTable(device: string): Target[] {
  const [major = 0, minor = 0] = device.split(':').map(Number);
  const fd = fs.openSync(control, constants.O_RDWR);
  try {
    for (let bytes = firstBytes; bytes <= mostBytes; bytes *= 4) {
      const buffer = Buffer.alloc(bytes);
      buffer.writeUInt32LE(4, 0);
      buffer.writeUInt32LE(bytes, 12);
      buffer.writeUInt32LE(headerBytes, 16);
      buffer.writeUInt32LE(flags.table | flags.noFlush | flags.secure, 28);
      buffer.writeBigUInt64LE(BigInt(((minor & 0xff) | (major << 8)) >>> 0) | (BigInt(minor & ~0xff) << 12n), 40);
      if (ioctlNow(fd, DM_TABLE_STATUS, buffer) < 0)
        throw systemError(koffi.errno(), 'ioctl DM_TABLE_STATUS', `device ${device}`);
      if ((buffer.readUInt32LE(28) & flags.full) === 0) return parseTargets(buffer);
    }
  } finally {
    fs.closeSync(fd);
  }
  throw new Error(`the table of device ${device} is longer than ${mostBytes} bytes`);
}

/** Of what DM_TABLE_STATUS answers (linux/dm-ioctl.h). @throws Error when it says what cannot be */
export function parseTargets(buffer: Buffer): Target[] {
  const start = buffer.readUInt32LE(16);
  const targets: Target[] = [];
  for (let at = start, left = buffer.readUInt32LE(20); left > 0; left--) {
    if (at + targetBytes > buffer.length) throw new Error('the table of a mapping ends within a target');
    const type = cString(buffer.subarray(at + 24, at + targetBytes)).toString();
    const given = cString(buffer.subarray(at + targetBytes));
    targets.push({
      first: Number(buffer.readBigUInt64LE(at)),
      sectors: Number(buffer.readBigUInt64LE(at + 8)),
      type,
      // Paths come and go; they all lead to the one disk that its uuid names.
      hash: type === 'multipath' ? '' : createHash('sha256').update(given).digest('hex'),
    });
    const next = start + buffer.readUInt32LE(at + 20);
    if (left > 1 && next < at + targetBytes) throw new Error('the table of a mapping leads back into itself');
    at = next;
  }
  return targets;
}

function cString(bytes: Buffer): Buffer {
  const end = bytes.indexOf(0);
  return end < 0 ? bytes : bytes.subarray(0, end);
}
