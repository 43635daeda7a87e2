/**
 * The objects of the control API as the store keeps them. Names, words and units are the contract's: REST, the command
 * line and Kubernetes show these very fields. Times are RFC 3339 UTC with milliseconds; unknown is null.
 */

import type { Consistency, VolumeMode } from '../proto/wire.ts';

export const apiVersion = 'replicator.cdm.datacommand.co.kr/v1';

export interface Metadata {
  name: string;
  displayName?: string;
  namespace?: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  /** Given once by the store; never used again for another object. */
  uid: string;
  /** Grows with each change of spec. */
  generation: number;
  /** Of the whole store, grows with every write; opaque to callers. */
  resourceVersion: string;
  creationTimestamp: string;
}

export interface Resource<Kind extends string, Spec, Status> {
  apiVersion: typeof apiVersion;
  kind: Kind;
  metadata: Metadata;
  spec: Spec;
  status: Status;
}

export interface Condition {
  type: string;
  status: 'True' | 'False' | 'Unknown';
  /** CamelCase word that programs may branch on. */
  reason: string;
  /** What it means and what to do, for people. */
  message: string;
  lastTransitionTime: string;
}

export type ReplicationState = 'PREPARING' | 'NORMAL' | 'FAILED' | 'ERROR';
export type Phase =
  | 'Pending'
  | 'InitialSync'
  | 'Mirroring'
  | 'Resyncing'
  | 'Verifying'
  | 'Paused'
  | 'Promoting'
  | 'Promoted'
  | 'Demoted'
  | 'Disconnected';

export type SnapshotPeriod = 'minute' | 'hour' | 'day' | 'week' | 'month';
/** A snapshot every so many of the period; one schedule of each period at most. See schedule.ts. */
export interface SnapshotSchedule {
  period: SnapshotPeriod;
  every: number;
  /** Of this schedule's snapshots the newest so many stay. */
  retain: number;
  /** null: Monday, 1 January 2001, midnight in the time zone. */
  startTime: string | null;
  /** IANA name. */
  timeZone: string;
}

/** A PersistentVolumeClaim of a cluster that this master knows. */
export interface ClaimRef {
  /** Absent: the cluster that the master runs in. */
  cluster?: string;
  namespace: string;
  name: string;
}

export interface ReplicationSpec {
  /** With `pvc` the master finds agent and path, and follows the claim; both are '' until it has. */
  source: {
    agent: string;
    path: string;
    pvc?: ClaimRef;
    volumeMode: VolumeMode;
    /** Of the VolumeSnapshots of copyMethod Snapshot; absent: the default one of the driver. */
    volumeSnapshotClassName?: string;
    /** Of the claims that show snapshots and clones; absent: the claim's own. */
    storageClassName?: string;
    include: string[];
    exclude: string[];
  };
  target: { storageClass: string };
  /** The source's role: secondary once its replica was promoted. */
  replicationState: 'primary' | 'secondary';
  trigger: { continuous?: true; schedule?: string; manual?: string };
  /** What of the source's storage is used for a cut. */
  copyMethod: 'Direct' | 'Snapshot' | 'Clone';
  rpoSeconds: number;
  /** null: the best that the volume can have. */
  consistency: Consistency | null;
  maxFreezeMs: number;
  /** Programs of the source's node, run around each freeze; absent: none. */
  hooks?: { beforeFreeze: string[]; afterThaw: string[]; timeoutSeconds: number };
  /** A program of the master's machine, run on each recovered copy; absent: none. */
  check?: { argv: string[]; timeoutSeconds: number };
  snapshotSchedules: SnapshotSchedule[];
  /** Absent: a person decides. Of a member of a group the group's counts. */
  failover?: FailoverPolicy;
  /** Its points are made together with those of the group's other replications; absent: by itself. */
  group?: string;
  journalSeconds: number;
  /** The journal gives up its oldest points beyond this (Degraded/JournalShort). */
  maxJournalBytes: number;
  compression: 'auto' | 'none' | 'lz4' | 'zstd';
  /** 0 = no limit. */
  bandwidthBytesPerSecond: number;
  /** 0 = no limit. */
  readBytesPerSecond: number;
  paused: boolean;
}

