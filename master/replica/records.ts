/**
 * What a base holds as journal records that make the same from nothing: for a copy on storage that this process does not
 * have. Content goes with the hashes of the index, whatever the bytes are by now: who takes it proves them.
 */
import type { DiskFile } from '../../proto/effects.ts';
import { ReplicationError } from '../../proto/errors.ts';
import { granuleBytes, granuleCount, granuleLength, hashBytes, isZeroHash } from '../../proto/granule.ts';
import { maxDataBytes, nodeTypes, type Commit, type Data, type Node, type Nodes, type Run } from '../../proto/wire.ts';
import type { BlockIndex } from './blockindex.ts';
import type { CommitRecord, JournalRecord } from './frame.ts';
import type { TreeIndex } from './treeindex.ts';

/** As it goes over a line. A commit has a digest when all of the point has come, else it only saves work. */
export type Part = { data: Data } | { nodes: Nodes } | { commit: Commit & { digest: Buffer } };

const pageGranules = 256;
const maxRuns = 4096;

export interface RecordLimits {
  /** Of one record. */
  nodes: number;
  /** Between two commits: bounds what the other side keeps in memory. */
  commitBytes: number;
  commitNodes: number;
}
export const recordLimits: RecordLimits = { nodes: 512, commitBytes: 256 << 20, commitNodes: 20_000 };

/** Reads as many bytes as there are; what is missing is left as it was. */
type Read = (buffer: Buffer, position: number) => Promise<unknown>;

export async function* blockRecords(
  image: Pick<DiskFile, 'read'>,
  index: BlockIndex,
  signal: AbortSignal,
  { commitBytes }: RecordLimits,
): AsyncGenerator<JournalRecord> {
  const { newest, sizeBytes } = index;
  if (!newest) return;
  const packed = new Packed();
  const volume = { object: 0, sizeBytes, hashes: (first: number, count: number) => index.hashes(first, count) };
  let bytes = 0;
  // Storage that was never written need not read as zeros.
  for await (const data of contentOf(volume, (buffer, at) => image.read(buffer, at), packed, true, signal)) {
    yield { data };
    bytes += data.rawBytes;
    if (bytes < commitBytes) continue;
    yield { commit: saving(newest) };
    bytes = 0;
  }
  const data = packed.take();
  if (data) yield { data };
  yield { commit: newest };
}

/** @param file opens a file of the tree; `close` is called when it has been read */
export async function* treeRecords(
  index: TreeIndex,
  file: (node: Node) => Promise<{ read: Read; close: () => Promise<void> }>,
  signal: AbortSignal,
  { nodes: maxNodes, commitBytes, commitNodes }: RecordLimits,
): AsyncGenerator<JournalRecord> {
  const { newest } = index;
  if (!newest) return;
  const packed = new Packed();
  let nodes: Node[] = [];
  const since = { bytes: 0, nodes: 0 };
  function* flush(isEnd = false): Generator<JournalRecord> {
    // A node that comes before its content would not add up.
    const data = packed.take();
    if (data) yield { data };
    if (nodes.length > 0) yield { nodes: { nodes } };
    since.bytes += data?.rawBytes ?? 0;
    since.nodes += nodes.length;
    nodes = [];
    if (isEnd || (since.bytes < commitBytes && since.nodes < commitNodes)) return;
    yield { commit: saving(newest as CommitRecord) };
    Object.assign(since, { bytes: 0, nodes: 0 });
  }
  // Directories first, each after the one it lies in: what is committed on the way is a tree.
  for (const node of directories(index)) {
    signal.throwIfAborted();
    if (nodes.push(node) >= maxNodes) yield* flush();
  }
  yield* flush();
  for (const node of index.nodes()) {
    signal.throwIfAborted();
    if (node.type === nodeTypes.directory) continue;
    mustBeSound(index, node);
    if (node.type === nodeTypes.file && node.sizeBytes > 0) {
      const { slot, sizeBytes } = node;
      const hashes = (first: number, count: number): Buffer => index.content.hashes(slot, first, count);
      const opened = await file(node);
      try {
        for await (const data of contentOf({ object: slot, sizeBytes, hashes }, opened.read, packed, false, signal)) {
          yield { data };
          since.bytes += data.rawBytes;
          if (since.bytes < commitBytes) continue;
          // The rest of its content and its node come after.
          yield { commit: saving(newest) };
          since.bytes = 0;
        }
      } finally {
        await opened.close();
      }
    }
    if (nodes.push(node) >= maxNodes) yield* flush();
  }
  yield* flush(true);
  yield { commit: newest };
}

