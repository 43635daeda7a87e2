/**
 * What is mounted on this node and on which devices: /proc/self/mountinfo, /sys/class/block, loop devices, and the type and
 * UUID of a filesystem by its superblock.
 *
 * Guarantees: pure parsers; the readers only read /proc and /sys and never wait for a filesystem, but for `wholeFilesystem`
 * (stat of the volume and of btrfs devices) and `readSuperblock` (68 KiB of the volume). What disappears while it is read is left out.
 * Reads a mounted device through the page cache, which is good enough for a UUID (it does not change while mounted, and the
 * kernel drops the cache with the last user) and for nothing else.
 */
import { promises as fs } from 'node:fs';
import { basename } from 'node:path';
import { systemErrorCode } from '../proto/errors.ts';

export interface Mount {
  /** `major:minor` of the filesystem; of btrfs an anonymous one. */
  device: string;
  /** The folder of the filesystem that is seen at the mount point; '/' = all of it. */
  root: string;
  /** As UTF-8: a mount point that is none has replacement characters here and matches no path. */
  mountPoint: string;
  type: string;
  source: string;
  readOnly: boolean;
}

/** proc(5), /proc/pid/mountinfo: space, tab, newline and backslash are octal escapes. Lines that are none are left out. */
export function parseMountinfo(bytes: Uint8Array): Mount[] {
  const mounts: Mount[] = [];
  for (const line of Buffer.from(bytes).toString('latin1').split('\n')) {
    const fields = line.split(' ');
    const dash = fields.indexOf('-', 6);
    const [, , device, root, mountPoint, options] = fields;
    if (dash < 0 || !device || !root || !mountPoint || !options) continue;
    mounts.push({
      device,
      root: unescape(root),
      mountPoint: unescape(mountPoint),
      type: unescape(fields[dash + 1] ?? ''),
      source: unescape(fields[dash + 2] ?? ''),
      readOnly: options.split(',').includes('ro') || (fields[dash + 3] ?? '').split(',').includes('ro'),
    });
  }
  return mounts;
}

function unescape(field: string): string {
  const raw = field.replace(/\\([0-3][0-7]{2})/g, (_, octal: string) => String.fromCharCode(parseInt(octal, 8)));
  return Buffer.from(raw, 'latin1').toString('utf8');
}

export async function readMounts(): Promise<Mount[]> {
  return parseMountinfo(await fs.readFile('/proc/self/mountinfo'));
}

/** The mount that holds an absolute, resolved path: the longest mount point above it, the last one mounted there. */
export function mountOf(path: string, mounts: readonly Mount[]): Mount | undefined {
  let best: Mount | undefined;
  for (const mount of mounts) {
    if (isWithin(path, mount.mountPoint) && mount.mountPoint.length >= (best?.mountPoint.length ?? 0)) best = mount;
  }
  return best;
}

/** Both absolute and resolved; a path is within itself. */
export function isWithin(path: string, root: string): boolean {
  return path === root || path.startsWith(root.endsWith('/') ? root : `${root}/`);
}

export interface BlockDevice {
  /** As in /sys/class/block. */
  name: string;
  path: string;
  /** `major:minor` */
  device: string;
  kind: 'disk' | 'partition' | 'loop' | 'dm';
  sizeBytes: number;
  /** Disk of a partition, by name. */
  parent?: string;
  /** Names of what is built on it (dm, md) and of what it is built on. */
  holders: string[];
  slaves: string[];
  /** Of a loop device. */
  loop?: Loop;
}

export interface Loop {
  backingFile: string;
  offsetBytes: number;
  /** 0 = to the end of the file. */
  limitBytes: number;
  directIo: boolean;
}

/** All block devices of the node but empty ones, RAM disks and optical drives. */
export async function readBlockDevices(sys = '/sys'): Promise<BlockDevice[]> {
  const names = await listed(`${sys}/class/block`);
  const devices = await Promise.all(names.map((name) => readBlockDevice(sys, name)));
  return devices.filter((device) => device !== undefined);
}

