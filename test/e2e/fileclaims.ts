/**
 * `copyMethod: Snapshot` and `Clone` of a file claim, in the suite of kubernetessnapshots.test.ts: whatever is written meanwhile, without a
 * flush, each point is the filesystem of one snapshot or clone, as the driver has kept it.
 */
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import { group } from '../../master/kubernetes/kinds.ts';
import { snapshotLabel } from '../../master/kubernetes/snapshotobjects.ts';
import { until } from '../kubernetes.ts';
import { run } from '../loop.ts';
import { noise } from './content.ts';
import type { ImageDriver } from './imagedriver.ts';
import type { ImageNode } from './imagenode.ts';
import type { InstalledCluster } from './kubernetesworld.ts';
import { missingRsync, rsyncDifferences } from './treevolume.ts';
import type { World } from './world.ts';

export interface FileClaims {
  cluster: InstalledCluster;
  world: World;
  driver: ImageDriver;
  node: ImageNode;
  apply: (...objects: object[]) => void;
  /** Names of what there is in the cluster that was made for cuts. */
  ours: (kind: string) => string[];
  /** Options of what runs at full length only. */
  atLength: { skip: string | false };
}

/** Overwrites in place, appends, makes, renames and removes, hardly ever flushed. */
const program = `const fs = require('fs'); const root = process.argv[1];
  const data = fs.openSync(root + '/data', 'r+'); const block = Buffer.alloc(4096); let n = 0;
  const go = () => {
    block.writeUInt32LE(++n); fs.writeSync(data, block, 0, 4096, (n * 7 % 100) * 4096);
    if (n % 5 === 0) fs.writeFileSync(root + '/made/' + n / 5 % 40, String(n).repeat(n % 3000));
    if (n % 35 === 0) fs.renameSync(root + '/made/' + n / 5 % 40, root + '/made/moved-' + n / 35 % 10);
    if (n % 50 === 0) { fs.rmSync(root + '/again', { recursive: true, force: true }); fs.mkdirSync(root + '/again/' + n, { recursive: true }); }
    if (n % 90 === 0) fs.fsyncSync(data);
    setTimeout(go, 4);
  };
  go();`;

