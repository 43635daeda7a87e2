/**
 * A block volume as a Source. Its capture (agent/capture) marks what may have changed in a durable dirty map; rounds read
 * what is marked live until little is left, a cut (blockcuts.ts) brings the rest at one instant.
 *
 * Marks leave the map when the commit that carries them is acknowledged. A doubt of the capture marks everything: it is then
 * read and offered to the replica, by itself. With capture `scan` everything is read at each sync, and only what differs from
 * what the replica is known to hold goes on.
 */
import type { Clock } from '../proto/effects.ts';
import { granuleBytes, granuleCount } from '../proto/granule.ts';
import { Pace } from '../proto/pace.ts';
import type { MirrorWelcome } from '../proto/wire.ts';
import type { Consistency } from '../proto/wire.ts';
import { storageWay, ways, type CutContext } from './blockcuts.ts';
import { Known, scan, type Buffers } from './blockscan.ts';
import { copyMethods, type StorageCopies } from './capture/csicbt.ts';
import type { Tracking } from './capture/tracking.ts';
import { CutWays, type CutWayEvent } from './cutways.ts';
import type { BlockDevice, Readable } from './device.ts';
import { allRefused, CutRefused, Refusal } from './refusal.ts';
import type { Cut, Hold, Piece, Source, SourceCounters, SourceFacts } from './source.ts';

/** Rounds before a cut, at most. */
const maxRounds = 5;
/** So little is left to the cut. */
const littleBytes = 2 << 20;
/** A round that leaves more than this part of what the one before left is the last: writes come as fast as we read. */
const shrinkRatio = 0.5;

export interface BlockSourceOptions {
  device: BlockDevice;
  tracking: Tracking;
  pool: Buffers;
  clock: Clock;
  /** null: the best that works. */
  consistency: Consistency | null;
  maxFreezeMs: number;
  /** What its storage makes for each cut; absent: nothing. */
  copies?: StorageCopies;
  /** 0 = no limit. */
  readBytesPerSecond: number;
  /** Fencing generation of the session. */
  generation: string;
  event?: (event: CutWayEvent) => void;
}

export class BlockSource implements Source {
  readonly counters: SourceCounters = {
    readBytes: 0,
    skippedSameBytes: 0,
    skippedZeroBytes: 0,
    fullScans: 0,
    fullScanReason: '',
    lostEvents: 0,
  };
  readonly #options: BlockSourceOptions;
  readonly #tracking: Tracking;
  readonly #pace: Pace;
  readonly #ways: CutWays;
  #known: Known | undefined;
  #blank = false;
  #sizeBytes = 0;
  /** How fast what is marked was read, the last time that there was much of it. */
  #lastPass: { bytes: number; ms: number } | undefined;
  #reflinks: { refusal: Refusal | undefined } | undefined;
  /** Of the cut that is under way, and of the newest committed one. */
  #cutStamp: string | undefined;
  #committedStamp: string | undefined;
  #lostBefore: number;
  /** What a cut has read into memory counts as handed out, and is not sent yet. */
  #spooled = false;
  /** Doubts when the volume was last read. */
  #doubts = 0;

  constructor(options: BlockSourceOptions) {
    this.#options = options;
    this.#tracking = options.tracking;
    this.#pace = new Pace(options.clock, options.readBytesPerSecond);
    this.#lostBefore = this.#tracking.capture.lostEvents;
    this.#ways = new CutWays((event) => options.event?.(event));
  }

  readonly readsOn = true;

  get isIndivisible(): boolean {
    return this.#spooled;
  }

  get captureMethod(): string {
    return this.#tracking.capture.method;
  }

  get captureReason(): string {
    return this.#tracking.capture.reason;
  }

  needsRest(): boolean {
    return this.captureMethod === 'scan';
  }

  async facts(): Promise<SourceFacts> {
    const facts = await this.#options.device.facts();
    await this.#tracking.sized(facts.sizeBytes);
    return facts;
  }

