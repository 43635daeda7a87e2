/**
 * Carries out recoveries: a drill clones a point to a path, reads the copy whole and compares it with the point's digest.
 * The source and mirroring are not touched.
 *
 * Guarantees: a recovery that was running when the master stopped starts again from nothing; cancel and rollback remove
 * what the recovery made and nothing else; a copy is `verified` only when every byte of it was read again.
 * Failure: the recovery is Failed with the reason, and nothing of it stays behind but an answer.
 */
import { promises as fs } from 'node:fs';
import { dirname } from 'node:path';
import type { Allow } from '../proto/allow.ts';
import type { Clock } from '../proto/effects.ts';
import { asReplicationError, ReplicationError, systemErrorCode } from '../proto/errors.ts';
import type { Events } from './engine.ts';
import { follow } from './follow.ts';
import type { Metrics } from './metrics.ts';
import type { Mirrors } from './mirrors.ts';
import type { Point } from './replica/horizon.ts';
import type { Replica } from './replica/replica.ts';
import { removeTreeBase } from './replica/treebase.ts';
import type { Recovery, RecoveryStatus, RecoveryTask, Replication } from './resources.ts';
import type { VolumeMode } from '../proto/wire.ts';
import { snapshotKey, type Store } from './store.ts';

export interface RecoveriesOptions {
  store: Store;
  clock: Clock;
  mirrors: Mirrors;
  events: Events;
  metrics: Pick<Metrics, 'onRecovery'>;
  allow: Pick<Allow, 'mayWriteRecovery'>;
  /** Where copies go that name no path. */
  folder: string;
}

const progressEveryMs = 500;
const againMs = 1000;
/** Identity of the finished copy by the recovery's uid: its path may hold something else by the time it is rolled back. */
const copiesTable = 'recovered-copies';

export async function runRecoveries(options: RecoveriesOptions, signal: AbortSignal): Promise<void> {
  const { store } = options;
  const working = new Map<string, AbortController>();
  const jobs = new Set<Promise<void>>();

  const look = (name: string): void => {
    const recovery = store.get('Recovery', name);
    if (!recovery) return;
    const running = working.get(name);
    if (running) {
      if (recovery.requests.cancel) running.abort(new ReplicationError('Stopped', 'the recovery was cancelled'));
      return;
    }
    if (!hasWork(recovery)) return;
    const cancel = new AbortController();
    working.set(name, cancel);
    const job = work(options, recovery, cancel, signal)
      .catch((error: unknown) => rest(options, recovery, asReplicationError(error), signal))
      .catch(() => undefined) // stopped: the next start goes on from the object's state
      .finally(() => {
        working.delete(name);
        jobs.delete(job);
        if (!signal.aborted) look(name);
      });
    jobs.add(job);
  };

  for await (const { key, uid, deleted } of follow(store, 'Recovery', signal)) {
    if (deleted) store.putRecord(copiesTable, uid, undefined);
    look(key);
  }
  await Promise.all(jobs);
}

/** What could not be removed, or not be written down, is told and tried again after a while. */
async function rest(
  options: RecoveriesOptions,
  { metadata: { name }, status }: Recovery,
  { message }: ReplicationError,
  signal: AbortSignal,
): Promise<void> {
  signal.throwIfAborted();
  const before = options.store.get('Recovery', name)?.status.message ?? status.message;
  const text = `${message}; tried again`;
  if (before !== text) {
    set(options, name, (now) => (now.message = text));
    options.events.emit({ code: 'StorageTrouble', level: 'WARNING', message: text, object: `Recovery/${name}` });
  }
  await options.clock.sleep(againMs, signal);
}

function hasWork({ status, requests }: Recovery): boolean {
  if (['Waiting', 'Running', 'Cancelling', 'RollingBack'].includes(status.state)) return true;
  return requests.rollback && (status.state === 'Completed' || status.state === 'Failed');
}

async function work(
  options: RecoveriesOptions,
  recovery: Recovery,
  cancel: AbortController,
  stop: AbortSignal,
): Promise<void> {
  const { state } = recovery.status;
  if (recovery.requests.cancel || state === 'Cancelling') return finishCancel(options, recovery);
  if (recovery.requests.rollback || state === 'RollingBack') return rollBack(options, recovery);
  const signal = AbortSignal.any([cancel.signal, stop]);
  try {
    await drill(options, recovery, signal);
  } catch (thrown) {
    if (stop.aborted) throw thrown;
    if (cancel.signal.aborted) return finishCancel(options, recovery);
    fail(options, recovery, asReplicationError(thrown));
  }
}

