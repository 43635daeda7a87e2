/**
 * The allow-list of a machine (`--allow`): what may be read as a source, and where a recovery may write.
 *
 * Guarantees: decided on the resolved path, so that no link leads out; system directories, `/`, and what holds or is the
 * program's own data are refused whatever the list says; pods' ephemeral volumes (emptyDir and its like) too. Kubelet's volume
 * folders and the recovery roots are allowed without being listed. Nothing that comes by the network widens it.
 * A refusal is a ReplicationError SourceRefused or TargetRefused that names the path and the cure.
 *
 * It decides at one moment: whoever opens the path afterwards opens the resolved path answered here, and what lies below it
 * relative to descriptors without following links. Whether a target is absent or empty is for those who write it to say.
 */
import { promises as fs } from 'node:fs';
import { basename, dirname, isAbsolute, join } from 'node:path';
import { messageOf, ReplicationError, systemErrorCode } from './errors.ts';

export interface AllowRules {
  /** Paths of directories, images and block devices; with what lies below. */
  allow: readonly string[];
  /** Block devices, images and directories, with what lies below, that a recovery may write; on agents. Default none. */
  allowWrite?: readonly string[];
  /** Where this program keeps its data. */
  own: readonly string[];
  /** Folders of recoveries: what is in them may be read and written though it is below `own`. */
  recoveries: readonly string[];
  /** Kubelet's root folder, on agents. */
  kubelet?: string;
  /** Paths of the devices and images that `own` lies on. */
  ownLayers?: () => Promise<Iterable<string>>;
}

export interface Allow {
  /** Answers the resolved path. @throws ReplicationError SourceRefused; SourceGone if it may be read but is absent */
  mayRead: (path: string) => Promise<string>;
  /** The path may be absent; answers it with everything resolved that exists. @throws ReplicationError TargetRefused */
  mayWriteRecovery: (path: string) => Promise<string>;
  /**
   * A volume that is there and that a recovery may write over. Answers the resolved path.
   * @throws ReplicationError TargetRefused; whether it is in use is for those who open it to say
   */
  mayWriteVolume: (path: string) => Promise<string>;
  /**
   * A program that hooks may run: an executable that is listed itself (not one below a listed folder, whose contents others
   * may write), and that none but its owner can change. Answers the resolved path. @throws ReplicationError SourceRefused
   */
  mayRun: (path: string) => Promise<string>;
}

/** Refused with all below them. */
const systemTrees = [
  'bin',
  'sbin',
  'lib',
  'lib32',
  'lib64',
  'libx32',
  'usr',
  'boot',
  'etc',
  'proc',
  'sys',
  'dev',
  'run',
].map((name) => `/${name}`);
/** Refused themselves; what is below may be allowed. */
const systemTops = ['/', '/var', '/var/lib', '/var/log', '/root', '/dev/shm', '/dev/mapper'];
/** Folders below /dev for things that are no device of the machine's. */
const devExceptions = ['/dev/shm'];

/** Volumes that end with their pod, as kubelet names their folders. */
const ephemeral = new Map([
  ['kubernetes.io~empty-dir', 'an emptyDir'],
  ['kubernetes.io~configmap', 'a ConfigMap'],
  ['kubernetes.io~secret', 'a Secret'],
  ['kubernetes.io~projected', 'a projected volume'],
  ['kubernetes.io~downward-api', 'a downward API volume'],
  ['kubernetes.io~git-repo', 'a gitRepo volume'],
]);

