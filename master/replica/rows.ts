/** SQLite statements by their text, prepared once each. */
import type { DatabaseSync, SQLInputValue, StatementSync } from 'node:sqlite';

export type Row = Record<string, unknown>;
const batchRows = 1000;

export class Rows {
  readonly #database: DatabaseSync;
  readonly #statements = new Map<string, StatementSync>();

  constructor(database: DatabaseSync) {
    this.#database = database;
  }

  get(sql: string, ...values: SQLInputValue[]): Row | undefined {
    return this.#prepare(sql).get(...values);
  }

  all(sql: string, ...values: SQLInputValue[]): Row[] {
    return this.#prepare(sql).all(...values);
  }

  run(sql: string, ...values: SQLInputValue[]): void {
    this.#prepare(sql).run(...values);
  }

  count(table: string): number {
    return Number(this.get(`SELECT COUNT(*) AS count FROM ${table}`)?.['count']);
  }

  /** Rows of a query on `slot > ? ... LIMIT ?`, never holding a statement open while the caller works. */
  *bySlot(sql: string, from = 0): Generator<Row> {
    for (let after = from - 1; ;) {
      const rows = this.all(sql, after, batchRows);
      yield* rows;
      const last = rows.at(-1);
      if (!last) return;
      after = Number(last['slot']);
    }
  }

  #prepare(sql: string): StatementSync {
    let statement = this.#statements.get(sql);
    if (!statement) this.#statements.set(sql, (statement = this.#database.prepare(sql)));
    return statement;
  }
}
