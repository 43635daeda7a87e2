/**
 * One node on the disk: making it, giving it its owner, permissions, attributes and time, and comparing it with its state.
 *
 * What the kernel refuses to this process (another owner, a device, attributes of the trusted or security namespace, or ones
 * that the filesystem does not take) is withheld: it stays in the index only, the answer says so, and setuid and setgid
 * are then left off too, as they would speak for the wrong owner.
 */
import { promises as fs } from 'node:fs';
import { ReplicationError, systemErrorCode } from '../../proto/errors.ts';
import { lgetxattr, llistxattr, lremovexattr, lsetxattr, mknod, utimensat } from '../../proto/libc.ts';
import { typeName } from '../../proto/node.ts';
import { nodeTypes, type Node } from '../../proto/wire.ts';
import { at, chmodEntry, isPrivileged, lstatEntry, type BigStats, type Handle } from './treepath.ts';

const setIds = 0o6000;

export function typeOf(stat: BigStats): number {
  return Number(stat.mode >> 12n) & 15;
}

/** Anything but a regular file. Answers whether it is withheld, that is not there. @throws EEXIST */
export async function makeNode(directory: Handle, name: Buffer, node: Node): Promise<boolean> {
  const path = at(directory, name);
  try {
    if (node.type === nodeTypes.directory) await fs.mkdir(path, 0o700);
    else if (node.type === nodeTypes.symlink) await fs.symlink(node.target, path);
    else await mknod(path, (node.type << 12) | 0o600, node.deviceMajor, node.deviceMinor);
    return false;
  } catch (error) {
    if (!isDevice(node) || !isRefused(error)) throw error;
    return true;
  }
}

export function isDevice(node: Node): boolean {
  return node.type === nodeTypes.character || node.type === nodeTypes.block;
}

/** What cannot be changed but only made anew is not the same. */
export function isSameObject(a: Node, b: Node): boolean {
  return (
    a.type === b.type && a.target.equals(b.target) && a.deviceMajor === b.deviceMajor && a.deviceMinor === b.deviceMinor
  );
}

/** Everything but content and names; the time last. Answers whether something is withheld. */
export async function setState(directory: Handle, name: Buffer, node: Node): Promise<boolean> {
  const path = at(directory, name);
  let stat = await lstatEntry(directory, name);
  if (!stat && isDevice(node)) return true;
  if (!stat || typeOf(stat) !== node.type) {
    throw new ReplicationError('ReplicaDamaged', `${JSON.stringify(name.toString())} is no ${typeName(node.type)}`);
  }
  let isWithheld = false;
  if (stat.uid !== BigInt(node.uid) || stat.gid !== BigInt(node.gid)) {
    isWithheld = await unlessRefused(() => fs.lchown(path, node.uid, node.gid));
    stat = await lstatEntry(directory, name);
  }
  const mode = isWithheld ? node.mode & ~setIds : node.mode;
  const attributes = await setAttributes(directory, name, node);
  isWithheld ||= attributes.isWithheld;
  if (attributes.isChanged) stat = await lstatEntry(directory, name);
  if (node.type !== nodeTypes.symlink && stat && Number(stat.mode & 0o7777n) !== mode) {
    await chmodEntry(directory, name, mode);
  }
  if (stat?.mtimeNs !== timeOf(node)) {
    await utimensat(path, { seconds: node.mtimeSeconds, nanoseconds: node.mtimeNanoseconds });
    // Filesystems cut off what they cannot hold (ext4: 1901 to 2446).
    if (node.mtimeSeconds < 0 || node.mtimeSeconds >= 2 ** 31) {
      isWithheld ||= (await lstatEntry(directory, name))?.mtimeNs !== timeOf(node);
    }
  }
  return isWithheld;
}

