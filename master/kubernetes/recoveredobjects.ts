/** The objects of one recovered copy on a claim: the claim, and certificate and pod of the program that fills it. Pure. */
import type { VolumeMode } from '../../proto/wire.ts';
import type { ClaimName } from '../recovery/claimtarget.ts';
import { group } from './kinds.ts';
import { podWith, quantityOf, type Metadata } from './receiverobjects.ts';

export const recoveryLabel = `${group}/recovery`;

export interface RecoveredSpec {
  claim: ClaimName;
  /** Uid of the recovery, or of whatever the copy is made for. */
  owner: string;
  /** Of it, for people. */
  ownerName: string;
  replication: string;
  /** Of Kubernetes; absent: the cluster's default. */
  storageClassName?: string | undefined;
  accessMode: string;
  volumeMode: VolumeMode;
  /** As a scheduler says it; absent: that does. */
  selectedNode?: string | undefined;
}

/** Of the program beside the claim with that uid. */
export const fillName = (claimUid: string): string => `fill-${claimUid}`;
export const fillServerName = (claimUid: string): string => `${fillName(claimUid)}.receiver`;

const mebi = 2 ** 20;

/** Block: exactly as much. Filesystem: with what a filesystem needs for itself, and never less than its source had. */
export function recoveredBytes(volumeMode: VolumeMode, sizeBytes: number, sourceBytes = 0): number {
  const bytes = volumeMode === 'Block' ? sizeBytes : Math.max(sizeBytes * 1.1 + 64 * mebi, sourceBytes);
  return Math.max(1, Math.ceil(bytes / mebi)) * mebi;
}

function metadataOf(name: string, { owner, ownerName, replication }: RecoveredSpec, program: boolean): Metadata {
  return {
    name,
    labels: {
      ...(program && { 'app.kubernetes.io/name': 'cdm-replicator-receiver' }),
      'app.kubernetes.io/part-of': 'cdm-replicator',
      [recoveryLabel]: owner,
    },
    annotations: { [`${group}/recovered-by`]: ownerName, [`${group}/replication`]: replication },
  };
}

export function recoveredClaimOf(spec: RecoveredSpec, bytes: number): object {
  const { claim, storageClassName, accessMode, volumeMode, selectedNode } = spec;
  const { annotations, ...metadata } = metadataOf(claim.name, spec, false);
  const node = selectedNode === undefined ? {} : { 'volume.kubernetes.io/selected-node': selectedNode };
  return {
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata: { ...metadata, annotations: { ...annotations, ...node }, namespace: claim.namespace },
    spec: {
      accessModes: [accessMode],
      volumeMode,
      ...(storageClassName !== undefined && { storageClassName }),
      resources: { requests: { storage: quantityOf(bytes) } },
    },
  };
}

export function fillMetadata(claimUid: string, spec: RecoveredSpec): Metadata {
  return metadataOf(fillName(claimUid), spec, true);
}

export function fillPodOf(
  claimUid: string,
  spec: RecoveredSpec,
  { image, nodeSelector }: { image: string; nodeSelector: Record<string, string> },
): object {
  const isDevice = spec.volumeMode === 'Block';
  const [volumePath, workPath] = [isDevice ? '/dev/recovered' : '/recovered', '/work'];
  return podWith({
    // Goes with the claim, whoever deletes that.
    metadata: {
      ...fillMetadata(claimUid, spec),
      ownerReferences: [{ apiVersion: 'v1', kind: 'PersistentVolumeClaim', name: spec.claim.name, uid: claimUid }],
    },
    ...{ image, nodeSelector, volumePath, workPath, isDevice },
    args: [`--fill=${volumePath}`, `--work=${workPath}`],
    secretName: fillName(claimUid),
    claimName: spec.claim.name,
  });
}
