/**
 * The replicas of the mirrors on their storage: opened, given back, removed.
 *
 * Guarantees: a replica is open once at most and is closed before its data is removed; data is removed only for a replication
 * that was deleted without keepReplica, and only what this master has made.
 * Failure: a replica that cannot be opened is tried again with growing pauses, and its status says why.
 */
import type { Clock, Effects } from '../proto/effects.ts';
import { asReplicationError, ReplicationError } from '../proto/errors.ts';
import type { EventInput, Events } from './engine.ts';
import type { HeldReplica } from './held.ts';
import { mustReopen, reasonOf, replicaUid, type Mirror } from './mirrorstate.ts';
import type { OnDemandReplica } from './replica/ondemand.ts';
import { OpenSet } from './replica/openset.ts';
import type { ReplicaLimits } from './replica/limits.ts';
import type { Replication, StorageClass } from './resources.ts';
import { openStorage, type StorageDriver } from './storage.ts';
import type { Store } from './store.ts';

/** About 7 files and half a MiB each. */
export const defaultOpenReplicas = 500;
const reopenMs = { first: 1000, most: 30_000 };
/** Written by the API when a replication is deleted with keepReplica. */
export const keptTable = 'kept-replicas';
/** Replicas that this master has made, by uid: the only ones that it ever removes. */
export const madeTable = 'made-replicas';
/** Replicas that have had a point, by uid: not finding one of them is no reason to make a blank one. */
export const filledTable = 'filled-replicas';

export interface MirrorStorage {
  driver(storageClass: string): StorageDriver | undefined;
  /** Opens its replica where that is not open, or must be opened anew. Answers whether that was tried. */
  open(mirror: Mirror, replication: Replication): Promise<boolean>;
  /** It has a point. */
  filled(mirror: Mirror, replication: Replication): void;
  /** Ends its sessions and work and closes its replica for good. */
  giveBack(mirror: Mirror): Promise<void>;
  /**
   * Removes replicas that belong to no replication and are not to be kept. Of those that this store knows: the folder may also
   * hold another master's, those of a store that was lost, or what only looks like one (volumes of other provisioners).
   */
  removeOrphans(): Promise<void>;
}

export interface MirrorStorageOptions {
  store: Store;
  effects: Effects;
  events: Events;
  /** By which journals and locks end. */
  trusted: Clock;
  limits?: ReplicaLimits;
  openReplicas?: number;
  clusterStorage?: (storageClass: StorageClass) => StorageDriver;
  sourceBytes?: (source: Replication['spec']['source']) => Promise<number | undefined>;
  /** Makes the folder of a class this master's: see takeover.ts. */
  own?: (folder: string) => Promise<void>;
  /** A person has said that the replica may be another one from now on. */
  mayBeNew: (replication: Replication) => boolean;
  /** Assignments of this agent may have changed. */
  notify: (agent: string) => void;
  /** By uid. */
  all: ReadonlyMap<string, Mirror>;
  tell: (mirror: Mirror, code: string, level: EventInput['level'], message: string) => void;
}

