/**
 * What a source is at this moment, and which volume it is.
 *
 * `sourceId` stays the same over reboots, restarts, other device names, growth and moves of a volume to another node, and changes
 * when another volume stands at the path. In this order:
 *
 * - Block, with a filesystem or the like on it (or a partition table): its type and UUID, `ext4:<uuid>`. A mkfs changes it;
 *   the same filesystem moved to another disk or restored into another image is still the same volume.
 * - A device with nothing known on it: what the hardware or driver says (wwid, serial, dm uuid), with the partition's number; a loop
 *   device is its backing file. As a last resort the path of the device.
 * - An image with nothing known on it: the file, that is, its filesystem, inode and birth time. Replacing the file changes it.
 * - A directory: its filesystem, its inode and its birth time (not on network filesystems, which learn to tell birth times with an
 *   upgrade). Another directory at the path, or another filesystem mounted there, changes it.
 *
 * Its filesystem means type and UUID; on network filesystems what is mounted (`nfs4:server:/export`); the type alone where
 * neither is to be had. diskseq and device numbers are not used: they change with a reboot.
 * A btrfs snapshot put in the place of its origin is not told apart from it: they share all of this.
 *
 * Reads only; a fault of the filesystem (a dead server) can hang it: bounded by the caller.
 */
import { createHash } from 'node:crypto';
import { promises as fs, type BigIntStats } from 'node:fs';
import { ReplicationError, systemErrorCode } from '../proto/errors.ts';
import { blkgetsize64 } from '../proto/libc.ts';
import { blockDevice, deviceText, mountOf, numberOf, readMounts, readSuperblock, type Mount } from './mounts.ts';

export interface SourceFacts {
  /** False: all others are empty or 0. */
  exists: boolean;
  kind: 'image' | 'device' | 'directory' | '';
  /** With links followed. */
  path: string;
  /** Block: of the volume. Filesystem: used bytes of the filesystem if the directory is all of it, else 0. */
  sizeBytes: number;
  sourceId: string;
  /** Type and UUID of the filesystem on (Block) or below (Filesystem) it, empty if unknown. */
  filesystem: string;
  filesystemId: string;
}

const absent: SourceFacts = {
  exists: false,
  kind: '',
  path: '',
  sizeBytes: 0,
  sourceId: '',
  filesystem: '',
  filesystemId: '',
};
const maxIdLength = 512;

/**
 * @param path absolute
 * @throws ReplicationError SourceRefused if the path is nothing of this mode; system errors but ENOENT
 */
export async function sourceFacts(path: string, volumeMode: 'Block' | 'Filesystem'): Promise<SourceFacts> {
  let real: string;
  let stat: BigIntStats;
  try {
    real = await fs.realpath(path);
    stat = await fs.stat(real, { bigint: true });
  } catch (error) {
    if (['ENOENT', 'ENOTDIR'].includes(systemErrorCode(error) ?? '')) return absent;
    throw error;
  }
  if (volumeMode === 'Filesystem') {
    if (!stat.isDirectory()) throw refused(path, 'is not a directory: replicate it with volumeMode Block');
    return (await awaitsMount(real)) ? absent : directoryFacts(real, stat);
  }
  if (!stat.isFile() && !stat.isBlockDevice()) {
    const cure = stat.isDirectory() ? ': replicate it with volumeMode Filesystem' : '';
    throw refused(path, `is neither a file nor a block device${cure}`);
  }
  const found = await readSuperblock(real);
  const bare = (): Promise<string> => (stat.isFile() ? fileId(real, stat) : deviceId(real, stat));
  return {
    exists: true,
    kind: stat.isFile() ? 'image' : 'device',
    path: real,
    sizeBytes: stat.isFile() ? Number(stat.size) : await deviceSize(real),
    sourceId: bounded(found ? `${found.type}:${found.id}` : await bare()),
    filesystem: found?.type ?? '',
    filesystemId: found?.id ?? '',
  };
}

