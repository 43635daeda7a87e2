/** Slots of a tree index of which it is not known what the replica has, and why. Transactions are the caller's. */
import type { DatabaseSync } from 'node:sqlite';
import type { Rows } from './rows.ts';

export const unknowns = { node: 1, content: 2 } as const;

export class UnknownSlots {
  readonly #rows: Rows;
  /** Mostly there are none, and they are asked for with each slot that changes. */
  #mayBe = true;

  constructor(database: DatabaseSync, rows: Rows) {
    database.exec('CREATE TABLE IF NOT EXISTS unknown (slot INTEGER PRIMARY KEY, why INTEGER NOT NULL) STRICT');
    this.#rows = rows;
  }

  get count(): number {
    const count = this.#rows.count('unknown');
    this.#mayBe = count > 0;
    return count;
  }

  /** The transaction was taken back. */
  discard(): void {
    this.#mayBe = true;
  }

  /** 0 = it is known. */
  why(slot: number): number {
    if (!this.#mayBe) return 0;
    return Number(this.#rows.get('SELECT why FROM unknown WHERE slot = ?', slot)?.['why'] ?? 0);
  }

  add(slot: number, why: number): void {
    this.#mayBe = true;
    this.#rows.run('INSERT OR REPLACE INTO unknown (slot, why) VALUES (?, ?)', slot, this.why(slot) | why);
  }

  remove(slot: number, why: number): void {
    const before = this.why(slot);
    const left = before & ~why;
    if (left === before) return;
    if (left === 0) this.#rows.run('DELETE FROM unknown WHERE slot = ?', slot);
    else this.#rows.run('UPDATE unknown SET why = ? WHERE slot = ?', left, slot);
  }
}
