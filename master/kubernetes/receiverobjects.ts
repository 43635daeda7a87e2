/**
 * The objects of one replica of the class `kubernetes`: its claim, the certificate of its receiver, and the pod that runs that. Pure.
 *
 * A pod and not a Deployment: it is a claim's only user, so that there must never be two, and whoever opens the replica
 * looks after it anyway. The Secret goes with the claim (owner); the pod is deleted before, as a claim in use stays.
 */
import { group } from './kinds.ts';

export const receiverPort = 8444;
export const replicaLabel = `${group}/replica`;
export const classLabel = `${group}/storage-class`;
/** What the container runs in the image of the master. */
const program = '/opt/cdm-replicator/master/replicator-receiver';

export interface ReceiverSpec {
  uid: string;
  /** Of the replication, for people. */
  replication: string;
  /** Ours. */
  storageClass: string;
  /** Of Kubernetes. */
  storageClassName: string;
  accessMode: 'ReadWriteOnce' | 'ReadWriteOncePod';
  image: string;
  nodeSelector: Record<string, string>;
}

export interface Metadata {
  name: string;
  uid?: string;
  resourceVersion?: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  deletionTimestamp?: string;
  ownerReferences?: object[];
}
export interface Claim {
  metadata: Metadata;
  spec: { accessModes: string[]; volumeName?: string; resources: { requests: { storage: string } } };
  status?: { phase?: string; capacity?: { storage?: string } };
}
export interface Pod {
  metadata: Metadata;
  spec: { containers: { image: string }[] };
  status?: {
    phase?: string;
    podIP?: string;
    conditions?: { type: string; status: string; reason?: string; message?: string }[];
    containerStatuses?: { state?: { waiting?: { reason?: string; message?: string } } }[];
  };
}

export const nameOf = (uid: string): string => `replica-${uid}`;
/** That its certificate is for. */
export const serverNameOf = (uid: string): string => `${nameOf(uid)}.receiver`;

/** The source, half of it again for the journal and what copies do not share, and what a small one needs anyway. */
export function claimBytes(sourceBytes: number): number {
  const mebi = 2 ** 20;
  return Math.ceil((sourceBytes * 1.5 + 2 ** 30) / mebi) * mebi;
}

/** Of whole MiB. */
export function quantityOf(bytes: number): string {
  return `${bytes / 2 ** 20}Mi`;
}

const suffixes: Record<string, number> = {
  ...{ '': 1, m: 1e-3, k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15, E: 1e18 },
  ...{ Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30, Ti: 2 ** 40, Pi: 2 ** 50, Ei: 2 ** 60 },
};

/** A quantity as Kubernetes writes it; what is none counts as endless, as nothing is to be made of it. */
export function quantityBytes(text: string): number {
  const [, figure, suffix = ''] = /^([0-9.]+(?:[eE][0-9]+)?)([A-Za-z]*)$/.exec(text) ?? [];
  return figure === undefined ? Infinity : Number(figure) * (suffixes[suffix] ?? Infinity);
}

export function metadataOf({ uid, replication, storageClass }: ReceiverSpec): Metadata {
  return {
    name: nameOf(uid),
    labels: {
      'app.kubernetes.io/name': 'cdm-replicator-receiver',
      'app.kubernetes.io/part-of': 'cdm-replicator',
      [replicaLabel]: uid,
      [classLabel]: storageClass,
    },
    annotations: { [`${group}/replication`]: replication },
  };
}

export function claimOf(spec: ReceiverSpec, sourceBytes: number): object {
  const metadata = metadataOf(spec);
  return {
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    // Guarded against removal by hand, as manifests/removal-guard.yaml says.
    metadata: { ...metadata, labels: { ...metadata.labels, [`${group}/holds-data`]: 'true' } },
    spec: {
      accessModes: [spec.accessMode],
      volumeMode: 'Filesystem',
      storageClassName: spec.storageClassName,
      resources: { requests: { storage: quantityOf(claimBytes(sourceBytes)) } },
    },
  };
}

export interface Certificates {
  caPem: string;
  certificatePem: string;
  keyPem: string;
}

/** Goes with the claim. */
export function secretOf(
  metadata: Metadata,
  claim: Metadata,
  { caPem, certificatePem, keyPem }: Certificates,
): { metadata: Metadata } {
  const ownerReferences = [{ apiVersion: 'v1', kind: 'PersistentVolumeClaim', name: claim.name, uid: claim.uid }];
  return {
    apiVersion: 'v1',
    kind: 'Secret',
    type: 'kubernetes.io/tls',
    metadata: { ...metadata, ownerReferences },
    stringData: { 'ca.crt': caPem, 'tls.crt': certificatePem, 'tls.key': keyPem },
  } as { metadata: Metadata };
}

