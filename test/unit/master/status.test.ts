import t from 'tap';
import { pointView, statusOf, type StatusFacts } from '../../../master/status.ts';
import type { ReplicationStatus } from '../../../master/resources.ts';
import type { Report } from '../../../proto/wire.ts';

const nowMs = Date.parse('2026-01-02T03:04:05.678Z');
const blank: ReplicationStatus = {
  state: 'PREPARING',
  phase: 'Pending',
  role: 'Secondary',
  captureMethod: null,
  fencingGeneration: '1',
  progress: null,
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
};
const report = {
  phase: 'Mirroring',
  captureMethod: 'scan',
  troubles: [],
  dirtyBytes: 0,
  unchangedSinceUs: 0,
} as unknown as Report;
const facts: StatusFacts = {
  spec: {
    source: { agent: 'node-a', path: '/srv/x', volumeMode: 'Block', include: [], exclude: [] },
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
  generation: 2,
  fencingGeneration: '1',
  nowMs,
  agentConnected: true,
  report,
  newestPoint: undefined,
  newestPointView: undefined,
  claimTrouble: undefined,
  masterTroubles: [],
  lastSync: undefined,
  lastAttemptMs: undefined,
  lastVerified: undefined,
  lastDrilledMs: undefined,
  nextSyncMs: undefined,
  latestImage: null,
  nextSnapshotMs: undefined,
  usedBytes: undefined,
  journalShort: false,
  withheld: 0,
  fork: undefined,
  promotion: undefined,
};
const newestPoint = {
  sequence: 7,
  sourceUs: (nowMs - 2000) * 1000,
  committedUs: (nowMs - 1000) * 1000,
  consistency: 'filesystem',
  digest: Buffer.alloc(16),
  groupCut: '',
};
const stop = { reason: 'SourceGone', message: 'bring it back', stops: true };

function conditionOf(status: ReplicationStatus, type: string) {
  return status.conditions.find((condition) => condition.type === type);
}

t.test('state follows from whether there is a point and whether mirroring stands still', (t) => {
  const state = (change: Partial<StatusFacts>) => statusOf({ ...facts, ...change }, blank).state;
  t.equal(state({}), 'PREPARING');
  t.equal(state({ report: { ...report, troubles: [stop] } }), 'FAILED');
  t.equal(state({ newestPoint }), 'NORMAL');
  t.equal(state({ newestPoint, report: { ...report, troubles: [stop] } }), 'ERROR');
  t.equal(
    state({ newestPoint, report: { ...report, troubles: [{ ...stop, stops: false }] } }),
    'NORMAL',
    'a hint is no stop',
  );
  t.equal(state({ newestPoint, agentConnected: false }), 'ERROR');
  t.end();
});

t.test('every state says why and what to do', (t) => {
  const gone = statusOf({ ...facts, newestPoint, agentConnected: false }, blank);
  t.equal(gone.phase, 'Disconnected');
  t.match(conditionOf(gone, 'Degraded'), { status: 'True', reason: 'AgentGone', message: /start it/ });
  const short = statusOf({ ...facts, newestPoint, journalShort: true }, blank);
  t.match(conditionOf(short, 'Degraded'), { reason: 'JournalShort', message: /3600/ });
  const withheld = statusOf({ ...facts, newestPoint, withheld: 3 }, blank);
  t.match(conditionOf(withheld, 'Degraded'), { reason: 'Withheld', message: /^3 files .* run it as root/ });
  const full = statusOf(
    { ...facts, newestPoint, masterTroubles: [{ reason: 'SpaceLow', message: 'no space', stops: true }] },
    blank,
  );
  t.match(conditionOf(full, 'Degraded'), { reason: 'SpaceLow' });
  t.equal(statusOf({ ...facts, spec: { ...facts.spec, paused: true } }, blank).phase, 'Paused');
  t.end();
});

t.test('the age is that of the cut, and moves on only by a proof that nothing changed', (t) => {
  t.equal(statusOf({ ...facts, newestPoint }, blank).lagSeconds, 2);
  const proven = { ...report, unchangedSinceUs: (nowMs - 500) * 1000 };
  t.equal(statusOf({ ...facts, newestPoint, report: proven }, blank).lagSeconds, 0.5);
  t.equal(
    statusOf({ ...facts, report: proven }, blank).lastSyncTime,
    null,
    'without a point there is nothing to be old',
  );
  const stale = { ...report, unchangedSinceUs: (nowMs - 9000) * 1000 };
  t.equal(
    statusOf({ ...facts, newestPoint, report: stale }, blank).lagSeconds,
    2,
    'an old proof does not make it older',
  );
  t.end();
});

t.test('a copy that is older than asked for says so, and for good only when it is young again', (t) => {
  const aged = (seconds: number, before = blank) =>
    statusOf({ ...facts, newestPoint: { ...newestPoint, sourceUs: (nowMs - seconds * 1000) * 1000 } }, before);
  const reasonOf = (status: ReplicationStatus) => conditionOf(status, 'Degraded')?.reason;
  t.equal(reasonOf(aged(29)), 'AsExpected');
  const missed = aged(31);
  t.match(conditionOf(missed, 'Degraded'), { status: 'True', reason: 'RpoMissed', message: /rpoSeconds 30/ });
  t.equal(missed.state, 'NORMAL', 'it can be recovered');
  t.equal(reasonOf(aged(29, missed)), 'RpoMissed');
  t.equal(reasonOf(aged(20, missed)), 'AsExpected');
  const paused = { ...facts, spec: { ...facts.spec, paused: true }, newestPoint: { ...newestPoint, sourceUs: 0 } };
  t.equal(reasonOf(statusOf(paused, blank)), 'AsExpected', 'nobody expects it to be young');
  t.end();
});

t.test('what was proved of a point stays proved when the agent goes, and is not taken for the next point', (t) => {
  const view = (sequence: number) => ({
    newestPoint: { ...newestPoint, sequence },
    newestPointView: pointView({ ...newestPoint, sequence }, null, undefined),
  });
  const proven = { ...report, unchangedSinceUs: (nowMs - 500) * 1000 };
  const before = statusOf({ ...facts, ...view(7), report: proven }, blank);
  const gone = { ...facts, nowMs: nowMs + 1000, agentConnected: false, report: undefined };
  t.equal(statusOf({ ...gone, ...view(7) }, before).lagSeconds, 1.5);
  t.equal(statusOf({ ...gone, ...view(8) }, before).lagSeconds, 3);
  t.end();
});

t.test('a condition keeps the time of its last change, and the same facts give the same status', (t) => {
  const before = statusOf(facts, blank);
  const later = statusOf({ ...facts, nowMs: nowMs + 5000 }, before);
  t.same(later.conditions, before.conditions);
  const changed = statusOf({ ...facts, nowMs: nowMs + 9000, newestPoint }, later);
  t.equal(conditionOf(changed, 'Completed')?.lastTransitionTime, new Date(nowMs + 9000).toISOString());
  t.equal(conditionOf(changed, 'Degraded')?.lastTransitionTime, conditionOf(before, 'Degraded')?.lastTransitionTime);
  t.end();
});
