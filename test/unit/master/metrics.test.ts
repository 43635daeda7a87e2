import t from 'tap';
import { randomBytes } from 'node:crypto';
import '../../../proto/reflect.ts';
import { generateKeyPair, keyAlgorithm } from '../../../proto/certificate.ts';
import { openDatabase } from '../../../master/database.ts';
import { startMetrics } from '../../../master/metrics.ts';
import { apiVersion } from '../../../master/resources.ts';
import type { Replication } from '../../../master/resources.ts';
import { sqliteStore } from '../../../master/store-sqlite.ts';
import { refusalReasons } from '../../../proto/refusal.ts';
import type { Report } from '../../../proto/wire.ts';

const clock = { nowMs: () => Date.parse('2026-11-20T00:01:00.000Z') };
const emptyReport: Report = {
  replicationUid: '',
  phase: 'Mirroring',
  captureMethod: 'scan',
  captureReason: '',
  bytesTotal: 0,
  bytesDone: 0,
  bytesPerSecond: 0,
  dirtyBytes: 0,
  troubles: [],
  readBytes: 0,
  sentBytes: 0,
  skippedZeroBytes: 0,
  skippedSameBytes: 0,
  fullScans: 0,
  fullScanReason: '',
  cutsMade: 0,
  cutsRefused: 0,
  cutRefusedReason: '',
  lastFreezeUs: 0,
  unchangedSinceUs: 0,
  syncRequestDone: 0,
  resyncRequestDone: 0,
  verifyRequestDone: 0,
  freezes: 0,
  lostEvents: 0,
  dirtyKnown: false,
};

function setup() {
  const store = sqliteStore(openDatabase(':memory:'), { clock, random: { bytes: (length) => randomBytes(length) } });
  const create = (name: string, status: Partial<Replication['status']> = {}) =>
    store.create('Replication', name, {
      apiVersion,
      kind: 'Replication',
      metadata: { name },
      spec: {
        source: { agent: 'a', path: '/x', volumeMode: 'Block', include: [], exclude: [] },
        target: { storageClass: 'local' },
        replicationState: 'primary',
        copyMethod: 'Direct',
        trigger: { continuous: true },
        rpoSeconds: 30,
        consistency: null,
        maxFreezeMs: 500,
        snapshotSchedules: [],
        journalSeconds: 3600,
        maxJournalBytes: 64 * 2 ** 30,
        compression: 'auto',
        bandwidthBytesPerSecond: 0,
        readBytesPerSecond: 0,
        paused: false,
      },
      status: {
        state: 'PREPARING',
        phase: 'InitialSync',
        role: 'Secondary',
        captureMethod: null,
        fencingGeneration: '1',
        progress: { bytesTotal: 200, bytesDone: 50, bytesPerSecond: 1, secondsLeft: null },
        recoveryPoint: null,
        lastSyncTime: null,
        lagSeconds: null,
        lagBytes: null,
        lastSyncDuration: null,
        lastSyncBytes: null,
        lastAttemptTime: null,
        lastVerifiedTime: null,
        lastDrilledTime: null,
        nextSyncTime: null,
        latestImage: null,
        nextSnapshotTime: null,
        usedBytes: null,
        fork: null,
        observedGeneration: 0,
        conditions: [],
        ...status,
      },
      requests: { sync: 0, resync: 0, verify: 0, force: false },
    });
  return { store, create };
}
/** Series of ours by name and labels as exposed. */
function series(text: string): Map<string, number> {
  const lines = text.split('\n').filter((line) => line.startsWith('replicator_'));
  return new Map(lines.map((line) => [line.replace(/ \S+$/, ''), Number(line.split(' ').at(-1))]));
}

