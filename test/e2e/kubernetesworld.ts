/** A real API server with the manifests applied, and a master and agents that live in it with exactly the rights of those. */
import type { Test } from 'tap';
import { allKinds, group, named } from '../../master/kubernetes/kinds.ts';
import { startKubernetes, type ClusterOptions, type TestCluster } from '../kubernetes.ts';
import { openWorld, type World, type WorldOptions } from './world.ts';

export const namespace = 'cdm-replicator';
export const account = 'replication-info-operator';
export const manifests = new URL('../../master/manifests', import.meta.url).pathname;

export interface AnyObject {
  metadata: Record<string, unknown>;
  spec: never;
  status?: Record<string, unknown>;
}

export interface InstalledCluster extends TestCluster {
  apply: (kind: string, name: string, spec: object) => void;
  read: (kind: string, name: string) => AnyObject;
  /** Of a Role or ClusterRole, as `verb group/resource`. */
  rightsOf(kind: 'role' | 'clusterrole', name: string): string[];
}

export async function installedCluster(
  t: Pick<Test, 'teardown'>,
  options: ClusterOptions = {},
): Promise<InstalledCluster> {
  const cluster = await startKubernetes({ namespace, ...options });
  t.teardown(() => cluster.close());
  cluster.kubectl(['apply', '-k', manifests]);
  for (const kind of allKinds)
    cluster.kubectl(['wait', '--for=condition=Established', `crd/${named(kind).plural}.${group}`, '--timeout=60s']);
  return {
    ...cluster,
    apply(kind, name, spec) {
      const object = { apiVersion: `${group}/v1`, kind, metadata: { name }, spec };
      cluster.kubectl(['apply', '-f', '-'], JSON.stringify(object));
    },
    read: (kind, name) => JSON.parse(cluster.kubectl(['get', kind, name, '-o', 'json'])) as AnyObject,
    rightsOf(kind, name) {
      const role = JSON.parse(cluster.kubectl(['get', kind, name, '-o', 'json'])) as {
        rules: { apiGroups: string[]; resources: string[]; verbs: string[] }[];
      };
      return role.rules.flatMap(({ apiGroups, resources, verbs }) =>
        resources.flatMap((resource) => verbs.map((verb) => `${verb} ${apiGroups[0]}/${resource}`)),
      );
    },
  };
}

export async function openKubernetesWorld(
  t: Pick<Test, 'teardown'>,
  { masterFlags = [], ...more }: WorldOptions = {},
  options: ClusterOptions = {},
): Promise<{ cluster: InstalledCluster; world: World }> {
  const cluster = await installedCluster(t, options);
  const kubeconfig = await cluster.kubeconfigOf(namespace, account);
  const flags = ['--kubernetes', namespace, '--kubeconfig', kubeconfig, ...masterFlags];
  return { cluster, world: await openWorld(t, { ...more, masterFlags: flags }) };
}
