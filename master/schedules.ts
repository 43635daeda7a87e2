/**
 * Takes the snapshots that schedules ask for, and removes those that have had their time.
 *
 * Guarantees: one snapshot for each due time at most, over restarts too; what was due while the master was down or the
 * replication had no point is made up for by one snapshot, not by all; a snapshot is removed only if retention.ts names
 * it, by the trusted clock, in the same step that checks who needs it.
 * What storage knows and the store does not (a store that was lost or went back) is taken over: snapshots become objects
 * again, and a lock is as long as the longer of the two has it.
 */
import type { Clock } from '../proto/effects.ts';
import { messageOf } from '../proto/errors.ts';
import { asTheyAre, derived, find } from './derived.ts';
import type { Events } from './engine.ts';
import type { Mirrors } from './mirrors.ts';
import { snapshotReferences } from './references.ts';
import type { HeldReplica } from './held.ts';
import { apiVersion, type Replication, type Snapshot, type SnapshotSchedule } from './resources.ts';
import { expired, type Candidate } from './retention.ts';
import { dueTime, nameOf } from './schedule.ts';
import { pauseAfter } from './pacing.ts';
import { snapshotKey, type Store } from './store.ts';

export interface SchedulesOptions {
  store: Store;
  clock: Clock;
  /** By which snapshots have had their time. */
  trusted: Clock;
  mirrors: Pick<Mirrors, 'replica' | 'view'>;
  events: Events;
}

const everyMs = 1000;
/** At the latest, also when nothing has changed: locks end by the clock. */
const retireEveryMs = 10_000;
/** Newest due time that is done with, by `<uid>/<period>`. */
const table = 'snapshot-schedules';

export async function runSchedules(options: SchedulesOptions, signal: AbortSignal): Promise<void> {
  const known = new WeakSet<HeldReplica>();
  forgetGone(options.store);
  let retired = { seen: '', atMs: -Infinity };
  const { store } = options;
  const all = derived(store, (replications) => replications.map(find));
  const isScheduled = ({ spec }: Replication): boolean => spec.snapshotSchedules.length > 0;
  const scheduled = derived(store, (replications) => replications.filter(isScheduled).map(find));
  while (!signal.aborted) {
    const lookMs = options.clock.monotonicMs();
    for (const found of all()) {
      const replica = options.mirrors.replica(found.uid);
      if (replica && !known.has(replica)) {
        for (const replication of asTheyAre(store, [found]))
          await takeOver(options, replication, replica).catch((error: unknown) => tell(options, replication, error));
        known.add(replica);
      }
    }
    for (const replication of asTheyAre(store, scheduled()))
      for (const schedule of replication.spec.snapshotSchedules) takeDue(options, replication, schedule);
    // What has had its time depends on these, and on a lock that ends.
    const revisions = (['Snapshot', 'Recovery', 'RecoverySchedule'] as const).map((kind) => store.revision(kind));
    const seen = JSON.stringify([revisions, store.decision('Replication')]);
    if (seen !== retired.seen || lookMs - retired.atMs >= retireEveryMs) {
      if (scheduled().length > 0) retire(options, asTheyAre(store, scheduled()));
      retired = { seen, atMs: lookMs };
    }
    await options.clock.sleep(pauseAfter(everyMs, options.clock.monotonicMs() - lookMs), signal).catch(() => undefined);
  }
}

function tell({ events }: SchedulesOptions, { metadata }: Replication, error: unknown): void {
  const message = `snapshots on storage cannot be looked at: ${messageOf(error)}`;
  events.emit({ code: 'StorageTrouble', level: 'WARNING', message, object: `Replication/${metadata.name}` });
}

function forgetGone(store: Store): void {
  const uids = new Set(store.list('Replication').map(({ metadata }) => metadata.uid));
  for (const { key } of store.listRecords(table))
    if (!uids.has(key.split('/')[0] ?? '')) store.putRecord(table, key, undefined);
}