function refused(path: string, what: string): ReplicationError {
  return new ReplicationError('SourceRefused', `${path} ${what}`);
}

async function deviceSize(path: string): Promise<number> {
  await using file = await fs.open(path, 'r');
  return await blkgetsize64(file.fd); // awaited here: else the descriptor is closed under the call
}

/**
 * A kubelet makes the directory of a CSI volume before its driver mounts the volume there: until then what is seen there is of
 * the node's own filesystem, and no source.
 */
async function awaitsMount(real: string): Promise<boolean> {
  if (!/\/pods\/[^/]+\/volumes\/kubernetes\.io~csi\/[^/]+\/mount$/.test(real)) return false;
  return mountOf(real, await readMounts())?.mountPoint !== real;
}

async function directoryFacts(real: string, stat: BigIntStats): Promise<SourceFacts> {
  const mount = mountOf(real, await readMounts());
  const below = await filesystemOf(mount);
  const whole = mount?.mountPoint === real && mount.root === '/';
  const { blocks, bfree, bsize } = await fs.statfs(real);
  return {
    exists: true,
    kind: 'directory',
    path: real,
    sizeBytes: whole ? (blocks - bfree) * bsize : 0,
    sourceId: bounded(await fileId(real, stat)),
    filesystem: below.type,
    filesystemId: below.id,
  };
}

/** Of a file or directory as such, whatever is in it. */
async function fileId(real: string, stat: BigIntStats): Promise<string> {
  const below = await filesystemOf(mountOf(real, await readMounts()));
  const born = below.isNetwork ? '' : `@${stat.birthtimeNs}`;
  return `${below.type}:${below.id}/${stat.ino}${born}`;
}

interface Below {
  type: string;
  id: string;
  isNetwork: boolean;
}

const networkTypes = /^(nfs4?|cifs|smb3|ceph|glusterfs|fuse\..*|lustre|gpfs|beegfs|9p|virtiofs|afs)$/;

export function isNetworkFilesystem(type: string): boolean {
  return networkTypes.test(type);
}

async function filesystemOf(mount: Mount | undefined): Promise<Below> {
  if (!mount) return { type: '', id: '', isNetwork: false };
  const isNetwork = isNetworkFilesystem(mount.type);
  if (isNetwork || mount.type === 'zfs') return { type: mount.type, id: mount.source, isNetwork };
  // btrfs has a number of its own: there by the device that it was mounted from.
  const device = await blockDevice((await numberOf(mount.source)) ?? mount.device);
  const found = device && (await readSuperblock(device.path).catch(() => undefined));
  return { type: mount.type, id: found?.id ?? '', isNetwork };
}

/** What the hardware or the driver calls the device. */
async function deviceId(real: string, stat: BigIntStats): Promise<string> {
  const device = await blockDevice(deviceText(stat.rdev));
  if (!device) return `path:${real}`;
  if (device.loop) {
    const { backingFile, offsetBytes } = device.loop;
    const backing = await fs.stat(backingFile, { bigint: true }).catch(() => undefined);
    if (backing) return `${await fileId(backingFile, backing)}+${offsetBytes}`;
  }
  const disk = device.parent ?? device.name;
  const part = device.parent === undefined ? '' : `:part${await attribute(`${device.name}/partition`)}`;
  for (const name of ['dm/uuid', 'wwid', 'device/wwid', 'serial', 'device/serial', 'md/uuid']) {
    const value = await attribute(`${disk}/${name}`);
    if (value) return `${name.replace('/', '-')}:${value}${part}`;
  }
  return `path:${real}`;
}

async function attribute(path: string): Promise<string> {
  return (await fs.readFile(`/sys/class/block/${path}`, 'utf8').catch(() => '')).trim();
}

/** Exports and the like can be long: then the hash of all takes the place of the rest. */
function bounded(id: string): string {
  if (id.length <= maxIdLength) return id;
  return `${id.slice(0, maxIdLength - 64)}${createHash('sha256').update(id).digest('hex')}`;
}
