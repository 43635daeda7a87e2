/**
 * What scheduler, CSI provisioner and kubelet do with pods of receivers, for tests with a real API server and none of them: a pod that
 * the node's labels fit is bound to it, its claim gets a volume (a loop device with ext4), which is mounted below the node's
 * folder; the container's command runs with its arguments, environment and volumes, is started anew when it dies, and goes with the
 * pod. Paths of the container are put for those of the node; users, limits and probes are not looked at.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Test } from 'tap';
import type { TestCluster } from '../kubernetes.ts';
import { loopDevice, run, unmountAfter } from '../loop.ts';
import { program, type Program } from './program.ts';

interface PodObject {
  metadata: { name: string; uid: string; deletionTimestamp?: string };
  spec: {
    nodeName?: string;
    nodeSelector?: Record<string, string>;
    containers: {
      command: string[];
      args: string[];
      env: { name: string; value?: string }[];
      volumeMounts: { name: string; mountPath: string }[];
      volumeDevices?: { name: string; devicePath: string }[];
    }[];
    volumes: {
      name: string;
      persistentVolumeClaim?: { claimName: string };
      secret?: { secretName: string };
      emptyDir?: object;
    }[];
  };
}
interface ClaimObject {
  metadata: { name: string; uid: string };
  spec: {
    volumeName?: string;
    accessModes: string[];
    volumeMode: 'Block' | 'Filesystem';
    storageClassName: string;
    resources: { requests: { storage: string } };
  };
  status: { phase: string };
}

export interface ReceiverNode {
  /** Of a pod that runs here. */
  process(pod: string): Program | undefined;
  /** Where the volume of a claim is mounted; of a block volume its device. */
  mountOf(claim: string): string;
  /** Leaves pods and processes as they are from now on. */
  stop(): Promise<void>;
}

const root = resolve(import.meta.dirname, '../..');

