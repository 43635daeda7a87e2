/**
 * SQLite as the engine under the indexes. Synchronous NORMAL in WAL mode: a power cut may take back the newest
 * transactions but never half of one, which is all an index needs; the journal brings the rest again.
 */
import { constants, copyFile, open, rm } from 'node:fs/promises';
import { DatabaseSync } from 'node:sqlite';
import { decode, encode } from '../../proto/wire.ts';
import type { CommitRecord } from './frame.ts';

export function openIndexDatabase(path: string): DatabaseSync {
  const database = new DatabaseSync(path);
  database.exec(`PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -4096;
    CREATE TABLE IF NOT EXISTS position (only INTEGER PRIMARY KEY CHECK (only = 1), newest BLOB NOT NULL) STRICT`);
  return database;
}

/** The commit at which the index stands; undefined = blank. */
export function readPosition(database: DatabaseSync): CommitRecord | undefined {
  const row = database.prepare('SELECT newest FROM position').get();
  return row && decode('JournalCommit', row['newest'] as Uint8Array);
}

export function writePosition(database: DatabaseSync, newest: CommitRecord): void {
  database.prepare('INSERT OR REPLACE INTO position (only, newest) VALUES (1, ?)').run(encode('JournalCommit', newest));
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