async function drill(options: RecoveriesOptions, recovery: Recovery, signal: AbortSignal): Promise<void> {
  const { store, clock, mirrors, events } = options;
  const { name } = recovery.metadata;
  const createdMs = Date.parse(recovery.metadata.creationTimestamp);
  const replication = store.get('Replication', recovery.spec.replication);
  if (!replication) throw new ReplicationError('PointGone', `replication ${recovery.spec.replication} was deleted`);
  const replica = await openReplica(options, replication, signal);
  const point = choose(options, recovery, replica);
  const path = await targetPath(options, recovery, replication);
  const startTime = recovery.status.startTime ?? new Date(clock.nowMs()).toISOString();
  // What stands at a path that an earlier run of ours had begun is ours; anything else there was somebody's before.
  if (recovery.status.state === 'Running' && recovery.status.tasks[0]?.path === path) await removeCopy(path);
  await mustBeFree(path, replication.spec.source.volumeMode);
  const task: RecoveryTask = {
    volume: recovery.spec.replication,
    state: 'Running',
    path,
    message: null,
    startTime,
    endTime: null,
    progress: { bytesTotal: 0, bytesDone: 0, step: 'starting' },
  };
  const view = mirrors.view(replication.metadata.uid, point);
  set(options, name, (status) => Object.assign(status, { state: 'Running', startTime, point: view, tasks: [task] }));
  events.emit({
    code: 'RecoveryStarted',
    level: 'INFO',
    message: `drill of point ${point.sequence} to ${path}`,
    object: `Recovery/${name}`,
  });

  await fs.mkdir(dirname(path), { recursive: true, mode: 0o700 });
  let usableMs: number | undefined;
  let toldMs = -Infinity;
  const { verified, withheld } = await replica.recover(point, path, {
    verify: true,
    signal,
    progress(step, bytesDone, bytesTotal) {
      const nowMs = clock.monotonicMs();
      if (step === 'verifying') usableMs ??= clock.nowMs();
      if (nowMs - toldMs < progressEveryMs) return;
      toldMs = nowMs;
      set(options, name, (status) =>
        Object.assign(status.tasks[0] ?? {}, { progress: { bytesTotal, bytesDone, step } }),
      );
    },
  });
  store.putRecord(copiesTable, recovery.metadata.uid, await identityOf(path));
  const endMs = clock.nowMs();
  await replica.noteDrill(point.sequence, Math.round(endMs * 1000));
  mirrors.drilled(replication.metadata.uid, endMs);
  const endTime = new Date(endMs).toISOString();
  const rtoSeconds = seconds((usableMs ?? endMs) - createdMs);
  set(options, name, (status) => {
    Object.assign(status, { state: 'Completed', outcome: 'success', verified, endTime, rtoSeconds });
    Object.assign(status, {
      message: `the copy is at ${path}${withheld > 0 ? `; ${withheld} files lack an owner, attribute or type that the master may not give them` : ''}`,
      rpoSeconds: seconds(createdMs - goodAsOfMs(point, replication)),
    });
    Object.assign(status.tasks[0] ?? {}, { state: 'Completed', endTime, progress: null });
  });
  ended(options, recovery, 'success', 'RecoveryCompleted', `point ${point.sequence} is at ${path}, verified`);
}

/** Source time that the point is as good as: of the newest one later than its cut where nothing changed since. */
function goodAsOfMs({ sequence, sourceUs }: Point, { status }: Replication): number {
  const cutMs = sourceUs / 1000;
  if (status.recoveryPoint?.sequence !== sequence || status.lastSyncTime === null) return cutMs;
  return Math.max(cutMs, Date.parse(status.lastSyncTime));
}

/** Times come from clocks of different resolution: milliseconds are what both have. */
function seconds(ms: number): number {
  return Math.max(0, Math.round(ms)) / 1000;
}

async function openReplica(
  { store, mirrors, clock }: RecoveriesOptions,
  { metadata }: Replication,
  signal: AbortSignal,
): Promise<Replica> {
  for (;;) {
    if (store.get('Replication', metadata.name)?.metadata.uid !== metadata.uid)
      throw new ReplicationError('PointGone', `replication ${metadata.name} was deleted`);
    const replica = mirrors.replica(metadata.uid);
    if (replica) return replica;
    await clock.sleep(againMs, signal);
  }
}

/** @throws PointGone */
function choose({ store }: RecoveriesOptions, { spec }: Recovery, replica: Replica): Point {
  const { point } = spec;
  const gone = (what: string) =>
    new ReplicationError('PointGone', `${what}; choose one of the points or snapshots that are listed`);
  if (point === 'latest-data') {
    const newest = replica.newestPoint;
    if (!newest) throw gone('there is no recovery point');
    return newest;
  }
  if (typeof point === 'object' && 'time' in point) {
    // Times are shown in whole milliseconds: one names all that lies in it.
    const found = replica.pointAt(Date.parse(point.time) * 1000 + 999);
    if (!found) throw gone(`no recovery point is as old as ${point.time}`);
    return found;
  }
  const name = point === 'latest-snapshot' ? latestSnapshot(store, spec.replication) : point.snapshot;
  const snapshot = name === undefined ? undefined : store.get('Snapshot', snapshotKey(spec.replication, name));
  const found = name === undefined || snapshot?.status.state !== 'Ready' ? undefined : replica.snapshotPoint(name);
  if (!found) throw gone(`there is no snapshot ${name ?? ''} that is Ready`);
  return found;
}

