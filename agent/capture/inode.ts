/**
 * One file, directory or link read as a node: everything that it is but its content.
 *
 * The inode that is read is the one that the manifest means, or the answer is undefined (it was moved or removed; the next
 * look finds out). Regular files are opened by way of O_PATH, so that a device put in a file's place is never opened.
 * Attributes outside user., trusted., security. and the POSIX ACLs, and trusted.SGI_, are the filesystem's own and stay out.
 */
import { type BigIntStats, constants } from 'node:fs';
import { readlink } from 'node:fs/promises';
import { flistxattr, fgetxattr, lgetxattr, llistxattr } from '../../proto/libc.ts';
import { nodeTypes, type Node, type Xattr } from '../../proto/wire.ts';
import type { Key, Manifest } from '../manifest.ts';
import { close, fstat, isMoved, isSame, keyOf, locate, lstat, O_PATH, open, openQuietly, type Tree } from './tree.ts';

const { O_RDONLY, O_DIRECTORY, O_NOFOLLOW } = constants;
const empty = Buffer.alloc(0);
const carried = ['user.', 'trusted.', 'security.', 'system.posix_acl_'].map((prefix) => Buffer.from(prefix));
/** XFS shows its own form of ACLs to root once more by these names. */
const internal = Buffer.from('trusted.SGI_');
/** Rounds until a link's target and attributes are of one moment. */
const tries = 5;

export interface Inode {
  /** As it was when opened. */
  stat: BigIntStats;
  /** Of regular files and directories; to be closed. */
  fd: number | undefined;
  target: Buffer;
  xattrs: Xattr[];
}

/** @param held a handle (O_PATH) of the regular file, wherever it is by now; stays the caller's */
export async function openInode(
  tree: Tree,
  manifest: Manifest,
  key: Key & { slot: number },
  held?: number,
): Promise<Inode | undefined> {
  if (held !== undefined) return openHandle(tree, held, key);
  const names = manifest.path(key.slot);
  const found = names && (await locate(tree, names));
  if (!found) return undefined;
  try {
    if (key.type === nodeTypes.file) return await openFile(tree, found.path, key);
    if (key.type === nodeTypes.directory) return await openDirectory(tree, found.path, key, key.slot === 0);
    return await readOther(tree, found.path, key);
  } catch (error) {
    if (isMoved(error)) return undefined;
    throw error;
  } finally {
    await found.release();
  }
}

async function openFile(tree: Tree, path: Buffer, key: Key): Promise<Inode | undefined> {
  const handle = await open(path, O_PATH | O_NOFOLLOW);
  try {
    return await openHandle(tree, handle, key);
  } finally {
    await close(handle);
  }
}

async function openHandle(tree: Tree, handle: number, key: Key): Promise<Inode | undefined> {
  if (!isSame(keyOf(tree, await fstat(handle)), key)) return undefined;
  const fd = await openQuietly(Buffer.from(`/proc/self/fd/${handle}`), O_RDONLY);
  return { fd, stat: await fstat(fd), target: empty, xattrs: [] };
}

async function openDirectory(tree: Tree, path: Buffer, key: Key, isRoot: boolean): Promise<Inode | undefined> {
  const fd = await openQuietly(path, O_RDONLY | O_DIRECTORY | (isRoot ? 0 : O_NOFOLLOW));
  const stat = await fstat(fd);
  if (!isSame(keyOf(tree, stat), key)) {
    await close(fd);
    return undefined;
  }
  return { fd, stat, target: empty, xattrs: [] };
}

async function readOther(tree: Tree, path: Buffer, key: Key): Promise<Inode | undefined> {
  for (let left = tries; left > 0; left--) {
    const stat = await lstat(path);
    if (!isSame(keyOf(tree, stat), key)) return undefined;
    const target = key.type === nodeTypes.symlink ? await readlink(path, { encoding: 'buffer' }) : empty;
    const xattrs = await readXattrsAt(path);
    const after = await lstat(path);
    if (isSame(keyOf(tree, after), key) && after.ctimeNs === stat.ctimeNs)
      return { stat, fd: undefined, target, xattrs };
  }
  return undefined;
}

/** Attributes of an open file or directory. */
export async function readXattrs(fd: number): Promise<Xattr[]> {
  return attributes(await flistxattr(fd), (name) => fgetxattr(fd, name));
}

/** Of whatever has the path, no link followed. */
export async function readXattrsAt(path: Buffer): Promise<Xattr[]> {
  return attributes(await llistxattr(path), (name) => lgetxattr(path, name));
}

async function attributes(names: Buffer[], get: (name: Buffer) => Promise<Buffer | undefined>): Promise<Xattr[]> {
  const found: Xattr[] = [];
  for (const name of names) {
    if (!carried.some((prefix) => startsWith(name, prefix)) || startsWith(name, internal)) continue;
    const value = await get(name);
    if (value) found.push({ name, value });
  }
  return found;
}

function startsWith(name: Buffer, prefix: Buffer): boolean {
  return name.subarray(0, prefix.length).equals(prefix);
}

/** Without names and content. */
export function nodeOf(slot: number, stat: BigIntStats, inode: Pick<Inode, 'target' | 'xattrs'>): Node {
  const type = Number(stat.mode >> 12n);
  const isDevice = type === nodeTypes.character || type === nodeTypes.block;
  const seconds = stat.mtimeNs / 1_000_000_000n - (stat.mtimeNs % 1_000_000_000n < 0n ? 1n : 0n);
  return {
    slot,
    type,
    mode: Number(stat.mode & 0o7777n),
    uid: Number(stat.uid),
    gid: Number(stat.gid),
    mtimeSeconds: Number(seconds),
    mtimeNanoseconds: Number(stat.mtimeNs - seconds * 1_000_000_000n),
    sizeBytes: type === nodeTypes.file ? Number(stat.size) : 0,
    target: inode.target,
    deviceMajor: isDevice ? Number(((stat.rdev >> 32n) & 0xfffff000n) | ((stat.rdev >> 8n) & 0xfffn)) : 0,
    deviceMinor: isDevice ? Number(((stat.rdev >> 12n) & 0xffffff00n) | (stat.rdev & 0xffn)) : 0,
    xattrs: inode.xattrs,
    names: [],
    contentRoot: empty,
  };
}
