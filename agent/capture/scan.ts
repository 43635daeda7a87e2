/**
 * The walk over a tree: compares what stat says with the manifest and marks what is new, changed, moved or without a name.
 *
 * Guarantees: what was changed before a full walk began is dirty in the manifest when it has ended, whatever happened
 * meanwhile; the same inode under another name keeps its slot; memory does not grow with files or the length of a
 * directory. A walk over a tree in which names move can miss what moves past it: `restless` says that this may be, and a walk
 * `since` over the directories changed meanwhile settles it. What has lost its name is gone for sure only when a walk since
 * the start of the one before finds no directory that changed (`listed` is 0): then nothing can have moved past.
 * Does not look at content, does not enter other filesystems (mount points are empty directories), follows no link.
 */
import { constants, type BigIntStats } from 'node:fs';
import { opendir } from 'node:fs/promises';
import { systemErrorCode } from '../../proto/errors.ts';
import { nodeTypes, type Name } from '../../proto/wire.ts';
import type { Manifest } from '../manifest.ts';
import {
  childPath,
  close,
  fstat,
  isMoved,
  isSame,
  keyOf,
  lstat,
  O_PATH,
  open,
  openDirectory,
  type Tree,
} from './tree.ts';

const maxDirectoriesAtOnce = 8;
/** Names looked at together. */
const batchNames = 128;
const nothing = Buffer.alloc(0);
const { O_NOFOLLOW } = constants;

export interface Walk {
  /** Names went away or directories moved while, or before, we looked. */
  restless: boolean;
  entries: number;
  /** Newest ctime met on what has changed; 0 = nothing has. */
  newestNs: bigint;
  /** Directories whose names were looked through. */
  listed: number;
  /** Directories on which other filesystems are mounted. */
  foreign: number;
  /** Slots of directories that were not where they should be: not looked through. */
  missed: number[];
}

/** Handles (O_PATH) of regular files, kept because they move on before they can be read. */
export interface Holding {
  wants(slot: number): boolean;
  hold(slot: number, handle: number): Promise<void>;
  /** Names that no longer stand for what they stood for. */
  left(names: Name[]): void;
  /** The slot has this name since now; `replaces`: another one had it when this was seen. */
  put(slot: number, name: Name, replaces: boolean): void;
}

/** everything: what is new, changed, moved, gone. missing: only the new place of what has lost its name, and directories. */
export type Search = 'everything' | 'missing';

/** Directories that wait to be looked at; `full`: with all that is below, whatever its times say. */
interface Waiting {
  slot: number;
  full: boolean;
}

/** Directories among the names looked at that are looked through: all, those that were moved or are new, new ones. */
export type Through = 'all' | 'moved' | 'new';

export interface Visiting {
  through: Through;
  /** Directories that a look before this one has missed. */
  missed: readonly number[];
  holding?: Holding | undefined;
}

/** @param sinceNs look only into directories whose names changed at or after this; undefined = into all */
export async function walk(
  tree: Tree,
  manifest: Manifest,
  sinceNs: bigint | undefined,
  signal: AbortSignal,
  search: Search = 'everything',
  holding?: Holding,
): Promise<Walk> {
  const found = nothingFound();
  await noteRoot(tree, manifest, found);
  await drain({ tree, manifest, found, search, holding }, [{ slot: 0, full: sinceNs === undefined }], sinceNs, signal);
  return found;
}

/** Looks at single names, as hints give them, and at all below those that are new. `listed` counts hinted directories too. */
export async function visit(
  tree: Tree,
  manifest: Manifest,
  hints: ReadonlyMap<number, Buffer[]>,
  signal: AbortSignal,
  { through, missed, holding }: Visiting = { through: 'all', missed: [] },
): Promise<Walk> {
  const found = nothingFound();
  const looking: Looking = { tree, manifest, found, search: 'everything', holding };
  const waiting: Waiting[] = [];
  await noteRoot(tree, manifest, found);
  // A directory that was moved is found once its own name was looked at: again, as long as that gets on.
  let left = hints;
  for (let before = Infinity; left.size > 0 && left.size < before;) {
    before = left.size;
    left = await visitThose(looking, left, waiting, through, signal);
  }
  for (const slot of left.keys()) miss(looking, slot);
  // Last, so that they are looked for where they are now.
  waiting.unshift(...missed.map((slot) => ({ slot, full: true })));
  await drain(looking, waiting, undefined, signal);
  return found;
}

