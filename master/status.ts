/** A replication's status from the facts, as the contract words it. Pure: the same facts give the same status. */
import type { Report, Trouble } from '../proto/wire.ts';
import type { Point } from './replica/horizon.ts';
import { differs, forkText } from './forktext.ts';
import type {
  Condition,
  Fork,
  Phase,
  PointView,
  ReplicationSpec,
  ReplicationState,
  ReplicationStatus,
} from './resources.ts';
import type { Consistency } from '../proto/wire.ts';

export interface StatusFacts {
  spec: ReplicationSpec;
  generation: number;
  fencingGeneration: string;
  nowMs: number;
  /** The agent's line to the master is up. */
  agentConnected: boolean;
  /** Newest report since the agent connected. */
  report: Report | undefined;
  newestPoint: Point | undefined;
  newestPointView: PointView | undefined;
  /** Why the source's claim is nowhere to be read. */
  claimTrouble: Trouble | undefined;
  /** What is wrong on the master's side: storage, replica. */
  masterTroubles: Trouble[];
  lastSync: { durationSeconds: number; bytes: number } | undefined;
  lastAttemptMs: number | undefined;
  lastVerified: { ms: number; mismatchedGranules: number } | undefined;
  lastDrilledMs: number | undefined;
  nextSyncMs: number | undefined;
  latestImage: string | null;
  nextSnapshotMs: number | undefined;
  usedBytes: number | undefined;
  /** The source's journal is shorter than asked for. */
  journalShort: boolean;
  /** Files and the like that are not in copies as they are at the source. */
  withheld: number;
  /** The source may not write any more: its replica is being made, or is, the primary one. */
  fork: Fork | undefined;
  promotion: 'Promoting' | 'Promoted' | 'Demoted' | undefined;
  /** What is known of an agent that is not connected; undefined: only that. */
  absence?: Omit<Trouble, 'stops'> | undefined;
  /** How far an automatic failover is; undefined: a person decides. */
  failover?: FailoverView | undefined;
}

/** The condition FailoverPending. */
export type FailoverView = Pick<Condition, 'status' | 'reason' | 'message'>;

const phases: ReadonlySet<string> = new Set<Phase>([
  'Pending',
  'InitialSync',
  'Mirroring',
  'Resyncing',
  'Verifying',
  'Paused',
]);

export function statusOf(facts: StatusFacts, previous: ReplicationStatus): ReplicationStatus {
  const { report, newestPoint, nowMs } = facts;
  const lastSyncMs = lastSyncOf(facts, previous);
  const phase = phaseOf(facts);
  const troubles = troublesOf(facts, previous, phase, lastSyncMs);
  const stopped = troubles.find((trouble) => trouble.stops);
  const working = report !== undefined && ['InitialSync', 'Resyncing', 'Verifying'].includes(phase);
  return {
    state: stateOf(newestPoint !== undefined, stopped),
    phase,
    role: facts.promotion === 'Promoted' ? 'Primary' : 'Secondary',
    captureMethod:
      report?.captureMethod === undefined || report.captureMethod === ''
        ? previous.captureMethod
        : report.captureMethod,
    fencingGeneration: facts.fencingGeneration,
    progress: working ? progressOf(report) : null,
    recoveryPoint: facts.newestPointView ?? null,
    lastSyncTime: timeText(lastSyncMs),
    lagSeconds: lastSyncMs === undefined ? null : Math.max(0, nowMs - lastSyncMs) / 1000,
    lagBytes: report?.dirtyKnown === true ? report.dirtyBytes : null,
    lastSyncDuration: facts.lastSync ? `${facts.lastSync.durationSeconds.toFixed(1)}s` : previous.lastSyncDuration,
    lastSyncBytes: facts.lastSync?.bytes ?? previous.lastSyncBytes,
    lastAttemptTime: timeText(facts.lastAttemptMs) ?? previous.lastAttemptTime,
    lastVerifiedTime: timeText(facts.lastVerified?.ms) ?? previous.lastVerifiedTime,
    lastDrilledTime: timeText(facts.lastDrilledMs) ?? previous.lastDrilledTime,
    nextSyncTime: timeText(facts.nextSyncMs),
    latestImage: facts.latestImage,
    nextSnapshotTime: timeText(facts.nextSnapshotMs),
    usedBytes: facts.usedBytes ?? previous.usedBytes,
    fork: forkView(facts.fork),
    observedGeneration: facts.generation,
    conditions: conditionsOf(facts, troubles, phase, previous),
  };
}

