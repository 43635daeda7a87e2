/**
 * Whose processes use a volume: the pod that the kubelet has given it to, and the control group that the pod's processes are in.
 * What the node itself shows decides; the API has no say in what is stopped.
 *
 * Where the kubelet keeps groups (pkg/kubelet/cm of Kubernetes): kubepods/QOS/podUID with the driver cgroupfs,
 * kubepods.slice/kubepods-QOS.slice/kubepods-QOS-podUID.slice with the driver systemd, where dashes of the UID are
 * underscores; QOS is missing for guaranteed pods, and all can lie below another group that begins with "kube" (kind).
 */
import { promises as fs } from 'node:fs';
import { join } from 'node:path';
import { deviceText, isWithin, readBlockDevices, readMounts, wholeFilesystem, type Mount } from './mounts.ts';
import { canStop, mayHide, processesOf } from './standstill.ts';
import { csiVolumes } from './volumes.ts';

/** The folder of the group, or why there is none that could be stopped for this volume. */
export async function workloadOf(path: string, kubelet: string): Promise<{ folder: string } | string> {
  const mounts = await readMounts();
  const pods = await podsUsing(path, kubelet, mounts);
  if (pods.length === 0) return 'no pod of this node uses it';
  if (pods.length > 1) return `${pods.length} pods use it, which cannot be stopped at one moment`;
  const [pod = ''] = pods;
  const found = (await Promise.all(hierarchies(mounts).map((root) => groupsOf(root, pod)))).flat();
  // With v1 and v2 side by side the processes are where the container runtime freezes them.
  for (const folder of found) if ((await processesOf(folder)).length > 0) return { folder };
  // A wrong one stops nobody, and then the cut is refused: it demands the proof that nothing was written meanwhile.
  for (const folder of found) if (await mayHide(folder)) return { folder };
  return `no control group with processes of pod ${pod} is to be found here`;
}

async function podsUsing(path: string, kubelet: string, mounts: readonly Mount[]): Promise<string[]> {
  const pods = join(await fs.realpath(kubelet).catch(() => kubelet), 'pods');
  const [real, stat] = [await fs.realpath(path), await fs.stat(path, { bigint: true })];
  const found = new Set<string>();
  const add = (place: string): void => {
    if (isWithin(place, pods) && place !== pods) found.add(place.slice(pods.length + 1).split('/')[0] ?? '');
  };
  add(real);
  for (const volume of await csiVolumes(kubelet)) {
    if (volume.volumeMode !== 'Block') continue;
    const other = await fs.stat(volume.path, { bigint: true }).catch(() => undefined);
    const isSame = stat.isBlockDevice()
      ? other?.isBlockDevice() && other.rdev === stat.rdev
      : other?.dev === stat.dev && other.ino === stat.ino;
    if (isSame && volume.podUid) found.add(volume.podUid);
  }
  const { mount } = await wholeFilesystem(path, mounts, await readBlockDevices());
  const shown = [mount?.device, stat.isBlockDevice() ? deviceText(stat.rdev) : undefined];
  for (const { device, mountPoint } of mounts) if (shown.includes(device)) add(mountPoint);
  return [...found];
}

/** v2 first; of v1 the one with the freezer. */
function hierarchies(mounts: readonly Mount[]): string[] {
  const of = (type: string): string[] => mounts.filter((mount) => mount.type === type).map((one) => one.mountPoint);
  return [...of('cgroup2'), ...of('cgroup')];
}

async function groupsOf(root: string, pod: string): Promise<string[]> {
  const names = new Set([`pod${pod}`, `pod${pod.replaceAll('-', '_')}.slice`]);
  const entries = await fs.readdir(root, { withFileTypes: true }).catch(() => []);
  const found: string[] = [];
  for (const entry of entries) {
    if (!entry.isDirectory()) continue;
    const folder = join(root, entry.name);
    // A slice carries the names of those above it: kubepods-burstable-podUID.slice.
    if (names.has(entry.name.replace(/^.*-(?=pod[0-9a-f])/, ''))) {
      if (await canStop(folder)) found.push(folder);
    } else if (/^(kube|burstable$|besteffort$)/.test(entry.name) && !/pod[0-9a-f]{8}/.test(entry.name))
      found.push(...(await groupsOf(folder, pod)));
  }
  return found;
}
