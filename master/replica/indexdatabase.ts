/**
 * SQLite as the engine under the indexes. Synchronous NORMAL in WAL mode: a power cut may take back the newest
 * transactions but never half of one, which is all an index needs; the journal brings the rest again.
 */
import { constants, copyFile, open, rm } from 'node:fs/promises';
import { DatabaseSync } from 'node:sqlite';
import { ReplicationError } from '../../proto/errors.ts';
import { hash, hashBytes } from '../../proto/granule.ts';
import { decode, encode } from '../../proto/wire.ts';
import type { CommitRecord } from './frame.ts';

/** In the database's user_version: positions are followed by their hash. Those of version 0 are without. */
const format = 1;

export function openIndexDatabase(path: string): DatabaseSync {
  const database = new DatabaseSync(path);
  database.exec(`PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -4096;
    CREATE TABLE IF NOT EXISTS position (only INTEGER PRIMARY KEY CHECK (only = 1), newest BLOB NOT NULL) STRICT`);
  return database;
}

/** Of an index itself, not of the bytes that it tells of. */
export class IndexDamaged extends ReplicationError {
  constructor(message: string) {
    super('ReplicaDamaged', message);
  }
}

/** @throws ReplicaDamaged when SQLite answers something else, as it does for a file in which bits have changed */
export function asBytes(value: unknown): Uint8Array {
  if (value instanceof Uint8Array) return value;
  throw new IndexDamaged('a row of it holds something else than bytes');
}

/** The commit at which the index stands; undefined = blank. @throws ReplicaDamaged */
export function readPosition(database: DatabaseSync): CommitRecord | undefined {
  const row = database.prepare('SELECT newest FROM position').get();
  if (!row) return undefined;
  const stored = asBytes(row['newest']);
  const message = stored.subarray(0, Math.max(0, stored.length - hashBytes));
  // SQLite does not notice bits that others changed in its file.
  if (hash(message).equals(stored.subarray(message.length))) return decode('JournalCommit', message);
  if (database.prepare('PRAGMA user_version').get()?.['user_version'] === 0) return decode('JournalCommit', stored);
  throw new IndexDamaged('the commit that it stands at does not have its hash any more');
}

export function writePosition(database: DatabaseSync, newest: CommitRecord): void {
  const message = encode('JournalCommit', newest);
  const stored = Buffer.concat([message, hash(message)]);
  database.prepare('INSERT OR REPLACE INTO position (only, newest) VALUES (1, ?)').run(stored);
  database.exec(`PRAGMA user_version = ${format}`);
}

/** What is committed is durable: no power cut takes it back. */
export function makeDurable(database: DatabaseSync): void {
  database.exec('PRAGMA wal_checkpoint(TRUNCATE)');
}

/** Copies an index that nobody writes meanwhile; `to` is overwritten. Durable once its directory is synced. */
export async function copyIndex(database: DatabaseSync, from: string, to: string): Promise<void> {
  makeDurable(database);
  await removeIndex(to);
  await copyFile(from, to, constants.COPYFILE_FICLONE);
  await using file = await open(to, 'r+');
  await file.sync();
}

/** With SQLite's own files beside it; no error when absent. */
export async function removeIndex(path: string): Promise<void> {
  for (const suffix of ['', '-wal', '-shm']) await rm(path + suffix, { force: true });
}
