/**
 * The replications that this master owns: for each one its replica, who feeds it, and its status in the store.
 *
 * One keyed loop: whatever happens to a replication (its object changes, the agent reports, a commit, a second passes)
 * leads to the same `settle`, which opens what must be open and writes the status that follows from the facts.
 * Guarantees: the store's status is derived, never a source of truth; a replica is open once at most and is closed before
 * its data is removed; data is removed only for a replication that was deleted without keepReplica.
 * Failure: a replica that cannot be opened is tried again with growing pauses, and its status says why.
 */
import type { Clock, Effects } from '../proto/effects.ts';
import { asReplicationError, ReplicationError } from '../proto/errors.ts';
import { granuleBytes } from '../proto/granule.ts';
import { Lock } from '../proto/lock.ts';
import type { Assignment, Report, Trouble } from '../proto/wire.ts';
import type { EventInput, Events } from './engine.ts';
import { groupCuts, groupPoints } from './groupcuts.ts';
import { follow, type Seen } from './follow.ts';
import type { Metrics } from './metrics.ts';
import { latestReady } from './references.ts';
import type { CommitRecord } from './replica/frame.ts';
import type { Point } from './replica/horizon.ts';
import { Replica, type ReplicaLimits } from './replica/replica.ts';
import { demoted } from './resources.ts';
import type { GroupPointView, PointView, Replication, ReplicationStatus } from './resources.ts';
import { nextTime, parseCron } from './cron.ts';
import { nextGeneration } from './recovery/generation.ts';
import { readHello, serveSession, type MirrorStream } from './session.ts';
import { nextTime as nextDue } from './schedule.ts';
import { pointView, statusOf } from './status.ts';
import { openStorage, type StorageDriver } from './storage.ts';
import type { Store } from './store.ts';

/** Status without a change of state is written at most this often. */
const statusEveryMs = 1000;
/** An agent whose line broke this recently is not called gone: it dials again at once. */
const graceMs = 10_000;
const advanceEveryMs = 5000;
const reopenMs = { first: 1000, most: 30_000 };
const doneTable = 'requests-done';
/** Written by the API when a replication is deleted with keepReplica. */
export const keptTable = 'kept-replicas';
/** Replicas that this master has made, by uid: the only ones that it ever removes. */
export const madeTable = 'made-replicas';

export interface MirrorsOptions {
  store: Store;
  effects: Effects;
  events: Events;
  metrics: Pick<Metrics, 'onReport' | 'onSync' | 'onVerify' | 'onWritten'>;
  limits?: ReplicaLimits;
  /** By which journals and locks end; default the effects' clock. */
  trusted?: Clock;
  /** Assignments of an agent may have changed. */
  notify: () => void;
  /** Whether the agent's control line is up. */
  connected: (agent: string) => boolean;
}

/** Of its replica on storage. */
export function replicaUid({ metadata, requests }: Pick<Replication, 'metadata' | 'requests'>): string {
  return requests.replica ?? metadata.uid;
}

interface Mirror {
  readonly name: string;
  readonly uid: string;
  readonly replicaUid: string;
  replica: Replica | undefined;
  report: Report | undefined;
  readonly lock: Lock;
  /** A settle that has not begun yet: it will see whatever changes until then. */
  settling: Promise<void> | undefined;
  /** Ends its sessions and work. */
  readonly closing: AbortController;
  openFailure: { trouble: Trouble; againMs: number; pauseMs: number } | undefined;
  applyTrouble: Trouble | undefined;
  journalShort: boolean;
  withheld: number;
  lastSync: { durationSeconds: number; bytes: number } | undefined;
  lastAttemptMs: number | undefined;
  lastVerified: { ms: number; mismatchedGranules: number } | undefined;
  lastDrilledMs: number | undefined;
  lastConnectedMs: number;
  writtenMs: number;
  /** Of the replica's count, already told to the metrics. */
  toldBytes: number;
  advancedMs: number;
  advancing: boolean;
  nextCronMs: number | undefined;
  /** Of the newest look at the schedules of this generation. */
  nextSnapshot: { generation: number; ms: number } | undefined;
  usedBytes: number | undefined;
  spaceTrouble: Trouble | undefined;
}