/** A schedule that is new begins with its next due time. */
function takeDue(options: SchedulesOptions, replication: Replication, schedule: SnapshotSchedule): void {
  const { store, clock } = options;
  const { metadata, status } = replication;
  const key = `${metadata.uid}/${schedule.period}`;
  const timing = JSON.stringify([schedule.every, schedule.startTime, schedule.timeZone]);
  const due = dueTime(schedule, clock.nowMs()) ?? 0;
  const done = JSON.parse(store.getRecord(table, key) ?? 'null') as { timing: string; due: number } | null;
  if (done?.timing === timing && done.due >= due) return;
  if (done?.timing === timing && status.recoveryPoint !== null) create(options, replication, schedule, due);
  store.putRecord(table, key, JSON.stringify({ timing, due }));
}

function create(
  { store }: SchedulesOptions,
  { metadata }: Replication,
  { period }: SnapshotSchedule,
  dueMs: number,
): void {
  const name = nameOf(period, dueMs);
  const key = snapshotKey(metadata.name, name);
  // A crash between the object and the record of it: it is there already.
  if (store.get('Snapshot', key)) return;
  store.create('Snapshot', key, {
    apiVersion,
    kind: 'Snapshot',
    metadata: { name },
    spec: { replication: metadata.name, lockedUntil: null, pinned: false },
    status: { state: 'Creating', message: null, point: null, sizeBytes: null, readyTime: null, schedule: period },
  });
}

function retire({ store, trusted }: SchedulesOptions, replications: Replication[]): void {
  const references = snapshotReferences(store);
  const snapshots = Map.groupBy(store.list('Snapshot'), ({ spec }) => spec.replication);
  for (const { metadata, spec } of replications) {
    const candidates = (snapshots.get(metadata.name) ?? []).map((one) =>
      candidate(one, references.has(snapshotKey(metadata.name, one.metadata.name))),
    );
    for (const name of expired({ snapshots: candidates, schedules: spec.snapshotSchedules, nowMs: trusted.nowMs() }))
      store.update('Snapshot', snapshotKey(metadata.name, name), ({ status }) => (status.state = 'Deleting'));
  }
}

export function candidate({ metadata, spec, status }: Snapshot, referenced: boolean): Candidate {
  return {
    name: metadata.name,
    schedule: status.schedule,
    state: status.state,
    createdMs: Date.parse(metadata.creationTimestamp),
    pinned: spec.pinned,
    lockedUntilMs: spec.lockedUntil === null ? null : Date.parse(spec.lockedUntil),
    referenced,
  };
}

async function takeOver(options: SchedulesOptions, { metadata }: Replication, replica: HeldReplica): Promise<void> {
  const { store, events, mirrors } = options;
  for (const name of replica.snapshotNames) {
    const key = snapshotKey(metadata.name, name);
    const untilMs = await replica.snapshotLock(name);
    const lockedUntil = untilMs === undefined ? null : new Date(Math.min(untilMs, farMs)).toISOString();
    const present = store.get('Snapshot', key);
    if (present) {
      const shorter = Date.parse(present.spec.lockedUntil ?? '1970-01-01T00:00:00Z') < Math.min(untilMs ?? 0, farMs);
      if (shorter) store.update('Snapshot', key, ({ spec }) => (spec.lockedUntil = lockedUntil));
      else if (present.spec.lockedUntil !== null)
        await replica.lockSnapshot(name, Date.parse(present.spec.lockedUntil));
      continue;
    }
    const point = replica.snapshotPoint(name);
    if (!point || store.get('Replication', metadata.name)?.metadata.uid !== metadata.uid) continue;
    store.create('Snapshot', key, {
      apiVersion,
      kind: 'Snapshot',
      metadata: { name },
      spec: { replication: metadata.name, lockedUntil, pinned: false },
      status: {
        state: 'Ready',
        message: 'found on storage',
        point: { ...mirrors.view(metadata.uid, point), snapshot: name },
        sizeBytes: null,
        readyTime: new Date(point.committedUs / 1000).toISOString(),
        schedule: null,
      },
    });
    const message = 'it was on storage and not in the store';
    events.emit({ code: 'SnapshotReady', level: 'WARNING', message, object: `Snapshot/${key}` });
  }
}

/** A lock whose note cannot be read has no end that could be shown. */
const farMs = Date.parse('9999-12-31T23:59:59.999Z');
