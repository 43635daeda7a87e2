/** `kubectl delete -k` of the manifests, against a real API server: the programs go, what holds data stays. */
import t from 'tap';
import { allKinds, group, named } from '../../master/kubernetes/kinds.ts';
import { skipKubernetes, until } from '../kubernetes.ts';
import { installedCluster, manifests, namespace } from './kubernetesworld.ts';

t.test('removal leaves data', { skip: skipKubernetes }, async (t) => {
  const cluster = await installedCluster(t);
  const source = { agent: 'a', path: '/dev/vdb' };
  cluster.apply('ReplicationInfo', 'orders', { source, target: { storageClass: 'local' } });
  const refusal = (argv: string[]): string => {
    try {
      cluster.kubectl(argv);
      return 'done';
    } catch (error) {
      return String(error);
    }
  };
  // The API server begins to heed a policy a moment after it was made.
  const dry = ['delete', 'pvc', 'cdm-replicator-master-pv', '--dry-run=server'];
  await until(() => /holds data and stays/.test(refusal(dry)));

  const told = refusal(['delete', '-k', manifests, '--wait=false']);
  t.match(told, /cdm-replicator holds data and stays; .*annotate it first/);
  t.match(told, /cdm-replicator-master-pv holds data and stays/);
  t.match(told, /replicationinfoes\.\S+ holds data and stays/);
  t.notMatch(
    cluster.kubectl(['get', 'deployment,service,role,pdb', '-o', 'name']),
    /cdm-replicator-master/,
    'programs go',
  );
  const left = (kind: string, name: string): Record<string, unknown> =>
    (JSON.parse(cluster.kubectl(['get', kind, name, '-o', 'json'])) as { metadata: Record<string, unknown> }).metadata;
  for (const [kind, name] of [
    ['namespace', namespace],
    ['pvc', 'cdm-replicator-master-pv'],
    ['ri', 'orders'],
    ...allKinds.map((one) => ['crd', `${named(one).plural}.${group}`]),
  ] as [string, string][])
    t.equal(left(kind, name)['deletionTimestamp'], undefined, `${kind}/${name} is not on its way out`);

  cluster.kubectl(['apply', '-k', manifests]);
  await until(() => /holds data and stays/.test(refusal(dry)));
  cluster.kubectl(['annotate', 'pvc', 'cdm-replicator-master-pv', `${group}/removable=true`]);
  t.equal(refusal(['delete', 'pvc', 'cdm-replicator-master-pv', '--wait=false']), 'done', 'who says so may');
  cluster.kubectl(['create', 'namespace', 'others']);
  t.equal(refusal(['delete', 'namespace', 'others', '--wait=false']), 'done', "others' are not our matter");
});