/** For people. */
export function sourceText({ agent, path, pvc }: ReplicationSpec['source']): string {
  if (pvc === undefined) return `${agent}:${path}`;
  return `${pvc.cluster === undefined ? '' : `${pvc.cluster}:`}${pvc.namespace}/${pvc.name}`;
}

export interface PointView {
  sequence: number;
  sourceTime: string;
  committedTime: string;
  consistency: Consistency;
  /** Hex. */
  digest: string;
  /** Name of a snapshot of this point. */
  snapshot: string | null;
  drilledTime: string | null;
}

/** A moment that all members of a group have in common. */
export interface GroupPointView {
  cut: string;
  sourceTime: string;
  /** The least of its members'. */
  consistency: Consistency;
  points: { replication: string; point: PointView }[];
}

export interface ReplicationStatus {
  state: ReplicationState;
  phase: Phase;
  role: 'Secondary' | 'Primary' | 'Unknown';
  captureMethod: string | null;
  fencingGeneration: string;
  progress: { bytesTotal: number; bytesDone: number; bytesPerSecond: number; secondsLeft: number | null } | null;
  recoveryPoint: PointView | null;
  lastSyncTime: string | null;
  /** now - lastSyncTime; computed anew at every read. */
  lagSeconds: number | null;
  lagBytes: number | null;
  lastSyncDuration: string | null;
  lastSyncBytes: number | null;
  lastAttemptTime: string | null;
  lastVerifiedTime: string | null;
  lastDrilledTime: string | null;
  nextSyncTime: string | null;
  latestImage: string | null;
  nextSnapshotTime: string | null;
  /** What replica, journal and snapshots hold on storage; blocks that copies share count for each of them. */
  usedBytes: number | null;
  /** After a promotion: its old source, compared with the point that was promoted; null: there is none. */
  fork: Omit<Fork, 'recovery' | 'include' | 'exclude'> | null;
  observedGeneration: number;
  conditions: Condition[];
}

/**
 * Actions asked for, as counters that only grow: the agent reports the number it has done, so an action is neither lost
 * nor done twice over restarts. Not shown in REST.
 */
export interface ReplicationRequests {
  sync: number;
  resync: number;
  verify: number;
  /** Of the newest resync. */
  force: boolean;
  /** Uid of the replica on storage, where it was taken over from another replication; absent: its own. */
  replica?: string;
  /** The recovery (uid) that keeps the source from writing, or `demoted`; absent: the source may. */
  fencedBy?: string;
  /** The source is demoted once this sync is done. */
  demoteSync?: number;
  /** Where the last promotion departed from its source, and what that was found to have since; absent: nothing to compare. */
  fork?: Fork;
  /** The state is from a copy of this time (takeover.ts); until the replica was looked at. */
  takenOver?: string;
  /** What was found wrong in the replica when a recovered point was read whole; goes when source and replica are compared. */
  damage?: { recovery: string; message: string };
  /** Newest spec.trigger.manual that a sync was asked for with. */
  manual?: string;
}

export interface Fork {
  /** The old source. */
  agent: string;
  path: string;
  /** The point that was promoted. */
  sequence: number;
  /** Name of the failover. */
  recovery: string;
  /** What of a tree was mirrored then; absent: all of it. */
  include?: string[];
  exclude?: string[];
  /** null: not compared yet. */
  found: ForkFound | null;
}