function latestSnapshot(store: Store, replication: string): string | undefined {
  const ready = store
    .list('Snapshot')
    .filter(({ spec, status }) => spec.replication === replication && status.state === 'Ready');
  ready.sort((a, b) => (a.status.point?.sequence ?? 0) - (b.status.point?.sequence ?? 0));
  return ready.at(-1)?.metadata.name;
}

/** @throws TargetRefused */
async function targetPath(
  { allow, folder }: RecoveriesOptions,
  recovery: Recovery,
  { spec }: Replication,
): Promise<string> {
  const chosen =
    recovery.spec.target?.path ??
    `${folder}/${recovery.metadata.name}${spec.source.volumeMode === 'Block' ? '.raw' : ''}`;
  return allow.mayWriteRecovery(chosen);
}

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

/** Inode numbers come again, together with the time of birth they do not. */
async function identityOf(path: string): Promise<string> {
  const { ino, birthtimeNs } = await fs.lstat(path, { bigint: true });
  return `${ino}:${birthtimeNs}`;
}

/** Only what a recovery of ours made: `path` stands in its status. */
async function removeCopy(path: string): Promise<void> {
  const isTree = (await fs.lstat(path).catch(() => undefined))?.isDirectory() === true;
  if (isTree) await removeTreeBase(path);
  else await fs.rm(path, { force: true });
}

async function finishCancel(options: RecoveriesOptions, recovery: Recovery): Promise<void> {
  const { name } = recovery.metadata;
  set(options, name, (status) => (status.state = 'Cancelling'));
  // A copy in the making is removed by those who make it; what is left is one that a stop of the master cut off.
  for (const { path, state } of options.store.get('Recovery', name)?.status.tasks ?? [])
    if (path !== null && state !== 'Failed') await removeCopy(path);
  const endTime = new Date(options.clock.nowMs()).toISOString();
  set(options, name, (status) => {
    Object.assign(status, {
      state: 'Cancelled',
      outcome: 'cancelled',
      endTime,
      message: 'cancelled; what was made is removed',
    });
    for (const task of status.tasks) Object.assign(task, { state: 'Cancelled', endTime, progress: null });
  });
  ended(options, recovery, 'cancelled', 'RecoveryCancelled', 'cancelled; what was made is removed');
}

async function rollBack(options: RecoveriesOptions, recovery: Recovery): Promise<void> {
  const { name } = recovery.metadata;
  set(options, name, (status) => (status.state = 'RollingBack'));
  const { store } = options;
  const { uid } = recovery.metadata;
  const copy = store.getRecord(copiesTable, uid);
  let message = 'rolled back; the copy is removed';
  for (const { path, state } of recovery.status.tasks) {
    // A failed task has removed what it made; at its path there may be what it was refused for.
    if (path === null || state === 'Failed') continue;
    const present = await identityOf(path).catch(() => undefined);
    if (copy === undefined || present === undefined || present === copy) await removeCopy(path);
    else
      message = `rolled back; the copy was gone, and what stands at ${path} now is not of this recovery: it is left alone`;
  }
  store.putRecord(copiesTable, uid, undefined);
  set(options, name, (status) => {
    Object.assign(status, { state: 'RolledBack', message });
    for (const task of status.tasks) task.state = 'RolledBack';
  });
  options.events.emit({
    code: 'RecoveryRolledBack',
    level: 'INFO',
    message,
    object: `Recovery/${name}`,
  });
}

function fail(options: RecoveriesOptions, recovery: Recovery, error: ReplicationError): void {
  const endTime = new Date(options.clock.nowMs()).toISOString();
  set(options, recovery.metadata.name, (status) => {
    Object.assign(status, { state: 'Failed', outcome: 'failed', endTime, message: error.message });
    if (status.tasks.length === 0) {
      status.tasks.push({
        volume: recovery.spec.replication,
        state: 'Failed',
        path: null,
        message: error.message,
        startTime: status.startTime,
        endTime,
        progress: null,
      });
    }
    for (const task of status.tasks)
      Object.assign(task, { state: 'Failed', message: error.message, endTime, progress: null });
  });
  ended(options, recovery, 'failed', 'RecoveryFailed', error.message);
}

function ended(
  { events, metrics, clock }: RecoveriesOptions,
  recovery: Recovery,
  result: 'success' | 'failed' | 'cancelled',
  code: 'RecoveryCompleted' | 'RecoveryFailed' | 'RecoveryCancelled',
  message: string,
): void {
  metrics.onRecovery(
    recovery.spec.type,
    result,
    (clock.nowMs() - Date.parse(recovery.metadata.creationTimestamp)) / 1000,
  );
  const level = result === 'failed' ? 'ERROR' : 'INFO';
  events.emit({ code, level, message, object: `Recovery/${recovery.metadata.name}` });
}

function set({ store }: RecoveriesOptions, name: string, change: (status: RecoveryStatus) => void): void {
  if (store.get('Recovery', name)) store.update('Recovery', name, (object) => change(object.status));
}
