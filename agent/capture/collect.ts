/**
 * Reads what is dirty in the manifest and yields it: content before its node, directories before what is in them.
 *
 * Guarantees: a node's content root is that of the pieces sent for its slot, whatever was written meanwhile; with `still`
 * a file counts as clean only when it was read whole from one moment, else it is named in `torn`. Directories whose
 * place changed go first and together: a name that the replica gives to another slot must not bury what moved out of the way.
 * Files that moved go next, with the content that the replica has of them, before anything can take their old names.
 * An abandoned or failed collection is sent again. Rows whose inode is not where it was stay dirty (`vanished`).
 *
 * One moment: size, mtime and ctime the same before and after the read, the ctime older than the kernel's clock tick, and no page
 * dirty since before it (a write by mmap moves the ctime only when the page was clean), so pages are flushed first.
 */
import assert from 'node:assert/strict';
import fs, { type BigIntStats } from 'node:fs';
import { promisify } from 'node:util';
import type { Clock } from '../../proto/effects.ts';
import { contentRoot, granuleBytes } from '../../proto/granule.ts';
import { isImmutableOrAppendOnly } from '../../proto/libc.ts';
import { nodeBytes } from '../../proto/nodebatch.ts';
import type { Pace } from '../../proto/pace.ts';
import { nodeTypes, type Node } from '../../proto/wire.ts';
import type { Manifest, Row } from '../manifest.ts';
import type { Piece, SourceCounters } from '../source.ts';
import { granuleHashes, piecesOf, readAt, streamFile, type Asking } from './content.ts';
import { nodeOf, openInode, readXattrs, type Inode } from './inode.ts';
import {
  gone,
  hasKnownContent,
  isAcked,
  isInOpenEpoch,
  maxPieceNodes,
  sendNodes,
  vanish,
  type Collected,
  type Collection,
  type Outgoing,
  type Sending,
} from './nodes.ts';
import { close, fstat, type Tree } from './tree.ts';

const fdatasync = promisify(fs.fdatasync);

/** Times of files move in steps of the kernel's clock: up to 10 ms, and some for its rounding. */
export const tickMs = 20;
/** Files up to this size are read at once and ahead, larger ones as a stream. */
const smallBytes = 4 * granuleBytes;
const batchRows = 32;
const batchNodes = 250;
const movable = [
  nodeTypes.symlink,
  nodeTypes.fifo,
  nodeTypes.character,
  nodeTypes.block,
  nodeTypes.socket,
  nodeTypes.file,
];
const maxPieceBytes = 512 << 10;
/** Content of small files, and time, until their nodes follow: on a slow line too there is something to commit. */
const maxBatch = { bytes: 8 << 20, ms: 500 };
const maxTries = 4;

export interface Collecting extends Sending {
  tree: Tree;
  clock: Clock;
  pace: Pace;
  counters: SourceCounters;
  /** The replica has nothing: asking is of no use. */
  blank: boolean;
  /**
   * live: as it comes, a cut follows. still: each file from one moment. frozen: nothing can change.
   * `sinceMs`: all pages dirty at this time are flushed, or the time of the freeze (frozen).
   */
  how: { mode: 'live' | 'still' | 'frozen'; sinceMs: number };
  progress(bytes: number): void;
  /** Only these slots are read, and what moved; undefined = everything that is dirty. */
  only?: ReadonlySet<number> | undefined;
  /** Hears of each file and directory that is immutable or append-only, which the replica's is not. */
  flagged(slot: number): void;
  /** Handles of regular files that keep moving, by slot. */
  held?: ReadonlyMap<number, number>;
  signal: AbortSignal;
}

interface Read {
  row: Row;
  stat: BigIntStats;
  inode: Inode;
  /** The whole content of a small file. */
  bytes: Buffer | undefined;
  readMs: number;
  isTorn: boolean;
}

/** What was read, and whose nodes go out together. */
interface Batch {
  outgoing: Outgoing[];
  /** Of the nodes. */
  nodeBytes: number;
  /** Of small files. */
  contentBytes: number;
  sinceMs: number;
}

