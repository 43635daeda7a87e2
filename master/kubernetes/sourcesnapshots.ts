/**
 * VolumeSnapshots and clones of claims that are mirrored with copyMethod Snapshot or Clone: taken, shown to the claim's agent as a device or
 * a folder of its node, and removed, each step when that agent asks for it (Snapshots of replicator.proto).
 *
 * Guarantees: an agent reaches nothing but those of the claims that it mirrors, by the label that they carry; what is begun and
 * not answered is removed, by the next one that is taken or with its replication. Failure: what the cluster or the storage
 * refuses, or does not do in time, is SnapshotFailed with their words.
 */
import type { Clock } from '../../proto/effects.ts';
import { messageOf, ReplicationError } from '../../proto/errors.ts';
import { bell, type Stream } from '../../proto/stream.ts';
import type { SnapshotReply, SnapshotRequest } from '../../proto/wire.ts';
import { follow } from '../follow.ts';
import { sourceText, type ClaimRef, type Replication } from '../resources.ts';
import type { Store } from '../store.ts';
import { ApiFault, type Api } from './api.ts';
import type { Claims } from './claims.ts';
import { cloneSteps } from './clonesteps.ts';
import { failed, hide } from './clustersteps.ts';
import { absent } from './receivers.ts';
import { cloneLabel, snapshotGroup, snapshotLabel, type VolumeSnapshot } from './snapshotobjects.ts';
import { snapshotPath, snapshotSteps } from './snapshotsteps.ts';

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

const sweepAgainMs = 60_000;

const empty: SnapshotReply = {
  ...{ names: [], path: '', handle: '', address: '', caPem: Buffer.alloc(0), namespace: '', token: '', serverName: '' },
};

export function sourceSnapshots(options: SourceSnapshotsOptions): SourceSnapshots {
  const { store, clock, claims } = options;

  function replicationOf(agent: string, uid: string): Replication & { spec: { source: { pvc: ClaimRef } } } {
    const found = store.replicationsOf(agent).find(({ metadata }) => metadata.uid === uid);
    if ((found?.spec.copyMethod !== 'Snapshot' && found?.spec.copyMethod !== 'Clone') || !found.spec.source.pvc)
      throw new ReplicationError('NotAssigned', `${uid} is none that ${agent} mirrors by snapshots or clones`);
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
    const { volumeMode, volumeSnapshotClassName, storageClassName } = spec.source;
    const work = (spec.copyMethod === 'Clone' ? cloneSteps : snapshotSteps)({
      ...{ ...cluster, clock, of, pvc, signal, isWanted, volumeMode, volumeSnapshotClassName, storageClassName },
      ...{ node: agent, kubelet: options.kubelet(agent), image: options.image },
    });
    const { action, name } = request;
    switch (action) {
      case 'service':
        return { ...empty, ...(await work.service(options.namespace)), namespace: pvc.namespace };
      case 'take':
        return { ...empty, names: [await work.take(request.keep)] };
      case 'open':
        return { ...empty, path: await work.open(name) };
      case 'close':
        await work.close(name);
        return empty;
      case 'remove':
        await work.remove(name);
        return empty;
      case 'list':
        return { ...empty, names: await work.list() };
      case 'find':
        return { ...empty, handle: await work.handle(name) };
    }
  }

  /** Answers whether all clusters were heard. */
  async function sweep(signal: AbortSignal): Promise<boolean> {
    const used = store.list('Replication').map(({ metadata: { uid }, spec }) => `${spec.copyMethod} ${uid}`);
    const live = new Set(used);
    let isHeard = true;
    for (const name of claims.clusterNames()) {
      const api = claims.cluster({ cluster: name })?.api;
      if (!api) continue;
      for (const look of [sweepSnapshots, sweepClones])
        try {
          await look(api, live, signal);
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
      const asked = new Map<string, string>();
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
        const method = deleted ? 'Direct' : (store.get('Replication', key)?.spec.copyMethod ?? 'Direct');
        const before = asked.get(uid) ?? method;
        if (method === 'Direct') asked.delete(uid);
        else asked.set(uid, method);
        if (before !== method) ring();
      }
      await looking;
    },
  };
}

/** @param live `${copyMethod} ${uid}` of each replication */
async function sweepSnapshots(api: Api, live: ReadonlySet<string>, signal: AbortSignal): Promise<void> {
  const path = `/apis/${snapshotGroup}/v1/volumesnapshots?labelSelector=${encodeURIComponent(snapshotLabel)}`;
  const { items } = (await api.request('GET', path, undefined, signal)) as { items: VolumeSnapshot[] };
  for (const { metadata } of items) {
    const uid = metadata.labels?.[snapshotLabel] ?? '';
    if (live.has(`Snapshot ${uid}`)) continue;
    // What shows it first: a claim that waits for its volume would hold the snapshot, and gets none of one that is going.
    await hide(api, metadata.namespace, metadata.name, uid);
    await absent(() => api.request('DELETE', snapshotPath(metadata.namespace, metadata.name)));
  }
}

async function sweepClones(api: Api, live: ReadonlySet<string>, signal: AbortSignal): Promise<void> {
  const selector = encodeURIComponent(`${snapshotLabel},${cloneLabel}`);
  const path = `/api/v1/persistentvolumeclaims?labelSelector=${selector}`;
  const { items } = (await api.request('GET', path, undefined, signal)) as {
    items: { metadata: { name: string; namespace: string; labels: Record<string, string> } }[];
  };
  for (const { metadata } of items) {
    const uid = metadata.labels[snapshotLabel] ?? '';
    if (!live.has(`Clone ${uid}`)) await hide(api, metadata.namespace, metadata.name, uid);
  }
}
