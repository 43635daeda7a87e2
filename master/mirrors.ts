/**
 * The replications that this master owns: for each one its replica, who feeds it, and its status in the store.
 *
 * One keyed loop: whatever happens to a replication (its object changes, the agent reports, a commit, a second passes)
 * leads to the same `settle`, which opens what must be open and writes the status that follows from the facts.
 * Guarantees: the store's status is derived, never a source of truth. Replicas are opened and removed by mirrorstorage.ts, sessions
 * served by mirrorserve.ts.
 */
import { isDeepStrictEqual } from 'node:util';
import type { Clock, Effects } from '../proto/effects.ts';
import { asReplicationError, ReplicationError } from '../proto/errors.ts';
import type { Assignment, Report, Trouble } from '../proto/wire.ts';
import { assignmentOf, type Done } from './assignment.ts';
import type { EventInput, Events } from './engine.ts';
import { groupCuts, groupPoints } from './groupcuts.ts';
import { follow, type Seen } from './follow.ts';
import type { HeldReplica } from './held.ts';
import type { Metrics } from './metrics.ts';
import { runSchedule } from './mirrorschedule.ts';
import { advanceEveryMs, isDue } from './mirrordue.ts';
import { mirrorServer } from './mirrorserve.ts';
import { newMirror, reasonOf, type Mirror } from './mirrorstate.ts';
import { graceMs, statusEveryMs, statusWriter } from './mirrorstatus.ts';
import { mirrorStorage } from './mirrorstorage.ts';
import { pinnedPoints } from './references.ts';
import type { Point } from './replica/horizon.ts';
import type { ReplicaLimits } from './replica/limits.ts';
import { demoted } from './resources.ts';
import type { GroupPointView, PointView, Replication, StorageClass } from './resources.ts';
import { nextGeneration } from './recovery/generation.ts';
import type { MirrorStream } from './session.ts';
import { pointView } from './status.ts';
import type { StorageDriver } from './storage.ts';
import type { Store } from './store.ts';
import { adopt } from './takeover.ts';

const doneTable = 'requests-done';
export interface MirrorsOptions {
  store: Store;
  effects: Effects;
  events: Events;
  metrics: Pick<Metrics, 'onReport' | 'onSync' | 'onVerify' | 'onWritten'>;
  limits?: ReplicaLimits;
  /** How many replicas keep their files open while nobody needs them; default `defaultOpenReplicas`. */
  openReplicas?: number;
  /** Of classes of driver kubernetes. Absent: there is no cluster. */
  clusterStorage?: (storageClass: StorageClass) => StorageDriver;
  /** How large the source is, as far as its agent has told. */
  sourceBytes?: (source: Replication['spec']['source']) => Promise<number | undefined>;
  /** Makes the folder of a storage class this master's. */
  own?: (folder: string) => Promise<void>;
  /** By which journals and locks end; default the effects' clock. */
  trusted?: Clock;
  /** Assignments of this agent may have changed. */
  notify: (agent: string) => void;
  /** Why the claim of a replication (uid) is nowhere to be read. */
  claimTrouble?: (uid: string) => Trouble | undefined;
  /** Whether the agent's control line is up. */
  connected: (agent: string) => boolean;
}

export interface Mirrors {
  /** Opens what exists and keeps it right until the signal aborts; then all replicas are closed. */
  run(signal: AbortSignal): Promise<void>;
  /** One Mirror call, to its end. */
  serve(agent: string, stream: MirrorStream, signal: AbortSignal): Promise<void>;
  assignmentsFor(agent: string): Assignment[];
  onReport(agent: string, report: Report): void;
  /** Undefined while it cannot be opened; the status says why not. */
  replica(uid: string): HeldReplica | undefined;
  points(uid: string, fromMs?: number, toMs?: number): PointView[];
  view(uid: string, point: Point): PointView;
  /** Of a group, oldest first: the moments of which every member has its point. */
  groupPoints(group: string): GroupPointView[];
  driver(storageClass: string): StorageDriver | undefined;
  drilled(uid: string, ms: number): void;
  /** What is known of its source's absence, and how far an automatic failover is. */
  absent(uid: string, absence: Mirror['absence'], failover: Mirror['failover']): void;
  /** What it holds on storage, and whether that is going to be too much. */
  space(uid: string, usedBytes: number | undefined, trouble: Trouble | undefined): void;
}

