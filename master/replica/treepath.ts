/**
 * Touching a tree so that nothing outside its root is ever reached (I5): every directory is opened step by step from the root,
 * relative to its parent's descriptor (/proc/self/fd/N/name) and never through a symbolic link, and what is done to an entry
 * is done relative to its directory's descriptor. A directory that someone swaps for a link makes the next step fail (ENOTDIR);
 * paths may be longer than 4096 bytes; names are bytes.
 */
import { constants, promises as fs } from 'node:fs';
import { randomUUID } from 'node:crypto';
import { systemErrorCode } from '../../proto/errors.ts';

export type Handle = fs.FileHandle;

export interface Entry {
  /** Slot of the directory. */
  parent: number;
  name: Buffer;
}

/** The directory beside the tree in which objects wait, in place of a slot. */
export const stagingSlot = -1;

/** linux/fcntl.h; Node does not name it. Opens nothing: the descriptor only stands for the object. */
const O_PATH = 0o10000000;
const directoryFlags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW;
const openAtOnce = 64;

/** The entry as a path that lives as long as the directory is open. */
export function at(directory: Handle, name: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`/proc/self/fd/${directory.fd}/`), name]);
}

export function isPrivileged(): boolean {
  return process.geteuid?.() === 0;
}

/** There is no such entry, or something on the way to it is no directory. */
export function isMissing(error: unknown): boolean {
  return ['ENOENT', 'ENOTDIR', 'ELOOP'].includes(systemErrorCode(error) ?? '');
}

export interface OpenFile {
  file: Handle;
  sizeBytes: number;
}

/**
 * A regular file. Never follows a link and never waits for the other end of a fifo. `onLoosened`: see openPermitted.
 * @throws ENOENT also when there is something else
 */
export async function openFile(
  directory: Handle,
  name: Buffer,
  flags: number,
  onLoosened: () => void,
): Promise<OpenFile> {
  const safe = flags | constants.O_NOFOLLOW | constants.O_NONBLOCK;
  const file = await openPermitted(directory, name, safe, 0o600, onLoosened);
  const stat = await file.stat();
  if (stat.isFile()) return { file, sizeBytes: stat.size };
  await file.close();
  throw missing('a regular file');
}

/** Files may be closed to their own owner, which only root does not notice: then it is given the permission for now. */
async function openPermitted(
  directory: Handle,
  name: Buffer,
  flags: number,
  mode: number,
  onLoosened: () => void,
): Promise<Handle> {
  try {
    return await fs.open(at(directory, name), flags, 0o600);
  } catch (error) {
    if (systemErrorCode(error) !== 'EACCES' || isPrivileged()) throw error;
    onLoosened();
    await chmodEntry(directory, name, mode);
    return fs.open(at(directory, name), flags, 0o600);
  }
}

/** chmod(2) would follow a link that somebody puts in its place. */
export async function chmodEntry(directory: Handle, name: Buffer, mode: number): Promise<void> {
  await using object = await fs.open(at(directory, name), O_PATH | constants.O_NOFOLLOW);
  await fs.chmod(`/proc/self/fd/${object.fd}`, mode);
}

export async function lstatEntry(directory: Handle, name: Buffer): Promise<BigStats | undefined> {
  try {
    return await fs.lstat(at(directory, name), { bigint: true });
  } catch (error) {
    if (!isMissing(error)) throw error;
    return undefined;
  }
}
export type BigStats = Awaited<ReturnType<typeof bigLstat>>;
const bigLstat = (path: Buffer) => fs.lstat(path, { bigint: true });

/** Names in an open directory, in no order. */
export async function* entryNames(directory: Handle): AsyncGenerator<Buffer> {
  // The types know text only; with this encoding every name is a Buffer.
  const options = { encoding: 'buffer' as BufferEncoding, bufferSize: 256 };
  for await (const { name } of await fs.opendir(`/proc/self/fd/${directory.fd}`, options)) {
    yield name as unknown as Buffer;
  }
}

/**
 * Removes whatever has the name, a directory with all that is in it; no error when absent. Directories are moved to `spare`
 * (on the same filesystem) one by one, so that depth costs no descriptors.
 */
export async function removeEntry(directory: Handle, name: Buffer, spare: Handle): Promise<void> {
  const moved: Buffer[] = [];
  const remove = async (parent: Handle, entry: Buffer): Promise<void> => {
    try {
      await fs.unlink(at(parent, entry));
    } catch (error) {
      if (isMissing(error)) return;
      if (!['EISDIR', 'EPERM'].includes(systemErrorCode(error) ?? '')) throw error;
      const spareName = Buffer.from(`x-${randomUUID()}`);
      // A directory that its owner may not write cannot be moved to another parent.
      if (!isPrivileged()) await chmodEntry(parent, entry, 0o700);
      await fs.rename(at(parent, entry), at(spare, spareName));
      moved.push(spareName);
    }
  };
  await remove(directory, name);
  for (let next = moved.pop(); next !== undefined; next = moved.pop()) {
    await using opened = await fs.open(at(spare, next), directoryFlags);
    for await (const entry of entryNames(opened)) await remove(opened, entry);
    await fs.rmdir(at(spare, next)).catch((error: unknown) => {
      if (systemErrorCode(error) !== 'ENOTEMPTY') throw error;
      moved.push(next);
    });
  }
}