/** What differs between the pods that run our program beside a claim. */
export interface PodParts {
  metadata: Metadata;
  image: string;
  nodeSelector: Record<string, string>;
  /** Beside address and certificate. */
  args: string[];
  secretName: string;
  claimName: string;
  /** Where the claim's volume is in the container; a device where it is one. */
  volumePath: string;
  isDevice?: boolean;
  /** A folder for what is needed meanwhile; absent: none. */
  workPath?: string;
}

export function podWith(parts: PodParts): object {
  const { metadata, image, nodeSelector, args, secretName, claimName, volumePath, isDevice = false, workPath } = parts;
  const volume = { name: 'replica' };
  const work = workPath === undefined ? [] : [{ name: 'work', mountPath: workPath }];
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata,
    spec: {
      nodeSelector,
      restartPolicy: 'Always',
      serviceAccountName: 'cdm-replicator-receiver',
      automountServiceAccountToken: false,
      enableServiceLinks: false,
      terminationGracePeriodSeconds: 30,
      securityContext: {
        runAsNonRoot: true,
        // Of the image's user: a new filesystem belongs to root.
        fsGroup: 10001,
        fsGroupChangePolicy: 'OnRootMismatch',
        seccompProfile: { type: 'RuntimeDefault' },
      },
      containers: [
        {
          name: 'receiver',
          image,
          command: [program],
          args: [
            ...args,
            `--listen=$(POD_IP):${receiverPort}`,
            ...['--ca=/tls/ca.crt', '--cert=/tls/tls.crt', '--key=/tls/tls.key'],
          ],
          env: [{ name: 'POD_IP', valueFrom: { fieldRef: { fieldPath: 'status.podIP' } } }],
          ports: [{ name: 'receiver', containerPort: receiverPort }],
          readinessProbe: { tcpSocket: { port: 'receiver' }, periodSeconds: 5 },
          resources: { requests: { cpu: '50m', memory: '256Mi' }, limits: { memory: '2Gi' } },
          securityContext: {
            allowPrivilegeEscalation: false,
            readOnlyRootFilesystem: true,
            capabilities: { drop: ['ALL'] },
          },
          volumeMounts: [
            ...(isDevice ? [] : [{ ...volume, mountPath: volumePath }]),
            ...work,
            { name: 'tls', mountPath: '/tls', readOnly: true },
          ],
          ...(isDevice && { volumeDevices: [{ ...volume, devicePath: volumePath }] }),
        },
      ],
      volumes: [
        { ...volume, persistentVolumeClaim: { claimName } },
        ...work.map(({ name }) => ({ name, emptyDir: {} })),
        { name: 'tls', secret: { secretName, defaultMode: 0o440 } },
      ],
    },
  };
}

export function podOf(spec: ReceiverSpec): object {
  const { image, nodeSelector, uid } = spec;
  const [claimName, secretName, volumePath] = [nameOf(uid), nameOf(uid), '/replica'];
  const args = [`--volume=${volumePath}`];
  return podWith({ metadata: metadataOf(spec), image, nodeSelector, args, secretName, claimName, volumePath });
}

/** Why the pod cannot be dialled yet, in the words of the cluster; undefined: it can. */
export function podTrouble({ metadata, status }: Pod, claim: Claim): string | undefined {
  if (status?.phase === 'Running' && (status.podIP ?? '') !== '') return undefined;
  const waiting = status?.containerStatuses?.find(({ state }) => state?.waiting)?.state?.waiting;
  const condition = status?.conditions?.find((one) => one.status === 'False' && (one.message ?? '') !== '');
  const reasons = [
    claim.status?.phase === 'Bound' ? '' : `its claim is ${claim.status?.phase ?? 'Pending'}`,
    condition ? `${condition.reason ?? condition.type}: ${condition.message}` : '',
    waiting ? `${waiting.reason ?? 'waiting'}: ${waiting.message ?? ''}` : '',
  ].filter((text) => text !== '');
  const why = reasons.length === 0 ? 'kubectl describe tells more' : reasons.join('; ');
  return `pod ${metadata.name} is ${status?.phase ?? 'Pending'}: ${why}`;
}