export async function fileClaims(suite: Test, the: FileClaims): Promise<void> {
  const { cluster, world, driver, node, apply, ours, atLength } = the;
  const name = 'files';
  const replicate = (spec: object): void =>
    apply({
      apiVersion: `${group}/v1`,
      kind: 'ReplicationInfo',
      metadata: { name, namespace: 'cdm-replicator' },
      spec: {
        source: { pvc: { namespace: 'shop', name } },
        ...{ target: { storageClass: 'local' }, rpoSeconds: 2, ...spec },
      },
    });

  /** The newest point, of all that were made the one that it is. */
  async function isOneInstant(): Promise<boolean> {
    const volume = JSON.parse(cluster.kubectl(['get', 'pvc', name, '-n', 'shop', '-o', 'json'])) as { spec: { volumeName: string } }; // prettier-ignore
    const handle = cluster.kubectl(['get', 'pv', volume.spec.volumeName, '-o', 'jsonpath={.spec.csi.volumeHandle}']);
    const { path } = await world.copyOf(name);
    const at = fs.mkdtempSync(join(world.dir, 'kept-'));
    return driver.kept(handle).some((image) => {
      // Of what it was at that instant a mount makes what a crash would have left.
      run('mount', '-o', 'noatime,loop', image, at);
      try {
        return rsyncDifferences(at, path).length === 0;
      } finally {
        run('umount', at);
      }
    });
  }

  await suite.test('a file claim: each point is the filesystem of one snapshot', { skip: missingRsync }, async (t) => {
    apply(
      {
        apiVersion: 'v1',
        kind: 'PersistentVolumeClaim',
        metadata: { name, namespace: 'shop' },
        spec: {
          ...{ accessModes: ['ReadWriteOnce'], volumeMode: 'Filesystem', storageClassName: 'images' },
          resources: { requests: { storage: `${32 << 20}` } },
        },
      },
      {
        apiVersion: 'v1',
        kind: 'Pod',
        metadata: { name: 'web', namespace: 'shop' },
        spec: {
          containers: [{ name: 'app', image: 'app', volumeMounts: [{ name: 'data', mountPath: '/data' }] }],
          volumes: [{ name: 'data', persistentVolumeClaim: { claimName: name } }],
        },
      },
    );
    const root = await world.until('the file claim is mounted', async () => node.pathOf('web'));
    fs.mkdirSync(join(root, 'made'));
    fs.writeFileSync(join(root, 'data'), noise(3 << 20));
    fs.linkSync(join(root, 'data'), join(root, 'made', 'data'));
    const writer = spawn(process.execPath, ['-e', program, root], { stdio: ['ignore', 'ignore', 'inherit'] });
    suite.teardown(() => writer.kill('SIGKILL'));
    replicate({ copyMethod: 'Snapshot' });
    await world.until('it is there', async () => world.get(name).catch(() => false as const));
    const { status } = await world.normal(name, Date.now(), 120);
    t.match(status, { captureMethod: 'scan', recoveryPoint: { consistency: 'crash' } });
    t.ok(await isOneInstant());
    fs.mkdirSync(join(root, 'later', 'below'), { recursive: true });
    fs.renameSync(join(root, 'made', 'data'), join(root, 'later', 'below', 'data'));
    fs.writeFileSync(join(root, 'later', 'large'), noise(1 << 20));
    await world.normal(name, Date.now(), 120);
    t.ok(await isOneInstant());
    t.ok(fs.existsSync(join((await world.copyOf(name)).path, 'later', 'below', 'data')));
    const ways = (await world.events()).filter(({ code, object }) => code === 'CutWay' && object?.includes(name));
    t.match(ways.map(({ message }) => message).join(), /consistency crash: snapshot of the storage/);
  });

  await suite.test('by clones of a file claim, with kills in the middle', atLength, async (t) => {
    replicate({ copyMethod: 'Clone' });
    await until(() => ours('volumesnapshots').length === 0);
    for (const kill of ['agent', 'master', 'agent'] as const) {
      await world.normal(name, Date.now(), 120);
      const taken = driver.taken.size;
      await world.until('a clone is made', async () => driver.taken.size > taken);
      await world[kill].kill();
      await (kill === 'master' ? world.startMaster() : world.startAgent());
      await world.normal(name, Date.now(), 120);
      t.ok(await isOneInstant(), kill);
    }
    t.ok(ours('pods').length <= 1 && ours('pvc').length <= 2);
  });

  await suite.test('one that is taken away while it is read is no point', atLength, async (t) => {
    replicate({ copyMethod: 'Snapshot', readBytesPerSecond: 500_000 });
    const isRefused = async (): Promise<boolean> => {
      const pods = JSON.parse(cluster.kubectl(['get', 'pods', '-n', 'shop', '-l', snapshotLabel, '-o', 'json'])) as { items: { metadata: { name: string }; status: { phase: string } }[] }; // prettier-ignore
      for (const { metadata, status } of pods.items)
        if (status.phase === 'Running')
          cluster.kubectl(['delete', 'pod', metadata.name, '-n', 'shop', '--wait=false', '--ignore-not-found']);
      const { conditions } = (await world.get(name)).status;
      return conditions.some(({ message }) =>
        /taken away while it was read|was removed by somebody else/.test(message),
      );
    };
    await world.until('it is refused', isRefused);
    replicate({ copyMethod: 'Snapshot', readBytesPerSecond: 0 });
    await world.normal(name, Date.now(), 120);
    t.ok(await isOneInstant());
  });

  await suite.test('with the replication all that was made of a file claim goes', async (t) => {
    cluster.kubectl(['delete', 'ri', name, '--timeout=60s']);
    await until(() => [...ours('volumesnapshots'), ...ours('pods'), ...ours('pvc')].length === 0);
    t.ok(node.pathOf('web') !== undefined, "the source's own pod is as it was");
  });
}
