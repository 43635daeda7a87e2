/**
 * Against a real kube-apiserver and etcd. `npm run e2e -- kubernetes` builds them first (test/parts/kubernetes); in
 * `npm test` the short form runs where they are.
 */
import t from 'tap';
import { definition } from '../../master/kubernetes/crd.ts';
import { allKinds } from '../../master/kubernetes/kinds.ts';
import { skipKubernetes, startKubernetes, until } from '../kubernetes.ts';

const group = 'replicator.cdm.datacommand.co.kr';
const api = `/apis/${group}/v1/namespaces/default`;

const replication = (name: string, spec: object = {}, source: object = {}) => ({
  apiVersion: `${group}/v1`,
  kind: 'ReplicationInfo',
  metadata: { name },
  spec: {
    source: { agent: 'node-a', path: '/dev/vdb', volumeMode: 'Block', ...source },
    target: { storageClass: 'local' },
    ...spec,
  },
});

t.test('the definitions', { skip: skipKubernetes }, async (t) => {
  const cluster = await startKubernetes();
  t.teardown(() => cluster.close());
  const crds = '/apis/apiextensions.k8s.io/v1/customresourcedefinitions';
  for (const kind of allKinds) {
    const wanted = definition(kind) as { metadata: { name: string } };
    const { status, body } = await cluster.request('POST', crds, wanted);
    t.equal(status, 201, `${kind}: ${JSON.stringify(body['message'] ?? 'taken')}`);
    const conditions = async (): Promise<{ type: string; status: string; message: string }[]> => {
      const found = await cluster.request('GET', `${crds}/${wanted.metadata.name}`);
      return (found.body['status'] as { conditions?: never[] } | undefined)?.conditions ?? [];
    };
    await until(async () =>
      (await conditions()).some(({ type, status }) => type === 'Established' && status === 'True'),
    );
    const bad = (await conditions()).filter(({ type, status }) => type === 'NonStructuralSchema' && status === 'True');
    t.same(bad, [], `${kind} is structural`);
  }
  const url = `${api}/replicationinfoes`;
  await until(async () => (await cluster.request('GET', url)).status === 200);

  await t.test('fills in what the REST API fills in', async (t) => {
    const { status, body } = await cluster.request('POST', url, replication('orders'));
    t.equal(status, 201, JSON.stringify(body['message']));
    t.match(body['spec'], {
      trigger: { continuous: true },
      replicationState: 'primary',
      rpoSeconds: 30,
      journalSeconds: 3600,
      compression: 'auto',
      snapshotSchedules: [],
      source: { include: [], exclude: [] },
    });
  });

  await t.test('refuses what the REST API refuses, with a reason', async (t) => {
    const refused = async (reason: RegExp, object: object): Promise<void> => {
      const { status, body } = await cluster.request('POST', url, object);
      t.equal(status, 422, `${String(reason)}: ${JSON.stringify(body['message'] ?? body['spec'])}`);
      t.match(body['message'], reason);
    };
    await refused(/metadata.name must be/, replication('a.b'));
    await refused(/without "\." and "\.\."/, replication('a', {}, { path: '/data/../etc' }));
    await refused(/spec.source.path/, replication('a', {}, { path: 'data' }));
    await refused(/spec.source.path/, replication('a', {}, { path: '/data/' }));
    await refused(/include and source.exclude/, replication('a', {}, { include: ['*.log'] }));
    await refused(/consistency must be/, replication('a', { consistency: 'file' }));
    await refused(/consistency/, replication('a', { consistency: 'best' }));
    await refused(/cron expression/, replication('a', { trigger: { schedule: 'daily' } }));
    await refused(
      /at most 1 items|must have at most/,
      replication('a', { trigger: { manual: 'a', continuous: true } }),
    );
    await refused(
      /one schedule of each period/,
      replication('a', { snapshotSchedules: [1, 2].map((every) => ({ period: 'hour', every, retain: 3 })) }),
    );
    await refused(/storageClass/, replication('a', { target: {} }));
    await refused(/rpoSeconds/, replication('a', { rpoSeconds: 0 }));
    const snapshot = {
      apiVersion: `${group}/v1`,
      kind: 'ReplicationSnapshot',
      metadata: { name: 'before' },
      spec: { replication: 'orders' },
    };
    const { status, body } = await cluster.request('POST', `${api}/replicationsnapshots`, snapshot);
    t.match([status, body['message']], [422, /orders\.before-upgrade/]);
    const good = { ...snapshot, metadata: { name: 'orders.before' } };
    t.equal((await cluster.request('POST', `${api}/replicationsnapshots`, good)).status, 201);
  });

  await t.test('keeps what may not change, and locks as long as they are', async (t) => {
    const patch = (path: string, body: object) => cluster.request('PATCH', `${api}/${path}`, body);
    const moved = await patch('replicationinfoes/orders', { spec: { source: { path: '/dev/vdc' } } });
    t.match([moved.status, moved.body['message']], [422, /source.path cannot be changed/]);
    t.equal((await patch('replicationinfoes/orders', { spec: { rpoSeconds: 60, consistency: 'crash' } })).status, 200);
    const cleared = await patch('replicationinfoes/orders', { spec: { consistency: null } });
    t.equal(cleared.status, 200, 'null takes away what may be unknown');
    const lock = (time: string | null) => patch('replicationsnapshots/orders.before', { spec: { lockedUntil: time } });
    t.equal((await lock('2099-01-01T00:00:00.000Z')).status, 200);
    t.match((await lock('2098-01-01T00:00:00.000Z')).body['message'], /longer, never shorter/);
    t.match((await lock(null)).body['message'], /longer, never shorter/);
    t.equal((await lock('2099-06-01T00:00:00.000Z')).status, 200);
  });

  await t.test('status is a subresource, and the columns show it', async (t) => {
    const path = `${url}/orders`;
    const before = await cluster.request('GET', path);
    const written = await cluster.request('PUT', path, { ...before.body, status: { state: 'NORMAL' } });
    t.notOk('status' in written.body, 'it is not written with the object');
    const status = { state: 'NORMAL', phase: 'Mirroring', lastSyncTime: '2026-11-20T00:00:00.000Z' };
    const put = await cluster.request('PUT', `${path}/status`, { ...written.body, status });
    t.equal(put.status, 200, JSON.stringify(put.body['message']));
    t.same((put.body['metadata'] as { generation: number }).generation, 3, 'status leaves generation');
    const table = cluster.kubectl(['get', 'ri', 'orders']);
    t.match(table, /NAME\s+STATE\s+PHASE\s+CLASS\s+LAST SYNC\s+AGE/);
    t.match(table, /orders\s+NORMAL\s+Mirroring\s+local/);
    t.match(cluster.kubectl(['explain', 'replicationinfoes.spec.maxFreezeMs']), /maxFreezeMs/);
  });
});
