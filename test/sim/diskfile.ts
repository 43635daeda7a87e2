/** Files and directories of SimDisk: what is seen now, what is durable, and the changes between the two. */
import type { Dice } from './dice.ts';

/** Pages are never changed but replaced, so that clones and the durable state share them. */
export const pageBytes = 65536;

type Change =
  | { kind: 'write'; position: number; data: Buffer }
  | { kind: 'zero'; position: number; length: number }
  | { kind: 'truncate'; size: number }
  | { kind: 'copy'; pages: Map<number, Buffer>; size: number };

interface Content {
  pages: Map<number, Buffer>;
  size: number;
}

export interface LossCounts {
  lostWrites: number;
  tornWrites: number;
  lostNames: number;
}

export class SimFile {
  #now: Content = { pages: new Map(), size: 0 };
  #durable: Content = { pages: new Map(), size: 0 };
  #changes: Change[] = [];

  get size(): number {
    return this.#now.size;
  }

  get usedBytes(): number {
    return this.#now.pages.size * pageBytes;
  }

  growthBytes(position: number, length: number): number {
    let pages = 0;
    for (let page = Math.floor(position / pageBytes); page * pageBytes < position + length; page++)
      if (!this.#now.pages.has(page)) pages++;
    return pages * pageBytes;
  }

  read(buffer: Uint8Array, position: number): number {
    const length = Math.max(0, Math.min(buffer.length, this.#now.size - position));
    for (let done = 0; done < length;) {
      const page = this.#now.pages.get(Math.floor((position + done) / pageBytes));
      const from = (position + done) % pageBytes;
      const part = Math.min(pageBytes - from, length - done);
      if (page) page.copy(buffer, done, from, from + part);
      else buffer.fill(0, done, done + part);
      done += part;
    }
    return length;
  }

  write(data: Buffer, position: number): void {
    if (data.length > 0) this.#change({ kind: 'write', position, data: Buffer.from(data) });
  }

  zero(position: number, length: number): void {
    this.#change({ kind: 'zero', position, length });
  }

  truncate(size: number): void {
    this.#change({ kind: 'truncate', size });
  }

  copyFrom(source: SimFile): void {
    this.#change({ kind: 'copy', pages: new Map(source.#now.pages), size: source.#now.size });
  }

  #change(change: Change): void {
    this.#changes.push(change);
    apply(this.#now, change);
  }

  nextData(position: number): number | undefined {
    for (let at = position; at < this.#now.size; at = (Math.floor(at / pageBytes) + 1) * pageBytes)
      if (this.#now.pages.has(Math.floor(at / pageBytes))) return at;
    return undefined;
  }

  nextHole(position: number): number {
    for (let at = position; at < this.#now.size; at = (Math.floor(at / pageBytes) + 1) * pageBytes)
      if (!this.#now.pages.has(Math.floor(at / pageBytes))) return at;
    return Math.max(position, this.#now.size);
  }

  sync(): void {
    for (const change of this.#changes) apply(this.#durable, change);
    this.#changes = [];
  }

  /** Data may be lost for good although it can still be read; sizes are kept by the filesystem's own journal. */
  failSync(dice: Dice): number {
    let lost = 0;
    for (const change of this.#changes) {
      if (change.kind !== 'write' || dice.chance(0.5)) apply(this.#durable, change);
      else lost++;
    }
    this.#changes = [];
    return lost;
  }

  flip(position: number): void {
    for (const content of [this.#now, this.#durable]) {
      if (position >= content.size) continue;
      const byte = Buffer.alloc(1);
      byte[0] = (content.pages.get(Math.floor(position / pageBytes))?.[position % pageBytes] ?? 0) ^ 0x40;
      apply(content, { kind: 'write', position, data: byte });
    }
  }

  losePower(dice: Dice, counts: LossCounts, sectorBytes: number): void {
    const kept = survivors(this.#changes, dice);
    counts.lostWrites += this.#changes.length - kept.length;
    for (const change of kept) {
      if (change.kind === 'write' && dice.chance(0.2)) {
        counts.tornWrites++;
        for (const part of torn(change, dice, sectorBytes)) apply(this.#durable, part);
      } else {
        apply(this.#durable, change);
      }
    }
    this.#changes = [];
    this.#now = { pages: new Map(this.#durable.pages), size: this.#durable.size };
  }
}

type Entry = SimFile | SimDirectory;
type NameChange = { set: Map<string, Entry>; delete: Map<string, Entry> };

export class SimDirectory {
  readonly #now = new Map<string, Entry>();
  readonly #durable = new Map<string, Entry>();
  #changes: NameChange[] = [];

  get(name: string): Entry | undefined {
    return this.#now.get(name);
  }

  names(): string[] {
    return [...this.#now.keys()];
  }

  set(name: string, entry: Entry): void {
    this.#change({ set: new Map([[name, entry]]), delete: new Map() });
  }

  delete(name: string): void {
    const entry = this.#now.get(name);
    if (entry) this.#change({ set: new Map(), delete: new Map([[name, entry]]) });
  }

  removeAll(): void {
    for (const [name, entry] of [...this.#now]) {
      if (entry instanceof SimDirectory) entry.removeAll();
      this.delete(name);
    }
  }

  /** One step within a directory; between two they may be torn apart by a crash. */
  rename(from: string, toDirectory: SimDirectory, to: string, entry: Entry): void {
    if (toDirectory === this) {
      this.#change({ set: new Map([[to, entry]]), delete: new Map([[from, entry]]) });
    } else {
      toDirectory.set(to, entry);
      this.delete(from);
    }
  }

  sync(): void {
    for (const change of this.#changes) applyNames(this.#durable, change);
    this.#changes = [];
  }

  losePower(dice: Dice, counts: LossCounts, sectorBytes: number): void {
    const kept = survivors(this.#changes, dice);
    counts.lostNames += this.#changes.length - kept.length;
    for (const change of kept) applyNames(this.#durable, change);
    this.#changes = [];
    this.#now.clear();
    for (const [name, entry] of this.#durable) {
      this.#now.set(name, entry);
      entry.losePower(dice, counts, sectorBytes);
    }
  }

  #change(change: NameChange): void {
    this.#changes.push(change);
    applyNames(this.#now, change);
  }
}

function applyNames(names: Map<string, Entry>, change: NameChange): void {
  for (const [name, entry] of change.delete) if (names.get(name) === entry) names.delete(name);
  for (const [name, entry] of change.set) names.set(name, entry);
}

/** All, none, the first ones, or any of them. */
function survivors<T>(changes: T[], dice: Dice): T[] {
  switch (dice.below(4)) {
    case 0:
      return changes;
    case 1:
      return [];
    case 2:
      return changes.slice(0, dice.below(changes.length + 1));
    default:
      return changes.filter(() => dice.chance(0.5));
  }
}

/** A prefix, or some of the sectors. */
function torn(change: Change & { kind: 'write' }, dice: Dice, sectorBytes: number): Change[] {
  const { position, data } = change;
  if (dice.chance(0.5)) return [{ ...change, data: data.subarray(0, dice.below(data.length)) }];
  const kept: Change[] = [];
  for (let at = 0; at < data.length;) {
    const end = Math.min(data.length, at + sectorBytes - ((position + at) % sectorBytes));
    if (dice.chance(0.5)) kept.push({ ...change, position: position + at, data: data.subarray(at, end) });
    at = end;
  }
  return kept;
}

function apply(content: Content, change: Change): void {
  switch (change.kind) {
    case 'write':
      writeBytes(content, change.position, change.data.length, change.data);
      content.size = Math.max(content.size, change.position + change.data.length);
      break;
    case 'zero':
      writeBytes(
        content,
        change.position,
        Math.max(0, Math.min(change.length, content.size - change.position)),
        undefined,
      );
      break;
    case 'truncate':
      if (change.size < content.size) {
        writeBytes(content, change.size, content.size - change.size, undefined);
        for (const page of [...content.pages.keys()]) if (page * pageBytes >= change.size) content.pages.delete(page);
      }
      content.size = change.size;
      break;
    case 'copy':
      content.pages = new Map(change.pages);
      content.size = change.size;
      break;
  }
}

/** A page is never written to: files and the states of one share it. */
function changedPage(old: Buffer | undefined, from: number, length: number, data: Buffer | undefined): Buffer {
  if (data && length === pageBytes) return data;
  const page = old ? Buffer.from(old) : Buffer.alloc(pageBytes);
  if (data) data.copy(page, from);
  else page.fill(0, from, from + length);
  return page;
}

/** `data` undefined: zeros, as holes where whole pages go. */
function writeBytes(content: Content, position: number, length: number, data: Buffer | undefined): void {
  for (let done = 0; done < length;) {
    const number = Math.floor((position + done) / pageBytes);
    const from = (position + done) % pageBytes;
    const part = Math.min(pageBytes - from, length - done);
    const old = content.pages.get(number);
    if (data === undefined && (part === pageBytes || old === undefined)) {
      content.pages.delete(number);
    } else {
      content.pages.set(number, changedPage(old, from, part, data?.subarray(done, done + part)));
    }
    done += part;
  }
}
