/**
 * Prometheus metrics. What the store knows is read at the scrape, so it cannot be stale or forgotten; what only passes by
 * (reports, commits, ends of recoveries) is fed by the `on...` functions.
 *
 * Guarantees: counters only grow while the master runs, whatever an agent reports; an agent's restart is a reset of its
 * counters, not of ours. A replication that was there before this master started begins with what its agent reports
 * first as the base, as the earlier master had counted that. Every series whose labels are known beforehand is there with 0
 * before anything happens: `increase` knows nothing of what a series begins with. Series of deleted replications go at the
 * next scrape. What agents send makes at most `maxReasons` different label values, and one version for each agent.
 */
import { setImmediate } from 'node:timers/promises';
import { Counter, Gauge, Histogram, Registry, collectDefaultMetrics } from 'prom-client';
import { validityOf } from '../proto/certificate.ts';
import type { Clock } from '../proto/effects.ts';
import { refusalReason, refusalReasons } from '../proto/refusal.ts';
import type { Report } from '../proto/wire.ts';
import type { Agent, Phase, RecoveryType, Replication, ReplicationState, Snapshot } from './resources.ts';
import type { Store } from './store.ts';

const prefix = 'replicator_';
const maxReasons = 32;
const states: ReplicationState[] = ['PREPARING', 'NORMAL', 'FAILED', 'ERROR'];
const phases: Phase[] = [
  'Pending',
  'InitialSync',
  'Mirroring',
  'Resyncing',
  'Verifying',
  'Paused',
  'Promoting',
  'Promoted',
  'Demoted',
  'Disconnected',
];
const snapshotStates: Snapshot['status']['state'][] = ['Creating', 'Ready', 'Failed', 'Deleting'];
const agentStates: Agent['status']['state'][] = [
  'ACTIVE',
  'CONN FAILED',
  'WARNING',
  'NO CONN INFO',
  'NOT INSTALLED',
  'UNKNOWN',
];

export interface Metrics {
  contentType: string;
  /** The exposition; reads the store. */
  text(): Promise<string>;
  /** Each report of an agent about a replication, as it comes. */
  onReport(agent: string, replication: string, report: Report): void;
  /** A sync ended with a recovery point, or a session broke off, for whatever reason. */
  onSync(replication: string, result: 'success' | 'failure', durationSeconds: number): void;
  /** Bytes that the replica wrote to its journal and image. */
  onWritten(replication: string, bytes: number): void;
  onSnapshot(replication: string, durationSeconds: number): void;
  /** A verification ended; 0: all was equal. */
  onVerify(replication: string, mismatchedBytes: number): void;
  onRecovery(type: RecoveryType, result: 'success' | 'failed' | 'cancelled', durationSeconds: number): void;
  onCallStarted(method: string): void;
  /** @param code of gRPC in words, e.g. OK, UNAVAILABLE */
  onCallEnded(method: string, code: string): void;
}

export interface MetricsOptions {
  store: Pick<Store, 'list'>;
  clock: Pick<Clock, 'nowMs'>;
  version: string;
  /** The master's own certificates (PEM) by what they are for, asked at each scrape: some are renewed, or reloaded. */
  certificates?: () => Record<string, string>;
}

/** What of a report only grows since the agent's start. */
const reported = [
  'readBytes',
  'sentBytes',
  'skippedZeroBytes',
  'skippedSameBytes',
  'fullScans',
  'cutsMade',
  'cutsRefused',
  'freezes',
  'lostEvents',
] as const;
type Counts = Record<(typeof reported)[number], number>;

/** Those that agents have for most of their scans. */
const fullScanReasons = { Block: ['first', 'offer', 'scan'], Filesystem: ['start', 'pace'] };

