/**
 * The dashboards as data: what each panel asks and how it is shown. dashboards.ts makes Grafana's JSON of it; a test runs each
 * query through a real Prometheus. `$replication` stands for the variable of that name.
 */
export interface Panel {
  title: string;
  /** PromQL by legend. */
  queries: Record<string, string>;
  unit: 's' | 'bytes' | 'Bps' | 'percentunit' | 'short' | 'dateTimeFromNow';
  kind: 'stat' | 'lines' | 'table';
  /** Shown yellow from the first, red from the second; below them where the second is the smaller one. Absent: no judgement. */
  thresholds?: [number, number];
  /** What it shows leads to the dashboard of that replication: its queries keep the label `replication`. */
  toReplication?: true;
}
export interface Page {
  uid: string;
  title: string;
  /** Has the variable `replication`. */
  ofReplication?: true;
  panels: Panel[];
}

export const pages: Page[] = [
  {
    uid: 'cdmr-overview',
    title: 'Replicator: overview',
    panels: [
      {
        title: 'Replications by state',
        kind: 'stat',
        unit: 'short',
        queries: { '{{state}}': 'sum by (state) (replicator_state)' },
      },
      {
        title: 'Agents by state',
        kind: 'stat',
        unit: 'short',
        queries: { '{{state}}': 'sum by (state) (replicator_agents)' },
      },
      {
        title: 'Older than their target',
        kind: 'stat',
        unit: 'short',
        thresholds: [1, 3],
        queries: {
          late: 'count(replicator_lag_seconds > on (replication) replicator_rpo_target_seconds) or vector(0)',
        },
      },
      {
        title: 'Age of the copies, as a part of the target',
        kind: 'lines',
        unit: 'percentunit',
        thresholds: [1, 2],
        toReplication: true,
        queries: { '{{replication}}': 'replicator_lag_seconds / on (replication) (replicator_rpo_target_seconds > 0)' },
      },
      {
        title: 'Sent',
        kind: 'lines',
        unit: 'Bps',
        toReplication: true,
        queries: { '{{replication}}': 'sum by (replication) (rate(replicator_sent_bytes_total[$__rate_interval]))' },
      },
      {
        title: 'Storage used',
        kind: 'stat',
        unit: 'percentunit',
        thresholds: [0.8, 0.95],
        queries: {
          '{{storage_class}}':
            'replicator_storage_used_bytes / on (storage_class) (replicator_storage_capacity_bytes > 0)',
        },
      },
      {
        title: 'Degraded',
        kind: 'table',
        unit: 'short',
        toReplication: true,
        queries: { '{{replication}}: {{reason}}': 'sum by (replication, reason) (replicator_degraded)' },
      },
      {
        title: 'Alerts',
        kind: 'table',
        unit: 'short',
        queries: {
          '{{severity}}: {{alertname}}':
            'sum by (severity, alertname) (ALERTS{alertstate="firing", alertname=~"Replicat(ion|or).+"})',
        },
      },
    ],
  },
  {
    uid: 'cdmr-replication',
    title: 'Replicator: one replication',
    ofReplication: true,
    panels: [
      {
        title: 'State',
        kind: 'stat',
        unit: 'short',
        queries: { '{{state}}': 'replicator_state{replication="$replication"} == 1' },
      },
      {
        title: 'Phase',
        kind: 'stat',
        unit: 'short',
        queries: { '{{phase}}': 'replicator_phase{replication="$replication"} == 1' },
      },
      {
        title: 'First copy',
        kind: 'stat',
        unit: 'percentunit',
        queries: { done: 'replicator_initial_sync_ratio{replication="$replication"}' },
      },
      {
        title: 'Age of the copy',
        kind: 'lines',
        unit: 's',
        queries: {
          age: 'replicator_lag_seconds{replication="$replication"}',
          target: 'replicator_rpo_target_seconds{replication="$replication"}',
        },
      },
      {
        title: 'Not yet durable',
        kind: 'lines',
        unit: 'bytes',
        queries: { bytes: 'replicator_lag_bytes{replication="$replication"}' },
      },
      {
        title: 'Bytes',
        kind: 'lines',
        unit: 'Bps',
        queries: {
          read: 'rate(replicator_read_bytes_total{replication="$replication"}[$__rate_interval])',
          sent: 'rate(replicator_sent_bytes_total{replication="$replication"}[$__rate_interval])',
          written: 'rate(replicator_written_bytes_total{replication="$replication"}[$__rate_interval])',
        },
      },
      {
        title: 'Cuts',
        kind: 'lines',
        unit: 'short',
        queries: { '{{result}}': 'increase(replicator_cuts_total{replication="$replication"}[5m])' },
      },
      {
        title: 'Refused cuts, by reason',
        kind: 'lines',
        unit: 'short',
        queries: { '{{reason}}': 'increase(replicator_cuts_refused_total{replication="$replication"}[5m])' },
      },
      {
        title: 'Frozen (99th percentile)',
        kind: 'lines',
        unit: 's',
        thresholds: [0.3, 0.5],
        queries: {
          frozen:
            'histogram_quantile(0.99, sum by (le) (rate(replicator_freeze_duration_seconds_bucket{replication="$replication"}[1h])))',
        },
      },
      {
        title: 'Snapshots',
        kind: 'stat',
        unit: 'short',
        queries: { '{{state}}': 'replicator_snapshots{replication="$replication"}' },
      },
      {
        title: 'Read whole, and events lost, in a day',
        kind: 'stat',
        unit: 'short',
        queries: {
          'read whole':
            'round(sum(increase(replicator_full_scans_total{replication="$replication"}[1d]))) or vector(0)',
          'events lost':
            'round(sum(increase(replicator_capture_lost_events_total{replication="$replication"}[1d]))) or vector(0)',
        },
      },
    ],
  },
  {
    uid: 'cdmr-agents',
    title: 'Replicator: agents',
    panels: [
      { title: 'Agents by state', kind: 'stat', unit: 'short', queries: { '{{state}}': 'replicator_agents' } },
      {
        title: 'Agents by version',
        kind: 'stat',
        unit: 'short',
        queries: { '{{version}}': 'count by (version) (replicator_agent_info)' },
      },
      {
        title: 'Not connected',
        kind: 'table',
        unit: 'short',
        queries: { '{{agent}}': 'sum by (agent) (replicator_agent_up == 0)' },
      },
      {
        title: 'Certificates end in',
        kind: 'table',
        unit: 's',
        thresholds: [14 * 86_400, 7 * 86_400],
        queries: { '{{agent}}': 'sum by (agent) (replicator_agent_certificate_expiry_timestamp_seconds - time())' },
      },
      {
        title: "Master's certificates end in",
        kind: 'table',
        unit: 's',
        thresholds: [30 * 86_400, 14 * 86_400],
        queries: {
          '{{certificate}}': 'sum by (certificate) (replicator_master_certificate_expiry_timestamp_seconds - time())',
        },
      },
      {
        title: 'gRPC calls begun',
        kind: 'lines',
        unit: 'short',
        queries: { '{{method}}': 'increase(replicator_grpc_server_started_total[5m])' },
      },
      {
        title: 'gRPC calls ended',
        kind: 'lines',
        unit: 'short',
        queries: { '{{method}} {{code}}': 'increase(replicator_grpc_server_handled_total[5m])' },
      },
      {
        title: "Master's memory",
        kind: 'lines',
        unit: 'bytes',
        queries: { resident: 'process_resident_memory_bytes{job="replicator-master"}' },
      },
      {
        title: "Master's processors",
        kind: 'lines',
        unit: 'percentunit',
        queries: { used: 'rate(process_cpu_seconds_total{job="replicator-master"}[$__rate_interval])' },
      },
    ],
  },
  {
    uid: 'cdmr-readiness',
    title: 'Replicator: recovery readiness',
    panels: [
      {
        title: 'Can be recovered',
        kind: 'stat',
        unit: 'short',
        queries: { volumes: 'count(replicator_last_sync_timestamp_seconds > 0) or vector(0)' },
      },
      {
        title: 'Never drilled',
        kind: 'stat',
        unit: 'short',
        thresholds: [1, 5],
        queries: { volumes: 'count(replicator_last_drill_timestamp_seconds == 0) or vector(0)' },
      },
      {
        title: 'Since the last drill',
        kind: 'table',
        unit: 's',
        thresholds: [14 * 86_400, 30 * 86_400],
        toReplication: true,
        queries: { '{{replication}}': 'time() - sum by (replication) (replicator_last_drill_timestamp_seconds > 0)' },
      },
      {
        title: 'Since the last verification',
        kind: 'table',
        unit: 's',
        toReplication: true,
        queries: {
          '{{replication}}': 'time() - sum by (replication) (replicator_last_verified_timestamp_seconds > 0)',
        },
      },
      {
        title: 'Recoveries in 30 days',
        kind: 'stat',
        unit: 'short',
        // The counter itself begins anew with the master.
        queries: { '{{type}} {{result}}': 'round(sum by (type, result) (increase(replicator_recoveries_total[30d])))' },
      },
      {
        title: 'Time a recovery took (median, 95th percentile)',
        kind: 'lines',
        unit: 's',
        queries: {
          'median {{type}}':
            'histogram_quantile(0.5, sum by (le, type) (rate(replicator_recovery_duration_seconds_bucket[30d])))',
          '95 % {{type}}':
            'histogram_quantile(0.95, sum by (le, type) (rate(replicator_recovery_duration_seconds_bucket[30d])))',
        },
      },
    ],
  },
];
