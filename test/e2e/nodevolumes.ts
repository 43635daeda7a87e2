/**
 * What a kubelet and a CSI driver do with the volume of a pod, for tests with a real API server and no kubelet: pods are made on a
 * node, their volume is mounted (or linked, for a block volume) into the kubelet's folder of that node, and taken away again.
 * Folders and notes are laid out as in pkg/volume/csi of Kubernetes.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Test } from 'tap';
import type { TestCluster } from '../kubernetes.ts';
import { run } from '../loop.ts';

export interface VolumeOfNode {
  /** Of the claim and of the volume. */
  claim: string;
  volume: string;
  mode: 'Filesystem' | 'Block';
  /** What is mounted there, or linked to. */
  device: string;
  readOnly?: boolean;
}

export interface PodOnNode {
  uid: string;
  /** Where the volume is. */
  path: string;
  /** Takes the volume away, then the pod. */
  stop(): void;
}

export function definePersistentVolume(cluster: TestCluster, namespace: string, of: VolumeOfNode): void {
  const object = {
    apiVersion: 'v1',
    kind: 'PersistentVolume',
    metadata: { name: of.volume },
    spec: {
      capacity: { storage: '64Mi' },
      accessModes: ['ReadWriteOnce'],
      volumeMode: of.mode,
      storageClassName: 'tests',
      persistentVolumeReclaimPolicy: 'Retain',
      claimRef: { namespace, name: of.claim },
      csi: { driver: 'csi.example.com', volumeHandle: `handle-${of.volume}` },
    },
  };
  cluster.kubectl(['apply', '-f', '-'], JSON.stringify(object));
}

export function defineClaim(
  cluster: TestCluster,
  namespace: string,
  name: string,
  mode: string,
  more: { accessMode?: string; annotations?: object; labels?: object } = {},
): void {
  const { accessMode = 'ReadWriteOnce', annotations = {}, labels = {} } = more;
  const object = {
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata: { name, namespace, annotations, labels },
    spec: {
      accessModes: [accessMode],
      volumeMode: mode,
      storageClassName: 'tests',
      resources: { requests: { storage: '64Mi' } },
    },
  };
  cluster.kubectl(['apply', '-f', '-'], JSON.stringify(object));
}

/** As the kubelet lays out a volume of a pod. */
export function placeVolume(kubelet: string, podUid: string, of: VolumeOfNode): { path: string; takeAway: () => void } {
  const isBlock = of.mode === 'Block';
  const pod = join(kubelet, 'pods', podUid);
  const notes = JSON.stringify({
    driverName: 'csi.example.com',
    volumeHandle: `handle-${of.volume}`,
    specVolID: of.volume,
  });
  const links = join(pod, 'volumeDevices/kubernetes.io~csi');
  const folder = join(pod, 'volumes/kubernetes.io~csi', of.volume);
  const path = isBlock ? join(links, of.volume) : join(folder, 'mount');
  if (isBlock) {
    const data = join(kubelet, 'plugins/kubernetes.io/csi/volumeDevices', of.volume, 'data');
    mkdirSync(data, { recursive: true });
    mkdirSync(links, { recursive: true });
    writeFileSync(join(data, 'vol_data.json'), notes);
    symlinkSync(of.device, path);
  } else {
    mkdirSync(path, { recursive: true });
    writeFileSync(join(folder, 'vol_data.json'), notes);
    run('mount', '-o', of.readOnly === true ? 'ro' : 'rw', of.device, path);
  }
  const takeAway = (): void => {
    if (!isBlock) {
      spawnSync('fsfreeze', ['--unfreeze', path], { stdio: 'ignore' });
      // Lazily: an agent may be reading.
      spawnSync('umount', ['--lazy', path], { stdio: 'ignore' });
    }
    rmSync(path, { recursive: true, force: true });
    rmSync(pod, { recursive: true, force: true });
  };
  return { path, takeAway };
}

/** A pod that runs on the node, with its volume. */
export function startPod(
  t: Pick<Test, 'teardown'>,
  cluster: TestCluster,
  namespace: string,
  name: string,
  node: { name: string; kubelet: string },
  of: VolumeOfNode,
): PodOnNode {
  const isBlock = of.mode === 'Block';
  const object = {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, namespace },
    spec: {
      nodeName: node.name,
      // As a restricted namespace wants it.
      securityContext: { runAsNonRoot: true, seccompProfile: { type: 'RuntimeDefault' } },
      containers: [
        {
          name: 'app',
          image: 'app',
          securityContext: { allowPrivilegeEscalation: false, capabilities: { drop: ['ALL'] } },
          ...(isBlock
            ? { volumeDevices: [{ name: 'data', devicePath: '/dev/data' }] }
            : { volumeMounts: [{ name: 'data', mountPath: '/data' }] }),
        },
      ],
      volumes: [{ name: 'data', persistentVolumeClaim: { claimName: of.claim } }],
    },
  };
  cluster.kubectl(['apply', '-f', '-'], JSON.stringify(object));
  const uid = cluster.kubectl(['get', 'pod', name, '-n', namespace, '-o', 'jsonpath={.metadata.uid}']);
  const { path, takeAway } = placeVolume(node.kubelet, uid, of);
  t.teardown(takeAway);
  cluster.kubectl([
    'patch',
    'pod',
    name,
    '-n',
    namespace,
    '--subresource=status',
    '--type=merge',
    '-p',
    '{"status":{"phase":"Running"}}',
  ]);
  return {
    uid,
    path,
    stop() {
      takeAway();
      cluster.kubectl(['delete', 'pod', name, '-n', namespace, '--grace-period=0', '--force']);
    },
  };
}
