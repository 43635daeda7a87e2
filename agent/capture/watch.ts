/**
 * Hints where something changed in a tree, from inotify by way of @parcel/watcher.
 *
 * Hints make the next look quick and prove nothing: the library drops a queue overflow without a word, writes by mmap give no
 * event, and a hard link's other names are not told. So a recovery point never claims more than the last scan.
 * What cannot be told apart (an error of the watcher, too many paths, a name that is not UTF-8) asks for a wider look.
 */
import watcher from '@parcel/watcher';
import { statfs } from 'node:fs/promises';
import { messageOf } from '../../proto/errors.ts';

/** Paths kept between two looks; with more a scan is as cheap. */
const maxPaths = 4096;

export interface Hints {
  /** Why there are none (any more); undefined while they come. */
  readonly failure: string | undefined;
  /** Absolute paths since the last call; undefined = too many, or failed: scan. */
  take(): Set<string> | undefined;
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
]);

/** Kind of the filesystem where it also changes from other machines, with times of their clocks. Undefined on errors too. */
export async function remoteKind(path: string): Promise<string | undefined> {
  const found = await statfs(path).catch(() => undefined);
  return found && remote.get(found.type >>> 0);
}

/** Never throws: a tree without hints is scanned. */
export async function watchTree(path: string): Promise<Hints> {
  let failure: string | undefined;
  let paths: Set<string> | undefined = new Set();
  let subscription: watcher.AsyncSubscription | undefined;
  try {
    const kind = await remoteKind(path);
    if (kind !== undefined) throw new Error(`${kind} may be changed from elsewhere, which gives no events here`);
    subscription = await watcher.subscribe(
      path,
      (error, events) => {
        if (error) {
          failure = `the watcher failed: ${messageOf(error)}`;
          paths = undefined;
        }
        for (const event of events ?? []) {
          if (paths && paths.size < maxPaths) paths.add(event.path);
          else paths = undefined;
        }
      },
      { backend: 'inotify' },
    );
  } catch (error) {
    failure = messageOf(error);
  }
  return {
    get failure() {
      return failure;
    },
    take() {
      const taken = failure === undefined ? paths : undefined;
      paths = new Set();
      return taken;
    },
    async close() {
      // It fails when a watched directory is gone; then there is nothing to take back.
      await subscription?.unsubscribe().catch(() => undefined);
      subscription = undefined;
      failure ??= 'closed';
    },
  };
}