/** Answers those whose directory is not where the manifest has it. */
async function visitThose(
  looking: Looking,
  hints: ReadonlyMap<number, Buffer[]>,
  waiting: Waiting[],
  through: Through,
  signal: AbortSignal,
): Promise<Map<number, Buffer[]>> {
  const { tree, manifest, found } = looking;
  const elsewhere = new Map<number, Buffer[]>();
  for (const [parent, names] of hints) {
    signal.throwIfAborted();
    found.listed++;
    const fd = await openDirectory(tree, manifest, parent);
    if (fd === undefined) {
      elsewhere.set(parent, names);
      continue;
    }
    try {
      noteParent(looking, parent, await fstat(fd));
      for (let at = 0; at < names.length; at += batchNames) {
        const some = names.slice(at, at + batchNames);
        (await lookAt(looking, parent, fd, some, waiting, true, through)).forEach((isThere, index) => {
          if (!isThere) forget(manifest, found, parent, some[index] as Buffer);
        });
      }
    } finally {
      await close(fd);
    }
  }
  return elsewhere;
}

function miss({ manifest, found }: Looking, slot: number): void {
  found.restless = true;
  if (manifest.row(slot)?.type === nodeTypes.directory) found.missed.push(slot);
}

function nothingFound(): Walk {
  return { restless: false, entries: 0, newestNs: 0n, listed: 0, foreign: 0, missed: [] };
}

/** As it is now: the tree may have been opened some time ago. */
async function noteRoot(tree: Tree, manifest: Manifest, found: Walk): Promise<void> {
  const stat = await fstat(tree.fd);
  const row = manifest.row(0);
  const key = keyOf(tree, stat);
  if (!row) manifest.insert(key, 0n, 0);
  else if (manifest.isAdopted(row)) manifest.claim(0, key);
  else if (row.ctimeNs !== BigInt.asIntN(64, stat.ctimeNs)) manifest.markDirty(0, 0n);
  else return;
  found.newestNs = stat.ctimeNs;
}

/** A name that came or went changes the times of the directory, which nobody hints at. */
function noteParent({ manifest, found }: Looking, slot: number, stat: BigIntStats): void {
  const row = manifest.row(slot);
  if (row && row.ctimeNs !== BigInt.asIntN(64, stat.ctimeNs)) {
    if (row.dirty === 0) manifest.markDirty(slot, 0n);
    changedAt(found, stat);
  }
}

interface Looking {
  readonly tree: Tree;
  readonly manifest: Manifest;
  readonly found: Walk;
  readonly search: Search;
  readonly holding: Holding | undefined;
}

