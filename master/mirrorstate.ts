/** What the master remembers of a replication between two looks at it: facts, and what was already told. Lost when it stops. */
import type { ReplicationError } from '../proto/errors.ts';
import { Lock } from '../proto/lock.ts';
import type { FailoverView } from './status.ts';
import type { Report, Trouble } from '../proto/wire.ts';
import type { HeldReplica } from './held.ts';
import type { Replication } from './resources.ts';

/** Of its replica on storage. */
export function replicaUid({ metadata, requests }: Pick<Replication, 'metadata' | 'requests'>): string {
  return requests.replica ?? metadata.uid;
}

export interface Mirror {
  readonly name: string;
  readonly uid: string;
  readonly replicaUid: string;
  /** Of its source, as of the last look; only that of a claim changes. */
  agent: string;
  replica: HeldReplica | undefined;
  report: Report | undefined;
  readonly lock: Lock;
  /** A settle that has not begun yet: it will see whatever changes until then. */
  settling: Promise<void> | undefined;
  /** Ends its sessions and work. */
  readonly closing: AbortController;
  openFailure: { trouble: Trouble; againMs: number; pauseMs: number } | undefined;
  applyTrouble: Trouble | undefined;
  journalShort: boolean;
  withheld: number;
  lastSync: { durationSeconds: number; bytes: number } | undefined;
  lastAttemptMs: number | undefined;
  lastVerified: { ms: number; mismatchedGranules: number } | undefined;
  lastDrilledMs: number | undefined;
  lastConnectedMs: number;
  /** Figures of the status that are not written yet. */
  figuresWait: boolean;
  newsWait: boolean;
  /** Of the store, with our newest write of the status. */
  writtenVersion: number;
  /** When time alone makes the copy too old (wall clock); absent: it is not mirrored, or something else is wrong already. */
  rpoMissedMs: number | undefined;
  /** Something it depends on has changed; it is looked at with the next second. */
  stale: boolean;
  /** Whether its agent's line was up at the last look. */
  wasConnected: boolean;
  /** Why its claim could not be placed at the last look. */
  claimReason: string | undefined;
  settledMs: number;
  /** Of the replica's count, already told to the metrics. */
  toldBytes: number;
  advancedMs: number;
  advancing: boolean;
  nextCronMs: number | undefined;
  /** Of the newest look at the schedules of this generation. */
  nextSnapshot: { generation: number; ms: number } | undefined;
  usedBytes: number | undefined;
  spaceTrouble: Trouble | undefined;
  /** Of an agent that is away, and of the failover that may follow: see recovery/automatic.ts. */
  absence: Omit<Trouble, 'stops'> | undefined;
  failover: FailoverView | undefined;
}

/** @param nowMs of the monotonic clock */
export function newMirror(replication: Replication, nowMs: number): Mirror {
  const { name, uid } = replication.metadata;
  return {
    name,
    uid,
    replicaUid: replicaUid(replication),
    agent: replication.spec.source.agent,
    replica: undefined,
    report: undefined,
    lock: new Lock(),
    settling: undefined,
    closing: new AbortController(),
    openFailure: undefined,
    applyTrouble: undefined,
    journalShort: false,
    withheld: 0,
    lastSync: undefined,
    lastAttemptMs: undefined,
    lastVerified: undefined,
    lastDrilledMs: undefined,
    lastConnectedMs: nowMs,
    figuresWait: false,
    newsWait: false,
    writtenVersion: 0,
    rpoMissedMs: undefined,
    stale: false,
    wasConnected: false,
    claimReason: undefined,
    settledMs: -Infinity,
    toldBytes: 0,
    advancedMs: -Infinity,
    advancing: false,
    nextCronMs: undefined,
    nextSnapshot: undefined,
    usedBytes: undefined,
    spaceTrouble: undefined,
    absence: undefined,
    failover: undefined,
  };
}

/** Closing it and opening it anew brings it to where it still is whole. */
export function mustReopen({ damaged, lost }: HeldReplica): boolean {
  return damaged || lost !== undefined;
}

/** As a condition's reason. */
export function reasonOf({ code }: ReplicationError): string {
  return code === 'TargetFull' ? 'SpaceLow' : code;
}
