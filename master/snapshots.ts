/**
 * Carries out what Snapshot objects ask for: Creating -> Ready or Failed, Deleting -> gone.
 *
 * Guarantees: a snapshot that says Ready is whole on storage; one whose making was cut off by a restart is made anew from
 * the newest point, or found complete; data goes before the object does, so nothing is left that nobody knows of; one that
 * is to be deleted while it is being made is deleted then.
 * Failure: a snapshot that cannot be made is Failed with the reason; one that cannot be deleted stays Deleting, says why and
 * is tried again.
 */
import type { Clock } from '../proto/effects.ts';
import { asReplicationError, messageOf } from '../proto/errors.ts';
import type { Events } from './engine.ts';
import { follow } from './follow.ts';
import type { Metrics } from './metrics.ts';
import type { Mirrors } from './mirrors.ts';
import type { HeldReplica } from './held.ts';
import type { Snapshot } from './resources.ts';
import { snapshotKey, type Store } from './store.ts';

export interface SnapshotsOptions {
  store: Store;
  clock: Clock;
  mirrors: Mirrors;
  events: Events;
  metrics: Pick<Metrics, 'onSnapshot'>;
}

/** A replica that is not open yet, or a deletion that failed, is looked at again. */
const againMs = 1000;

export async function runSnapshots(options: SnapshotsOptions, signal: AbortSignal): Promise<void> {
  const working = new Map<string, Promise<void>>();
  const look = (key: string): void => {
    if (working.has(key)) return;
    const job = carryOut(options, key, signal)
      .catch(() => undefined) // aborted: the next start goes on from the object's state
      .finally(() => working.delete(key));
    working.set(key, job);
  };
  for await (const { key, deleted } of follow(options.store, 'Snapshot', signal)) if (!deleted) look(key);
  await Promise.all(working.values());
}

/** Until there is nothing more to do for it, whatever is asked of it meanwhile. */
async function carryOut(options: SnapshotsOptions, key: string, signal: AbortSignal): Promise<void> {
  const { store, clock, mirrors, events } = options;
  let told: string | undefined;
  for (;;) {
    signal.throwIfAborted();
    const snapshot = store.get('Snapshot', key);
    const state = snapshot?.status.state;
    if (!snapshot || (state !== 'Creating' && state !== 'Deleting')) return;
    const uid = store.get('Replication', snapshot.spec.replication)?.metadata.uid;
    if (uid === undefined) return void store.delete('Snapshot', key);
    const replica = mirrors.replica(uid);
    if (replica && state === 'Creating') {
      await make(options, snapshot, replica, uid, signal);
      continue;
    }
    try {
      if (replica) return await remove(options, snapshot, replica);
    } catch (error) {
      const message = `cannot be deleted, tried again: ${messageOf(error)}`;
      update(options, snapshot, (status) => (status.message = message));
      if (told !== message)
        events.emit({ code: 'StorageTrouble', level: 'WARNING', message, object: `Snapshot/${key}` });
      told = message;
    }
    await clock.sleep(againMs, signal);
  }
}

async function make(
  options: SnapshotsOptions,
  snapshot: Snapshot,
  replica: HeldReplica,
  uid: string,
  signal: AbortSignal,
): Promise<void> {
  const { store, clock, mirrors, events, metrics } = options;
  const { name } = snapshot.metadata;
  const object = `Snapshot/${keyOf(snapshot)}`;
  const startMs = clock.monotonicMs();
  try {
    const found = replica.snapshotPoint(name);
    const point = found ?? replica.newestPoint;
    if (!point) throw new Error('there is no recovery point yet; wait for state NORMAL');
    const until = snapshot.spec.lockedUntil;
    const untilMs = until === null ? undefined : Date.parse(until);
    if (!found) await replica.snapshot(name, point, signal, () => undefined, untilMs);
    // It may have been locked for longer meanwhile, or was found as an earlier run left it.
    const newest = store.get('Snapshot', keyOf(snapshot))?.spec.lockedUntil;
    if (newest !== null && newest !== undefined) await replica.lockSnapshot(name, Date.parse(newest));
    const view = { ...mirrors.view(uid, point), snapshot: name };
    const mode = store.get('Replication', snapshot.spec.replication)?.spec.source.volumeMode;
    update(options, snapshot, (status) => {
      if (status.state !== 'Creating') return;
      Object.assign(status, {
        state: 'Ready',
        message: null,
        point: view,
        // Of a tree the replica counts its slots, which are no bytes.
        sizeBytes: mode === 'Block' ? (replica.snapshotBytes(name) ?? null) : null,
        readyTime: new Date(clock.nowMs()).toISOString(),
      });
    });
    metrics.onSnapshot(snapshot.spec.replication, (clock.monotonicMs() - startMs) / 1000);
    events.emit({ code: 'SnapshotReady', level: 'INFO', message: `of point ${point.sequence}`, object });
  } catch (thrown) {
    if (signal.aborted) throw thrown;
    const { message } = asReplicationError(thrown);
    update(options, snapshot, (status) => {
      if (status.state === 'Creating') Object.assign(status, { state: 'Failed', message });
    });
    metrics.onSnapshot(snapshot.spec.replication, (clock.monotonicMs() - startMs) / 1000);
    events.emit({ code: 'SnapshotFailed', level: 'ERROR', message, object });
  }
  if (!store.get('Snapshot', keyOf(snapshot))) await replica.deleteSnapshot(name);
}

async function remove(options: SnapshotsOptions, snapshot: Snapshot, replica: HeldReplica): Promise<void> {
  const { store, events } = options;
  await replica.deleteSnapshot(snapshot.metadata.name);
  store.delete('Snapshot', keyOf(snapshot));
  events.emit({
    code: 'SnapshotDeleted',
    level: 'INFO',
    message: 'its data is gone',
    object: `Snapshot/${keyOf(snapshot)}`,
  });
}

/** The object may have been deleted with its replication meanwhile. */
function update({ store }: SnapshotsOptions, snapshot: Snapshot, change: (status: Snapshot['status']) => void): void {
  const key = keyOf(snapshot);
  if (store.get('Snapshot', key)) store.update('Snapshot', key, (object) => change(object.status));
}

function keyOf({ spec, metadata }: Snapshot): string {
  return snapshotKey(spec.replication, metadata.name);
}
