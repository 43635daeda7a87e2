/**
 * SQLite as the engine under the indexes. Synchronous NORMAL in WAL mode: a power cut may take back the newest
 * transactions but never half of one, which is all an index needs; the journal brings the rest again.
 */
import { constants, copyFile, rm } from 'node:fs/promises';
import { DatabaseSync } from 'node:sqlite';
import type { CommitRecord } from './frame.ts';

export function openIndexDatabase(path: string): DatabaseSync {
  const database = new DatabaseSync(path);
  database.exec(`PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = -4096;
    CREATE TABLE IF NOT EXISTS position (
      only INTEGER PRIMARY KEY CHECK (only = 1), sequence INTEGER NOT NULL, size_bytes INTEGER NOT NULL, source_id TEXT NOT NULL
    ) STRICT`);
  return database;
}

export function readPosition(database: DatabaseSync): { sequence: number; sizeBytes: number; sourceId: string } {
  const row = database.prepare('SELECT sequence, size_bytes, source_id FROM position').get();
  if (!row) return { sequence: 0, sizeBytes: 0, sourceId: '' };
  return {
    sequence: Number(row['sequence']),
    sizeBytes: Number(row['size_bytes']),
    sourceId: String(row['source_id']),
  };
}

export function writePosition(
  database: DatabaseSync,
  commit: Pick<CommitRecord, 'sequence' | 'sizeBytes' | 'sourceId'>,
): void {
  database
    .prepare('INSERT OR REPLACE INTO position (only, sequence, size_bytes, source_id) VALUES (1, ?, ?, ?)')
    .run(commit.sequence, commit.sizeBytes, commit.sourceId);
}

export function transaction(database: DatabaseSync, work: () => void): void {
  database.exec('BEGIN IMMEDIATE');
  try {
    work();
    database.exec('COMMIT');
  } catch (error) {
    database.exec('ROLLBACK');
    throw error;
  }
}

/** Copies an index that nobody writes meanwhile; `to` is overwritten. */
export async function copyIndex(database: DatabaseSync, from: string, to: string): Promise<void> {
  database.exec('PRAGMA wal_checkpoint(TRUNCATE)');
  await removeIndex(to);
  await copyFile(from, to, constants.COPYFILE_FICLONE);
}

/** With SQLite's own files beside it; no error when absent. */
export async function removeIndex(path: string): Promise<void> {
  for (const suffix of ['', '-wal', '-shm']) await rm(path + suffix, { force: true });
}
