/**
 * Recovered copies that are claims of a cluster: how a recovery names them, and what is asked of whoever makes them
 * (kubernetes/recovered.ts). In `status.tasks[].path` one is `pvc/NAMESPACE/NAME`, which no path of a machine is.
 */
import type { VolumeMode } from '../../proto/wire.ts';
import type { HeldReplica } from '../held.ts';
import type { FillOptions } from '../receiver/filling.ts';
import type { Copied } from '../replica/copies.ts';
import type { Point } from '../replica/horizon.ts';
import type { RecoverySpec, Replication, StorageClass } from '../resources.ts';

export interface ClaimName {
  namespace: string;
  name: string;
}

export interface ClaimJob {
  claim: ClaimName;
  /** Uid of the recovery. */
  owner: string;
  ownerName: string;
  replication: string;
  replicaUid: string;
  /** Of Kubernetes; absent: the cluster's default. */
  storageClassName?: string | undefined;
  accessMode: string;
  volumeMode: VolumeMode;
  /** Absent: what the point needs. */
  bytes?: number | undefined;
  /** Where its volume is to be; absent: the cluster chooses. */
  selectedNode?: string | undefined;
}

/** Whose claim it must be; with `uid` this one and no other of its name. */
export interface Owner {
  owner: string;
  uid?: string | undefined;
}

export interface RecoveredClaims {
  /** Where claims are that name none. */
  readonly namespace: string;
  /** Why none can be made under that name; undefined: it can, now. */
  problem(claim: ClaimName, storageClassName: string | undefined): Promise<string | undefined>;
  uidOf(claim: ClaimName): Promise<string | undefined>;
  /** Makes the claim and fills it; answers its uid. When it throws nothing stays that could be removed. */
  fill(
    job: ClaimJob,
    replica: () => Promise<HeldReplica>,
    point: Point,
    options: Pick<FillOptions, 'verify' | 'signal' | 'progress'>,
  ): Promise<Copied & { uid: string }>;
  /** Answers whether it is gone; false: what has the name is not the owner's. */
  remove(claim: ClaimName, owner: Owner): Promise<boolean>;
}

const prefix = 'pvc/';

export function pathOfClaim({ namespace, name }: ClaimName): string {
  return `${prefix}${namespace}/${name}`;
}

/** undefined: it is a path of a machine. */
export function claimOfPath(path: string): ClaimName | undefined {
  if (!path.startsWith(prefix)) return undefined;
  const [namespace = '', name = ''] = path.slice(prefix.length).split('/');
  return { namespace, name };
}

/** Replicas that lie on claims are recovered to claims; others where it is asked for. */
export function goesToClaim({ target }: Pick<RecoverySpec, 'target'>, storageClass: StorageClass | undefined): boolean {
  return target?.pvc !== undefined || (target === null && storageClass?.spec.driver === 'kubernetes');
}

/** Of a group each member has its own, named after it. */
export function claimFor(
  { group, target }: Pick<RecoverySpec, 'group' | 'target'>,
  recovery: string,
  { metadata }: Replication,
  ownNamespace: string,
): ClaimName {
  const { namespace = ownNamespace, name = recovery } = target?.pvc ?? {};
  return { namespace, name: group === undefined ? name : `${name}-${metadata.name}` };
}

/** As what the copy is provisioned. */
export function claimClass(
  { target }: Pick<RecoverySpec, 'target'>,
  storageClass: StorageClass | undefined,
): Pick<ClaimJob, 'storageClassName' | 'accessMode'> {
  const { storageClassName, accessMode = 'ReadWriteOnce' } = storageClass?.spec.parameters ?? {};
  return { storageClassName: target?.pvc?.storageClassName ?? storageClassName, accessMode };
}
