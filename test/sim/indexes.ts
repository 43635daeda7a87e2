/**
 * The replica's SQLite files, which lie on the real filesystem as SQLite cannot see a SimDisk. Each process of the master
 * gets a folder of its own with what the one before left, so that a process that "died" cannot write to its successor's.
 *
 * After a loss of power the newest transactions may be missing, up to all since the last checkpoint: that is what SQLite
 * promises in WAL mode with synchronous NORMAL. Cutting the WAL short does that.
 */
import { copyFileSync, existsSync, mkdirSync, readdirSync, renameSync, rmSync, statSync, truncateSync } from 'node:fs';
import type { Dice } from './dice.ts';

export class Indexes {
  readonly #root: string;
  readonly #dice: Dice;
  #number = 0;
  readonly counts = { cutLogs: 0, lostHeads: 0 };

  constructor(root: string, dice: Dice) {
    this.#root = root;
    this.#dice = dice;
    mkdirSync(this.folder, { recursive: true });
  }

  get folder(): string {
    return `${this.#root}/${this.#number}`;
  }

  /** The present process is gone. `snapshots` are those whose bytes are there. */
  crash(power: boolean, snapshots: string[]): void {
    const old = this.folder;
    this.#number++;
    this.#copy(old, this.folder, power);
    if (power && this.#dice.chance(0.1)) {
      this.counts.lostHeads++;
      for (const suffix of ['', '-wal']) rmSync(`${this.folder}/head.db${suffix}`, { force: true });
    }
    // Bytes and index of a snapshot are renamed in one step in production, where they lie in one folder.
    for (const name of snapshots) {
      const [from, to] = [`${this.folder}/snapshots/.${name}`, `${this.folder}/snapshots/${name}`];
      if (existsSync(from) && !existsSync(to)) renameSync(from, to);
    }
  }

  /** Of a process that is gone and has been closed. */
  forget(folder: string): void {
    rmSync(folder, { recursive: true, force: true });
  }

  #copy(from: string, to: string, power: boolean): void {
    mkdirSync(to, { recursive: true });
    for (const entry of readdirSync(from, { withFileTypes: true })) {
      const [source, target] = [`${from}/${entry.name}`, `${to}/${entry.name}`];
      if (entry.isDirectory()) this.#copy(source, target, power);
      else if (entry.name.endsWith('.db')) copyFileSync(source, target);
      else if (entry.name.endsWith('.db-wal')) this.#copyLog(source, target, power);
    }
  }

  #copyLog(source: string, target: string, power: boolean): void {
    if (power && this.#dice.chance(0.3)) {
      this.counts.cutLogs++;
      return;
    }
    copyFileSync(source, target);
    if (!power || this.#dice.chance(0.4)) return;
    this.counts.cutLogs++;
    truncateSync(target, this.#dice.below(statSync(target).size + 1));
  }
}