/** Open directories of a tree by slot: at most 64 at a time beside those in use, opened from the root on demand. */
export class Directories {
  readonly #root: Handle;
  readonly #staging: Handle;
  readonly #locate: (slot: number) => Promise<Entry | undefined>;
  readonly #open = new Map<number, { handle: Promise<Handle>; users: number }>();
  readonly loosened: Set<number>;

  /**
   * @param locate where a directory is now; undefined = nowhere
   * @param loosened gets the directories (and by openFile the files) whose permissions were widened for their owner
   */
  constructor(
    root: Handle,
    staging: Handle,
    locate: (slot: number) => Promise<Entry | undefined>,
    loosened: Set<number> = new Set(),
  ) {
    this.#root = root;
    this.#staging = staging;
    this.#locate = locate;
    this.loosened = loosened;
  }

  /**
   * The handle is good until `work` ends. `write`: entries are made or removed in it.
   * @throws ENOENT, ENOTDIR when the way is not there
   */
  async with<T>(slot: number, purpose: 'read' | 'write', work: (directory: Handle) => Promise<T>): Promise<T> {
    if (slot === stagingSlot) return work(this.#staging);
    const needs = purpose === 'write' ? 0o700 : 0o500;
    if (slot === 0) {
      await this.#loosen(0, this.#root, needs);
      return work(this.#root);
    }
    const held = this.#open.get(slot);
    if (held) held.users++;
    const used = held ?? (await this.#openDown(slot));
    try {
      const handle = await used.handle;
      await this.#loosen(slot, handle, needs);
      return await work(handle);
    } finally {
      used.users--;
      this.#evict();
    }
  }

  /** Opens the way from the nearest directory that is open, in a loop: it may be long. Answers it counted as in use. */
  async #openDown(slot: number): Promise<{ handle: Promise<Handle>; users: number }> {
    const way: { slot: number; entry: Entry }[] = [];
    for (let up = slot; up !== 0 && up !== stagingSlot && !this.#open.has(up);) {
      const entry = await this.#locate(up);
      if (!entry || way.length > maxDepth) throw missing(`a way to slot ${slot}`);
      way.push({ slot: up, entry });
      up = entry.parent;
    }
    for (const { slot: next, entry } of way.reverse()) {
      if (this.#open.has(next)) continue;
      const handle = this.with(entry.parent, 'read', (parent) => this.#openOne(next, parent, entry.name));
      this.#open.set(next, { handle, users: 0 });
      handle.catch(() => this.#open.delete(next));
      await handle;
    }
    const opened = this.#open.get(slot);
    if (!opened) return this.#openDown(slot); // evicted already
    opened.users++;
    return opened;
  }

  async #openOne(slot: number, parent: Handle, name: Buffer): Promise<Handle> {
    return openPermitted(parent, name, directoryFlags, 0o700, () => this.loosened.add(slot));
  }

  async #loosen(slot: number, handle: Handle, needs: number): Promise<void> {
    if (isPrivileged()) return;
    const { mode } = await handle.stat();
    if ((mode & needs) === needs) return;
    this.loosened.add(slot);
    await handle.chmod((mode & 0o7777) | 0o700);
  }

  #evict(): void {
    for (const [slot, { handle, users }] of this.#open) {
      if (this.#open.size <= openAtOnce) return;
      if (users > 0) continue;
      this.#open.delete(slot);
      handle.then((opened) => opened.close()).catch(() => undefined);
    }
  }

  async close(): Promise<void> {
    const handles = [...this.#open.values()];
    this.#open.clear();
    for (const { handle } of handles) await (await handle.catch(() => undefined))?.close();
  }
}

/** Directories inside each other; more is a loop. */
const maxDepth = 2 ** 20;

function missing(what: string): Error {
  return Object.assign(new Error(`ENOENT: there is not ${what}`), { code: 'ENOENT' });
}

/** Works on all items, some at once; ends when all that was begun has ended. @throws the first failure */
export async function each<T>(items: Iterable<T>, atOnce: number, work: (item: T) => Promise<void>): Promise<void> {
  const iterator = items[Symbol.iterator]();
  let failure: { error: unknown } | undefined;
  const worker = async (): Promise<void> => {
    try {
      for (let next = iterator.next(); !failure && !next.done; next = iterator.next()) await work(next.value);
    } catch (error) {
      failure ??= { error };
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  if (failure) throw failure.error;
}