t.test('what the store knows is exposed at the scrape: one-hot states, times, lag, counts', async (t) => {
  const { store, create } = setup();
  create('a', { lastSyncTime: '2026-11-20T00:00:58.500Z', lagBytes: 7, state: 'NORMAL', phase: 'Mirroring' });
  create('b');
  store.create('Agent', 'node', {
    apiVersion,
    kind: 'Agent',
    metadata: { name: 'node' },
    spec: { role: 'source' },
    status: {
      state: 'CONN FAILED',
      message: '',
      version: null,
      kernel: null,
      bootId: null,
      lastSeenTime: null,
      clockOffsetSeconds: null,
      certificateExpiryTime: null,
    },
    identity: { machineId: '', certificates: [] },
  });
  store.create('StorageClass', 'local', {
    apiVersion,
    kind: 'StorageClass',
    metadata: { name: 'local' },
    spec: { driver: 'directory', parameters: { path: '/data' } },
    status: { capacityBytes: 1000, usedBytes: null, reflink: null, conditions: [] },
  });
  const found = series(await startMetrics({ store, clock, version: '1.2.3' }).text());
  const value = (name: string): number | undefined => found.get(`replicator_${name}`);
  t.equal(value('state{replication="a",state="NORMAL"}'), 1);
  t.equal(value('state{replication="a",state="ERROR"}'), 0);
  t.equal([...found].filter(([key, on]) => key.startsWith('replicator_phase{replication="a"') && on === 1).length, 1);
  t.equal(value('lag_seconds{replication="a"}'), 1.5);
  t.equal(value('lag_seconds{replication="b"}'), undefined, 'unknown is absent');
  t.equal(value('last_sync_timestamp_seconds{replication="b"}'), 0, 'never is 0');
  t.equal(value('lag_bytes{replication="a"}'), 7);
  t.equal(value('initial_sync_ratio{replication="b"}'), 0.25);
  t.equal(value('rpo_target_seconds{replication="a"}'), 30);
  t.equal(value('agents{state="CONN FAILED"}'), 1);
  t.equal(value('agent_up{agent="node"}'), 0);
  t.equal(value('agent_info{agent="node",version="unknown"}'), 1);
  t.equal(value('snapshots{replication="a",state="Ready"}'), 0);
  t.equal(value('storage_capacity_bytes{storage_class="local"}'), 1000);
  t.equal(value('storage_used_bytes{storage_class="local"}'), undefined);
  t.equal(value('build_info{version="1.2.3"}'), 1);
});

t.test('counters only grow: an agent that restarts begins at zero, ours go on', async (t) => {
  const { store, create } = setup();
  const metrics = startMetrics({ store, clock, version: '1' });
  const replicationUid = create('a').metadata.uid;
  const report = (more: Partial<Report>): void =>
    metrics.onReport('node', 'a', { ...emptyReport, replicationUid, ...more });
  report({ readBytes: 100, sentBytes: 10, cutsMade: 1, freezes: 1, lastFreezeUs: 20_000 });
  report({ readBytes: 150, sentBytes: 10, cutsMade: 2, freezes: 1, lastFreezeUs: 20_000 });
  report({ readBytes: 150, sentBytes: 10, cutsMade: 2, freezes: 1, cutsRefused: 2, cutRefusedReason: 'busy' });
  report({
    readBytes: 150,
    sentBytes: 10,
    cutsMade: 2,
    freezes: 1,
    cutsRefused: 3,
    cutRefusedReason: 'a word to come',
  });
  // The restarted agent has read more than before already: the fall of another counter gives it away.
  report({ readBytes: 170, sentBytes: 5, fullScans: 1, fullScanReason: 'CaptureLost' });
  const found = series(await metrics.text());
  t.equal(found.get('replicator_read_bytes_total{replication="a"}'), 320);
  t.equal(found.get('replicator_sent_bytes_total{replication="a"}'), 15);
  t.equal(found.get('replicator_cuts_total{replication="a",result="success"}'), 2);
  t.equal(found.get('replicator_cuts_total{replication="a",result="refused"}'), 3);
  t.equal(found.get('replicator_cuts_refused_total{replication="a",reason="busy"}'), 2);
  t.equal(found.get('replicator_cuts_refused_total{replication="a",reason="other"}'), 1);
  t.equal(found.get('replicator_cuts_refused_total{replication="a",reason="a word to come"}'), undefined);
  t.equal(found.get('replicator_freeze_duration_seconds_count{replication="a"}'), 1);
  t.equal(found.get('replicator_freeze_duration_seconds_sum{replication="a"}'), 0.02);
  t.equal(found.get('replicator_full_scans_total{replication="a",reason="CaptureLost"}'), 1);
});

t.test('what has not happened yet is there with 0, so that the first time is an increase', async (t) => {
  const { store, create } = setup();
  create('a');
  const metrics = startMetrics({ store, clock, version: '1' });
  const ofReplication = [
    ...['read_bytes_total{}', 'sent_bytes_total{}', 'written_bytes_total{}', 'capture_lost_events_total{}'],
    ...['verify_mismatched_bytes_total{}', 'skipped_bytes_total{reason="zero"}', 'skipped_bytes_total{reason="same"}'],
    ...['cuts_total{result="success"}', 'cuts_total{result="refused"}', 'syncs_total{result="success"}'],
    ...refusalReasons.map((reason) => `cuts_refused_total{reason="${reason}"}`),
    ...['syncs_total{result="failure"}', 'freeze_duration_seconds_count{}', 'sync_duration_seconds_count{}'],
    ...['snapshot_duration_seconds_count{}', 'full_scans_total{reason="first"}', 'full_scans_total{reason="offer"}'],
  ].map((name) => `replicator_${name.replace('{', '{replication="a",').replace(',}', '}')}`);
  const recoveries = ['drill', 'failover'].flatMap((type) => [
    ...['success', 'failed', 'cancelled'].map(
      (result) => `replicator_recoveries_total{type="${type}",result="${result}"}`,
    ),
    `replicator_recovery_duration_seconds_count{type="${type}"}`,
  ]);
  const before = series(await metrics.text());
  for (const name of [...ofReplication, ...recoveries]) t.equal(before.get(name), 0, name);
  metrics.onVerify('a', 65536);
  metrics.onSync('a', 'success', 1);
  metrics.onSnapshot('b', 1);
  const after = series(await metrics.text());
  t.equal(after.get('replicator_verify_mismatched_bytes_total{replication="a"}'), 65536);
  t.equal(after.get('replicator_sync_duration_seconds_count{replication="a"}'), 1, 'and nothing is set back to 0');
  store.delete('Replication', 'a');
  t.notMatch(await metrics.text(), 'replication="a"');
  create('a');
  t.equal(series(await metrics.text()).get('replicator_syncs_total{replication="a",result="success"}'), 0, 'anew');
});