export function runReceiverNode(
  t: Test,
  cluster: TestCluster,
  namespace: string,
  node: { name: string; labels: Record<string, string>; folder: string; subnet: string },
): ReceiverNode {
  const base = `/api/v1/namespaces/${namespace}`;
  const running = new Map<string, { uid: string; process: Program }>();
  const mounts = new Map<string, string>();
  const provided = new Set<string>();
  const stopping = new AbortController();
  let addresses = 0;
  mkdirSync(node.folder, { recursive: true });
  cluster.kubectl(
    ['apply', '-f', '-'],
    JSON.stringify({ apiVersion: 'v1', kind: 'Node', metadata: { name: node.name, labels: node.labels } }),
  );
  const get = async <T>(path: string): Promise<T> => (await cluster.request('GET', path)).body as T;

  /** As a provisioner does it once the claim's consumer has a node. */
  async function provide(name: string): Promise<boolean> {
    const claim = await get<ClaimObject>(`${base}/persistentvolumeclaims/${name}`);
    if (claim.status.phase === 'Bound') return true;
    // The only storage that this node reaches.
    if (claim.spec.storageClassName !== 'tests') return false;
    const volume = `pv-${claim.metadata.uid}`;
    if (provided.has(volume)) return false;
    provided.add(volume);
    const annotations = { 'volume.kubernetes.io/selected-node': node.name };
    await cluster.request('PATCH', `${base}/persistentvolumeclaims/${name}`, { metadata: { annotations } });
    const { device } = loopDevice(t, 512);
    const { accessModes, storageClassName, resources, volumeMode } = claim.spec;
    if (volumeMode === 'Block') {
      // Of somebody before.
      writeFileSync(device, Buffer.alloc(16 << 20, 0x5a));
      mounts.set(name, device);
    } else {
      run('mkfs.ext4', '-q', device);
      const mountPoint = join(node.folder, 'volumes', volume, 'mount');
      mkdirSync(mountPoint, { recursive: true });
      run('mount', device, mountPoint);
      unmountAfter(t, mountPoint);
      mounts.set(name, mountPoint);
    }
    const made = await cluster.request('POST', '/api/v1/persistentvolumes', {
      apiVersion: 'v1',
      kind: 'PersistentVolume',
      metadata: { name: volume },
      spec: {
        ...{ accessModes, storageClassName, capacity: resources.requests, volumeMode },
        persistentVolumeReclaimPolicy: 'Retain',
        claimRef: { apiVersion: 'v1', kind: 'PersistentVolumeClaim', namespace, name, uid: claim.metadata.uid },
        csi: { driver: 'csi.example.com', volumeHandle: volume },
      },
    });
    if (made.status !== 201) throw new Error(`${volume}: ${JSON.stringify(made.body)}`);
    return false;
  }

  async function secretFolder(uid: string, name: string): Promise<string> {
    const { data } = await get<{ data: Record<string, string> }>(`${base}/secrets/${name}`);
    const folder = join(node.folder, 'pods', uid, name);
    mkdirSync(folder, { recursive: true });
    for (const [key, value] of Object.entries(data)) writeFileSync(join(folder, key), Buffer.from(value, 'base64'));
    return folder;
  }

  async function start({ metadata, spec }: PodObject): Promise<void> {
    const [container] = spec.containers;
    if (!container) throw new Error('a pod has a container');
    const places: [string, string][] = [['/opt/cdm-replicator', root]];
    const inContainer = [
      ...container.volumeMounts.map(({ name, mountPath }) => [name, mountPath] as const),
      ...(container.volumeDevices ?? []).map(({ name, devicePath }) => [name, devicePath] as const),
    ];
    for (const [name, path] of inContainer) {
      const { persistentVolumeClaim, secret, emptyDir } = spec.volumes.find((one) => one.name === name) ?? {};
      const folder = join(node.folder, 'pods', metadata.uid, name);
      if (emptyDir) mkdirSync(folder, { recursive: true });
      if (persistentVolumeClaim) places.push([path, mounts.get(persistentVolumeClaim.claimName) ?? '']);
      else places.push([path, secret ? await secretFolder(metadata.uid, secret.secretName) : folder]);
    }
    const onNode = (text: string): string => {
      for (const [from, to] of places) {
        const path = new RegExp(`(^|=)${from}(?=/|$)`);
        if (path.test(text)) return text.replace(path, `$1${to}`);
      }
      return text;
    };
    const ip = `${node.subnet}.${++addresses}`;
    const variables = new Map(container.env.map(({ name, value }) => [name, value ?? ip]));
    const argv = container.args.map((text) =>
      onNode(text.replace(/\$\((\w+)\)/g, (_, name: string) => variables.get(name) ?? '')),
    );
    const command = container.command.map(onNode).join(' ');
    if (command !== join(root, 'master/replicator-receiver')) throw new Error(`the image has no ${command}`);
    const process = program('replicator-receiver', () => argv, join(node.folder, `${metadata.name}.log`));
    running.set(metadata.name, { uid: metadata.uid, process });
    process.start();
    t.teardown(() => process.kill());
    const status = { phase: 'Running', podIP: ip, podIPs: [{ ip }] };
    await cluster.request('PATCH', `${base}/pods/${metadata.name}/status`, { status });
  }

  async function look(pod: PodObject): Promise<void> {
    const { name, uid, deletionTimestamp } = pod.metadata;
    const here = running.get(name);
    if (deletionTimestamp !== undefined || (here && here.uid !== uid)) {
      await here?.process.stop();
      running.delete(name);
      if (deletionTimestamp !== undefined) {
        const preconditions = { gracePeriodSeconds: 0, preconditions: { uid } };
        await cluster.request('DELETE', `${base}/pods/${name}`, {
          apiVersion: 'v1',
          kind: 'DeleteOptions',
          ...preconditions,
        });
      }
    } else if (here) {
      if (!here.process.running) here.process.start();
    } else if (pod.spec.nodeName === node.name) await start(pod);
    else if (pod.spec.nodeName === undefined) {
      const fits = Object.entries(pod.spec.nodeSelector ?? {}).every(([key, value]) => node.labels[key] === value);
      const claims = pod.spec.volumes.flatMap(({ persistentVolumeClaim }) => persistentVolumeClaim?.claimName ?? []);
      if (!fits) return;
      for (const claim of claims) if (!(await provide(claim))) return;
      const binding = { metadata: { name }, target: { apiVersion: 'v1', kind: 'Node', name: node.name } };
      await cluster.request('POST', `${base}/pods/${name}/binding`, { apiVersion: 'v1', kind: 'Binding', ...binding });
    }
  }

  const selector = encodeURIComponent('app.kubernetes.io/name=cdm-replicator-receiver');
  async function work(): Promise<void> {
    while (!stopping.signal.aborted) {
      try {
        const { items = [] } = await get<{ items?: PodObject[] }>(`${base}/pods?labelSelector=${selector}`);
        for (const pod of items.filter(({ spec }) => [node.name, undefined].includes(spec.nodeName)))
          await look(pod).catch((error: unknown) => t.comment(`${pod.metadata.name}: ${String(error)}`));
        for (const [name, { process }] of running)
          if (!items.some(({ metadata }) => metadata.name === name)) {
            await process.stop();
            running.delete(name);
          }
      } catch (error) {
        t.comment(`node ${node.name}: ${String(error)}`);
      }
      await sleep(200, undefined, { signal: stopping.signal }).catch(() => undefined);
    }
  }
  const done = work();
  const made: ReceiverNode = {
    process: (pod) => running.get(pod)?.process,
    mountOf: (claim) => mounts.get(claim) ?? '',
    async stop() {
      stopping.abort();
      await done;
    },
  };
  t.teardown(() => made.stop());
  return made;
}

/** Volumes are made when the pod that uses them has a node, and outlive their claim. */
export function defineStorageClass(cluster: TestCluster, name: string, reclaimPolicy = 'Retain'): void {
  const object = { apiVersion: 'storage.k8s.io/v1', kind: 'StorageClass', metadata: { name } };
  const rest = { provisioner: 'csi.example.com', volumeBindingMode: 'WaitForFirstConsumer', reclaimPolicy };
  cluster.kubectl(['apply', '-f', '-'], JSON.stringify({ ...object, ...rest, allowVolumeExpansion: true }));
}

/** Lets go of a mount for good. */
export function unmount(mountPoint: string): void {
  spawnSync('umount', ['--lazy', mountPoint]);
  rmSync(mountPoint, { recursive: true, force: true });
}