export function mirrorStorage(options: MirrorStorageOptions): MirrorStorage {
  const { store, effects, events, trusted, all, tell } = options;
  const { clock } = effects;
  const openSet = new OpenSet<OnDemandReplica>(options.openReplicas ?? defaultOpenReplicas);
  const drivers = new Map<string, { uid: string; driver: StorageDriver }>();
  /** Replicas (uid on storage) that their last replication has not given back yet. */
  const closing = new Set<string>();
  /** Those that are known to be in `filledTable`, or need not be. */
  const filled = new Set<string>();

  function driver(name: string): StorageDriver | undefined {
    const found = store.get('StorageClass', name);
    if (!found) return undefined;
    const { uid } = found.metadata;
    const known = drivers.get(name);
    if (known?.uid === uid) return known.driver;
    const isFolder = found.spec.driver === 'directory';
    const opened = isFolder
      ? openStorage(found.spec, effects, trusted, openSet, options.own)
      : options.clusterStorage?.(found);
    if (opened) drivers.set(name, { uid, driver: opened });
    return opened;
  }

  async function openReplica(mirror: Mirror, replication: Replication, uid: string): Promise<HeldReplica> {
    const { spec } = replication;
    const storage = driver(spec.target.storageClass);
    if (!storage) {
      const { storageClass } = spec.target;
      throw new ReplicationError(
        'TargetFailed',
        `there is no storage class ${storageClass} that this master can use; create it`,
      );
    }
    if (store.getRecord(madeTable, uid) === undefined) store.putRecord(madeTable, uid, mirror.name);
    return storage.open({
      name: mirror.name,
      uid,
      mode: spec.source.volumeMode,
      mustExist: store.getRecord(filledTable, uid) !== undefined && !options.mayBeNew(replication),
      sourceBytes: () => options.sourceBytes?.(spec.source) ?? Promise.resolve(undefined),
      ...(options.limits ? { limits: options.limits } : {}),
      onDoubt: (why) => tell(mirror, 'ReplicaOpened', 'WARNING', why),
      onChange: () => (mirror.stale = true),
    });
  }

  async function letGo(mirror: Mirror, replica: HeldReplica): Promise<void> {
    // Opened anew it ends where it still is whole, and what is lacking comes from the source again.
    if (replica.damaged)
      tell(mirror, 'ReplicaDamaged', 'ERROR', 'journal or index is damaged; the replica is opened again');
    else tell(mirror, 'ReplicaLost', 'WARNING', `${replica.lost}; the replica is opened again`);
    mirror.replica = undefined;
    await replica.close();
  }

  function failed(mirror: Mirror, thrown: unknown): void {
    const error = asReplicationError(thrown, 'TargetFailed');
    const pauseMs = Math.min(reopenMs.most, (mirror.openFailure?.pauseMs ?? reopenMs.first / 2) * 2);
    // A pod takes a while to start: that is no failure yet.
    const isStarting = error.code === 'ReceiverPending' && pauseMs < reopenMs.most;
    const trouble = { reason: reasonOf(error), message: error.message, stops: !isStarting };
    if (mirror.openFailure?.trouble.message !== trouble.message)
      tell(mirror, 'TargetTrouble', isStarting ? 'INFO' : 'ERROR', error.message);
    mirror.openFailure = { trouble, againMs: clock.monotonicMs() + pauseMs, pauseMs };
  }

  return {
    driver,

    async open(mirror, replication) {
      const { replica } = mirror;
      if (replica && !mustReopen(replica)) return false;
      if (replica) await letGo(mirror, replica);
      if (mirror.openFailure && clock.monotonicMs() < mirror.openFailure.againMs) return false;
      const uid = replicaUid(replication);
      // The one before it is still there, or being closed.
      for (const other of all.values()) if (other !== mirror && other.replicaUid === uid) return false;
      if (closing.has(uid)) return false;
      try {
        mirror.replica = await openReplica(mirror, replication, uid);
        mirror.openFailure = undefined;
        options.notify(mirror.agent);
      } catch (error) {
        failed(mirror, error);
      }
      return true;
    },

    filled({ replicaUid, name }, { spec }) {
      if (filled.has(replicaUid)) return;
      filled.add(replicaUid);
      if (store.get('StorageClass', spec.target.storageClass)?.spec.driver === 'directory')
        store.putRecord(filledTable, replicaUid, name);
    },

    async giveBack(mirror) {
      closing.add(mirror.replicaUid);
      try {
        mirror.closing.abort(new ReplicationError('NotAssigned', `replication ${mirror.name} was deleted`));
        await mirror.replica?.close();
        mirror.replica = undefined;
      } finally {
        closing.delete(mirror.replicaUid);
      }
    },

    async removeOrphans() {
      const made = new Set(store.listRecords(madeTable).map(({ key }) => key));
      const wanted = new Set([
        ...store.list('Replication').map(replicaUid),
        ...store.listRecords(keptTable).map(({ key }) => key),
      ]);
      for (const { metadata } of store.list('StorageClass')) {
        try {
          const storage = driver(metadata.name);
          for (const uid of (await storage?.list()) ?? []) {
            if (!made.has(uid) || wanted.has(uid) || all.has(uid)) continue;
            await storage?.remove(uid);
            for (const table of [madeTable, filledTable]) store.putRecord(table, uid, undefined);
            filled.delete(uid);
          }
        } catch (error) {
          const message = `replicas of deleted replications cannot be removed: ${asReplicationError(error).message}`;
          events.emit({ code: 'StorageTrouble', level: 'WARNING', message, object: `StorageClass/${metadata.name}` });
        }
      }
    },
  };
}