async function setAttributes(
  directory: Handle,
  name: Buffer,
  node: Node,
): Promise<{ isChanged: boolean; isWithheld: boolean }> {
  const path = at(directory, name);
  const present = await llistxattr(path);
  let isChanged = false;
  let isWithheld = false;
  const change = async (work: () => Promise<void>): Promise<void> => {
    // Attributes of a file that its owner may not write are closed to all but root.
    if (!isChanged && !isPrivileged() && node.type !== nodeTypes.symlink) await chmodEntry(directory, name, 0o700);
    isChanged = true;
    isWithheld = (await unlessRefused(work)) || isWithheld;
  };
  for (const old of present) {
    if (isOwnOfSystem(old) || node.xattrs.some((xattr) => xattr.name.equals(old))) continue;
    await change(() => lremovexattr(path, old));
  }
  for (const { name: attribute, value } of node.xattrs) {
    const old = present.some((other) => other.equals(attribute)) ? await lgetxattr(path, attribute) : undefined;
    if (!old?.equals(value)) await change(() => setAttribute(directory, path, attribute, value));
  }
  return { isChanged, isWithheld };
}

async function setAttribute(directory: Handle, path: Buffer, name: Buffer, value: Buffer): Promise<void> {
  try {
    await lsetxattr(path, name, value);
  } catch (error) {
    if (systemErrorCode(error) !== 'ENOSPC') throw error;
    // Either the disk is full or the attribute is larger than this filesystem takes (ext4: one block for all of a file).
    const { bavail, bsize } = await fs.statfs(`/proc/self/fd/${directory.fd}`);
    if (bavail * bsize < 1 << 20) throw error;
    throw Object.assign(new Error('E2BIG: attribute too large', { cause: error }), { code: 'E2BIG' });
  }
}

/** Set by the system of the replica by itself. */
function isOwnOfSystem(name: Buffer): boolean {
  return name.equals(Buffer.from('security.selinux'));
}

/** All that setState sets, and for links and devices what they are. */
export async function hasState(directory: Handle, name: Buffer, node: Node, isWithheld: boolean): Promise<boolean> {
  const stat = await lstatEntry(directory, name);
  if (!stat) return isWithheld && isDevice(node);
  if (typeOf(stat) !== node.type) return false;
  if (node.type === nodeTypes.file && stat.size !== BigInt(node.sizeBytes)) return false;
  if (node.type === nodeTypes.symlink) {
    const target = await fs.readlink(at(directory, name), { encoding: 'buffer' });
    if (!target.equals(node.target)) return false;
  }
  if (isDevice(node) && stat.rdev !== deviceNumber(node)) return false;
  if (isWithheld) return true;
  if (node.type !== nodeTypes.symlink && Number(stat.mode & 0o7777n) !== node.mode) return false;
  if (stat.uid !== BigInt(node.uid) || stat.gid !== BigInt(node.gid)) return false;
  return stat.mtimeNs === timeOf(node) && (await hasAttributes(at(directory, name), node));
}

async function hasAttributes(path: Buffer, node: Node): Promise<boolean> {
  const present = (await llistxattr(path)).filter(
    (name) => !isOwnOfSystem(name) || node.xattrs.some((xattr) => xattr.name.equals(name)),
  );
  if (present.length !== node.xattrs.length) return false;
  for (const { name, value } of node.xattrs) {
    if (!(await lgetxattr(path, name))?.equals(value)) return false;
  }
  return true;
}

function timeOf(node: Node): bigint {
  return BigInt(node.mtimeSeconds) * 1_000_000_000n + BigInt(node.mtimeNanoseconds);
}

/** As stat(2) has it in st_rdev (new_encode_dev of linux/kdev_t.h, as glibc widens it). */
function deviceNumber({ deviceMajor, deviceMinor }: Node): bigint {
  const [major, minor] = [BigInt(deviceMajor), BigInt(deviceMinor)];
  return (minor & 0xffn) | ((major & 0xfffn) << 8n) | ((minor & ~0xffn) << 12n) | ((major & ~0xfffn) << 32n);
}

function isRefused(error: unknown): boolean {
  return ['EPERM', 'EACCES', 'ENOTSUP', 'EINVAL', 'E2BIG', 'ERANGE'].includes(systemErrorCode(error) ?? '');
}

/** True when the kernel refused it. */
async function unlessRefused(work: () => Promise<void>): Promise<boolean> {
  try {
    await work();
    return false;
  } catch (error) {
    if (!isRefused(error)) throw error;
    return true;
  }
}
