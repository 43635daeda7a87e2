/** Where a replica, a snapshot or a base lies, and opening the bytes there. */
import type { Disk } from '../../proto/effects.ts';
import type { VolumeMode } from '../../proto/wire.ts';
import type { Base } from './base.ts';
import { messageOf, ReplicationError, systemErrorCode } from '../../proto/errors.ts';
import { isOfStorage, isSqliteDamage } from '../../proto/sqlite.ts';
import { BlockBase } from './blockbase.ts';
import { BlockIndex } from './blockindex.ts';
import { IndexDamaged } from './indexdatabase.ts';
import { TreeBase } from './treebase.ts';
import { TreeIndex } from './treeindex.ts';
import type { VolumeIndex } from './volumeindex.ts';

/**
 * Bytes and journal in `folder`, SQLite's indexes in `indexFolder`: the same one in production, another where `folder` is
 * on a simulated disk that SQLite cannot see.
 */
export interface Place {
  folder: string;
  indexFolder: string;
}

export function inside(place: Place, name: string): Place {
  return { folder: `${place.folder}/${name}`, indexFolder: `${place.indexFolder}/${name}` };
}

export function contentName(mode: VolumeMode): string {
  return mode === 'Block' ? 'image.raw' : 'tree';
}

export function openIndex(mode: VolumeMode, path: string): VolumeIndex {
  return mode === 'Block' ? new BlockIndex(path) : new TreeIndex(path);
}

/** `read`: of a snapshot, whose bytes nobody writes and a lock may have made immutable. */
export async function openBase(
  disk: Disk,
  place: Place,
  mode: VolumeMode,
  access: 'read' | 'write' = 'write',
): Promise<Base> {
  const contentPath = `${place.folder}/${contentName(mode)}`;
  const indexPath = `${place.indexFolder}/index.db`;
  try {
    return await (mode === 'Block'
      ? BlockBase.open(disk, contentPath, indexPath, access)
      : TreeBase.open(contentPath, indexPath));
  } catch (error) {
    throw named(error, indexPath);
  }
}

/** Damage of an index says which file it is and what can be done. */
export function named(error: unknown, indexPath: string): unknown {
  if (!(error instanceof IndexDamaged) && !isSqliteDamage(error)) return error;
  return new ReplicationError(
    'ReplicaDamaged',
    `${indexPath} is damaged: ${messageOf(error)}. Put it back from a backup, or delete the replication and make it anew`,
    { cause: error },
  );
}

/** With less free nothing can be opened for writing. */
const leastBytes = 1 << 20;

/** Where the disk is full a database that cannot make its files says that it cannot open them, or of an I/O error, and not of what. */
export async function fullOr(disk: Disk, { folder }: Place, error: unknown): Promise<unknown> {
  if (systemErrorCode(error) !== 'ERR_SQLITE_ERROR' || !isOfStorage(error)) return error;
  const { freeBytes } = await disk.space(folder);
  if (freeBytes >= leastBytes) return error;
  return new ReplicationError('TargetFull', `no space left on ${folder}: ${messageOf(error)}`, { cause: error });
}