/** One by its `major:minor`. */
export async function blockDevice(device: string): Promise<BlockDevice | undefined> {
  const real = await fs.realpath(`/sys/dev/block/${device}`).catch(() => undefined);
  return real === undefined ? undefined : readBlockDevice('/sys', basename(real));
}

async function readBlockDevice(sys: string, name: string): Promise<BlockDevice | undefined> {
  if (/^(ram|sr|fd)\d/.test(name)) return undefined;
  const folder = `${sys}/class/block/${name}`;
  const [size, device, partition, dmName, uevent] = await Promise.all([
    text(`${folder}/size`),
    text(`${folder}/dev`),
    text(`${folder}/partition`),
    text(`${folder}/dm/name`),
    text(`${folder}/uevent`),
  ]);
  const sizeBytes = Number(size ?? 0) * 512; // always in 512, whatever the device's own sector is
  if (!device || sizeBytes === 0) return undefined;
  const loop = await readLoop(folder);
  const real = partition === undefined ? undefined : await fs.realpath(folder).catch(() => undefined);
  const node = /^DEVNAME=(.+)$/m.exec(uevent ?? '')?.[1] ?? name.replaceAll('!', '/');
  return {
    name,
    path: dmName ? `/dev/mapper/${dmName}` : `/dev/${node}`,
    device,
    kind: partition !== undefined ? 'partition' : dmName !== undefined ? 'dm' : loop ? 'loop' : 'disk',
    sizeBytes,
    ...(real === undefined ? {} : { parent: real.split('/').at(-2) ?? '' }),
    holders: await listed(`${folder}/holders`),
    slaves: await listed(`${folder}/slaves`),
    ...(loop ? { loop } : {}),
  };
}

async function readLoop(folder: string): Promise<Loop | undefined> {
  const backingFile = await text(`${folder}/loop/backing_file`);
  if (backingFile === undefined) return undefined;
  const [offset, limit, dio] = await Promise.all(
    ['offset', 'sizelimit', 'dio'].map((attribute) => text(`${folder}/loop/${attribute}`)),
  );
  return { backingFile, offsetBytes: Number(offset), limitBytes: Number(limit), directIo: dio === '1' };
}

async function text(path: string): Promise<string | undefined> {
  try {
    return (await fs.readFile(path, 'utf8')).replace(/\n$/, '');
  } catch {
    return undefined;
  }
}

async function listed(path: string): Promise<string[]> {
  return (await fs.readdir(path).catch(() => [])).sort();
}

export interface Whole {
  /** The filesystem whose data is exactly what the volume holds. */
  mount?: Mount;
  /** Why there is none. */
  reason: string;
}

/**
 * The one mounted filesystem that lies wholly on this image or block device and is wholly its own: what may be frozen to cut
 * the volume. An image is reached by its loop device. Of several mounts of it, one that shows the whole filesystem.
 */
export async function wholeFilesystem(
  path: string,
  mounts: readonly Mount[],
  devices: readonly BlockDevice[],
): Promise<Whole> {
  const stat = await fs.stat(path, { bigint: true });
  const tops = stat.isBlockDevice()
    ? devices.filter(({ device }) => device === deviceText(stat.rdev))
    : await loopsOf(stat, devices);
  const volume = withBuiltOn(tops, devices);
  const above = volume.filter((one) => !tops.includes(one)); // what a volume itself is built on is below, not beside
  const outside = above.flatMap(({ slaves }) => slaves).find((slave) => !volume.some(({ name }) => name === slave));
  if (outside !== undefined) return { reason: `a device on it lies on ${outside} too` };
  const found = new Map<string, Mount[]>();
  for (const mount of mounts) {
    const device = mount.type === 'btrfs' ? await numberOf(mount.source) : mount.device;
    if (!volume.some((one) => one.device === device) || !device) continue;
    found.set(device, [...(found.get(device) ?? []), mount]);
  }
  if (found.size === 0) return { reason: 'no filesystem on it is mounted on this node' };
  if (found.size > 1) return { reason: `${found.size} filesystems on it are mounted` };
  const [device, all] = [...found][0] ?? ['', []];
  if (all.some(({ type }) => type === 'btrfs') && (await isPoolOfMany(device))) {
    return { reason: 'its btrfs lies on several devices' };
  }
  const mount = all.find(({ root }) => root === '/') ?? all[0];
  return mount ? { mount, reason: '' } : { reason: 'no filesystem on it is mounted on this node' };
}

