/** The files that recoveries make: where they may be, whose they are, and removing them. */
import { promises as fs } from 'node:fs';
import { ReplicationError, systemErrorCode } from '../../proto/errors.ts';
import type { VolumeMode } from '../../proto/wire.ts';
import { removeTreeBase } from '../replica/treebase.ts';
import type { Replication } from '../resources.ts';

/** @throws TargetRefused: absent, or for a tree an empty directory */
export async function mustBeFree(path: string, mode: VolumeMode): Promise<void> {
  try {
    if (mode === 'Filesystem' && (await fs.readdir(path)).length === 0) return;
    await fs.lstat(path);
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return;
    if (systemErrorCode(error) !== 'ENOTDIR') throw error;
  }
  const cure =
    mode === 'Filesystem' ? 'name a path that does not exist or an empty directory' : 'name a path that does not exist';
  throw new ReplicationError('TargetRefused', `${path} exists already; ${cure}`);
}

/** Inode numbers come again, together with the time of birth they do not. Undefined: nothing is there. */
export async function identityOf(path: string): Promise<string | undefined> {
  try {
    const { ino, birthtimeNs } = await fs.lstat(path, { bigint: true });
    return `${ino}:${birthtimeNs}`;
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}

/** Only what a recovery of ours made. */
export async function removeCopy(path: string): Promise<void> {
  const isTree = (await fs.lstat(path).catch(() => undefined))?.isDirectory() === true;
  if (isTree) await removeTreeBase(path);
  else await fs.rm(path, { force: true });
}

/** Where a member goes of a group that is recovered into a folder. */
export function pathInGroup(folder: string, { metadata, spec }: Replication): string {
  return `${folder}/${metadata.name}${spec.source.volumeMode === 'Block' ? '.raw' : ''}`;
}
