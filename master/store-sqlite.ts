/**
 * The store of a single master: objects as JSON in SQLite, with a log of the newest changes.
 *
 * Guarantees: object and log entry are written in one transaction that is durable on return, so a watch that resumes
 * after a restart misses nothing and repeats nothing. A watcher holds only its position: it reads the log in small
 * batches, so a slow one costs no memory, and one that falls behind the log's length is told `expired`.
 * Failure: SQLite's errors (disk full, I/O) are thrown as they are and leave the state before the call.
 */
import { isDeepStrictEqual } from 'node:util';
import type { DatabaseSync } from 'node:sqlite';
import type { Clock, Random } from '../proto/effects.ts';
import { transaction } from '../proto/sqlite.ts';
import { changed } from './changed.ts';
import { number, text } from './database.ts';
import { apiVersion } from './resources.ts';
import type { Kind, Resources } from './resources.ts';
import { groupMoved, StoreConflict } from './store.ts';
import type { Change, Draft, Store } from './store.ts';

export interface StoreOptions {
  clock: Pick<Clock, 'nowMs'>;
  random: Random;
  /** Changes that a watch can go back; the oldest are forgotten. */
  maxChanges?: number;
}

const batchRows = 64;

export function sqliteStore(database: DatabaseSync, options: StoreOptions): Store {
  const maxChanges = options.maxChanges ?? 10_000;
  const news = changed();
  const closing = new AbortController();
  const sql = {
    get: database.prepare('SELECT body FROM objects WHERE kind = ? AND key = ?'),
    list: database.prepare('SELECT body FROM objects WHERE kind = ? ORDER BY key'),
    each: database.prepare('SELECT body FROM objects WHERE kind = ? AND key > ? ORDER BY key'),
    // By name: left to itself SQLite reads all replications, as it thinks that the whole key is at hand so.
    ofAgent: database.prepare(
      "SELECT body FROM objects INDEXED BY replications_by_agent WHERE kind = 'Replication' AND json_extract(body, '$.spec.source.agent') = ? ORDER BY key",
    ),
    inGroup: database.prepare(
      "SELECT body FROM objects INDEXED BY replications_by_group WHERE kind = 'Replication' AND json_extract(body, '$.spec.group') = ? ORDER BY key",
    ),
    // '0' comes after '/': all keys that begin with the replication's name and a '/'.
    snapshotsOf: database.prepare(
      "SELECT body FROM objects WHERE kind = 'Snapshot' AND key > ? || '/' AND key < ? || '0' ORDER BY key",
    ),
    put: database.prepare('INSERT OR REPLACE INTO objects (kind, key, body) VALUES (?, ?, ?)'),
    delete: database.prepare('DELETE FROM objects WHERE kind = ? AND key = ?'),
    log: database.prepare(
      'INSERT INTO changes (version, type, kind, key, body, labels, group_before) VALUES (?, ?, ?, ?, ?, ?, ?)',
    ),
    forget: database.prepare('DELETE FROM changes WHERE version <= ?'),
    // One by one: of both in one query SQLite reads the whole log.
    oldest: database.prepare('SELECT min(version) AS version FROM changes'),
    newest: database.prepare('SELECT max(version) AS version FROM changes'),
    at: database.prepare('SELECT body FROM changes WHERE version = ? AND kind = ? AND key = ?'),
    after: database.prepare('SELECT * FROM changes WHERE version > ? ORDER BY version LIMIT ?'),
    getRecord: database.prepare('SELECT value FROM records WHERE name = ? AND key = ?'),
    putRecord: database.prepare('INSERT OR REPLACE INTO records (name, key, value) VALUES (?, ?, ?)'),
    deleteRecord: database.prepare('DELETE FROM records WHERE name = ? AND key = ?'),
    listRecords: database.prepare('SELECT key, value FROM records WHERE name = ? ORDER BY key'),
  };
  let version = number(sql.newest.get()?.['version']);
  let batching = false;
  const revisions = new Map<Kind, number>();
  const decisions = new Map<Kind, number>();

  function read<K extends Kind>(kind: K, key: string): Resources[K] | undefined {
    const row = sql.get.get(kind, key);
    return row === undefined ? undefined : parse<Resources[K]>(row['body']);
  }
  /** Whether nothing but the status, which moves on by itself all the time, has changed since that version. */
  function isAsDecided(kind: Kind, key: string, now: Resources[Kind], since: string): boolean {
    if (since === now.metadata.resourceVersion) return true;
    const row = sql.at.get(since, kind, key);
    if (row === undefined) return false;
    const then = parse<Resources[Kind]>(row['body']);
    const decided = ({ metadata, spec }: Resources[Kind]) => ({ ...metadata, resourceVersion: '', spec });
    return isDeepStrictEqual(decided(then), decided(now));
  }
  function need<K extends Kind>(kind: K, key: string, ifVersion: string | undefined): Resources[K] {
    const object = read(kind, key);
    if (object === undefined) throw new StoreConflict('absent', `there is no ${kind} ${key}`);
    if (ifVersion !== undefined && !isAsDecided(kind, key, object, ifVersion)) {
      const found = object.metadata.resourceVersion;
      throw new StoreConflict('version', `${kind} ${key} is at version ${found}, not ${ifVersion}; read it again`);
    }
    return object;
  }
  /** Writes object and log entry, then wakes the watchers. */
  function write(type: Change['type'], kind: Kind, key: string, object: Resources[Kind], old?: Resources[Kind]): void {
    const next = version + 1;
    object.metadata.resourceVersion = String(next);
    const body = JSON.stringify(object);
    const before = old?.metadata;
    const moved = before !== undefined && !isDeepStrictEqual(before.labels ?? {}, object.metadata.labels ?? {});
    const group = groupMoved(old, object);
    const inStep = batching ? (work: () => void) => work() : (work: () => void) => transaction(database, work);
    inStep(() => {
      if (type === 'DELETED') sql.delete.run(kind, key);
      else sql.put.run(kind, key, body);
      sql.log.run(
        next,
        type,
        kind,
        key,
        body,
        moved ? JSON.stringify(before.labels ?? {}) : null,
        group === undefined ? null : JSON.stringify(group),
      );
      sql.forget.run(next - maxChanges);
    });
    version = next;
    revisions.set(kind, next);
    if (type !== 'MODIFIED' || old === undefined || !isDeepStrictEqual(withoutStatus(old), withoutStatus(object)))
      decisions.set(kind, next);
    news.tell();
  }
  function checkHistory(since: number): void {
    const oldest = number(sql.oldest.get()?.['version']);
    // A position ahead of ours comes from another life of this store (a restored backup): nothing follows from it.
    if (since < oldest - 1 || since > version)
      throw new StoreConflict('expired', `changes after ${since} are not known here; list again`);
  }
  async function* follow(kinds: Kind[] | undefined, since: number, signal: AbortSignal): AsyncGenerator<Change> {
    let at = since;
    while (!signal.aborted) {
      checkHistory(at);
      const rows = sql.after.all(at, batchRows);
      for (const row of rows) {
        if (signal.aborted) return;
        at = number(row['version']);
        if (kinds === undefined || kinds.includes(row['kind'] as Kind)) yield changeOf(row);
      }
      if (rows.length === 0) await news.next(signal);
    }
  }

  return {
    get: read,
    list<K extends Kind>(kind: K) {
      return sql.list.all(kind).map((row) => parse<Resources[K]>(row['body']));
    },
    *each<K extends Kind>(kind: K, after = '') {
      for (const row of sql.each.iterate(kind, after)) yield parse<Resources[K]>(row['body']);
    },
    replicationsOf: (agent) => sql.ofAgent.all(agent).map((row) => parse<Resources['Replication']>(row['body'])),
    replicationsIn: (group) => sql.inGroup.all(group).map((row) => parse<Resources['Replication']>(row['body'])),
    snapshotsOf: (replication) =>
      sql.snapshotsOf.all(replication, replication).map((row) => parse<Resources['Snapshot']>(row['body'])),
    batch(work) {
      const before = version;
      batching = true;
      try {
        transaction(database, work);
      } catch (error) {
        version = before;
        throw error;
      } finally {
        batching = false;
      }
    },
    create<K extends Kind>(kind: K, key: string, draft: Draft<K>) {
      if (read(kind, key) !== undefined) throw new StoreConflict('exists', `there is a ${kind} ${key} already`);
      const metadata = {
        ...draft.metadata,
        uid: uuid(options.random.bytes(16)),
        generation: 1,
        resourceVersion: '',
        creationTimestamp: new Date(options.clock.nowMs()).toISOString(),
      };
      const object = { ...structuredClone(draft), apiVersion, kind, metadata } as unknown as Resources[K];
      write('ADDED', kind, key, object);
      return object;
    },
    update<K extends Kind>(kind: K, key: string, change: (object: Resources[K]) => void, ifVersion?: string) {
      const object = need(kind, key, ifVersion);
      const before = structuredClone(object);
      change(object);
      const { name, uid, generation, resourceVersion, creationTimestamp } = before.metadata;
      Object.assign(object.metadata, { name, uid, generation, resourceVersion, creationTimestamp });
      if (isDeepStrictEqual(object, before)) return object;
      if (!isDeepStrictEqual(object.spec, before.spec)) object.metadata.generation += 1;
      write('MODIFIED', kind, key, object, before);
      return object;
    },
    delete<K extends Kind>(kind: K, key: string, ifVersion?: string) {
      if (ifVersion === undefined && read(kind, key) === undefined) return undefined;
      const object = need(kind, key, ifVersion);
      write('DELETED', kind, key, object);
      return object;
    },
    revision: (kind) => revisions.get(kind) ?? 0,
    decision: (kind) => decisions.get(kind) ?? 0,
    version: () => version,
    watch({ kinds, since = version, signal }) {
      // Now, not at the first read: what is written between this call and the first `next` belongs to the watch.
      checkHistory(since);
      return follow(kinds, since, AbortSignal.any([signal, closing.signal]));
    },
    getRecord: (table, key) => sql.getRecord.get(table, key)?.['value'] as string | undefined,
    putRecord(table, key, value) {
      if (value === undefined) sql.deleteRecord.run(table, key);
      else sql.putRecord.run(table, key, value);
    },
    listRecords: (table) =>
      sql.listRecords.all(table).map((row) => ({ key: text(row['key']), value: text(row['value']) })),
    close() {
      closing.abort();
      if (database.isOpen) database.close();
    },
  };
}

function withoutStatus(object: Resources[Kind]): object {
  return { ...object, metadata: { ...object.metadata, resourceVersion: '' }, status: null };
}

function parse<T>(body: unknown): T {
  return JSON.parse(text(body)) as T;
}

function changeOf(row: Record<string, unknown>): Change {
  const change = {
    type: row['type'],
    kind: row['kind'],
    key: row['key'],
    object: parse<unknown>(row['body']),
    version: number(row['version']),
    ...(row['labels'] === null ? {} : { labelsBefore: parse<unknown>(row['labels']) }),
    ...(row['group_before'] === null ? {} : { groupBefore: parse<unknown>(row['group_before']) }),
  };
  return change as unknown as Change;
}

/** Random UUID of version 4 (RFC 9562) from 16 random bytes. */
function uuid(bytes: Buffer): string {
  bytes[6] = ((bytes[6] ?? 0) & 0x0f) | 0x40;
  bytes[8] = ((bytes[8] ?? 0) & 0x3f) | 0x80;
  return bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}