/** @throws ReplicationError SourceRefused for an entry that can never be allowed */
export function allowList(rules: AllowRules): Allow {
  const writable = rules.allowWrite ?? [];
  for (const [flag, entries] of [['--allow', rules.allow] as const, ['--allow-write', writable] as const])
    for (const entry of entries) {
      const wrong = !isAbsolute(entry) ? 'is not an absolute path' : refusedBySystem(trimmed(entry), true);
      if (wrong) throw new ReplicationError('SourceRefused', `${flag} ${entry}: ${wrong}`);
    }

  async function decideWrite(path: string): Promise<string> {
    const { real, exists } = await resolve(path);
    const block = await isBlockDevice(real);
    const wrong = refusedBySystem(real, block) ?? (await refusedAsOwn(real)) ?? refusedByKubelet(real);
    if (wrong) throw new Error(`${shown(path, real)} ${wrong}`);
    const listed = await Promise.all(writable.map(realOf));
    if (!listed.some((entry) => isWithin(real, entry)))
      throw new Error(
        `${shown(path, real)} may not be written: start the agent of its node with --allow-write ${real} if that is meant`,
      );
    if (!exists)
      throw new Error(`${path} does not exist; make the device, image (of the volume's size) or directory first`);
    const stat = await fs.stat(real);
    if (!block && !stat.isFile() && !stat.isDirectory())
      throw new Error(`${path} is neither a block device nor an image file nor a directory`);
    return real;
  }

  async function decide(path: string, writing: boolean): Promise<{ real: string; exists: boolean }> {
    const resolved = await resolve(path);
    const { real } = resolved;
    const block = await isBlockDevice(real);
    const wrong =
      refusedBySystem(real, block) ??
      (writing && block ? 'is a device: a recovery writes a new file or directory' : undefined) ??
      (await refusedAsOwn(real)) ??
      refusedByKubelet(real);
    if (wrong) throw new Error(`${shown(path, real)} ${wrong}`);
    if (await isAllowed(path, real, block)) return resolved;
    const cure = `start this program on its machine with --allow ${real} if that is meant`;
    if (writing) throw new Error(`${shown(path, real)} may not be written by recoveries: ${cure}`);
    const claim = rules.kubelet ? 'it is no volume of a CSI driver (a hostPath, perhaps): use a claim, or ' : '';
    throw new Error(`${shown(path, real)} may not be read: ${claim}${cure}`);
  }

  async function decideRun(path: string): Promise<string> {
    const { real } = await resolve(path);
    const listed = await Promise.all(rules.allow.map(realOf));
    if (!listed.includes(real))
      throw new Error(`${shown(path, real)} may not be run: start this program with --allow ${real} if that is meant`);
    const stat = await fs.stat(real);
    if (!stat.isFile() || !(stat.mode & 0o111)) throw new Error(`${shown(path, real)} is no executable file`);
    const isOurs = stat.uid === 0 || stat.uid === process.getuid?.();
    if (!isOurs || stat.mode & 0o022)
      throw new Error(`${shown(path, real)} can be changed by others: chown root and chmod go-w it`);
    return real;
  }

  async function refusedAsOwn(real: string): Promise<string | undefined> {
    for (const folder of rules.recoveries) if (isBelow(real, await realOf(folder))) return undefined;
    for (const folder of rules.own) {
      const own = await realOf(folder);
      if (isWithin(own, real)) return `holds this program's own data (${own}): choose what lies beside it`;
      if (isWithin(real, own)) return `is this program's own data (${own})`;
    }
    for (const layer of (await rules.ownLayers?.()) ?? []) {
      if ((await realOf(layer)) === real) return "is what this program's own data lie on";
    }
    return undefined;
  }

  async function isAllowed(path: string, real: string, block: boolean): Promise<boolean> {
    for (const folder of rules.recoveries) if (isBelow(real, await realOf(folder))) return true;
    for (const entry of rules.allow) if (isWithin(real, await realOf(entry))) return true;
    if (rules.kubelet === undefined) return false;
    const kubelet = await realOf(rules.kubelet);
    if (isKubeletVolume(real, kubelet)) return true;
    // volumeDevices of a pod are links to the device, made by the kubelet.
    const link = join(await realOf(dirname(trimmed(path))), basename(path));
    return block && /^\/pods\/[^/]+\/volumeDevices\/[^/]+\/[^/]+$/.test(below(link, kubelet) ?? '');
  }

  function refusedByKubelet(real: string): string | undefined {
    const plugin = /\/pods\/[^/]+\/volumes\/([^/]+)(\/|$)/.exec(real)?.[1] ?? '';
    const what = ephemeral.get(plugin);
    if (what) return `is ${what}, which ends with its pod: keep the data on a PersistentVolumeClaim instead`;
    if (rules.kubelet !== undefined && real === trimmed(rules.kubelet)) return 'is the folder of the kubelet';
    return undefined;
  }

  return {
    async mayRead(path) {
      const { real, exists } = await decide(path, false).catch(refuse('SourceRefused'));
      if (!exists) throw new ReplicationError('SourceGone', `${path} does not exist`);
      return real;
    },
    async mayWriteVolume(path) {
      return decideWrite(path).catch(refuse('TargetRefused'));
    },
    async mayRun(path) {
      return decideRun(path).catch(refuse('SourceRefused'));
    },
    async mayWriteRecovery(path) {
      return (await decide(path, true).catch(refuse('TargetRefused'))).real;
    },
  };
}

