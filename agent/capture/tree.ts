/**
 * A directory tree opened for one pass: every look into it goes from the root's descriptor, follows no link, and is believed
 * only when the inode that it met is the one that the manifest means.
 *
 * Names are bytes and paths as long as they come (longer ones are walked in stretches that the kernel takes). A path
 * that leads elsewhere than it did at the scan answers undefined: somebody moved something, the next look finds it. Devices
 * and fifos are never opened. The descriptor is held for one pass only, so nothing keeps a volume from being unmounted.
 */
import fs, { constants, type BigIntStats } from 'node:fs';
import { opendir, realpath } from 'node:fs/promises';
import { promisify } from 'node:util';
import { ReplicationError, systemErrorCode } from '../../proto/errors.ts';
import { nodeTypes } from '../../proto/wire.ts';
import type { Key, Manifest } from '../manifest.ts';
import type { Filter } from './filter.ts';

export const open = promisify(fs.open);
export const close = promisify(fs.close);
const lstatCall = promisify(fs.lstat);
const fstatCall = promisify(fs.fstat);

export const O_PATH = 0o10000000;
const { O_RDONLY, O_DIRECTORY, O_NOFOLLOW, O_NOATIME, O_NONBLOCK, O_NOCTTY } = constants;
/** Bytes of a path that are handed to the kernel at once; PATH_MAX is 4096. */
const stretchBytes = 3800;
const slash = Buffer.from('/');

export interface Tree {
  readonly path: string;
  readonly fd: number;
  readonly device: bigint;
  readonly stat: BigIntStats;
  /** undefined: all of it is mirrored. */
  readonly filter: Filter | undefined;
  close(): Promise<void>;
}

/** @throws SourceGone */
export async function openTree(path: string, filter?: Filter): Promise<Tree> {
  try {
    const resolved = await realpath(path);
    const root = await openRoot(Buffer.from(resolved));
    return { path: resolved, ...root, filter, close: () => close(root.fd) };
  } catch (error) {
    throw new ReplicationError('SourceGone', `${path} cannot be opened as a directory: ${String(error)}`, {
      cause: error,
    });
  }
}

export async function isEmpty(tree: Pick<Tree, 'fd'>): Promise<boolean> {
  await using directory = await opendir(`/proc/self/fd/${tree.fd}`, { encoding: 'latin1' });
  return (await directory.read()) === null;
}

/** To be closed. */
export async function openRoot(path: Buffer): Promise<Pick<Tree, 'fd' | 'device' | 'stat'>> {
  const fd = await openQuietly(path, O_RDONLY | O_DIRECTORY);
  const stat = await fstat(fd);
  return { fd, device: stat.dev, stat };
}

export const lstat = (path: Buffer): Promise<BigIntStats> => lstatCall(path, { bigint: true });
export const fstat = (fd: number): Promise<BigIntStats> => fstatCall(fd, { bigint: true });

/** Leaves no trace in atimes where that is permitted. */
export async function openQuietly(path: Buffer, flags: number): Promise<number> {
  const safe = flags | O_NONBLOCK | O_NOCTTY;
  try {
    return await open(path, safe | O_NOATIME);
  } catch (error) {
    if (systemErrorCode(error) !== 'EPERM') throw error;
    return open(path, safe);
  }
}

export function childPath(fd: number, name: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`/proc/self/fd/${fd}/`), name]);
}

/** Things of other filesystems and subvolumes (mount points) have numbers of their own, below zero. */
export function keyOf(tree: Tree, stat: BigIntStats): Key {
  const type = Number(stat.mode >> 12n);
  const ino = stat.dev === tree.device ? stat.ino : -((stat.dev << 32n) ^ stat.ino) - 1n;
  return { ino, birthNs: stat.birthtimeNs, type };
}

export function isSame(key: Key, row: Key): boolean {
  return (
    row.type === key.type && row.ino === BigInt.asIntN(64, key.ino) && row.birthNs === BigInt.asIntN(64, key.birthNs)
  );
}

/** The names' path as one that the kernel takes; `release` when it is no longer used. Undefined when it leads nowhere. */
export async function locate(
  tree: Tree,
  names: Buffer[],
): Promise<{ path: Buffer; release(): Promise<void> } | undefined> {
  let fd = tree.fd;
  let at = 0;
  try {
    for (;;) {
      const parts: Buffer[] = [Buffer.from(`/proc/self/fd/${fd}`)];
      let length = 0;
      for (; at < names.length; at++) {
        const name = names[at] as Buffer;
        if (length + name.length + 1 > stretchBytes) break;
        parts.push(slash, name);
        length += name.length + 1;
      }
      const path = Buffer.concat(parts);
      if (at === names.length) {
        const last = fd;
        return { path, release: async () => (last === tree.fd ? undefined : close(last)) };
      }
      const next = await open(path, O_PATH | O_DIRECTORY | O_NOFOLLOW);
      if (fd !== tree.fd) await close(fd);
      fd = next;
    }
  } catch (error) {
    if (fd !== tree.fd) await close(fd);
    if (isMoved(error)) return undefined;
    throw error;
  }
}

/** Errors that a path gives when somebody moved or removed something. */
export function isMoved(error: unknown): boolean {
  return ['ENOENT', 'ENOTDIR', 'ELOOP', 'ESTALE', 'ENXIO', 'EISDIR'].includes(systemErrorCode(error) ?? '');
}

/** The directory in this slot, opened to be listed; undefined when it is not where it was. The caller closes it. */
export async function openDirectory(tree: Tree, manifest: Manifest, slot: number): Promise<number | undefined> {
  const row = manifest.row(slot);
  const names = manifest.path(slot);
  if (!row || !names || row.type !== nodeTypes.directory) return undefined;
  const found = await locate(tree, names);
  if (!found) return undefined;
  try {
    const fd = await openQuietly(found.path, O_RDONLY | O_DIRECTORY | (names.length > 0 ? O_NOFOLLOW : 0));
    if (isSame(keyOf(tree, await fstat(fd)), row)) return fd;
    await close(fd);
    return undefined;
  } catch (error) {
    if (isMoved(error)) return undefined;
    throw error;
  } finally {
    await found.release();
  }
}