/** Loop devices over the file, by inode: their name of it is of another mount namespace, perhaps. */
async function loopsOf(stat: { dev: bigint; ino: bigint }, devices: readonly BlockDevice[]): Promise<BlockDevice[]> {
  const loops: BlockDevice[] = [];
  for (const device of devices) {
    const backing = device.loop && (await fs.stat(device.loop.backingFile, { bigint: true }).catch(() => undefined));
    if (backing?.ino === stat.ino && backing.dev === stat.dev) loops.push(device);
  }
  return loops;
}

/** The devices, their partitions, and what is built on any of them. */
function withBuiltOn(tops: BlockDevice[], devices: readonly BlockDevice[]): BlockDevice[] {
  const found = [...tops];
  for (const one of found) {
    for (const other of devices) {
      if ((other.parent === one.name || one.holders.includes(other.name)) && !found.includes(other)) found.push(other);
    }
  }
  return found;
}

/**
 * Names of the devices and paths of the images that the filesystem with this device number lies on, all the way down: what
 * must not be frozen for it to go on, and not be replicated without replicating it.
 */
export function layersUnder(
  mount: Mount,
  mounts: readonly Mount[],
  devices: readonly BlockDevice[],
): { devices: Set<string>; images: Set<string>; filesystems: Set<string> } {
  const layers = { devices: new Set<string>(), images: new Set<string>(), filesystems: new Set<string>() };
  const visitMount = (one: Mount): void => {
    if (layers.filesystems.has(one.device)) return;
    layers.filesystems.add(one.device);
    const device = devices.find(({ device, path }) => device === one.device || path === one.source);
    if (device) visitDevice(device);
  };
  const visitDevice = (one: BlockDevice): void => {
    if (layers.devices.has(one.name)) return;
    layers.devices.add(one.name);
    for (const lower of devices) if (lower.name === one.parent || one.slaves.includes(lower.name)) visitDevice(lower);
    if (!one.loop) return;
    layers.images.add(one.loop.backingFile);
    const holder = mountOf(one.loop.backingFile, mounts);
    if (holder) visitMount(holder);
  };
  visitMount(mount);
  return layers;
}

/** Paths of the devices and images that these (resolved) paths lie on, all the way down. */
export async function pathsUnder(paths: readonly string[]): Promise<string[]> {
  const [mounts, devices] = await Promise.all([readMounts(), readBlockDevices()]);
  const found = new Set<string>();
  for (const path of paths) {
    const mount = mountOf(path, mounts);
    const layers = mount && layersUnder(mount, mounts, devices);
    for (const { name, path } of devices) if (layers?.devices.has(name)) found.add(path);
    for (const image of layers?.images ?? []) found.add(image);
  }
  return [...found];
}

async function isPoolOfMany(device: string): Promise<boolean> {
  for (const id of await listed('/sys/fs/btrfs')) {
    const members = await listed(`/sys/fs/btrfs/${id}/devices`);
    const numbers = await Promise.all(members.map((name) => text(`/sys/fs/btrfs/${id}/devices/${name}/dev`)));
    if (numbers.includes(device)) return members.length > 1;
  }
  return false;
}

/** `major:minor` of a device node. */
export async function numberOf(path: string): Promise<string | undefined> {
  const stat = await fs.stat(path, { bigint: true }).catch(() => undefined);
  return stat?.isBlockDevice() ? deviceText(stat.rdev) : undefined;
}

