/** Files and directories of SimDisk: what is seen now, what is durable, and the changes between the two. */
import type { Dice } from './dice.ts';

/** Clones and the durable state share pages with what is seen now: a shared one is not changed but replaced. */
export const pageBytes = 65536;

type Change =
  | { kind: 'write'; position: number; data: Buffer }
  | { kind: 'zero'; position: number; length: number }
  | { kind: 'truncate'; size: number }
  | { kind: 'copy'; pages: Map<number, Buffer>; size: number };

interface Content {
  pages: Map<number, Buffer>;
  size: number;
  /** Numbers of pages that nobody else has: these may be written to. */
  own?: Set<number>;
}

export interface LossCounts {
  lostWrites: number;
  tornWrites: number;
  lostNames: number;
}

export class SimFile {
  #now: Content = { pages: new Map(), size: 0, own: new Set() };
  #durable: Content = { pages: new Map(), size: 0 };
  #changes: Change[] = [];
  /** The changes are all that the two states differ by. */
  #isFollowing = true;

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

  /** `data` must not be changed any more. */
  write(data: Buffer, position: number): void {
    if (data.length > 0) this.#change({ kind: 'write', position, data });
  }

  zero(position: number, length: number): void {
    this.#change({ kind: 'zero', position, length });
  }

  truncate(size: number): void {
    this.#change({ kind: 'truncate', size });
  }

  copyFrom(source: SimFile): void {
    source.#now.own?.clear();
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
    if (this.#isFollowing) follow(this.#durable, this.#now, this.#changes);
    else for (const change of this.#changes) apply(this.#durable, change);
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
    if (lost > 0) this.#isFollowing = false;
    return lost;
  }

  flip(position: number): void {
    // What is under way is not flipped.
    if (this.#changes.length > 0) this.#isFollowing = false;
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
    this.#now = { pages: new Map(this.#durable.pages), size: this.#durable.size, own: new Set() };
    this.#isFollowing = true;
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

  get usedBytes(): number {
    let bytes = 0;
    for (const entry of this.#now.values()) bytes += entry.usedBytes;
    return bytes;
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
        for (const page of [...content.pages.keys()]) {
          if (page * pageBytes < change.size) continue;
          content.pages.delete(page);
          content.own?.delete(page);
        }
      }
      content.size = change.size;
      break;
    case 'copy':
      content.pages = new Map(change.pages);
      content.own?.clear();
      content.size = change.size;
      break;
  }
}

/** As if each of the changes were applied, which `now` has. */
function follow(durable: Content, now: Content, changes: Change[]): void {
  durable.size = now.size;
  if (changes.some(({ kind }) => kind === 'truncate' || kind === 'copy')) {
    durable.pages = new Map(now.pages);
    now.own?.clear();
    return;
  }
  for (const change of changes) {
    if (change.kind !== 'write' && change.kind !== 'zero') continue;
    const length = change.kind === 'write' ? change.data.length : change.length;
    for (
      let number = Math.floor(change.position / pageBytes);
      number * pageBytes < change.position + length;
      number++
    ) {
      const page = now.pages.get(number);
      if (page) durable.pages.set(number, page);
      else durable.pages.delete(number);
      now.own?.delete(number);
    }
  }
}

/** `data` undefined: zeros, as holes where whole pages go. */
function writeBytes(content: Content, position: number, length: number, data: Buffer | undefined): void {
  for (let done = 0; done < length;) {
    const number = Math.floor((position + done) / pageBytes);
    const from = (position + done) % pageBytes;
    const part = Math.min(pageBytes - from, length - done);
    if (data === undefined && (part === pageBytes || !content.pages.has(number))) {
      content.pages.delete(number);
      content.own?.delete(number);
    } else if (data && part === pageBytes) {
      content.pages.set(number, data.subarray(done, done + part));
      content.own?.delete(number);
    } else {
      const page = writable(content, number);
      if (data) data.copy(page, from, done, done + part);
      else page.fill(0, from, from + part);
    }
    done += part;
  }
}

function writable(content: Content, number: number): Buffer {
  const old = content.pages.get(number);
  if (old && content.own?.has(number)) return old;
  const page = old ? Buffer.from(old) : Buffer.alloc(pageBytes);
  content.pages.set(number, page);
  content.own?.add(number);
  return page;
}
