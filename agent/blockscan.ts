/**
 * Reads the parts of a block volume that may have changed and hands out what differs from what is known of the replica.
 *
 * Several reads are under way at once, from a bounded pool of aligned buffers (O_DIRECT needs them); a buffer goes back
 * when the piece made from it is released. Holes are skipped without reading.
 */
import {
  granuleBytes,
  granuleCount,
  granuleHash,
  hashBytes,
  isZeroHash,
  unknownHash,
  zeroHash,
} from '../proto/granule.ts';
import { ReplicationError } from '../proto/errors.ts';
import type { Pace } from '../proto/pace.ts';
import type { Readable } from './device.ts';
import type { Piece, SourceCounters } from './source.ts';

export const chunkBytes = 1 << 20;
const chunkGranules = chunkBytes / granuleBytes;
/** How far one look for a hole goes. */
const mostGranules = 1 << 15;
/** Reads under way at once: of whole chunks 4 were measured best, scattered granules profit from more. */
const readDepth = 8;

/** What the replica is believed to hold, by granule: a hash, zeros, or `unknownHash`. Valid within one session. */
export class Known {
  #hashes: Buffer;
  /** Volumes beyond this are offered anew at each scan instead: 16 MiB of memory is enough for one replication. */
  static readonly maxGranules = 1 << 20;

  constructor(granules: number, blank: boolean) {
    this.#hashes = Buffer.alloc(granules * hashBytes, blank ? zeroHash : unknownHash);
  }

