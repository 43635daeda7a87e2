/**
 * A folder as a TreeIndex: all that is in it, under the slots that a point has for the same things, so that only what differs
 * has to come.
 *
 * A slot is that of the point's node of the same name and type; of a file that has no such name, that of one with the same
 * content whose own was not found: it was moved. What the point has nothing of gets a slot beyond the point's, and is to go.
 * Guarantees: nothing is changed but the index, nothing outside the folder is looked at (treepath.ts). A file that also has
 * names outside the folder keeps its slot only if it is as the point has it: what is written into it would be written there.
 * Failure: SourceInUse for what cannot be read from one moment, or another filesystem in the folder.
 *
 * In memory are the directories' names, files of several names, and a bit for each slot.
 */
import { constants } from 'node:fs';
import { readlink } from 'node:fs/promises';
import { ReplicationError } from '../proto/errors.ts';
import { granuleBytes, granuleCount, granuleHash, hashBytes } from '../proto/granule.ts';
import { goneNode, nodeHash } from '../proto/node.ts';
import { diskFile } from '../proto/system.ts';
import { nodeTypes, type Name, type Node } from '../proto/wire.ts';
import type { CommitRecord } from '../master/replica/frame.ts';
import type { TreeIndex } from '../master/replica/treeindex.ts';
import { at, Directories, each, entryNames, lstatEntry, openFile, removeEntry } from '../master/replica/treepath.ts';
import type { BigStats, Entry, Handle } from '../master/replica/treepath.ts';
import { nodeOf, readXattrsAt } from './capture/inode.ts';

const pieceBytes = 1 << 20;
const atOnce = 4;
const batchNames = 256;
const pageGranules = 256;
const none = Buffer.alloc(0);

export interface FolderScan {
  root: Handle;
  /** What the folder is to hold. */
  wanted: TreeIndex;
  /** Blank; gets what it holds. */
  index: TreeIndex;
  /** A folder of ours in it, by its name in the root: content that came before a crash. */
  staging: Handle;
  stagingName: Buffer;
  signal: AbortSignal;
  /** Bytes read. */
  progress: (bytes: number) => Promise<void>;
}

/** A file with several names; `node` once it is read. */
interface Linked {
  slot: number;
  names: Name[];
  links: number;
  node: Node | undefined;
}

export async function scanFolder(options: FolderScan): Promise<void> {
  const scan = new Scan(options);
  await scan.walk();
  options.index.commit(commitOf(1, scan.slots));
  scan.partOutside();
  options.index.commit(commitOf(2, scan.slots));
  scan.findMoved();
  options.index.commit(commitOf(3, scan.slots));
  await scan.takeStaged();
  options.index.commit(commitOf(4, scan.slots));
}

/** Of an index that is no replica's. */
export function commitOf(sequence: number, sizeBytes: number): CommitRecord {
  return {
    ...{ sequence, point: false, sourceUs: 0, consistency: '', sizeBytes, verified: false, mismatchedGranules: 0 },
    ...{ startedUs: 0, sentBytes: 0, groupCut: '', digest: none, committedUs: 0, sourceId: '', generation: '' },
  };
}

class Scan {
  readonly #options: FolderScan;
  /** Of the point's slots, those that something in the folder has. */
  readonly #taken: Uint8Array;
  readonly #linked = new Map<bigint, Linked>();
  /** Where directories are. */
  readonly #ways = new Map<number, Entry>();
  readonly #buffers = Array.from({ length: atOnce }, () => Buffer.alloc(pieceBytes));
  #next: number;

  constructor(options: FolderScan) {
    this.#options = options;
    this.#taken = new Uint8Array(Math.ceil(options.wanted.sizeBytes / 8));
    this.#next = Math.max(1, options.wanted.sizeBytes);
  }

  /** The highest one in use + 1. */
  get slots(): number {
    return this.#next;
  }