export function mirrors(options: MirrorsOptions): Mirrors {
  const { store, effects, events } = options;
  const { clock } = effects;
  const trusted = options.trusted ?? clock;
  const all = new Map<string, Mirror>();
  const cuts = groupCuts({
    clock,
    random: effects.random,
    members: (group) => {
      // A source that is kept out stands still: the others go on without it.
      const mirrored = store.replicationsIn(group).filter(({ requests }) => requests.fencedBy === undefined);
      return mirrored.map(({ metadata, spec }) => ({
        uid: metadata.uid,
        name: metadata.name,
        initialized: all.get(metadata.uid)?.replica?.newestPoint !== undefined,
        paused: spec.paused,
        maxFreezeMs: spec.maxFreezeMs,
        hookSeconds: spec.hooks?.timeoutSeconds ?? 0,
      }));
    },
  });

  function tell(mirror: Mirror, code: string, level: EventInput['level'], message: string): void {
    events.emit({ code, level, message, object: `Replication/${mirror.name}` });
  }

  const claimTrouble = options.claimTrouble ?? (() => undefined);
  const status = statusWriter({ store, clock, connected: options.connected, claimTrouble, view, tell });

  const mayBeNew = ({ metadata, requests }: Replication): boolean =>
    requests.force && requests.resync > doneOf(metadata.uid).resync;
  const storage = mirrorStorage({ ...options, trusted, mayBeNew, all, tell });
  const serve = mirrorServer({ store, clock, metrics: options.metrics, all, cuts, tell, settle: settleLocked });

  function add(replication: Replication): Mirror {
    const { uid } = replication.metadata;
    const mirror = newMirror(replication, clock.monotonicMs());
    all.set(uid, mirror);
    return mirror;
  }

  /** Everything there is to do for one replication now. Cheap when nothing is. */
  async function settle(mirror: Mirror): Promise<void> {
    Object.assign(mirror, {
      stale: false,
      settledMs: clock.monotonicMs(),
      wasConnected: options.connected(mirror.agent),
      claimReason: claimTrouble(mirror.uid)?.reason,
    });
    const replication = store.get('Replication', mirror.name);
    if (replication?.metadata.uid !== mirror.uid) return drop(mirror);
    // As it is by now: who may write it can have changed while it was opened.
    let present = (await storage.open(mirror, replication)) ? store.get('Replication', mirror.name) : replication;
    tellWritten(mirror);
    if (present && mirror.replica?.newestPoint) storage.filled(mirror, present);
    if (mirror.replica && present?.requests.takenOver !== undefined) {
      adopt(store, mirror.replica, present, (code, message) => tell(mirror, code, 'WARNING', message));
      present = store.get('Replication', mirror.name);
    }
    if (present && (await demoteWhenDone(mirror, present))) present = store.get('Replication', mirror.name);
    if (present?.metadata.uid !== mirror.uid) return drop(mirror);
    if (present.spec.source.agent !== mirror.agent) await move(mirror, present);
    if (runSchedule(store, mirror, present, clock.nowMs())) options.notify(mirror.agent);
    status.write(mirror, present);
    // Until the recovery that fences it has ended, that is what its phase goes by.
    const { fencedBy } = present.requests;
    if (fencedBy !== undefined && fencedBy !== demoted) mirror.stale = true;
    advanceSoon(mirror, present);
  }

  async function drop(mirror: Mirror): Promise<void> {
    all.delete(mirror.uid);
    await storage.giveBack(mirror);
    store.putRecord(doneTable, mirror.uid, undefined);
    await storage.removeOrphans();
  }

  function tellWritten(mirror: Mirror): void {
    const written = mirror.replica?.writtenBytes ?? 0;
    if (written > mirror.toldBytes) options.metrics.onWritten(mirror.name, written - mirror.toldBytes);
    mirror.toldBytes = written;
  }

  /** Its claim is on another node: what the old agent has under way is over. */
  async function move(mirror: Mirror, { spec, status }: Replication): Promise<void> {
    const before = mirror.agent;
    mirror.agent = spec.source.agent;
    mirror.report = undefined;
    await mirror.replica?.fence(status.fencingGeneration);
    if (before !== '') options.notify(before);
    options.notify(mirror.agent);
  }

  /** The last cut is durable: the source writes nothing more. Written down first, so that a crash does not forget it. */
  async function demoteWhenDone(mirror: Mirror, { requests: { demoteSync } }: Replication): Promise<boolean> {
    const { replica } = mirror;
    if (!replica || demoteSync === undefined || doneOf(mirror.uid).sync < demoteSync) return false;
    const { status } = store.update('Replication', mirror.name, (object) => {
      delete object.requests.demoteSync;
      if (object.requests.fencedBy !== undefined) return;
      object.requests.fencedBy = demoted;
      object.spec.replicationState = 'secondary';
      object.status.fencingGeneration = nextGeneration(object.status.fencingGeneration);
    });
    await replica.fence(status.fencingGeneration);
    tell(mirror, 'SourceDemoted', 'INFO', 'the last cut is durable; the source writes nothing more');
    options.notify(mirror.agent);
    return true;
  }

  function advanceSoon(mirror: Mirror, { spec }: Replication): void {
    const { replica } = mirror;
    if (!replica || mirror.advancing || clock.monotonicMs() - mirror.advancedMs < advanceEveryMs) return;
    mirror.advancing = true;
    void replica
      .advance(spec.journalSeconds, mirror.closing.signal, spec.maxJournalBytes, () => pinnedPoints(store, mirror.name))
      .then(
        ({ short, withheld }) => {
          const isNew =
            mirror.journalShort !== short || mirror.withheld !== withheld || mirror.applyTrouble !== undefined;
          Object.assign(mirror, { journalShort: short, withheld, applyTrouble: undefined });
          if (isNew) mirror.stale = true;
        },
        (thrown: unknown) => {
          if (mirror.closing.signal.aborted) return;
          const error = asReplicationError(thrown, 'TargetFailed');
          if (mirror.applyTrouble?.message !== error.message) tell(mirror, 'TargetTrouble', 'ERROR', error.message);
          mirror.applyTrouble = { reason: reasonOf(error), message: error.message, stops: false };
          mirror.stale = true;
        },
      )
      .finally(() => {
        mirror.advancing = false;
        mirror.advancedMs = clock.monotonicMs();
      });
  }

  function view(uid: string, point: Point): PointView {
    const mirror = all.get(uid);
    const snapshots = mirror ? store.snapshotsOf(mirror.name) : [];
    const snapshot = snapshots.find(({ status }) => status.point?.sequence === point.sequence);
    return pointView(point, snapshot?.metadata.name ?? null, mirror?.replica?.drilledUs(point.sequence));
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

  function isDueNow(mirror: Mirror): boolean {
    const monotonicMs = clock.monotonicMs();
    const connected = options.connected(mirror.agent);
    if (connected) mirror.lastConnectedMs = monotonicMs;
    if (claimTrouble(mirror.uid)?.reason !== mirror.claimReason) return true;
    return isDue(mirror, { nowMs: clock.nowMs(), monotonicMs, connected, graceMs });
  }

  const troubled = (error: unknown): void =>
    events.emit({ code: 'MasterTrouble', level: 'ERROR', message: asReplicationError(error).message, object: null });

  function doneOf(uid: string): Done {
    const text = store.getRecord(doneTable, uid);
    return text === undefined ? { sync: 0, resync: 0, verify: 0 } : (JSON.parse(text) as Done);
  }

  return {
    async run(signal) {
      const watching = Promise.all([
        watch(follow(store, 'Replication', signal)),
        watchSnapshots(follow(store, 'Snapshot', signal)),
        storage.removeOrphans(),
      ]);
      while (!signal.aborted) {
        // Not waited for: one whose storage hangs must not keep the others' status from moving on.
        for (const mirror of all.values()) if (isDueNow(mirror)) void settleLocked(mirror);
        await status.flush(all.values(), signal).catch(troubled);
        await clock.sleep(statusEveryMs, signal).catch(() => undefined);
      }
      await watching;
      for (const mirror of all.values()) {
        mirror.closing.abort(new ReplicationError('Stopped', 'the master is being stopped'));
        await mirror.lock.run(async () => mirror.replica?.close());
      }
    },

    serve,

    assignmentsFor(agent) {
      return store
        .replicationsOf(agent)
        .filter(({ metadata }) => all.get(metadata.uid)?.replica !== undefined)
        .map((replication) => assignmentOf(replication, doneOf(replication.metadata.uid)));
    },

    onReport(agent, report) {
      const mirror = all.get(report.replicationUid);
      if (mirror?.agent !== agent) return;
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
    driver: (name) => storage.driver(name),
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
      const members = store.replicationsIn(group);
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
      if (mirror.usedBytes === usedBytes && mirror.spaceTrouble?.message === trouble?.message) return;
      Object.assign(mirror, { usedBytes, spaceTrouble: trouble, stale: true });
    },

    absent(uid, absence, failover) {
      const mirror = all.get(uid);
      if (!mirror || isDeepStrictEqual([mirror.absence, mirror.failover], [absence, failover])) return;
      Object.assign(mirror, { absence, failover, stale: true });
    },

    drilled(uid, ms) {
      const mirror = all.get(uid);
      if (!mirror) return;
      mirror.lastDrilledMs = ms;
      void settleLocked(mirror);
    },
  };

  async function watch(seen: AsyncIterable<Seen>): Promise<void> {
    for await (const { key, uid, version } of seen) {
      // Our own write of the status: settled it is, and agents are told nothing of it.
      if (version !== undefined && version === all.get(uid)?.writtenVersion) continue;
      const replication = store.get('Replication', key);
      const mirror = all.get(uid) ?? (replication?.metadata.uid === uid ? add(replication) : undefined);
      if (mirror) options.notify(mirror.agent);
      if (mirror) void settleLocked(mirror);
    }
  }

  /** The newest snapshot, and what a point is in, are in a replication's status. */
  async function watchSnapshots(seen: AsyncIterable<Seen>): Promise<void> {
    for await (const { key } of seen) {
      const mirror = all.get(store.get('Replication', key.slice(0, key.indexOf('/')))?.metadata.uid ?? '');
      if (mirror) mirror.stale = true;
    }
  }
}
