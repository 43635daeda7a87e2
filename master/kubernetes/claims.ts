/**
 * Replications whose source is a PersistentVolumeClaim: finds the claim's agent and path, follows it to other nodes, and makes
 * replications of claims that ask for protection.
 *
 * Level-triggered: each turn looks at what clusters and store have now. Guarantees: a source that goes to another agent gets
 * a new generation before it, so that the agent before writes nothing more; a claim that is nowhere to be read keeps
 * its last place and says why. Nothing is deleted or paused here: who takes a label off a claim ends its protection by hand.
 */
import type { Clock } from '../../proto/effects.ts';
import { messageOf } from '../../proto/errors.ts';
import type { Trouble, VolumeMode } from '../../proto/wire.ts';
import type { EventInput } from '../engine.ts';
import { follow } from '../follow.ts';
import { nextGeneration } from '../recovery/generation.ts';
import { sourceText, type ClaimRef, type Replication } from '../resources.ts';
import type { Store } from '../store.ts';
import type { Api } from './api.ts';
import { placeOf, refusal } from './claimplace.ts';
import { ownCluster, type Clusters } from './clusters.ts';
import type { ClusterView } from './clusterview.ts';
import { protectedClaims } from './protection.ts';

export interface ClaimsOptions {
  store: Store;
  clock: Clock;
  /** @param onChange to be called when something of a cluster is not as it was */
  clusters: (onChange: () => void) => Clusters;
  /** Root folder of the kubelet of an agent's node; undefined: not told. */
  kubelet: (agent: string) => string | undefined;
  report: (event: EventInput) => void;
}

export interface Claims {
  /** As Engine.claim. */
  claim(pvc: ClaimRef): { volumeMode: VolumeMode } | string;
  trouble(uid: string): Trouble | undefined;
  /** Whether a node of the claim's cluster is Ready; undefined: not known. @throws Error when the cluster does not answer */
  nodeReady(pvc: ClaimRef, node: string): Promise<boolean | undefined>;
  /** Of the claim's cluster; undefined: it is not known. */
  cluster(pvc: Pick<ClaimRef, 'cluster'>): { api: Api; view: ClusterView } | undefined;
  clusterNames(): string[];
  /** Until the signal aborts. */
  run(create: Create, signal: AbortSignal): Promise<void>;
}

/** A POST of REST from within. */
export type Create = (replication: object) => Promise<{ status: number; body: unknown }>;

const againMs = 10_000;
const defaultKubelet = '/var/lib/kubelet';

