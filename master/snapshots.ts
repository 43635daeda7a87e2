/**
 * Carries out what Snapshot objects ask for: Creating -> Ready or Failed, Deleting -> gone.
 *
 * Guarantees: a snapshot that says Ready is whole on storage; one whose making was cut off by a restart is made anew from
 * the newest point, or found complete; data goes before the object does, so nothing is left that nobody knows of.
 */
import type { Clock } from '../proto/effects.ts';
import { asReplicationError } from '../proto/errors.ts';
import type { Events } from './engine.ts';
import type { Metrics } from './metrics.ts';
import type { Mirrors } from './mirrors.ts';
import type { Snapshot } from './resources.ts';
import { snapshotKey, type Store } from './store.ts';

export interface SnapshotsOptions {
  store: Store;
  clock: Clock;
  mirrors: Mirrors;
  events: Events;
  metrics: Pick<Metrics, 'onSnapshot'>;
}

/** A replica that is not open yet is looked at again. */
const againMs = 1000;

export async function runSnapshots(options: SnapshotsOptions, signal: AbortSignal): Promise<void> {
  const { store, clock } = options;
  const working = new Set<string>();
  const work = async (snapshot: Snapshot): Promise<void> => {
    const key = keyOf(snapshot);
    if (working.has(key)) return;
    working.add(key);
    try {
      for (;;) {
        const present = store.get('Snapshot', key);
        if (!present || signal.aborted || (await step(options, present, signal))) return;
        await clock.sleep(againMs, signal);
      }
    } catch {
      // Aborted: the next start goes on from the object's state.
    } finally {
      working.delete(key);
    }
  };
  const jobs: Promise<void>[] = [];
  const since = store.version();
  for (const snapshot of store.list('Snapshot')) jobs.push(work(snapshot));
  for await (const change of store.watch({ kinds: ['Snapshot'], since, signal })) {
    if (change.kind === 'Snapshot' && change.type !== 'DELETED') jobs.push(work(change.object));
    if (jobs.length > 100) await Promise.all(jobs.splice(0, 50));
  }
  await Promise.all(jobs);
}

/** True when there is nothing more to do. */
async function step(options: SnapshotsOptions, snapshot: Snapshot, signal: AbortSignal): Promise<boolean> {
  const { state } = snapshot.status;
  if (state !== 'Creating' && state !== 'Deleting') return true;
  const replication = options.store.get('Replication', snapshot.spec.replication);
  if (!replication) {
    options.store.delete('Snapshot', keyOf(snapshot));
    return true;
  }
  const replica = options.mirrors.replica(replication.metadata.uid);
  if (!replica) return false;
  if (state === 'Creating') await make(options, snapshot, replication.metadata.uid, signal);
  else await remove(options, snapshot, replication.metadata.uid);
  return true;
}

async function make(options: SnapshotsOptions, snapshot: Snapshot, uid: string, signal: AbortSignal): Promise<void> {
  const { store, clock, mirrors, events, metrics } = options;
  const { name } = snapshot.metadata;
  const replica = mirrors.replica(uid);
  if (!replica) return;
  const object = `Snapshot/${keyOf(snapshot)}`;
  const startMs = clock.monotonicMs();
  try {
    const found = replica.snapshotPoint(name);
    const point = found ?? replica.newestPoint;
    if (!point) throw new Error('there is no recovery point yet; wait for state NORMAL');
    if (!found) await replica.snapshot(name, point, signal, () => undefined);
    const view = { ...mirrors.view(uid, point), snapshot: name };
    update(options, snapshot, (status) => {
      Object.assign(status, {
        state: 'Ready',
        message: null,
        point: view,
        readyTime: new Date(clock.nowMs()).toISOString(),
      });
    });
    metrics.onSnapshot(snapshot.spec.replication, (clock.monotonicMs() - startMs) / 1000);
    events.emit({ code: 'SnapshotReady', level: 'INFO', message: `of point ${point.sequence}`, object });
  } catch (thrown) {
    if (signal.aborted) throw thrown;
    const { message } = asReplicationError(thrown);
    update(options, snapshot, (status) => Object.assign(status, { state: 'Failed', message }));
    metrics.onSnapshot(snapshot.spec.replication, (clock.monotonicMs() - startMs) / 1000);
    events.emit({ code: 'SnapshotFailed', level: 'ERROR', message, object });
  }
  if (!store.get('Snapshot', keyOf(snapshot))) await replica.deleteSnapshot(name);
}

async function remove(options: SnapshotsOptions, snapshot: Snapshot, uid: string): Promise<void> {
  const { store, mirrors, events } = options;
  await mirrors.replica(uid)?.deleteSnapshot(snapshot.metadata.name);
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
