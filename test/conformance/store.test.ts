import t from 'tap';
import { randomBytes } from 'node:crypto';
import { openDatabase } from '../../master/database.ts';
import { openKubernetesStore } from '../../master/kubernetes/store.ts';
import { sqliteStore } from '../../master/store-sqlite.ts';
import { skipKubernetes, startKubernetes } from '../kubernetes.ts';
import { storeSuite } from './store.ts';

storeSuite(t, 'SQLite', async () =>
  sqliteStore(openDatabase(':memory:'), {
    clock: { nowMs: () => Date.now() },
    random: { bytes: (length) => randomBytes(length) },
  }),
);

if (skipKubernetes) t.test('Kubernetes', { skip: skipKubernetes }, async () => undefined);
else {
  const cluster = await startKubernetes();
  t.teardown(() => cluster.close());
  await cluster.install();
  let spaces = 0;
  storeSuite(t, 'Kubernetes', async () => {
    const namespace = `store-${++spaces}`;
    await cluster.request('POST', '/api/v1/namespaces', { metadata: { name: namespace } });
    return openKubernetesStore({
      cluster: { kubeconfig: cluster.kubeconfig },
      namespace,
      onFailure: (error) => t.fail(String(error)),
    });
  });
}
