/**
 * Where a PersistentVolumeClaim can be read: from what the API server says of claim, volume and pods to a node's agent and a
 * path in its kubelet's folders, or why nowhere. Pure: the same facts give the same place.
 *
 * A claim that is ReadWriteOnce is on one node at a time. Which one follows from its pods: one that runs and is not ending goes
 * before one that is ending (a volume stays where it is until that has ended), and those before one that only waits to start; among
 * equals the present place stays, so that nothing moves without need.
 */
import type { VolumeMode } from '../../proto/wire.ts';

export interface Claim {
  namespace: string;
  name: string;
  uid: string;
  labels: Record<string, string>;
  annotations: Record<string, string>;
  volumeMode: VolumeMode;
  accessModes: string[];
  /** '' while it is not bound. */
  volumeName: string;
  bound: boolean;
  /** Of the source; bytes, 0 when unknown. */
  capacityBytes: number;
  ending: boolean;
}

export interface PersistentVolume {
  name: string;
  csi: { driver: string; volumeHandle: string } | undefined;
  /** Such as hostPath. */
  kind: string;
}

export interface Pod {
  uid: string;
  name: string;
  node: string;
  phase: string;
  ending: boolean;
  createdMs: number;
  /** Names of the claims that it uses. */
  claims: string[];
}

export interface PlaceFacts {
  claim: Claim | undefined;
  /** undefined: not known yet; a text: why it cannot be read. */
  volume: PersistentVolume | 'absent' | { trouble: string } | undefined;
  /** Of the claim's namespace. */
  pods: Pod[];
  /** Where it is read now; '' for nowhere. */
  now: { agent: string; path: string };
  /** Whether an agent of the node's name has joined. */
  hasAgent: (node: string) => boolean;
  /** Root folder of the node's kubelet. */
  kubelet: (node: string) => string;
}

export type Place =
  | { agent: string; path: string }
  /** `reason` as of Degraded; undefined: not known yet. */
  | { reason: string; message: string }
  | undefined;

const modes = ['ReadWriteOnce', 'ReadWriteOncePod'];

/** Why a claim is none to be mirrored, whatever becomes of it. */
export function refusal({ namespace, name, accessModes }: Claim): string | undefined {
  const wrong = accessModes.filter((mode) => !modes.includes(mode));
  if (wrong.length === 0) return undefined;
  return `${namespace}/${name} has access mode ${wrong.join(', ')}: only ReadWriteOnce and ReadWriteOncePod are mirrored, as others are written on several nodes at once`;
}

export function placeOf(facts: PlaceFacts, named: string): Place {
  const { claim, volume } = facts;
  if (!claim) return { reason: 'ClaimUnknown', message: `there is no PersistentVolumeClaim ${named} any more` };
  const refused = refusal(claim);
  if (refused !== undefined) return { reason: 'ClaimRefused', message: refused };
  if (!claim.bound || claim.volumeName === '')
    return {
      reason: 'ClaimUnbound',
      message: `${named} has no volume yet; it gets one from its storage class, with WaitForFirstConsumer when a pod uses it`,
    };
  if (volume === undefined) return undefined;
  if (volume === 'absent')
    return { reason: 'ClaimUnbound', message: `the volume ${claim.volumeName} of ${named} is gone` };
  if ('trouble' in volume)
    return {
      reason: 'ClusterGone',
      message: `the volume ${claim.volumeName} of ${named} cannot be read: ${volume.trouble}`,
    };
  if (!volume.csi)
    return {
      reason: 'ClaimRefused',
      message: `${named} is bound to a ${volume.kind} volume: only volumes of CSI drivers are mirrored by claim; name agent and path where the node's allow-list has it`,
    };
  const pod = podOf(facts, claim);
  if (!pod)
    return {
      reason: 'ClaimNotMounted',
      message: `no pod that runs uses ${named}: it can be read while one does. The copy stays as it is`,
    };
  if (!facts.hasAgent(pod.node))
    return {
      reason: 'NoAgent',
      message: `${named} is on node ${pod.node} (pod ${pod.name}), where no agent of that name has joined: install one there`,
    };
  return { agent: pod.node, path: pathIn(facts.kubelet(pod.node), pod.uid, claim.volumeMode, volume.name) };
}

