/**
 * Of each alert a situation: what Prometheus would see, when the alert must be quiet, fire and be quiet again. The table of
 * promtool's unit tests (promtoolTests below), and the list that no alert may be missing from.
 */
export interface Situation {
  alert: string;
  /** Series in promtool's notation, one value a minute. */
  series: Record<string, string>;
  quietMinutes: number;
  firingMinutes: number;
  resolvedMinutes: number;
}

const db = '{replication="db"}';
const lag = { [`replicator_rpo_target_seconds${db}`]: '60x60' };

export const situations: Situation[] = [
  {
    alert: 'ReplicatorMasterDown',
    series: { 'up{job="replicator-master"}': '1x4 0x10 1x20' },
    ...{ quietMinutes: 4, firingMinutes: 10, resolvedMinutes: 18 },
  },
  {
    alert: 'ReplicationLate',
    series: { ...lag, [`replicator_lag_seconds${db}`]: '110x9 130x10 5x20' },
    ...{ quietMinutes: 9, firingMinutes: 15, resolvedMinutes: 23 },
  },
  {
    alert: 'ReplicationVeryLate',
    series: { ...lag, [`replicator_lag_seconds${db}`]: '170x9 190x10 5x20' },
    ...{ quietMinutes: 9, firingMinutes: 15, resolvedMinutes: 23 },
  },
  {
    alert: 'ReplicationNeverSynced',
    series: {
      [`replicator_last_sync_timestamp_seconds${db}`]: '0x70 5000x20',
      'replicator_phase{replication="db", phase="Paused"}': '0x100',
    },
    ...{ quietMinutes: 59, firingMinutes: 65, resolvedMinutes: 73 },
  },
  {
    alert: 'ReplicationStuck',
    series: { 'replicator_state{replication="db", state="ERROR"}': '0x4 1x10 0x20' },
    ...{ quietMinutes: 4, firingMinutes: 10, resolvedMinutes: 18 },
  },
  {
    alert: 'ReplicationFirstCopyStuck',
    series: {
      'replicator_phase{replication="db", phase="InitialSync"}': '1x80',
      [`replicator_initial_sync_ratio${db}`]: '0+0.01x9 0.1x40 0.2+0.01x30',
    },
    ...{ quietMinutes: 15, firingMinutes: 40, resolvedMinutes: 56 },
  },
  {
    alert: 'ReplicatorAgentGone',
    series: { 'replicator_agent_up{agent="node-a"}': '1x4 0x10 1x20' },
    ...{ quietMinutes: 4, firingMinutes: 10, resolvedMinutes: 18 },
  },
  {
    alert: 'ReplicationVerifyMismatch',
    series: { [`replicator_verify_mismatched_bytes_total${db}`]: '0x9 65536x120' },
    ...{ quietMinutes: 8, firingMinutes: 15, resolvedMinutes: 80 },
  },
  {
    alert: 'ReplicationCaptureLoses',
    series: {
      [`replicator_capture_lost_events_total${db}`]: '0x9 10+10x10 110x120',
      'replicator_full_scans_total{replication="db", reason="EventsLost"}': '0x9 1+1x10 11x120',
    },
    ...{ quietMinutes: 9, firingMinutes: 20, resolvedMinutes: 100 },
  },
  {
    alert: 'ReplicationNoConsistentCut',
    series: {
      'replicator_cuts_total{replication="db", result="success"}': '0+1x9 10x40 10+4x120',
      'replicator_cuts_total{replication="db", result="refused"}': '0x9 0+1x40 40x120',
    },
    ...{ quietMinutes: 15, firingMinutes: 45, resolvedMinutes: 100 },
  },
  {
    alert: 'ReplicatorStorageFillsUp',
    series: {
      'replicator_storage_capacity_bytes{storage_class="local"}': '1000x600',
      'replicator_storage_used_bytes{storage_class="local"}': '650+0.4x120 300x480',
    },
    ...{ quietMinutes: 20, firingMinutes: 60, resolvedMinutes: 200 },
  },
  {
    alert: 'ReplicatorStorageFull',
    series: {
      'replicator_storage_capacity_bytes{storage_class="local"}': '1000x60',
      'replicator_storage_used_bytes{storage_class="local"}': '900x9 980x10 500x20',
    },
    ...{ quietMinutes: 9, firingMinutes: 15, resolvedMinutes: 23 },
  },
  {
    alert: 'ReplicationSnapshotFailed',
    series: { 'replicator_snapshots{replication="db", state="Failed"}': '0x4 1x10 0x20' },
    ...{ quietMinutes: 4, firingMinutes: 10, resolvedMinutes: 18 },
  },
  {
    alert: 'ReplicationDrillOverdue',
    series: {
      [`replicator_last_sync_timestamp_seconds${db}`]: '100x2000',
      [`replicator_last_drill_timestamp_seconds${db}`]: '-2590000x1600 95000x300',
    },
    ...{ quietMinutes: 1400, firingMinutes: 1550, resolvedMinutes: 1620 },
  },
  {
    alert: 'ReplicatorCertificateExpires',
    series: { 'replicator_agent_certificate_expiry_timestamp_seconds{agent="node-a"}': '610000x200 9000000x60' },
    ...{ quietMinutes: 80, firingMinutes: 190, resolvedMinutes: 210 },
  },
  {
    alert: 'ReplicatorMasterCertificateExpires',
    series: { 'replicator_master_certificate_expiry_timestamp_seconds{certificate="http"}': '1214000x200 40000000x60' },
    ...{ quietMinutes: 80, firingMinutes: 190, resolvedMinutes: 210 },
  },
  {
    alert: 'ReplicationSplitBrain',
    series: { 'replicator_degraded{replication="db", reason="SplitBrain"}': '_x4 1x10 stale _x20' },
    ...{ quietMinutes: 3, firingMinutes: 10, resolvedMinutes: 20 },
  },
];

/** As promtool takes it. */
export function promtoolTests(): object {
  return {
    rule_files: ['records.yaml', 'alerts.yaml'],
    evaluation_interval: '1m',
    tests: situations.map(({ alert, series, quietMinutes, firingMinutes, resolvedMinutes }) => ({
      name: alert,
      interval: '1m',
      input_series: Object.entries(series).map(([name, values]) => ({ series: name, values })),
      promql_expr_test: (
        [
          [quietMinutes, 0],
          [firingMinutes, 1],
          [resolvedMinutes, 0],
        ] as const
      ).map(([minutes, value]) => ({
        expr: `count(ALERTS{alertname="${alert}", alertstate="firing"}) or vector(0)`,
        eval_time: `${minutes}m`,
        exp_samples: [{ labels: '{}', value }],
      })),
    })),
  };
}
