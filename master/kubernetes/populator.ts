/**
 * New claims that name a ReplicationInfo as `dataSourceRef`: each is filled with the newest point, once there is one, and is unbound until
 * then. By the convention of volume populators: a claim beside it (prime) gets the volume, that is filled, and goes to the claim that asked.
 *
 * Claims of the master's namespace alone, as such a reference leads to no other one. Guarantees: what is bound has the whole
 * point; a claim that goes before that takes all that was made for it along; a master that dies begins anew, and never fills a volume that
 * somebody has. Failure: told as an event once for each reason, and tried again.
 */
import type { Clock } from '../../proto/effects.ts';
import { messageOf, ReplicationError } from '../../proto/errors.ts';
import type { VolumeMode } from '../../proto/wire.ts';
import type { EventInput } from '../engine.ts';
import type { HeldReplica } from '../held.ts';
import { replicaUid } from '../mirrorstate.ts';
import type { ClaimName, RecoveredClaims } from '../recovery/claimtarget.ts';
import type { Store } from '../store.ts';
import type { Api } from './api.ts';
import { group } from './kinds.ts';
import { listWatch } from './listwatch.ts';
import { quantityBytes, type Claim } from './receiverobjects.ts';
import { absent } from './receivers.ts';
import { recoveryLabel } from './recoveredobjects.ts';

export interface PopulatorOptions {
  api: Api;
  namespace: string;
  clock: Clock;
  store: Pick<Store, 'get'>;
  recovered: RecoveredClaims;
  /** Of a replication, by uid; undefined: not open. */
  replica: (uid: string) => HeldReplica | undefined;
  report: (event: EventInput) => void;
}

interface Asking extends Claim {
  metadata: Claim['metadata'] & { uid: string };
  spec: Claim['spec'] & {
    storageClassName?: string;
    volumeMode: VolumeMode;
    dataSourceRef?: { apiGroup?: string; kind: string; name: string; namespace?: string };
  };
}

const againMs = 2000;
const resyncMs = 30 * 60_000;
const selectedNode = 'volume.kubernetes.io/selected-node';
const primePrefix = 'prime-';

