/**
 * The manifest's tables in SQLite, its statements by their text, and rows as values.
 *
 * Writes gather in one transaction until `commit`: a crash takes back all of it together. Integers are bigints of 64 bits.
 */
import { DatabaseSync, type SQLInputValue, type StatementSync } from 'node:sqlite';
import type { Row } from './manifest.ts';

type Found = Record<string, unknown>;
/** Of a row, for rowOf. */
export const columns =
  'i.slot, i.type, i.ino, i.birth, i.size, i.mtime, i.ctime, i.epoch, i.dirty, i.root, i.sent, i.hash';

export class ManifestDatabase {
  readonly #database: DatabaseSync;
  readonly #statements = new Map<string, StatementSync>();

  constructor(path: string) {
    this.#database = new DatabaseSync(path);
    this.#database.exec(`
      PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
      PRAGMA cache_size = -8192; PRAGMA temp_store = FILE; PRAGMA journal_size_limit = 16777216;
      CREATE TABLE IF NOT EXISTS state (id INTEGER PRIMARY KEY CHECK (id = 0), acked INTEGER, prepared INTEGER,
        digest BLOB, whole TEXT);
      INSERT OR IGNORE INTO state VALUES (0, 0, 0, x'', '');
      CREATE TABLE IF NOT EXISTS preparation (id INTEGER PRIMARY KEY CHECK (id = 0), generation TEXT);
      INSERT OR IGNORE INTO preparation VALUES (0, '');
      CREATE TABLE IF NOT EXISTS inode (slot INTEGER PRIMARY KEY, type INTEGER, ino INTEGER, birth INTEGER, size INTEGER,
        mtime INTEGER, ctime INTEGER, epoch INTEGER, dirty INTEGER, root BLOB, sent INTEGER, hash BLOB);
      CREATE INDEX IF NOT EXISTS inode_key ON inode (ino, birth);
      CREATE INDEX IF NOT EXISTS inode_dirty ON inode (type, slot) WHERE dirty > 0;
      CREATE INDEX IF NOT EXISTS inode_dirty_slot ON inode (slot) WHERE dirty > 0;
      CREATE INDEX IF NOT EXISTS inode_gone ON inode (slot) WHERE type = 0;
      CREATE TABLE IF NOT EXISTS name (parent INTEGER, name BLOB, slot INTEGER, PRIMARY KEY (parent, name)) WITHOUT ROWID;
      CREATE INDEX IF NOT EXISTS name_slot ON name (slot);
      CREATE TABLE IF NOT EXISTS orphan (slot INTEGER PRIMARY KEY);
      CREATE TABLE IF NOT EXISTS free (slot INTEGER PRIMARY KEY);`);
  }

  begin(): void {
    if (!this.#database.isTransaction) this.#database.exec('BEGIN IMMEDIATE');
  }

  /** Durable when this returns. */
  commit(): void {
    if (this.#database.isTransaction) this.#database.exec('COMMIT');
  }

  get(sql: string, ...values: SQLInputValue[]): Found | undefined {
    return this.#statement(sql).get(...values);
  }

  all(sql: string, ...values: SQLInputValue[]): Found[] {
    return this.#statement(sql).all(...values);
  }

  /** Others may run while it is read. */
  each(sql: string): Iterable<Found> {
    return this.#database.prepare(sql).iterate();
  }

  run(sql: string, ...values: SQLInputValue[]): void {
    this.begin();
    this.#statement(sql).run(...values);
  }

  close(): void {
    this.#statements.clear();
    this.#database.close();
  }

  #statement(sql: string): StatementSync {
    let statement = this.#statements.get(sql);
    if (!statement) {
      statement = this.#database.prepare(sql);
      statement.setReadBigInts(true);
      this.#statements.set(sql, statement);
    }
    return statement;
  }
}

export function signed(value: bigint): bigint {
  return BigInt.asIntN(64, value);
}

export function bufferOf(value: unknown): Buffer | undefined {
  if (!(value instanceof Uint8Array)) return undefined;
  return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
}

export function rowOf(found: Found | undefined): Row | undefined {
  if (!found) return undefined;
  return {
    slot: Number(found['slot']),
    type: Number(found['type']),
    ino: found['ino'] as bigint,
    birthNs: found['birth'] as bigint,
    sizeBytes: found['size'] as bigint,
    mtimeNs: found['mtime'] as bigint,
    ctimeNs: found['ctime'] as bigint,
    epoch: Number(found['epoch']),
    dirty: Number(found['dirty']) as Row['dirty'],
    root: bufferOf(found['root']),
    sentBytes: Number(found['sent']),
    hash: bufferOf(found['hash']),
  };
}
