/**
 * VolumeSnapshots of claims that are mirrored with copyMethod Snapshot: taken, shown to the claim's agent as a device of its node, and
 * removed, each step when that agent asks for it (Snapshots of replicator.proto).
 *
 * Guarantees: an agent reaches nothing but snapshots of the claims that it mirrors, by the label that they carry; what is begun and
 * not answered is removed, by the next one that is taken or with its replication. Failure: what the cluster or the storage
 * refuses, or does not do in time, is SnapshotFailed with their words.
 */
import { isIP } from 'node:net';
import type { Clock } from '../../proto/effects.ts';
import { messageOf, ReplicationError } from '../../proto/errors.ts';
import { bell, type Stream } from '../../proto/stream.ts';
import { formatHostPort, parseHostPort } from '../../proto/value.ts';
import type { SnapshotReply, SnapshotRequest } from '../../proto/wire.ts';
import { follow } from '../follow.ts';
import { sourceText, type ClaimRef, type Replication } from '../resources.ts';
import type { Store } from '../store.ts';
import { ApiFault, type Api } from './api.ts';
import { pathIn, quantity } from './claimplace.ts';
import type { Claims } from './claims.ts';
import type { ClusterView } from './clusterview.ts';
import { podTrouble, type Claim, type Metadata, type Pod } from './receiverobjects.ts';
import { absent } from './receivers.ts';
import {
  shownClaimOf,
  showingPodOf,
  snapshotGroup,
  snapshotLabel,
  snapshotOf,
  type SnapshotOf,
  type VolumeSnapshot,
} from './snapshotobjects.ts';

export interface SourceSnapshotsOptions {
  store: Store;
  claims: Pick<Claims, 'cluster' | 'clusterNames'>;
  clock: Clock;
  /** Where the ServiceAccount is that drivers know us by, in each cluster. */
  namespace: string;
  /** Root folder of the kubelet of an agent's node. */
  kubelet: (agent: string) => string | undefined;
  /** Of the pods that show a snapshot. */
  image: string;
}

export interface SourceSnapshots {
  /** One Snapshots call. */
  serve(agent: string, call: Stream<SnapshotReply, SnapshotRequest>, signal: AbortSignal): Promise<void>;
  /** Removes what is left of replications that are gone, until the signal aborts. */
  run(signal: AbortSignal): Promise<void>;
}

const againMs = 500;
/** Storage may copy a whole volume before a snapshot can be used. */
const patienceMs = 30 * 60_000;
const sweepAgainMs = 60_000;
const reader = 'replication-snapshot-reader';
const tokenSeconds = 600;

const empty: SnapshotReply = {
  ...{ names: [], path: '', handle: '', address: '', caPem: Buffer.alloc(0), namespace: '', token: '', serverName: '' },
};

export function sourceSnapshots(options: SourceSnapshotsOptions): SourceSnapshots {
  const { store, clock, claims } = options;

  function replicationOf(agent: string, uid: string): Replication & { spec: { source: { pvc: ClaimRef } } } {
    const found = store.replicationsOf(agent).find(({ metadata }) => metadata.uid === uid);
    if (found?.spec.copyMethod !== 'Snapshot' || !found.spec.source.pvc)
      throw new ReplicationError('NotAssigned', `${uid} is none that ${agent} mirrors by snapshots`);
    return found as never;
  }

  async function answer(agent: string, request: SnapshotRequest, signal: AbortSignal): Promise<SnapshotReply> {
    const { metadata, spec } = replicationOf(agent, request.replicationUid);
    const { pvc } = spec.source;
    const cluster = claims.cluster(pvc);
    if (!cluster) throw failed(`${sourceText(spec.source)}: its cluster is not known`);
    const of = { uid: metadata.uid, replication: metadata.name };
    const isWanted = (): void => {
      if (replicationOf(agent, metadata.uid).spec.paused) throw failed(`${metadata.name} is paused`);
    };
    const work = steps({ ...cluster, clock, of, pvc, signal, isWanted });
    const { action, name } = request;
    switch (action) {
      case 'service':
        return { ...empty, ...(await work.service(options.namespace)), namespace: pvc.namespace };
      case 'take':
        return { ...empty, names: [await work.take(request.keep)] };
      case 'open':
        return { ...empty, path: await work.open(name, agent, options) };
      case 'close':
        await work.close(name);
        return empty;
      case 'remove':
        await work.remove(name);
        return empty;
      case 'list':
        return { ...empty, names: (await work.list()).map((one) => one.metadata.name) };
      case 'find':
        return { ...empty, handle: await work.handle(name) };
    }
  }

  /** Answers whether all clusters were heard. */
  async function sweep(signal: AbortSignal): Promise<boolean> {
    const live = new Set(
      store.list('Replication').flatMap(({ metadata, spec }) => (spec.copyMethod === 'Snapshot' ? metadata.uid : [])),
    );
    let isHeard = true;
    for (const name of claims.clusterNames()) {
      const api = claims.cluster({ cluster: name })?.api;
      if (!api) continue;
      try {
        const path = `/apis/${snapshotGroup}/v1/volumesnapshots?labelSelector=${encodeURIComponent(snapshotLabel)}`;
        const { items } = (await api.request('GET', path, undefined, signal)) as { items: VolumeSnapshot[] };
        for (const { metadata } of items)
          if (!live.has(metadata.labels?.[snapshotLabel] ?? '')) {
            // What shows it first: a claim that waits for its volume would hold the snapshot, and gets none of one that is going.
            await hide(api, metadata.namespace, metadata.name, metadata.labels?.[snapshotLabel] ?? '');
            await absent(() => api.request('DELETE', snapshotPath(metadata.namespace, metadata.name)));
          }
      } catch (error) {
        // A cluster without snapshots, or one where we may not see any, has none of ours.
        isHeard &&= error instanceof ApiFault && [403, 404].includes(error.status);
      }
    }
    return isHeard;
  }

  return {
    async serve(agent, call, signal) {
      const first = await call.receive.next();
      if (first.done === true) throw new ReplicationError('BadMessage', 'a Snapshots call begins with its request');
      try {
        await call.send(await answer(agent, first.value, signal));
      } catch (error) {
        signal.throwIfAborted();
        throw error instanceof ReplicationError ? error : failed(`the cluster: ${messageOf(error)}`);
      }
    },
    async run(signal) {
      const asked = new Set<string>();
      const { rung, ring } = bell();
      const look = async (): Promise<void> => {
        while (!signal.aborted) {
          const left = rung();
          const isDone = await sweep(signal);
          const again = isDone ? new Promise<void>(() => undefined) : clock.sleep(sweepAgainMs, signal);
          await Promise.race([left, again, ended]).catch(() => undefined);
        }
      };
      const ended = new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
      const looking = look();
      for await (const { key, uid, deleted } of follow(store, 'Replication', signal)) {
        const isAsked = !deleted && store.get('Replication', key)?.spec.copyMethod === 'Snapshot';
        if (isAsked) asked.add(uid);
        else if (asked.delete(uid)) ring();
      }
      await looking;
    },
  };
}