  async attach(welcome: MirrorWelcome): Promise<{ whole: boolean; reason: string }> {
    const { sizeBytes } = await this.facts();
    const granules = granuleCount(sizeBytes);
    this.#sizeBytes = sizeBytes;
    this.#blank = welcome.blank;
    this.#known = granules <= Known.maxGranules ? new Known(granules, welcome.blank) : undefined;
    this.#committedStamp = undefined;
    this.#spooled = false;
    return this.#tracking.attach(welcome, sizeBytes, this.#options.generation);
  }

  async *round(
    whole: boolean,
    progress: (done: number, total: number) => void,
    signal: AbortSignal,
  ): AsyncGenerator<Piece> {
    const { map, capture } = this.#tracking;
    if (whole) map.markAll(true);
    // A view is read at leisure, so only the other ways profit from a round before them.
    else if (!this.#blank && !map.offer && (await this.#reflinkRefusal()) === undefined) return;
    const rounds = capture.method === 'scan' ? 1 : maxRounds;
    for (let round = 0, left = Infinity; round < rounds; round++) {
      signal.throwIfAborted();
      if ((round > 0 || !whole) && this.#options.consistency !== 'crash') await this.#options.device.flush();
      await this.#drain();
      this.#resize((await this.facts()).sizeBytes);
      const marked = map.dirty.count * granuleBytes;
      if (round > 0 && (marked <= littleBytes || marked > left * shrinkRatio)) return;
      left = marked;
      yield* this.#read(this.#options.device, this.#sizeBytes, { whole: whole && round === 0 }, progress, signal);
    }
  }

  async #drain(): Promise<void> {
    await this.#tracking.drain();
    this.counters.lostEvents = this.#tracking.capture.lostEvents - this.#lostBefore;
  }

  #resize(sizeBytes: number): void {
    this.#sizeBytes = sizeBytes;
    this.#tracking.map.resize(sizeBytes);
    this.#known?.resize(granuleCount(sizeBytes));
  }

  /** Tried once: whether this volume can be cloned does not change while it is open. */
  async #reflinkRefusal(): Promise<Refusal | undefined> {
    // Its own views; whether the volume has reflinks is nothing to it.
    if (this.#tracking.capture.hold) return undefined;
    if (this.#reflinks === undefined) {
      const view = await this.#options.device.reflink();
      if (typeof view !== 'string') await view.release();
      this.#reflinks = { refusal: typeof view === 'string' ? new Refusal('unsupported', view) : undefined };
    }
    return this.#reflinks.refusal;
  }

