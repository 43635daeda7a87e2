/** Objects as the API answers them, for tests of what is shown. */
import { apiVersion, type Recovery, type Replication } from '../../../../master/resources.ts';

export const minuteAgo = new Date(Date.now() - 60_000).toISOString();
const metadata = (name: string, version: number) => {
  return { name, uid: `uid-${name}`, generation: 1, resourceVersion: String(version), creationTimestamp: minuteAgo };
};

export function replication(
  name: string,
  status: Partial<Replication['status']> = {},
  version = 1,
): Omit<Replication, 'requests'> {
  return {
    apiVersion,
    kind: 'Replication',
    metadata: metadata(name, version),
    spec: {
      source: { agent: 'node-a', path: '/srv/orders', volumeMode: 'Filesystem', include: [], exclude: [] },
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
      state: 'NORMAL', phase: 'Mirroring', role: 'Secondary', captureMethod: 'scan', fencingGeneration: '1',
      progress: null, recoveryPoint: null, lastSyncTime: null, lagSeconds: 0.84, lagBytes: null,
      lastSyncDuration: null, lastSyncBytes: null, lastAttemptTime: null, lastVerifiedTime: null,
      lastDrilledTime: null, nextSyncTime: null, latestImage: null,
  nextSnapshotTime: null,
  usedBytes: null, fork: null, observedGeneration: 1, conditions: [],
      ...status,
    },
  }; // prettier-ignore
}

export function recovery(name: string, status: Partial<Recovery['status']> = {}, version = 1): Omit<Recovery, 'job'> {
  return {
    apiVersion,
    kind: 'Recovery',
    metadata: metadata(name, version),
    spec: { replication: 'orders', type: 'drill', point: 'latest-data', target: null },
    status: {
      state: 'Running', outcome: null, message: null, point: null, verified: null, rtoSeconds: null, rpoSeconds: null,
      startTime: null, endTime: null, tasks: [], ...status,
    },
  }; // prettier-ignore
}

export function degraded(reason: string, message: string) {
  return { type: 'Degraded', status: 'True' as const, reason, message, lastTransitionTime: minuteAgo };
}
