/**
 * A copy of all that a master knows and is - objects, records, events, its CA and admin token - as one file beside the replicas or
 * elsewhere, for a master that takes its place when its own disk is lost (takeover.ts). Data of replicas is not in it.
 *
 * Guarantees: the file is whole at any moment, of one instant, and readable by its owner only: whoever has it can be this master.
 * Failure: what keeps it from being written is told once as an event, and tried again.
 */
import { closeSync, existsSync, openSync } from 'node:fs';
import { copyFile, open, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { backup, DatabaseSync } from 'node:sqlite';
import type { Clock } from '../proto/effects.ts';
import { messageOf } from '../proto/errors.ts';
import { transaction } from '../proto/sqlite.ts';
import { number, openDatabase } from './database.ts';
import type { Events } from './engine.ts';
import { keepFiles } from './keptfiles.ts';
import type { Store } from './store.ts';

/** In records: when the copy was made, as RFC 3339. Only copies have it. */
export const copiedTable = 'state-copy';
const lookEveryMs = 1000;
/** Copying takes at most a twentieth of the time. */
const restFactor = 20;

export interface StateCopyOptions {
  database: DatabaseSync;
  /** Of the master's data. */
  dir: string;
  /** Of the copy. Its folder must exist: one that is not mounted is not to be made. */
  path: string;
  clock: Clock;
  events: Events;
}

/** Whether this state is a copy that nobody has taken over from yet. */
export function isCopied(store: Pick<Store, 'getRecord'>): boolean {
  return store.getRecord(copiedTable, 'time') !== undefined;
}

/** Keeps the copy as new as can be until the signal aborts. */
export async function keepStateCopy(options: StateCopyOptions, signal: AbortSignal): Promise<void> {
  const { database, path, clock, events } = options;
  const changes = database.prepare('SELECT total_changes() AS count');
  let copied = -1;
  let told: string | undefined;
  while (!signal.aborted) {
    const startMs = clock.monotonicMs();
    const count = number(changes.get()?.['count']);
    try {
      if (count !== copied) await writeStateCopy(options);
      copied = count;
      if (told !== undefined)
        events.emit({ code: 'StateCopied', level: 'INFO', message: `${path} is written again`, object: null });
      told = undefined;
    } catch (error) {
      const message = `the copy of this master's state cannot be written to ${path}: ${messageOf(error)}`;
      if (message !== told) events.emit({ code: 'StateCopyTrouble', level: 'WARNING', message, object: null });
      told = message;
    }
    const tookMs = clock.monotonicMs() - startMs;
    await clock.sleep(Math.max(lookEveryMs, tookMs * restFactor), signal).catch(() => undefined);
  }
}

export async function writeStateCopy({ database, dir, path, clock }: Omit<StateCopyOptions, 'events'>): Promise<void> {
  const staged = `${path}.new`;
  await rm(staged, { force: true });
  closeSync(openSync(staged, 'wx', 0o600));
  await backup(database, staged);
  const copy = new DatabaseSync(staged);
  try {
    copy.exec('PRAGMA journal_mode = DELETE');
    const put = copy.prepare('INSERT OR REPLACE INTO records (name, key, value) VALUES (?, ?, ?)');
    // The newest one says where counting goes on; who watched begins anew.
    transaction(copy, () => copy.exec('DELETE FROM changes WHERE version < (SELECT max(version) FROM changes)'));
    await keepFiles({ putRecord: (table, key, value) => void put.run(table, key, value ?? '') }, dir);
    put.run(copiedTable, 'time', new Date(clock.nowMs()).toISOString());
  } finally {
    copy.close();
  }
  await durable(staged);
  await rename(staged, path);
  await durable(dirname(path));
}

/**
 * Makes the copy the state of a data directory that has none.
 * @throws Error when there is one, or the file is no such copy
 */
export async function restoreStateCopy(path: string, dir: string): Promise<void> {
  const target = join(dir, 'master.db');
  if (existsSync(target)) {
    // Broken off before it was taken over.
    if (copiedTime(target) !== undefined) return;
    throw new Error(
      `${dir} holds a master's state already; start without --take-over to go on with it, or name an empty directory`,
    );
  }
  const time = copiedTime(path);
  if (time === undefined)
    throw new Error(`${path} is no copy of a master's state; name a file that --state-copy wrote`);
  const staged = `${target}.new`;
  closeSync(openSync(staged, 'w', 0o600));
  await copyFile(path, staged);
  await durable(staged);
  // Looked at with the program's own eyes: a newer one's is refused before it is in place.
  openDatabase(staged).close();
  await rename(staged, target);
  await durable(dir);
}

function copiedTime(path: string): string | undefined {
  if (!existsSync(path)) throw new Error(`${path} does not exist; name a file that --state-copy wrote`);
  let copy: DatabaseSync | undefined;
  try {
    copy = new DatabaseSync(path, { readOnly: true });
    const [check] = copy.prepare('PRAGMA integrity_check').all();
    if (check?.['integrity_check'] !== 'ok') return undefined;
    const row = copy.prepare('SELECT value FROM records WHERE name = ?').get(copiedTable);
    return row?.['value'] as string | undefined;
  } catch {
    return undefined;
  } finally {
    copy?.close();
  }
}

async function durable(path: string): Promise<void> {
  const file = await open(path, 'r');
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}
