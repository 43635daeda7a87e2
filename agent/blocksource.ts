/**
 * A block volume as a Source, captured by hash scan: the whole volume is read at each sync, and only what differs from
 * what the replica is known to hold goes on. Stamps (the image's times, the device's counters) prove that nothing
 * changed, so a quiet volume is not read at all.
 *
 * Cuts, best first; each says why it cannot be:
 *   freeze and reflink   filesystem   frozen for the moment of a clone, then read at leisure
 *   freeze and scan      filesystem   read whole while frozen, what differs kept in memory: small volumes only
 *   reflink              crash        a clone of one instant, nothing quiesced
 *   quiet interval       crash        no write between the first and the last byte read, by the stamp
 */
import type { Clock } from '../proto/effects.ts';
import { ReplicationError } from '../proto/errors.ts';
import { granuleCount } from '../proto/granule.ts';
import { Pace } from '../proto/pace.ts';
import type { MirrorWelcome } from '../proto/wire.ts';
import type { Consistency } from '../proto/wire.ts';
import { Known, scan, type BufferPool } from './blockscan.ts';
import type { BlockDevice, Frozen, Readable } from './device.ts';
import type { Cut, Piece, Source, SourceCounters, SourceFacts } from './source.ts';

/** What a frozen scan may keep until the filesystem is thawed. */
const spoolBytes = 64 << 20;
/** A frozen scan is tried when the last scan took at most this part of maxFreezeMs. */
const freezeScanRatio = 0.8;

export interface BlockSourceOptions {
  device: BlockDevice;
  pool: BufferPool;
  clock: Clock;
  /** null: the best that works. */
  consistency: Consistency | null;
  maxFreezeMs: number;
  /** 0 = no limit. */
  readBytesPerSecond: number;
}

type Way = { name: string; consistency: Consistency; take: (signal: AbortSignal) => Promise<Cut | string> };

export class BlockSource implements Source {
  readonly captureMethod = 'scan';
  readonly isIndivisible = false;
  readonly captureReason = 'every sync reads the volume and compares hashes';
  readonly counters: SourceCounters = {
    readBytes: 0,
    skippedSameBytes: 0,
    skippedZeroBytes: 0,
    fullScans: 0,
    fullScanReason: '',
    lostEvents: 0,
  };
  readonly #options: BlockSourceOptions;
  readonly #pace: Pace;
  #known: Known | undefined;
  #blank = false;
  #sizeBytes = 0;
  #lastScanMs: number | undefined;
  #reflinks: { refusal: string | undefined } | undefined;
  /** Taken before the cut that is under way, and before the newest committed one. */
  #cutStamp: string | undefined;
  #committedStamp: string | undefined;

  constructor(options: BlockSourceOptions) {
    this.#options = options;
    this.#pace = new Pace(options.clock, options.readBytesPerSecond);
  }

  facts(): Promise<SourceFacts> {
    return this.#options.device.facts();
  }

  async attach(welcome: MirrorWelcome): Promise<{ whole: boolean; reason: string }> {
    const { sizeBytes } = await this.facts();
    this.#sizeBytes = sizeBytes;
    const granules = granuleCount(sizeBytes);
    this.#blank = welcome.blank;
    this.#known = granules <= Known.maxGranules ? new Known(granules, welcome.blank) : undefined;
    this.#committedStamp = undefined;
    if (welcome.blank) return { whole: false, reason: 'the replica is blank' };
    return { whole: true, reason: 'what the replica holds is asked anew in each session' };
  }

  async *round(
    whole: boolean,
    progress: (done: number, total: number) => void,
    signal: AbortSignal,
  ): AsyncGenerator<Piece> {
    if (!whole && !this.#blank && !(await this.#needsRound(signal))) return;
    this.#sizeBytes = (await this.facts()).sizeBytes;
    yield* this.#scan(this.#options.device, this.#sizeBytes, whole, this.#pace, progress, signal);
  }

  /** A reflinked cut is read at leisure, so only the other ways profit from a round before them. */
  async #needsRound(signal: AbortSignal): Promise<boolean> {
    const refusal = await this.#reflinkRefusal();
    signal.throwIfAborted();
    return refusal !== undefined;
  }