t.test('what an earlier master has counted is the base, not counted again', async (t) => {
  const { store, create } = setup();
  const replicationUid = create('a').metadata.uid;
  const metrics = startMetrics({ store, clock, version: '1' });
  metrics.onReport('node', 'a', { ...emptyReport, replicationUid, readBytes: 1000 });
  metrics.onReport('node', 'a', { ...emptyReport, replicationUid, readBytes: 1001 });
  t.equal(series(await metrics.text()).get('replicator_read_bytes_total{replication="a"}'), 1);
});

t.test('series of a deleted replication go, those of the others stay', async (t) => {
  const { store, create } = setup();
  const metrics = startMetrics({ store, clock, version: '1' });
  for (const name of ['a', 'b']) {
    const replicationUid = create(name).metadata.uid;
    metrics.onReport('node', name, {
      ...emptyReport,
      replicationUid,
      readBytes: 1,
      fullScans: 1,
      fullScanReason: 'New',
    });
    metrics.onSync(name, 'success', 1);
    metrics.onSync(name, 'failure', 1);
    metrics.onSnapshot(name, 1);
    metrics.onWritten(name, 1);
    metrics.onVerify(name, 131072);
  }
  t.match(await metrics.text(), /replication="a"/);
  store.delete('Replication', 'a');
  const text = await metrics.text();
  t.notMatch(text, /replication="a"/);
  t.match(text, /replicator_sync_duration_seconds_count\{replication="b"\} 1/);
  t.match(text, /replicator_verify_mismatched_bytes_total\{replication="b"\} 131072/);
});

t.test('reasons that agents send make a bounded number of series', async (t) => {
  const { store, create } = setup();
  const metrics = startMetrics({ store, clock, version: '1' });
  const replicationUid = create('a').metadata.uid;
  for (let index = 1; index <= 500; index++) {
    const fullScanReason = index % 2 === 0 ? `Reason${index}` : 'a "text"\n{x}';
    metrics.onReport('node', 'a', { ...emptyReport, replicationUid, fullScans: index, fullScanReason });
  }
  const scans = [...series(await metrics.text())].filter(([key]) => key.startsWith('replicator_full_scans_total'));
  t.ok(scans.length <= 36, `${scans.length} series`);
  t.equal(
    scans.reduce((sum, [, value]) => sum + value, 0),
    500,
  );
});

