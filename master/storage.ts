/**
 * Storage classes: where replicas lie. A driver gives a replica its place and knows the space; the replica itself does the
 * rest with plain files there. `directory` is the embedded one: a folder on any filesystem, also an NFS or CephFS mount;
 * copies share blocks where that filesystem has reflinks.
 *
 * Guarantees: a place is `<folder>/<name>-<uid>`, so no two replications ever share one, and one that was deleted never
 * comes back under the same name. Failure: a folder that cannot be made or written is TargetFailed, naming it.
 */
import type { Disk, Random } from '../proto/effects.ts';
import { asReplicationError, messageOf, ReplicationError } from '../proto/errors.ts';
import type { Place } from './replica/place.ts';
import type { StorageClass } from './resources.ts';

export interface StorageDriver {
  /** Where a replica lies; makes the folder. */
  provision(name: string, uid: string): Promise<Place>;
  /** Removes a replica and all its snapshots; no error when absent. */
  remove(uid: string): Promise<void>;
  /** Uids of the replicas that lie here. */
  list(): Promise<string[]>;
  space(): Promise<{ capacityBytes: number; freeBytes: number }>;
  /** Whether copies share blocks; tried once with a small file. */
  reflink(): Promise<boolean>;
}

const uidPattern = /-([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$/;

export function openStorage(spec: StorageClass['spec'], disk: Disk, random: Random): StorageDriver {
  const folder = spec.parameters.path;
  let reflink: boolean | undefined;

  const find = async (uid: string): Promise<string | undefined> =>
    (await disk.list(folder)).find((name) => name.endsWith(`-${uid}`));

  return {
    async provision(name, uid) {
      try {
        const path = `${folder}/${(await find(uid)) ?? `${name}-${uid}`}`;
        await disk.mkdir(path);
        return { folder: path, indexFolder: path };
      } catch (error) {
        throw failed(folder, error);
      }
    },
    async remove(uid) {
      const name = await find(uid);
      if (name === undefined) return;
      await disk.remove(`${folder}/${name}`);
      await disk.syncDirectory(folder);
    },
    async list() {
      return (await disk.list(folder)).map((name) => uidPattern.exec(name)?.[1]).filter((uid) => uid !== undefined);
    },
    async space() {
      await disk.mkdir(folder);
      return disk.space(folder);
    },
    async reflink() {
      reflink ??= await tryReflink(folder, disk, random);
      return reflink;
    },
  };
}

async function tryReflink(folder: string, disk: Disk, random: Random): Promise<boolean> {
  const path = `${folder}/.reflink-${random.bytes(6).toString('hex')}`;
  await disk.mkdir(folder);
  try {
    const file = await disk.open(path, 'write');
    try {
      await file.write([Buffer.alloc(65536, 1)], 0);
    } finally {
      await file.close();
    }
    return (await disk.clone(path, `${path}.copy`)) === 'reflink';
  } finally {
    await disk.remove(path);
    await disk.remove(`${path}.copy`);
  }
}

function failed(folder: string, error: unknown): ReplicationError {
  const known = asReplicationError(error, 'TargetFailed');
  if (known.code === 'TargetFull') return known;
  return new ReplicationError('TargetFailed', `${folder} cannot be used: ${messageOf(error)}`, { cause: error });
}
