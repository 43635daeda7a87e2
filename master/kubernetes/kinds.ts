/**
 * What each kind of the store is called in Kubernetes. All are namespaced: the master watches one namespace.
 *
 * The group's ReplicationInfo and its plural are the contract's. The others carry the word that keeps them apart from
 * kinds that every cluster has: `kubectl get storageclasses` must go on to mean those of storage.k8s.io.
 */
import type { TObject } from 'typebox';
import { Agent } from '../api/schema/agent.ts';
import { Group } from '../api/schema/group.ts';
import { Recovery } from '../api/schema/recovery.ts';
import { RecoverySchedule } from '../api/schema/recoveryschedule.ts';
import { Replication } from '../api/schema/replication.ts';
import { Snapshot } from '../api/schema/snapshot.ts';
import { StorageClass } from '../api/schema/storageclass.ts';
import type { Kind } from '../resources.ts';

export const group = 'replicator.cdm.datacommand.co.kr';
export const version = 'v1';

export interface Column {
  name: string;
  type: 'string' | 'integer' | 'number' | 'boolean' | 'date';
  jsonPath: string;
  description?: string;
  /** 1: only with `-o wide`. */
  priority?: number;
}

export interface Named {
  kind: string;
  plural: string;
  singular: string;
  shortNames: string[];
  schema: TObject;
  columns: Column[];
  /** Part of the stored object that is neither spec nor status; it lies in the resource's status. */
  hidden?: 'requests' | 'identity' | 'job';
  /** Its data is removed before it goes, so deletion waits for the master. */
  finalizer: boolean;
}

const state: Column = { name: 'State', type: 'string', jsonPath: '.status.state' };
const age: Column = { name: 'Age', type: 'date', jsonPath: '.metadata.creationTimestamp' };

const table: Record<Kind, Named> = {
  Replication: {
    kind: 'ReplicationInfo',
    plural: 'replicationinfoes',
    singular: 'replicationinfo',
    shortNames: ['ri', 'repinfo'],
    schema: Replication,
    hidden: 'requests',
    finalizer: true,
    columns: [
      state,
      { name: 'Phase', type: 'string', jsonPath: '.status.phase' },
      { name: 'Class', type: 'string', jsonPath: '.spec.target.storageClass' },
      { name: 'Last sync', type: 'date', jsonPath: '.status.lastSyncTime', description: 'the copy is as of this time' },
      age,
      { name: 'Agent', type: 'string', jsonPath: '.spec.source.agent', priority: 1 },
      { name: 'Path', type: 'string', jsonPath: '.spec.source.path', priority: 1 },
      { name: 'Capture', type: 'string', jsonPath: '.status.captureMethod', priority: 1 },
    ],
  },
  Agent: {
    kind: 'ReplicationAgent',
    plural: 'replicationagents',
    singular: 'replicationagent',
    shortNames: ['ragent'],
    schema: Agent,
    hidden: 'identity',
    finalizer: false,
    columns: [
      state,
      { name: 'Role', type: 'string', jsonPath: '.spec.role' },
      { name: 'Version', type: 'string', jsonPath: '.status.version' },
      { name: 'Last seen', type: 'date', jsonPath: '.status.lastSeenTime' },
      age,
    ],
  },
  StorageClass: {
    kind: 'ReplicationStorageClass',
    plural: 'replicationstorageclasses',
    singular: 'replicationstorageclass',
    shortNames: ['rsc'],
    schema: StorageClass,
    finalizer: true,
    columns: [
      { name: 'Driver', type: 'string', jsonPath: '.spec.driver' },
      { name: 'Available', type: 'string', jsonPath: '.status.conditions[?(@.type=="Available")].status' },
      { name: 'Capacity', type: 'integer', jsonPath: '.status.capacityBytes' },
      { name: 'Used', type: 'integer', jsonPath: '.status.usedBytes' },
      age,
    ],
  },
  Snapshot: {
    kind: 'ReplicationSnapshot',
    plural: 'replicationsnapshots',
    singular: 'replicationsnapshot',
    shortNames: ['rsnap'],
    schema: Snapshot,
    finalizer: true,
    columns: [
      { name: 'Replication', type: 'string', jsonPath: '.spec.replication' },
      state,
      { name: 'Point', type: 'date', jsonPath: '.status.point.sourceTime' },
      { name: 'Pinned', type: 'boolean', jsonPath: '.spec.pinned' },
      { name: 'Locked until', type: 'string', jsonPath: '.spec.lockedUntil', priority: 1 },
      age,
    ],
  },
  Group: {
    kind: 'ReplicationGroup',
    plural: 'replicationgroups',
    singular: 'replicationgroup',
    shortNames: ['rgroup'],
    schema: Group,
    finalizer: true,
    columns: [
      state,
      { name: 'Target', type: 'string', jsonPath: '.status.targetState' },
      { name: 'Recoverable', type: 'date', jsonPath: '.status.recoverableTime' },
      age,
    ],
  },
  RecoverySchedule: {
    kind: 'RecoverySchedule',
    plural: 'recoveryschedules',
    singular: 'recoveryschedule',
    shortNames: ['rsched'],
    schema: RecoverySchedule,
    finalizer: true,
    columns: [
      { name: 'Type', type: 'string', jsonPath: '.spec.type' },
      { name: 'Repeat', type: 'string', jsonPath: '.spec.repeat' },
      state,
      { name: 'Next', type: 'string', jsonPath: '.status.nextTime' },
      { name: 'Last recovery', type: 'string', jsonPath: '.status.lastRecovery', priority: 1 },
      age,
    ],
  },
  Recovery: {
    kind: 'ReplicationRecovery',
    plural: 'replicationrecoveries',
    singular: 'replicationrecovery',
    shortNames: ['rrec'],
    schema: Recovery,
    hidden: 'job',
    finalizer: true,
    columns: [
      { name: 'Replication', type: 'string', jsonPath: '.spec.replication' },
      { name: 'Type', type: 'string', jsonPath: '.spec.type' },
      state,
      { name: 'Outcome', type: 'string', jsonPath: '.status.outcome' },
      { name: 'RTO', type: 'number', jsonPath: '.status.rtoSeconds', description: 'seconds to the usable copy' },
      age,
    ],
  },
};

export const allKinds = Object.keys(table) as Kind[];

export function named(kind: Kind): Named {
  return table[kind];
}
