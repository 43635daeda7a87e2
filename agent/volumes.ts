/**
 * The volumes of this node, for people to choose from: block devices, mounted filesystems, what CSI drivers have mounted below the
 * kubelet's folder, and the images and directories named by the allow-list.
 *
 * Guarantees: lists what it can tell without reading more than a superblock; a volume that may not be replicated is listed as
 * not eligible with the reason and the cure, and nothing is looked up below it. A filesystem or device that does not answer holds
 * the list up for `probeMs` once and is listed so; at most `maxHanging` threads are lost to such ones.
 *
 * Files are not searched for images: those that lie right in an allowed directory and are called .img or .raw are listed. The claim of a volume is not in the kubelet's folders: the master
 * knows it by the PersistentVolume.
 */
import { promises as fs } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Allow } from '../proto/allow.ts';
import { messageOf } from '../proto/errors.ts';
import type { Volume } from '../proto/wire.ts';
import { folderInUse } from './folderuse.ts';
import { readBlockDevices, readMounts, wholeFilesystem, type BlockDevice, type Mount } from './mounts.ts';
import type { OwnReading } from './ownreading.ts';
import { isNetworkFilesystem, sourceFacts } from './source-facts.ts';
import { inUse } from './volumewriter.ts';

export interface VolumesOptions {
  mayRead: Allow['mayRead'];
  /** The allow-list: images and directories on it are listed. */
  allow: readonly string[];
  /** Kubelet's root folder. */
  kubelet?: string;
  /** Why a resolved path is no whole volume now: a recovery has begun to write it. */
  halfWritten?: (path: string) => Promise<string | undefined>;
}

const probeMs = 2000;
const maxHanging = 2;
const maxImages = 100;

const blank: Volume = {
  path: '',
  kind: '',
  volumeMode: '',
  sizeBytes: 0,
  filesystem: '',
  filesystemId: '',
  mountPoint: '',
  csiDriver: '',
  csiVolume: '',
  persistentVolume: '',
  podUid: '',
  claim: '',
  eligible: false,
  reason: '',
  write: false,
};

interface Node {
  mounts: readonly Mount[];
  devices: readonly BlockDevice[];
}

/** Sorted by path, each path once. */
export async function listVolumes(options: VolumesOptions): Promise<Volume[]> {
  const node = await readNode();
  const hints = new Map<string, Partial<Volume>>();
  // Memory that looks like a disk, for swap most often: not offered, though it may be asked for.
  for (const device of node.devices)
    if (!device.name.startsWith('zram')) hints.set(device.path, deviceHints(device, node));
  for (const mount of node.mounts) if (isVolume(mount)) hints.set(mount.mountPoint, mountHints(mount));
  for (const allowed of options.allow) {
    for (const path of [allowed, ...(await imagesIn(allowed))]) if (!hints.has(path)) hints.set(path, {});
  }
  for (const volume of await csiVolumes(options.kubelet)) {
    hints.set(volume.path, { ...hints.get(volume.path), ...volume });
  }
  const volumes: Volume[] = [];
  for (const [path, known] of [...hints].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const volume = await describe(path, known, node, options);
    // What the allow-list names need not exist, and the same device can be named twice.
    if (volume.kind !== '') volumes.push(volume);
  }
  return volumes;
}

/** One path as a volume, whatever it is; not eligible, with the reason, if it is absent or refused. */
export async function describeVolume(path: string, options: VolumesOptions): Promise<Volume> {
  const node = await readNode();
  const device = node.devices.find((one) => one.path === path);
  const mount = node.mounts.findLast((one) => one.mountPoint === path);
  const csi = (await csiVolumes(options.kubelet)).find((volume) => volume.path === path);
  const known = { ...(device && deviceHints(device, node)), ...(mount && mountHints(mount)), ...csi };
  return describe(path, known, node, options);
}

/** One path as a volume that a recovery may write over now; not eligible, with the reason, when it may not. */
export async function describeWritable(
  path: string,
  allow: Pick<Allow, 'mayWriteVolume'>,
  reading: OwnReading,
): Promise<Volume> {
  let volume = { ...blank, path, volumeMode: 'Block', write: true };
  try {
    const real = await allow.mayWriteVolume(path);
    const isTree = (await fs.stat(real)).isDirectory();
    const volumeMode = isTree ? 'Filesystem' : 'Block';
    volume = { ...volume, volumeMode };
    const why = await reading.letGo(real, () => (isTree ? folderInUse(real) : inUse(real)));
    if (why !== undefined) return { ...volume, reason: why };
    const { kind, sizeBytes, filesystem, filesystemId } = await sourceFacts(real, volumeMode);
    return { ...volume, kind: kind === 'device' ? 'disk' : kind, sizeBytes, filesystem, filesystemId, eligible: true };
  } catch (error) {
    return { ...volume, reason: messageOf(error) };
  }
}

async function readNode(): Promise<Node> {
  const [mounts, devices] = await Promise.all([readMounts(), readBlockDevices()]);
  return { mounts, devices };
}

async function describe(path: string, known: Partial<Volume>, node: Node, options: VolumesOptions): Promise<Volume> {
  const volume = { ...blank, ...known, path };
  const found = await probe(path, () => look(path, volume, node, options));
  return found ?? { ...volume, eligible: false, reason: `${path} does not answer: is its server or disk gone?` };
}

