/**
 * Recovered copies on claims of their own: a new claim, a pod beside it that writes the point as it comes from the replica, and nothing
 * of that when it is done. Scheduling is the cluster's: the pod is the claim's first consumer (WaitForFirstConsumer).
 *
 * Guarantees: a claim that was there before is never written or removed; what stays behind after a failure is removed, or by
 * whoever does it again (`owner`). A line that breaks begins the copy anew, some times. Failure: what the API server
 * refuses is TargetFailed with its words; a pod that does not come up is waited for, and `progress` says why it does not.
 */
import type { Clock } from '../../proto/effects.ts';
import { asReplicationError, messageOf, ReplicationError } from '../../proto/errors.ts';
import { connectReceiver, masterClientName } from '../../proto/rpc.ts';
import type { Authority } from '../authority.ts';
import type { HeldReplica } from '../held.ts';
import { fillFrom, type FillOptions } from '../receiver/filling.ts';
import type { ClaimJob, ClaimName, Owner, RecoveredClaims } from '../recovery/claimtarget.ts';
import type { Copied } from '../replica/copies.ts';
import type { Point } from '../replica/horizon.ts';
import { ApiFault, type Api } from './api.ts';
import { nameOf, podTrouble, quantityBytes, receiverPort, secretOf, type Claim, type Pod } from './receiverobjects.ts';
import { absent } from './receivers.ts';
import {
  fillMetadata,
  fillName,
  fillPodOf,
  fillServerName,
  recoveredBytes,
  recoveredClaimOf,
  recoveryLabel,
} from './recoveredobjects.ts';

export interface RecoveredOptions {
  api: Api;
  /** Of the master: where the programs run, and by default the claims are. */
  namespace: string;
  authority: Pick<Authority, 'caPem' | 'pair'>;
  clock: Clock;
  image: string;
  nodeSelector: Record<string, string>;
}

const againMs = 1000;
/** Removal waits so long for pods to let go of the volume. */
const patienceMs = 60_000;
const maxFaults = 10;

