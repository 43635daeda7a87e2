/**
 * Sources that are named by PersistentVolumeClaim, against a real kube-apiserver and kube-controller-manager (which binds claims and
 * volumes): found, followed from node to node, and why not. There is no kubelet: nodevolumes.ts does with real mounts what it
 * and a CSI driver would do. The master has exactly the rights of the manifests.
 */
import t from 'tap';
import { spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { removeInstance } from '../../agent/capture/tracefs.ts';
import { traceInstance } from '../../agent/trackings.ts';
import { group } from '../../master/kubernetes/kinds.ts';
import type { Replication } from '../../master/resources.ts';
import { skipKubernetes, until } from '../kubernetes.ts';
import { loopDevice, missingForLoop, run } from '../loop.ts';
import { noise } from './content.ts';
import { account, manifests, namespace, openKubernetesWorld } from './kubernetesworld.ts';
import { defineClaim, definePersistentVolume, startPod, type VolumeOfNode } from './nodevolumes.ts';
import { program } from './program.ts';

t.test('sources by claim', { skip: skipKubernetes || missingForLoop('ext4') }, async (suite) => {
  const t = suite;
  const { cluster, world } = await openKubernetesWorld(t, {}, { controllers: true });
  const nodes = ['node-a', 'node-b'].map((name) => ({ name, kubelet: join(world.dir, `kubelet-${name}`) }));
  const [nodeA, nodeB] = nodes;
  if (!nodeA || !nodeB) throw new Error('two nodes were made');
  for (const { name, kubelet } of nodes) {
    mkdirSync(kubelet);
    const node = { apiVersion: 'v1', kind: 'Node', metadata: { name } };
    cluster.kubectl(['apply', '-f', '-'], JSON.stringify(node));
  }
  world.agentFlags.push('--kubelet', nodeA.kubelet);
  await world.startAgent();
  const { grpc } = JSON.parse(readFileSync(join(world.masterDir, 'endpoints.json'), 'utf8')) as { grpc: string };
  const secondData = join(world.dir, 'b');
  const second = program(
    'replicator-agent',
    () => [
      ...['--name', 'node-b', '--master', grpc, '--data', secondData, '--kubelet', nodeB.kubelet],
      ...['--join-token-file', join(world.masterDir, 'join.token'), '--ca-file', join(world.masterDir, 'ca.pem')],
    ],
    join(world.dir, 'agent-b.log'),
  );
  t.teardown(async () => {
    await second.kill();
    removeInstance(traceInstance(secondData));
  });
  cluster.kubectl(['create', 'namespace', 'shop']);

  const apply = (name: string, pvc: object, spec: object = {}) =>
    cluster.kubectl(
      ['apply', '-f', '-'],
      JSON.stringify({
        apiVersion: `${group}/v1`,
        kind: 'ReplicationInfo',
        metadata: { name },
        spec: { source: { pvc }, target: { storageClass: 'local' }, rpoSeconds: 2, ...spec },
      }),
    );
  const read = (name: string): Partial<Replication> =>
    JSON.parse(cluster.kubectl(['get', 'ri', name, '-o', 'json'])) as Partial<Replication>;
  const degraded = async (name: string, reason: string): Promise<Replication> => {
    // What people made is an object once it was taken on.
    await world.until(`${name} is there`, async () => world.get(name).catch(() => false as const), 30);
    return world.degraded(name, reason, 60);
  };
  const sameTree = (one: string, other: string): string =>
    spawnSync('diff', ['-r', '--exclude=lost+found', one, other], { encoding: 'utf8' }).stdout;
  const claimed = (claim: string, mode: 'Filesystem' | 'Block'): VolumeOfNode => {
    const { device } = loopDevice(suite, 64);
    run('mkfs.ext4', '-q', device);
    return { claim, volume: `pv-${claim}`, mode, device };
  };
  const data = claimed('data', 'Filesystem');

  await t.test('a claim that is not there, or not bound, is told', async (t) => {
    apply('orders', { namespace: 'shop', name: 'data' });
    await until(() => /there is no shop\/data/.test(JSON.stringify(read('orders').status ?? {})));
    defineClaim(cluster, 'shop', 'data', 'Filesystem');
    const { spec, status } = await degraded('orders', 'ClaimUnbound');
    t.match(spec.source, { agent: '', path: '', volumeMode: 'Filesystem' });
    t.equal(status.state, 'FAILED', 'there is no copy yet');
    definePersistentVolume(cluster, 'shop', data);
    cluster.kubectl(['wait', '--for=jsonpath={.status.phase}=Bound', 'pvc/data', '-n', 'shop', '--timeout=120s']);
  });

  let pod = startPod(suite, cluster, 'shop', 'app-1', nodeA, data);
  writeFileSync(join(pod.path, 'first'), noise(300_000));
  await t.test('its pod runs: it is mirrored from there', async (t) => {
    const { spec, status } = await world.normal('orders', Date.now());
    t.match(spec.source, { agent: 'node-a', path: pod.path, pvc: { namespace: 'shop', name: 'data' } });
    t.equal(status.fencingGeneration, '1', 'nobody read it before');
    const { path } = await world.copyOf('orders');
    t.equal(sameTree(pod.path, path), '');
  });

  await t.test('the pod starts anew on the same node: another path, the same generation', async (t) => {
    pod.stop();
    t.equal((await degraded('orders', 'ClaimNotMounted')).status.state, 'ERROR', 'the copy is there, and grows old');
    pod = startPod(suite, cluster, 'shop', 'app-2', nodeA, data);
    writeFileSync(join(pod.path, 'second'), noise(300_000));
    const { spec, status } = await world.normal('orders', Date.now());
    t.match([spec.source.path, status.fencingGeneration], [pod.path, '1']);
  });

  await t.test('the pod goes to a node without an agent, which is installed then: it is followed', async (t) => {
    const before = await world.points('orders');
    writeFileSync(join(pod.path, 'last words'), 'written just before it went');
    pod.stop();
    pod = startPod(suite, cluster, 'shop', 'app-3', nodeB, data);
    await degraded('orders', 'NoAgent');
    second.start();
    writeFileSync(join(pod.path, 'third'), noise(300_000));
    const { spec, status } = await world.normal('orders', Date.now());
    t.match(spec.source, { agent: 'node-b', path: pod.path });
    t.equal(status.fencingGeneration, '2', 'the agent before may not write any more');
    const { path } = await world.copyOf('orders');
    t.equal(sameTree(pod.path, path), '');
    const now = new Map((await world.points('orders')).map(({ sequence, digest }) => [sequence, digest]));
    for (const { sequence, digest } of before.slice(-2))
      t.equal(now.get(sequence), digest, `point ${sequence} is kept`);
    const moves = (await world.events()).filter(({ code }) => code === 'SourceMoved');
    t.ok(moves.length >= 3, 'each move is told');
  });

  await t.test('a change over REST leaves the place alone; what does not fit is refused', async (t) => {
    const { status, body } = await cluster.request(
      'PATCH',
      `/apis/${group}/v1/namespaces/${namespace}/replicationinfoes/orders`,
      { spec: { source: { pvc: { name: 'other' } } } },
    );
    t.match([status, body['message']], [422, /source.pvc cannot be changed/]);
    const changed = await world.client.send<Replication>('PATCH', '/replications/orders', {
      spec: { rpoSeconds: 3, source: { agent: 'node-x', path: '/elsewhere' } },
    });
    t.match(changed.spec, { rpoSeconds: 3, source: { agent: 'node-b', path: pod.path } });
    defineClaim(cluster, 'shop', 'shared', 'Filesystem', { accessMode: 'ReadWriteMany' });
    const refused = async (pvc: object, more: object = {}) =>
      world.client
        .send('POST', '/replications', {
          metadata: { name: 'no' },
          spec: { source: { pvc, ...more }, target: { storageClass: 'local' } },
        })
        .then(
          () => 'taken',
          (error: unknown) => JSON.stringify(error) + String(error),
        );
    await until(async () => !/there is no shop/.test(await refused({ namespace: 'shop', name: 'shared' })));
    t.match(await refused({ namespace: 'shop', name: 'shared' }), /ReadWriteMany: only ReadWriteOnce/);
    t.match(await refused({ namespace: 'shop', name: 'none' }), /there is no shop\/none/);
    t.match(await refused({ cluster: 'mars', namespace: 'shop', name: 'data' }), /there is no cluster mars/);
    t.match(await refused({ namespace: 'shop', name: 'data' }, { volumeMode: 'Block' }), /must be Filesystem/);
  });

  await t.test('a claim with the annotation, of another cluster that a Secret tells of, is protected', async (t) => {
    // The same API server by another way in: what counts is that all goes by the Secret and the reader's rights.
    cluster.kubectl(['apply', '-f', join(manifests, 'source-cluster.yaml')]);
    const token = await nonEmpty(() =>
      cluster.kubectl(['get', 'secret', 'replication-source-reader', '-n', namespace, '-o', 'jsonpath={.data.token}']),
    );
    const secret = {
      apiVersion: 'v1',
      kind: 'Secret',
      metadata: { name: 'cluster-prod', labels: { [`${group}/cluster`]: 'prod' } },
      data: { token, 'ca.crt': readFileSync(cluster.caFile).toString('base64') },
      stringData: { server: cluster.url },
    };
    const raw = claimed('raw', 'Block');
    defineClaim(cluster, 'shop', 'raw', 'Block');
    definePersistentVolume(cluster, 'shop', raw);
    startPod(suite, cluster, 'shop', 'database-1', nodeA, raw);
    cluster.kubectl(['apply', '-f', '-'], JSON.stringify(secret));
    await until(async () => {
      apply('raw', { cluster: 'prod', namespace: 'shop', name: 'raw' });
      return /agent/.test(JSON.stringify(read('raw').spec?.source));
    });
    const { spec } = await world.normal('raw', Date.now());
    t.match(spec.source, { agent: 'node-a', volumeMode: 'Block', pvc: { cluster: 'prod' } });
    const told = async (text: RegExp) =>
      world.until(String(text), async () =>
        (await world.events()).some(({ code, message }) => code === 'ClusterState' && text.test(message)),
      );
    await told(/^cluster prod: ACTIVE/);
    const wrong = { metadata: { name: 'cluster-moon', labels: { [`${group}/cluster`]: 'moon' } } };
    cluster.kubectl(['apply', '-f', '-'], JSON.stringify({ apiVersion: 'v1', kind: 'Secret', ...wrong }));
    await told(/^cluster moon: NO CONN INFO, .*neither kubeconfig nor server/);
    cluster.kubectl(['delete', 'secret', 'cluster-prod']);
    await degraded('raw', 'ClusterUnknown');
    t.match((await world.get('raw')).spec.source.agent, 'node-a', 'its last place stands');
    cluster.kubectl(['delete', 'ri', 'raw', '--timeout=60s']);

    cluster.kubectl(['annotate', 'pvc', 'raw', '-n', 'shop', `${group}/protect=true`, `${group}/rpo-seconds=4`]);
    const protectedOne = async (): Promise<Replication | undefined> => {
      const { items } = await world.client.list<Replication>('/replications');
      return items.find(({ metadata }) => metadata.labels?.[`${group}/protected`] === 'true');
    };
    const made = await world.until('it is made', protectedOne);
    t.match(made.spec, { rpoSeconds: 4, source: { pvc: { namespace: 'shop', name: 'raw' } } });
    await world.normal(made.metadata.name, Date.now());
    t.equal((await world.client.list<Replication>('/replications')).items.length, 2, 'one for the claim');
  });

  await t.test('the rights in the manifests are used, each of them', async (t) => {
    t.equal(await world.master.stop(), 0, world.master.logEnd());
    await until(() => cluster.rightsUsed(namespace, account).some((right) => right === 'watch /pods'));
    const granted = cluster.rightsOf('clusterrole', 'replication-source-reader');
    const used = cluster.rightsUsed(namespace, account);
    // A node that shares the loopback with its witness is never asked for: failovers by policy have a test of their own.
    const unused = granted.filter((right) => !used.includes(right) && right !== 'get /nodes');
    t.same(unused, []);
  });
});

/** What is there once it is not empty. */
async function nonEmpty(probe: () => string): Promise<string> {
  let found = '';
  await until(() => (found = probe()) !== '');
  return found;
}