export interface ForkFound {
  /** Of content that differs. */
  bytes: number;
  /** Of a block volume, null of a tree. */
  granules: number | null;
  /** Likewise; the first ones, in bytes. */
  ranges: { offset: number; length: number }[] | null;
  /** Of a tree, null of a block volume: files, directories, links. */
  entries: { changed: number; new: number; gone: number } | null;
  /** Likewise; some of each. */
  paths: ForkPath[] | null;
  comparedTime: string;
}

export interface ForkPath {
  /** Where it is at the old source, or was at the point when it is gone; bytes that are no printable text as \\xNN. */
  path: string;
  change: 'changed' | 'new' | 'gone';
  /** What is not as the point has it, of what has changed. */
  what: ('content' | 'name' | 'mode' | 'owner' | 'time' | 'attributes' | 'target' | 'type')[];
  /** At the point, when that was another one. */
  formerPath: string | null;
}

/** In requests.fencedBy: by a person, for whoever promotes the replica next. No uid. */
export const demoted = 'demoted';

export type Replication = Resource<'Replication', ReplicationSpec, ReplicationStatus> & {
  requests: ReplicationRequests;
};

export interface AgentVolume {
  path: string;
  kind: string;
  volumeMode: VolumeMode;
  sizeBytes: number | null;
  filesystem: string | null;
  filesystemId: string | null;
  mountPoint: string | null;
  csi: { driver: string; volumeHandle: string; persistentVolume: string; podUid: string; claim: string | null } | null;
  eligible: boolean;
  /** Why not, and the cure. */
  reason: string | null;
}
/** How an installation over SSH goes, or went. */
export interface AgentBootstrap {
  state: 'Running' | 'Completed' | 'Failed';
  /** The newest step; of a failure why, and what of it is left on the host. */
  message: string;
  startTime: string;
  endTime: string | null;
  steps: { step: string; state: 'Running' | 'Completed' | 'Failed'; message: string }[];
}
export interface AgentStatus {
  /** Manual's words (MISSION O3). */
  state: 'ACTIVE' | 'CONN FAILED' | 'WARNING' | 'NO CONN INFO' | 'NOT INSTALLED' | 'UNKNOWN';
  /** Why, and what to do. */
  message: string;
  version: string | null;
  kernel: string | null;
  bootId: string | null;
  lastSeenTime: string | null;
  /** Master's clock minus the agent's. */
  clockOffsetSeconds: number | null;
  certificateExpiryTime: string | null;
  /** Of the newest one; absent: this master made none. */
  bootstrap?: AgentBootstrap | undefined;
}
/** Certificates are SHA-256 fingerprints (hex) of all that are good for this agent. Not shown in REST. */
export type Agent = Resource<'Agent', { role: 'source' | 'target' }, AgentStatus> & {
  identity: { machineId: string; certificates: { fingerprint: string; notAfter: string }[] };
};

export interface StorageClassSpec {
  driver: 'directory' | 'kubernetes';
  parameters: {
    /** directory: the folder. */
    path?: string;
    /** kubernetes: the StorageClass of the cluster, and how its claims are mounted (ReadWriteOnce). */
    storageClassName?: string;
    accessMode?: 'ReadWriteOnce' | 'ReadWriteOncePod';
  };
}
export interface StorageClassStatus {
  capacityBytes: number | null;
  usedBytes: number | null;
  reflink: boolean | null;
  conditions: Condition[];
}
export type StorageClass = Resource<'StorageClass', StorageClassSpec, StorageClassStatus>;

export interface SnapshotSpec {
  replication: string;
  lockedUntil: string | null;
  pinned: boolean;
}
export interface SnapshotStatus {
  state: 'Creating' | 'Ready' | 'Failed' | 'Deleting';
  message: string | null;
  point: PointView | null;
  sizeBytes: number | null;
  readyTime: string | null;
  /** The schedule that took it, and may remove it; null: a person. */
  schedule: SnapshotPeriod | null;
}
/** metadata.name is unique within its replication; the store's key is `<replication>/<name>`. */
export type Snapshot = Resource<'Snapshot', SnapshotSpec, SnapshotStatus>;