export async function* collect(options: Collecting): AsyncGenerator<Piece, Collected> {
  const { manifest } = options;
  const result: Collection = { vanished: new Set(), torn: undefined, isMoving: true };
  let finished = false;
  const ofType = (type: number, which: 'moved' | 'renamed' | 'new') => (after: number) =>
    manifest.dirtyOf(type, which, after, batchNodes);
  const { directory } = nodeTypes;
  try {
    options.indivisible(true);
    yield* inOrder(options, result, ofType(directory, 'moved'));
    for (const type of movable) {
      yield* inOrder(options, result, ofType(type, 'renamed'), true);
    }
    result.isMoving = false;
    options.indivisible(false);
    yield* inOrder(options, result, ofType(directory, 'new'));
    yield* inOrder(options, result, (after) => manifest.dirty(after, batchRows), false, options.only);
    yield* gone(manifest);
    finished = true;
    return result;
  } finally {
    options.indivisible(false);
    if (!finished) manifest.unsend();
  }
}

async function* inOrder(
  options: Collecting,
  result: Collection,
  select: (after: number) => Row[],
  namesOnly = false,
  only?: ReadonlySet<number>,
): AsyncGenerator<Piece> {
  const { manifest, signal } = options;
  let after = -1;
  const next = (): Promise<(Read | number)[]> | undefined => {
    const rows = select(after);
    const last = rows.at(-1);
    if (!last) return undefined;
    after = last.slot;
    const wanted = (row: Row): boolean => only === undefined || row.dirty === 2 || only.has(row.slot);
    const present = rows.filter((row) => row.type !== nodeTypes.gone && wanted(row));
    const reading = settled(withParents(manifest, present).map((row) => read(options, row, namesOnly)));
    reading.catch(() => undefined); // heard of when it is awaited
    return reading;
  };
  let batch = emptyBatch(options);
  const flush = function* (): Generator<Piece> {
    const { outgoing } = batch;
    batch = emptyBatch(options);
    yield* sendNodes(options, result, outgoing);
  };
  let ahead = next();
  let left: (Read | number)[] = [];
  try {
    while (ahead) {
      left = await ahead;
      ahead = next();
      while (left.length > 0) {
        const one = left.shift();
        signal.throwIfAborted();
        if (one === undefined) break;
        if (typeof one === 'number') {
          vanish(manifest, result, one);
          continue;
        }
        let out: Outgoing;
        try {
          if (one.row.type !== nodeTypes.file) out = plain(options, one);
          else if (namesOnly) {
            // Of a pass over a few, the rest is as it was read before: no new times with the old content.
            if (!hasKnownContent(one.row) || (options.only && !isOnlyRenamed(one))) continue;
            out = renamed(options, one);
          } else if (one.bytes) {
            options.indivisible(true);
            out = yield* sendSmall(options, one, one.bytes);
            batch.contentBytes += one.bytes.length;
          } else {
            yield* flush();
            options.indivisible(isInOpenEpoch(manifest, one.row));
            out = yield* sendLarge(options, one);
          }
        } finally {
          if (one.inode.fd !== undefined) await close(one.inode.fd);
        }
        if (out.isTorn) result.torn ??= pathText(manifest, one.row.slot);
        batch.nodeBytes += nodeBytes(out.node);
        batch.outgoing.push(out);
        if (isFull(options, batch) || out.isLarge) yield* flush();
      }
    }
    yield* flush();
  } finally {
    for (const one of [...left, ...((await ahead?.catch(() => [])) ?? [])]) {
      if (typeof one !== 'number' && one.inode.fd !== undefined) await close(one.inode.fd);
    }
  }
}

function emptyBatch({ clock }: Collecting): Batch {
  return { outgoing: [], nodeBytes: 0, contentBytes: 0, sinceMs: clock.monotonicMs() };
}

function isFull({ clock }: Collecting, { outgoing, nodeBytes, contentBytes, sinceMs }: Batch): boolean {
  return (
    outgoing.length >= maxPieceNodes ||
    nodeBytes >= maxPieceBytes ||
    contentBytes >= maxBatch.bytes ||
    (contentBytes > 0 && clock.monotonicMs() - sinceMs >= maxBatch.ms)
  );
}

/** All of them, or the first failure after all have ended and what they opened is closed. */
async function settled(reading: Promise<Read | number>[]): Promise<(Read | number)[]> {
  const results = await Promise.allSettled(reading);
  const failed = results.find((one) => one.status === 'rejected');
  const reads = results.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
  if (!failed) return reads;
  for (const one of reads) if (typeof one !== 'number' && one.inode.fd !== undefined) await close(one.inode.fd);
  throw failed.reason as Error;
}

