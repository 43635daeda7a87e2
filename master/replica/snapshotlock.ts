/**
 * The lock of a snapshot, as it lies beside the snapshot on storage: `lock.json` in its folder.
 *
 * Guarantees: a lock that `writeLock` returned for survives a power cut, and a master or a store that knows nothing of it;
 * it is never made shorter. Where the filesystem and our rights allow it the note and a block volume's image cannot be
 * changed or removed by anybody while the lock is there; elsewhere only this program is kept from it.
 * Failure: a note that cannot be read counts as a lock without end, and says which file a person has to look at.
 */
import type { Disk } from '../../proto/effects.ts';
import { messageOf, ReplicationError } from '../../proto/errors.ts';
import { readText, seal, unseal, writeText } from './note.ts';

const noteName = 'lock.json';
/** What of a snapshot's folder is made immutable: of a tree only the note, as each file would have to be. */
const kept = [noteName, 'image.raw'];

/** Milliseconds since the epoch; undefined: not locked; Infinity: a note that cannot be read. */
export async function readLock(disk: Disk, folder: string): Promise<number | undefined> {
  const path = `${folder}/${noteName}`;
  if ((await disk.size(path)) === undefined) return undefined;
  try {
    const { lockedUntil } = unseal<{ lockedUntil: string }>(await readText(disk, path), ['lockedUntil']);
    const ms = Date.parse(lockedUntil);
    return Number.isNaN(ms) ? Infinity : ms;
  } catch {
    return Infinity;
  }
}

/** Until the later of this and what is there; answers it. Durable when it returns. */
export async function writeLock(disk: Disk, folder: string, untilMs: number): Promise<number> {
  const present = await readLock(disk, folder);
  if (present !== undefined && present >= untilMs) return present;
  await loosen(disk, folder);
  await writeText(disk, folder, noteName, seal({ lockedUntil: new Date(untilMs).toISOString() }));
  await each(disk, folder, true);
  return untilMs;
}

/** Before removing it. @throws SnapshotLocked */
export async function unlock(disk: Disk, folder: string, name: string, nowMs: number): Promise<void> {
  const untilMs = await readLock(disk, folder);
  if (untilMs === undefined) return;
  mustBeOver(untilMs, name, nowMs, `${folder}/${noteName}`);
  await loosen(disk, folder);
}

/** @throws SnapshotLocked */
export function mustBeOver(untilMs: number, name: string, nowMs: number, notePath: string): void {
  if (untilMs <= nowMs) return;
  const until =
    untilMs === Infinity ? `for ever: ${notePath} cannot be read` : `until ${new Date(untilMs).toISOString()}`;
  throw new ReplicationError('SnapshotLocked', `snapshot ${name} is locked ${until}; nothing removes it before`);
}

/** Removes a snapshot's folder that is not whole, or whose lock is over: one that was made immutable too. */
export async function removeFolder(disk: Disk, folder: string): Promise<void> {
  await loosen(disk, folder);
  await disk.remove(folder);
}

async function loosen(disk: Disk, folder: string): Promise<void> {
  await each(disk, folder, false);
}

async function each(disk: Disk, folder: string, on: boolean): Promise<void> {
  const names = await disk.list(folder);
  for (const name of kept.filter((one) => names.includes(one))) {
    try {
      await disk.immutable?.(`${folder}/${name}`, on);
    } catch (error) {
      throw new ReplicationError('TargetFailed', `${folder}/${name}: ${messageOf(error)}`, { cause: error });
    }
  }
}
