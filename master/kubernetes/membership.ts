/**
 * A master that lives in a cluster: waits until it leads, then has the store over the API server, writes Events and runs the
 * operator. What a data directory alone would keep and another node needs (the CA, the first token) is kept in the store too.
 *
 * Failure: a master that loses the lead ends its process at once, as what it has under way may be another one's by now.
 */
import type { Clock } from '../../proto/effects.ts';
import { messageOf } from '../../proto/errors.ts';
import type { Context } from '../api/route.ts';
import type { Api as RestApi } from '../api/server.ts';
import type { Engine, EventInput } from '../engine.ts';
import { follow } from '../follow.ts';
import type { RecoveredClaims } from '../recovery/claimtarget.ts';
import type { StorageClass } from '../resources.ts';
import type { StorageDriver } from '../storage.ts';
import type { Store } from '../store.ts';
import { connectApi, type Api, type ClusterOptions } from './api.ts';
import { openClaims, type Claims, type ClaimsOptions, type Create } from './claims.ts';
import { openClusters } from './clusters.ts';
import { draftOf } from './drafts.ts';
import { eventWriter } from './events.ts';
import { group } from './kinds.ts';
import { lead } from './lease.ts';
import { runOperator } from './operator.ts';
import { runPopulator, type PopulatorOptions } from './populator.ts';
import { receiverClass, type ReceiversOptions } from './receivers.ts';
import { recoveredClaims } from './recovered.ts';
import { sourceSnapshots, type SourceSnapshots, type SourceSnapshotsOptions } from './sourcesnapshots.ts';
import { openKubernetesStore, type KubernetesStore } from './store.ts';

export interface MembershipOptions {
  cluster: ClusterOptions;
  namespace: string;
  /** Unique among the masters. */
  identity: string;
  clock: Clock;
  /** Name of the pod that gets the label of the leader; absent: it is none. */
  pod: string | undefined;
  log: (message: string) => void;
  /** The cluster is reached, and another master leads. */
  onStandby: () => void;
  /** The process must end, now. */
  onLost: (reason: string) => void;
}

export interface Membership {
  store: KubernetesStore;
  /** Which leader this is, from 0. */
  transitions: number;
  onEvent(event: EventInput): void;
  /** Sources that are named by claim, in this cluster and in others. */
  claims(options: Pick<ClaimsOptions, 'kubelet' | 'report'>): Claims;
  /** What the storage of claims with copyMethod Snapshot does. */
  snapshots(
    options: Pick<SourceSnapshotsOptions, 'claims' | 'kubelet'> & Pick<StorageOptions, 'image'>,
  ): SourceSnapshots;
  /** Replicas on claims of this cluster. */
  storage(options: StorageOptions, storageClass: StorageClass): StorageDriver;
  /** Recovered copies on claims of this cluster. */
  recovered(options: Omit<StorageOptions, 'trusted'>): RecoveredClaims;
  /** Operator and Events, until the signal aborts. */
  run(
    options: {
      context: Omit<Context, 'watches'>;
      claims: Claims;
      api: RestApi;
      adminToken: string;
      report: (event: EventInput) => void;
      recovered: RecoveredClaims;
      snapshots: SourceSnapshots;
      replica: PopulatorOptions['replica'];
    },
    signal: AbortSignal,
  ): Promise<void>;
  /** After everything else: writes what waits, and lets the next one lead. */
  leave(): Promise<void>;
}

export type StorageOptions = Pick<ReceiversOptions, 'authority' | 'trusted'> & {
  image?: string;
  nodeSelector?: Record<string, string>;
};

export async function joinCluster(options: MembershipOptions, signal: AbortSignal): Promise<Membership> {
  const { cluster, namespace, identity, clock, log, onLost } = options;
  const api = connectApi(cluster);
  const name = 'cdm-replicator-master';
  /** The Service of the masters leads to the pod that has it; whoever starts does not lead yet. */
  async function labelPod(role: 'leader' | null): Promise<void> {
    if (options.pod === undefined) return;
    const body = { metadata: { labels: { [roleLabel]: role } } };
    await api.request('PATCH', `/api/v1/namespaces/${namespace}/pods/${options.pod}`, body);
  }
  await labelPod(null).catch((error: unknown) => log(`the pod cannot be labelled: ${messageOf(error)}`));
  const onWait = (message: string, isReached: boolean): void => {
    log(message);
    if (isReached) options.onStandby();
  };
  const leadership = await lead({ api, clock, namespace, name, identity, onWait }, signal);
  void leadership.lost.then(onLost);
  const store = await openKubernetesStore({
    cluster,
    namespace,
    mayWrite: () => leadership.mayWrite(),
    onLine: (trouble) => log(trouble === undefined ? 'the API server is heard of again' : `API server: ${trouble}`),
    onFailure: (error) => onLost(`the connection to the API server broke down: ${error.message}`),
  });
  const events = eventWriter({ api, namespace, clock, uidOf: (kind, key) => store.get(kind, key)?.metadata.uid });
  const image = await ownImage(api, namespace, options.pod);
  return {
    store,
    transitions: leadership.transitions,
    onEvent: (event) => events.add(event),
    claims: (claimsOptions) =>
      openClaims({
        ...claimsOptions,
        store,
        clock,
        clusters: (onChange) => openClusters({ api, namespace, clock, onChange }),
      }),
    snapshots: (more) => sourceSnapshots({ store, clock, namespace, image, ...more }),
    storage: ({ nodeSelector = {}, ...more }, storageClass) =>
      receiverClass(
        { api, namespace, clock, term: leadership.transitions, image, nodeSelector, ...more },
        storageClass,
      ),
    recovered: ({ nodeSelector = {}, ...more }) =>
      recoveredClaims({ api, namespace, clock, image, nodeSelector, ...more }),
    async run({ context, claims, api: rest, adminToken, report, recovered, snapshots, replica }, until) {
      await labelPod('leader').catch((error: unknown) => log(`the pod cannot be labelled: ${messageOf(error)}`));
      const operator = runOperator(
        {
          store,
          clock,
          report,
          call: (method, path, body) => rest.call(method, path, adminToken, body),
          // Watches are for REST's own routes.
          draftOf: (kind, raw) => draftOf(context as Context, kind, raw),
        },
        until,
      );
      const create: Create = (body) => rest.call('POST', '/api/v1/replications', adminToken, body);
      await Promise.all([
        ...[operator, events.run(until), revoke(store, context.engine, until), claims.run(create, until)],
        snapshots.run(until),
        runPopulator({ api, namespace, clock, store, recovered, replica, report }, until),
      ]);
    },
    async leave() {
      await labelPod(null).catch(() => undefined);
      await store.flush();
      store.close();
      await leadership.release();
    },
  };
}

/** What a receiver runs is what its master does. */
async function ownImage(api: Api, namespace: string, pod: string | undefined): Promise<string> {
  if (pod === undefined) return defaultImage;
  const path = `/api/v1/namespaces/${namespace}/pods/${pod}`;
  const found = (await api.request('GET', path)) as { spec: { containers: { image: string }[] } };
  return found.spec.containers[0]?.image ?? defaultImage;
}

/** `kubectl delete replicationagent` is what DELETE of an agent is over REST. */
async function revoke(store: Store, engine: Engine, signal: AbortSignal): Promise<void> {
  for await (const { key, deleted } of follow(store, 'Agent', signal)) if (deleted) engine.revokeAgent(key);
}

/** Where the master is no pod. */
const defaultImage = 'cdm-replicator-master';
const roleLabel = `${group}/role`;
