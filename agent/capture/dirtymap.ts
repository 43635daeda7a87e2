/**
 * The durable dirty map of one block volume: which granules the replica may hold otherwise than the volume does.
 *
 * A granule's mark goes through four states: changed; being read; handed out; in a commit that went out. It leaves the map when
 * that commit is acknowledged, and goes back to "changed" when the session fails. A write that comes
 * meanwhile marks it anew. Cleared before the read: what is written after the mark was taken is marked again.
 * While a commit is under way others are read and handed out, for the next one.
 *
 * What is kept on disk is all four together, with the replica's head that they belong to and the capture's state. The order of
 * the writes makes each crash harmless: marks before the state that says they are there, a new head before marks go. Nothing
 * is forced to the disk unless the capture's state is good beyond a reboot: what is written survives a killed agent.
 *
 * Bounded: 1.25 MiB per TiB and state.
 */
import { messageOf } from '../../proto/errors.ts';
import { granuleBytes, granuleCount } from '../../proto/granule.ts';
import { Lock } from '../../proto/lock.ts';
import { Bitmap } from './bitmap.ts';

export interface MapHeader {
  sizeBytes: number;
  /** Newest commit that is known to be durable; undefined = the map belongs to no replica. */
  head: { sequence: number; digest: string } | undefined;
  /** A commit that may be durable: it went out. 0 = none. */
  prepared: number;
  /** Fencing generation that it went out with. */
  preparedBy: string;
  /** Marks are doubts rather than changes: the replica is asked before they are sent. */
  offer: boolean;
  /** Which capture wrote `state`, and its state. */
  method: string;
  state: unknown;
}

/** Where a map is kept. A process killed between two calls leaves what the calls before wrote. */
export interface MapStore {
  /** Undefined when there is none, or it cannot be understood. */
  read(): Promise<{ header: MapHeader; pages: Iterable<[number, Buffer]> } | undefined>;
  writePages(pages: [number, Buffer | undefined][]): Promise<void>;
  writeHeader(header: MapHeader): Promise<void>;
  sync(): Promise<void>;
}

export class DirtyMap {
  /** Changed, and not being read. */
  readonly dirty: Bitmap;
  readonly #reading: Bitmap;
  readonly #taken: Bitmap;
  /** Handed out before the commit that is under way. */
  readonly #committing: Bitmap;
  /** All four, as on disk once persisted. */
  readonly #kept: Bitmap;
  readonly #store: MapStore;
  readonly #touched = new Set<number>();
  readonly #lock = new Lock();
  #header: MapHeader;
  /** The header as it stands on disk; undefined = it is not known, or not yet synced. */
  #written: string | undefined;
  /** Why the newest attempt to keep the map failed. */
  failure: string | undefined;

