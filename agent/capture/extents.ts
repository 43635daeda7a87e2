/**
 * Capture `extents`: an image on a filesystem with reflinks (XFS, btrfs) is cloned at each cut, and the clone is compared
 * with the one before by where their extents lie (extentdiff.ts). The cut is read from the clone.
 *
 * Nothing runs between the cuts, so nothing can be missed: while the clone of the newest cut is there, it proves, over
 * crashes and reboots, what has changed since. It goes only when the map with the next one is kept.
 *
 * Clones lie in a folder of their own at the root of the image's filesystem (0700), named after the replication. The one
 * clone that is kept holds the blocks that were written over since the last cut, and no more.
 */
import { constants, promises as fs } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { systemErrorCode } from '../../proto/errors.ts';
import { ficlone, fiemap } from '../../proto/libc.ts';
import { diskFile } from '../../proto/system.ts';
import type { View } from '../device.ts';
import { mountOf, readMounts } from '../mounts.ts';
import type { BlockCapture, Drained, MarkBytes } from './block.ts';
import { compareExtents } from './extentdiff.ts';

export const cloneFolder = '.cdm-replicator';
/** Clones whose map could not be kept; with more of them the oldest go. */
const maxStale = 2;

interface Clone {
  path: string;
  ino: string;
  sizeBytes: number;
}

export interface ExtentsOptions {
  /** Of the image, resolved. */
  path: string;
  /** Tells the clones of this replication from those of others; letters and digits. */
  name: string;
}

export class Extents implements BlockCapture {
  readonly method = 'extents';
  readonly reason = 'its filesystem clones the image, and two clones tell what changed between them';
  readonly lostEvents = 0;
  marks: MarkBytes = () => undefined;
  onMarks = (): void => undefined;
  readonly #options: ExtentsOptions;
  #folder = '';
  #newest: Clone | undefined;
  /** Replaced, and perhaps what a kept map still needs. */
  readonly #stale: Clone[] = [];
  #made = 0;

  constructor(options: ExtentsOptions) {
    this.#options = options;
  }

  async begin(state: unknown): Promise<{ proven: boolean; reason: string }> {
    await this.#probe();
    const before = await stillThere(state);
    await this.#clean(before?.path);
    if (before) {
      this.#newest = before;
      return { proven: true, reason: 'the clone of the last cut is there to compare with' };
    }
    const { clone, file } = await this.#clone();
    await file.close();
    this.#newest = clone;
    return { proven: false, reason: 'there is no clone of an earlier cut' };
  }

  /** Without a trace: whether this filesystem can. @throws Error with why not */
  async #probe(): Promise<void> {
    const { path } = this.#options;
    await using image = await fs.open(path, constants.O_RDONLY);
    let clone: fs.FileHandle;
    try {
      clone = await fs.open(dirname(path), O_TMPFILE | constants.O_RDWR, 0o600);
    } catch (error) {
      throw new Error(`no file can be made beside the image: ${String(error)}`, { cause: error });
    }
    await using held = clone;
    try {
      await ficlone(held.fd, image.fd);
      for await (const _ of fiemap(held.fd)) break;
    } catch (error) {
      throw new Error(`the filesystem of the image has no reflinks: ${String(error)}`, { cause: error });
    }
    const mount = mountOf(path, await readMounts());
    this.#folder = join(mount?.mountPoint ?? dirname(path), cloneFolder);
    await fs.mkdir(this.#folder, { mode: 0o700 }).catch(async (error: NodeJS.ErrnoException) => {
      if (error.code === 'EEXIST') return;
      // The filesystem's root may be another one's: then beside the image.
      this.#folder = join(dirname(path), cloneFolder);
      await fs.mkdir(this.#folder, { recursive: true, mode: 0o700 });
    });
    // Whoever may write to that filesystem could have put something else there. Root's is of an agent that ran as root.
    const found = await fs.lstat(this.#folder);
    if (!found.isDirectory() || (found.uid !== 0 && found.uid !== process.getuid?.()) || found.mode & 0o077)
      throw new Error(`${this.#folder} is not a folder of this agent's alone: remove it`);
  }