function refuse(code: 'SourceRefused' | 'TargetRefused'): (error: unknown) => never {
  return (error) => {
    throw new ReplicationError(code, messageOf(error), { cause: error });
  };
}

/** Folders that CSI drivers and other plugins mount below the kubelet's root; for CSI only the data, not the kubelet's notes. */
function isKubeletVolume(real: string, kubelet: string): boolean {
  const rest = below(real, kubelet) ?? '';
  const pod = /^\/pods\/[^/]+\/volumes\/([^/]+)\/[^/]+(\/mount)?(\/|$)/.exec(rest);
  if (pod) return pod[1] !== 'kubernetes.io~csi' || pod[2] !== undefined;
  return /^\/plugins\/kubernetes\.io\/csi\/([^/]+\/[^/]+\/globalmount|volumeDevices\/(publish|staging)\/[^/]+)(\/|$)/.test(
    rest,
  );
}

/** Why the path is none for our data, whatever a list says; undefined when it may be. Links are not looked at. */
export function refusedBySystem(real: string, device: boolean): string | undefined {
  if (systemTops.includes(real)) return 'is a system directory: choose a folder of its own';
  if (devExceptions.some((folder) => isWithin(real, folder))) return undefined;
  const tree = systemTrees.find((folder) => isWithin(real, folder));
  if (tree === undefined || (tree === '/dev' && device && real !== '/dev')) return undefined;
  return tree === '/dev' ? 'is not a block device' : `is in the system directory ${tree}`;
}

/** The path with every link followed, as far as it exists. */
async function resolve(path: string): Promise<{ real: string; exists: boolean }> {
  if (!isAbsolute(path) || path.includes('\0')) throw new Error(`${JSON.stringify(path)} is not an absolute path`);
  if (path.split('/').includes('..')) throw new Error(`${path} has '..' in it: write the path without`);
  const missing: string[] = [];
  for (let at = trimmed(path); ; at = dirname(at)) {
    try {
      return { real: join(await fs.realpath(at), ...missing), exists: missing.length === 0 };
    } catch (error) {
      // A link to nowhere is no missing path: what is made there would be made where it points.
      const dangling = await fs.lstat(at).catch(() => undefined);
      if (systemErrorCode(error) !== 'ENOENT' || dangling || at === '/') throw error;
      missing.unshift(basename(at));
    }
  }
}

/** Of configured paths, which may not exist yet. */
async function realOf(path: string): Promise<string> {
  return (await resolve(path).catch(() => ({ real: trimmed(path) }))).real;
}

async function isBlockDevice(path: string): Promise<boolean> {
  return (await fs.stat(path).catch(() => undefined))?.isBlockDevice() ?? false;
}

function trimmed(path: string): string {
  return (
    path
      .replace(/\/+/g, '/')
      .replace(/(\/\.)+(?=\/|$)/g, '')
      .replace(/(.)\/$/, '$1') || '/'
  );
}

function isWithin(path: string, root: string): boolean {
  return path === root || isBelow(path, root);
}

function isBelow(path: string, root: string): boolean {
  return path.startsWith(root.endsWith('/') ? root : `${root}/`) && path !== root;
}

/** '/rest' of a path below the root. */
function below(path: string, root: string): string | undefined {
  return isBelow(path, root) ? path.slice(root.length) : undefined;
}

function shown(path: string, real: string): string {
  return path === real ? path : `${path} (that is ${real})`;
}