/** Never initialized and stuck: FAILED. Initialized and stuck: ERROR; the copy is there, it only grows old. */
function stateOf(initialized: boolean, stopped: Trouble | undefined): ReplicationState {
  if (initialized) return stopped ? 'ERROR' : 'NORMAL';
  return stopped ? 'FAILED' : 'PREPARING';
}

function phaseOf({ spec, report, agentConnected, newestPoint, promotion }: StatusFacts): Phase {
  if (promotion) return promotion;
  if (spec.paused) return 'Paused';
  if (!agentConnected) return newestPoint ? 'Disconnected' : 'Pending';
  if (!report || !phases.has(report.phase)) return 'Pending';
  // The point is known here before the agent's next report.
  return newestPoint && report.phase === 'InitialSync' ? 'Mirroring' : (report.phase as Phase);
}

/**
 * The cut of the newest point, moved on where capture has proved that nothing changed since. What was proved of this point
 * stays proved when the agent goes or the master restarts: its age grows from there on, it does not jump.
 */
function lastSyncOf({ newestPoint, report }: StatusFacts, previous: ReplicationStatus): number | undefined {
  if (!newestPoint) return undefined;
  const same = previous.recoveryPoint?.sequence === newestPoint.sequence;
  const provedMs = same && previous.lastSyncTime !== null ? Date.parse(previous.lastSyncTime) : 0;
  return Math.max(newestPoint.sourceUs / 1000, (report?.unchangedSinceUs ?? 0) / 1000, provedMs);
}

function progressOf({ bytesTotal, bytesDone, bytesPerSecond }: Report): ReplicationStatus['progress'] {
  const left = Math.max(0, bytesTotal - bytesDone);
  return {
    bytesTotal,
    bytesDone,
    bytesPerSecond,
    secondsLeft: bytesPerSecond > 0 ? Math.ceil(left / bytesPerSecond) : null,
  };
}

/** Once missed, the target counts as met again only with some room, so that the condition does not flicker. */
const metAgainRatio = 0.8;

function troublesOf(
  facts: StatusFacts,
  previous: ReplicationStatus,
  phase: Phase,
  lastSyncMs: number | undefined,
): Trouble[] {
  const { spec, agentConnected, report, masterTroubles, journalShort, withheld, promotion } = facts;
  const troubles = [...masterTroubles];
  if (facts.fork?.found && differs(facts.fork.found))
    troubles.push({ reason: 'SplitBrain', message: forkText(facts.fork), stops: false });
  // How the source is matters to nobody while it may not write.
  if (promotion) return troubles;
  if (facts.claimTrouble) {
    // What the agent says of the place where it was is of no interest.
    troubles.push(facts.claimTrouble);
  } else if (!agentConnected && spec.source.agent !== '') {
    const { reason, message } = facts.absence ?? {
      reason: 'AgentGone',
      message: `agent ${spec.source.agent} is not connected; start it and check its line to the master`,
    };
    troubles.push({ reason, message: `${message}. The copy stays as it is`, stops: true });
  } else if (report) {
    troubles.push(...report.troubles);
  }
  if (journalShort) {
    troubles.push({
      reason: 'JournalShort',
      message: `the journal is full and keeps less than journalSeconds ${spec.journalSeconds}; add space or ask for less`,
      stops: false,
    });
  }
  if (withheld > 0) {
    troubles.push({
      reason: 'Withheld',
      message: `${withheld} files have an owner, attribute or type that the master may not give them in copies; run it as root, or with CAP_CHOWN, CAP_FOWNER, CAP_MKNOD, CAP_SETFCAP and CAP_SYS_ADMIN, on a filesystem that takes them`,
      stops: false,
    });
  }
  // Said only when nothing else explains it.
  if (troubles.length === 0 && phase === 'Mirroring' && lastSyncMs !== undefined && spec.trigger.continuous === true) {
    const missed = previous.conditions.some(({ type, reason }) => type === 'Degraded' && reason === 'RpoMissed');
    const lagSeconds = (facts.nowMs - lastSyncMs) / 1000;
    if (lagSeconds > spec.rpoSeconds * (missed ? metAgainRatio : 1)) {
      troubles.push({
        reason: 'RpoMissed',
        message: `the copy is older than rpoSeconds ${spec.rpoSeconds}, see lagSeconds: reading what may have changed (capture ${report?.captureMethod || 'scan'}) or sending it takes longer; raise rpoSeconds, or the limits of bandwidth and reading`,
        stops: false,
      });
    }
  }
  return troubles;
}

