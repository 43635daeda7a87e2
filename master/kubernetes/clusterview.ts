/**
 * What a cluster whose claims may be mirrored has: claims and namespaces of all of it, pods of those namespaces that are asked
 * for, volumes by name. Fed by watches and listed anew every 30 minutes.
 *
 * Guarantees: reads only. Failure: while the API server does not answer, what was seen last stands, and `state` says so; who asks
 * before the first list is whole is told that nothing is known.
 */
import type { Clock } from '../../proto/effects.ts';
import { messageOf } from '../../proto/errors.ts';
import { ApiFault, type Api } from './api.ts';
import { claimOf, podFacts, volumeOf, type Claim, type PlaceFacts, type Pod } from './claimplace.ts';
import { listWatch } from './listwatch.ts';

export interface ClusterState {
  /** The manual's words. */
  state: 'ACTIVE' | 'CONN FAILED' | 'WARNING' | 'NO CONN INFO' | 'UNKNOWN';
  sync: 'SYNCHRONIZED' | 'SYNCHRONIZING' | 'FAILED' | 'UNKNOWN';
  message: string;
  lastSyncTime: string | null;
}

export interface Namespace {
  name: string;
  labels: Record<string, string>;
  annotations: Record<string, string>;
}

export interface ClusterView {
  state(): ClusterState;
  /** Claims and namespaces are known. */
  isListed(): boolean;
  claim(namespace: string, name: string): Claim | undefined;
  claims(): Iterable<Claim>;
  namespace(name: string): Namespace | undefined;
  /** From the first question on they are watched; undefined: not known yet. */
  pods(namespace: string): Pod[] | undefined;
  /** undefined: asked for, not known yet. */
  volume(name: string): PlaceFacts['volume'];
  /** As the API server says it now; undefined: it has no such node. @throws Error when it does not answer */
  nodeReady(name: string): Promise<boolean | undefined>;
  /** Pods of no other namespaces need be watched. */
  keepPods(namespaces: ReadonlySet<string>): void;
  close(): void;
}

export const resyncMs = 30 * 60_000;
const againMs = 10_000;

interface Watched<T> {
  items: Map<string, T>;
  isListed: boolean;
  trouble: string | undefined;
  stop: AbortController;
}

interface Named {
  metadata: { name: string; namespace?: string };
}

export function viewCluster(api: Api, clock: Clock, onChange: () => void): ClusterView {
  const closing = new AbortController();
  const volumes = new Map<string, { found: PlaceFacts['volume']; againMs: number }>();
  const podsOf = new Map<string, Watched<Pod>>();
  let lastListMs: number | undefined;

  function watched<T>(path: string, read: (object: unknown) => T): Watched<T> {
    const stop = new AbortController();
    const watch: Watched<T> = { items: new Map(), isListed: false, trouble: undefined, stop };
    const keyOf = (object: unknown): string => {
      const { name, namespace = '' } = (object as Named).metadata;
      return `${namespace}/${name}`;
    };
    const heed = {
      listed(items: unknown[]) {
        watch.items = new Map(items.map((item) => [keyOf(item), read(item)]));
        watch.isListed = true;
        lastListMs = clock.nowMs();
        onChange();
      },
      changed(change: string, object: unknown) {
        if (change === 'DELETED') watch.items.delete(keyOf(object));
        else watch.items.set(keyOf(object), read(object));
        onChange();
      },
      line(trouble: string | undefined) {
        if (watch.trouble === trouble) return;
        watch.trouble = trouble;
        onChange();
      },
    };
    void listWatch(api, path, heed, AbortSignal.any([closing.signal, stop.signal]), resyncMs);
    return watch;
  }

  const claims = watched('/api/v1/persistentvolumeclaims', claimOf);
  const namespaces = watched('/api/v1/namespaces', (object): Namespace => {
    const { metadata } = object as Named & { metadata: Partial<Namespace> };
    return { name: metadata.name, labels: metadata.labels ?? {}, annotations: metadata.annotations ?? {} };
  });

  async function ask(name: string): Promise<void> {
    const path = `/api/v1/persistentvolumes/${encodeURIComponent(name)}`;
    try {
      const found = volumeOf(await api.request('GET', path, undefined, closing.signal));
      volumes.set(name, { found, againMs: Infinity });
    } catch (error) {
      const isAbsent = error instanceof ApiFault && error.status === 404;
      const found = isAbsent ? 'absent' : { trouble: messageOf(error) };
      volumes.set(name, { found, againMs: clock.monotonicMs() + againMs });
    }
    onChange();
  }

  return {
    state() {
      const all = [claims, namespaces, ...podsOf.values()];
      const trouble = all.find((one) => one.trouble !== undefined)?.trouble;
      const isListed = all.every((one) => one.isListed);
      const lastSyncTime = lastListMs === undefined ? null : new Date(lastListMs).toISOString();
      if (trouble !== undefined) {
        // It answers, and refuses: rights, most often.
        const state = /forbidden|Unauthorized/i.test(trouble) ? 'WARNING' : 'CONN FAILED';
        return { state, sync: 'FAILED', message: trouble, lastSyncTime };
      }
      if (!isListed) {
        const state = lastListMs === undefined ? 'UNKNOWN' : 'ACTIVE';
        return { state, sync: 'SYNCHRONIZING', message: 'being listed', lastSyncTime };
      }
      return { state: 'ACTIVE', sync: 'SYNCHRONIZED', message: 'watched', lastSyncTime };
    },
    isListed: () => claims.isListed && namespaces.isListed,
    claim: (namespace, name) => claims.items.get(`${namespace}/${name}`),
    claims: () => claims.items.values(),
    namespace: (name) => namespaces.items.get(`/${name}`),
    pods(namespace) {
      let watch = podsOf.get(namespace);
      if (!watch) {
        watch = watched(`/api/v1/namespaces/${encodeURIComponent(namespace)}/pods`, podFacts);
        podsOf.set(namespace, watch);
      }
      return watch.isListed ? [...watch.items.values()] : undefined;
    },
    volume(name) {
      const known = volumes.get(name);
      if (known && clock.monotonicMs() < known.againMs) return known.found;
      volumes.set(name, { found: known?.found, againMs: clock.monotonicMs() + againMs });
      void ask(name);
      return known?.found;
    },
    async nodeReady(name) {
      try {
        const path = `/api/v1/nodes/${encodeURIComponent(name)}`;
        return readyOf(await api.request('GET', path, undefined, closing.signal));
      } catch (error) {
        if (error instanceof ApiFault && error.status === 404) return undefined;
        throw error;
      }
    },
    keepPods(wanted) {
      for (const [namespace, watch] of podsOf) {
        if (wanted.has(namespace)) continue;
        watch.stop.abort();
        podsOf.delete(namespace);
      }
    },
    close() {
      closing.abort();
    },
  };
}

/** A node of which the kubelet has not been heard for a while is Ready: Unknown. undefined: nobody has said so far. */
export function readyOf(node: unknown): boolean | undefined {
  const { status } = node as { status?: { conditions?: { type: string; status: string }[] } };
  const ready = status?.conditions?.find(({ type }) => type === 'Ready');
  return ready && ready.status === 'True';
}
