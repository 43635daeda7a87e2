/**
 * Writes the status of a replication as it follows from the facts (status.ts), and tells what changed.
 *
 * Guarantees: a change of state, phase or conditions is written at once, figures with the next `flush`, those of all replications
 * in one step of the store, nothing when nothing is new. Figures take at most a fifth of the time, however many they are.
 */
import type { Clock } from '../proto/effects.ts';
import type { Trouble } from '../proto/wire.ts';
import type { EventInput } from './engine.ts';
import { setImmediate } from 'node:timers/promises';
import { nextSnapshot } from './mirrorschedule.ts';
import type { Mirror } from './mirrorstate.ts';
import { latestReady } from './references.ts';
import type { Point } from './replica/horizon.ts';
import { demoted, type PointView, type Replication, type ReplicationStatus } from './resources.ts';
import { statusOf } from './status.ts';
import type { Store } from './store.ts';

/** Figures are written at most this often, and replications are looked at for what time alone changes. */
export const statusEveryMs = 1000;
/** An agent whose line broke this recently is not called gone: it dials again at once. */
export const graceMs = 10_000;
/** The store is busy with so many at a time. */
const flushTogether = 200;

export interface StatusWriterOptions {
  store: Store;
  clock: Clock;
  connected: (agent: string) => boolean;
  view: (uid: string, point: Point) => PointView;
  claimTrouble: (uid: string) => Trouble | undefined;
  tell: (mirror: Mirror, code: string, level: EventInput['level'], message: string) => void;
}

export interface StatusWriter {
  /** Writes what is news; figures wait for `flush`. */
  write(mirror: Mirror, replication: Replication): void;
  /** Writes the figures that wait. */
  flush(mirrors: Iterable<Mirror>, signal: AbortSignal): Promise<void>;
}

export function statusWriter(options: StatusWriterOptions): StatusWriter {
  const { store, clock } = options;

  function connectedNow(mirror: Mirror, agent: string): boolean {
    const nowMs = clock.monotonicMs();
    if (options.connected(agent)) mirror.lastConnectedMs = nowMs;
    return nowMs - mirror.lastConnectedMs < graceMs;
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
      options.tell(
        mirror,
        'ReplicationState',
        level,
        `${before.state} to ${now.state}${why ? `: ${why.message}` : ''}`,
      );
    }
    if (now.phase !== before.phase) options.tell(mirror, 'PhaseChanged', 'INFO', `${before.phase} to ${now.phase}`);
    if (now.captureMethod !== before.captureMethod) {
      options.tell(
        mirror,
        'CaptureChosen',
        'INFO',
        `${now.captureMethod ?? 'none'}: ${mirror.report?.captureReason ?? ''}`,
      );
    }
  }

  let flushAgainMs = -Infinity;
  async function flush(mirrors: Iterable<Mirror>, signal: AbortSignal): Promise<void> {
    const startMs = clock.monotonicMs();
    if (startMs < flushAgainMs) return;
    const waiting = [...mirrors].filter(({ figuresWait }) => figuresWait);
    for (let at = 0; at < waiting.length && !signal.aborted; at += flushTogether) {
      if (at > 0) await setImmediate();
      const together = waiting.slice(at, at + flushTogether);
      try {
        store.batch(() => {
          for (const mirror of together) {
            const replication = store.get('Replication', mirror.name);
            if (replication?.metadata.uid === mirror.uid) write(mirror, replication, true);
            else mirror.figuresWait = false;
          }
        });
      } catch (error) {
        // Nothing of it was written: the versions are another's next time.
        for (const mirror of together) Object.assign(mirror, { figuresWait: true, writtenVersion: 0 });
        throw error;
      }
    }
    const endMs = clock.monotonicMs();
    flushAgainMs = endMs + (endMs - startMs) * 4;
  }

  function write(mirror: Mirror, replication: Replication, isFlush = false): void {
    const { spec, metadata, status } = replication;
    const newestPoint = mirror.replica?.newestPoint;
    const { damage } = replication.requests;
    const found = damage && { reason: 'VerifyMismatch', message: damage.message, stops: false };
    const troubles = [mirror.openFailure?.trouble, mirror.applyTrouble, mirror.spaceTrouble, found].filter(
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
        newestPointView: newestPoint && options.view(mirror.uid, newestPoint),
        claimTrouble: options.claimTrouble(mirror.uid),
        masterTroubles: troubles,
        lastSync: mirror.lastSync,
        lastAttemptMs: mirror.lastAttemptMs,
        lastVerified: mirror.lastVerified,
        lastDrilledMs: mirror.lastDrilledMs,
        nextSyncMs: mirror.nextCronMs,
        latestImage: latestReady(store.snapshotsOf(mirror.name))?.metadata.name ?? null,
        nextSnapshotMs: nextSnapshot(mirror, replication, clock.nowMs()),
        usedBytes: mirror.usedBytes,
        journalShort: mirror.journalShort,
        withheld: mirror.withheld,
        fork: replication.requests.fork,
        promotion: promotionOf(replication),
        absence: mirror.absence,
        failover: mirror.failover,
      },
      status,
    );
    mirror.rpoMissedMs = rpoMissedMs(replication, next);
    const isNews =
      next.state !== status.state ||
      next.phase !== status.phase ||
      next.captureMethod !== status.captureMethod ||
      conditionText(next) !== conditionText(status);
    const isSame = JSON.stringify({ ...next, lagSeconds: null }) === JSON.stringify({ ...status, lagSeconds: null });
    mirror.figuresWait = !isSame && !isNews && !isFlush;
    // What is told is written by itself: it must not be told of a step that failed.
    mirror.newsWait = isNews && isFlush;
    if (isSame || mirror.figuresWait || mirror.newsWait) return;
    const before = store.version();
    store.update('Replication', mirror.name, (object) => {
      // Who may write is never ours to say, and may have changed since we looked.
      object.status = { ...next, fencingGeneration: object.status.fencingGeneration };
    });
    if (store.version() > before) mirror.writtenVersion = store.version();
    if (isNews) tellChanges(mirror, status, next);
  }

  return { write, flush };
}

/** When the copy is going to be too old, if nothing comes until then. Once it is, only what comes changes that. */
function rpoMissedMs(
  { spec }: Replication,
  { phase, lastSyncTime, conditions }: ReplicationStatus,
): number | undefined {
  const isDegraded = conditions.some(({ type, status }) => type === 'Degraded' && status === 'True');
  if (phase !== 'Mirroring' || lastSyncTime === null || spec.trigger.continuous !== true || isDegraded)
    return undefined;
  return Date.parse(lastSyncTime) + spec.rpoSeconds * 1000 + 1;
}

function conditionText({ conditions }: ReplicationStatus): string {
  return conditions.map(({ type, status, reason }) => `${type}=${status}/${reason}`).join();
}