t.test('reasons of degraded replications are bounded too', async (t) => {
  const { store, create } = setup();
  const metrics = startMetrics({ store, clock, version: '1' });
  const degraded = (reason: string) => ({
    ...{ type: 'Degraded', status: 'True' as const, reason, message: '' },
    lastTransitionTime: '2026-11-20T00:00:00.000Z',
  });
  for (let index = 0; index < 100; index++) create(`r${index}`, { conditions: [degraded(`Reason${index}`)] });
  const text = await metrics.text();
  const words = new Set([...text.matchAll(/replicator_degraded\{.*reason="(\w+)"/g)].map((match) => match[1]));
  t.equal(words.size, 33);
  t.ok(words.has('Other'));
});

t.test('a clock that is set back or ahead makes no negative age and no negative duration', async (t) => {
  const { store, create } = setup();
  create('a', { lastSyncTime: '2026-11-20T00:00:58.500Z' });
  let nowMs = clock.nowMs();
  const metrics = startMetrics({ store, clock: { nowMs: () => nowMs }, version: '1' });
  const lag = async () => series(await metrics.text()).get('replicator_lag_seconds{replication="a"}');
  t.equal(await lag(), 1.5);
  nowMs -= 3_600_000;
  t.equal(await lag(), 0, 'a point of the future is not younger than now');
  nowMs += 2 * 3_600_000;
  t.equal(await lag(), 3601.5, 'and nothing of it stays');
  metrics.onSync('a', 'success', -5);
  metrics.onSnapshot('a', -5);
  metrics.onRecovery('drill', 'success', -5);
  const found = series(await metrics.text());
  for (const name of ['sync_duration_seconds_sum{replication="a"}', 'snapshot_duration_seconds_sum{replication="a"}'])
    t.equal(found.get(`replicator_${name}`), 0, name);
  t.equal(found.get('replicator_recovery_duration_seconds_sum{type="drill"}'), 0);
});

t.test('every metric of the contract is there', async (t) => {
  const { store, create } = setup();
  create('a', { lastSyncTime: '2026-11-20T00:00:58.500Z', lagBytes: 7 });
  const text = await startMetrics({ store, clock, version: '1' }).text();
  for (const name of [
    ...['last_sync_timestamp_seconds', 'last_attempt_timestamp_seconds', 'last_verified_timestamp_seconds'],
    ...['last_drill_timestamp_seconds', 'rpo_target_seconds', 'lag_seconds', 'lag_bytes', 'state', 'phase'],
    ...['sync_duration_seconds', 'syncs_total', 'cuts_total', 'read_bytes_total', 'sent_bytes_total'],
    ...['written_bytes_total', 'skipped_bytes_total', 'initial_sync_ratio', 'snapshots', 'snapshot_duration_seconds'],
    ...['freeze_duration_seconds', 'capture_lost_events_total', 'full_scans_total', 'verify_mismatched_bytes_total'],
    ...['agents', 'recoveries_total', 'recovery_duration_seconds', 'storage_capacity_bytes', 'storage_used_bytes'],
    ...['grpc_server_started_total', 'grpc_server_handled_total'],
  ])
    t.match(text, new RegExp(`^# TYPE replicator_${name} `, 'm'), name);
});

t.test('names follow the conventions: help, base units, _total for counters only', async (t) => {
  const { store } = setup();
  const metrics = startMetrics({ store, clock, version: '1' });
  metrics.onRecovery('drill', 'success', 3);
  metrics.onCallStarted('Mirror');
  metrics.onCallEnded('Mirror', 'OK');
  const text = await metrics.text();
  const types = [...text.matchAll(/^# TYPE (replicator_\w+) (\w+)$/gm)];
  t.ok(types.length > 25);
  for (const [, name = '', type] of types) {
    t.match(text, new RegExp(`^# HELP ${name} \\S`, 'm'), `${name} has help`);
    t.equal(name.endsWith('_total'), type === 'counter', `${name} is a ${type}`);
    t.match(name, /^[a-z]+(_[a-z]+)*$/);
    t.notMatch(name, /(milliseconds|_ms|kilobytes|megabytes|percent|minutes|hours)/, `${name} has base units`);
    if (type === 'histogram') t.match(name, /_(seconds|bytes)$/);
  }
  t.match(text, /^replicator_recoveries_total\{type="drill",result="success"\} 1$/m);
  t.match(text, /^process_resident_memory_bytes \d+/m);
});

t.test("the ends of the master's own certificates, as they are at the scrape", async (t) => {
  const { store } = setup();
  const ca = await generateKeyPair();
  const made = async (notAfter: string) => {
    const { X509CertificateGenerator } = await import('@peculiar/x509');
    return (
      await X509CertificateGenerator.createSelfSigned({
        name: 'CN=test',
        notBefore: new Date('2026-01-01T00:00:00Z'),
        notAfter: new Date(notAfter),
        keys: ca.keys,
        signingAlgorithm: keyAlgorithm,
      })
    ).toString('pem');
  };
  const certificates: Record<string, string> = { grpc: await made('2027-01-01T00:00:00Z') };
  const metrics = startMetrics({ store, clock, version: '1', certificates: () => certificates });
  const of = async () => {
    const { certificate } = Object.groupBy((await metrics.text()).split('\n'), (line) =>
      line.startsWith('replicator_master_certificate_expiry_timestamp_seconds{') ? 'certificate' : 'other',
    );
    return certificate?.map((line) => line.replace(/^[^{]*/, ''));
  };
  t.strictSame(await of(), [`{certificate="grpc"} ${Date.parse('2027-01-01') / 1000}`]);
  certificates['grpc'] = await made('2028-01-01T00:00:00Z');
  certificates['http'] = await made('2026-12-01T00:00:00Z');
  t.strictSame(
    await of(),
    [
      `{certificate="grpc"} ${Date.parse('2028-01-01') / 1000}`,
      `{certificate="http"} ${Date.parse('2026-12-01') / 1000}`,
    ],
    'renewed; configured',
  );
});
