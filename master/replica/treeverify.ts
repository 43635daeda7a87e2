/**
 * Re-reading a tree against its index: every byte of content, all that a node is, every link, and what is there that should
 * not be. A directory with foreign entries counts as bad itself; so does a node that is missing or something else, and all
 * content of such a file.
 */
import { constants } from 'node:fs';
import { granuleBytes, granuleCount, granuleHash, hashBytes, isZeroHash } from '../../proto/granule.ts';
import { diskFile } from '../../proto/system.ts';
import { nodeTypes, type Node } from '../../proto/wire.ts';
import type { Piece, Progress, Slice } from './base.ts';
import { pageHashes } from './hashpages.ts';
import type { TreeIndex } from './treeindex.ts';
import { hasState } from './treenode.ts';
import { each, entryNames, isMissing, lstatEntry, openFile, type Directories, type Handle } from './treepath.ts';

const atOnce = 4;
const readBytes = 1 << 20;

interface Found {
  readBytes: number;
  bad: { object: number; granule: number }[];
}

/** @param loosened gets the slots whose permissions were widened to read them */
export async function verifyTree(
  index: TreeIndex,
  directories: Directories,
  loosened: Set<number>,
  signal: AbortSignal,
  progress: Progress,
): Promise<Found> {
  const found: Found = { readBytes: 0, bad: [] };
  const total = index.contentBytes;
  let done = 0;
  const buffers = Array.from({ length: atOnce }, () => Buffer.alloc(readBytes));
  await each(index.nodes(), atOnce, async (node) => {
    signal.throwIfAborted();
    const buffer = buffers.pop() ?? Buffer.alloc(readBytes);
    try {
      if (!index.isSound(node) || !(await isRight(index, directories, loosened, node)))
        found.bad.push({ object: 0, granule: node.slot });
      if (node.type === nodeTypes.file) await verifyContent(index, directories, loosened, node, buffer, found, signal);
    } finally {
      buffers.push(buffer);
    }
    progress((done += node.sizeBytes), total);
  });
  for (const slot of index.missing()) found.bad.push({ object: 0, granule: slot });
  return found;
}

/** All but content. */
async function isRight(
  index: TreeIndex,
  directories: Directories,
  loosened: Set<number>,
  node: Node,
): Promise<boolean> {
  const isWithheld = index.work.isWithheld(node.slot);
  const names = node.names.length > 0 ? node.names : [{ parent: 0, name: Buffer.from('.') }];
  let inode: bigint | undefined;
  try {
    for (const { parent, name } of names) {
      const isSame = await directories.with(parent, 'read', async (directory) => {
        const stat = await lstatEntry(directory, name);
        inode ??= stat?.ino;
        return stat?.ino === inode && (await hasState(directory, name, node, isWithheld || loosened.has(node.slot)));
      });
      if (!isSame) return false;
    }
    return node.type !== nodeTypes.directory || !(await hasForeign(index, directories, node.slot));
  } catch (error) {
    if (!isMissing(error)) throw error;
    return false;
  }
}

async function hasForeign(index: TreeIndex, directories: Directories, slot: number): Promise<boolean> {
  return directories.with(slot, 'read', async (directory) => {
    for await (const name of entryNames(directory)) if (index.slotOf(slot, name) === undefined) return true;
    return false;
  });
}

/** Only content, one file after the other: all that a clone takes over from the tree itself. See Base.prove. */
export async function proveContent(
  index: TreeIndex,
  directories: Directories,
  from: Piece,
  signal: AbortSignal,
  isOver: () => boolean,
): Promise<Slice> {
  const slice: Slice = { bad: [], readBytes: 0, doneBytes: 0 };
  const buffer = Buffer.alloc(readBytes);
  const { loosened } = directories;
  for (const node of index.nodes(from.object)) {
    signal.throwIfAborted();
    const { slot, sizeBytes, type } = node;
    const first = slot === from.object ? from.granule : 0;
    if (type === nodeTypes.file) {
      const next = await verifyContent(index, directories, loosened, node, buffer, slice, signal, first, isOver);
      slice.doneBytes += (next === undefined ? sizeBytes : next * granuleBytes) - first * granuleBytes;
      if (next !== undefined) return { ...slice, next: { object: slot, granule: next } };
    }
    if (isOver()) return { ...slice, next: { object: slot + 1, granule: 0 } };
  }
  return slice;
}

/** From a granule on, to the end or until `isOver`; then the answer is where to go on. */
async function verifyContent(
  index: TreeIndex,
  directories: Directories,
  loosened: Set<number>,
  node: Node,
  buffer: Buffer,
  found: Found,
  signal: AbortSignal,
  from = 0,
  isOver = (): boolean => false,
): Promise<number | undefined> {
  const { slot, sizeBytes, names } = node;
  const [name] = names;
  if (!name || sizeBytes === 0) return undefined;
  let file: Handle | undefined;
  try {
    const opened = await directories.with(name.parent, 'read', (directory) =>
      openFile(directory, name.name, constants.O_RDONLY, () => loosened.add(slot)),
    );
    file = opened.file;
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
  try {
    const count = granuleCount(sizeBytes);
    for (let first = from; first < count; first += pageHashes) {
      signal.throwIfAborted();
      if (first > from && isOver()) return first;
      const hashes = index.content.hashes(slot, first, Math.min(pageHashes, count - first));
      await verifyPage(file, slot, first, hashes, sizeBytes, buffer, found);
    }
    return undefined;
  } finally {
    await file?.close();
  }
}

/** Without a file, as if it were all zeros. */
async function verifyPage(
  handle: Handle | undefined,
  slot: number,
  first: number,
  hashes: Buffer,
  sizeBytes: number,
  buffer: Buffer,
  found: Found,
): Promise<void> {
  const file = handle && diskFile(handle);
  const end = Math.min(sizeBytes, first * granuleBytes + (hashes.length / hashBytes) * granuleBytes);
  const data = await file?.nextData(first * granuleBytes);
  if (!file || data === undefined || data >= end) {
    for (let at = 0; at * hashBytes < hashes.length; at++) {
      if (!isZeroHash(hashes, at)) found.bad.push({ object: slot, granule: first + at });
    }
    return;
  }
  for (let at = first * granuleBytes; at < end; at += readBytes) {
    const want = Math.min(readBytes, end - at);
    // An unreadable sector is damage like any other: named, and asked for again.
    const got = await file.read(buffer.subarray(0, want), at).catch(() => 0);
    found.readBytes += got;
    for (let from = 0; from < want; from += granuleBytes) {
      const granule = (at + from) / granuleBytes;
      const to = Math.min(want, from + granuleBytes);
      const own = (granule - first) * hashBytes;
      const isSame = to <= got && granuleHash(buffer.subarray(from, to)).compare(hashes, own, own + hashBytes) === 0;
      if (!isSame) found.bad.push({ object: slot, granule });
    }
  }
}