  /** What an agent before us left, but the one that is needed. */
  async #clean(kept: string | undefined): Promise<void> {
    for (const name of await fs.readdir(this.#folder)) {
      const path = join(this.#folder, name);
      if (name.startsWith(`${this.#options.name}.`) && path !== kept) await fs.rm(path, { force: true });
    }
  }

  async #clone(): Promise<{ clone: Clone; file: fs.FileHandle }> {
    await using image = await fs.open(this.#options.path, constants.O_RDONLY);
    const path = join(this.#folder, `${this.#options.name}.${Date.now()}-${this.#made++}`);
    const file = await fs.open(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL, 0o600);
    try {
      await ficlone(file.fd, image.fd);
      const { ino, size } = await file.stat({ bigint: true });
      return { clone: { path, ino: String(ino), sizeBytes: Number(size) }, file };
    } catch (error) {
      await file.close();
      await fs.rm(path, { force: true });
      throw error;
    }
  }

  /** Nothing is known between cuts, and nothing needs to be. */
  async drain(): Promise<Drained> {
    return { doubt: undefined, still: undefined, busy: 'the image is seen by its clones alone' };
  }

  async hold(): Promise<{ view: View; settle(): Promise<{ doubt: string | undefined }> }> {
    const { clone, file } = await this.#clone();
    const reader = diskFile(file);
    let settled = false;
    const view: View = {
      sizeBytes: clone.sizeBytes,
      read: (buffer, position) => reader.read(buffer, position),
      nextData: (position) => reader.nextData(position),
      nextHole: (position) => reader.nextHole(position),
      async release() {
        await file.close();
        if (!settled) await fs.rm(clone.path, { force: true });
      },
    };
    return {
      view,
      settle: async () => {
        // It must be there after a power cut if a map that needs it is.
        await file.sync();
        const doubt = await this.#compare(file.fd);
        settled = true;
        if (this.#newest) this.#stale.push(this.#newest);
        this.#newest = clone;
        for (const one of this.#stale.splice(0, Math.max(0, this.#stale.length - maxStale))) await remove(one);
        return { doubt };
      },
    };
  }

  async #compare(fd: number): Promise<string | undefined> {
    const before = this.#newest && (await stillThere(this.#newest));
    if (!before) return 'the clone of the last cut is gone';
    await using old = await fs.open(before.path, constants.O_RDONLY);
    await compareExtents(fiemap(old.fd), fiemap(fd), (offset, length) => this.marks(offset, length));
    return undefined;
  }

  state(): Clone | undefined {
    return this.#newest;
  }

  async kept(): Promise<void> {
    for (const one of this.#stale.splice(0)) await remove(one);
  }

  async close(): Promise<void> {
    // The clone stays for the next agent.
  }
}

/**
 * Removes what is kept on the image's filesystem for a replication that is gone, by the last state. Answers false when it cannot be
 * told whether that is done: the filesystem is not mounted now.
 */
export async function removeClones(name: string, state: unknown): Promise<boolean> {
  const { path } = (state ?? {}) as { path?: unknown };
  if (typeof path !== 'string') return true;
  const folder = dirname(path);
  // Nothing but what this capture itself has made, whatever a file says.
  if (basename(folder) !== cloneFolder || !basename(path).startsWith(`${name}.`)) return true;
  let names: string[];
  try {
    names = await fs.readdir(folder);
  } catch (error) {
    if (systemErrorCode(error) !== 'ENOENT') throw error;
    return false;
  }
  for (const one of names) if (one.startsWith(`${name}.`)) await fs.rm(join(folder, one), { force: true });
  await fs.rmdir(folder).catch(() => undefined);
  return true;
}

/** open(2); see agent/device-system.ts. */
const O_TMPFILE = 0o20000000 | constants.O_DIRECTORY;

async function remove({ path }: Clone): Promise<void> {
  await fs.rm(path, { force: true });
}

/** The clone that was kept, if it is the same file still. */
async function stillThere(state: unknown): Promise<Clone | undefined> {
  if (typeof state !== 'object' || state === null) return undefined;
  const { path, ino, sizeBytes } = state as Partial<Record<keyof Clone, unknown>>;
  if (typeof path !== 'string' || typeof ino !== 'string' || typeof sizeBytes !== 'number') return undefined;
  const stat = await fs.stat(path, { bigint: true }).catch(() => undefined);
  return stat && String(stat.ino) === ino && Number(stat.size) === sizeBytes ? { path, ino, sizeBytes } : undefined;
}