async function look(path: string, volume: Volume, node: Node, options: VolumesOptions): Promise<Volume> {
  try {
    const real = await options.mayRead(path);
    const half = await options.halfWritten?.(real);
    if (half !== undefined) throw new Error(half);
    const isDirectory = (await fs.stat(real)).isDirectory();
    const { kind, sizeBytes, filesystem, filesystemId } = await sourceFacts(real, isDirectory ? 'Filesystem' : 'Block');
    const device = node.devices.find((one) => one.path === real);
    const mounted = isDirectory ? undefined : (await wholeFilesystem(real, node.mounts, node.devices)).mount;
    return {
      ...volume,
      kind: volume.kind || (kind === 'device' ? (device?.kind ?? 'disk') : kind),
      volumeMode: isDirectory ? 'Filesystem' : 'Block',
      sizeBytes: isDirectory && sizeBytes === 0 ? volume.sizeBytes : sizeBytes,
      filesystem,
      filesystemId,
      mountPoint: volume.mountPoint || (mounted?.mountPoint ?? ''),
      eligible: volume.reason === '',
    };
  } catch (error) {
    return { ...volume, eligible: false, reason: volume.reason || messageOf(error) };
  }
}

const hanging = new Set<string>();

/** Undefined when there is no answer in time; then it is not asked again until that has come. */
async function probe<T>(path: string, work: () => Promise<T>): Promise<T | undefined> {
  if (hanging.has(path) || hanging.size >= maxHanging) return undefined;
  const answer = work().finally(() => hanging.delete(path));
  const timer = new AbortController();
  const late = delay(probeMs, undefined, { signal: timer.signal }).then(
    () => void hanging.add(path),
    () => undefined,
  );
  try {
    return (await Promise.race([answer, late])) ?? undefined;
  } finally {
    timer.abort();
  }
}

function deviceHints(device: BlockDevice, { mounts }: Node): Partial<Volume> {
  const mount = mounts.find((one) => one.device === device.device || one.source === device.path);
  return {
    kind: device.kind,
    volumeMode: 'Block',
    sizeBytes: device.sizeBytes,
    filesystem: mount?.type ?? '',
    mountPoint: mount?.mountPoint ?? '',
  };
}

/** A filesystem with data, seen whole: no kernel's own, no container's layers, no single folder or file bound elsewhere. */
function isVolume(mount: Mount): boolean {
  const isData = /^(ext[234]|xfs|btrfs|f2fs|jfs|nilfs2|zfs|vfat|exfat|ntfs3|ocfs2|gfs2)$/.test(mount.type);
  return (isData && (mount.root === '/' || mount.type === 'btrfs')) || isNetworkFilesystem(mount.type);
}

function mountHints(mount: Mount): Partial<Volume> {
  return { kind: 'mount', volumeMode: 'Filesystem', filesystem: mount.type, mountPoint: mount.mountPoint };
}

/**
 * Volumes of CSI drivers, as the kubelet lays them out (pkg/volume/csi of Kubernetes):
 * pods/UID/volumes/kubernetes.io~csi/PV/{mount,vol_data.json}; pods/UID/volumeDevices/kubernetes.io~csi/PV, a link to the
 * device, with its vol_data.json in plugins/kubernetes.io/csi/volumeDevices/PV/data.
 */
export async function csiVolumes(kubelet: string | undefined): Promise<(Partial<Volume> & { path: string })[]> {
  if (kubelet === undefined) return [];
  const volumes: (Partial<Volume> & { path: string })[] = [];
  for (const podUid of await listed(join(kubelet, 'pods'))) {
    const pod = join(kubelet, 'pods', podUid);
    const mounts = join(pod, 'volumes/kubernetes.io~csi');
    for (const name of await listed(mounts)) {
      const notes = await readNotes(join(mounts, name, 'vol_data.json'));
      volumes.push({ ...csiHints(notes, name), path: join(mounts, name, 'mount'), volumeMode: 'Filesystem', podUid });
    }
    const links = join(pod, 'volumeDevices/kubernetes.io~csi');
    for (const name of await listed(links)) {
      const notes = await readNotes(
        join(kubelet, 'plugins/kubernetes.io/csi/volumeDevices', name, 'data/vol_data.json'),
      );
      volumes.push({ ...csiHints(notes, name), path: join(links, name), volumeMode: 'Block', podUid });
    }
  }
  return volumes;
}

function csiHints(notes: Record<string, unknown>, folder: string): Partial<Volume> {
  const text = (key: string): string => (typeof notes[key] === 'string' ? notes[key] : '');
  const isInline = text('volumeLifecycleMode') === 'Ephemeral';
  return {
    csiDriver: text('driverName'),
    csiVolume: text('volumeHandle'),
    persistentVolume: isInline ? '' : text('specVolID') || folder,
    ...(isInline ? { reason: 'an ephemeral inline volume ends with its pod: keep the data on a claim instead' } : {}),
  };
}

async function readNotes(path: string): Promise<Record<string, unknown>> {
  try {
    const notes: unknown = JSON.parse(await fs.readFile(path, 'utf8'));
    return typeof notes === 'object' && notes !== null ? { ...notes } : {};
  } catch {
    return {}; // being made or removed just now; the volume is listed all the same
  }
}

/** At most maxImages, as a directory may be a tree with anything in it. */
async function imagesIn(path: string): Promise<string[]> {
  const images = (await listed(path)).filter((name) => /\.(img|raw)$/.test(name));
  return images.slice(0, maxImages).map((name) => join(path, name));
}

async function listed(path: string): Promise<string[]> {
  return (await fs.readdir(path).catch(() => [])).sort();
}