function conditionsOf(facts: StatusFacts, troubles: Trouble[], phase: Phase, previous: ReplicationStatus): Condition[] {
  const { newestPoint, spec } = facts;
  const first = troubles[0];
  const synchronizing =
    ['InitialSync', 'Mirroring', 'Resyncing', 'Verifying'].includes(phase) && !troubles.some(({ stops }) => stops);
  const list: Omit<Condition, 'lastTransitionTime'>[] = [
    condition('Reconciled', true, 'ReconcileComplete', 'the specification is in force'),
    condition('Validated', true, 'SpecValid', 'the specification is valid'),
    condition(
      'Replicating',
      newestPoint !== undefined && synchronizing,
      newestPoint === undefined ? 'NoPointYet' : synchronizing ? 'Replicating' : (first?.reason ?? phase),
      newestPoint === undefined
        ? 'the first copy is not complete'
        : synchronizing
          ? 'changes are mirrored'
          : (first?.message ?? `phase ${phase}`),
    ),
    condition(
      'Synchronizing',
      synchronizing,
      synchronizing ? syncReason(phase, spec) : (first?.reason ?? phase),
      syncMessage(phase, first),
    ),
    condition(
      'Completed',
      newestPoint !== undefined,
      newestPoint ? 'InitialSyncComplete' : 'InitialSyncPending',
      newestPoint ? 'there is a recovery point' : 'wait for the first copy',
    ),
    condition(
      'Degraded',
      first !== undefined,
      first?.reason ?? 'AsExpected',
      troubles.map(({ message }) => message).join('; ') || 'nothing is wrong',
    ),
    condition(
      'Resyncing',
      phase === 'Resyncing' || phase === 'Verifying',
      phase === 'Resyncing' || phase === 'Verifying' ? phase : 'InSync',
      phase === 'Resyncing' || phase === 'Verifying' ? 'source and replica are compared' : 'no comparison runs',
    ),
  ];
  if (facts.failover) list.push({ type: 'FailoverPending', ...facts.failover });
  const now = new Date(facts.nowMs).toISOString();
  return list.map((one) => {
    const before = previous.conditions.find(({ type }) => type === one.type);
    return { ...one, lastTransitionTime: before?.status === one.status ? before.lastTransitionTime : now };
  });
}

function condition(type: string, yes: boolean, reason: string, message: string): Omit<Condition, 'lastTransitionTime'> {
  return { type, status: yes ? 'True' : 'False', reason, message };
}

/** VolSync's words. */
function syncReason(phase: Phase, spec: ReplicationSpec): string {
  if (phase !== 'Mirroring') return 'SyncInProgress';
  if (spec.trigger.schedule !== undefined) return 'WaitingForSchedule';
  return spec.trigger.manual !== undefined ? 'WaitingForManual' : 'SyncInProgress';
}

function syncMessage(phase: Phase, first: Trouble | undefined): string {
  if (first?.stops === true) return first.message;
  if (phase === 'Demoted') return 'the source was demoted after its last cut; promote the replica, or resync to go on';
  if (phase === 'Promoting' || phase === 'Promoted')
    return 'the replica was promoted: its source writes nothing more; roll the failover back to mirror it again';
  return phase === 'Paused' ? 'paused; resume it to go on' : `phase ${phase}`;
}

function forkView(fork: Fork | undefined): ReplicationStatus['fork'] {
  if (!fork) return null;
  const { agent, path, sequence, found } = fork;
  // Found by an older master: without what there is of trees.
  return {
    agent,
    path,
    sequence,
    found: found && { ...found, entries: found.entries ?? null, paths: found.paths ?? null },
  };
}

/** RFC 3339 UTC with milliseconds; null when unknown. */
export function timeText(ms: number | undefined): string | null {
  return ms === undefined || !Number.isFinite(ms) ? null : new Date(ms).toISOString();
}

export function pointView(point: Point, snapshot: string | null, drilledUs: number | undefined): PointView {
  return {
    sequence: point.sequence,
    sourceTime: new Date(point.sourceUs / 1000).toISOString(),
    committedTime: new Date(point.committedUs / 1000).toISOString(),
    consistency: point.consistency as Consistency,
    digest: point.digest.toString('hex'),
    snapshot,
    drilledTime: drilledUs === undefined ? null : new Date(drilledUs / 1000).toISOString(),
  };
}
