/**
 * Bringing a tree from one state to another: the work that a commit leaves in the index, or a whole new copy.
 *
 * Two phases, the first of which is durable before the second begins:
 *   1  every name that goes or moves is detached: a directory is renamed into the staging folder with all that is in it, other
 *      objects likewise or, when gone, unlinked. Nothing is attached, so a name that is there is one still to detach.
 *   2  what is new is made, everything gets its new names, parents before children, then its links, then owner, permissions,
 *      attributes and times, directories last.
 * Each can be begun again after a crash at any step. In the staging folder: `<slot>` an object on its way, `n<slot>` content
 * of a file that is to be made, `x...` what is to be removed.
 *
 * Failure: an object that the index says is there but is not (or is something else) is ReplicaDamaged, unless it is known
 * to be damaged, then it is made anew. Foreign entries in the way are removed.
 */
import { constants, promises as fs } from 'node:fs';
import { ReplicationError, systemErrorCode } from '../../proto/errors.ts';
import { compareNames } from '../../proto/node.ts';
import { nodeTypes, type Name, type Node } from '../../proto/wire.ts';
import type { TreeChange } from './treelog.ts';
import { placeMany, removeMany } from './treemany.ts';
import { isDevice, makeNode, setState, typeOf } from './treenode.ts';
import {
  at,
  chmodEntry,
  Directories,
  each,
  entryNames,
  isMissing,
  isPrivileged,
  lstatEntry,
  openFile,
  removeEntry,
  stagingSlot,
  type Entry,
  type Handle,
} from './treepath.ts';
import { isReplaced, staged, stagedContent, stagedTrash, type Work } from './treetask.ts';

const atOnce = 8;
/** Changes that are looked at together. */
const chunkChanges = 256;

const isDirectory = (node: Node | undefined): boolean => node?.type === nodeTypes.directory;

function keptNames(change: TreeChange): Name[] {
  const after = isReplaced(change) ? [] : (change.after?.names ?? []);
  return (change.before?.names ?? []).filter((name) => after.some((other) => compareNames(name, other) === 0));
}

function* chunks(changes: Iterable<TreeChange>): Generator<TreeChange[]> {
  let chunk: TreeChange[] = [];
  for (const change of changes) {
    if (chunk.push(change) < chunkChanges) continue;
    yield chunk;
    chunk = [];
  }
  if (chunk.length > 0) yield chunk;
}

// ---- phase 1

export async function detach(work: Work): Promise<void> {
  const directories = new Directories(work.root, work.staging, (slot) => locateBefore(work, slot), work.loosened);
  try {
    // One after the other: a way must not move while another looks for it.
    for (const change of work.changes('old'))
      if (isDirectory(change.before)) await detachDirectory(work, directories, change);
    await each(work.changes('old'), atOnce, async (change) => {
      if (!isDirectory(change.before)) await detachNames(work, directories, change);
    });
    for (const changes of chunks(work.changes())) await clearAll(work, directories, changes);
  } finally {
    await directories.close();
  }
}

/** Where a directory of the old tree is by now. */
async function locateBefore(work: Work, slot: number): Promise<Entry | undefined> {
  const change = work.change(slot);
  if (!change) return work.node(slot)?.names[0];
  for (const name of [staged(slot), stagedTrash(slot)]) {
    if (await lstatEntry(work.staging, name)) return { parent: stagingSlot, name };
  }
  return change.before?.names[0];
}

async function detachDirectory(work: Work, directories: Directories, change: TreeChange): Promise<void> {
  const { slot, before } = change;
  const name = before?.names[0];
  if (!name || keptNames(change).length > 0) return;
  if (isReplaced(change) && isRemovedWhole(work.change(name.parent))) return;
  const to = isReplaced(change) ? stagedTrash(slot) : staged(slot);
  await move(work, directories, name, { parent: stagingSlot, name: to });
}

async function detachNames(work: Work, directories: Directories, change: TreeChange): Promise<void> {
  const { slot, before } = change;
  const kept = keptNames(change);
  const removed = before?.names.filter((name) => !kept.includes(name)) ?? [];
  const isMoved = kept.length === 0 && !isReplaced(change);
  for (const name of removed) {
    if (isMoved && !(await lstatEntry(work.staging, staged(slot)))) {
      await move(work, directories, name, { parent: stagingSlot, name: staged(slot) });
    } else if (!isRemovedWhole(work.change(name.parent))) {
      await clear(work, directories, name);
    }
  }
}

/** A directory that goes takes along what is in it. */
function isRemovedWhole(change: TreeChange | undefined): boolean {
  return change !== undefined && isDirectory(change.before) && isReplaced(change);
}