  /** New granules read as zeros at the replica too. */
  resize(granules: number): void {
    const bytes = granules * hashBytes;
    if (bytes === this.#hashes.length) return;
    const hashes = Buffer.alloc(bytes);
    this.#hashes.copy(hashes, 0, 0, Math.min(bytes, this.#hashes.length));
    this.#hashes = hashes;
  }

  get(granule: number): Buffer {
    return this.#hashes.subarray(granule * hashBytes, (granule + 1) * hashBytes);
  }

  set(granule: number, hash: Buffer): void {
    hash.copy(this.#hashes, granule * hashBytes);
  }

  /** Whether all of these are known to be zeros. */
  isZero(first: number, count: number): boolean {
    for (let i = first; i < first + count; i++) if (!isZeroHash(this.#hashes, i)) return false;
    return true;
  }

  setZero(first: number, count: number): void {
    this.#hashes.fill(0, first * hashBytes, (first + count) * hashBytes);
  }
}

/** Aligned buffers of chunkBytes. */
export interface Buffers {
  /** Waits, in turn, until one is free. @throws the signal's reason */
  take(signal: AbortSignal): Promise<Buffer>;
  give(buffer: Buffer): void;
}

interface Share {
  held: number;
  waiting: number;
}

interface Waiter {
  share: Share;
  given(buffer: Buffer): void;
}

/**
 * Shared fairly: of several that read at once none holds more than its part, so that one with a slow target or a rate limit
 * keeps only its own part. A single one may hold all. The pool itself is one share.
 */
export class BufferPool implements Buffers {
  readonly #free: Buffer[];
  readonly #total: number;
  readonly #waiting: Waiter[] = [];
  /** Those that hold or wait for any. */
  readonly #active = new Set<Share>();
  readonly #own: Buffers;

  constructor(buffers: Buffer[]) {
    this.#free = buffers;
    this.#total = buffers.length;
    this.#own = this.share();
  }

  take(signal: AbortSignal): Promise<Buffer> {
    return this.#own.take(signal);
  }

  give(buffer: Buffer): void {
    this.#own.give(buffer);
  }

  share(): Buffers {
    const share: Share = { held: 0, waiting: 0 };
    return {
      take: (signal) => this.#take(share, signal),
      give: (buffer) => {
        share.held--;
        this.#free.push(buffer);
        this.#settle(share);
      },
    };
  }

  async #take(share: Share, signal: AbortSignal): Promise<Buffer> {
    signal.throwIfAborted();
    return new Promise((resolve, reject) => {
      const one: Waiter = {
        share,
        given(buffer) {
          ended();
          resolve(buffer);
        },
      };
      const ended = (): void => {
        share.waiting--;
        signal.removeEventListener('abort', aborted);
      };
      const aborted = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(one), 1);
        ended();
        this.#settle(share);
        reject(signal.reason as Error);
      };
      share.waiting++;
      this.#waiting.push(one);
      signal.addEventListener('abort', aborted, { once: true });
      this.#settle(share);
    });
  }

  /** Whoever is below its part and holds least comes first. */
  #settle(changed: Share): void {
    if (changed.held + changed.waiting > 0) this.#active.add(changed);
    else this.#active.delete(changed);
    while (this.#free.length > 0) {
      const part = Math.max(1, Math.floor(this.#total / this.#active.size));
      let next: Waiter | undefined;
      for (const one of this.#waiting) {
        if (one.share.held < part && one.share.held < (next?.share.held ?? Infinity)) next = one;
      }
      const buffer = next && this.#free.pop();
      if (!next || !buffer) return;
      this.#waiting.splice(this.#waiting.indexOf(next), 1);
      next.share.held++;
      next.given(buffer);
    }
  }
}

/** What is to be read. A part is told before its read begins and when it was handed out. */
export interface Parts {
  /** The first run at or after `from`, at most `most` granules of it. */
  next(from: number, most: number): { first: number; end: number } | undefined;
  take(first: number, end: number): void;
  handed(first: number, end: number): void;
  /** Taken, and not to be read now. */
  leave(first: number, end: number): void;
  /** The reading ends; what was taken and not handed out was not read. */
  unread(): void;
}

/** Everything, once. */
export function wholeVolume(sizeBytes: number): Parts {
  const granules = granuleCount(sizeBytes);
  const nothing = (): void => undefined;
  return {
    next: (from, most) => (from < granules ? { first: from, end: Math.min(granules, from + most) } : undefined),
    take: nothing,
    handed: nothing,
    leave: nothing,
    unread: nothing,
  };
}

export interface ScanOptions {
  readable: Readable;
  sizeBytes: number;
  parts: Parts;
  /** undefined: nothing is believed but, with `blank`, that the replica is all zeros. */
  known: Known | undefined;
  blank: boolean;
  /** Offer everything, also what is believed to be the same. */
  whole: boolean;
  /** Ask the replica whether it lacks what is not known of it; false: it is known to have changed, and sent. */
  offer: boolean;
  pool: Buffers;
  pace: Pace;
  counters: SourceCounters;
  progress: (bytesDone: number) => void;
  signal: AbortSignal;
}

/** Pieces in ascending order. `known` moves on as they are handed out. */
export async function* scan(options: ScanOptions): AsyncGenerator<Piece> {
  const leaving = new AbortController();
  const chunks = chunksOf({ ...options, signal: AbortSignal.any([options.signal, leaving.signal]) });
  const ahead: Promise<Chunk | undefined>[] = [];
  const next = (): Promise<Chunk | undefined> => {
    const read = chunks.next();
    // It may fail while nobody waits for it yet; whoever comes to it hears of it.
    read.catch(() => undefined);
    return read;
  };
  try {
    for (let i = 0; i < readDepth; i++) ahead.push(next());
    for (;;) {
      const chunk = await ahead.shift();
      if (!chunk) return;
      ahead.push(next());
      yield* piecesOf(chunk, options);
      const first = chunk.position / granuleBytes;
      options.parts.handed(first, first + granuleCount(chunk.length));
      options.progress(chunk.position + chunk.length);
    }
  } finally {
    // Reads that are under way must end before their buffers are anyone else's; those that only wait for their turn need not.
    leaving.abort(new ReplicationError('Stopped', 'the scan was left'));
    for (const rest of ahead) {
      const chunk = await rest.catch(() => undefined);
      if (chunk?.buffer) options.pool.give(chunk.buffer);
    }
    options.parts.unread();
  }
}

interface Chunk {
  position: number;
  length: number;
  /** undefined: a hole. */
  buffer: Buffer | undefined;
}

/** Hands out chunk after chunk, each as a read already started: positions are taken in order, reads overlap. */
function chunksOf({ readable, sizeBytes, parts, pool, pace, counters, signal }: ScanOptions): {
  next(): Promise<Chunk | undefined>;
} {
  let at = 0;
  let turn: Promise<{ position: number; length: number; hole: boolean } | undefined> = Promise.resolve(undefined);

  const place = async (): Promise<{ position: number; length: number; hole: boolean } | undefined> => {
    signal.throwIfAborted();
    const run = parts.next(at, mostGranules);
    if (!run || run.first * granuleBytes >= sizeBytes) return undefined;
    const from = run.first * granuleBytes;
    const endOfHole = async (): Promise<number> => {
      const data = await readable.nextData(from);
      return data === undefined ? run.end : Math.min(run.end, Math.floor(data / granuleBytes));
    };
    let end = await endOfHole();
    const hole = end > run.first;
    if (!hole) end = Math.min(run.end, run.first + chunkGranules - (run.first % chunkGranules));
    parts.take(run.first, end);
    if (hole) {
      // Looked at once more now that they are taken: what was written into the hole before is not marked again.
      const still = Math.max(run.first, Math.min(end, await endOfHole()));
      parts.leave(still, end);
      if (still === run.first) return place();
      end = still;
    }
    at = end;
    return { position: from, length: Math.min(sizeBytes, end * granuleBytes) - from, hole };
  };

  return {
    async next() {
      const mine = turn.then(place);
      turn = mine.catch(() => undefined);
      const part = await mine;
      if (!part) return undefined;
      const { position, length } = part;
      if (part.hole) return { position, length, buffer: undefined };
      // Before a buffer is taken: those who read slowly on purpose must not keep what others need.
      await pace.take(length, signal);
      const buffer = await pool.take(signal);
      try {
        const got = await readable.read(buffer.subarray(0, length), position);
        // A volume that became shorter meanwhile reads as zeros here; its new size is seen before the next cut.
        if (got < length) buffer.fill(0, got, length);
        counters.readBytes += got;
        return { position, length, buffer };
      } catch (error) {
        pool.give(buffer);
        throw error;
      }
    },
  };
}

function* piecesOf(chunk: Chunk, options: ScanOptions): Generator<Piece> {
  const first = chunk.position / granuleBytes;
  const count = granuleCount(chunk.length);
  const { buffer } = chunk;
  if (!buffer) {
    yield* zeros(first, count, chunk.length - (count - 1) * granuleBytes, options);
    return;
  }
  const granules = Array.from({ length: count }, (_, i) => {
    const bytes = buffer.subarray(i * granuleBytes, Math.min(chunk.length, (i + 1) * granuleBytes));
    const hash = granuleHash(bytes);
    return { hash, length: bytes.length, zero: isZeroHash(hash), ...judge(first + i, hash, options) };
  });
  let held = 1;
  const release = () => {
    if (--held === 0) options.pool.give(buffer);
  };
  try {
    for (let i = 0; i < count;) {
      const kind = granules[i];
      if (!kind) return;
      let end = i + 1;
      while (end < count && alike(granules[end], kind)) end++;
      const run = granules.slice(i, end);
      if (kind.zero) {
        yield* zeros(first + i, end - i, run.at(-1)?.length ?? 0, options);
      } else if (kind.send) {
        run.forEach((granule, index) => options.known?.set(first + i + index, granule.hash));
        held++;
        const from = i * granuleBytes;
        yield {
          kind: 'content',
          object: 0,
          first: first + i,
          hashes: Buffer.concat(run.map((granule) => granule.hash)),
          bytes: buffer.subarray(from, from + run.reduce((sum, granule) => sum + granule.length, 0)),
          offer: kind.offer,
          expectSame: kind.expectSame,
          release,
        };
      } else {
        options.counters.skippedSameBytes += run.reduce((sum, granule) => sum + granule.length, 0);
      }
      i = end;
    }
  } finally {
    release();
  }
}

interface Judgement {
  send: boolean;
  offer: boolean;
  expectSame: boolean;
}

function judge(granule: number, hash: Buffer, { known, blank, whole, offer }: ScanOptions): Judgement {
  if (!known) return { send: true, offer: (whole || offer) && !blank, expectSame: false };
  const believed = known.get(granule);
  const same = believed.equals(hash);
  const sure = !believed.equals(unknownHash);
  return { send: whole || !same, offer: whole || (offer && !sure), expectSame: sure && same };
}

function alike(a: (Judgement & { zero: boolean }) | undefined, b: Judgement & { zero: boolean }): boolean {
  return (
    a !== undefined && a.zero === b.zero && a.send === b.send && a.offer === b.offer && a.expectSame === b.expectSame
  );
}

function* zeros(
  first: number,
  count: number,
  tailBytes: number,
  { known, blank, whole, counters }: ScanOptions,
): Generator<Piece> {
  counters.skippedZeroBytes += (count - 1) * granuleBytes + tailBytes;
  const same = known?.isZero(first, count) ?? false;
  if (known ? same && !whole : blank) return;
  known?.setZero(first, count);
  yield { kind: 'zeros', object: 0, first, count, tailBytes, expectSame: same };
}