export interface Mirrors {
  /** Opens what exists and keeps it right until the signal aborts; then all replicas are closed. */
  run(signal: AbortSignal): Promise<void>;
  /** One Mirror call, to its end. */
  serve(agent: string, stream: MirrorStream, signal: AbortSignal): Promise<void>;
  assignmentsFor(agent: string): Assignment[];
  onReport(agent: string, report: Report): void;
  /** Open, or undefined; the status says why not. */
  replica(uid: string): Replica | undefined;
  points(uid: string, fromMs?: number, toMs?: number): PointView[];
  view(uid: string, point: Point): PointView;
  /** Of a group, oldest first: the moments of which every member has its point. */
  groupPoints(group: string): GroupPointView[];
  driver(storageClass: string): StorageDriver | undefined;
  drilled(uid: string, ms: number): void;
  /** What it holds on storage, and whether that is going to be too much. */
  space(uid: string, usedBytes: number | undefined, trouble: Trouble | undefined): void;
}

export function mirrors(options: MirrorsOptions): Mirrors {
  const { store, effects, events } = options;
  const { clock } = effects;
  const trusted = options.trusted ?? clock;
  const all = new Map<string, Mirror>();
  /** Replicas (uid on storage) that their last replication has not given back yet. */
  const closing = new Set<string>();
  const cuts = groupCuts({
    clock,
    random: effects.random,
    members: (group) =>
      store
        .list('Replication')
        .filter(({ spec }) => spec.group === group)
        .map(({ metadata, spec }) => ({
          uid: metadata.uid,
          name: metadata.name,
          initialized: all.get(metadata.uid)?.replica?.newestPoint !== undefined,
          paused: spec.paused,
          maxFreezeMs: spec.maxFreezeMs,
          hookSeconds: spec.hooks?.timeoutSeconds ?? 0,
        })),
  });
  const drivers = new Map<string, { path: string; driver: StorageDriver }>();

  function driver(name: string): StorageDriver | undefined {
    const spec = store.get('StorageClass', name)?.spec;
    if (!spec) return undefined;
    const known = drivers.get(name);
    if (known?.path === spec.parameters.path) return known.driver;
    const opened = openStorage(spec, effects.disk, effects.random, trusted);
    drivers.set(name, { path: spec.parameters.path, driver: opened });
    return opened;
  }

  function tell(mirror: Mirror, code: string, level: EventInput['level'], message: string): void {
    events.emit({ code, level, message, object: `Replication/${mirror.name}` });
  }

  function add(replication: Replication): Mirror {
    const { name, uid } = replication.metadata;
    const mirror: Mirror = {
      name,
      uid,
      replicaUid: replicaUid(replication),
      replica: undefined,
      report: undefined,
      lock: new Lock(),
      settling: undefined,
      closing: new AbortController(),
      openFailure: undefined,
      applyTrouble: undefined,
      journalShort: false,
      withheld: 0,
      lastSync: undefined,
      lastAttemptMs: undefined,
      lastVerified: undefined,
      lastDrilledMs: undefined,
      lastConnectedMs: clock.monotonicMs(),
      writtenMs: -Infinity,
      toldBytes: 0,
      advancedMs: -Infinity,
      advancing: false,
      nextCronMs: undefined,
      nextSnapshot: undefined,
      usedBytes: undefined,
      spaceTrouble: undefined,
    };
    all.set(uid, mirror);
    return mirror;
  }

  /** Everything there is to do for one replication now. Cheap when nothing is. */
  async function settle(mirror: Mirror): Promise<void> {
    const replication = store.get('Replication', mirror.name);
    if (replication?.metadata.uid !== mirror.uid) return drop(mirror);
    if (mirror.replica?.damaged === true) {
      // Opened anew it ends where it still is whole, and what is lacking comes from the source again.
      tell(mirror, 'ReplicaDamaged', 'ERROR', 'the journal is damaged; the replica is opened again');
      const { replica } = mirror;
      mirror.replica = undefined;
      await replica.close();
    }
    if (!mirror.replica) await open(mirror, replication);
    const written = mirror.replica?.writtenBytes ?? 0;
    if (written > mirror.toldBytes) options.metrics.onWritten(mirror.name, written - mirror.toldBytes);
    mirror.toldBytes = written;
    await demoteWhenDone(mirror);
    // As it is by now: who may write it can have changed while it was opened.
    const present = store.get('Replication', mirror.name);
    if (present?.metadata.uid !== mirror.uid) return drop(mirror);
    runSchedule(mirror, present);
    writeStatus(mirror, present);
    advanceSoon(mirror, present);
  }

  async function open(mirror: Mirror, replication: Replication): Promise<void> {
    if (mirror.openFailure && clock.monotonicMs() < mirror.openFailure.againMs) return;
    const uid = replicaUid(replication);
    // The one before it is still there, or being closed.
    for (const other of all.values()) if (other !== mirror && other.replicaUid === uid) return;
    if (closing.has(uid)) return;
    try {
      const storage = driver(replication.spec.target.storageClass);
      if (!storage) {
        throw new ReplicationError(
          'TargetFailed',
          `there is no storage class ${replication.spec.target.storageClass}; create it`,
        );
      }
      if (store.getRecord(madeTable, uid) === undefined) store.putRecord(madeTable, uid, mirror.name);
      mirror.replica = await Replica.open({
        effects,
        place: await storage.provision(mirror.name, uid),
        mode: replication.spec.source.volumeMode,
        ...(options.limits ? { limits: options.limits } : {}),
        trusted,
        onDoubt: (why) => tell(mirror, 'ReplicaOpened', 'WARNING', why),
      });
      mirror.openFailure = undefined;
      options.notify();
    } catch (thrown) {
      const error = asReplicationError(thrown, 'TargetFailed');
      const pauseMs = Math.min(reopenMs.most, (mirror.openFailure?.pauseMs ?? reopenMs.first / 2) * 2);
      const trouble = { reason: reasonOf(error), message: error.message, stops: true };
      if (mirror.openFailure?.trouble.message !== trouble.message)
        tell(mirror, 'TargetTrouble', 'ERROR', error.message);
      mirror.openFailure = { trouble, againMs: clock.monotonicMs() + pauseMs, pauseMs };
    }
  }

  async function drop(mirror: Mirror): Promise<void> {
    all.delete(mirror.uid);
    closing.add(mirror.replicaUid);
    try {
      mirror.closing.abort(new ReplicationError('NotAssigned', `replication ${mirror.name} was deleted`));
      await mirror.replica?.close();
      mirror.replica = undefined;
    } finally {
      closing.delete(mirror.replicaUid);
    }
    store.putRecord(doneTable, mirror.uid, undefined);
    await removeOrphans();
  }

  /**
   * Replicas that belong to no replication and are not to be kept. Of those that this store knows: the folder may also
   * hold another master's, those of a store that was lost, or what only looks like one (volumes of other provisioners).
   */
  async function removeOrphans(): Promise<void> {
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
          store.putRecord(madeTable, uid, undefined);
        }
      } catch (error) {
        const message = `replicas of deleted replications cannot be removed: ${asReplicationError(error).message}`;
        events.emit({ code: 'StorageTrouble', level: 'WARNING', message, object: `StorageClass/${metadata.name}` });
      }
    }
  }

  function runSchedule(mirror: Mirror, { spec }: Replication): void {
    const { schedule } = spec.trigger;
    if (schedule === undefined) {
      mirror.nextCronMs = undefined;
      return;
    }
    const nowMs = clock.nowMs();
    if (mirror.nextCronMs !== undefined && nowMs >= mirror.nextCronMs && !spec.paused) {
      store.update('Replication', mirror.name, (object) => void object.requests.sync++);
      options.notify();
      mirror.nextCronMs = undefined;
    }
    mirror.nextCronMs ??= nextTime(parseCron(schedule), nowMs);
  }

  /** Looked up again only when it has passed: calendars cost more than a comparison. */
  function nextSnapshot(mirror: Mirror, { spec, metadata }: Replication): number | undefined {
    const { generation } = metadata;
    const nowMs = clock.nowMs();
    if (mirror.nextSnapshot?.generation !== generation || mirror.nextSnapshot.ms <= nowMs) {
      const ms = Math.min(...spec.snapshotSchedules.map((schedule) => nextDue(schedule, nowMs)));
      mirror.nextSnapshot = { generation, ms };
    }
    return Number.isFinite(mirror.nextSnapshot.ms) ? mirror.nextSnapshot.ms : undefined;
  }

  function connectedNow(mirror: Mirror, agent: string): boolean {
    const nowMs = clock.monotonicMs();
    if (options.connected(agent)) mirror.lastConnectedMs = nowMs;
    return nowMs - mirror.lastConnectedMs < graceMs;
  }

  function writeStatus(mirror: Mirror, replication: Replication): void {
    const { spec, metadata, status } = replication;
    const newestPoint = mirror.replica?.newestPoint;
    const troubles = [mirror.openFailure?.trouble, mirror.applyTrouble, mirror.spaceTrouble].filter(
      (trouble) => trouble !== undefined,
    );
    const next = statusOf(
      {
        spec,
        generation: metadata.generation,
        fencingGeneration: status.fencingGeneration,
        nowMs: clock.nowMs(),
        agentConnected: connectedNow(mirror, spec.source.agent),
        report: mirror.report,
        newestPoint,
        newestPointView: newestPoint && view(mirror.uid, newestPoint),
        masterTroubles: troubles,
        lastSync: mirror.lastSync,
        lastAttemptMs: mirror.lastAttemptMs,
        lastVerified: mirror.lastVerified,
        lastDrilledMs: mirror.lastDrilledMs,
        nextSyncMs: mirror.nextCronMs,
        latestImage: latestReady(store.list('Snapshot'), mirror.name)?.metadata.name ?? null,
        nextSnapshotMs: nextSnapshot(mirror, replication),
        usedBytes: mirror.usedBytes,
        journalShort: mirror.journalShort,
        withheld: mirror.withheld,
        promotion: promotionOf(replication),
      },
      status,
    );
    const urgent =
      next.state !== status.state || next.phase !== status.phase || conditionText(next) !== conditionText(status);
    const nowMs = clock.monotonicMs();
    if (!urgent && nowMs - mirror.writtenMs < statusEveryMs) return;
    if (JSON.stringify({ ...next, lagSeconds: null }) === JSON.stringify({ ...status, lagSeconds: null })) return;
    mirror.writtenMs = nowMs;
    store.update('Replication', mirror.name, (object) => {
      object.status = next;
    });
    tellChanges(mirror, status, next);
  }

  /** The last cut is durable: the source writes nothing more. Written down first, so that a crash does not forget it. */
  async function demoteWhenDone(mirror: Mirror): Promise<void> {
    const { replica } = mirror;
    const { demoteSync } = store.get('Replication', mirror.name)?.requests ?? {};
    if (!replica || demoteSync === undefined || doneOf(mirror.uid).sync < demoteSync) return;
    const { status } = store.update('Replication', mirror.name, (object) => {
      delete object.requests.demoteSync;
      if (object.requests.fencedBy !== undefined) return;
      object.requests.fencedBy = demoted;
      object.spec.replicationState = 'secondary';
      object.status.fencingGeneration = nextGeneration(object.status.fencingGeneration);
    });
    await replica.fence(status.fencingGeneration);
    tell(mirror, 'SourceDemoted', 'INFO', 'the last cut is durable; the source writes nothing more');
    options.notify();
  }

  function promotionOf({ requests: { fencedBy } }: Replication): 'Promoting' | 'Promoted' | 'Demoted' | undefined {
    if (fencedBy === undefined) return undefined;
    if (fencedBy === demoted) return 'Demoted';
    const recovery = store.list('Recovery').find(({ metadata }) => metadata.uid === fencedBy);
    const isOnItsWay = recovery && ['Waiting', 'Running', 'Pausing', 'Paused'].includes(recovery.status.state);
    return isOnItsWay ? 'Promoting' : 'Promoted';
  }

  function tellChanges(mirror: Mirror, before: ReplicationStatus, now: ReplicationStatus): void {
    if (now.state !== before.state) {
      const level = now.state === 'ERROR' || now.state === 'FAILED' ? 'ERROR' : 'INFO';
      const why = now.conditions.find(({ type, status }) => type === 'Degraded' && status === 'True');
      tell(mirror, 'ReplicationState', level, `${before.state} to ${now.state}${why ? `: ${why.message}` : ''}`);
    }
    if (now.phase !== before.phase) tell(mirror, 'PhaseChanged', 'INFO', `${before.phase} to ${now.phase}`);
    if (now.captureMethod !== before.captureMethod) {
      tell(mirror, 'CaptureChosen', 'INFO', `${now.captureMethod ?? 'none'}: ${mirror.report?.captureReason ?? ''}`);
    }
  }

  function advanceSoon(mirror: Mirror, { spec }: Replication): void {
    const { replica } = mirror;
    if (!replica || mirror.advancing || clock.monotonicMs() - mirror.advancedMs < advanceEveryMs) return;
    mirror.advancing = true;
    void replica
      .advance(spec.journalSeconds, mirror.closing.signal, spec.maxJournalBytes)
      .then(
        ({ short, withheld }) => {
          mirror.journalShort = short;
          mirror.withheld = withheld;
          mirror.applyTrouble = undefined;
        },
        (thrown: unknown) => {
          if (mirror.closing.signal.aborted) return;
          const error = asReplicationError(thrown, 'TargetFailed');
          if (mirror.applyTrouble?.message !== error.message) tell(mirror, 'TargetTrouble', 'ERROR', error.message);
          mirror.applyTrouble = { reason: reasonOf(error), message: error.message, stops: false };
        },
      )
      .finally(() => {
        mirror.advancing = false;
        mirror.advancedMs = clock.monotonicMs();
      });
  }

  function view(uid: string, point: Point): PointView {
    const mirror = all.get(uid);
    const snapshot = store
      .list('Snapshot')
      .find(({ spec, status }) => spec.replication === mirror?.name && status.point?.sequence === point.sequence);
    return pointView(point, snapshot?.metadata.name ?? null, mirror?.replica?.drilledUs(point.sequence));
  }

  function onCommit(mirror: Mirror, commit: CommitRecord): void {
    // Before the first point the journal is only a buffer: it is applied as it comes.
    if (!mirror.replica?.newestPoint || commit.point)
      mirror.advancedMs = Math.min(mirror.advancedMs, clock.monotonicMs() - advanceEveryMs);
    if (commit.point) {
      const durationSeconds = Math.max(0, commit.committedUs - commit.startedUs) / 1e6;
      mirror.lastSync = { durationSeconds, bytes: commit.sentBytes };
      mirror.lastAttemptMs = commit.startedUs / 1000;
      options.metrics.onSync(mirror.name, 'success', durationSeconds);
      if (commit.verified) verified(mirror, commit);
    }
    void settleLocked(mirror);
  }

  function verified(mirror: Mirror, commit: CommitRecord): void {
    mirror.lastVerified = { ms: commit.committedUs / 1000, mismatchedGranules: commit.mismatchedGranules };
    options.metrics.onVerify(mirror.name, commit.mismatchedGranules * granuleBytes);
    if (commit.mismatchedGranules > 0) {
      tell(
        mirror,
        'VerifyMismatch',
        'ERROR',
        `${commit.mismatchedGranules} pieces differed from the source and were sent again`,
      );
    } else {
      tell(mirror, 'VerifyCompleted', 'INFO', `source and replica are equal at point ${commit.sequence}`);
    }
  }

  /** Soon; never throws. However often it is asked for while storage hangs, one at most waits. */
  function settleLocked(mirror: Mirror): Promise<void> {
    if (mirror.settling) return mirror.settling;
    const settling = mirror.lock
      .run(() => {
        mirror.settling = undefined;
        return settle(mirror);
      })
      .catch((error: unknown) => tell(mirror, 'TargetTrouble', 'ERROR', asReplicationError(error).message));
    return (mirror.settling = settling);
  }

  function doneOf(uid: string): { sync: number; resync: number; verify: number } {
    const text = store.getRecord(doneTable, uid);
    return text === undefined ? { sync: 0, resync: 0, verify: 0 } : (JSON.parse(text) as ReturnType<typeof doneOf>);
  }

  return {
    async run(signal) {
      const watching = watch(follow(store, 'Replication', signal));
      await removeOrphans();
      while (!signal.aborted) {
        // Not waited for: one whose storage hangs must not keep the others' status from moving on.
        for (const mirror of all.values()) void settleLocked(mirror);
        await clock.sleep(statusEveryMs, signal).catch(() => undefined);
      }
      await watching;
      for (const mirror of all.values()) {
        mirror.closing.abort(new ReplicationError('Stopped', 'the master is being stopped'));
        await mirror.lock.run(async () => mirror.replica?.close());
      }
    },

    async serve(agent, stream, signal) {
      const hello = await readHello(stream);
      const mirror = all.get(hello.replicationUid);
      const replication = mirror && store.get('Replication', mirror.name);
      if (!replication || replication.spec.source.agent !== agent) {
        throw new ReplicationError('NotAssigned', `replication ${hello.replicationUid} is not assigned to ${agent}`);
      }
      const { replica } = mirror;
      if (!replica) {
        throw new ReplicationError(
          'TargetFailed',
          mirror.openFailure?.trouble.message ?? 'the replica is being opened',
        );
      }
      if (replication.requests.fencedBy !== undefined)
        throw new ReplicationError('Fenced', 'the replica was promoted; its source may not write it any more');
      if (hello.fencingGeneration !== replication.status.fencingGeneration) {
        throw new ReplicationError(
          'Fenced',
          `generation ${hello.fencingGeneration} may not write this replica any more`,
        );
      }
      mirror.lastAttemptMs = clock.nowMs();
      const onVerified = ({ badGranules }: { badGranules: number }): void => {
        const message = `${badGranules} stored pieces were damaged; they are fetched again`;
        if (badGranules > 0) tell(mirror, 'ReplicaDamaged', 'ERROR', message);
      };
      const { group } = replication.spec;
      // A line that breaks here ends the call, and that is seen by its reader.
      const seat =
        group === undefined
          ? undefined
          : cuts.join(group, mirror.uid, (ask) => void stream.send({ group: ask }).catch(() => undefined));
      const sessionEvents = {
        onCommit: (commit: CommitRecord) => onCommit(mirror, commit),
        onVerified,
        ...(seat && { group: seat }),
      };
      const closing = mirror.closing.signal;
      const cancel = (): void => stream.cancel();
      closing.addEventListener('abort', cancel, { once: true });
      try {
        const ending = AbortSignal.any([signal, closing]);
        await serveSession(replica, agent, hello, stream, clock, sessionEvents, ending);
      } finally {
        seat?.leave();
        closing.removeEventListener('abort', cancel);
      }
    },

    assignmentsFor(agent) {
      return store
        .list('Replication')
        .filter(({ spec, metadata }) => spec.source.agent === agent && all.get(metadata.uid)?.replica !== undefined)
        .map((replication) => assignmentOf(replication, doneOf(replication.metadata.uid)));
    },

    onReport(agent, report) {
      const mirror = all.get(report.replicationUid);
      if (!mirror || store.get('Replication', mirror.name)?.spec.source.agent !== agent) return;
      mirror.report = report;
      options.metrics.onReport(agent, mirror.name, report);
      const before = doneOf(mirror.uid);
      const done = {
        sync: Math.max(before.sync, report.syncRequestDone),
        resync: Math.max(before.resync, report.resyncRequestDone),
        verify: Math.max(before.verify, report.verifyRequestDone),
      };
      if (JSON.stringify(done) !== JSON.stringify(before)) store.putRecord(doneTable, mirror.uid, JSON.stringify(done));
      void settleLocked(mirror);
    },

    replica: (uid) => all.get(uid)?.replica,
    driver,
    view,

    points(uid, fromMs = -Infinity, toMs = Infinity) {
      const points = all.get(uid)?.replica?.points ?? [];
      // By the time as it is shown, so that what is listed can be asked for.
      const shownMs = ({ sourceUs }: Point): number => Math.floor(sourceUs / 1000);
      return points
        .filter((point) => shownMs(point) >= fromMs && shownMs(point) <= toMs)
        .map((point) => view(uid, point));
    },

    groupPoints(group) {
      const members = store.list('Replication').filter(({ spec }) => spec.group === group);
      const common = groupPoints(
        members.map(({ metadata: { uid } }) => ({ uid, points: all.get(uid)?.replica?.points ?? [] })),
      );
      return common.map(({ cut, sourceUs, points }) => {
        const views = points.map(({ uid, point }) => ({
          replication: all.get(uid)?.name ?? '',
          point: view(uid, point),
        }));
        const consistency = views.some(({ point }) => point.consistency === 'crash') ? 'crash' : 'filesystem';
        return { cut, sourceTime: new Date(sourceUs / 1000).toISOString(), consistency, points: views };
      });
    },

    space(uid, usedBytes, trouble) {
      const mirror = all.get(uid);
      if (!mirror) return;
      if (trouble && !mirror.spaceTrouble) tell(mirror, 'SpaceLow', 'WARNING', trouble.message);
      Object.assign(mirror, { usedBytes, spaceTrouble: trouble });
    },

    drilled(uid, ms) {
      const mirror = all.get(uid);
      if (!mirror) return;
      mirror.lastDrilledMs = ms;
      void settleLocked(mirror);
    },
  };

  async function watch(seen: AsyncIterable<Seen>): Promise<void> {
    for await (const { key, uid } of seen) {
      const replication = store.get('Replication', key);
      const mirror = all.get(uid) ?? (replication?.metadata.uid === uid ? add(replication) : undefined);
      // Our own writes of status come by here too; settling again is cheap, and the agent is told only what is new.
      options.notify();
      if (mirror) void settleLocked(mirror);
    }
  }
}

