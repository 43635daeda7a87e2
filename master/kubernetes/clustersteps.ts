/**
 * What cuts by VolumeSnapshots and by clones have in common: asking a claim's cluster, waiting for it, and having the kubelet of the agent's
 * node show a volume.
 *
 * Failure: what the cluster or the storage refuses, or does not do in time, is SnapshotFailed with their words.
 */
import type { Clock } from '../../proto/effects.ts';
import { ReplicationError } from '../../proto/errors.ts';
import type { SnapshotReply, VolumeMode } from '../../proto/wire.ts';
import type { ClaimRef } from '../resources.ts';
import { ApiFault, type Api } from './api.ts';
import { pathIn } from './claimplace.ts';
import type { ClusterView } from './clusterview.ts';
import { podTrouble, type Claim, type Metadata, type Pod } from './receiverobjects.ts';
import { absent } from './receivers.ts';
import { snapshotLabel, type SnapshotOf } from './snapshotobjects.ts';

export interface StepsOptions {
  api: Api;
  view: ClusterView;
  clock: Clock;
  of: SnapshotOf;
  pvc: ClaimRef;
  /** Of the claim, and of those that are made of it. */
  volumeMode: VolumeMode;
  /** Of VolumeSnapshots; absent: the default one of the driver. */
  volumeSnapshotClassName: string | undefined;
  /** Of the claims that show them; absent: the claim's own. */
  storageClassName: string | undefined;
  /** That shows them, and where the folder of its kubelet is. */
  node: string;
  kubelet: string | undefined;
  image: string;
  signal: AbortSignal;
  /** @throws when nobody waits for it any more */
  isWanted: () => void;
}

/** What can be done with what the storage makes of one claim. Names are those that `take` answered. */
export interface Steps {
  /** What the driver tells agents by itself. */
  service(ours: string): Promise<Partial<SnapshotReply>>;
  take(keep: readonly string[]): Promise<string>;
  open(name: string): Promise<string>;
  close(name: string): Promise<void>;
  remove(name: string): Promise<void>;
  list(): Promise<string[]>;
  handle(name: string): Promise<string>;
}

const againMs = 500;
/** Storage may copy a whole volume before a snapshot can be used. */
const patienceMs = 30 * 60_000;
/** What its driver calls an error may be over with the next try. */
const errorPatienceMs = 20_000;
/** As CSI has them: the storage may be at work still, or will be when it has time. */
export const atWork = /code = (Canceled|DeadlineExceeded|Unavailable|ResourceExhausted|Aborted)\b/;

export function failed(message: string): ReplicationError {
  return new ReplicationError('SnapshotFailed', message.slice(0, 2000));
}

/** Removes pod and claim of a snapshot; a name that is taken by somebody else's object is left alone. */
export async function hide(api: Api, namespace: string, name: string, uid: string): Promise<void> {
  await removeOurs(api, `/api/v1/namespaces/${namespace}/pods/${name}`, uid);
  await removeOurs(api, `/api/v1/namespaces/${namespace}/persistentvolumeclaims/${name}`, uid);
}

export async function removeOurs(api: Api, path: string, uid: string): Promise<void> {
  const found = (await absent(() => api.request('GET', path))) as { metadata: Metadata } | undefined;
  if (found?.metadata.labels?.[snapshotLabel] === uid) await absent(() => api.request('DELETE', path));
}

/** A text is what it waits for; `error` is one that waiting does not mend. */
export type Look<T> = { found: T } | { error: string } | string;

