/**
 * Storage classes: where replicas lie. A driver gives a replica its place and knows the space; the replica itself does the
 * rest with plain files there. `directory` is the embedded one: a folder on any filesystem, also an NFS or CephFS mount;
 * copies share blocks where that filesystem has reflinks.
 *
 * Guarantees: a place is `<folder>/<name>-<uid>`, so no two replications ever share one, and one that was deleted never
 * comes back under the same name; a replica with a locked snapshot is not removed by anybody. Failure: a folder that cannot be made or written is TargetFailed, naming it.
 */
import type { Clock, Disk, Effects, Random } from '../proto/effects.ts';
import { asReplicationError, messageOf, ReplicationError } from '../proto/errors.ts';
import type { VolumeMode } from '../proto/wire.ts';
import { Permits } from '../proto/lock.ts';
import type { HeldReplica } from './held.ts';
import { OnDemandReplica } from './replica/ondemand.ts';
import { OpenSet } from './replica/openset.ts';
import type { Place } from './replica/place.ts';
import type { ReplicaLimits } from './replica/limits.ts';
import { mustBeOver, readLock, removeFolder } from './replica/snapshotlock.ts';
import type { StorageClass } from './resources.ts';

export interface StorageDriver {
  /** Opens a replica, or makes a blank one. */
  open(options: OpenOptions): Promise<HeldReplica>;
  /** Removes a replica and all its snapshots; no error when absent. @throws SnapshotLocked, and then nothing is gone */
  remove(uid: string): Promise<void>;
  /** Uids of the replicas that lie here. */
  list(): Promise<string[]>;
  /** Snapshots of a replica that are locked on storage, until when in milliseconds since the epoch. */
  locks(uid: string): Promise<Map<string, number>>;
  /** What a replica holds; blocks that copies share count for each of them. undefined: absent, or this storage cannot tell. */
  usage(uid: string): Promise<Usage | undefined>;
  /** @throws when the storage cannot be used */
  space(): Promise<Space>;
  /** Whether copies share blocks; tried once with a small file. undefined: it differs, or cannot be told. */
  reflink(): Promise<boolean | undefined>;
  /** Brings what lies around a replica in step with its source. Absent: nothing does. */
  tend?(uid: string, sourceBytes: number | undefined): Promise<void>;
}

/** Of the whole class; absent figures cannot be told. */
export interface Space {
  capacityBytes?: number;
  freeBytes?: number;
  /** What is not as it should be, and no obstacle. */
  remark?: string | undefined;
}

export interface OpenOptions {
  /** Of its replication: what its place is called when it is made. */
  name: string;
  uid: string;
  mode: VolumeMode;
  /** As far as it is known: how large the place has to be. */
  sourceBytes?: () => Promise<number | undefined>;
  limits?: ReplicaLimits;
  /** It was there, with points: where it is not, its storage is not mounted, or it is lost. */
  mustExist?: boolean;
  /** Hears why something was built anew. */
  onDoubt: (why: string) => void;
  /** What the replica tells of itself has changed though nothing was asked of it. */
  onChange: () => void;
}

/** A driver whose replicas lie in folders of this machine. */
export interface FolderDriver extends StorageDriver {
  /** Where a replica lies; makes the folder. */
  provision(name: string, uid: string): Promise<Place>;
  /** @throws SnapshotLocked when a snapshot of it is */
  mustBeUnlocked(uid: string): Promise<void>;
}

export interface Usage {
  baseBytes: number;
  journalBytes: number;
  snapshotBytes: number;
}

const uidPattern = /-([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$/;

export function isReplicaFolder(name: string): boolean {
  return uidPattern.test(name);
}

/** Storage that hangs keeps no other class waiting. */
const openingAtOnce = 16;

/**
 * `clock` is the one by which locks and journals end.
 * @param openSet of the replicas of all classes; default: all stay open
 * @param own makes the folder this master's, before anything is opened there
 */
export function openStorage(
  spec: StorageClass['spec'],
  effects: Effects,
  clock: Clock,
  openSet = new OpenSet<OnDemandReplica>(Infinity),
  own: (folder: string) => Promise<void> = async () => undefined,
): FolderDriver {
  const folder = spec.parameters.path ?? '';
  const opening = new Permits(openingAtOnce);
  const { disk, random } = effects;
  let reflink: boolean | undefined;

  const find = async (uid: string): Promise<string | undefined> =>
    (await disk.list(folder)).find((name) => name.endsWith(`-${uid}`));

  const driver: FolderDriver = {
    async open({ name, uid, mustExist, onChange: _, sourceBytes: __, ...options }) {
      if (mustExist === true && (await find(uid)) === undefined) throw lost(folder, name);
      await own(folder);
      const place = await driver.provision(name, uid);
      return OnDemandReplica.open({ ...options, effects, place, trusted: clock, openSet, opening });
    },
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
      await driver.mustBeUnlocked(uid);
      const snapshots = `${folder}/${name}/snapshots`;
      for (const snapshot of await disk.list(snapshots)) await removeFolder(disk, `${snapshots}/${snapshot}`);
      await disk.remove(`${folder}/${name}`);
      await disk.syncDirectory(folder);
    },
    async mustBeUnlocked(uid) {
      const snapshots = `${folder}/${await find(uid)}/snapshots`;
      const nowMs = clock.nowMs();
      for (const [snapshot, untilMs] of await locksBelow(disk, snapshots))
        mustBeOver(untilMs, snapshot, nowMs, `${snapshots}/${snapshot}`);
    },
    async list() {
      return (await disk.list(folder)).map((name) => uidPattern.exec(name)?.[1]).filter((uid) => uid !== undefined);
    },
    async locks(uid) {
      const name = await find(uid);
      return name === undefined ? new Map<string, number>() : locksBelow(disk, `${folder}/${name}/snapshots`);
    },
    async usage(uid) {
      const name = await find(uid);
      if (name === undefined || !disk.usage) return undefined;
      return {
        baseBytes: await disk.usage(`${folder}/${name}/base`),
        journalBytes: await disk.usage(`${folder}/${name}/journal`),
        snapshotBytes: await disk.usage(`${folder}/${name}/snapshots`),
      };
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
  return driver;
}

async function locksBelow(disk: Disk, folder: string): Promise<Map<string, number>> {
  const locks = new Map<string, number>();
  for (const name of await disk.list(folder)) {
    // What has a dot before it was never whole, or is on its way out.
    const untilMs = name.startsWith('.') ? undefined : await readLock(disk, `${folder}/${name}`);
    if (untilMs !== undefined) locks.set(name, untilMs);
  }
  return locks;
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

function lost(folder: string, name: string): ReplicationError {
  return new ReplicationError(
    'TargetFailed',
    `the replica is not in ${folder} any more. Mount its storage there and it goes on; if it is lost, ` +
      `\`replctl resync ${name} --force\` makes it anew, without its points`,
  );
}

function failed(folder: string, error: unknown): ReplicationError {
  const known = asReplicationError(error, 'TargetFailed');
  if (known.code === 'TargetFull') return known;
  return new ReplicationError('TargetFailed', `${folder} cannot be used: ${messageOf(error)}`, { cause: error });
}
