/**
 * The simple part of the work on a tree (treework.ts), by directory and on a thread: most of a tree's first copy. What is
 * not simple, or did not succeed, is answered and is for treework.ts.
 */
import { nodeTypes, type Name, type Node } from '../../proto/wire.ts';
import { minBatch, placeFiles, removeNames } from './treebatches.ts';
import type { PlacedFile } from './treejobs.ts';
import type { TreeChange } from './treelog.ts';
import { each, isMissing, isPrivileged, type Directories, type Handle } from './treepath.ts';
import { isReplaced, stagedContent, type Work } from './treetask.ts';

const atOnce = 8;

/** Removes what has these names. Answers those that are not gone by it. */
export async function removeMany(work: Work, directories: Directories, names: Name[]): Promise<Name[]> {
  return inBatches(
    work,
    directories,
    names,
    (name) => name,
    (directory, some) =>
      removeNames(
        directory,
        some.map(({ name }) => name.toString('latin1')),
      ),
  );
}

/** Puts new files into their places. Answers what has still to be done. */
export async function placeMany(work: Work, directories: Directories, changes: TreeChange[]): Promise<TreeChange[]> {
  const isSimple = (change: TreeChange): boolean => placedFile(change) !== undefined;
  const simple = changes.filter(isSimple);
  if (simple.length < minBatch) return changes;
  if (work.content)
    await each(simple, atOnce, async ({ after }) => {
      if (after) await work.content?.(after);
    });
  const place = async (directory: Handle, some: TreeChange[]): Promise<boolean[]> => {
    const done = await placeFiles(
      work.staging,
      directory,
      some.flatMap((change) => placedFile(change) ?? []),
    );
    some.forEach(({ slot }, index) => done[index] && work.withhold(slot, false));
    return done;
  };
  const left = await inBatches(work, directories, simple, ({ after }) => after?.names[0] as Name, place);
  return [...left, ...changes.filter((change) => !isSimple(change))];
}

/** Undefined: what it is to be takes more. */
function placedFile(change: TreeChange): PlacedFile | undefined {
  const { slot, after } = change;
  const [name, second] = after?.names ?? [];
  if (!after || !name || second || after.type !== nodeTypes.file || !isReplaced(change)) return undefined;
  if (after.xattrs.length > 0 || !isOrdinaryTime(after) || !mayOwn(after)) return undefined;
  return {
    staged: stagedContent(slot).toString('latin1'),
    name: name.name.toString('latin1'),
    sizeBytes: after.sizeBytes,
    mode: after.mode,
    uid: after.uid,
    gid: after.gid,
    mtimeSeconds: after.mtimeSeconds,
    mtimeNanoseconds: after.mtimeNanoseconds,
  };
}

/** Every filesystem holds it. */
function isOrdinaryTime({ mtimeSeconds }: Node): boolean {
  return mtimeSeconds >= 0 && mtimeSeconds < 2 ** 31;
}

function mayOwn({ uid, gid }: Node): boolean {
  return isPrivileged() || (uid === process.geteuid?.() && gid === process.getegid?.());
}

/** Those of one directory together. Answers what is not done. */
async function inBatches<T>(
  work: Work,
  directories: Directories,
  items: T[],
  nameOf: (item: T) => Name,
  run: (directory: Handle, some: T[]) => Promise<boolean[]>,
): Promise<T[]> {
  if (items.length < minBatch) return items;
  const left: T[] = [];
  const byParent = Map.groupBy(items, (item) => nameOf(item).parent);
  await each(byParent, atOnce, async ([parent, some]) => {
    try {
      await directories.with(parent, 'write', async (directory) => {
        const begun = steps(work, some);
        const done = await run(directory, begun.items);
        begun.items.forEach((item, index) => done[index] === true || left.push(item));
        if (begun.failure) throw begun.failure.error;
      });
    } catch (error) {
      if (!isMissing(error)) throw error;
      left.push(...some);
    }
  });
  return left;
}

/** Those before the step that fails. */
function steps<T>(work: Work, items: T[]): { items: T[]; failure: { error: unknown } | undefined } {
  for (const [index] of items.entries()) {
    try {
      work.step();
    } catch (error) {
      return { items: items.slice(0, index), failure: { error } };
    }
  }
  return { items, failure: undefined };
}