/** What has a new name in the old tree, or lies unknown in a damaged directory, is foreign. */
async function clearAll(work: Work, directories: Directories, changes: TreeChange[]): Promise<void> {
  const replaced = new Map<number, boolean>();
  const isNew = (slot: number): boolean => {
    let is = replaced.get(slot);
    if (is === undefined) {
      const change = work.change(slot);
      replaced.set(slot, (is = change !== undefined && isReplaced(change)));
    }
    return is;
  };
  const names = changes.flatMap((change) => newNames(change, isNew));
  const left = await removeMany(work, directories, names);
  await each(left, atOnce, (name) => clear(work, directories, name));
  await each(changes, atOnce, (change) => clearDamaged(work, directories, change));
}

/** Names that it gets in directories of the old tree. */
function newNames(change: TreeChange, isNew: (slot: number) => boolean): Name[] {
  const kept = keptNames(change);
  return (change.after?.names ?? []).filter(
    (name) => !isNew(name.parent) && !kept.some((other) => compareNames(name, other) === 0),
  );
}

async function clearDamaged(work: Work, directories: Directories, change: TreeChange): Promise<void> {
  const { slot, after, damaged } = change;
  if (!damaged || !after || !isDirectory(after) || isReplaced(change)) return;
  await ifThere(() =>
    directories.with(slot, 'write', async (directory) => {
      for await (const name of entryNames(directory)) {
        if (work.slotOf(slot, name) !== undefined) continue;
        work.step();
        await removeEntry(directory, name, work.staging);
      }
    }),
  );
}

async function clear(work: Work, directories: Directories, { parent, name }: Entry): Promise<void> {
  await ifThere(() =>
    directories.with(parent, 'write', async (directory) => {
      work.step();
      await removeEntry(directory, name, work.staging);
    }),
  );
}

/** What is not there, the second phase misses if it is needed. */
async function move(work: Work, directories: Directories, from: Entry, to: Entry): Promise<void> {
  await ifThere(() =>
    directories.with(from.parent, 'write', (source) =>
      directories.with(to.parent, 'write', async (target) => {
        const stat = await lstatEntry(source, from.name);
        if (!stat) return;
        work.step();
        if (stat.isDirectory() && !isPrivileged()) await chmodEntry(source, from.name, 0o700);
        await fs.rename(at(source, from.name), at(target, to.name));
      }),
    ),
  );
}

async function ifThere(work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    if (!isMissing(error)) throw error;
  }
}

// ---- phase 2

export async function attach(work: Work): Promise<void> {
  const locate = async (slot: number): Promise<Entry | undefined> => work.node(slot)?.names[0];
  const directories = new Directories(work.root, work.staging, locate, work.loosened);
  try {
    const ready = new Set([0]);
    for (const { after } of work.changes('sizeless'))
      if (after && isDirectory(after)) await attachDown(work, directories, after, ready);
    const parents = new Set<number>();
    for (const changes of chunks(work.changes())) {
      for (const { before, after } of changes)
        for (const { parent } of [...(before?.names ?? []), ...(after?.names ?? [])]) parents.add(parent);
      const others = changes.filter(({ after }) => after && !isDirectory(after));
      await each(await placeMany(work, directories, others), atOnce, async (change) => {
        if (!change.after) return;
        await attachObject(work, directories, change, change.after);
        await setOne(work, directories, change.after);
      });
    }
    // Their entries are all in place now: these times stay.
    await each(touchedDirectories(work, parents), atOnce, (node) => setOne(work, directories, node));
    await restore(directories, work);
  } finally {
    await directories.close();
  }
}

/** Gives back the permissions that were widened for this process, the deepest first: the way to them must stay open. */
export async function restore(directories: Directories, tree: Pick<Work, 'root' | 'node'>): Promise<void> {
  const depths = new Map<number, number>();
  for (const slot of directories.loosened) {
    let depth = 0;
    for (let up = tree.node(slot)?.names[0]; up; up = tree.node(up.parent)?.names[0]) depth++;
    depths.set(slot, depth);
  }
  for (const [slot] of [...depths].sort(([, a], [, b]) => b - a)) {
    const node = tree.node(slot);
    const name = node?.names[0];
    if (node && !name) await setState(tree.root, Buffer.from('.'), node);
    if (!node || !name) continue;
    await ifThere(() =>
      directories.with(name.parent, 'read', async (parent) => void (await setState(parent, name.name, node))),
    );
  }
}

/** All changed ones, and those whose entries changed. */
function* touchedDirectories(work: Work, parents: Set<number>): Generator<Node> {
  for (const { after } of work.changes('sizeless')) if (after && isDirectory(after)) yield after;
  for (const slot of parents) {
    const node = work.change(slot) ? undefined : work.node(slot);
    if (node && isDirectory(node)) yield node;
  }
}

