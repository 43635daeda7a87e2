/**
 * A file volume as its storage copies it at an instant (copyMethod Snapshot and Clone), mounted on this node and read as it lies there.
 *
 * Guarantees: what is answered is a mounted filesystem, never the folder that it is to be mounted on, and not empty where the volume is
 * not; all that was written to the volume before the call is in it, as it is flushed first. Times prove nothing: a copy of a volume in use can have a file's new
 * content with its old times, and one that was made file by file has other times and inodes than the one before it.
 * Failure: what the storage or the cluster refuses is a Refusal with their words.
 */
import { asReplicationError } from '../proto/errors.ts';
import { syncfs } from '../proto/libc.ts';
import type { StorageCopies } from './capture/csicbt.ts';
import type { Filter } from './capture/filter.ts';
import { isEmpty, openTree, type Tree } from './capture/tree.ts';
import { Refusal } from './refusal.ts';
import { sourceFacts } from './source-facts.ts';

export interface TreeCopies {
  readonly kind: StorageCopies;
  /** Of an instant after the call; to be released. @throws SnapshotFailed */
  take(): Promise<TreeCopy>;
}

export interface TreeCopy {
  /** Where it is mounted. */
  readonly path: string;
  /** Why it may not have been all there since it was taken. */
  lost: () => Promise<string | undefined>;
  /** Never throws: what is left of it goes with the next one, or with the replication. */
  release: () => Promise<void>;
}

/**
 * @param open of the volume; closed before anything is waited for that takes its time
 * @returns the copy's tree, whose closing releases it
 */
export async function takeTreeCopy(
  copies: TreeCopies,
  open: () => Promise<Tree & AsyncDisposable>,
  filter: Filter | undefined,
): Promise<{ tree: Tree; lost: TreeCopy['lost'] } | Refusal> {
  const wasEmpty = await flushed(open);
  let copy: TreeCopy | undefined;
  try {
    copy = await copies.take();
    const { path, lost, release } = copy;
    const refused = async (why: string): Promise<Refusal> => {
      await release();
      return new Refusal('other', why);
    };
    if (!(await sourceFacts(path, 'Filesystem')).exists)
      return await refused(
        `${path} is not mounted where this agent sees it: mount the kubelet's folder with HostToContainer`,
      );
    const tree = await openTree(path, filter);
    const close = async (): Promise<void> => {
      await tree.close();
      await release();
    };
    if (wasEmpty || !(await isEmpty(tree))) return { tree: { ...tree, close }, lost: () => lost().catch(failure) };
    await tree.close();
    return await refused('it is empty, and the volume is not');
  } catch (error) {
    await copy?.release();
    return new Refusal('other', failure(error));
  }
}

/** Answers whether there is nothing in it. */
async function flushed(open: () => Promise<Tree & AsyncDisposable>): Promise<boolean> {
  await using tree = await open();
  await syncfs(tree.fd);
  return await isEmpty(tree);
}

/** Of the storage or the cluster, in their words, or what is gone before it is read. @throws what is none */
function failure(error: unknown): string {
  const { code, message } = asReplicationError(error);
  if (code !== 'SnapshotFailed' && code !== 'SourceGone') throw error;
  return message;
}
