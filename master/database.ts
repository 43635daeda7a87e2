/**
 * The master's one SQLite file: opened so that a finished write survives a power cut (WAL, synchronous=FULL), readable
 * by its owner only, with a version so that an older program refuses a newer file instead of damaging it.
 * Objects and records are master/store-sqlite.ts's, events are master/events.ts's; both live in this file.
 */
import { closeSync, openSync } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';

const schemaVersion = 2;

/** @param path of the file (created with mode 0600 when absent; its directory must exist) or ':memory:' */
export function openDatabase(path: string): DatabaseSync {
  // SQLite gives its log files the mode of the database file, so it must be private before it is opened.
  if (path !== ':memory:') closeSync(openSync(path, 'a', 0o600));
  const database = new DatabaseSync(path, { timeout: 5000 });
  database.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON');
  // 16 MiB of pages at most: what is there of thousands of objects is read each second.
  database.exec('PRAGMA cache_size = -16384');
  const found = number(database.prepare('PRAGMA user_version').get()?.['user_version']);
  if (found > schemaVersion) {
    database.close();
    throw new Error(`${path} was written by a newer version (${found}, known are up to ${schemaVersion}); upgrade`);
  }
  database.exec(`
    CREATE TABLE IF NOT EXISTS objects (kind TEXT, key TEXT, body TEXT NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS replications_by_agent ON objects (json_extract(body, '$.spec.source.agent'), key)
      WHERE kind = 'Replication';
    CREATE INDEX IF NOT EXISTS replications_by_group ON objects (json_extract(body, '$.spec.group'), key)
      WHERE kind = 'Replication';
    CREATE TABLE IF NOT EXISTS changes (
      version INTEGER PRIMARY KEY, type TEXT NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, labels TEXT,
      group_before TEXT
    );
    CREATE TABLE IF NOT EXISTS records (name TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (name, key)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS events (
      version INTEGER PRIMARY KEY, id INTEGER NOT NULL UNIQUE, first_ms REAL NOT NULL, last_ms REAL NOT NULL,
      count INTEGER NOT NULL, code TEXT NOT NULL, level TEXT NOT NULL, message TEXT NOT NULL, object TEXT
    );
    CREATE TABLE IF NOT EXISTS events_dropped (version INTEGER NOT NULL);
  `);
  if (found === 1) database.exec('ALTER TABLE changes ADD COLUMN group_before TEXT');
  database.exec(`PRAGMA user_version = ${schemaVersion}`);
  return database;
}

/* What SQLite hands out, as the type that the column has. */

export function number(value: unknown): number {
  return typeof value === 'number' ? value : 0;
}
export function text(value: unknown): string {
  return typeof value === 'string' ? value : '';
}
