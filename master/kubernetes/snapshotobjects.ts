/**
 * The objects of one snapshot of a source's claim, in the claim's namespace and all of one name: the VolumeSnapshot, the claim that
 * is made from it, and the pod that makes the kubelet of the agent's node show that as a device. Pure.
 *
 * Claim and pod belong to the snapshot: whoever deletes that removes all three.
 */
import { group } from './kinds.ts';
import { quantityOf, type Metadata } from './receiverobjects.ts';

/** Its value is the uid of the replication. */
export const snapshotLabel = `${group}/snapshot-of`;
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

function metadataOf(name: string, { uid, replication }: SnapshotOf): Metadata {
  return {
    name,
    labels: { 'app.kubernetes.io/part-of': 'cdm-replicator', [snapshotLabel]: uid },
    annotations: { [`${group}/replication`]: replication },
  };
}

/** @param claim that it is taken of; the class is the default one of its driver */
export function snapshotOf(name: string, of: SnapshotOf, claim: string): object {
  return {
    apiVersion: `${snapshotGroup}/v1`,
    kind: 'VolumeSnapshot',
    metadata: metadataOf(name, of),
    spec: { source: { persistentVolumeClaimName: claim } },
  };
}

function ownedBy(snapshot: VolumeSnapshot, of: SnapshotOf): Metadata {
  const { name, uid } = snapshot.metadata;
  return {
    ...metadataOf(name, of),
    ownerReferences: [{ apiVersion: `${snapshotGroup}/v1`, kind: 'VolumeSnapshot', name, uid }],
  };
}

const mebi = 2 ** 20;

export function shownClaimOf(
  snapshot: VolumeSnapshot,
  of: SnapshotOf,
  { storageClassName, bytes }: { storageClassName: string | undefined; bytes: number },
): object {
  return {
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata: ownedBy(snapshot, of),
    spec: {
      accessModes: ['ReadWriteOnce'],
      volumeMode: 'Block',
      ...(storageClassName !== undefined && { storageClassName }),
      dataSource: { apiGroup: snapshotGroup, kind: 'VolumeSnapshot', name: snapshot.metadata.name },
      resources: { requests: { storage: quantityOf(Math.ceil(bytes / mebi) * mebi) } },
    },
  };
}

/** It does nothing: that it is there makes its kubelet map the device. */
export function showingPodOf(snapshot: VolumeSnapshot, of: SnapshotOf, node: string, image: string): object {
  const { name } = snapshot.metadata;
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: ownedBy(snapshot, of),
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
          volumeDevices: [{ name: 'snapshot', devicePath: '/dev/snapshot' }],
        },
      ],
      volumes: [{ name: 'snapshot', persistentVolumeClaim: { claimName: name } }],
    },
  };
}