  /** What is marked. Its marks are gone from "changed" when it ends. */
  async *#read(
    readable: Readable,
    sizeBytes: number,
    { whole = false, limited = true }: { whole?: boolean; limited?: boolean },
    progress: (done: number, total: number) => void,
    signal: AbortSignal,
  ): AsyncGenerator<Piece> {
    const { clock, pool } = this.#options;
    const { map } = this.#tracking;
    const startMs = clock.monotonicMs();
    const doubts = this.#tracking.doubtCount;
    // Another device may stand at the path: what was opened before is not it.
    if (doubts !== this.#doubts) await this.#options.device.rest();
    this.#doubts = doubts;
    const bytes = map.dirty.count * granuleBytes;
    const { offer } = map;
    if (map.dirty.count === granuleCount(sizeBytes) && sizeBytes > 0) {
      this.counters.fullScans++;
      this.counters.fullScanReason = whole || offer ? 'offer' : this.#blank ? 'first' : 'scan';
    }
    yield* scan({
      readable,
      sizeBytes,
      parts: map,
      known: this.#known,
      blank: this.#blank,
      whole,
      // Without a capture it is not known whether what is marked did change.
      offer: offer || this.#tracking.capture.method === 'scan',
      pool,
      pace: limited ? this.#pace : new Pace(clock, 0),
      counters: this.counters,
      progress: (done) => progress(done, sizeBytes),
      signal,
    });
    if (doubts === this.#tracking.doubtCount) map.passed();
    if (bytes > littleBytes) this.#lastPass = { bytes, ms: clock.monotonicMs() - startMs };
    // From here on the replica holds what was handed out.
    this.#blank = false;
  }

  async cut(signal: AbortSignal, group?: Hold): Promise<Cut> {
    const { consistency } = this.#options;
    if (consistency === 'file') {
      throw new CutRefused('unsupported', 'spec.consistency "file" is for file volumes; use filesystem or crash');
    }
    const { copies } = this.#options;
    if (copies !== undefined && consistency === 'filesystem')
      throw new CutRefused(
        'unsupported',
        `spec.copyMethod ${copyMethods[copies]} makes crash-consistent points; use crash`,
      );
    const refusals: Refusal[] = [];
    for (const way of copies === undefined ? ways : [storageWay(copies)]) {
      if (consistency !== null && way.consistency !== consistency) continue;
      this.#resize((await this.facts()).sizeBytes);
      this.#cutStamp = undefined;
      const cut = await way.take(this.#context(group), signal);
      this.counters.lostEvents = this.#tracking.capture.lostEvents - this.#lostBefore;
      if (!(cut instanceof Refusal)) {
        this.#ways.way(cut.consistency, [way.name, ...refusals.map(({ message }) => message)].join('; '));
        return withReasons(cut, refusals);
      }
      refusals.push(cut.prefixed(`${way.name}: `));
    }
    const { reason, message } = allRefused(refusals);
    throw new CutRefused(reason, message);
  }

  #context(group: Hold | undefined): CutContext {
    const { device, clock, maxFreezeMs } = this.#options;
    return {
      device,
      clock,
      maxFreezeMs,
      tracking: this.#tracking,
      read: (readable, sizeBytes, limited, signal) =>
        this.#read(readable, sizeBytes, { limited }, () => undefined, signal),
      expectedMs: () => this.#expectedMs(),
      resized: (sizeBytes) => this.#resize(sizeBytes),
      stamped: (stamp) => (this.#cutStamp = stamp),
      stampNow: () => this.#cutStamp,
      spooled: (isUnsent) => (this.#spooled = isUnsent),
      group,
      reflinkRefusal: () => this.#reflinkRefusal(),
    };
  }

  #expectedMs(): number {
    const { capture, map } = this.#tracking;
    const bytes = capture.method === 'scan' ? this.#sizeBytes : map.dirty.count * granuleBytes;
    if (bytes <= littleBytes) return 0;
    return this.#lastPass ? (this.#lastPass.ms * bytes) / this.#lastPass.bytes : 0;
  }

  async unchangedUntil(): Promise<number | undefined> {
    if (this.#committedStamp === undefined) return undefined;
    const agentUs = Math.floor(this.#options.clock.nowMs() * 1000);
    return (await this.#stampNow()) === this.#committedStamp ? agentUs : undefined;
  }

  async #stampNow(): Promise<string | undefined> {
    if (this.#tracking.capture.hold) return (await this.#options.device.stamp()).stamp;
    return (await this.#tracking.drain()).still;
  }

  dirtyBytes(): number | undefined {
    return this.#tracking.capture.method === 'scan' ? undefined : this.#tracking.map.dirtyBytes;
  }

  commitSizeBytes(): number {
    return this.#sizeBytes;
  }

  async prepare(sequence: number): Promise<void> {
    await this.#tracking.prepare(sequence);
  }

  async committed(sequence: number, point: boolean, digest: Buffer): Promise<void> {
    if (point) {
      this.#committedStamp = this.#cutStamp;
      this.#ways.point();
    }
    await this.#tracking.committed(sequence, point, digest);
  }

  async idle(): Promise<void> {
    await this.#options.device.rest();
  }

  async close(): Promise<void> {
    await this.#tracking.detach();
    await this.#options.device.rest();
  }
}

/** A cut that does not hold tells also why the better ways were none. */
function withReasons(cut: Cut, refusals: Refusal[]): Cut {
  return {
    ...cut,
    async broken() {
      const broken = await cut.broken();
      return broken && allRefused([...refusals, broken]);
    },
  };
}