/** `major:minor` of a stat's dev or rdev (glibc's encoding of 64 bits). */
export function deviceText(number: bigint): string {
  const major = ((number >> 32n) & 0xfffff000n) | ((number >> 8n) & 0xfffn);
  const minor = ((number >> 12n) & 0xffffff00n) | (number & 0xffn);
  return `${major}:${minor}`;
}

export interface Superblock {
  /** ext2 ext3 ext4 xfs btrfs, or what is no filesystem: swap crypto_LUKS LVM2_member gpt */
  type: string;
  /** UUID in lower case as blkid prints it (of LVM2 its own form). */
  id: string;
}

/** How much of the start of a volume `parseSuperblock` looks at: btrfs has its superblock at 64 KiB. */
export const superblockBytes = 68 * 1024;

/** The first match, or undefined. Takes any bytes, also fewer. */
export function parseSuperblock(bytes: Uint8Array): Superblock | undefined {
  const at = Buffer.alloc(superblockBytes);
  Buffer.from(bytes.buffer, bytes.byteOffset, Math.min(bytes.length, superblockBytes)).copy(at);
  const magic = (offset: number, value: string): boolean =>
    at.toString('latin1', offset, offset + value.length) === value;
  if (magic(0, 'LUKS\xba\xbe'))
    return { type: 'crypto_LUKS', id: at.toString('latin1', 168, 208).replace(/\0.*/s, '') };
  if (magic(0, 'XFSB')) return { type: 'xfs', id: uuid(at, 32) };
  if (magic(0x10040, '_BHRfS_M')) return { type: 'btrfs', id: uuid(at, 0x10020) };
  if (at.readUInt16LE(0x438) === 0xef53) return { type: extType(at), id: uuid(at, 0x468) };
  if (magic(4086, 'SWAPSPACE2')) return { type: 'swap', id: uuid(at, 1036) };
  if (magic(512, 'LABELONE') && magic(536, 'LVM2 001')) {
    return { type: 'LVM2_member', id: at.toString('latin1', 544, 576) };
  }
  if (magic(512, 'EFI PART')) return { type: 'gpt', id: guid(at, 568) };
  return undefined;
}

/** As e2fsprogs tells them apart: by the features that the older drivers do not know. */
function extType(at: Buffer): string {
  const [compatible, incompatible, readOnly] = [0x45c, 0x460, 0x464].map((offset) => at.readUInt32LE(offset));
  const ext3Knows = { incompatible: 0x2 | 0x4 | 0x10, readOnly: 0x1 | 0x2 | 0x4 };
  if ((incompatible ?? 0) & ~ext3Knows.incompatible || (readOnly ?? 0) & ~ext3Knows.readOnly) return 'ext4';
  return (compatible ?? 0) & 0x4 ? 'ext3' : 'ext2';
}

function uuid(bytes: Buffer, offset: number): string {
  return bytes.toString('hex', offset, offset + 16).replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}

/** A GUID has its first three parts in little endian. */
function guid(bytes: Buffer, offset: number): string {
  const turned = Buffer.from(bytes.subarray(offset, offset + 16));
  turned.subarray(0, 4).reverse();
  turned.subarray(4, 6).reverse();
  turned.subarray(6, 8).reverse();
  return uuid(turned, 0);
}

/** Of an image or block device; undefined when nothing known is on it, or it is too short, or it is gone. */
export async function readSuperblock(path: string): Promise<Superblock | undefined> {
  const bytes = Buffer.alloc(superblockBytes);
  try {
    await using file = await fs.open(path, 'r');
    let length = 0;
    for (let read = -1; read !== 0 && length < bytes.length; length += read) {
      read = (await file.read(bytes, length, bytes.length - length, length)).bytesRead;
    }
    return parseSuperblock(bytes.subarray(0, length));
  } catch (error) {
    if (['ENOENT', 'ENXIO', 'ENOMEDIUM', 'EIO'].includes(systemErrorCode(error) ?? '')) return undefined;
    throw error;
  }
}