function assignmentOf(
  { metadata, spec, status, requests }: Replication,
  done: { sync: number; resync: number; verify: number },
): Assignment {
  return {
    replicationUid: metadata.uid,
    name: metadata.name,
    // A source that was fenced off keeps noting what changes there, and is not told who may write now.
    fencingGeneration: requests.fencedBy === undefined ? status.fencingGeneration : '0',
    path: spec.source.path,
    volumeMode: spec.source.volumeMode,
    include: spec.source.include,
    exclude: spec.source.exclude,
    continuous: spec.trigger.continuous === true,
    cutIntervalSeconds: Math.min(60, Math.max(1, spec.rpoSeconds / 2)),
    consistency: spec.consistency ?? '',
    maxFreezeMs: spec.maxFreezeMs,
    compression: spec.compression,
    bandwidthBytesPerSecond: spec.bandwidthBytesPerSecond,
    readBytesPerSecond: spec.readBytesPerSecond,
    paused: spec.paused || requests.fencedBy !== undefined,
    syncRequest: requests.sync > done.sync ? requests.sync : 0,
    resyncRequest: requests.resync > done.resync ? requests.resync : 0,
    verifyRequest: requests.verify > done.verify ? requests.verify : 0,
    // Meant for that resync: later ones, and a source that is emptied later, are asked about again.
    force: requests.force && requests.resync > done.resync,
    beforeFreeze: spec.hooks?.beforeFreeze ?? [],
    afterThaw: spec.hooks?.afterThaw ?? [],
    hookTimeoutSeconds: spec.hooks?.timeoutSeconds ?? 30,
    group: spec.group ?? '',
  };
}

function conditionText({ conditions }: ReplicationStatus): string {
  return conditions.map(({ type, status, reason }) => `${type}=${status}/${reason}`).join();
}

function reasonOf(error: ReplicationError): string {
  return error.code === 'TargetFull' ? 'SpaceLow' : error.code;
}
