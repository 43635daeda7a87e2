/**
 * Hints where something changed in a tree between two looks, by the best means that works here: `fanotify`, then `inotify`, then
 * none. Hints make a look quick and prove nothing (a write by mmap or by asynchronous I/O gives no event): a recovery point
 * never claims more than the last scan.
 */
import { statfs } from 'node:fs/promises';
import { messageOf } from '../../proto/errors.ts';
import type { Manifest } from '../manifest.ts';
import { watchFilesystem } from './fanotify.ts';
import { watchDirectories } from './inotify.ts';
import type { Tree } from './tree.ts';

/** What a look has to look at. */
export interface Hinted {
  /** Names by the slot of the directory that they are in. */
  names: Map<number, Buffer[]>;
  /** Why a scan is needed all the same, empty = it is not. */
  doubt: string;
}

export interface Hints {
  readonly method: 'fanotify' | 'inotify' | 'scan';
  /** Why this one, for people. */
  readonly reason: string;
  /**
   * What was changed before a call of `take` is in what it answers, whatever is moved to whatever place, unless it says
   * that it is not. Else hints come late, and directories that were moved must be looked through.
   */
  readonly isPrompt: boolean;
  /** Times that hints were lost since the beginning. */
  readonly lost: number;
  /** Since the last call. */
  take(tree: Tree): Hinted;
  close(): Promise<void>;
}

/** Magic numbers of statfs(2) of filesystems that also change from elsewhere, without events here. */
const remote: ReadonlyMap<number, string> = new Map([
  [0x6969, 'nfs'],
  [0xff534d42, 'cifs'],
  [0xfe534d42, 'smb2'],
  [0x00c36400, 'ceph'],
  [0x01021997, '9p'],
  [0x65735546, 'fuse'],
  [0x0bd00bd0, 'lustre'],
  [0x47504653, 'gpfs'],
  [0x7461636f, 'ocfs2'],
  [0x01161970, 'gfs2'],
  [0x6b414653, 'afs'],
  [0x5346414f, 'afs'],
  [0x73757245, 'coda'],
]);

/** Kind of the filesystem where it also changes from other machines, with times of their clocks. Undefined on errors too. */
export async function remoteKind(path: string): Promise<string | undefined> {
  const found = await statfs(path).catch(() => undefined);
  return found && remoteKindOf(found.type);
}

/** By the magic number, which may come with a sign. */
export function remoteKindOf(type: number): string | undefined {
  return remote.get(type >>> 0);
}

/** Never throws: a tree without hints is scanned. `only`: for tests of the others where fanotify works. */
export async function watchTree(tree: Tree, manifest: Manifest, only?: Hints['method']): Promise<Hints> {
  const kind = await remoteKind(tree.path);
  if (kind !== undefined) return noHints(`${kind} may be changed from elsewhere, which gives no events here`);
  const failures: string[] = [];
  for (const [method, watch] of Object.entries({ fanotify: watchFilesystem, inotify: watchDirectories })) {
    if (only !== undefined && only !== method) continue;
    try {
      return await watch(tree, manifest, failures.map((failure) => `; ${failure}`).join(''));
    } catch (error) {
      failures.push(`no ${method}: ${messageOf(error)}`);
    }
  }
  return noHints(failures.join('; '));
}

function noHints(why: string): Hints {
  return {
    method: 'scan',
    reason: `scans only: ${why}`,
    isPrompt: false,
    lost: 0,
    take: () => ({ names: new Map(), doubt: '' }),
    close: async () => undefined,
  };
}
