/**
 * The storage class `kubernetes` against a real kube-apiserver and kube-controller-manager, with exactly the rights of the manifests: claim,
 * certificate and pod are made, the receiver runs as its pod says (receivernode.ts stands in for scheduler, provisioner and kubelet),
 * kills of either side lose nothing, and all of it goes with the replication.
 */
import t from 'tap';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { group } from '../../master/kubernetes/kinds.ts';
import { Replica } from '../../master/replica/replica.ts';
import type { Recovery, Replication, StorageClass } from '../../master/resources.ts';
import { systemEffects } from '../../proto/system.ts';
import { skipKubernetes, until } from '../kubernetes.ts';
import { missingForLoop, run } from '../loop.ts';
import { noise, sameBytes, writeNoise } from './content.ts';
import { account, namespace, openKubernetesWorld } from './kubernetesworld.ts';
import { startPod } from './nodevolumes.ts';
import { defineStorageClass, runReceiverNode } from './receivernode.ts';

const signal = new AbortController().signal;

t.test('replicas on claims', { skip: skipKubernetes || missingForLoop('ext4') }, async (suite) => {
  const t = suite;
  const config = join(process.env['TMPDIR'] ?? '/tmp', `receivers-${process.pid}.yaml`);
  writeFileSync(config, 'receivers: { nodeSelector: { disktype: ssd } }\n');
  t.teardown(() => rmSync(config));
  const { cluster, world } = await openKubernetesWorld(t, { masterFlags: ['--config', config] }, { controllers: true });
  const kubelet = join(world.dir, 'kubelet');
  mkdirSync(kubelet);
  const agentNode = { apiVersion: 'v1', kind: 'Node', metadata: { name: 'node-a' } };
  cluster.kubectl(['apply', '-f', '-'], JSON.stringify(agentNode));
  world.agentFlags.push('--kubelet', kubelet);
  await world.startAgent();
  defineStorageClass(cluster, 'tests');
  const image = join(world.sources, 'image');
  writeNoise(image, 8 << 20);
  const tree = join(world.sources, 'tree');
  mkdirSync(join(tree, 'folder'), { recursive: true });
  writeFileSync(join(tree, 'folder', 'file'), noise(300_000));
  const nameOf = async (name: string): Promise<string> => `replica-${(await world.get(name)).metadata.uid}`;
  const names = (kind: string): string => cluster.kubectl(['get', kind, '-o', 'name', '-n', namespace]);
  const replicate = (name: string, path: string, volumeMode: string): void =>
    cluster.apply('ReplicationInfo', name, {
      source: { agent: 'node-a', path, volumeMode },
      target: { storageClass: 'claims' },
      rpoSeconds: 2,
    });

  await t.test('what cannot be is refused with its field', (t) => {
    const refusal = (spec: object): string => {
      try {
        cluster.apply('ReplicationStorageClass', 'wrong', spec);
        return 'taken';
      } catch (error) {
        return String(error);
      }
    };
    const parameters = { storageClassName: 'tests' };
    t.match(
      refusal({ driver: 'kubernetes', parameters: { ...parameters, accessMode: 'ReadWriteMany' } }),
      /accessMode.*ReadWriteOnce/s,
    );
    t.match(refusal({ driver: 'kubernetes', parameters: {} }), /storageClassName/);
    t.match(refusal({ driver: 'directory', parameters }), /must be path for driver directory/);
    t.end();
  });

  await t.test('a replication waits for its receiver, and says for what', async (t) => {
    cluster.apply('ReplicationStorageClass', 'claims', {
      driver: 'kubernetes',
      parameters: { storageClassName: 'tests', accessMode: 'ReadWriteOncePod' },
    });
    await world.until('the class is usable', async () => {
      const found = await world.client.get<StorageClass>('/storageclasses/claims').catch(() => undefined);
      return found?.status.conditions.some(({ status }) => status === 'True');
    });
    replicate('orders', image, 'Block');
    await world.until('orders is there', async () => world.get('orders').catch(() => false as const));
    await world.degraded('orders', 'ReceiverPending');
    await world.until('the cluster says why', async () =>
      /its claim is Pending/.test(JSON.stringify((await world.get('orders')).status.conditions)),
    );
    const claim = cluster.read('pvc', await nameOf('orders'));
    t.match(claim.spec, { accessModes: ['ReadWriteOncePod'], storageClassName: 'tests', volumeMode: 'Filesystem' });
    t.match(claim, { spec: { resources: { requests: { storage: '1036Mi' } } } });
    t.match(cluster.read('pod', await nameOf('orders')).spec, { nodeSelector: { disktype: 'ssd' } });
  });

  const node = (name: string, labels: Record<string, string>, subnet: string) =>
    runReceiverNode(suite, cluster, namespace, { name, labels, folder: join(world.dir, name), subnet });
  const other = node('store-2', { disktype: 'hdd' }, '127.0.22');
  const store = node('store-1', { disktype: 'ssd' }, '127.0.21');

  await t.test('its pod runs on a node with the label: it is mirrored there, block volumes and trees', async (t) => {
    replicate('files', tree, 'Filesystem');
    t.equal((await world.normal('orders', Date.now())).status.state, 'NORMAL');
    await world.until('files is there', async () => world.get('files').catch(() => false as const));
    await world.normal('files', Date.now());
    for (const name of ['orders', 'files']) {
      t.ok(store.process(await nameOf(name)), `${name} is at store-1`);
      t.notOk(other.process(await nameOf(name)));
    }
    t.same(await systemEffects.disk.list(join(world.masterDir, 'volumes')), [], 'nothing lies with the master');
  });

  const sameTree = (one: string, other: string): string =>
    spawnSync('rsync', ['-aHAXSnci', '--delete', `${one}/`, `${other}/`], { encoding: 'utf8' }).stdout;
  const isImage = (device: string): boolean =>
    readFileSync(device)
      .subarray(0, 8 << 20)
      .equals(readFileSync(image));
  const recover = (name: string, spec: object): void => cluster.apply('ReplicationRecovery', name, spec);
  // Never kubectl's own wait: the node beside us stands still while that runs.
  const reach = async (name: string, state: string): Promise<Recovery> => {
    const now = (): Recovery => cluster.read('rrec', name) as unknown as Recovery;
    await until(() => now().status?.state === state);
    return now();
  };
  const act = (name: string, action: string): unknown =>
    cluster.kubectl(['annotate', 'rrec', name, `${group}/action=${action}`]);
  const nothingLeft = async (claim: string): Promise<void> =>
    until(() => !names('pvc').includes(claim) && !/fill-/.test(names('pod') + names('secret')));

  await t.test(
    'a drill by kubectl alone: a new claim has the bytes of the block volume, and goes with the rollback',
    async (t) => {
      await world.snapshot('orders', 'before');
      recover('try', { replication: 'orders', type: 'drill', point: { snapshot: 'before' } });
      const { status } = await reach('try', 'Completed');
      t.match(status, { outcome: 'success', verified: true, tasks: [{ path: `pvc/${namespace}/try` }] });
      const claim = cluster.read('pvc', 'try');
      t.match(claim, { spec: { volumeMode: 'Block', accessModes: ['ReadWriteOncePod'], storageClassName: 'tests' } });
      t.match(claim, { spec: { resources: { requests: { storage: '8Mi' } } }, status: { phase: 'Bound' } });
      t.ok(isImage(store.mountOf('try')), 'nothing of what was on the device before');
      t.notMatch(names('pod') + names('secret'), /fill-/, 'it can be mounted');
      t.match((await world.get('orders')).status, { state: 'NORMAL' });
      act('try', 'rollback');
      await reach('try', 'RolledBack');
      await nothingLeft('try');
      const volume = JSON.parse(
        cluster.kubectl(['get', 'pv', `pv-${String(claim.metadata['uid'])}`, '-o', 'json']),
      ) as object;
      t.match(volume, { spec: { persistentVolumeReclaimPolicy: 'Delete' } }, 'its volume goes too, the class retains');
    },
  );

  await t.test('a failover of a tree to a claim with a name, rolled back: it is mirrored again', async (t) => {
    recover('switch', { replication: 'files', type: 'failover', target: { pvc: { name: 'files-now' } } });
    await reach('switch', 'Completed');
    t.equal(sameTree(tree, store.mountOf('files-now')), '');
    t.equal((await world.get('files')).spec.replicationState, 'secondary');
    act('switch', 'rollback');
    await reach('switch', 'RolledBack');
    await nothingLeft('files-now');
    writeFileSync(join(tree, 'after'), noise(10_000));
    await world.normal('files', Date.now());
  });

  await t.test('a new claim that names a replication waits for its pod, and has its newest point', async (t) => {
    const sinceMs = Date.now();
    const asked = [
      ['new-files', 'files', 'Filesystem'],
      ['new-orders', 'orders', 'Block'],
    ] as const;
    for (const [name, of, volumeMode] of asked) {
      const spec = {
        ...{ accessModes: ['ReadWriteOnce'], volumeMode, storageClassName: 'tests' },
        resources: { requests: { storage: '64Mi' } },
        dataSourceRef: { apiGroup: group, kind: 'ReplicationInfo', name: of },
      };
      const object = { apiVersion: 'v1', kind: 'PersistentVolumeClaim', metadata: { name, namespace }, spec };
      cluster.kubectl(['apply', '-f', '-'], JSON.stringify(object));
    }
    for (const [claim, , volumeMode] of asked) {
      const uid = String(cluster.read('pvc', claim).metadata['uid']);
      t.notMatch(
        names('pvc'),
        `prime-${uid}`,
        'nobody has said on which node: the second one waits while the first is filled',
      );
      // As a scheduler does when a pod wants it.
      cluster.kubectl(['annotate', 'pvc', claim, 'volume.kubernetes.io/selected-node=store-1']);
      await until(() => cluster.read('pvc', claim).status?.['phase'] === 'Bound');
      await until(() => !names('pvc').includes('prime-') && !/fill-/.test(names('pod') + names('secret')));
      const { volumeName } = cluster.read('pvc', claim).spec as { volumeName: string };
      const volume = cluster.kubectl(['get', 'pv', volumeName, '-o', 'json']);
      t.match(JSON.parse(volume), {
        spec: { persistentVolumeReclaimPolicy: 'Retain', claimRef: { name: claim, uid } },
      });
      const filled = store.mountOf(`prime-${uid}`);
      if (volumeMode === 'Block') t.ok(isImage(filled));
      else t.equal(sameTree(tree, filled), '');
      cluster.kubectl(['delete', 'pvc', claim, '--wait=false']);
    }
    const looks = cluster
      .requestsSince(namespace, account, sinceMs)
      .filter((one) => one.startsWith('get storage.k8s.io'));
    t.ok(looks.length <= 3, `a claim that waits does not ask for its class again and again: ${looks.length}`);
  });

  await t.test('what cannot be recovered to is refused, and touches nothing', async (t) => {
    const drill = (target: object): Promise<unknown> =>
      world.client.send('POST', '/recoveries', { replication: 'orders', type: 'drill', target });
    const taken = await nameOf('files');
    await t.rejects(drill({ pvc: { name: taken } }), /exists already/);
    await t.rejects(drill({ pvc: { namespace: 'shop', name: 'orders' } }), /must be in cdm-replicator/);
    await t.rejects(drill({ pvc: { name: 'orders', storageClassName: 'none' } }), /no StorageClass none/);
    await t.rejects(drill({ path: join(world.dir, 'copies', 'one') }), /its copies are claims/);
    await t.rejects(drill({ path: '/x', pvc: { name: 'orders' } }), /one of them/);
    t.ok(names('pvc').includes(taken));
  });

  await t.test('a drill that is cancelled while nothing runs its pod leaves nothing', async (t) => {
    defineStorageClass(cluster, 'far');
    recover('stuck', {
      replication: 'orders',
      type: 'drill',
      target: { pvc: { name: 'stuck', storageClassName: 'far' } },
    });
    await until(() => /waiting for its volume/.test(JSON.stringify(cluster.read('rrec', 'stuck').status)));
    act('stuck', 'cancel');
    await reach('stuck', 'Cancelled');
    await nothingLeft('stuck');
    t.match((await world.get('orders')).status, { state: 'NORMAL' });
  });

  await t.test('receiver and master killed, in any order: it goes on, and no point is lost', async (t) => {
    const before = await world.points('orders');
    const receiver = store.process(await nameOf('orders'));
    for (let round = 0; round < 3; round++) {
      writeNoise(image, 8 << 20);
      if (round !== 1) await receiver?.kill();
      if (round !== 0) {
        await world.master.kill();
        await world.startMaster();
      }
      await world.normal('orders', Date.now());
    }
    const now = new Map((await world.points('orders')).map(({ sequence, digest }) => [sequence, digest]));
    for (const { sequence, digest } of before) t.equal(now.get(sequence), digest, `point ${sequence}`);
    writeFileSync(join(tree, 'late'), noise(70_000));
    await world.normal('files', Date.now());
    await world.client.send('POST', '/replications/orders/actions/verify', {});
    const { status } = await world.until('it is verified', async () => {
      const found = await world.get('orders');
      return found.status.lastVerifiedTime !== null && found;
    });
    t.notMatch(JSON.stringify(status.conditions), /VerifyMismatch/);
  });

  await t.test('a pod that somebody deletes is made anew', async (t) => {
    const pod = await nameOf('orders');
    const before = cluster.read('pod', pod).metadata['uid'];
    cluster.kubectl(['delete', 'pod', pod, '--wait=false']);
    await until(() => names('pod').includes(pod) && cluster.read('pod', pod).metadata['uid'] !== before);
    t.equal((await world.normal('orders', Date.now())).status.state, 'NORMAL');
  });

  await t.test('at rest nothing is asked of the API server but leases and watches', async (t) => {
    // What of the machine's disk is free changes with all that runs here.
    cluster.kubectl(['delete', 'rsc', 'local', '--wait=false']);
    await until(() => !names('rsc').includes('local'));
    // The time that has passed is noted once a minute, in a Secret.
    const others = /^(watch |(get|update) coordination|update \/secrets)/;
    let sinceMs = Date.now();
    let newest: string[] = [];
    await until(() => {
      const asked = cluster.requestsSince(namespace, account, sinceMs).filter((one) => !others.test(one));
      if (asked.length > 0) [newest, sinceMs] = [asked, Date.now()];
      return Date.now() - sinceMs > 15_000;
    }, 60_000).catch((error: unknown) => t.fail(`${String(error)}: ${newest.join(', ')}`));
  });

  await t.test('what lies on the claims is the source, to the byte', async (t) => {
    await world.agent.kill();
    for (const [name, mode] of [
      ['orders', 'Block'],
      ['files', 'Filesystem'],
    ] as const) {
      const { metadata } = await world.get(name);
      const folder = `${store.mountOf(`replica-${metadata.uid}`)}/${name}-${metadata.uid}`;
      const copy = join(world.dir, `${name}.copy`);
      // As it would be after a crash: the receiver still has the original.
      const taken = join(world.dir, `${name}.replica`);
      spawnSync('cp', ['-a', folder, taken]);
      const place = { folder: taken, indexFolder: taken };
      const replica = await Replica.open({ effects: systemEffects, place, mode });
      const point = replica.newestPoint;
      if (!point) throw new Error(`${name} has no point`);
      await replica.recover(point, copy, { verify: true, signal, progress: () => undefined });
      await replica.close();
      if (mode === 'Block') t.ok(sameBytes(image, copy));
      else t.equal(spawnSync('diff', ['-r', tree, copy], { encoding: 'utf8' }).stdout, '');
    }
  });

  const files = await nameOf('files');
  await t.test('a failover that is confirmed: the claim is the source from then on, once a pod uses it', async (t) => {
    await world.startAgent();
    await world.normal('files', Date.now());
    recover('move', { replication: 'files', type: 'failover', target: { pvc: { name: 'moved' } } });
    await reach('move', 'Completed');
    act('move', 'confirm');
    await reach('move', 'Confirmed');
    await world.degraded('files-failback', 'ClaimNotMounted');
    const { volumeName } = cluster.read('pvc', 'moved').spec as { volumeName: string };
    const device = run('findmnt', '-n', '-o', 'SOURCE', store.mountOf('moved')).trim();
    const moved = { claim: 'moved', volume: volumeName, mode: 'Filesystem', device } as const;
    const pod = startPod(suite, cluster, namespace, 'app', { name: 'node-a', kubelet }, moved);
    writeFileSync(join(pod.path, 'written after it'), noise(50_000));
    const { spec } = await world.normal('files-failback', Date.now());
    t.match(spec.source, { agent: 'node-a', path: pod.path, pvc: { namespace, name: 'moved' } });
    recover('again', { replication: 'files-failback', type: 'drill' });
    await reach('again', 'Completed');
    t.equal(sameTree(pod.path, store.mountOf('again')), '');
    pod.stop();
  });

  await t.test('deleted, nothing of it stays; a locked snapshot keeps it', async (t) => {
    const orders = await nameOf('orders');
    cluster.kubectl(['delete', 'rsnap', 'orders.before', '--wait=false']);
    await until(() => !names('rsnap').includes('orders.before'));
    cluster.kubectl(['delete', 'ri', 'orders', '--wait=false']);
    await until(() => ['pod', 'pvc', 'secret'].every((kind) => !names(kind).includes(orders)));
    for (const kind of ['pod', 'pvc', 'secret']) t.match(names(kind), files, `${kind} of the other one`);
    const { status } = await world.client.get<StorageClass>('/storageclasses/claims');
    t.match(status.conditions, [{ type: 'Available', status: 'True' }]);
    t.equal((await world.client.list<Replication>('/replications')).items.length, 1);
  });

  await t.test('the rights in the manifests are used, each of them', async (t) => {
    cluster.kubectl(['delete', 'ri', 'files-failback', '--wait=false']);
    await until(() => !names('pvc').includes('replica-'));
    t.equal(await world.master.stop(), 0, world.master.logEnd());
    const name = 'replicator-container-controller';
    const granted = [...cluster.rightsOf('role', name), ...cluster.rightsOf('clusterrole', name)];
    const used = cluster.rightsUsed(namespace, account);
    t.same(
      granted.filter((right) => !used.includes(right)),
      [],
    );
    t.match(cluster.kubectl(['get', 'crd', '-o', 'name']), group);
  });
});
