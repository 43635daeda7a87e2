/**
 * The clusters whose claims may be mirrored: the one that the master runs in, and those that Secrets of its namespace tell of, with
 * the label `<group>/cluster` whose value is the cluster's name. A Secret holds `kubeconfig`, or `server`, `token` and `ca.crt`.
 *
 * Guarantees: a Secret that changes is taken over, one that goes ends its connection. Failure: what is wrong with one is its
 * cluster's state (NO CONN INFO), and nobody else's trouble.
 */
import type { Clock } from '../../proto/effects.ts';
import { messageOf } from '../../proto/errors.ts';
import { connectApi, type Api } from './api.ts';
import { viewCluster, type ClusterState, type ClusterView } from './clusterview.ts';
import { group } from './kinds.ts';
import { listWatch } from './listwatch.ts';
import type { Secret } from './records.ts';

export const clusterLabel = `${group}/cluster`;
/** Of the cluster that the master runs in. */
export const ownCluster = '';

export interface Clusters {
  /** undefined: no such cluster is known, or its Secret is of no use. */
  view(name: string): ClusterView | undefined;
  /** As `view`. */
  api(name: string): Api | undefined;
  names(): string[];
  state(name: string): ClusterState | undefined;
  /** Lists all of a cluster anew. */
  sync(name: string): void;
  /** Follows the Secrets until the signal aborts; then all connections are closed. */
  run(signal: AbortSignal): Promise<void>;
}

interface Member {
  /** Of its Secret. */
  version: string;
  view: ClusterView | undefined;
  api: Api | undefined;
  open: (() => ClusterView) | undefined;
  /** Why there is no view. */
  wrong: string;
}

export interface ClustersOptions {
  /** Of the own cluster. */
  api: Api;
  namespace: string;
  clock: Clock;
  /** Something of some cluster is not as it was. */
  onChange: () => void;
}

export function openClusters({ api, namespace, clock, onChange }: ClustersOptions): Clusters {
  const members = new Map<string, Member>();
  /** By the Secret's name, which is unique. */
  const names = new Map<string, string>();

  function add(name: string, version: string, connect: () => Api): void {
    members.get(name)?.view?.close();
    try {
      const connected = connect();
      const open = (): ClusterView => viewCluster(connected, clock, onChange);
      members.set(name, { version, open, view: open(), api: connected, wrong: '' });
    } catch (error) {
      members.set(name, { version, open: undefined, view: undefined, api: undefined, wrong: messageOf(error) });
    }
    onChange();
  }
  function remove(secret: string): void {
    const name = names.get(secret);
    if (name === undefined) return;
    names.delete(secret);
    members.get(name)?.view?.close();
    members.delete(name);
    onChange();
  }
  function take(secret: Secret): void {
    const { name: secretName, labels, resourceVersion = '' } = secret.metadata;
    const name = labels?.[clusterLabel];
    if (name === undefined || name === ownCluster) return remove(secretName);
    const before = names.get(secretName);
    if (before !== undefined && before !== name) remove(secretName);
    if (members.get(name)?.version === `${secretName}/${resourceVersion}`) return;
    names.set(secretName, name);
    add(name, `${secretName}/${resourceVersion}`, () => connectApi({ inline: kubeconfigOf(secret) }));
  }

  add(ownCluster, '', () => api);
  return {
    view: (name) => members.get(name)?.view,
    api: (name) => members.get(name)?.api,
    names: () => [...members.keys()].sort(),
    state(name) {
      const member = members.get(name);
      if (!member) return undefined;
      if (member.view) return member.view.state();
      return { state: 'NO CONN INFO', sync: 'UNKNOWN', message: member.wrong, lastSyncTime: null };
    },
    sync(name) {
      const member = members.get(name);
      if (!member?.view || !member.open) return;
      member.view.close();
      member.view = member.open();
    },
    async run(signal) {
      const path = `/api/v1/namespaces/${namespace}/secrets?labelSelector=${encodeURIComponent(clusterLabel)}`;
      const heed = {
        listed(items: unknown[]) {
          const present = new Set((items as Secret[]).map(({ metadata }) => metadata.name));
          for (const secret of [...names.keys()]) if (!present.has(secret)) remove(secret);
          for (const item of items) take(item as Secret);
        },
        changed(change: string, object: unknown) {
          if (change === 'DELETED') remove((object as Secret).metadata.name);
          else take(object as Secret);
        },
        line: () => undefined,
      };
      await listWatch(api, path, heed, signal);
      for (const { view } of members.values()) view?.close();
    },
  };
}

/** @throws Error with what is lacking */
export function kubeconfigOf({ data = {} }: Secret): string {
  const text = (key: string): string =>
    Buffer.from(data[key] ?? '', 'base64')
      .toString()
      .trim();
  if (text('kubeconfig') !== '') return text('kubeconfig');
  const server = text('server');
  const token = text('token');
  if (server === '' || token === '')
    throw new Error('the Secret has neither kubeconfig nor server and token (and ca.crt) in its data');
  const authority = data['ca.crt'];
  return JSON.stringify({
    apiVersion: 'v1',
    kind: 'Config',
    clusters: [
      {
        name: 'cluster',
        cluster: { server, ...(authority === undefined ? {} : { 'certificate-authority-data': authority }) },
      },
    ],
    users: [{ name: 'user', user: { token } }],
    contexts: [{ name: 'context', context: { cluster: 'cluster', user: 'user' } }],
    'current-context': 'context',
  });
}