  constructor(store: MapStore) {
    this.#store = store;
    this.dirty = new Bitmap(0);
    this.#reading = new Bitmap(0);
    this.#taken = new Bitmap(0);
    this.#committing = new Bitmap(0);
    this.#kept = new Bitmap(0);
    this.#header = {
      sizeBytes: 0,
      head: undefined,
      prepared: 0,
      preparedBy: '',
      offer: false,
      method: '',
      state: undefined,
    };
  }

  /** What an agent before us kept. Answers the capture's state, undefined when there is no map. */
  async load(): Promise<{ method: string; state: unknown } | undefined> {
    const kept = await this.#store.read().catch(() => undefined);
    if (!kept) return undefined;
    this.resize(kept.header.sizeBytes);
    this.#clear();
    try {
      for (const [number, bytes] of kept.pages) {
        this.dirty.load(number, bytes);
        this.#kept.load(number, bytes);
      }
    } catch {
      this.#clear();
      return undefined;
    }
    this.#header = kept.header;
    return { method: kept.header.method, state: kept.header.state };
  }

  #clear(): void {
    for (const bits of [this.dirty, this.#reading, this.#taken, this.#committing]) bits.clear();
    this.#kept.clear((page) => this.#touched.add(page));
  }

  get sizeBytes(): number {
    return this.#header.sizeBytes;
  }

  /** Marks are offered, as it is not known whether the replica lacks them. */
  get offer(): boolean {
    return this.#header.offer;
  }

  /** Bytes that the replica may lack. */
  get dirtyBytes(): number {
    return Math.min(this.#kept.count * granuleBytes, this.sizeBytes);
  }

  /** What a growth adds is changed, the last granule of before with it. */
  resize(sizeBytes: number): void {
    const before = this.sizeBytes;
    if (sizeBytes === before) return;
    for (const bits of [this.dirty, this.#reading, this.#taken, this.#committing, this.#kept])
      bits.resize(granuleCount(sizeBytes));
    this.#header.sizeBytes = sizeBytes;
    if (sizeBytes > before) this.markBytes(Math.max(0, before - 1), sizeBytes - before + 1);
    else if (sizeBytes > 0) this.markBytes(sizeBytes - 1, 1);
  }

  /** Marks every granule that these bytes touch; what lies behind the end is left out. */
  markBytes(offset: number, length: number): void {
    if (length <= 0) return;
    const first = Math.floor(offset / granuleBytes);
    const end = Math.ceil((offset + length) / granuleBytes);
    this.dirty.add(first, end);
    this.#kept.add(first, end, (page) => this.#touched.add(page));
  }

  /** Everything may be otherwise. `offer` false: the replica is known to be blank. */
  markAll(offer: boolean): void {
    this.#header.offer = offer;
    this.markBytes(0, this.sizeBytes);
  }

  /** The next that are changed. */
  next(from: number, most: number): { first: number; end: number } | undefined {
    return this.dirty.next(from, most);
  }

  /** They are about to be read. */
  take(first: number, end: number): void {
    this.dirty.delete(first, end);
    this.#reading.add(first, end);
  }

  /** They were read and handed out, or found to be what the replica has. */
  handed(first: number, end: number): void {
    this.#reading.delete(first, end);
    this.#taken.add(first, end);
  }

  /** Taken, and not to be read now. */
  leave(first: number, end: number): void {
    this.#reading.delete(first, end);
    this.dirty.add(first, end);
  }

  /** A reading was left. */
  unread(): void {
    this.dirty.addAll(this.#reading);
    this.#reading.clear();
  }

  /** What was handed out never came to a commit. */
  back(): void {
    this.unread();
    for (const bits of [this.#taken, this.#committing]) {
      this.dirty.addAll(bits);
      bits.clear();
    }
  }

  /** A pass over all marks has ended: what comes from now on are changes. */
  passed(): void {
    this.#header.offer = false;
  }

  /** Whether the map tells how the replica at this head differs. Then it belongs to that head. */
  belongsTo(sequence: number, digest: Buffer, generation: string): boolean {
    const { head, prepared, preparedBy } = this.#header;
    const isKnown = head?.sequence === sequence && head.digest === digest.toString('hex');
    // Ours, as one generation has one writer: the answer was lost. Under another one somebody else may have made it.
    const isPrepared = prepared === sequence && preparedBy === generation && sequence > (head?.sequence ?? Infinity);
    if (!isKnown && !isPrepared) return false;
    this.#header.head = { sequence, digest: digest.toString('hex') };
    return true;
  }

  /** The map is about this replica from now on; everything is marked. */
  adopt(sequence: number, digest: Buffer, offer: boolean): void {
    this.back();
    this.markAll(offer);
    this.#header.head = { sequence, digest: digest.toString('hex') };
    this.#header.prepared = 0;
  }

  /** The commit that carries what was handed out so far is about to go out; the one before it is acknowledged. */
  async prepare(sequence: number, generation: string): Promise<void> {
    this.#committing.addAll(this.#taken);
    this.#taken.clear();
    this.#header.prepared = sequence;
    this.#header.preparedBy = generation;
    await this.#keep(() => this.#writeHeader());
  }

  async committed(sequence: number, digest: Buffer): Promise<void> {
    this.#header.head = { sequence, digest: digest.toString('hex') };
    const isHeadKept = await this.#keep(() => this.#writeHeader());
    // Else the old head stands on disk, and the marks that it needs must stand there too.
    if (!isHeadKept) return void this.back();
    for (const { first, end } of this.#committing.runs()) {
      for (let at = first; at < end;) {
        const marked = this.#nextMarked(at, end);
        this.#kept.delete(at, marked?.first ?? end, (page) => this.#touched.add(page));
        at = marked?.end ?? end;
      }
    }
    this.#committing.clear();
  }

  /** The first run within these that the commit does not carry as it is now. */
  #nextMarked(from: number, end: number): { first: number; end: number } | undefined {
    const marked = [this.dirty, this.#reading, this.#taken].map((bits) => bits.next(from));
    const runs = marked.filter((run) => run && run.first < end);
    return runs.sort((a, b) => (a?.first ?? 0) - (b?.first ?? 0))[0];
  }

  /**
   * Keeps what is marked and then the state, which says that all it stands for is marked. Call it with the state as it was
   * when the newest marks came. Answers false when it could not be written: then what is on disk stays good, only older.
   */
  async persist(method: string, state: unknown, durably = false): Promise<boolean> {
    return this.#keep(async () => {
      const pages = [...this.#touched];
      this.#touched.clear();
      try {
        if (pages.length > 0) await this.#store.writePages(pages.map((number) => [number, this.#kept.page(number)]));
        if (durably) await this.#store.sync();
        Object.assign(this.#header, { method, state });
        const header = JSON.stringify(this.#header);
        // A quiet volume is looked at often, and then nothing is to be kept.
        if (pages.length === 0 && header === this.#written) return;
        await this.#writeHeader();
        if (durably) await this.#store.sync();
        this.#written = header;
      } catch (error) {
        for (const page of pages) this.#touched.add(page);
        throw error;
      }
    });
  }

  async #writeHeader(): Promise<void> {
    this.#written = undefined;
    await this.#store.writeHeader({ ...this.#header });
  }

  async #keep(write: () => Promise<void>): Promise<boolean> {
    try {
      await this.#lock.run(write);
      this.failure = undefined;
      return true;
    } catch (error) {
      this.failure = messageOf(error);
      return false;
    }
  }
}
