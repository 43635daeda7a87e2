/**
 * One process at a time per data directory. Two masters that append to the same journals, or two agents with one
 * identity, would undo each other's work without noticing.
 *
 * Guarantees: held until the process ends, however it ends (the kernel's file locks, by way of SQLite, so that no file of
 * a dead process bars the next one). Not across machines where the filesystem's locks are not.
 */
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { isSqliteBusy } from './sqlite.ts';

/** Kept from being collected: that would let go of the lock. */
const held = new Map<string, DatabaseSync>();

/** @throws Error when another process holds it, naming the directory */
export function holdData(dir: string): void {
  const path = join(dir, 'lock');
  const why = `${dir} is in use by another running process; stop that one, or name another directory with --data`;
  if (held.has(path) || !hold(path)) throw new Error(why);
}

/** Answers false when another process holds this file. @throws what else goes wrong: not every filesystem has locks */
export function hold(path: string): boolean {
  if (held.has(path)) return true;
  const database = new DatabaseSync(path);
  try {
    database.exec('PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE');
  } catch (error) {
    database.close();
    if (!isSqliteBusy(error)) throw error;
    return false;
  }
  held.set(path, database);
  return true;
}