export function openClaims(options: ClaimsOptions): Claims {
  const { store, clock, report } = options;
  const troubles = new Map<string, Trouble>();
  /** What was told of a claim that cannot be protected, so that it is told once. */
  const told = new Map<string, string>();
  /** Of each cluster, as told last. */
  const states = new Map<string, string>();
  let bell = Promise.withResolvers<void>();
  const ring = (): void => bell.resolve();
  const clusters = options.clusters(ring);

  function clusterText({ cluster }: Pick<ClaimRef, 'cluster'>): string {
    return cluster === undefined ? "the master's own cluster" : `cluster ${cluster}`;
  }

  function look({ metadata, spec }: Replication): { agent: string; path: string } | Trouble | undefined {
    const { pvc, agent, path } = spec.source;
    if (!pvc) return undefined;
    const trouble = (reason: string, message: string): Trouble => ({ reason, message, stops: true });
    const view = clusters.view(pvc.cluster ?? ownCluster);
    if (!view) return trouble('ClusterUnknown', clusterProblem(pvc));
    // Until it is heard of, what is known stands.
    const pods = view.pods(pvc.namespace);
    if (!view.isListed() || !pods) {
      const { state, message } = clusters.state(pvc.cluster ?? ownCluster) ?? { state: 'UNKNOWN', message: '' };
      const isLost = agent === '' && state !== 'UNKNOWN' && state !== 'ACTIVE';
      return isLost ? trouble('ClusterGone', `${clusterText(pvc)}: ${message}`) : troubles.get(metadata.uid);
    }
    const claim = view.claim(pvc.namespace, pvc.name);
    const found = placeOf(
      {
        claim,
        volume: claim && claim.volumeName !== '' ? view.volume(claim.volumeName) : undefined,
        pods,
        now: { agent, path },
        hasAgent: (node) => store.get('Agent', node) !== undefined,
        kubelet: (node) => options.kubelet(node) ?? defaultKubelet,
      },
      sourceText(spec.source),
    );
    if (!found) return troubles.get(metadata.uid);
    return 'reason' in found ? trouble(found.reason, found.message) : found;
  }

  function clusterProblem(pvc: ClaimRef): string {
    const state = clusters.state(pvc.cluster ?? ownCluster);
    const known = clusters.names().filter((name) => name !== ownCluster);
    if (state) return `${clusterText(pvc)}: ${state.message}`;
    return `there is no ${clusterText(pvc)}; ${known.length > 0 ? `known are ${known.join(', ')}` : 'make a Secret with its kubeconfig'}`;
  }

  function turn(replication: Replication): void {
    const { metadata, spec } = replication;
    const found = look(replication);
    if (found && 'reason' in found) return void troubles.set(metadata.uid, found);
    troubles.delete(metadata.uid);
    if (!found) return;
    const { agent, path } = spec.source;
    if (found.agent === agent && found.path === path) return;
    // The kubelet's folder of a node whose agent is away is not known: its old path stands.
    if (found.agent === agent && options.kubelet(agent) === undefined) return;
    const change = (how: (object: Replication) => void): void =>
      void store.update('Replication', metadata.name, (object) => {
        if (object.metadata.uid === metadata.uid && object.spec.source.pvc !== undefined) how(object);
      });
    // First, as they may be two writes: whoever reads the volume at the new place must not do so under the old generation.
    if (agent !== '' && agent !== found.agent)
      change(({ status }) => (status.fencingGeneration = nextGeneration(status.fencingGeneration)));
    change((object) => Object.assign(object.spec.source, found));
    const message = `${sourceText(spec.source)} is at ${found.agent}:${found.path}${agent === '' ? '' : `; it was at ${agent}`}`;
    report({ code: 'SourceMoved', level: 'INFO', message, object: `Replication/${metadata.name}` });
  }

  /** One that the API server refuses (an agent may tell of a folder that is no path) is no trouble of the others. */
  function turnSafely(replication: Replication): void {
    try {
      turn(replication);
    } catch (error) {
      const object = `Replication/${replication.metadata.name}`;
      report({ code: 'MasterTrouble', level: 'WARNING', message: `its claim: ${messageOf(error)}`, object });
    }
  }

  /** One replication at most of each claim. */
  async function protect(replications: Replication[], create: Create): Promise<void> {
    const mirrored = new Set(replications.flatMap(({ spec }) => (spec.source.pvc ? [keyOf(spec.source.pvc)] : [])));
    for (const cluster of clusters.names()) {
      const view = clusters.view(cluster);
      if (view?.isListed() !== true) continue;
      for (const { claim, problem, replication } of protectedClaims(cluster, view)) {
        const key = keyOf({ ...(cluster === ownCluster ? {} : { cluster }), ...claim });
        if (mirrored.has(key)) continue;
        const answer = problem === undefined ? await create(replication) : undefined;
        const why =
          problem ??
          (answer && answer.status >= 300 ? ((answer.body as { detail?: string }).detail ?? 'refused') : undefined);
        if (why === undefined || told.get(key) === why) continue;
        told.set(key, why);
        report({ code: 'ProtectionRefused', level: 'WARNING', message: `${key}: ${why}`, object: null });
      }
    }
  }

  async function hearNew(signal: AbortSignal): Promise<void> {
    const known = new Set<string>();
    for await (const { uid, deleted } of follow(store, 'Replication', signal)) {
      if (deleted || !known.has(uid)) ring();
      if (deleted) known.delete(uid);
      else known.add(uid);
    }
  }
  /** Each tells where its kubelet's folder is when it connects. */
  async function hearAgents(signal: AbortSignal): Promise<void> {
    const known = new Map<string, string | undefined>();
    for await (const { key } of follow(store, 'Agent', signal)) {
      const folder = options.kubelet(key);
      if (!known.has(key) || known.get(key) !== folder) ring();
      known.set(key, folder);
    }
  }

  function tellClusters(): void {
    for (const name of clusters.names()) {
      const { state, message = '' } = clusters.state(name) ?? {};
      if (state === undefined || state === 'UNKNOWN' || states.get(name) === state) continue;
      states.set(name, state);
      const text = `${clusterText(name === ownCluster ? {} : { cluster: name })}: ${state}, ${message}`;
      report({ code: 'ClusterState', level: state === 'ACTIVE' ? 'INFO' : 'WARNING', message: text, object: null });
    }
    for (const name of states.keys()) if (clusters.state(name) === undefined) states.delete(name);
  }

  return {
    claim(pvc) {
      const view = clusters.view(pvc.cluster ?? ownCluster);
      if (!view?.isListed()) return clusterProblem(pvc);
      const claim = view.claim(pvc.namespace, pvc.name);
      if (!claim)
        return `must name a PersistentVolumeClaim of ${clusterText(pvc)}: there is no ${pvc.namespace}/${pvc.name}`;
      return refusal(claim) ?? { volumeMode: claim.volumeMode };
    },
    trouble: (uid) => troubles.get(uid),
    nodeReady: async (pvc, node) => clusters.view(pvc.cluster ?? ownCluster)?.nodeReady(node),
    cluster({ cluster = ownCluster }) {
      const [api, view] = [clusters.api(cluster), clusters.view(cluster)];
      return api && view && { api, view };
    },
    clusterNames: () => clusters.names(),
    async run(create, signal) {
      const watching = Promise.all([clusters.run(signal), hearNew(signal), hearAgents(signal)]);
      while (!signal.aborted) {
        bell = Promise.withResolvers<void>();
        const done = new AbortController();
        try {
          tellClusters();
          const replications = store.list('Replication');
          for (const replication of replications) turnSafely(replication);
          const uids = new Set(replications.map(({ metadata }) => metadata.uid));
          for (const uid of troubles.keys()) if (!uids.has(uid)) troubles.delete(uid);
          for (const name of clusters.names()) clusters.view(name)?.keepPods(namespacesOf(replications, name));
          await protect(replications, create);
        } catch (error) {
          // The API server does not take the write: asked again.
          report({ code: 'MasterTrouble', level: 'WARNING', message: `claims: ${messageOf(error)}`, object: null });
        }
        const pause = clock.sleep(againMs, AbortSignal.any([signal, done.signal])).catch(() => undefined);
        await Promise.race([bell.promise, pause]);
        done.abort();
        // Not at each of many changes at once.
        await clock.sleep(50, signal).catch(() => undefined);
      }
      await watching;
    },
  };
}

function keyOf({ cluster, namespace, name }: ClaimRef): string {
  return `${cluster ?? ownCluster}:${namespace}/${name}`;
}

function namespacesOf(replications: Replication[], cluster: string): Set<string> {
  const own = replications.flatMap(({ spec: { source } }) =>
    source.pvc && (source.pvc.cluster ?? ownCluster) === cluster ? [source.pvc.namespace] : [],
  );
  return new Set(own);
}