async function drain(
  looking: Looking,
  waiting: Waiting[],
  sinceNs: bigint | undefined,
  signal: AbortSignal,
): Promise<void> {
  const { tree, manifest, found, search } = looking;
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
    if (fd === undefined) return miss(looking, slot);
    try {
      const before = await fstat(fd);
      if (before.dev !== tree.device) {
        found.foreign++;
        for (const name of known(manifest, slot)) forget(manifest, found, slot, name.name);
      } else if (full || sinceNs === undefined || before.ctimeNs >= sinceNs) {
        found.listed++;
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
      const there = await lookAt(looking, slot, fd, batch, waiting, full);
      seen += there.filter(Boolean).length;
      batch = [];
    };
    // latin1 carries any bytes through a string unharmed.
    const directory = await opendir(`/proc/self/fd/${fd}`, { encoding: 'latin1', bufferSize: 256 });
    for await (const entry of directory) {
      if (batch.push(Buffer.from(entry.name, 'latin1')) >= batchNames) await flush();
    }
    await flush();
    if (search === 'missing' || manifest.childCount(slot) === seen) return;
    // More names are known than there are: which? Asked one by one, so that no list of them is needed.
    for (const names of batches(known(manifest, slot))) {
      signal.throwIfAborted();
      const there = await lookAt(looking, slot, fd, names, waiting, full);
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
  if (manifest.removeName(parent, name)) found.restless = true;
}

/** Answers for each name whether there is something by it. */
async function lookAt(
  looking: Looking,
  parent: number,
  fd: number,
  names: Buffer[],
  waiting: Waiting[],
  full: boolean,
  through: Through = 'all',
): Promise<boolean[]> {
  const { filter } = looking.tree;
  const directory = filter && looking.manifest.path(parent);
  if (filter && !directory) {
    // It depends on where the directory is, and that is being found out: until then all stays as it is.
    miss(looking, parent);
    return names.map(() => true);
  }
  const stats = await Promise.all(
    names.map(async (name) => {
      const stat = await lstat(childPath(fd, name)).catch(absent);
      const isWanted = !stat || !directory || filter.wants(directory, name, stat.isDirectory());
      return isWanted ? stat : undefined; // what is left out is as if it were not there
    }),
  );
  const there = stats.map((stat, index) => {
    if (stat) note(looking, parent, names[index] as Buffer, stat, waiting, full, through);
    return stat !== undefined;
  });
  if (looking.holding) await hold(looking, looking.holding, fd, names, stats);
  return there;
}

/** Whoever reads them finds out whether they are still the ones that were meant. */
async function hold(
  { tree, manifest }: Looking,
  holding: Holding,
  fd: number,
  names: Buffer[],
  stats: (BigIntStats | undefined)[],
): Promise<void> {
  for (const [index, stat] of stats.entries()) {
    if (!stat?.isFile()) continue;
    const slot = manifest.slotOf(keyOf(tree, stat));
    if (slot === undefined || !holding.wants(slot)) continue;
    const handle = await open(childPath(fd, names[index] as Buffer), O_PATH | O_NOFOLLOW).catch(absent);
    if (handle !== undefined) await holding.hold(slot, handle);
  }
}

function absent(error: unknown): undefined {
  if (!isMoved(error) && systemErrorCode(error) !== 'ENAMETOOLONG') throw error;
}

function note(
  { tree, manifest, found, search, holding }: Looking,
  parent: number,
  name: Buffer,
  stat: BigIntStats,
  waiting: Waiting[],
  full: boolean,
  through: Through,
): void {
  found.entries++;
  const key = keyOf(tree, stat);
  const isDirectory = key.type === nodeTypes.directory;
  const sizeBytes = key.type === nodeTypes.file ? stat.size : 0n;
  if (search === 'missing' && !isDirectory) {
    const slot = manifest.slotOf(key);
    if (slot === undefined || !(holding?.wants(slot) === true || manifest.isOrphan(slot))) return;
  }
  const row = manifest.child(parent, name);
  if (row && isSame(key, row)) {
    const changed =
      row.ctimeNs !== BigInt.asIntN(64, stat.ctimeNs) ||
      row.mtimeNs !== BigInt.asIntN(64, stat.mtimeNs) ||
      row.sizeBytes !== sizeBytes;
    if (changed && (row.dirty === 0 || row.sizeBytes !== sizeBytes)) manifest.markDirty(row.slot, sizeBytes);
    if (changed || row.dirty > 0) changedAt(found, stat);
    if (isDirectory && through === 'all') waiting.push({ slot: row.slot, full });
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
  // Its other name was seen before it moved here.
  if (existing !== undefined && !isDirectory && manifest.names(existing).length >= stat.nlink) found.restless = true;
  const slot = existing ?? manifest.insert(key, sizeBytes);
  if (row) found.restless = true;
  const alone = isDirectory || stat.nlink === 1n;
  if (alone) holding?.left(manifest.names(slot));
  holding?.put(slot, { parent, name }, row !== undefined);
  manifest.setName(parent, name, slot, alone);
  if (isDirectory && (through !== 'new' || existing === undefined)) waiting.push({ slot, full: true });
}

function changedAt(found: Walk, stat: BigIntStats): void {
  if (stat.ctimeNs > found.newestNs) found.newestNs = stat.ctimeNs;
}
