/**
 * `copyMethod: Snapshot` and `Clone`: a block claim, and then a file claim (fileclaims.ts), that is mirrored by VolumeSnapshots, or by clones, against a real kube-apiserver and controller-manager and the
 * real sidecars of CSI (provisioner, snapshot controller, snapshotter, snapshot metadata), with exactly the rights of the
 * manifests. The driver is imagedriver.ts; imagenode.ts stands in for scheduler and kubelet. The writer never pauses, and each
 * point is the volume of one snapshot or clone, byte for byte.
 */
import t from 'tap';
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { closeSync, fsyncSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { group } from '../../master/kubernetes/kinds.ts';
import { snapshotLabel } from '../../master/kubernetes/snapshotobjects.ts';
import { connect, type ClientTrust } from '../../proto/rpc.ts';
import type { SnapshotRequest } from '../../proto/wire.ts';
import { skipSidecars, snapshotDefinitions, until } from '../kubernetes.ts';
import { loopMount, missingForLoop, run } from '../loop.ts';
import { freePort } from '../ports.ts';
import { noise } from './content.ts';
import { fileClaims } from './fileclaims.ts';
import { driverName, startImageDriver } from './imagedriver.ts';
import { runImageNode } from './imagenode.ts';
import { account, manifests, openKubernetesWorld } from './kubernetesworld.ts';
import { long } from './world.ts';

const volumeBytes = 16 << 20;
const granule = 64 << 10;
/** Of the range that the API server gives to Services. */
const serviceAddress = '10.0.0.77';

const skip = skipSidecars || missingForLoop('xfs');
const atLength = { skip: !long && 'long: npm run e2e -- kubernetessnapshots' };
// Theirs, of five requests a second, makes each step wait for those before it.
const rates = ['--kube-api-qps=100', '--kube-api-burst=200'];
const retries = ['--retry-interval-start=200ms', '--retry-interval-max=1s'];
t.test('points by VolumeSnapshots', { skip }, async (suite) => {
  const t = suite;
  const { mountPoint } = await loopMount(t, 'xfs', 2048);
  const driver = await startImageDriver(mountPoint);
  t.teardown(() => driver.close());
  const { cluster, world } = await openKubernetesWorld(t, {}, { controllers: true });
  const apply = (...objects: object[]): void => {
    for (const object of objects) cluster.kubectl(['apply', '-f', '-'], JSON.stringify(object));
  };
  const csi = `--csi-address=${driver.socket}`;
  cluster.kubectl(['apply', '-f', snapshotDefinitions]);
  cluster.run('csi-provisioner', [csi, ...retries, ...rates]);
  // One that goes just after its claim has gone counts as in use until it is looked at anew: 15 minutes by default.
  cluster.run('snapshot-controller', ['--resync-period=5s', ...retries, ...rates]);
  cluster.run('csi-snapshotter', [csi, ...retries, ...rates]);
  const kubelet = join(world.dir, 'kubelet');
  cluster.kubectl(['create', 'namespace', 'shop']);
  const node = runImageNode(t, cluster, driver, { namespace: 'shop', name: 'node-a', kubelet });
  world.agentFlags.push('--kubelet', kubelet);
  await world.startAgent();
  apply(
    {
      apiVersion: 'storage.k8s.io/v1',
      kind: 'StorageClass',
      metadata: { name: 'images' },
      provisioner: driverName,
      volumeBindingMode: 'WaitForFirstConsumer',
    },
    {
      apiVersion: 'snapshot.storage.k8s.io/v1',
      kind: 'VolumeSnapshotClass',
      metadata: { name: 'images', annotations: { 'snapshot.storage.kubernetes.io/is-default-class': 'true' } },
      driver: driverName,
      deletionPolicy: 'Delete',
    },
    {
      apiVersion: 'v1',
      kind: 'PersistentVolumeClaim',
      metadata: { name: 'raw', namespace: 'shop' },
      spec: {
        ...{ accessModes: ['ReadWriteOnce'], volumeMode: 'Block', storageClassName: 'images' },
        resources: { requests: { storage: `${volumeBytes}` } },
      },
    },
    {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: 'database', namespace: 'shop' },
      spec: {
        containers: [{ name: 'app', image: 'app', volumeDevices: [{ name: 'data', devicePath: '/dev/data' }] }],
        volumes: [{ name: 'data', persistentVolumeClaim: { claimName: 'raw' } }],
      },
    },
  );
  const device = await world.until('the claim has its volume', async () => node.deviceOf('database'));
  /** Of a block each, somewhere in the first half, durable. */
  const write = (count: number, at = (): number => Math.floor((Math.random() * volumeBytes) / 2 / granule)): void => {
    const file = openSync(device, 'r+');
    for (let n = 0; n < count; n++) writeSync(file, noise(4096), 0, 4096, at() * granule);
    fsyncSync(file);
    closeSync(file);
  };
  write(100);
  // As a database without a moment's rest; its blocks lie in the second half.
  const writer = spawn(process.execPath, [
    '-e',
    `const fs = require('fs'); const f = fs.openSync('${device}', 'r+'); const b = Buffer.alloc(4096); let n = 0;
     const go = () => { b.writeUInt32LE(++n); fs.writeSync(f, b, 0, 4096, ${volumeBytes / 2} + (n * 7 % 100) * 4096); fs.fsyncSync(f); setTimeout(go, 2); };
     go();`,
  ]);
  t.teardown(() => writer.kill('SIGKILL'));

  const sha = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex'); // prettier-ignore
  const isOneInstant = async (): Promise<boolean> => {
    const { path } = await world.copyOf('raw');
    return [...driver.taken.values()].includes(sha(path));
  };
  const replicate = (spec: object, source: object = {}): void =>
    apply({
      apiVersion: `${group}/v1`,
      kind: 'ReplicationInfo',
      metadata: { name: 'raw', namespace: 'cdm-replicator' },
      spec: {
        source: { pvc: { namespace: 'shop', name: 'raw' }, ...source },
        ...{ target: { storageClass: 'local' }, rpoSeconds: 2, ...spec },
      },
    });
  const ours = (kind: string): string[] => {
    const names = cluster.kubectl(['get', kind, '-n', 'shop', '-l', snapshotLabel, '-o', 'name']).trim();
    return names === '' ? [] : names.split('\n');
  };
  const code = async (code: string): Promise<string[]> =>
    (await world.events()).filter((event) => event.code === code).map(({ message }) => message);

  await t.test('without the rights it says what to apply', async (t) => {
    const image = join(world.sources, 'image');
    writeFileSync(image, noise(granule));
    const refused = world.client.send('POST', '/replications', {
      metadata: { name: 'no' },
      spec: { source: { agent: 'node-a', path: image }, target: { storageClass: 'local' }, copyMethod: 'Snapshot' },
    });
    await t.rejects(refused, /Snapshot needs source.pvc/);
    replicate({ copyMethod: 'Snapshot' }, { volumeSnapshotClassName: 'images' });
    await world.until('raw is there', async () => world.get('raw').catch(() => false as const));
    const { status } = await world.degraded('raw', 'SnapshotFailed');
    t.match(JSON.stringify(status.conditions), /source-snapshots\.yaml/);
  });

  await t.test('storage that cannot tell what changed: each point is one snapshot, read whole', async (t) => {
    cluster.kubectl(['apply', '-f', join(manifests, 'source-snapshots.yaml')]);
    const { status } = await world.normal('raw', Date.now(), 90);
    t.match(status, { captureMethod: 'scan', recoveryPoint: { consistency: 'crash' } });
    t.ok(await isOneInstant());
    t.match((await code('CutWay')).join(), /snapshot of the storage/);
  });

  await t.test('an agent reaches no snapshots but those of what it mirrors', atLength, async (t) => {
    const { grpc } = JSON.parse(readFileSync(join(world.masterDir, 'endpoints.json'), 'utf8')) as { grpc: string };
    const identity = JSON.parse(readFileSync(join(world.dir, 'a', 'identity.json'), 'utf8')) as Required<ClientTrust>;
    const agent = connect(grpc, identity);
    suite.teardown(() => agent.close());
    const ask = async (action: SnapshotRequest['action'], replicationUid: string, name = ''): Promise<unknown> => {
      const stream = agent.snapshots();
      await stream.send({ replicationUid, action, name, keep: [] });
      const { value } = (await stream.receive.next()) as { value: unknown };
      stream.cancel();
      return value;
    };
    apply({
      apiVersion: 'snapshot.storage.k8s.io/v1',
      kind: 'VolumeSnapshot',
      metadata: { name: 'theirs', namespace: 'shop' },
      spec: { source: { persistentVolumeClaimName: 'raw' } },
    });
    const { uid } = (await world.get('raw')).metadata;
    await t.rejects(ask('list', 'another'), { code: 'NotAssigned' });
    for (const action of ['open', 'find', 'remove'] as const)
      await t.rejects(ask(action, uid, 'theirs'), { code: 'SnapshotFailed', message: /none of raw/ });
    await t.rejects(ask('remove', uid, '../x'), { code: 'BadMessage' });
    await ask('close', uid, 'database');
    t.ok(cluster.kubectl(['get', 'volumesnapshot', 'theirs', '-n', 'shop', '-o', 'name']));
    t.ok(cluster.kubectl(['get', 'pod', 'database', '-n', 'shop', '-o', 'name']), 'a pod of that name is not ours');
  });

  const port = await freePort();
  await t.test('a SnapshotMetadata service: only what differs is read', async (t) => {
    const [key, certificate] = [join(world.dir, 'driver.key'), join(world.dir, 'driver.crt')];
    // As a node reaches Services: by an address of the cluster, that is no name that it knows.
    run('ip', 'address', 'replace', `${serviceAddress}/32`, 'dev', 'lo');
    suite.teardown(() => run('ip', 'address', 'delete', `${serviceAddress}/32`, 'dev', 'lo'));
    const subject = ['-subj', '/CN=driver', '-addext', 'subjectAltName=DNS:driver.shop'];
    run('openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', certificate, ...subject);
    apply({
      apiVersion: 'v1',
      kind: 'Service',
      metadata: { name: 'driver', namespace: 'shop' },
      spec: { clusterIP: serviceAddress, ports: [{ port }] },
    });
    apply({
      apiVersion: 'cbt.storage.k8s.io/v1beta1',
      kind: 'SnapshotMetadataService',
      metadata: { name: driverName },
      spec: {
        address: `driver.shop:${port}`,
        audience: 'images',
        caCert: readFileSync(certificate).toString('base64'),
      },
    });
    const tls = [`--tls-cert=${certificate}`, `--tls-key=${key}`];
    cluster.run('csi-snapshot-metadata', [csi, `--port=${port}`, '--http-endpoint=127.0.0.1:0', ...tls]);
    await world.agent.stop();
    await world.startAgent();
    await world.until('it is asked', async () => (await world.get('raw')).status.captureMethod === 'csi-cbt');
    await world.normal('raw', Date.now(), 90);
    const before = { read: await world.metric('read_bytes_total', 'replication="raw"'), told: driver.toldBytes };
    write(10);
    await world.normal('raw', Date.now(), 90);
    t.ok(await isOneInstant());
    const read = (await world.metric('read_bytes_total', 'replication="raw"')) - before.read;
    t.ok(driver.toldBytes > before.told, `it told: ${(await code('CaptureLost')).join()}`);
    t.ok(read > 0 && read < volumeBytes / 4, `${read} bytes were read`);
  });

  await t.test('an agent that was away asks what changed since its last cut', async (t) => {
    // At rest: one that is killed between a commit and its note of it has to compare all.
    writer.kill('SIGSTOP');
    for (let times = 0; times < 2; times++) await world.normal('raw', Date.now(), 90);
    await world.agent.kill();
    write(20);
    writer.kill('SIGCONT');
    const read = await world.metric('full_scans_total', 'replication="raw"');
    await world.startAgent();
    await world.normal('raw', Date.now(), 90);
    t.ok(await isOneInstant());
    t.match((await code('CaptureResumed')).join(), /csi-cbt/);
    t.equal(await world.metric('full_scans_total', 'replication="raw"'), read, 'nothing was read whole');
  });

  await t.test('two that cannot be compared: all of it is', atLength, async (t) => {
    driver.order({ deltas: 1 });
    write(5);
    await world.until('it is told', async () =>
      (await code('CaptureLost')).some((text) => /cannot be compared/.test(text)),
    );
    await world.normal('raw', Date.now(), 90);
    t.ok(await isOneInstant());
    t.equal((await world.get('raw')).status.captureMethod, 'csi-cbt');
  });

  await t.test('a snapshot that fails is waited for, with its words', atLength, async (t) => {
    driver.order({ snapshots: 3 });
    await world.until('the snapshotter has heard', async () => driver.refuse.snapshots === 0);
    await world.normal('raw', Date.now(), 90);
    t.ok(await isOneInstant());
  });

  /** What the cut is refused with. */
  const refused = async (words: RegExp): Promise<unknown> =>
    world.until(`a cut is refused with ${String(words)}`, async () => {
      const { conditions } = (await world.get('raw')).status;
      return conditions.some(({ reason, message }) => reason === 'NoConsistentCut' && words.test(message));
    });

  await t.test('classes that cannot be used are named with the reason', atLength, async (t) => {
    apply(
      {
        apiVersion: 'snapshot.storage.k8s.io/v1',
        kind: 'VolumeSnapshotClass',
        metadata: { name: 'others' },
        ...{ driver: 'others.example.com', deletionPolicy: 'Delete' },
      },
      {
        apiVersion: 'storage.k8s.io/v1',
        kind: 'StorageClass',
        metadata: { name: 'kept' },
        ...{ provisioner: driverName, reclaimPolicy: 'Retain' },
      },
    );
    replicate({ copyMethod: 'Snapshot' }, { volumeSnapshotClassName: 'none' });
    await refused(/there is no VolumeSnapshotClass none in the cluster/);
    replicate({ copyMethod: 'Snapshot' }, { volumeSnapshotClassName: 'others' });
    await refused(/VolumeSnapshotClass others is of the driver others\.example\.com, the volume .* of images/);
    replicate({ copyMethod: 'Snapshot' }, { storageClassName: 'kept' });
    await refused(/StorageClass kept has reclaimPolicy Retain/);
    replicate({ copyMethod: 'Snapshot' });
    await world.normal('raw', Date.now(), 90);
    t.ok(await isOneInstant(), 'by the default classes');
  });

  await t.test('who takes part is killed in the middle: it goes on, and little is left', atLength, async (t) => {
    for (const kill of ['master', 'agent', 'cluster', 'agent', 'master'] as const) {
      const taken = driver.taken.size;
      write(3);
      await world.until('a snapshot is taken', async () => driver.taken.size > taken);
      if (kill === 'cluster') {
        await cluster.kill();
        await cluster.start();
        const sinceMs = Date.now();
        await world.until('it goes on', async () => {
          // Whose lease runs out ends, and its kubelet starts it again.
          if (!world.master.running) await world.startMaster();
          const { state, lastSyncTime } = (await world.get('raw')).status;
          return state === 'NORMAL' && Date.parse(lastSyncTime ?? '') >= sinceMs;
        });
      } else {
        await world[kill].kill();
        await (kill === 'master' ? world.startMaster() : world.startAgent());
      }
      await world.normal('raw', Date.now(), 90);
      t.ok(await isOneInstant(), kill);
    }
    await until(() => ours('volumesnapshots').length <= 3);
    await until(() => ours('pods').length <= 1 && ours('pvc').length <= 1);
  });

  await t.test('by clones: each point is one, read whole; of VolumeSnapshots nothing is left', async (t) => {
    replicate({ copyMethod: 'Clone' });
    await world.until('clones are read', async () =>
      (await code('CutWay')).some((text) => /clone of the storage/.test(text)),
    );
    write(5);
    const { status } = await world.normal('raw', Date.now(), 90);
    t.match(status, { captureMethod: 'scan', recoveryPoint: { consistency: 'crash' } });
    t.ok(await isOneInstant());
    await until(() => ours('volumesnapshots').length === 0);
  });

  await t.test('a clone that cannot be made says why; kills leave none behind', atLength, async (t) => {
    driver.order({ clones: 1000 });
    await refused(/this pool makes no clones/);
    driver.order({ clones: 0 });
    for (const kill of ['agent', 'master'] as const) {
      await world.normal('raw', Date.now(), 90);
      const taken = driver.taken.size;
      write(3);
      await world.until('a clone is made', async () => driver.taken.size > taken);
      await world[kill].kill();
      await (kill === 'master' ? world.startMaster() : world.startAgent());
      await world.normal('raw', Date.now(), 90);
      t.ok(await isOneInstant(), kill);
    }
    await until(() => ours('pods').length <= 1 && ours('pvc').length <= 2);
  });

  await t.test('each of the rights is used; with the replication all of it goes', async (t) => {
    const granted = cluster.rightsOf('clusterrole', 'replication-snapshotter');
    const used = cluster.rightsUsed('cdm-replicator', account);
    t.same(
      granted.filter((right) => !used.includes(right)),
      [],
    );
    t.ok(used.includes('create /serviceaccounts/token'));
    cluster.kubectl(['delete', 'ri', 'raw', '--timeout=60s']);
    await until(() => [...ours('volumesnapshots'), ...ours('pods'), ...ours('pvc')].length === 0);
    t.ok(node.deviceOf('database') !== undefined, "the source's own pod is as it was");
  });

  writer.kill('SIGKILL');
  await fileClaims(suite, { cluster, world, driver, node, apply, ours, atLength });
});