export type RecoveryState =
  | 'Waiting'
  | 'Running'
  | 'Pausing'
  | 'Paused'
  | 'Cancelling'
  | 'Cancelled'
  | 'Completed'
  | 'Failed'
  | 'RollingBack'
  | 'RolledBack'
  | 'RollbackIgnored'
  | 'Confirming'
  | 'Confirmed'
  | 'ForceConfirmed';
export type RecoveryType = 'drill' | 'failover';
export type PointChoice = 'latest-data' | 'latest-snapshot' | { snapshot: string } | { time: string };
/** Either a path, or a claim of the master's cluster, or of a group volumes of nodes, by member. */
export type RecoveryTarget =
  | { path: string; agent?: string; pvc?: undefined; volumes?: undefined }
  | { path?: undefined; agent?: undefined; pvc: RecoveredClaim; volumes?: undefined }
  | { path?: undefined; agent?: undefined; pvc?: undefined; volumes: Record<string, { agent: string; path: string }> };
export interface RecoveredClaim {
  /** Absent: that of the master. */
  namespace?: string;
  /** Of a group: the members' names follow. */
  name: string;
  /** Absent: that of the replica's class, or else the cluster's default. */
  storageClassName?: string;
}
/** Of a replication, or of all members of a group. */
export interface RecoverySpec {
  replication?: string;
  group?: string;
  type: RecoveryType;
  point: PointChoice;
  /**
   * null: new paths under the recoveries folder; of replicas on claims new claims. A path of a group: the folder in which each
   * volume has its name. With `agent`, or of a group `volumes`: volumes of nodes, which are written over.
   */
  target: RecoveryTarget | null;
}
export interface RecoveryTask {
  volume: string;
  state: 'Waiting' | 'Running' | 'Completed' | 'Failed' | 'Cancelled' | 'RolledBack';
  path: string | null;
  point: PointView | null;
  message: string | null;
  startTime: string | null;
  endTime: string | null;
  /** Steps done so far, in words with numbers. */
  progress: { bytesTotal: number; bytesDone: number; step: string } | null;
  /** Of the replication's spec.check: what the command said of the copy. */
  check: { exitStatus: number | null; output: string; durationSeconds: number } | null;
  /** As status.verified. Absent: made by a version that did not say. */
  verified?: boolean | null;
}
export interface RecoveryStatus {
  state: RecoveryState;
  /** Of a failover null until it is confirmed or undone. */
  outcome: 'success' | 'cancelled' | 'failed' | null;
  message: string | null;
  /** Of a group null: see its tasks. */
  point: PointView | null;
  /**
   * Every copy has its point's digest and was read whole; of a failover, which is handed out before: what its point lies in was. null: not
   * known yet.
   */
  verified: boolean | null;
  /** From POST to the last usable copy. */
  rtoSeconds: number | null;
  /** At POST: age of the source time that the oldest point is as good as (lastSyncTime for the newest point). */
  rpoSeconds: number | null;
  startTime: string | null;
  endTime: string | null;
  tasks: RecoveryTask[];
}
/** How far the work on a volume is; undone and confirmed are ends. */
export type VolumeStage = 'new' | 'fenced' | 'chosen' | 'copied' | 'ready' | 'undone' | 'confirmed';
export interface VolumeJob {
  stage: VolumeStage;
  /** Those of a lower one come first. */
  order: number;
  /** When its copy could be used, ms since the epoch. */
  usableMs: number | null;
  /** Source time that its point is as good as, ms since the epoch. */
  goodAsOfMs: number | null;
  verified: boolean;
  /** Its source was demoted when the recovery fenced it: its newest point is final. */
  wasDemoted?: boolean;
  /** Uid of the replica in which its point is to be read whole after the copy was handed out; absent: that is not owed. */
  replica?: string;
}
/** What the work on a recovery needs to know over restarts. Not shown in REST. */
export interface RecoveryJob {
  /** Cancel, rollback or confirm goes on whatever fails. */
  force: boolean;
  /** The moment that volumes of a group have in common, ms since the epoch; once chosen it stays. */
  commonMs: number | null;
  /** In the order of the tasks. */
  volumes: VolumeJob[];
  /** The group, or that of the replication when this was made: whose recovery it is, for callers that are bound to groups. */
  group?: string;
}
export type Recovery = Resource<'Recovery', RecoverySpec, RecoveryStatus> & { job: RecoveryJob };