/** The directory and before it those it lies in. */
async function attachDown(work: Work, directories: Directories, node: Node, ready: Set<number>): Promise<void> {
  const way: Node[] = [];
  for (let up: Node | undefined = node; up && !ready.has(up.slot); up = work.node(up.names[0]?.parent ?? 0))
    way.push(up);
  for (const next of way.reverse()) {
    const change = work.change(next.slot);
    const name = next.names[0];
    if (change && name) {
      await wayTo(next, () =>
        directories.with(name.parent, 'write', (parent) => attachDirectory(work, parent, change, name.name)),
      );
    }
    ready.add(next.slot);
  }
}

async function attachDirectory(work: Work, parent: Handle, change: TreeChange, name: Buffer): Promise<void> {
  const { slot, after } = change;
  if (!after) return;
  const mayMake = isReplaced(change) || change.damaged;
  if (!isReplaced(change) && (await lstatEntry(work.staging, staged(slot)))?.isDirectory()) {
    work.step();
    await fs.rename(at(work.staging, staged(slot)), at(parent, name));
    return;
  }
  const stat = await lstatEntry(parent, name);
  if (stat?.isDirectory()) return;
  if (!mayMake) throw damaged(after);
  work.step();
  if (stat) await removeEntry(parent, name, work.staging);
  await makeNode(parent, name, after);
}

async function attachObject(work: Work, directories: Directories, change: TreeChange, after: Node): Promise<void> {
  const kept = keptNames(change);
  const first = kept[0] ?? after.names[0];
  if (!first) return;
  await wayTo(after, () =>
    directories.with(first.parent, 'write', async (directory) => {
      if (!(await placeObject(work, directory, first.name, change, after))) return;
      for (const other of after.names) {
        if (other === first || compareNames(other, first) === 0) continue;
        await directories.with(other.parent, 'write', (second) =>
          link(work, directory, first.name, second, other.name),
        );
      }
    }),
  );
}

/** Answers whether it is there now. */
async function placeObject(
  work: Work,
  directory: Handle,
  name: Buffer,
  change: TreeChange,
  after: Node,
): Promise<boolean> {
  const { slot } = change;
  const isNew = isReplaced(change);
  const sources = after.type === nodeTypes.file ? [stagedContent(slot), staged(slot)] : [staged(slot)];
  if (isNew && after.type === nodeTypes.file) await work.content?.(after);
  for (const source of sources) {
    const stat = await lstatEntry(work.staging, source);
    if (!stat || typeOf(stat) !== after.type) continue;
    work.step();
    await fs.rename(at(work.staging, source), at(directory, name)).catch(async (error: unknown) => {
      if (systemErrorCode(error) !== 'EISDIR') throw error;
      await removeEntry(directory, name, work.staging);
      await fs.rename(at(work.staging, source), at(directory, name));
    });
    return true;
  }
  const stat = await lstatEntry(directory, name);
  if (stat && typeOf(stat) === after.type) return true;
  if (!isNew && !change.damaged && !isDevice(after)) throw damaged(after);
  work.step();
  if (stat) await removeEntry(directory, name, work.staging);
  if (after.type !== nodeTypes.file) return !(await makeNode(directory, name, after));
  const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL;
  const { file } = await openFile(directory, name, flags, () => undefined);
  await file.truncate(after.sizeBytes).finally(() => file.close());
  return true;
}

async function link(work: Work, directory: Handle, name: Buffer, other: Handle, otherName: Buffer): Promise<void> {
  const [has, wants] = [await lstatEntry(other, otherName), await lstatEntry(directory, name)];
  if (has && wants && has.ino === wants.ino && has.dev === wants.dev) return;
  work.step();
  if (has) await removeEntry(other, otherName, work.staging);
  await fs.link(at(directory, name), at(other, otherName));
}

async function setOne(work: Work, directories: Directories, node: Node): Promise<void> {
  work.step();
  const name = node.names[0];
  const withheld =
    name === undefined
      ? await setState(work.root, Buffer.from('.'), node)
      : await wayTo(node, () => directories.with(name.parent, 'read', (parent) => setState(parent, name.name, node)));
  work.withhold(node.slot, withheld);
}

/** A way that is not as the index says is damage. */
async function wayTo<T>(node: Node, step: () => Promise<T>): Promise<T> {
  try {
    return await step();
  } catch (error) {
    if (!isMissing(error)) throw error;
    throw damaged(node, error);
  }
}

function damaged(node: Node, cause?: unknown): ReplicationError {
  const name = JSON.stringify(node.names[0]?.name.toString() ?? '');
  return new ReplicationError(
    'ReplicaDamaged',
    `the tree of the replica was changed by someone else: slot ${node.slot}, ${name}, is not where it was. Run verify`,
    { cause },
  );
}