/** Directories that the replica does not have yet go before what they hold. */
function withParents(manifest: Manifest, rows: Row[]): Row[] {
  const ordered = new Map<number, Row>();
  for (const row of rows) {
    const chain: Row[] = [];
    let at: Row | undefined = row;
    while (at && !ordered.has(at.slot) && chain.length < 100_000) {
      chain.push(at);
      const parent: number | undefined = manifest.names(at.slot)[0]?.parent;
      const above: Row | undefined = parent === undefined ? undefined : manifest.row(parent);
      at = above && above.dirty > 0 && above.hash === undefined ? above : undefined;
    }
    for (const one of chain.reverse()) ordered.set(one.slot, one);
  }
  return [...ordered.values()];
}

/** The slot when the inode is not where it was. */
async function read(options: Collecting, row: Row, namesOnly: boolean): Promise<Read | number> {
  const { tree, manifest, clock, signal } = options;
  signal.throwIfAborted();
  const inode = await openInode(tree, manifest, row, options.held?.get(row.slot));
  if (!inode) return row.slot;
  const one: Read = { row, stat: inode.stat, inode, bytes: undefined, readMs: clock.nowMs(), isTorn: false };
  const { fd } = inode;
  if (fd === undefined) return one;
  if (isImmutableOrAppendOnly(fd)) options.flagged(row.slot);
  try {
    if (row.type === nodeTypes.directory || namesOnly) inode.xattrs = await readXattrs(fd);
    else if (inode.stat.size <= smallBytes) await readSmall(options, one, fd);
    return one;
  } catch (error) {
    await close(fd);
    throw error;
  }
}

async function readSmall(options: Collecting, one: Read, fd: number): Promise<void> {
  for (let tries = options.how.mode === 'still' ? maxTries : 1; ; tries--) {
    one.stat = await standing(options, one, fd);
    if (one.stat.size > smallBytes) {
      one.bytes = undefined; // it grew: a stream now
      return;
    }
    const buffer = Buffer.allocUnsafe(Number(one.stat.size));
    const length = await readAt(fd, buffer, 0);
    one.bytes = buffer.subarray(0, length);
    options.counters.readBytes += length;
    await options.pace.take(length, options.signal);
    one.inode.xattrs = await readXattrs(fd);
    one.isTorn = !isSameMoment(one.stat, await fstat(fd));
    if (!one.isTorn || tries <= 1) return;
  }
}

/** The file's state when it can be read as of one moment, or as it is after some tries (the read will show it torn or not). */
async function standing(options: Collecting, one: Read, fd: number): Promise<BigIntStats> {
  const { how, clock, signal } = options;
  one.readMs = clock.nowMs();
  if (how.mode !== 'still') return fstat(fd);
  let flushedMs = how.sinceMs;
  for (let tries = maxTries; ; tries--) {
    const stat = await fstat(fd);
    one.readMs = clock.nowMs();
    const ctimeMs = Number(stat.ctimeNs / 1000n) / 1000;
    if (ctimeMs + tickMs <= flushedMs || tries === 0) return stat;
    // A time to come is a clock that was set back: a write would move it.
    if (ctimeMs > one.readMs + tickMs && flushedMs > how.sinceMs) return stat;
    const waitMs = Math.min(tickMs, ctimeMs + tickMs - one.readMs) + 1;
    if (waitMs > 0) await clock.sleep(waitMs, signal);
    flushedMs = clock.nowMs();
    await fdatasync(fd);
  }
}

function isSameMoment(a: BigIntStats, b: BigIntStats): boolean {
  return a.size === b.size && a.mtimeNs === b.mtimeNs && a.ctimeNs === b.ctimeNs;
}

function plain(options: Collecting, one: Read): Outgoing {
  return outgoing(options, one, nodeOf(one.row.slot, one.stat, one.inode), undefined);
}

/** As far as can be told without reading it. */
function isOnlyRenamed({ row, stat }: Read): boolean {
  return Number(stat.size) === row.sentBytes && stat.mtimeNs === row.mtimeNs;
}

