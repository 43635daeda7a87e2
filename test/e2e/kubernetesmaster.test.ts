/**
 * A real master and a real agent whose objects are resources of a real kube-apiserver: everything by kubectl, and what REST
 * then shows. Beside it what goes wrong there: an API server that is killed, history that is gone, people who write at
 * the same time, a leader that is killed.
 */
import t from 'tap';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { group } from '../../master/kubernetes/kinds.ts';
import type { Recovery, Replication, Snapshot } from '../../master/resources.ts';
import { skipKubernetes, until } from '../kubernetes.ts';
import { sameBytes, writeNoise } from './content.ts';
import { account, namespace, openKubernetesWorld } from './kubernetesworld.ts';

t.test('by kubectl alone', { skip: skipKubernetes }, async (t) => {
  const { cluster, world } = await openKubernetesWorld(t);
  await world.startAgent();
  const { apply, read } = cluster;
  const gone = (kind: string, name: string) =>
    until(() => !cluster.kubectl(['get', kind, '-o', 'name']).includes(`/${name}\n`));
  const source = join(world.sources, 'image');
  writeNoise(source, 8 << 20);

  await t.test('a ReplicationInfo becomes NORMAL and is the same object over REST', async (t) => {
    apply('ReplicationInfo', 'orders', {
      source: { agent: 'node-a', path: source, volumeMode: 'Block' },
      target: { storageClass: 'local' },
      rpoSeconds: 2,
    });
    cluster.kubectl(['wait', '--for=jsonpath={.status.state}=NORMAL', 'ri/orders', '--timeout=90s']);
    const resource = read('ri', 'orders');
    const rest = await world.client.get<Replication>('/replications/orders');
    t.equal(rest.metadata.uid, resource.metadata['uid'], 'one object, two faces');
    t.match(resource.status, { state: 'NORMAL', phase: 'Mirroring', observedGeneration: 1 });
    t.match(resource.status?.['conditions'], [{ type: 'Reconciled' }]);
    t.match(cluster.kubectl(['get', 'ri']), /orders\s+NORMAL\s+Mirroring\s+local/);
    t.match(cluster.kubectl(['get', 'ragent', 'node-a']), /node-a\s+ACTIVE\s+source/);
  });

  await t.test('made over REST it is a resource, changed there it is changed for kubectl', async (t) => {
    await world.replicate('other', source, { rpoSeconds: 5 });
    t.match(read('ri', 'other').spec, { rpoSeconds: 5, target: { storageClass: 'local' } });
    cluster.kubectl(['patch', 'ri', 'other', '--type=merge', '-p', '{"spec":{"rpoSeconds":7}}']);
    await world.until('REST shows it', async () => (await world.get('other')).spec.rpoSeconds === 7);
    await world.client.send('PATCH', '/replications/other', { spec: { rpoSeconds: 9 } });
    t.match(read('ri', 'other').spec, { rpoSeconds: 9 });
    cluster.kubectl(['delete', 'ri', 'other', '--timeout=60s']);
    const { items } = await world.client.list<Replication>('/replications');
    t.same(
      items.map(({ metadata }) => metadata.name),
      ['orders'],
      'deleted by kubectl it is gone over REST',
    );
  });

  await t.test('a snapshot is made, locked snapshots outlive a deletion', async (t) => {
    apply('ReplicationSnapshot', 'orders.first', { replication: 'orders' });
    cluster.kubectl(['wait', '--for=jsonpath={.status.state}=Ready', 'rsnap/orders.first', '--timeout=60s']);
    const { items } = await world.client.list<Snapshot>('/replications/orders/snapshots');
    t.match(items, [{ metadata: { name: 'first' }, status: { state: 'Ready' } }]);
    cluster.kubectl(['patch', 'rsnap', 'orders.first', '--type=merge', '-p', '{"spec":{"pinned":true}}']);
    cluster.kubectl(['delete', 'rsnap', 'orders.first', '--wait=false']);
    await until(() => /is pinned/.test(cluster.kubectl(['get', 'events', '-o', 'wide'])));
    t.match(read('rsnap', 'orders.first').status, { state: 'Ready' }, 'it stays, and an Event says why');
    cluster.kubectl(['patch', 'rsnap', 'orders.first', '--type=merge', '-p', '{"spec":{"pinned":false}}']);
    await gone('rsnap', 'orders.first');
  });

  await t.test('a drill gives a copy equal to the source, and is rolled back by annotation', async (t) => {
    apply('ReplicationRecovery', 'try', { replication: 'orders', type: 'drill' });
    cluster.kubectl(['wait', '--for=jsonpath={.status.state}=Completed', 'rrec/try', '--timeout=90s']);
    const { status } = read('rrec', 'try') as unknown as Recovery;
    t.match(status, { outcome: 'success', verified: true });
    t.ok(sameBytes(source, status.tasks[0]?.path ?? ''));
    cluster.kubectl(['annotate', 'rrec', 'try', `${group}/action=rollback`]);
    cluster.kubectl(['wait', '--for=jsonpath={.status.state}=RolledBack', 'rrec/try', '--timeout=60s']);
    cluster.kubectl(['delete', 'rrec', 'try', '--timeout=60s']);
  });

  await t.test('what cannot be taken on says why, and is when that is cured', async (t) => {
    apply('ReplicationInfo', 'early', {
      source: { agent: 'node-a', path: source, volumeMode: 'Block' },
      target: { storageClass: 'later' },
    });
    await until(() => /must name a storage class/.test(JSON.stringify(read('ri', 'early').status ?? {})));
    const { items } = await world.client.list<Replication>('/replications');
    t.equal(items.length, 1, 'it is no replication yet');
    apply('ReplicationStorageClass', 'later', { driver: 'directory', parameters: { path: join(world.dir, 'later') } });
    cluster.kubectl(['wait', '--for=jsonpath={.status.state}=NORMAL', 'ri/early', '--timeout=90s']);
    cluster.kubectl(['delete', 'rsc', 'later', '--wait=false']);
    await until(() => /is used by Replication\/early/.test(cluster.kubectl(['get', 'events', '-o', 'wide'])));
    cluster.kubectl(['delete', 'ri', 'early', '--timeout=60s']);
    await gone('rsc', 'later');
  });

  await t.test('a new manual tag is one sync; an action that is refused is told', async (t) => {
    const before = await world.get('orders');
    cluster.kubectl([
      'patch',
      'ri',
      'orders',
      '--type=merge',
      '-p',
      '{"spec":{"trigger":{"continuous":null,"manual":"a"}}}',
    ]);
    await world.until('the sync is done', async () => {
      const { status } = await world.get('orders');
      return (status.recoveryPoint?.sequence ?? 0) > (before.status.recoveryPoint?.sequence ?? 0);
    });
    cluster.kubectl(['annotate', 'ri', 'orders', `${group}/action=explode`]);
    await until(() => /ActionRefused/.test(cluster.kubectl(['get', 'events'])));
    t.notOk(JSON.stringify(read('ri', 'orders').metadata).includes('explode'), 'and the annotation is gone');
    cluster.kubectl([
      'patch',
      'ri',
      'orders',
      '--type=merge',
      '-p',
      '{"spec":{"trigger":{"continuous":true,"manual":null}}}',
    ]);
  });

  await t.test('the API server is killed and comes back; history is compacted away', async (t) => {
    await cluster.kill();
    writeNoise(source, 8 << 20);
    const refused = await world.client
      .send('PATCH', '/replications/orders', { spec: { rpoSeconds: 3 } })
      .then(() => undefined, String);
    t.match(refused, /API server/, 'a write is refused meanwhile, not lost, and the reason is told');
    await cluster.start();
    await cluster.compact();
    const sinceMs = Date.now();
    await world.normal('orders', sinceMs);
    await world.until('writes are taken again', async () =>
      world.client.send('PATCH', '/replications/orders', { spec: { rpoSeconds: 3 } }).then(
        () => true,
        () => false,
      ),
    );
    cluster.kubectl(['patch', 'ri', 'orders', '--type=merge', '-p', '{"spec":{"rpoSeconds":4}}']);
    await world.until('changes are seen again', async () => (await world.get('orders')).spec.rpoSeconds === 4);
    t.ok(world.master.running, 'the master lives on when that is shorter than its lease, or starts anew');
  });

  await t.test('kill -9 of the leader: the next one leads within the lease time and nothing is lost', async (t) => {
    const { points } = { points: await world.points('orders') };
    await world.master.kill();
    // Another node: nothing of the data directory but the volumes.
    for (const name of ['master.db', 'ca.key', 'ca.pem', 'server.key', 'server.pem', 'admin.token', 'join.token'])
      rmSync(join(world.masterDir, name), { force: true });
    const startMs = performance.now();
    await world.startMaster();
    t.ok(performance.now() - startMs < 60_000);
    await world.normal('orders', Date.now());
    const now = new Map((await world.points('orders')).map(({ sequence, digest }) => [sequence, digest]));
    for (const { sequence, digest } of points.slice(-3)) t.equal(now.get(sequence), digest, `point ${sequence}`);
    t.match(read('lease', 'cdm-replicator-master').spec, { leaseTransitions: 1 });
    cluster.kubectl(['delete', 'ri', 'orders', '--timeout=60s']);
    t.same((await world.client.list<Replication>('/replications')).items, []);
  });

  await t.test('a group and a schedule are taken on, and do what REST does', async (t) => {
    apply('ReplicationInfo', 'carts', {
      source: { agent: 'node-a', path: source, volumeMode: 'Block' },
      target: { storageClass: 'local' },
    });
    cluster.kubectl(['wait', '--for=jsonpath={.status.state}=NORMAL', 'ri/carts', '--timeout=90s']);
    apply('ReplicationGroup', 'shop', { members: [{ replication: 'carts' }] });
    await until(() => (read('ri', 'carts').spec as { group?: string }).group === 'shop');
    // Who is listed becomes a member; who leaves is taken off the list, and says so itself.
    apply('ReplicationGroup', 'shop', { members: [] });
    cluster.kubectl(['patch', 'ri', 'carts', '--type=merge', '-p', '{"spec":{"group":null}}']);
    await until(() => (read('ri', 'carts').spec as { group?: string }).group === undefined);
    const startTime = new Date(Date.now() + 86_400_000).toISOString();
    apply('RecoverySchedule', 'nightly', { replication: 'carts', type: 'drill', repeat: 'daily', startTime });
    await until(() => read('rsched', 'nightly').status?.['nextTime'] === startTime);
    cluster.kubectl(['delete', 'rsched/nightly', 'rgroup/shop', '--timeout=60s']);
    await world.client.send('DELETE', '/replications/carts');
    t.notMatch(cluster.kubectl(['get', 'ri']), /carts/, 'deleted over REST it is gone for kubectl');
  });

  await t.test('the rights in the manifests are used, each of them, and no other is asked for', async (t) => {
    t.equal(await world.master.stop(), 0, world.master.logEnd());
    // Watches are written down when they end.
    await until(() => cluster.rightsUsed(namespace, account).some((right) => right === 'watch /secrets'));
    const granted = cluster.rightsOf('role', account);
    // Those of sources by claim are kubernetesclaims.test.ts's.
    const reading = cluster.rightsOf('clusterrole', 'replication-source-reader');
    const used = cluster.rightsUsed(namespace, account).filter((right) => !reading.includes(right));
    // Of custom resources the rule is one for all kinds, and not each kind meets each case here; nor is the test a pod.
    const sum = (rights: string[]) =>
      [...new Set(rights.map((right) => right.replace(/ .*\.kr\/\w+/, ' kinds')))].filter(
        (right) => !/pods/.test(right),
      );
    // Asked for only when two wrote at once.
    t.same(sum([...used, 'get /secrets', 'get kinds']).sort(), sum(granted).sort());
    t.same(
      used.filter((right) => !granted.includes(right)),
      [],
    );
  });
});