const saving = (commit: CommitRecord): CommitRecord => ({ ...commit, point: false });

function* directories(index: TreeIndex): Generator<Node> {
  const told = new Set<number>();
  for (const node of index.nodes()) {
    if (node.type !== nodeTypes.directory || told.has(node.slot)) continue;
    const way: Node[] = [];
    for (let up: Node | undefined = node; up && !told.has(up.slot); up = parentOf(index, up)) {
      told.add(up.slot);
      way.push(up);
    }
    for (const next of way.reverse()) {
      mustBeSound(index, next);
      yield next;
    }
  }
}

function parentOf(index: TreeIndex, { names: [name] }: Node): Node | undefined {
  return name && index.node(name.parent);
}

function mustBeSound(index: TreeIndex, node: Node): void {
  if (index.isSound(node)) return;
  const path = JSON.stringify(index.path(node.slot).toString());
  throw new ReplicationError('ReplicaDamaged', `what the index says of ${path} has changed; run verify`);
}

interface Content {
  object: number;
  sizeBytes: number;
  hashes: (first: number, count: number) => Buffer;
}

/** What does not fill a record stays in `packed`. */
async function* contentOf(
  { object, sizeBytes, hashes }: Content,
  read: Read,
  packed: Packed,
  tellsZeros: boolean,
  signal: AbortSignal,
): AsyncGenerator<Data> {
  const count = granuleCount(sizeBytes);
  for (let first = 0; first < count; first += pageGranules) {
    signal.throwIfAborted();
    const page = hashes(first, Math.min(pageGranules, count - first));
    const length = page.length / hashBytes;
    for (let at = 0; at < length;) {
      const zero = isZeroHash(page, at);
      const from = at;
      let bytes = 0;
      for (; at < length && isZeroHash(page, at) === zero; at++) {
        const own = granuleLength(first + at, sizeBytes);
        if (!zero && packed.rawBytes + bytes + own > maxDataBytes) break;
        bytes += own;
      }
      if (at === from) {
        yield packed.take() as Data;
        continue;
      }
      const run = { object, first: first + from, count: at - from, zero };
      const tailBytes = granuleLength(first + at - 1, sizeBytes);
      if (!zero) {
        const content = Buffer.alloc(bytes);
        await read(content, run.first * granuleBytes);
        packed.add({ ...run, tailBytes }, page.subarray(from * hashBytes, at * hashBytes), content);
      } else if (tellsZeros) packed.add({ ...run, tailBytes });
      if (packed.isFull) yield packed.take() as Data;
    }
  }
}

/** Runs of one Data message. */
class Packed {
  #runs: Run[] = [];
  #hashes: Buffer[] = [];
  #content: Buffer[] = [];
  rawBytes = 0;

  get isFull(): boolean {
    return this.#runs.length >= maxRuns || this.rawBytes >= maxDataBytes;
  }

  add(run: Run, hashes?: Buffer, content?: Buffer): void {
    const last = this.#runs.at(-1);
    const follows = last?.object === run.object && last.first + last.count === run.first;
    if (last && follows && last.zero === run.zero && last.tailBytes === granuleBytes) {
      last.count += run.count;
      last.tailBytes = run.tailBytes;
    } else this.#runs.push(run);
    if (!hashes || !content) return;
    this.#hashes.push(hashes);
    this.#content.push(content);
    this.rawBytes += content.length;
  }

  take(): Data | undefined {
    if (this.#runs.length === 0) return undefined;
    const { rawBytes } = this;
    const [runs, hashes] = [this.#runs, Buffer.concat(this.#hashes)];
    const payload = Buffer.concat(this.#content);
    [this.#runs, this.#hashes, this.#content, this.rawBytes] = [[], [], [], 0];
    return { runs, hashes, compression: 0, rawBytes, payload };
  }
}
