/**
 * What scheduler and kubelet do with pods whose volume an image driver made, for tests with real sidecars and neither of them: a claim gets
 * the node that its pod wants, the pod is bound once the claim is, and its volume, a loop device over the image or the filesystem on it (made
 * when there is none), is laid out below the kubelet's folder.
 */
import { mkdirSync } from 'node:fs';
import { spawnSync } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Test } from 'tap';
import type { TestCluster } from '../kubernetes.ts';
import { run } from '../loop.ts';
import type { ImageDriver } from './imagedriver.ts';
import { placeVolume } from './nodevolumes.ts';

interface PodObject {
  metadata: { name: string; uid: string; deletionTimestamp?: string };
  spec: { nodeName?: string; volumes: { persistentVolumeClaim?: { claimName: string; readOnly?: boolean } }[] };
}
interface ClaimObject {
  metadata: { annotations?: Record<string, string> };
  spec: { volumeName?: string; volumeMode: 'Filesystem' | 'Block' };
  status: { phase: string };
}

export interface ImageNode {
  /** The loop device of a pod's volume, while it is there. */
  deviceOf(pod: string): string | undefined;
  /** Where that volume is, for the pod. */
  pathOf(pod: string): string | undefined;
}

export function runImageNode(
  t: Pick<Test, 'teardown'>,
  cluster: TestCluster,
  driver: ImageDriver,
  { namespace, name, kubelet }: { namespace: string; name: string; kubelet: string },
): ImageNode {
  const base = `/api/v1/namespaces/${namespace}`;
  const placed = new Map<string, { name: string; device: string; path: string; takeAway: () => void }>();
  const stopping = new AbortController();
  mkdirSync(kubelet, { recursive: true });
  cluster.kubectl(['apply', '-f', '-'], JSON.stringify({ apiVersion: 'v1', kind: 'Node', metadata: { name } }));
  const get = async <T>(path: string): Promise<T> => (await cluster.request('GET', path)).body as T;

  async function look({ metadata, spec }: PodObject): Promise<void> {
    const used = spec.volumes.flatMap(({ persistentVolumeClaim }) => persistentVolumeClaim ?? [])[0];
    const claimName = used?.claimName;
    if (claimName === undefined || placed.has(metadata.uid)) return;
    const path = `${base}/persistentvolumeclaims/${claimName}`;
    const claim = await get<ClaimObject>(path);
    const key = 'volume.kubernetes.io/selected-node';
    if (claim.metadata.annotations?.[key] === undefined)
      await cluster.request('PATCH', path, { metadata: { annotations: { [key]: name } } });
    const { volumeName, volumeMode } = claim.spec;
    if (claim.status.phase !== 'Bound' || volumeName === undefined) return;
    if (spec.nodeName === undefined) {
      const binding = { metadata: { name: metadata.name }, target: { apiVersion: 'v1', kind: 'Node', name } };
      await cluster.request('POST', `${base}/pods/${metadata.name}/binding`, {
        apiVersion: 'v1',
        kind: 'Binding',
        ...binding,
      });
      return;
    }
    const volume = await get<{ spec: { csi: { volumeHandle: string } } }>(`/api/v1/persistentvolumes/${volumeName}`);
    const device = run('losetup', '--find', '--show', driver.image(volume.spec.csi.volumeHandle)).trim();
    if (volumeMode === 'Filesystem' && spawnSync('blkid', [device]).status !== 0) run('mkfs.ext4', '-q', device);
    const { readOnly = false } = used ?? {};
    const of = { claim: claimName, volume: volumeName, mode: volumeMode, device, readOnly };
    const { path: at, takeAway } = placeVolume(kubelet, metadata.uid, of);
    placed.set(metadata.uid, { name: metadata.name, device, path: at, takeAway });
    await cluster.request('PATCH', `${base}/pods/${metadata.name}/status`, { status: { phase: 'Running' } });
  }

  function leave(uid: string): void {
    const one = placed.get(uid);
    placed.delete(uid);
    one?.takeAway();
    if (one) spawnSync('losetup', ['--detach', one.device]);
  }

  async function work(): Promise<void> {
    while (!stopping.signal.aborted) {
      try {
        const { items } = await get<{ items: PodObject[] }>(`${base}/pods`);
        const present = new Set(items.filter((pod) => pod.metadata.deletionTimestamp === undefined).map(({ metadata }) => metadata.uid)); // prettier-ignore
        for (const uid of placed.keys()) if (!present.has(uid)) leave(uid);
        for (const pod of items) {
          const { uid, name: podName, deletionTimestamp } = pod.metadata;
          if (deletionTimestamp === undefined) await look(pod);
          else
            await cluster.request('DELETE', `${base}/pods/${podName}`, {
              apiVersion: 'v1',
              kind: 'DeleteOptions',
              gracePeriodSeconds: 0,
              preconditions: { uid },
            });
        }
      } catch (error) {
        // The API server is being killed, or something went while it was looked at: looked at again.
        if (stopping.signal.aborted) return;
        void error;
      }
      await sleep(100);
    }
  }
  const working = work();
  t.teardown(async () => {
    stopping.abort();
    await working;
    for (const uid of [...placed.keys()]) leave(uid);
  });
  const ofPod = (pod: string) => [...placed.values()].find((one) => one.name === pod);
  return { deviceOf: (pod) => ofPod(pod)?.device, pathOf: (pod) => ofPod(pod)?.path };
}
