/**
 * The walk over a tree: compares what stat says with the manifest and marks what is new, changed, moved or without a name.
 *
 * Guarantees: what was changed before a full walk began is dirty in the manifest when it has ended, whatever happened
 * meanwhile; the same inode under another name keeps its slot; memory does not grow with files or the length of a
 * directory. A walk over a tree in which names move can miss what moves past it: `restless` says that this may be, and a walk
 * `since` over the directories changed meanwhile settles it; only then may orphans be buried.
 * Does not look at content, does not enter other filesystems (mount points are empty directories), follows no link.
 */
import { type BigIntStats } from 'node:fs';
import { opendir } from 'node:fs/promises';
import { systemErrorCode } from '../../proto/errors.ts';
import { nodeTypes } from '../../proto/wire.ts';
import type { Manifest } from '../manifest.ts';
import { childPath, close, fstat, isMoved, isSame, keyOf, lstat, openDirectory, type Tree } from './tree.ts';

const maxDirectoriesAtOnce = 8;
/** Names looked at together. */
const batchNames = 128;
const nothing = Buffer.alloc(0);

export interface Walk {
  /** Names went away or directories moved while, or before, we looked. */
  restless: boolean;
  entries: number;
  /** Newest ctime met on what has changed; 0 = nothing has. */
  newestNs: bigint;
  /** Directories on which other filesystems are mounted. */
  foreign: number;
}

/** Directories that wait to be looked at; `full`: with all that is below, whatever its times say. */
interface Waiting {
  slot: number;
  full: boolean;
}

/** @param sinceNs look only into directories whose names changed at or after this; undefined = into all */
export async function walk(
  tree: Tree,
  manifest: Manifest,
  sinceNs: bigint | undefined,
  signal: AbortSignal,
): Promise<Walk> {
  const found: Walk = { restless: false, entries: 0, newestNs: 0n, foreign: 0 };
  noteRoot(tree, manifest, found);
  await drain(tree, manifest, found, [{ slot: 0, full: sinceNs === undefined }], sinceNs, signal);
  return found;
}

/** Looks at single names, as hints give them, and at all below those that are new. */
export async function visit(
  tree: Tree,
  manifest: Manifest,
  hints: Map<number, Buffer[]>,
  signal: AbortSignal,
): Promise<Walk> {
  const found: Walk = { restless: false, entries: 0, newestNs: 0n, foreign: 0 };
  const waiting: Waiting[] = [];
  noteRoot(tree, manifest, found);
  for (const [parent, names] of hints) {
    signal.throwIfAborted();
    const fd = await openDirectory(tree, manifest, parent);
    if (fd === undefined) {
      found.restless = true;
      continue;
    }
    try {
      for (let at = 0; at < names.length; at += batchNames) {
        const some = names.slice(at, at + batchNames);
        (await lookAt(tree, manifest, found, parent, fd, some, waiting, true)).forEach((isThere, index) => {
          if (!isThere) forget(manifest, found, parent, some[index] as Buffer);
        });
      }
    } finally {
      await close(fd);
    }
  }
  await drain(tree, manifest, found, waiting, undefined, signal);
  return found;
}

function noteRoot(tree: Tree, manifest: Manifest, found: Walk): void {
  const row = manifest.row(0);
  const key = keyOf(tree, tree.stat);
  if (!row) manifest.insert(key, 0n, 0);
  else if (manifest.isAdopted(row)) manifest.claim(0, key);
  else if (row.ctimeNs !== BigInt.asIntN(64, tree.stat.ctimeNs)) manifest.markDirty(0, 0n);
  else return;
  found.newestNs = tree.stat.ctimeNs;
}