/** What happens when a source is gone. See recovery/policy.ts. */
export interface FailoverPolicy {
  policy: 'manual' | 'automatic';
  /** Nobody may have heard of the source's node for so long. */
  holdOffSeconds: number;
  /** Agents that are asked whether the node answers at this TCP port. */
  witness: { agents: string[]; port: number };
}

/** What is said of a group as a whole. Its members are the replications whose spec.group names it. */
export interface GroupSpec {
  /** A lower startOrder is recovered before a higher one begins; members that are not listed have 1. */
  members: { replication: string; startOrder: number }[];
  /** Targets; null: none. A group that misses one is WARNING. */
  rpoSeconds: number | null;
  rtoSeconds: number | null;
  /** Of all members together; absent: a person decides. */
  failover?: FailoverPolicy;
}
export interface GroupStatus {
  state: 'PREPARING' | 'NORMAL' | 'WARNING';
  /** Of the storage that its members go to. */
  targetState: 'NORMAL' | 'NOT_FOUND' | 'INACTIVE';
  message: string | null;
  members: { replication: string; startOrder: number; state: ReplicationState; lagSeconds: number | null }[];
  /** Newest moment that all members can be recovered to. */
  recoverableTime: string | null;
}
export type Group = Resource<'Group', GroupSpec, GroupStatus>;

export type Weekday = 'monday' | 'tuesday' | 'wednesday' | 'thursday' | 'friday' | 'saturday' | 'sunday';
/** When a recovery is made by itself. See recovery/due.ts. */
export interface RecoveryTiming {
  repeat: 'once' | 'hourly' | 'daily' | 'weekly' | 'monthly';
  /** Of the first one at the earliest; its minute, and for days and longer its time of day, is kept. */
  startTime: string;
  /** None after it; null: for ever. */
  endTime: string | null;
  /** IANA name. */
  timeZone: string;
  /** Of weekly, and of monthly with `week`; null: that of startTime. */
  weekday: Weekday | null;
  /** Of monthly: the weekday's first to last in the month; null: by `day`. */
  week: 'first' | 'second' | 'third' | 'fourth' | 'last' | null;
  /** Of monthly: day of the month, the last one where it is shorter; null: that of startTime. */
  day: number | null;
}
export interface RecoveryScheduleSpec extends RecoveryTiming, RecoverySpec {
  /** Takes the copies away again once they were found good; the report stays. Of drills only. */
  rollback: boolean;
  /** Of its ended recoveries the newest so many stay as results. */
  retain: number;
  paused: boolean;
}
export interface RecoveryScheduleStatus {
  /** PREPARING: what it recovers has no point yet. FAILED: the newest recovery failed or could not be made. */
  state: 'PREPARING' | 'NORMAL' | 'FAILED';
  message: string | null;
  nextTime: string | null;
  lastTime: string | null;
  lastRecovery: string | null;
}
export type RecoverySchedule = Resource<'RecoverySchedule', RecoveryScheduleSpec, RecoveryScheduleStatus>;

export interface Resources {
  Group: Group;
  RecoverySchedule: RecoverySchedule;
  Replication: Replication;
  Agent: Agent;
  StorageClass: StorageClass;
  Snapshot: Snapshot;
  Recovery: Recovery;
}
export type Kind = keyof Resources;