/** With the content that it had: what it has now comes later. */
function renamed(options: Collecting, one: Read): Outgoing {
  const { row } = one;
  assert(row.root, 'it was sent before');
  const node = { ...nodeOf(row.slot, one.stat, one.inode), sizeBytes: row.sentBytes, contentRoot: row.root };
  return { ...outgoing(options, { ...one, isTorn: false }, node, row.root), isTorn: false, namesOnly: true };
}

function outgoing(options: Collecting, one: Read, node: Node, root: Buffer | undefined): Outgoing {
  const { how } = options;
  const { row, stat, readMs } = one;
  const isFile = node.type === nodeTypes.file;
  // What may change again within the tick, or has pages dirty since before it was read, would keep its ctime: such a one is
  // looked at again. A `still` file was flushed by itself if need be.
  const racyMs = how.mode === 'frozen' || (how.mode === 'live' && isFile) ? how.sinceMs : readMs;
  const isRacy = Number(stat.ctimeNs / 1_000_000n) > racyMs - tickMs;
  const ctimeNs = isRacy && (!isFile || how.mode !== 'still') ? -1n : stat.ctimeNs;
  const signature = { sizeBytes: isFile ? stat.size : 0n, mtimeNs: stat.mtimeNs, ctimeNs };
  return { row, node, signature, root, isTorn: one.isTorn || (isFile && isRacy && how.mode === 'live') };
}

function* sendSmall(options: Collecting, one: Read, bytes: Buffer): Generator<Piece, Outgoing> {
  const { row } = one;
  const { counters, whole } = options;
  const hashes = granuleHashes(bytes);
  const root = contentRoot(hashes);
  options.progress(bytes.length);
  if (!whole && row.dirty === 1 && row.root?.equals(root)) counters.skippedSameBytes += bytes.length;
  else {
    options.manifest.sending(row);
    for (const piece of piecesOf(row.slot, 0, bytes, hashes, asking(options, row, one.stat)))
      yield counted(counters, piece);
  }
  const node = { ...nodeOf(row.slot, one.stat, one.inode), sizeBytes: bytes.length, contentRoot: root };
  return outgoing(options, one, node, root);
}

async function* sendLarge(options: Collecting, one: Read): AsyncGenerator<Piece, Outgoing> {
  const { row } = one;
  const fd = one.inode.fd as number;
  const { counters, pace, signal } = options;
  for (let tries = options.how.mode === 'still' ? maxTries : 1; ; tries--) {
    one.stat = await standing(options, one, fd);
    const onRead = async (bytes: number, readBytes: number): Promise<void> => {
      signal.throwIfAborted();
      counters.readBytes += readBytes;
      options.progress(bytes);
      await pace.take(readBytes, signal);
    };
    const stream = streamFile(fd, row.slot, Number(one.stat.size), asking(options, row, one.stat), onRead);
    options.manifest.sending(row);
    let step = await stream.next();
    for (; !step.done; step = await stream.next()) yield counted(counters, step.value);
    one.inode.xattrs = await readXattrs(fd);
    one.isTorn = !isSameMoment(one.stat, await fstat(fd));
    if (one.isTorn && tries > 1) continue;
    const { root, sizeBytes } = step.value;
    const node = { ...nodeOf(row.slot, one.stat, one.inode), sizeBytes, contentRoot: root };
    return { ...outgoing(options, one, node, root), isLarge: true };
  }
}

function counted(counters: SourceCounters, piece: Piece): Piece {
  if (piece.kind === 'zeros') counters.skippedZeroBytes += (piece.count - 1) * granuleBytes + piece.tailBytes;
  return piece;
}

function asking(options: Collecting, row: Row, stat: BigIntStats): Asking {
  const { whole, blank, manifest } = options;
  const isNew = row.hash === undefined;
  const offer = !(blank && isNew) && (whole || stat.size > granuleBytes || row.dirty === 2);
  return { offer, expectSame: whole && isAcked(manifest, row) && isUntouched(row, stat) };
}

/** Nothing was noted since it was read last. */
function isUntouched(row: Row, stat: BigIntStats): boolean {
  return row.ctimeNs === BigInt.asIntN(64, stat.ctimeNs) && row.mtimeNs === BigInt.asIntN(64, stat.mtimeNs);
}

export function pathText(manifest: Manifest, slot: number): string {
  const path = manifest.path(slot);
  return path ? path.map((name) => name.toString()).join('/') : `inode in slot ${slot}`;
}