async function drain(
  tree: Tree,
  manifest: Manifest,
  found: Walk,
  waiting: Waiting[],
  sinceNs: bigint | undefined,
  signal: AbortSignal,
): Promise<void> {
  let running = 0;
  await new Promise<void>((resolve, reject) => {
    let failed = false;
    const next = (): void => {
      if (failed) return;
      while (running < maxDirectoriesAtOnce && waiting.length > 0) {
        const one = waiting.pop() as Waiting;
        running++;
        look(one).then(
          () => {
            running--;
            next();
          },
          (error: unknown) => {
            failed = true;
            reject(error instanceof Error ? error : new Error(String(error)));
          },
        );
      }
      if (running === 0) resolve();
    };
    next();
  });

  async function look({ slot, full }: Waiting): Promise<void> {
    signal.throwIfAborted();
    const fd = await openDirectory(tree, manifest, slot);
    if (fd === undefined) {
      found.restless = true;
      return;
    }
    try {
      const before = await fstat(fd);
      if (before.dev !== tree.device) {
        found.foreign++;
        for (const name of known(manifest, slot)) forget(manifest, found, slot, name.name);
      } else if (full || sinceNs === undefined || before.ctimeNs >= sinceNs) {
        await list(slot, fd, full);
        if ((await fstat(fd)).ctimeNs !== before.ctimeNs) found.restless = true;
      } else {
        for (const child of known(manifest, slot)) {
          if (child.isDirectory) waiting.push({ slot: child.slot, full: false });
        }
      }
    } finally {
      await close(fd);
    }
  }

  async function list(slot: number, fd: number, full: boolean): Promise<void> {
    let seen = 0;
    let batch: Buffer[] = [];
    const flush = async (): Promise<void> => {
      signal.throwIfAborted();
      const there = await lookAt(tree, manifest, found, slot, fd, batch, waiting, full);
      seen += there.filter(Boolean).length;
      batch = [];
    };
    // latin1 carries any bytes through a string unharmed.
    const directory = await opendir(`/proc/self/fd/${fd}`, { encoding: 'latin1', bufferSize: 256 });
    for await (const entry of directory) {
      if (batch.push(Buffer.from(entry.name, 'latin1')) >= batchNames) await flush();
    }
    await flush();
    if (manifest.childCount(slot) === seen) return;
    // More names are known than there are: which? Asked one by one, so that no list of them is needed.
    for (const names of batches(known(manifest, slot))) {
      signal.throwIfAborted();
      const there = await lookAt(tree, manifest, found, slot, fd, names, waiting, full);
      names.forEach((name, index) => there[index] || forget(manifest, found, slot, name));
    }
  }
}

function* known(manifest: Manifest, parent: number): Generator<{ name: Buffer; slot: number; isDirectory: boolean }> {
  for (let after: Buffer = nothing; ;) {
    const children = manifest.children(parent, after, batchNames);
    yield* children;
    const last = children.at(-1);
    if (!last) return;
    after = last.name;
  }
}

function* batches(children: Iterable<{ name: Buffer }>): Generator<Buffer[]> {
  let batch: Buffer[] = [];
  for (const { name } of children) {
    if (batch.push(name) < batchNames) continue;
    yield batch;
    batch = [];
  }
  if (batch.length > 0) yield batch;
}

function forget(manifest: Manifest, found: Walk, parent: number, name: Buffer): void {
  manifest.removeName(parent, name);
  found.restless = true;
}

/** Answers for each name whether there is something by it. */
async function lookAt(
  tree: Tree,
  manifest: Manifest,
  found: Walk,
  parent: number,
  fd: number,
  names: Buffer[],
  waiting: Waiting[],
  full: boolean,
): Promise<boolean[]> {
  const stats = await Promise.all(names.map((name) => lstat(childPath(fd, name)).catch(absent)));
  return stats.map((stat, index) => {
    if (stat) note(tree, manifest, found, parent, names[index] as Buffer, stat, waiting, full);
    return stat !== undefined;
  });
}

function absent(error: unknown): undefined {
  if (!isMoved(error) && systemErrorCode(error) !== 'ENAMETOOLONG') throw error;
}

function note(
  tree: Tree,
  manifest: Manifest,
  found: Walk,
  parent: number,
  name: Buffer,
  stat: BigIntStats,
  waiting: Waiting[],
  full: boolean,
): void {
  found.entries++;
  const key = keyOf(tree, stat);
  const isDirectory = key.type === nodeTypes.directory;
  const sizeBytes = key.type === nodeTypes.file ? stat.size : 0n;
  const row = manifest.child(parent, name);
  if (row && isSame(key, row)) {
    const changed =
      row.ctimeNs !== BigInt.asIntN(64, stat.ctimeNs) ||
      row.mtimeNs !== BigInt.asIntN(64, stat.mtimeNs) ||
      row.sizeBytes !== sizeBytes;
    if (changed && (row.dirty === 0 || row.sizeBytes !== sizeBytes)) manifest.markDirty(row.slot, sizeBytes);
    if (changed || row.dirty > 0) changedAt(found, stat);
    if (isDirectory) waiting.push({ slot: row.slot, full });
    return;
  }
  changedAt(found, stat);
  const existing = manifest.slotOf(key);
  if (existing === undefined && row && manifest.isAdopted(row) && row.type === key.type) {
    manifest.claim(row.slot, key);
    if (isDirectory) waiting.push({ slot: row.slot, full: true });
    return;
  }
  if (existing !== undefined && isDirectory) {
    found.restless = true;
    // Directories that were moved into one another while we looked, or one that is mounted below itself: leave it as it is.
    if (manifest.isAbove(existing, parent)) return;
  }
  const slot = existing ?? manifest.insert(key, sizeBytes);
  if (row) found.restless = true;
  manifest.setName(parent, name, slot, isDirectory);
  if (isDirectory) waiting.push({ slot, full: true });
}

function changedAt(found: Walk, stat: BigIntStats): void {
  if (stat.ctimeNs > found.newestNs) found.newestNs = stat.ctimeNs;
}
