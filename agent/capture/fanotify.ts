/**
 * Hints from fanotify with a mark on the whole filesystem: no descriptor and no memory per directory, whatever its size.
 *
 * Guarantees: every event that the kernel queued before `take` is in its answer, by directory and name as the manifest has
 * them, or the answer says that a scan is needed (the kernel's queue overflowed, too many names, the filesystem was mounted
 * anew: then the mark is gone without an event). A directory that the manifest does not know is passed over: it is outside
 * the tree, or its own coming is told too and it is looked through for that. Nothing keeps the filesystem from being unmounted.
 * Nothing here is proof: see hints.ts.
 */
import fs, { constants } from 'node:fs';
import { messageOf } from '../../proto/errors.ts';
import type { Manifest } from '../manifest.ts';
import { parseFanEvents } from './fanevents.ts';
import { handleOf, hasMark, openGroup, openHandle, readGroup } from './fanotify-system.ts';
import type { Hinted, Hints } from './hints.ts';
import { keyOf, type Tree } from './tree.ts';

/** Names kept between two looks; with more a scan is as cheap. */
const maxNames = 16_384;
/** The queue is emptied so often while there is something in it, and less often else. */
const busyMs = 50;
const idleMs = 250;
/** Reads without an end: whoever writes is faster than we are. */
const maxReads = 256;
const itself = Buffer.from('.');
const buffer = Buffer.allocUnsafeSlow(256 << 10);

/** @throws Error with why it cannot watch here */
export async function watchFilesystem(tree: Tree, manifest: Manifest): Promise<Hints> {
  const hints = new Fanotify(tree, manifest);
  try {
    hints.probe(tree);
  } catch (error) {
    await hints.close();
    throw error;
  }
  return hints;
}

class Fanotify implements Hints {
  readonly method = 'fanotify';
  readonly reason = 'fanotify names what changed between scans';
  readonly isPrompt = true;
  lost = 0;
  readonly #path: string;
  readonly #tree: Tree;
  readonly #manifest: Manifest;
  #group: number;
  /** By slot of the directory, then by the name's bytes as latin1. */
  readonly #names = new Map<number, Map<string, Buffer>>();
  #count = 0;
  #doubt = '';
  #timer: NodeJS.Timeout | undefined;

  constructor(tree: Tree, manifest: Manifest) {
    this.#tree = tree;
    this.#path = tree.path;
    this.#manifest = manifest;
    this.#group = openGroup(tree.fd);
    this.#wait(busyMs);
  }

  /** Can handles be opened? @throws Error */
  probe(tree: Tree): void {
    const fd = openHandle(tree.fd, handleOf(tree.fd));
    if (fd === undefined) throw new Error('the handle of the root leads nowhere');
    const found = fs.fstatSync(fd, { bigint: true });
    fs.closeSync(fd);
    if (found.ino !== tree.stat.ino || found.dev !== tree.device)
      throw new Error('the handle of the root leads elsewhere');
  }

  take(tree: Tree): Hinted {
    try {
      if (hasMark(this.#group)) this.#drain(() => tree.fd);
      else this.#markAgain(tree);
    } catch (error) {
      this.#lose(`fanotify failed: ${messageOf(error)}`);
    }
    const names = new Map([...this.#names].map(([slot, some]) => [slot, [...some.values()]]));
    const doubt = this.#doubt;
    this.#names.clear();
    [this.#count, this.#doubt] = [0, ''];
    return { names: doubt === '' ? names : new Map<number, Buffer[]>(), doubt };
  }

  #markAgain(tree: Tree): void {
    this.#lose('the filesystem was mounted anew');
    const group = openGroup(tree.fd);
    fs.closeSync(this.#group);
    this.#group = group;
  }

  #lose(why: string): void {
    if (this.#doubt === '') this.lost++;
    this.#doubt = why;
    this.#names.clear();
    this.#count = 0;
  }

  #wait(ms: number): void {
    this.#timer = setTimeout(() => {
      let reads = 0;
      let root: number | undefined;
      try {
        // Opened only when there is something, and closed at once.
        reads = this.#drain(() => (root ??= this.#openRoot()));
      } catch (error) {
        this.#lose(`fanotify failed: ${messageOf(error)}`);
      }
      if (root !== undefined) fs.closeSync(root);
      this.#wait(reads > 0 ? busyMs : Math.min(idleMs, ms * 2));
    }, ms).unref();
  }

  #openRoot(): number {
    const fd = fs.openSync(this.#path, constants.O_RDONLY | constants.O_DIRECTORY);
    if (fs.fstatSync(fd, { bigint: true }).dev === this.#tree.device) return fd;
    fs.closeSync(fd);
    throw new Error(`${this.#path} is on another filesystem than before`);
  }

  /** Until the queue is empty; answers the number of reads that brought something. */
  #drain(mountFd: () => number): number {
    const slots = new Map<string, number | undefined>();
    for (let reads = 0; reads < maxReads; reads++) {
      const length = readGroup(this.#group, buffer);
      if (length === 0) return reads;
      const { events, overflowed, torn } = parseFanEvents(buffer.subarray(0, length));
      if (overflowed) this.#lose("the kernel's queue of events overflowed");
      if (torn) this.#lose('events of an unknown form');
      if (this.#doubt !== '') continue; // a scan comes: what is read now is of no use
      for (const { handle, name } of events) {
        if (!slots.has(handle)) slots.set(handle, this.#slotOf(mountFd(), handle));
        const slot = slots.get(handle);
        if (slot !== undefined) this.#add(slot, name);
      }
    }
    this.#lose('events come faster than they are read');
    return maxReads;
  }

  #slotOf(mountFd: number, handle: string): number | undefined {
    const fd = openHandle(mountFd, handle);
    if (fd === undefined) return undefined;
    try {
      return this.#manifest.slotOf(keyOf(this.#tree, fs.fstatSync(fd, { bigint: true })));
    } finally {
      fs.closeSync(fd);
    }
  }

  #add(slot: number, name: Buffer): void {
    if (name.equals(itself)) {
      for (const one of this.#manifest.names(slot)) this.#add(one.parent, one.name);
      return;
    }
    const text = name.toString('latin1');
    let names = this.#names.get(slot);
    if (!names) this.#names.set(slot, (names = new Map<string, Buffer>()));
    if (names.has(text)) return;
    if (++this.#count > maxNames) return this.#lose('too many hints');
    names.set(text, name);
  }

  async close(): Promise<void> {
    clearTimeout(this.#timer);
    fs.closeSync(this.#group);
  }
}