/** Where the kubelet has a pod's volume of a CSI driver. */
export function pathIn(kubelet: string, podUid: string, volumeMode: VolumeMode, volumeName: string): string {
  const folder = `${kubelet}/pods/${podUid}`;
  return volumeMode === 'Block'
    ? `${folder}/volumeDevices/kubernetes.io~csi/${volumeName}`
    : `${folder}/volumes/kubernetes.io~csi/${volumeName}/mount`;
}

function podOf({ pods, now }: PlaceFacts, claim: Claim): Pod | undefined {
  const present = (pod: Pod): boolean => pod.node === now.agent && now.path.includes(`/pods/${pod.uid}/`);
  const rank = (pod: Pod): number => (pod.phase === 'Running' ? 0 : 2) + (pod.ending ? 1 : 0);
  const using = pods.filter(
    ({ claims, node, phase }) =>
      node !== '' && phase !== 'Succeeded' && phase !== 'Failed' && claims.includes(claim.name),
  );
  return using.sort(
    (a, b) =>
      rank(a) - rank(b) ||
      Number(present(b)) - Number(present(a)) ||
      b.createdMs - a.createdMs ||
      (a.uid < b.uid ? -1 : 1),
  )[0];
}

// ---- What the API server answers, as far as it is of interest ----

interface Meta {
  name: string;
  namespace?: string;
  uid: string;
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  creationTimestamp: string;
  deletionTimestamp?: string;
}

export function claimOf(object: unknown): Claim {
  const { metadata, spec, status } = object as {
    metadata: Meta;
    spec: { volumeMode?: VolumeMode; accessModes?: string[]; volumeName?: string };
    status?: { phase?: string; capacity?: { storage?: string } };
  };
  return {
    namespace: metadata.namespace ?? '',
    name: metadata.name,
    uid: metadata.uid,
    labels: metadata.labels ?? {},
    annotations: metadata.annotations ?? {},
    volumeMode: spec.volumeMode ?? 'Filesystem',
    accessModes: spec.accessModes ?? [],
    volumeName: spec.volumeName ?? '',
    bound: status?.phase === 'Bound',
    capacityBytes: quantity(status?.capacity?.storage ?? ''),
    ending: metadata.deletionTimestamp !== undefined,
  };
}

export function volumeOf(object: unknown): PersistentVolume {
  const { metadata, spec } = object as {
    metadata: Meta;
    spec: Record<string, unknown> & { csi?: { driver: string; volumeHandle: string } };
  };
  const kinds = [
    'hostPath',
    'local',
    'nfs',
    'iscsi',
    'fc',
    'rbd',
    'cephfs',
    'awsElasticBlockStore',
    'gcePersistentDisk',
  ];
  const { csi } = spec;
  return {
    name: metadata.name,
    csi: csi && { driver: csi.driver, volumeHandle: csi.volumeHandle },
    kind: csi ? 'csi' : (kinds.find((kind) => kind in spec) ?? 'volume of another kind'),
  };
}

export function podFacts(object: unknown): Pod {
  const { metadata, spec, status } = object as {
    metadata: Meta;
    spec: { nodeName?: string; volumes?: { persistentVolumeClaim?: { claimName: string } }[] };
    status?: { phase?: string };
  };
  return {
    uid: metadata.uid,
    name: metadata.name,
    node: spec.nodeName ?? '',
    phase: status?.phase ?? 'Pending',
    ending: metadata.deletionTimestamp !== undefined,
    createdMs: Date.parse(metadata.creationTimestamp),
    claims: (spec.volumes ?? []).flatMap(({ persistentVolumeClaim }) => persistentVolumeClaim?.claimName ?? []),
  };
}

const units: Record<string, number> = {
  ...{ '': 1, k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15, E: 1e18, m: 1e-3 },
  ...{ Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30, Ti: 2 ** 40, Pi: 2 ** 50, Ei: 2 ** 60 },
};

/** Bytes of a quantity such as 10Gi or 1e9; 0: none. */
export function quantity(text: string): number {
  const [, number = '', unit = ''] = /^([0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)$/.exec(text) ?? [];
  const factor = units[unit];
  return number === '' || factor === undefined ? 0 : Math.ceil(Number(number) * factor);
}