export async function runPopulator(options: PopulatorOptions, signal: AbortSignal): Promise<void> {
  const { api, namespace, clock, store, recovered, report } = options;
  const claims = `/api/v1/namespaces/${namespace}/persistentvolumeclaims`;
  const known = new Map<string, Asking>();
  const working = new Map<string, AbortController>();
  const jobs = new Set<Promise<void>>();
  /** Of a claim that is worked on, whether its class waits for a pod; of a class that never is another one. */
  const waits = new Map<string, boolean>();
  const primeOf = (uid: string): ClaimName => ({ namespace, name: `${primePrefix}${uid}` });

  /** As it is now; undefined: it is bound, or gone. */
  const asking = (uid: string): Asking | undefined => {
    const claim = known.get(uid);
    const { apiGroup, kind } = claim?.spec.dataSourceRef ?? {};
    const isOurs = apiGroup === group && kind === 'ReplicationInfo';
    return isOurs && claim?.metadata.deletionTimestamp === undefined && claim?.status?.phase !== 'Bound'
      ? claim
      : undefined;
  };

  /** Whether it may get its volume now: by its class, once its pod has a node. */
  async function mayBegin({ metadata, spec }: Asking): Promise<boolean> {
    if (!waits.has(metadata.uid)) {
      const path = `/apis/storage.k8s.io/v1/storageclasses/${spec.storageClassName}`;
      const found = (await absent(() => api.request('GET', path))) as { volumeBindingMode?: string } | undefined;
      if (!found) throw new Error(`there is no StorageClass ${spec.storageClassName}`);
      waits.set(metadata.uid, found.volumeBindingMode === 'WaitForFirstConsumer');
    }
    return waits.get(metadata.uid) === false || metadata.annotations?.[selectedNode] !== undefined;
  }

  async function populate(claim: Asking, own: AbortSignal): Promise<boolean> {
    const { uid, name } = claim.metadata;
    const of = claim.spec.dataSourceRef?.name ?? '';
    const replication = store.get('Replication', of);
    const held = (): HeldReplica | undefined => options.replica(replication?.metadata.uid ?? '');
    const point = held()?.newestPoint;
    if (!replication || !point || !(await mayBegin(claim))) return false;
    const { volumeMode } = replication.spec.source;
    if (volumeMode !== claim.spec.volumeMode)
      throw new Error(`its volumeMode is ${claim.spec.volumeMode}, that of replication ${of} ${volumeMode}`);
    const prime = primeOf(uid);
    if (await isHandedOver(prime, uid)) return true;
    if (!(await recovered.remove(prime, { owner: uid }))) throw new Error(`claim ${prime.name} is in the way`);
    await recovered.fill(
      {
        ...{ claim: prime, owner: uid, ownerName: name, replication: of, replicaUid: replicaUid(replication) },
        ...{ volumeMode, storageClassName: claim.spec.storageClassName },
        accessMode: claim.spec.accessModes[0] ?? 'ReadWriteOnce',
        bytes: quantityBytes(claim.spec.resources.requests.storage),
        selectedNode: claim.metadata.annotations?.[selectedNode],
      },
      async () => {
        const replica = held();
        if (!replica) throw new ReplicationError('Disconnected', `the replica of ${of} is not open`);
        return replica;
      },
      point,
      { verify: false, signal: own, progress: () => undefined },
    );
    await handOver(claim, prime);
    return true;
  }

  /** A master before has died between giving the volume away and letting go. */
  async function isHandedOver(prime: ClaimName, uid: string): Promise<boolean> {
    const left = (await absent(() => api.request('GET', `${claims}/${prime.name}`))) as Claim | undefined;
    if (left?.spec.volumeName === undefined) return false;
    const path = `/api/v1/persistentvolumes/${left.spec.volumeName}`;
    const volume = (await absent(() => api.request('GET', path))) as
      { spec: { claimRef?: { uid?: string } } } | undefined;
    if (volume?.spec.claimRef?.uid !== uid) return false;
    while (asking(uid)) await clock.sleep(againMs / 4, signal);
    await letGo(prime, left.metadata.uid);
    return true;
  }

  /** The volume of the prime claim is the claim's from here on. */
  async function handOver({ metadata, spec }: Asking, prime: ClaimName): Promise<void> {
    const filled = (await api.request('GET', `${claims}/${prime.name}`)) as Claim;
    const { name, uid, resourceVersion } = metadata;
    await api.request('PATCH', `/api/v1/persistentvolumes/${filled.spec.volumeName}`, {
      metadata: { annotations: { [`${group}/populated-from`]: spec.dataSourceRef?.name } },
      spec: { claimRef: { apiVersion: 'v1', kind: 'PersistentVolumeClaim', namespace, name, uid, resourceVersion } },
    });
    while (asking(uid)) await clock.sleep(againMs / 4, signal);
    await letGo(prime, filled.metadata.uid);
  }

  /** Without its volume, which is another claim's. */
  async function letGo({ name }: ClaimName, uid: string | undefined): Promise<void> {
    await absent(() => api.request('DELETE', `${claims}/${name}`, { preconditions: { uid } }));
  }

  async function work(uid: string, own: AbortSignal): Promise<void> {
    let told = '';
    for (let claim = asking(uid); claim; claim = asking(uid)) {
      try {
        if (await populate(claim, own)) return;
      } catch (error) {
        if (own.aborted) return;
        const message = `claim ${claim.metadata.name} is not filled: ${messageOf(error)}`;
        if (message !== told) report({ code: 'MasterTrouble', level: 'WARNING', message, object: null });
        told = message;
      }
      await clock.sleep(againMs, own);
    }
  }

  function look(uid: string): void {
    if (!asking(uid)) {
      // One that was bound meanwhile is handed over to its end.
      if (!known.has(uid)) working.get(uid)?.abort(new ReplicationError('Stopped', 'the claim was deleted'));
      return;
    }
    if (working.has(uid) || signal.aborted) return;
    const own = new AbortController();
    working.set(uid, own);
    const job = work(uid, AbortSignal.any([own.signal, signal]))
      .catch(() => undefined) // stopped
      .finally(() => {
        working.delete(uid);
        waits.delete(uid);
        jobs.delete(job);
      });
    jobs.add(job);
  }

  /** What a master before has left: the volume went to its claim, or nobody asks for it any more. */
  async function clear(claim: Claim): Promise<void> {
    const { name, uid, labels } = claim.metadata;
    const owner = labels?.[recoveryLabel] ?? '';
    if (name !== `${primePrefix}${owner}` || working.has(owner)) return;
    if (known.get(owner)?.status?.phase === 'Bound') await letGo({ namespace, name }, uid);
    else if (!known.has(owner)) await recovered.remove({ namespace, name }, { owner, uid });
  }

  const heed = {
    listed(items: unknown[]) {
      known.clear();
      for (const item of items as Asking[]) known.set(item.metadata.uid, item);
      for (const uid of [...known.keys(), ...working.keys()]) look(uid);
      for (const item of items as Claim[]) void clear(item).catch(() => undefined); // with the next list
    },
    changed(change: string, object: unknown) {
      const claim = object as Asking;
      const { uid } = claim.metadata;
      if (change === 'DELETED') known.delete(uid);
      else known.set(uid, claim);
      look(uid);
    },
    line: () => undefined,
  };
  await listWatch(api, claims, heed, signal, resyncMs);
  await Promise.all(jobs);
}
