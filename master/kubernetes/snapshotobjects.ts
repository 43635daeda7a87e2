/**
 * The objects of one snapshot or clone of a source's claim, in the claim's namespace and all of one name: the VolumeSnapshot with the claim that
 * is made from it, or the claim that is a clone; and the pod that makes the kubelet of the agent's node show it, as a device or mounted. Pure.
 *
 * Claim and pod belong to the snapshot, the pod to the clone: whoever deletes that removes all.
 */
import type { VolumeMode } from '../../proto/wire.ts';
import { group } from './kinds.ts';
import { quantityOf, type Metadata } from './receiverobjects.ts';

/** Its value is the uid of the replication; on what shows a snapshot, and on clones, too. */
export const snapshotLabel = `${group}/snapshot-of`;
/** Besides, on claims that are clones. */
export const cloneLabel = `${group}/clone`;
export const snapshotGroup = 'snapshot.storage.k8s.io';

export interface VolumeSnapshot {
  metadata: Metadata & { uid: string; namespace: string };
  status?: {
    readyToUse?: boolean;
    restoreSize?: string;
    boundVolumeSnapshotContentName?: string;
    error?: { message?: string };
  };
}

export interface SnapshotOf {
  /** Of the replication. */
  uid: string;
  replication: string;
}

/** Of a snapshot or clone that is taken now. */
export function nameOf({ uid }: SnapshotOf, nowMs: number): string {
  return `cdmr-${uid.slice(0, 8)}-${Math.floor(nowMs).toString(36)}`;
}

function metadataOf(name: string, { uid, replication }: SnapshotOf): Metadata {
  return {
    name,
    labels: { 'app.kubernetes.io/part-of': 'cdm-replicator', [snapshotLabel]: uid },
    annotations: { [`${group}/replication`]: replication },
  };
}

/**
 * @param claim that it is taken of
 * @param volumeSnapshotClassName undefined: the default one of its driver
 */
export function snapshotOf(
  name: string,
  of: SnapshotOf,
  claim: string,
  volumeSnapshotClassName: string | undefined,
): object {
  return {
    apiVersion: `${snapshotGroup}/v1`,
    kind: 'VolumeSnapshot',
    metadata: metadataOf(name, of),
    spec: {
      ...(volumeSnapshotClassName !== undefined && { volumeSnapshotClassName }),
      source: { persistentVolumeClaimName: claim },
    },
  };
}

/** A VolumeSnapshot, or a clone. */
export interface Owner {
  apiVersion: string;
  kind: string;
  metadata: { name: string; uid: string };
}

export function ownerOf({ metadata }: VolumeSnapshot): Owner {
  return { apiVersion: `${snapshotGroup}/v1`, kind: 'VolumeSnapshot', metadata };
}

function ownedBy({ apiVersion, kind, metadata: { name, uid } }: Owner, of: SnapshotOf): Metadata {
  return { ...metadataOf(name, of), ownerReferences: [{ apiVersion, kind, name, uid }] };
}

const mebi = 2 ** 20;

interface OfVolume {
  volumeMode: VolumeMode;
  storageClassName: string;
  bytes: number;
}

export function shownClaimOf(snapshot: VolumeSnapshot, of: SnapshotOf, volume: OfVolume): object {
  const dataSource = { apiGroup: snapshotGroup, kind: 'VolumeSnapshot', name: snapshot.metadata.name };
  return claimOf(ownedBy(ownerOf(snapshot), of), dataSource, volume);
}

/** @param claim that it is a clone of */
export function cloneOf(name: string, of: SnapshotOf, claim: string, volume: OfVolume): object {
  const { labels, ...metadata } = metadataOf(name, of);
  const dataSource = { kind: 'PersistentVolumeClaim', name: claim };
  return claimOf({ ...metadata, labels: { ...labels, [cloneLabel]: 'true' } }, dataSource, volume);
}

function claimOf(metadata: Metadata, dataSource: object, { volumeMode, storageClassName, bytes }: OfVolume): object {
  return {
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata,
    spec: {
      accessModes: ['ReadWriteOnce'],
      volumeMode,
      storageClassName,
      dataSource,
      resources: { requests: { storage: quantityOf(Math.ceil(bytes / mebi) * mebi) } },
    },
  };
}

/**
 * It does nothing: that it is there makes its kubelet map the device, or mount the volume. This is mounted read-only by the claim, not by the container
 * alone: then nobody gives its files another owner or SELinux label.
 */
export function showingPodOf(
  owner: Owner,
  of: SnapshotOf,
  { node, image, volumeMode }: { node: string; image: string; volumeMode: VolumeMode },
): object {
  const { name } = owner.metadata;
  const isBlock = volumeMode === 'Block';
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: ownedBy(owner, of),
    spec: {
      // By the scheduler, as a volume may wait for its first consumer; onto this node whatever keeps others from it.
      affinity: {
        nodeAffinity: {
          requiredDuringSchedulingIgnoredDuringExecution: {
            nodeSelectorTerms: [{ matchFields: [{ key: 'metadata.name', operator: 'In', values: [node] }] }],
          },
        },
      },
      tolerations: [{ operator: 'Exists' }],
      restartPolicy: 'Always',
      automountServiceAccountToken: false,
      enableServiceLinks: false,
      terminationGracePeriodSeconds: 0,
      securityContext: { runAsNonRoot: true, seccompProfile: { type: 'RuntimeDefault' } },
      containers: [
        {
          name: 'shows',
          image,
          command: ['sleep', 'infinity'],
          resources: { requests: { cpu: '1m', memory: '4Mi' }, limits: { memory: '32Mi' } },
          securityContext: {
            allowPrivilegeEscalation: false,
            readOnlyRootFilesystem: true,
            capabilities: { drop: ['ALL'] },
          },
          ...(isBlock
            ? { volumeDevices: [{ name: 'snapshot', devicePath: '/dev/snapshot' }] }
            : { volumeMounts: [{ name: 'snapshot', mountPath: '/snapshot', readOnly: true }] }),
        },
      ],
      volumes: [{ name: 'snapshot', persistentVolumeClaim: { claimName: name, ...(!isBlock && { readOnly: true }) } }],
    },
  };
}