export function startMetrics({ store, clock, version, certificates }: MetricsOptions): Metrics {
  const registry = new Registry();
  collectDefaultMetrics({ register: registry });
  const common = { registers: [registry] };
  const gauge = (name: string, help: string, ...labelNames: string[]): Gauge =>
    new Gauge({ name: prefix + name, help, labelNames, ...common });
  const counter = (name: string, help: string, ...labelNames: string[]): Counter =>
    new Counter({ name: prefix + name, help, labelNames, ...common });
  const histogram = (name: string, help: string, buckets: number[], ...labelNames: string[]): Histogram =>
    new Histogram({ name: prefix + name, help, buckets, labelNames, ...common });

  const of = 'replication';
  const read = {
    state: gauge('state', 'State of the replication, 1 for the one it is in', of, 'state'),
    phase: gauge('phase', 'Phase of the replication, 1 for the one it is in', of, 'phase'),
    lastSync: gauge('last_sync_timestamp_seconds', 'Source time as of which the copy is good; never = 0', of),
    lastAttempt: gauge('last_attempt_timestamp_seconds', 'When a sync was tried last; never = 0', of),
    lastVerified: gauge('last_verified_timestamp_seconds', 'When source and replica were compared last; never = 0', of),
    lastDrill: gauge('last_drill_timestamp_seconds', 'When a drill was completed last; never = 0', of),
    target: gauge('rpo_target_seconds', 'How old the copy may be', of),
    lag: gauge('lag_seconds', 'How old the copy is; absent before the first point', of),
    lagBytes: gauge('lag_bytes', 'Bytes known to be changed and not yet durable in the replica', of),
    replica: gauge('replica_bytes', 'What the replica holds; blocks that copies share count for each of them', of),
    initial: gauge('initial_sync_ratio', 'Part of the first copy that is done, 0 to 1', of),
    snapshots: gauge('snapshots', 'Snapshots by state', of, 'state'),
    degraded: gauge('degraded', 'Why the replication is degraded; absent when it is not', of, 'reason'),
    agents: gauge('agents', 'Agents by state', 'state'),
    agentUp: gauge('agent_up', 'Whether the agent is connected, 1 or 0; absent before it has joined', 'agent'),
    agentInfo: gauge('agent_info', 'Version of the agent; always 1', 'agent', 'version'),
    certificate: gauge(
      'agent_certificate_expiry_timestamp_seconds',
      "When the agent's certificate ends, unless it is renewed",
      'agent',
    ),
    masterCertificate: gauge(
      'master_certificate_expiry_timestamp_seconds',
      "When a certificate of the master's own ends: its authority's (ca), the one for agents (grpc), the one of API and page (http)",
      'certificate',
    ),
    capacity: gauge('storage_capacity_bytes', 'Size of the storage class', 'storage_class'),
    used: gauge('storage_used_bytes', 'Used part of the storage class', 'storage_class'),
  };
  gauge('build_info', 'Version of the master; always 1', 'version').set({ version }, 1);

  const seconds = [0.1, 0.3, 1, 3, 10, 30, 60, 300, 900, 3600, 14_400, 86_400];
  const fed = {
    read: counter('read_bytes_total', 'Bytes read from sources', of),
    sent: counter('sent_bytes_total', 'Bytes sent by agents, compressed', of),
    written: counter('written_bytes_total', 'Bytes written by replicas', of),
    skipped: counter(
      'skipped_bytes_total',
      'Bytes that were not sent: zeros, or the same in the replica',
      of,
      'reason',
    ),
    fullScans: counter('full_scans_total', 'Sources read whole', of, 'reason'),
    cuts: counter('cuts_total', 'Consistent cuts that were asked for', of, 'result'),
    refused: counter('cuts_refused_total', 'Consistent cuts that were refused, by the reason', of, 'reason'),
    lost: counter('capture_lost_events_total', 'Events that capture could not get; each led to a scan', of),
    syncs: counter('syncs_total', 'Syncs that ended', of, 'result'),
    mismatched: counter('verify_mismatched_bytes_total', 'Bytes that verification found different', of),
    freeze: histogram(
      'freeze_duration_seconds',
      'How long the source was frozen for a cut',
      [0.001, 0.003, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 1, 3, 10],
      of,
    ),
    sync: histogram('sync_duration_seconds', 'From the start of a sync to its durable commit', seconds, of),
    snapshot: histogram('snapshot_duration_seconds', 'How long taking a snapshot took', seconds, of),
  };
  const recoveries = counter('recoveries_total', 'Recoveries that ended', 'type', 'result');
  const recovery = histogram('recovery_duration_seconds', 'From POST to the end of a recovery', seconds, 'type');
  const started = counter('grpc_server_started_total', 'gRPC calls that began', 'method');
  const handled = counter('grpc_server_handled_total', 'gRPC calls that ended', 'method', 'code');

  for (const type of ['drill', 'failover'] as const) {
    for (const result of ['success', 'failed', 'cancelled']) recoveries.inc({ type, result }, 0);
    recovery.zero({ type });
  }
  for (const method of ['Control', 'Mirror']) {
    started.inc({ method }, 0);
    handled.inc({ method, code: 'OK' }, 0);
  }

  const before = new Set(store.list('Replication').map(({ metadata }) => metadata.uid));
  const last = new Map<string, { uid: string; counts: Counts }>();
  /** Replications whose series are there. */
  const begun = new Set<string>();
  const reasons = { fullScan: new Set<string>(), degraded: new Set<string>() };

  function begin(replication: string): void {
    if (begun.has(replication)) return;
    begun.add(replication);
    const labels = { replication };
    for (const metric of [fed.read, fed.sent, fed.written, fed.lost, fed.mismatched]) metric.inc(labels, 0);
    for (const reason of ['zero', 'same']) fed.skipped.inc({ replication, reason }, 0);
    for (const result of ['success', 'refused']) fed.cuts.inc({ replication, result }, 0);
    for (const reason of refusalReasons) fed.refused.inc({ replication, reason }, 0);
    for (const result of ['success', 'failure']) fed.syncs.inc({ replication, result }, 0);
    for (const metric of [fed.freeze, fed.sync, fed.snapshot]) metric.zero(labels);
  }
  /** What was added since the last report of this agent about this replication. */
  function added(agent: string, report: Report): Counts {
    const key = `${agent} ${report.replicationUid}`;
    const counts = Object.fromEntries(reported.map((field) => [field, report[field]])) as Counts;
    const zero = Object.fromEntries(reported.map((field) => [field, 0])) as Counts;
    const known = last.get(key)?.counts ?? (before.has(report.replicationUid) ? counts : zero);
    last.set(key, { uid: report.replicationUid, counts });
    // One that fell means that the agent was started anew: all of them count from zero.
    const base = reported.some((field) => counts[field] < known[field]) ? zero : known;
    return Object.fromEntries(reported.map((field) => [field, counts[field] - base[field]])) as Counts;
  }
  function bounded(of: keyof typeof reasons, reason: string): string {
    const known = reasons[of];
    if (!/^[A-Za-z][A-Za-z0-9]{0,63}$/.test(reason)) return 'Other';
    if (!known.has(reason) && known.size >= maxReasons) return 'Other';
    known.add(reason);
    return reason;
  }

  function readReplication({ metadata, spec, status }: Replication): void {
    const replication = metadata.name;
    const labels = { replication };
    begin(replication);
    for (const reason of fullScanReasons[spec.source.volumeMode]) fed.fullScans.inc({ replication, reason }, 0);
    for (const state of states) read.state.set({ replication, state }, Number(state === status.state));
    for (const phase of phases) read.phase.set({ replication, phase }, Number(phase === status.phase));
    for (const state of snapshotStates) read.snapshots.set({ replication, state }, 0);
    read.lastSync.set(labels, secondsOf(status.lastSyncTime));
    read.lastAttempt.set(labels, secondsOf(status.lastAttemptTime));
    read.lastVerified.set(labels, secondsOf(status.lastVerifiedTime));
    read.lastDrill.set(labels, secondsOf(status.lastDrilledTime));
    read.target.set(labels, spec.rpoSeconds);
    if (status.lastSyncTime !== null)
      read.lag.set(labels, Math.max(0, clock.nowMs() / 1000 - secondsOf(status.lastSyncTime)));
    if (status.lagBytes !== null) read.lagBytes.set(labels, status.lagBytes);
    if (status.usedBytes !== null) read.replica.set(labels, status.usedBytes);
    read.initial.set(labels, initialRatio(status));
    const degraded = status.conditions.find((one) => one.type === 'Degraded' && one.status === 'True');
    if (degraded !== undefined) read.degraded.set({ replication, reason: bounded('degraded', degraded.reason) }, 1);
  }
  function readStore(): Set<string> {
    for (const metric of Object.values(read)) metric.reset();
    const replications = store.list('Replication');
    replications.forEach(readReplication);
    const names = new Set(replications.map(({ metadata }) => metadata.name));
    for (const { spec, status } of store.list('Snapshot'))
      if (names.has(spec.replication)) read.snapshots.inc({ replication: spec.replication, state: status.state });
    for (const state of agentStates) read.agents.set({ state }, 0);
    for (const { metadata, status } of store.list('Agent')) {
      read.agents.inc({ state: status.state });
      if (status.state !== 'NOT INSTALLED') {
        read.agentUp.set({ agent: metadata.name }, Number(status.state === 'ACTIVE' || status.state === 'WARNING'));
        read.agentInfo.set({ agent: metadata.name, version: status.version ?? 'unknown' }, 1);
      }
      if (status.certificateExpiryTime !== null)
        read.certificate.set({ agent: metadata.name }, secondsOf(status.certificateExpiryTime));
    }
    for (const { metadata, status } of store.list('StorageClass')) {
      const labels = { storage_class: metadata.name };
      if (status.capacityBytes !== null) read.capacity.set(labels, status.capacityBytes);
      if (status.usedBytes !== null) read.used.set(labels, status.usedBytes);
    }
    for (const [name, pem] of Object.entries(certificates?.() ?? {}))
      read.masterCertificate.set({ certificate: name }, validityOf(pem).notAfterMs / 1000);
    const uids = new Set(replications.map(({ metadata }) => metadata.uid));
    for (const [key, { uid }] of last) if (!uids.has(uid)) last.delete(key);
    return names;
  }
  async function forget(names: Set<string>): Promise<void> {
    const left = [...begun].filter((name) => !names.has(name));
    if (left.length === 0) return;
    for (const name of left) begun.delete(name);
    for (const metric of Object.values(fed)) {
      const gone = new Map<string, Record<string, string>>();
      for (const { labels } of (await metric.get()).values) {
        // Of a histogram's values, `le` is no label of the series.
        const { le, ...own } = labels as Record<string, string>;
        if (!names.has(own['replication'] ?? '')) gone.set(JSON.stringify(own), own);
      }
      for (const labels of gone.values()) metric.remove(labels);
    }
  }

  /** One metric after the other, and what else waits in between: with thousands of replications the whole takes seconds. */
  async function write(): Promise<string> {
    await forget(readStore());
    const parts: string[] = [];
    for (const { name } of registry.getMetricsAsArray() as unknown as { name: string }[]) {
      parts.push(await registry.getSingleMetricAsString(name));
      await setImmediate();
    }
    return `${parts.join('\n\n')}\n`;
  }
  let writing: Promise<string> | undefined;

  return {
    contentType: registry.contentType,
    text() {
      // Who asks meanwhile gets the same: reading the store begins all gauges anew.
      writing ??= write().finally(() => (writing = undefined));
      return writing;
    },
    onReport(agent, replication, report) {
      begin(replication);
      const more = added(agent, report);
      const labels = { replication };
      fed.read.inc(labels, more.readBytes);
      fed.sent.inc(labels, more.sentBytes);
      fed.skipped.inc({ replication, reason: 'zero' }, more.skippedZeroBytes);
      fed.skipped.inc({ replication, reason: 'same' }, more.skippedSameBytes);
      fed.cuts.inc({ replication, result: 'success' }, more.cutsMade);
      fed.cuts.inc({ replication, result: 'refused' }, more.cutsRefused);
      if (more.cutsRefused > 0)
        fed.refused.inc({ replication, reason: refusalReason(report.cutRefusedReason) }, more.cutsRefused);
      fed.lost.inc(labels, more.lostEvents);
      if (more.fullScans > 0)
        fed.fullScans.inc({ replication, reason: bounded('fullScan', report.fullScanReason) }, more.fullScans);
      // Only the newest freeze is told; the others of the same interval are not made up.
      if (more.freezes > 0) fed.freeze.observe(labels, report.lastFreezeUs / 1e6);
    },
    onSync(replication, result, durationSeconds) {
      begin(replication);
      fed.syncs.inc({ replication, result });
      if (result === 'success') fed.sync.observe({ replication }, Math.max(0, durationSeconds));
    },
    onWritten(replication, bytes) {
      begin(replication);
      fed.written.inc({ replication }, bytes);
    },
    onSnapshot(replication, durationSeconds) {
      begin(replication);
      fed.snapshot.observe({ replication }, Math.max(0, durationSeconds));
    },
    onVerify(replication, mismatchedBytes) {
      begin(replication);
      fed.mismatched.inc({ replication }, mismatchedBytes);
    },
    onRecovery(type, result, durationSeconds) {
      recoveries.inc({ type, result });
      recovery.observe({ type }, Math.max(0, durationSeconds));
    },
    onCallStarted: (method) => started.inc({ method }),
    onCallEnded: (method, code) => handled.inc({ method, code }),
  };
}

function secondsOf(time: string | null): number {
  return time === null ? 0 : Date.parse(time) / 1000;
}

function initialRatio(status: Replication['status']): number {
  if (status.recoveryPoint !== null) return 1;
  const { bytesDone = 0, bytesTotal = 0 } = status.progress ?? {};
  return bytesTotal > 0 ? Math.min(1, bytesDone / bytesTotal) : 0;
}
