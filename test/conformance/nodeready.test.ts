/** What a real API server says of nodes, asked with the rights of the manifests. */
import t from 'tap';
import { connectApi } from '../../master/kubernetes/api.ts';
import { viewCluster } from '../../master/kubernetes/clusterview.ts';
import { systemClock } from '../../proto/system.ts';
import { account, installedCluster, namespace } from '../e2e/kubernetesworld.ts';
import { skipKubernetes } from '../kubernetes.ts';

t.test('whether a node is Ready is asked of the API server', { skip: skipKubernetes }, async (t) => {
  const cluster = await installedCluster(t);
  const api = connectApi({ kubeconfig: await cluster.kubeconfigOf(namespace, account) });
  const view = viewCluster(api, systemClock, () => undefined);
  t.teardown(() => view.close());
  t.equal(await view.nodeReady('node-a'), undefined, 'there is no such node');
  cluster.kubectl(
    ['apply', '-f', '-'],
    JSON.stringify({ apiVersion: 'v1', kind: 'Node', metadata: { name: 'node-a' } }),
  );
  t.equal(await view.nodeReady('node-a'), undefined, 'its kubelet has said nothing yet');
  for (const [status, isReady] of [
    ['True', true],
    ['Unknown', false],
    ['True', true],
    ['False', false],
  ] as const) {
    const ready = { type: 'Ready', status, reason: 'Test', message: 'as the kubelet would' };
    const patch = JSON.stringify({ status: { conditions: [ready] } });
    cluster.kubectl(['patch', 'node', 'node-a', '--subresource=status', '--type=merge', '-p', patch]);
    t.equal(await view.nodeReady('node-a'), isReady, `Ready ${status}`);
  }
  await cluster.kill();
  await t.rejects(view.nodeReady('node-a'), 'one that does not answer says nothing of the node');
  await cluster.start();
  t.equal(await view.nodeReady('node-a'), false);
});