  async walk(): Promise<void> {
    const { root, index, signal } = this.#options;
    const stat = await root.stat({ bigint: true });
    const xattrs = await readXattrsAt(at(root, Buffer.from('.')));
    index.stageNodes({ nodes: [nodeOf(0, stat, { target: none, xattrs })] });
    const directories = new Directories(root, root, async (slot) => this.#ways.get(slot));
    try {
      const pending = [0];
      for (let slot = pending.pop(); slot !== undefined; slot = pending.pop()) {
        signal.throwIfAborted();
        await directories.with(slot, 'read', (directory) => this.#list(directory, slot, stat.dev, pending));
      }
    } finally {
      await directories.close();
    }
  }

  async #list(directory: Handle, parent: number, device: bigint, pending: number[]): Promise<void> {
    const { stagingName } = this.#options;
    let batch: Buffer[] = [];
    const take = async (): Promise<void> => {
      const names = batch;
      batch = [];
      await each(names, atOnce, (name) => this.#entry(directory, { parent, name }, device, pending));
    };
    for await (const name of entryNames(directory)) {
      if (parent === 0 && name.equals(stagingName)) continue;
      if (batch.push(name) >= batchNames) await take();
    }
    await take();
  }

  async #entry(directory: Handle, name: Name, device: bigint, pending: number[]): Promise<void> {
    const { index, signal } = this.#options;
    signal.throwIfAborted();
    const stat = await lstatEntry(directory, name.name);
    if (!stat) throw busy(name, 'has gone while it was looked at');
    if (stat.dev !== device) throw busy(name, 'is of another filesystem: unmount that');
    const type = Number(stat.mode >> 12n);
    if (type === nodeTypes.directory) {
      const slot = this.#slotFor(name, type);
      this.#ways.set(slot, name);
      pending.push(slot);
      index.stageNodes({ nodes: [{ ...(await this.#read(directory, name, slot, stat)), names: [name] }] });
      return;
    }
    if (stat.nlink === 1n) {
      const node = await this.#read(directory, name, this.#slotFor(name, type), stat);
      index.stageNodes({ nodes: [{ ...node, names: [name] }] });
      return;
    }
    const known = this.#linked.get(stat.ino);
    if (known) {
      known.names.push(name);
      if (known.node) index.stageNodes({ nodes: [{ ...known.node, names: known.names }] });
      return;
    }
    const slot = this.#slotFor(name, type);
    const linked: Linked = { slot, names: [name], links: Number(stat.nlink), node: undefined };
    this.#linked.set(stat.ino, linked);
    linked.node = await this.#read(directory, name, slot, stat);
    index.stageNodes({ nodes: [{ ...linked.node, names: linked.names }] });
  }

  #slotFor({ parent, name }: Name, type: number): number {
    const { wanted } = this.#options;
    const slot = parent < wanted.sizeBytes ? wanted.slotOf(parent, name) : undefined;
    if (slot === undefined || this.#isTaken(slot) || wanted.node(slot)?.type !== type) return this.#next++;
    this.#take(slot);
    return slot;
  }

  #isTaken(slot: number): boolean {
    return ((this.#taken[slot >> 3] ?? 0) & (1 << (slot & 7))) !== 0;
  }

  #take(slot: number): void {
    this.#taken[slot >> 3] = (this.#taken[slot >> 3] ?? 0) | (1 << (slot & 7));
  }

  /** Without names. Its content goes into the index. */
  async #read(directory: Handle, name: Name, slot: number, stat: BigStats): Promise<Node> {
    const path = at(directory, name.name);
    const isLink = stat.isSymbolicLink();
    const target = isLink ? await readlink(path, { encoding: 'buffer' }) : none;
    const node = nodeOf(slot, stat, { target, xattrs: await readXattrsAt(path) });
    if (!stat.isFile()) return node;
    const { file, sizeBytes } = await openFile(directory, name.name, constants.O_RDONLY, () => undefined);
    try {
      if (sizeBytes !== node.sizeBytes) throw busy(name, 'was written to while it was read');
      return { ...node, contentRoot: await this.#content(file, name, slot, sizeBytes) };
    } finally {
      await file.close();
    }
  }

  /** Answers its root. */
  async #content(handle: Handle, name: Name, slot: number, sizeBytes: number): Promise<Buffer> {
    const { index, signal, progress } = this.#options;
    const file = diskFile(handle);
    const buffer = this.#buffers.pop() ?? Buffer.alloc(pieceBytes);
    try {
      for (let from = 0; from < sizeBytes;) {
        signal.throwIfAborted();
        const data = await file.nextData(from);
        if (data === undefined || data >= sizeBytes) break;
        const position = Math.max(from, Math.floor(data / granuleBytes) * granuleBytes);
        const length = Math.min(pieceBytes, sizeBytes - position);
        if ((await file.read(buffer.subarray(0, length), position)) < length) throw busy(name, 'was cut meanwhile');
        const hashes: Buffer[] = [];
        for (let part = 0; part < length; part += granuleBytes)
          hashes.push(granuleHash(buffer.subarray(part, Math.min(length, part + granuleBytes))));
        this.#put(slot, position / granuleBytes, Buffer.concat(hashes));
        await progress(length);
        from = position + length;
      }
    } finally {
      this.#buffers.push(buffer);
    }
    return index.content.root(slot, granuleCount(sizeBytes)).root;
  }

  #put(slot: number, first: number, hashes: Buffer): void {
    const run = { object: slot, first, count: hashes.length / hashBytes, zero: false, tailBytes: 0 };
    this.#options.index.stageData({ runs: [run], hashes, compression: 0, rawBytes: 0, payload: none });
  }

  /** What is written into a file is seen by all its names: with one outside it is another file to us. */
  partOutside(): void {
    const { index, wanted } = this.#options;
    for (const linked of this.#linked.values()) {
      const { slot, names, links } = linked;
      const [own, other] = [index.node(slot), wanted.node(slot)];
      if (names.length === links || !own || slot >= wanted.sizeBytes) continue;
      if (other && nodeHash(own).equals(nodeHash(other))) continue;
      this.#taken[slot >> 3] = (this.#taken[slot >> 3] ?? 0) & ~(1 << (slot & 7));
      linked.slot = this.#next++;
      this.#rename(own, linked.slot);
    }
  }

  findMoved(): void {
    const { index, wanted } = this.#options;
    const outside = new Set<number>();
    for (const { slot, names, links } of this.#linked.values()) if (names.length !== links) outside.add(slot);
    wanted.database.exec(`CREATE TEMP TABLE spare (root BLOB NOT NULL, size INTEGER NOT NULL, slot INTEGER NOT NULL,
      PRIMARY KEY (root, size, slot)) STRICT, WITHOUT ROWID`);
    const put = wanted.database.prepare('INSERT INTO spare (root, size, slot) VALUES (?, ?, ?)');
    for (const node of wanted.nodes())
      if (node.sizeBytes > 0 && !this.#isTaken(node.slot)) put.run(node.contentRoot, node.sizeBytes, node.slot);
    const get = wanted.database.prepare('SELECT slot FROM spare WHERE root = ? AND size = ? LIMIT 1');
    const drop = wanted.database.prepare('DELETE FROM spare WHERE root = ? AND size = ? AND slot = ?');
    for (const node of index.nodes()) {
      if (node.slot < wanted.sizeBytes || node.sizeBytes === 0 || outside.has(node.slot)) continue;
      const found = get.get(node.contentRoot, node.sizeBytes);
      if (!found) continue;
      const slot = Number(found['slot']);
      drop.run(node.contentRoot, node.sizeBytes, slot);
      this.#take(slot);
      this.#rename(node, slot);
    }
    wanted.database.exec('DROP TABLE spare');
  }

  #rename(node: Node, slot: number): void {
    const { index } = this.#options;
    const count = granuleCount(node.sizeBytes);
    for (let first = 0; first < count; first += pageGranules)
      this.#put(slot, first, index.content.hashes(node.slot, first, Math.min(pageGranules, count - first)));
    index.stageNodes({ nodes: [{ ...node, slot }, goneNode(node.slot)] });
  }

  /** Content of files that are not in the tree yet, which an attempt before this one has brought. */
  async takeStaged(): Promise<void> {
    const { staging, wanted } = this.#options;
    for await (const name of entryNames(staging)) {
      const slot = Number(/^n(\d+)$/.exec(name.toString('latin1'))?.[1]);
      const isWanted = wanted.node(slot)?.type === nodeTypes.file && !this.#isTaken(slot);
      const isFile = (await lstatEntry(staging, name))?.isFile() ?? false;
      if (!isWanted || !isFile) {
        await removeEntry(staging, name, staging);
        continue;
      }
      const { file, sizeBytes } = await openFile(staging, name, constants.O_RDONLY, () => undefined);
      try {
        await this.#content(file, { parent: 0, name }, slot, sizeBytes);
      } finally {
        await file.close();
      }
    }
  }
}

function busy({ name }: Name, what: string): ReplicationError {
  return new ReplicationError('SourceInUse', `${JSON.stringify(name.toString())} in the folder ${what}`);
}
