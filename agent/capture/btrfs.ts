/**
 * A tree on btrfs at one instant: a read-only snapshot of the subvolume that holds it, read at leisure and removed.
 *
 * What it shows is what a power cut at that instant would have left (`crash`): all that was written before the snapshot was
 * begun is in it, of what was written meanwhile perhaps a part. Inodes keep their numbers, times and times of birth.
 * It lies in `.cdm-replicator` (0700) at the top of the filesystem, which no path of the node need show: it is reached by a mount
 * of our own at no path. A note in the agent's data says where from before the first one is made, so that what a crash
 * leaves is found by the next snapshot, the next session, or the end of the replication.
 * Not for trees that hold the top of the filesystem (the snapshot would be seen in it), nor for a filesystem mounted read-only.
 */
import { createHash } from 'node:crypto';
import { closeSync, constants, promises as fs } from 'node:fs';
import { writeDurably } from '../../proto/durable.ts';
import { systemErrorCode } from '../../proto/errors.ts';
import { mountOf, readMounts, readSuperblock, type Mount } from '../mounts.ts';
import { btrfsPlace, btrfsRemoveSubvolume, btrfsSnapshot, mountDetached } from './btrfs-system.ts';
import { cloneFolder } from './extents.ts';
import { open, openRoot, type Tree } from './tree.ts';

const { O_RDONLY, O_DIRECTORY, O_NOFOLLOW } = constants;
const rootIno = 256n;
const topSubvolume = 5n;

/** Where a snapshot may be. */
interface Note {
  /** UUID of the filesystem. */
  id: string;
  name: string;
}

const notePath = (dataDir: string): string => `${dataDir}/snapshot.json`;

/** Why there can be no snapshot of the tree; undefined = there can. */
export async function snapshotRefusal(tree: Tree): Promise<string | undefined> {
  const mount = mountOf(tree.path, await readMounts());
  if (mount?.type !== 'btrfs') return `${mount?.type ?? 'its filesystem'} has no snapshots of trees`;
  if (mount.readOnly) return `${mount.mountPoint} is mounted read-only`;
  try {
    const { subvolume } = await btrfsPlace(tree.fd, rootIno);
    if (subvolume !== topSubvolume || tree.stat.ino !== rootIno) return undefined;
    return `${tree.path} is the top of its btrfs, where a snapshot would be seen: put the data into a subvolume or a directory`;
  } catch (error) {
    return `no btrfs snapshot: ${String(error)}`;
  }
}

/**
 * The tree as it is at one instant from the call to the answer; removed when it is closed.
 * @param dataDir of this replication alone
 * @throws Error when it cannot be
 */
export async function snapshotTree(tree: Tree, dataDir: string): Promise<Tree> {
  const mount = mountOf(tree.path, await readMounts());
  const id = mount && (await readSuperblock(mount.source))?.id;
  if (!mount || id === undefined) throw new Error(`the device below ${tree.path} is not known`);
  const name = `tree-${createHash('sha256').update(dataDir).digest('hex').slice(0, 24)}`;
  const note = JSON.stringify({ id, name } satisfies Note);
  if ((await readNote(dataDir)) !== note) {
    await removeSnapshot(dataDir);
    await writeDurably(notePath(dataDir), note, 0o600);
  }
  const { subvolume, path } = await btrfsPlace(tree.fd, tree.stat.ino);
  const folder = await openFolder(mount.source);
  try {
    await removeIfThere(folder, name);
    const from = await openSubvolume(mount.source, subvolume);
    await btrfsSnapshot(folder, name, from).finally(() => closeSync(from));
    const root = await openRoot(Buffer.concat([Buffer.from(`/proc/self/fd/${folder}/${name}/`), path]));
    return {
      ...tree,
      ...root,
      close: async () => {
        closeSync(root.fd);
        await removeIfThere(folder, name).finally(() => closeSync(folder));
      },
    };
  } catch (error) {
    await removeIfThere(folder, name).finally(() => closeSync(folder));
    throw error;
  }
}

/** What a crash left. False when its filesystem is not mounted now: it may be still there. */
export async function removeSnapshot(dataDir: string): Promise<boolean> {
  const text = await readNote(dataDir);
  if (text === undefined) return true;
  const { id, name } = JSON.parse(text) as Note;
  const mount = await mountedWith(id);
  if (!mount) return false;
  const folder = await openFolder(mount.source);
  await removeIfThere(folder, name).finally(() => closeSync(folder));
  return true;
}

async function readNote(dataDir: string): Promise<string | undefined> {
  return fs.readFile(notePath(dataDir), 'utf8').catch((error: unknown) => {
    if (systemErrorCode(error) !== 'ENOENT') throw error;
    return undefined;
  });
}

async function mountedWith(id: string): Promise<Mount | undefined> {
  for (const mount of await readMounts())
    if (mount.type === 'btrfs' && (await readSuperblock(mount.source).catch(() => undefined))?.id === id) return mount;
  return undefined;
}

async function openSubvolume(source: string, id: bigint): Promise<number> {
  const handle = await mountDetached('btrfs', { source, subvolid: String(id) });
  return open(`/proc/self/fd/${handle}`, O_RDONLY | O_DIRECTORY).finally(() => closeSync(handle));
}

/** Of the filesystem on the device; made when absent. */
async function openFolder(source: string): Promise<number> {
  const top = await openSubvolume(source, topSubvolume);
  try {
    const path = Buffer.from(`/proc/self/fd/${top}/${cloneFolder}`);
    await fs.mkdir(path, { mode: 0o700 }).catch((error: unknown) => {
      if (systemErrorCode(error) !== 'EEXIST') throw error;
    });
    // Whoever may write to that filesystem could have put something else there.
    const found = await fs.lstat(path);
    if (!found.isDirectory() || (found.uid !== 0 && found.uid !== process.getuid?.()) || found.mode & 0o077)
      throw new Error(`${cloneFolder} at the top of ${source} is not a folder of this agent's alone: remove it`);
    return await open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
  } finally {
    closeSync(top);
  }
}

async function removeIfThere(folder: number, name: string): Promise<void> {
  try {
    await btrfsRemoveSubvolume(folder, name);
  } catch (error) {
    if (systemErrorCode(error) !== 'ENOENT') throw error;
  }
}