  /** Tried once: whether this volume can be cloned does not change while it is open. */
  async #reflinkRefusal(): Promise<string | undefined> {
    if (this.#reflinks === undefined) {
      const view = await this.#options.device.reflink();
      if (typeof view !== 'string') await view.release();
      this.#reflinks = { refusal: typeof view === 'string' ? view : undefined };
    }
    return this.#reflinks.refusal;
  }

  async *#scan(
    readable: Readable,
    sizeBytes: number,
    whole: boolean,
    pace: Pace,
    progress: (done: number, total: number) => void,
    signal: AbortSignal,
  ): AsyncGenerator<Piece> {
    const { clock, pool } = this.#options;
    const startMs = clock.monotonicMs();
    this.counters.fullScans++;
    this.counters.fullScanReason = whole ? 'offer' : 'scan';
    this.#known?.resize(granuleCount(sizeBytes));
    yield* scan({
      readable,
      sizeBytes,
      known: this.#known,
      blank: this.#blank,
      whole,
      pool,
      pace,
      counters: this.counters,
      progress: (done) => progress(done, sizeBytes),
      signal,
    });
    this.#lastScanMs = clock.monotonicMs() - startMs;
    // From here on the replica holds what was handed out.
    this.#blank = false;
  }

  async cut(signal: AbortSignal): Promise<Cut> {
    const { consistency } = this.#options;
    if (consistency === 'file') {
      throw new ReplicationError(
        'NoConsistentCut',
        'spec.consistency "file" is for file volumes; use filesystem or crash',
      );
    }
    const ways: Way[] = [
      { name: 'freeze and reflink', consistency: 'filesystem', take: (s) => this.#freezeReflink(s) },
      { name: 'freeze and scan', consistency: 'filesystem', take: (s) => this.#freezeScan(s) },
      { name: 'reflink', consistency: 'crash', take: () => this.#reflink() },
      { name: 'quiet interval', consistency: 'crash', take: () => this.#quiet() },
    ];
    const refusals: string[] = [];
    for (const way of ways) {
      if (consistency !== null && way.consistency !== consistency) continue;
      this.#sizeBytes = (await this.#options.device.facts()).sizeBytes;
      this.#cutStamp = (await this.#options.device.stamp()).stamp;
      const cut = await way.take(signal);
      if (typeof cut !== 'string') return cut;
      refusals.push(`${way.name}: ${cut}`);
    }
    throw new ReplicationError('NoConsistentCut', refusals.join('; '));
  }

  async #freezeReflink(signal: AbortSignal): Promise<Cut | string> {
    const { device, maxFreezeMs } = this.#options;
    // A clone that is not possible shall not cost the workload a freeze to find out.
    const refusal = await this.#reflinkRefusal();
    if (refusal !== undefined) return refusal;
    const frozen = await device.freeze(maxFreezeMs, signal);
    if (typeof frozen === 'string') return frozen;
    const agentUs = this.#nowUs();
    const view = await device.reflink().catch((error: unknown) => String(error));
    const { held, freezeUs } = await frozen.thaw();
    if (typeof view === 'string') return view;
    if (!held) {
      await view.release();
      return `the freeze did not hold for the clone; maxFreezeMs is ${maxFreezeMs}`;
    }
    this.#sizeBytes = view.sizeBytes;
    return {
      consistency: 'filesystem',
      agentUs,
      freezeUs,
      pieces: (s) => this.#scan(view, view.sizeBytes, false, this.#pace, () => undefined, s),
      broken: async () => undefined,
      release: () => view.release(),
    };
  }

  async #freezeScan(signal: AbortSignal): Promise<Cut | string> {
    const { device, maxFreezeMs } = this.#options;
    if (!this.#known) return `the volume has more than ${Known.maxGranules} granules to scan while frozen`;
    if (this.#lastScanMs === undefined || this.#lastScanMs > maxFreezeMs * freezeScanRatio) {
      return `reading the volume takes ${Math.round(this.#lastScanMs ?? 0)} ms, more than maxFreezeMs ${maxFreezeMs} leaves; put the image on XFS or btrfs with reflink, or raise maxFreezeMs`;
    }
    const frozen = await device.freeze(maxFreezeMs, signal);
    if (typeof frozen === 'string') return frozen;
    return this.#readFrozen(frozen, signal);
  }

  async #readFrozen(frozen: Frozen, signal: AbortSignal): Promise<Cut> {
    const { device, maxFreezeMs, clock } = this.#options;
    const unlimited = new Pace(clock, 0);
    const deadlineMs = clock.monotonicMs() + maxFreezeMs;
    const agentUs = this.#nowUs();
    const spool: Piece[] = [];
    let spooled = 0;
    let refusal: string | undefined;
    try {
      this.#sizeBytes = (await device.facts()).sizeBytes;
      // Unlimited speed: while frozen, time is what matters.
      for await (const piece of this.#scan(device, this.#sizeBytes, false, unlimited, () => undefined, signal)) {
        spool.push(detached(piece));
        if (piece.kind === 'content') spooled += piece.bytes.length;
        if (spooled > spoolBytes) refusal = `more than ${spoolBytes} bytes changed since the last round`;
        if (clock.monotonicMs() > deadlineMs)
          refusal = `reading the volume took longer than maxFreezeMs ${maxFreezeMs}`;
        if (refusal !== undefined) break;
      }
    } catch (error) {
      await frozen.thaw();
      throw error;
    }
    const { held, freezeUs } = await frozen.thaw();
    if (!held) refusal ??= `the freeze did not hold; maxFreezeMs is ${maxFreezeMs}`;
    return {
      consistency: 'filesystem',
      agentUs,
      freezeUs,
      // What was read belongs to the replica either way: `known` counts on it.
      pieces: async function* () {
        yield* spool;
      },
      broken: async () => refusal,
      release: async () => undefined,
    };
  }

  async #reflink(): Promise<Cut | string> {
    const agentUs = this.#nowUs();
    const view = await this.#options.device.reflink();
    if (typeof view === 'string') return view;
    this.#sizeBytes = view.sizeBytes;
    return {
      consistency: 'crash',
      agentUs,
      freezeUs: 0,
      pieces: (signal) => this.#scan(view, view.sizeBytes, false, this.#pace, () => undefined, signal),
      broken: async () => undefined,
      release: () => view.release(),
    };
  }

  async #quiet(): Promise<Cut | string> {
    const { device } = this.#options;
    const { reason } = await device.stamp();
    const before = this.#cutStamp;
    if (before === undefined) return reason;
    const agentUs = this.#nowUs();
    return {
      consistency: 'crash',
      agentUs,
      freezeUs: 0,
      pieces: (signal) => this.#scan(device, this.#sizeBytes, false, this.#pace, () => undefined, signal),
      broken: async () => {
        const { stamp } = await device.stamp();
        return stamp === before ? undefined : 'quiet interval: the volume was written to while it was read';
      },
      release: async () => undefined,
    };
  }

  async unchangedUntil(): Promise<number | undefined> {
    if (this.#committedStamp === undefined) return undefined;
    const agentUs = this.#nowUs();
    const { stamp } = await this.#options.device.stamp();
    return stamp === this.#committedStamp ? agentUs : undefined;
  }

  dirtyBytes(): undefined {
    return undefined;
  }

  commitSizeBytes(): number {
    return this.#sizeBytes;
  }

  async prepare(): Promise<void> {
    // Nothing is kept at the source: what the replica holds is asked of the replica.
  }

  async committed(_sequence: number, point: boolean): Promise<void> {
    if (point) this.#committedStamp = this.#cutStamp;
  }

  async idle(): Promise<void> {
    await this.#options.device.rest();
  }

  async close(): Promise<void> {
    await this.#options.device.rest();
  }

  #nowUs(): number {
    return Math.floor(this.#options.clock.nowMs() * 1000);
  }
}

/** A piece that no longer needs its pool buffer. */
function detached(piece: Piece): Piece {
  if (piece.kind !== 'content') return piece;
  const bytes = Buffer.from(piece.bytes);
  piece.release();
  return { ...piece, bytes, release: () => undefined };
}
