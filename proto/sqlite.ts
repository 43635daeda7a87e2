/**
 * What SQLite's result codes (sqlite.org/rescode.html) mean to us, and transactions that fail with the reason why.
 *
 * SQLite rolls a transaction back by itself where the disk is full or fails. A ROLLBACK after that is an error of its
 * own, which would stand in place of the reason: a full disk must never look like something else.
 */
import type { DatabaseSync } from 'node:sqlite';
import { systemErrorCode } from './errors.ts';

const codes = {
  error: 1,
  busy: 5,
  noMemory: 7,
  io: 10,
  corrupt: 11,
  full: 13,
  cannotOpen: 14,
  notADatabase: 26,
} as const;

function primaryCode(error: unknown): number | undefined {
  if (systemErrorCode(error) !== 'ERR_SQLITE_ERROR') return undefined;
  return ((error as { errcode?: number }).errcode ?? 0) & 0xff;
}

/** All of it or nothing. */
export function transaction<T>(database: DatabaseSync, work: () => T): T {
  database.exec('BEGIN IMMEDIATE');
  try {
    const result = work();
    database.exec('COMMIT');
    return result;
  } catch (error) {
    rollBack(database);
    throw error;
  }
}

/** No error when SQLite has done so by itself. */
export function rollBack(database: DatabaseSync): void {
  if (database.isTransaction) database.exec('ROLLBACK');
}

/** Somebody else holds the database. */
export function isSqliteBusy(error: unknown): boolean {
  return primaryCode(error) === codes.busy;
}

/**
 * The file is not a database any more, or a damaged one. SQLITE_ERROR too: our statements are fixed, so a table or column that
 * they do not find is one whose name has changed in the file.
 */
export function isSqliteDamage(error: unknown): boolean {
  const code = primaryCode(error);
  return code !== undefined && ([codes.corrupt, codes.notADatabase, codes.error] as number[]).includes(code);
}

/** The disk below is full, fails or lacks something, which says nothing about what the database holds: try again later. */
export function isOfStorage(error: unknown): boolean {
  const code = primaryCode(error);
  if (code !== undefined) return ([codes.noMemory, codes.io, codes.full, codes.cannotOpen] as number[]).includes(code);
  return ['ENOSPC', 'EDQUOT', 'EIO', 'EMFILE', 'ENFILE', 'ENOMEM', 'EROFS'].includes(systemErrorCode(error) ?? '');
}