export function recoveredClaims(options: RecoveredOptions): RecoveredClaims {
  const { api, namespace, authority, clock } = options;
  const core = '/api/v1';
  const pathOf = ({ namespace, name }: ClaimName): string =>
    `${core}/namespaces/${namespace}/persistentvolumeclaims/${name}`;
  const podPath = (uid: string): string => `${core}/namespaces/${namespace}/pods/${fillName(uid)}`;
  const secretPath = (uid: string): string => `${core}/namespaces/${namespace}/secrets/${fillName(uid)}`;

  async function get<T>(path: string): Promise<T | undefined> {
    return absent(() => api.request('GET', path)) as Promise<T | undefined>;
  }

  /** @throws TargetRefused when it is there already */
  async function make(job: ClaimJob, bytes: number): Promise<Claim & { metadata: { uid: string } }> {
    const { claim } = job;
    const path = `${core}/namespaces/${claim.namespace}/persistentvolumeclaims`;
    try {
      return (await api.request('POST', path, recoveredClaimOf(job, bytes))) as never;
    } catch (error) {
      if (!(error instanceof ApiFault) || error.reason !== 'AlreadyExists') throw error;
      throw new ReplicationError('TargetRefused', existsText(claim));
    }
  }

  /** What the replica's own claim tells of its source, also when that is gone. */
  async function sourceBytes(replicaUid: string): Promise<number> {
    const found = await get<Claim>(pathOf({ namespace, name: nameOf(replicaUid) }));
    const bytes = found ? quantityBytes(found.spec.resources.requests.storage) : 0;
    return Number.isFinite(bytes) ? Math.max(0, (bytes - 2 ** 30) / 1.5) : 0;
  }

  async function start(job: ClaimJob, claim: Claim & { metadata: { uid: string } }): Promise<void> {
    const { uid } = claim.metadata;
    const pair = await authority.pair('server', fillServerName(uid));
    const secret = secretOf(fillMetadata(uid, job), claim.metadata, { caPem: authority.caPem, ...pair });
    await api.request('POST', `${core}/namespaces/${namespace}/secrets`, secret);
    await api.request('POST', `${core}/namespaces/${namespace}/pods`, fillPodOf(uid, job, options));
  }

  /** Its address, when it runs. */
  async function running(claim: ClaimName, uid: string, { signal, progress }: Progressing): Promise<string> {
    for (;;) {
      const [pod, present] = [await get<Pod>(podPath(uid)), await get<Claim>(pathOf(claim))];
      if (!pod || present?.metadata.uid !== uid)
        throw new ReplicationError('TargetFailed', `the claim ${claim.name} or its pod was removed by somebody else`);
      const trouble = podTrouble(pod, present);
      if (trouble === undefined) return pod.status?.podIP ?? '';
      progress(`waiting for its volume: ${trouble}`, 0, 0);
      await clock.sleep(againMs, signal);
    }
  }

  async function fillOnce(job: ClaimJob, uid: string, replica: HeldReplica, point: Point, fill: FillOptions) {
    const host = await running(job.claim, uid, fill);
    const pair = await authority.pair('client', masterClientName);
    const trust = { caPem: authority.caPem, ...pair };
    const client = connectReceiver({ host, port: receiverPort }, fillServerName(uid), trust);
    try {
      return await fillFrom(client, replica, point, fill);
    } finally {
      client.close();
    }
  }

  async function fillPatiently(
    job: ClaimJob,
    uid: string,
    replica: () => Promise<HeldReplica>,
    point: Point,
    fill: FillOptions,
  ): Promise<Copied> {
    for (let faults = 1; ; faults++) {
      try {
        return await fillOnce(job, uid, await replica(), point, fill);
      } catch (thrown) {
        const error = asReplicationError(thrown, 'TargetFailed');
        // Of the pod that has just begun, or of the receiver that keeps the replica.
        if (error.code !== 'Disconnected' || faults >= maxFaults || fill.signal.aborted) throw error;
        fill.progress(`begins anew: ${messageOf(error)}`, 0, 0);
        await clock.sleep(againMs, fill.signal);
      }
    }
  }

  /** Nothing uses the volume any more. */
  async function stop(uid: string): Promise<void> {
    for (const path of [podPath(uid), secretPath(uid)]) await absent(() => api.request('DELETE', path));
    await gone(podPath(uid), undefined, `pod ${fillName(uid)} does not end`);
  }

  async function gone(path: string, uid: string | undefined, trouble: string): Promise<void> {
    const endMs = clock.monotonicMs() + patienceMs;
    for (;;) {
      const found = await get<Claim>(path);
      if (!found || (uid !== undefined && found.metadata.uid !== uid)) return;
      if (clock.monotonicMs() > endMs) throw new ReplicationError('TargetFailed', trouble);
      await clock.sleep(againMs / 2);
    }
  }

  async function remove(claim: ClaimName, owner: Owner): Promise<boolean> {
    const found = await get<Claim>(pathOf(claim));
    if (!found) return true;
    const { uid = '', labels = {} } = found.metadata;
    if (labels[recoveryLabel] !== owner.owner || (owner.uid !== undefined && owner.uid !== uid)) return false;
    await stop(uid);
    const { volumeName = '' } = found.spec;
    const volume = volumeName === '' ? undefined : await get<BoundVolume>(`${core}/persistentvolumes/${volumeName}`);
    // It was made for this copy alone; a class that retains volumes is meant for those that somebody still wants.
    if (volume?.spec.claimRef?.uid === uid)
      await absent(() =>
        api.request('PATCH', `${core}/persistentvolumes/${volumeName}`, {
          spec: { persistentVolumeReclaimPolicy: 'Delete' },
        }),
      );
    await absent(() => api.request('DELETE', pathOf(claim), { preconditions: { uid } }));
    await gone(pathOf(claim), uid, `claim ${claim.namespace}/${claim.name} is in use; end the pods that use it`);
    return true;
  }

  return {
    namespace,

    async problem(claim, storageClassName) {
      if (claim.namespace !== namespace) return `must be in ${namespace}, the namespace of the master`;
      if (await get(pathOf(claim))) return existsText(claim);
      if (storageClassName === undefined) return undefined;
      if (await get(`/apis/storage.k8s.io/v1/storageclasses/${storageClassName}`)) return undefined;
      return `there is no StorageClass ${storageClassName} in the cluster`;
    },

    async uidOf(claim) {
      return (await get<Claim>(pathOf(claim)))?.metadata.uid;
    },

    async fill(job, replica, point, fill) {
      const { claim, owner, replicaUid, volumeMode } = job;
      try {
        const sizeBytes = await (await replica()).measure(point);
        const needed = recoveredBytes(volumeMode, sizeBytes, await sourceBytes(replicaUid));
        if (volumeMode === 'Block' && (job.bytes ?? needed) < sizeBytes)
          throw new ReplicationError('TargetFull', `it asks for ${job.bytes} bytes and the point has ${sizeBytes}`);
        const made = await make(job, job.bytes ?? needed);
        const { uid } = made.metadata;
        try {
          await start(job, made);
          const copied = await fillPatiently(job, uid, replica, point, { ...fill, volumeMode, sizeBytes });
          fill.progress('letting go of its volume', sizeBytes, sizeBytes);
          await stop(uid);
          return { ...copied, uid };
        } catch (error) {
          await remove(claim, { owner, uid }).catch(() => undefined);
          throw error;
        }
      } catch (error) {
        throw asReplicationError(error, 'TargetFailed');
      }
    },
    remove,
  };
}

interface BoundVolume {
  spec: { claimRef?: { uid?: string } };
}
type Progressing = Pick<FillOptions, 'signal' | 'progress'>;

function existsText({ namespace, name }: ClaimName): string {
  return `claim ${namespace}/${name} exists already; name one that does not`;
}