function failed(message: string): ReplicationError {
  return new ReplicationError('SnapshotFailed', message.slice(0, 2000));
}

function snapshotPath(namespace: string, name = ''): string {
  return `/apis/${snapshotGroup}/v1/namespaces/${namespace}/volumesnapshots${name === '' ? '' : `/${name}`}`;
}

/** Removes pod and claim of a snapshot; a name that is taken by somebody else's object is left alone. */
async function hide(api: Api, namespace: string, name: string, uid: string): Promise<void> {
  for (const kind of ['pods', 'persistentvolumeclaims']) {
    const path = `/api/v1/namespaces/${namespace}/${kind}/${name}`;
    const found = (await absent(() => api.request('GET', path))) as { metadata: Metadata } | undefined;
    if (found?.metadata.labels?.[snapshotLabel] === uid) await absent(() => api.request('DELETE', path));
  }
}

interface StepsOptions {
  api: Api;
  view: ClusterView;
  clock: Clock;
  of: SnapshotOf;
  pvc: ClaimRef;
  signal: AbortSignal;
  /** @throws when nobody waits for it any more */
  isWanted: () => void;
}

/** What can be done with snapshots of one claim. */
function steps({ api, view, clock, of, pvc, signal, isWanted }: StepsOptions) {
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
      if (error.status === 404)
        throw failed(`the cluster knows no VolumeSnapshots: ${error.message}; install the CSI snapshot controller`);
      throw error;
    }
  }

  /** @throws SnapshotFailed when it is not one of this replication */
  async function own(name: string): Promise<VolumeSnapshot | undefined> {
    const found = await get<VolumeSnapshot>(snapshotPath(namespace, name));
    if (found && found.metadata.labels?.[snapshotLabel] !== of.uid)
      throw failed(`${name} is none of ${of.replication}`);
    return found;
  }

  /** The newest answer of `look` that is one; a text is what it waits for. @throws SnapshotFailed when that lasts too long */
  async function waited<T>(look: () => Promise<{ found: T } | string>): Promise<T> {
    const endMs = clock.monotonicMs() + patienceMs;
    for (;;) {
      const answer = await look();
      isWanted();
      if (typeof answer !== 'string') return answer.found;
      if (clock.monotonicMs() > endMs) throw failed(`given up after ${patienceMs / 60_000} minutes: ${answer}`);
      await clock.sleep(againMs, signal);
    }
  }

  async function list(): Promise<VolumeSnapshot[]> {
    const selector = encodeURIComponent(`${snapshotLabel}=${of.uid}`);
    const path = `${snapshotPath(namespace)}?labelSelector=${selector}`;
    const { items } = (await rightsTold(() => api.request('GET', path, undefined, signal))) as {
      items: VolumeSnapshot[];
    };
    return items;
  }

  async function close(name: string): Promise<void> {
    await hide(api, namespace, name, of.uid);
  }

  async function remove(name: string): Promise<void> {
    if (!(await own(name))) return;
    await close(name);
    await absent(() => api.request('DELETE', snapshotPath(namespace, name)));
  }

  /** Of a Service, which nodes do not know by its name. */
  async function addressOf(host: string): Promise<string | undefined> {
    const [, name, of] = /^([a-z0-9-]+)\.([a-z0-9-]+)(\.svc(\..*)?)?$/.exec(host) ?? [];
    if (name === undefined || of === undefined) return undefined;
    const path = `/api/v1/namespaces/${of}/services/${name}`;
    const found = await rightsTold(() => get<{ spec: { clusterIP?: string } }>(path));
    return isIP(found?.spec.clusterIP ?? '') ? found?.spec.clusterIP : undefined;
  }

  return {
    list,
    close,
    remove,

    async take(keep: readonly string[]): Promise<string> {
      for (const { metadata } of await list()) if (!keep.includes(metadata.name)) await remove(metadata.name);
      const name = `cdmr-${of.uid.slice(0, 8)}-${Math.floor(clock.nowMs()).toString(36)}`;
      await rightsTold(() => api.request('POST', snapshotPath(namespace), snapshotOf(name, of, pvc.name), signal));
      try {
        return await waited(async () => {
          const snapshot = await own(name);
          if (!snapshot) throw failed(`VolumeSnapshot ${name} was removed by somebody else`);
          if (snapshot.status?.readyToUse === true) return { found: name };
          return `VolumeSnapshot ${name} is not ready: ${snapshot.status?.error?.message ?? 'its driver works on it'}`;
        });
      } catch (error) {
        await remove(name).catch(() => undefined);
        throw error;
      }
    },

    async open(
      name: string,
      node: string,
      { kubelet, image }: Pick<SourceSnapshotsOptions, 'kubelet' | 'image'>,
    ): Promise<string> {
      const snapshot = await own(name);
      if (!snapshot) throw failed(`VolumeSnapshot ${name} is gone`);
      const folder = kubelet(node);
      if (folder === undefined) throw failed(`the agent of ${node} does not tell where its kubelet's folder is`);
      const source = await get<Claim & { spec: { storageClassName?: string } }>(claimPath(pvc.name));
      if (!source) throw failed(`claim ${namespace}/${pvc.name} is gone`);
      const bytes = Math.max(
        quantity(snapshot.status?.restoreSize ?? ''),
        quantity(source.status?.capacity?.storage ?? ''),
      );
      const claim = shownClaimOf(snapshot, of, { storageClassName: source.spec.storageClassName, bytes });
      for (const [path, object] of [
        [`${core}/persistentvolumeclaims`, claim],
        [`${core}/pods`, showingPodOf(snapshot, of, node, image)],
      ] as const)
        await rightsTold(() => api.request('POST', path, object, signal)).catch((error: unknown) => {
          // Of a call before this one, whose line broke.
          if (!(error instanceof ApiFault) || error.reason !== 'AlreadyExists') throw error;
        });
      return waited(async () => {
        const [pod, shown] = [await get<Pod>(podPath(name)), await get<Claim>(claimPath(name))];
        if (!pod || !shown) throw failed(`the claim or the pod ${name} was removed by somebody else`);
        const { volumeName = '' } = shown.spec;
        if (pod.status?.phase !== 'Running' || volumeName === '')
          return podTrouble(pod, shown) ?? 'its volume is bound';
        return { found: pathIn(folder, pod.metadata.uid ?? '', 'Block', volumeName) };
      });
    },

    async handle(name: string): Promise<string> {
      const content = (await rightsTold(() => own(name)))?.status?.boundVolumeSnapshotContentName;
      if (content === undefined) return '';
      const path = `/apis/${snapshotGroup}/v1/volumesnapshotcontents/${content}`;
      const found = await rightsTold(() => get<{ status?: { snapshotHandle?: string } }>(path));
      return found?.status?.snapshotHandle ?? '';
    },

    async service(ours: string): Promise<Partial<SnapshotReply>> {
      const driver = await waited(async () => {
        const claim = view.claim(namespace, pvc.name);
        const volume = claim && claim.volumeName !== '' ? view.volume(claim.volumeName) : undefined;
        if (volume === undefined || volume === 'absent') return `claim ${namespace}/${pvc.name} has no volume`;
        if ('trouble' in volume) return volume.trouble;
        return { found: volume.csi?.driver ?? '' };
      });
      const found = await rightsTold(() => get<SnapshotMetadataService>(`/apis/cbt.storage.k8s.io/v1beta1/snapshotmetadataservices/${driver}`)); // prettier-ignore
      if (!found) return {};
      const { address, audience, caCert } = found.spec;
      const path = `/api/v1/namespaces/${ours}/serviceaccounts/${reader}/token`;
      const asked = { spec: { audiences: [audience], expirationSeconds: tokenSeconds } };
      const { status } = (await rightsTold(() => api.request('POST', path, asked, signal))) as {
        status: { token: string };
      };
      const { host, port } = parseHostPort(address);
      return {
        address: formatHostPort({ host: (await addressOf(host)) ?? host, port }),
        serverName: host,
        caPem: Buffer.from(caCert, 'base64'),
        token: status.token,
      };
    },
  };
}

/** Of the project external-snapshot-metadata, named as the driver. */
interface SnapshotMetadataService {
  spec: { address: string; audience: string; caCert: string };
}