export function clusterSteps({
  api,
  view,
  clock,
  pvc,
  volumeMode,
  storageClassName,
  node,
  kubelet,
  signal,
  isWanted,
}: StepsOptions) {
  const { namespace } = pvc;
  const core = `/api/v1/namespaces/${namespace}`;
  const claimPath = (name: string): string => `${core}/persistentvolumeclaims/${name}`;
  const podPath = (name: string): string => `${core}/pods/${name}`;

  async function get<T>(path: string): Promise<T | undefined> {
    return absent(() => api.request('GET', path, undefined, signal)) as Promise<T | undefined>;
  }

  async function rightsTold<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof ApiFault)) throw error;
      // A quota or an admission rule says 403 as well.
      if (error.status === 403 && error.message.includes(' cannot '))
        throw failed(`${error.message}; apply manifests/source-snapshots.yaml in the claim's cluster`);
      throw error;
    }
  }

  /** The newest answer of `look` that is one. @throws SnapshotFailed when that lasts too long */
  async function waited<T>(look: () => Promise<Look<T>>): Promise<T> {
    const endMs = clock.monotonicMs() + patienceMs;
    let errorMs: number | undefined;
    for (;;) {
      const answer = await look();
      isWanted();
      if (typeof answer === 'object' && 'found' in answer) return answer.found;
      const nowMs = clock.monotonicMs();
      if (typeof answer === 'string') errorMs = undefined;
      else if (nowMs - (errorMs ??= nowMs) > errorPatienceMs) throw failed(answer.error);
      if (nowMs > endMs)
        throw failed(
          `given up after ${patienceMs / 60_000} minutes: ${typeof answer === 'string' ? answer : answer.error}`,
        );
      await clock.sleep(againMs, signal);
    }
  }

  /** Made, or there already from a call whose line broke. */
  async function make(path: string, object: object): Promise<void> {
    await rightsTold(() => api.request('POST', path, object, signal)).catch((error: unknown) => {
      if (!(error instanceof ApiFault) || error.reason !== 'AlreadyExists') throw error;
    });
  }

  /** That the claim's volume is of. */
  async function driver(): Promise<string> {
    return waited(async () => {
      const claim = view.claim(namespace, pvc.name);
      const volume = claim && claim.volumeName !== '' ? view.volume(claim.volumeName) : undefined;
      if (volume === undefined || volume === 'absent') return `claim ${namespace}/${pvc.name} has no volume`;
      if ('trouble' in volume) return volume.trouble;
      return { found: volume.csi?.driver ?? '' };
    });
  }

  /** @throws SnapshotFailed when it is not there, or of another driver than the volume */
  async function classOf<T>(kind: string, path: string, driverIn: (found: T) => string): Promise<T> {
    const found = await rightsTold(() => get<T>(path));
    if (!found) throw failed(`there is no ${kind} in the cluster of claim ${namespace}/${pvc.name}`);
    const [theirs, ours] = [driverIn(found), await driver()];
    if (theirs !== ours)
      throw failed(`${kind} is of the driver ${theirs}, the volume of claim ${namespace}/${pvc.name} of ${ours}`);
    return found;
  }

  async function source(): Promise<Claim & { spec: { storageClassName?: string } }> {
    const found = await get<Claim & { spec: { storageClassName?: string } }>(claimPath(pvc.name));
    if (!found) throw failed(`claim ${namespace}/${pvc.name} is gone`);
    return found;
  }

  /** Of the claims that are made of this one. @throws SnapshotFailed when none can be */
  async function storageClass(): Promise<string> {
    const name = storageClassName ?? (await source()).spec.storageClassName ?? '';
    if (name === '')
      throw failed(`claim ${namespace}/${pvc.name} has no StorageClass: name one in spec.source.storageClassName`);
    const { reclaimPolicy } = await classOf<{ provisioner: string; reclaimPolicy?: string }>(
      `StorageClass ${name}`,
      `/apis/storage.k8s.io/v1/storageclasses/${name}`,
      ({ provisioner }) => provisioner,
    );
    if (reclaimPolicy === 'Retain')
      throw failed(
        `StorageClass ${name} has reclaimPolicy Retain, so that each cut would leave a volume behind: make one like it with Delete, and name it in spec.source.storageClassName`,
      );
    return name;
  }

  /** The newest warning that the cluster has of a claim, where we may see it. */
  async function warningOf({ metadata }: Claim): Promise<string | undefined> {
    const selector = encodeURIComponent(`involvedObject.uid=${metadata.uid ?? ''},type=Warning`);
    const path = `${core}/events?fieldSelector=${selector}`;
    const { items } = (await api.request('GET', path, undefined, signal).catch((error: unknown) => {
      if (error instanceof ApiFault && error.status === 403) return { items: [] };
      throw error;
    })) as { items: EventObject[] };
    const timeOf = ({ lastTimestamp, metadata: { creationTimestamp } }: EventObject): string =>
      lastTimestamp ?? creationTimestamp;
    return items.sort((a, b) => (timeOf(a) < timeOf(b) ? 1 : -1))[0]?.message;
  }
  /** Of a claim that has no volume yet; asked for rarely, as it is waited for. */
  function unbound(): (claim: Claim) => Promise<Look<never>> {
    let askedMs = -Infinity;
    let warning: string | undefined;
    return async (claim) => {
      if (clock.monotonicMs() - askedMs > warningEveryMs) {
        askedMs = clock.monotonicMs();
        warning = await warningOf(claim);
      }
      if (warning === undefined) return `claim ${claim.metadata.name} is ${claim.status?.phase ?? 'Pending'}`;
      const text = `claim ${claim.metadata.name}: ${warning}`;
      return atWork.test(warning) ? text : { error: text };
    };
  }

  return {
    core,
    claimPath,
    podPath,
    get,
    rightsTold,
    waited,
    make,
    driver,
    classOf,
    source,
    storageClass,
    unbound,

    /** Where the pod of that name shows its claim. */
    async shown(name: string): Promise<string> {
      if (kubelet === undefined) throw failed(`the agent of ${node} does not tell where its kubelet's folder is`);
      const waits = unbound();
      return waited(async () => {
        const [pod, claim] = [await get<Pod>(podPath(name)), await get<Claim>(claimPath(name))];
        if (!pod || !claim) throw failed(`the claim or the pod ${name} was removed by somebody else`);
        const { volumeName = '' } = claim.spec;
        if (volumeName === '') return waits(claim);
        const phase = pod.status?.phase;
        if (phase === 'Failed' || phase === 'Succeeded')
          throw failed(`the pod ${name} has ended: it was evicted, or somebody ended it`);
        if (phase !== 'Running') return podTrouble(pod, claim) ?? 'its volume is bound';
        return { found: pathIn(kubelet, pod.metadata.uid ?? '', volumeMode, volumeName) };
      });
    },
  };
}

const warningEveryMs = 5000;

interface EventObject {
  metadata: { creationTimestamp: string };
  lastTimestamp?: string | null;
  message?: string;
}
