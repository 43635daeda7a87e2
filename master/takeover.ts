/**
 * A master that goes on from a copy of another one's state (statecopy.ts). What happened between the copy and the end of the other
 * is not in it; what storage tells of that time is believed, and what nobody can tell is not done by itself.
 *
 * Guarantees: no recovery that was under way or waited goes on without a person; a replica that was fenced meanwhile is written by no
 * source until a person says so; snapshots and points are those on storage. A storage class has one master at a time: the one
 * that was taken over from is refused there, also when it comes back.
 */
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { readText, writeDurably } from '../proto/durable.ts';
import type { Clock, Random } from '../proto/effects.ts';
import { ReplicationError } from '../proto/errors.ts';
import { hold } from '../proto/hold.ts';
import type { Events } from './engine.ts';
import type { HeldReplica } from './held.ts';
import { hasEnded } from './recovery/machine.ts';
import { demoted, type Recovery, type Replication } from './resources.ts';
import { copiedTable } from './statecopy.ts';
import { snapshotKey, type Store } from './store.ts';

/** In records: which master this is (`self`), and which folders are its own in this life. */
const ownerTable = 'owner';

interface Owner {
  /** The same over all copies. */
  id: string;
  /** Another one after each takeover. */
  life: string;
}

export interface TakeOverOptions {
  store: Store;
  clock: Clock;
  random: Random;
  events: Events;
  /** Where replicas of a class lie here, by class. */
  paths: ReadonlyMap<string, string>;
}

/** Once, before anything else is done with the store. Nothing where the state is the master's own. */
export function takeOver(options: TakeOverOptions): void {
  const { store, clock, events, paths } = options;
  const time = store.getRecord(copiedTable, 'time');
  if (time === undefined) return;
  const unknown = [...paths.keys()].find((name) => store.get('StorageClass', name) === undefined);
  if (unknown !== undefined) throw new Error(`--class-path ${unknown}: the copy has no storage class of this name`);
  const owner = ownerOf(options);
  const now = new Date(clock.nowMs()).toISOString();
  let stopped = 0;
  store.batch(() => {
    store.putRecord(ownerTable, 'self', JSON.stringify({ ...owner, life: newName(options.random) }));
    for (const [name, path] of paths)
      store.update('StorageClass', name, ({ spec }) => void (spec.parameters = { ...spec.parameters, path }));
    for (const recovery of store.list('Recovery'))
      if (!rests(recovery)) {
        stopped++;
        store.update('Recovery', recovery.metadata.name, (object) => stop(object, time, now));
      }
    for (const replication of store.list('Replication'))
      store.update('Replication', replication.metadata.name, ({ requests }) => {
        requests.takenOver = time;
      });
    store.putRecord(copiedTable, 'time', undefined);
  });
  const message =
    `this master goes on from a copy of ${time}: ${store.list('Replication').length} replications` +
    (stopped > 0 ? `, ${stopped} recoveries that were under way then wait for a person` : '');
  events.emit({ code: 'MasterTookOver', level: 'WARNING', message, object: null });
}

/** Nothing is done for it until somebody asks. */
function rests(recovery: Recovery): boolean {
  return hasEnded(recovery) || ['Completed', 'Failed', 'Paused'].includes(recovery.status.state);
}

/** What is undone or confirmed goes on, as that leads to the same however often it is done. */
function stop({ status }: Recovery, time: string, now: string): void {
  const then = `the master went on from a copy of ${time}, when this was ${status.state}; what it did after that is not known`;
  // One that waits to be tried again holds sources, and may have made copies: cancelling has to undo that.
  const hasBegun = status.tasks.length > 0;
  if (status.state === 'Waiting' && !hasBegun) {
    const message = `${then}. Look whether it was done, and ask for it again if not`;
    Object.assign(status, { state: 'Cancelled', outcome: 'cancelled', endTime: now, message });
  } else if (['Waiting', 'Running', 'Pausing'].includes(status.state))
    Object.assign(status, { state: 'Paused', message: `${then}. Look at what is there, then resume or cancel it` });
}

/** The replica as it was found, once it is open: newer than the store where something was done after the copy. */
export function adopt(
  store: Store,
  replica: Pick<HeldReplica, 'generation' | 'snapshotNames'>,
  { metadata: { name }, status }: Replication,
  tell: (code: string, message: string) => void,
): void {
  const found = replica.generation ?? '0';
  const isNewer = BigInt(found) > BigInt(status.fencingGeneration);
  const there = new Set(replica.snapshotNames);
  store.batch(() => {
    for (const { metadata, status } of store.snapshotsOf(name))
      if (status.state === 'Ready' && !there.has(metadata.name))
        store.update('Snapshot', snapshotKey(name, metadata.name), ({ status }) =>
          Object.assign(status, { state: 'Failed', message: 'it is not on storage any more' }),
        );
    store.update('Replication', name, (object) => {
      delete object.requests.takenOver;
      if (!isNewer) return;
      object.status.fencingGeneration = found;
      if (object.requests.fencedBy !== undefined) return;
      object.requests.fencedBy = demoted;
      object.spec.replicationState = 'secondary';
    });
  });
  if (isNewer)
    tell(
      'SourceDemoted',
      'the replica was fenced after the copy that this master goes on from was made (a promotion, a rollback, a move of its claim): ' +
        'look which side is used. `resync` lets the source be mirrored again, `promote` hands out the replica',
    );
}

function ownerOf({ store, random }: Pick<TakeOverOptions, 'store' | 'random'>): Owner {
  const kept = store.getRecord(ownerTable, 'self');
  if (kept !== undefined) return JSON.parse(kept) as Owner;
  const owner = { id: newName(random), life: newName(random) };
  store.putRecord(ownerTable, 'self', JSON.stringify(owner));
  return owner;
}

const newName = (random: Random): string => random.bytes(8).toString('hex');

/**
 * Makes the folder of a storage class this master's, among others that may use it. Held until the process ends.
 * @throws ReplicationError TargetRefused when the same master runs elsewhere, or another one has taken over from it
 */
export function folderOwner(options: Pick<TakeOverOptions, 'store' | 'random'>): (folder: string) => Promise<void> {
  const { store } = options;
  const { id, life } = ownerOf(options);
  const owned = new Set<string>();
  return async (folder) => {
    if (owned.has(folder)) return;
    await mkdir(folder, { recursive: true });
    const path = join(folder, `.replicator-master-${id}`);
    if (!isOurs(`${path}.lock`))
      throw new ReplicationError(
        'TargetRefused',
        `${folder} is in use by another process or machine that runs with a copy of this master's state; stop one of them`,
      );
    const found = await readText(path);
    // It was ours in this life, and is another's now.
    if (found !== undefined && found !== life && store.getRecord(ownerTable, folder) === life)
      throw new ReplicationError(
        'TargetRefused',
        `${folder}: another master has taken over from a copy of this one's state; stop this one, its time is over`,
      );
    if (found !== life) await writeDurably(path, life, 0o600);
    store.putRecord(ownerTable, folder, life);
    owned.add(folder);
  };
}

/** Where the filesystem has no locks, only who came last can be told. */
function isOurs(lock: string): boolean {
  try {
    return hold(lock);
  } catch {
    return true;
  }
}
