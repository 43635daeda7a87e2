/**
 * What commits change on a base's tree. While epochs are open it is noted in temporary tables that go with their
 * transaction; a commit leaves it as work (treework.ts), with the phase that the work has reached, until it is done.
 */
import type { DatabaseSync } from 'node:sqlite';
import { transaction } from '../../proto/sqlite.ts';
import { decode, encode, nodeTypes, type Node } from '../../proto/wire.ts';
import { asBuffer } from './hashpages.ts';
import type { Row, Rows } from './rows.ts';

/** What a commit does to one slot. */
export interface TreeChange {
  slot: number;
  /** As the tree had it; undefined = absent. */
  before: Node | undefined;
  after: Node | undefined;
  /** Not the same object as before, even if it looks like it. */
  fresh: boolean;
  /** What the tree had there may be missing or wrong. */
  damaged: boolean;
}

/** Phases of the work; 0 = done. */
export const workPhases = { done: 0, detach: 1, attach: 2 } as const;

const columns = '(slot INTEGER PRIMARY KEY, before BLOB, fresh INTEGER NOT NULL, damaged INTEGER NOT NULL) STRICT';
const tables = `
  CREATE TABLE IF NOT EXISTS work ${columns};
  CREATE TABLE IF NOT EXISTS phase (only INTEGER PRIMARY KEY CHECK (only = 1), number INTEGER NOT NULL) STRICT;
  CREATE TABLE IF NOT EXISTS withheld (slot INTEGER PRIMARY KEY) STRICT;
  CREATE TEMP TABLE change ${columns};
  CREATE TEMP TABLE ended (slot INTEGER PRIMARY KEY, size INTEGER) STRICT;
`;

const changesOf = {
  all: 'SELECT * FROM work WHERE slot > ? ORDER BY slot LIMIT ?',
  old: 'SELECT * FROM work WHERE slot > ? AND before IS NOT NULL ORDER BY slot LIMIT ?',
  sizeless: 'SELECT work.* FROM work JOIN node USING (slot) WHERE slot > ? AND size = 0 ORDER BY slot LIMIT ?',
};
export type Which = keyof typeof changesOf;

export class TreeLog {
  readonly #database: DatabaseSync;
  readonly #rows: Rows;
  readonly #node: (slot: number) => Node | undefined;

  constructor(database: DatabaseSync, rows: Rows, node: (slot: number) => Node | undefined) {
    this.#database = database;
    this.#rows = rows;
    this.#node = node;
    database.exec(tables);
  }

  // ---- open epochs

  /** The slot is about to change; the first note since the newest commit counts. */
  note(slot: number, before: Node | undefined, damaged: boolean): void {
    const sql = 'INSERT OR IGNORE INTO change (slot, before, fresh, damaged) VALUES (?, ?, 0, ?)';
    this.#rows.run(sql, slot, before ? encode('Node', before) : null, damaged ? 1 : 0);
  }

  noted(slot: number): { before: Node | undefined; damaged: boolean } | undefined {
    const row = this.#rows.get('SELECT before, damaged FROM change WHERE slot = ?', slot);
    return row && { before: toNode(row['before']), damaged: row['damaged'] === 1 };
  }

  /** The epoch that ends leaves this in the slot. */
  end(slot: number, node: Node | undefined): void {
    const isFile = node?.type === nodeTypes.file;
    this.#rows.run('INSERT INTO ended (slot, size) VALUES (?, ?)', slot, isFile ? node.sizeBytes : null);
    if (!node || this.noted(slot)?.before?.type !== node.type) {
      this.#rows.run('UPDATE change SET fresh = 1 WHERE slot = ?', slot);
    }
  }

  /** Slots of the newest ended epoch: the size of the file in it, undefined when there is none. */
  *ended(): Generator<{ slot: number; sizeBytes: number | undefined }> {
    for (const row of this.#rows.bySlot('SELECT slot, size FROM ended WHERE slot > ? ORDER BY slot LIMIT ?')) {
      yield { slot: Number(row['slot']), sizeBytes: row['size'] === null ? undefined : Number(row['size']) };
    }
  }

  /** In an epoch that has ended since the newest commit, the slot's object became another one. */
  isFresh(slot: number): boolean {
    return this.#rows.get('SELECT 1 FROM change WHERE slot = ? AND fresh = 1', slot) !== undefined;
  }

  /** In the transaction that commits. */
  commit(keep: boolean): void {
    if (keep) {
      this.#rows.run('INSERT OR REPLACE INTO work SELECT * FROM change');
      this.#rows.run('INSERT OR REPLACE INTO phase (only, number) VALUES (1, ?)', workPhases.detach);
    }
    this.#rows.run('DELETE FROM change');
  }

  // ---- work of the newest commit

  get phase(): number {
    return Number(this.#rows.get('SELECT number FROM phase')?.['number'] ?? workPhases.done);
  }

  set phase(number: number) {
    transaction(this.#database, () => {
      this.#rows.run('UPDATE phase SET number = ?', number);
      if (number === workPhases.done) this.#rows.run('DELETE FROM work');
    });
  }

  /** By slot. `old`: of what was there. `sizeless`: of what has no bytes now, all directories among it. */
  *changes(which: Which = 'all'): Generator<TreeChange> {
    for (const row of this.#rows.bySlot(changesOf[which])) {
      yield this.#toChange(row);
    }
  }

  change(slot: number): TreeChange | undefined {
    const row = this.#rows.get('SELECT * FROM work WHERE slot = ?', slot);
    return row && this.#toChange(row);
  }

  #toChange(row: Row): TreeChange {
    const slot = Number(row['slot']);
    return {
      slot,
      before: toNode(row['before']),
      after: this.#node(slot),
      fresh: row['fresh'] === 1,
      damaged: row['damaged'] === 1,
    };
  }

  // ---- what the kernel refused

  setWithheld(slots: Iterable<[number, boolean]>): void {
    transaction(this.#database, () => {
      for (const [slot, withheld] of slots) {
        const sql = withheld ? 'INSERT OR IGNORE INTO withheld VALUES (?)' : 'DELETE FROM withheld WHERE slot = ?';
        this.#rows.run(sql, slot);
      }
    });
  }

  isWithheld(slot: number): boolean {
    return this.#rows.get('SELECT 1 FROM withheld WHERE slot = ?', slot) !== undefined;
  }

  get withheld(): number {
    return this.#rows.count('withheld');
  }
}

export function toNode(state: unknown): Node | undefined {
  return state === undefined || state === null ? undefined : decode('Node', asBuffer(state));
}
