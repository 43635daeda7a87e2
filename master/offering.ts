/**
 * Sending side of one Restore call: what a point holds is offered by its hashes, sent where the volume lacks it, and the volume
 * read again by its agent until it has the point's digest.
 *
 * Guarantees: answers only when the agent has said, after everything was durable there, that the volume holds the digest.
 * Two offers at most are under way; what is sent waits for the line (proto/rpc.ts), so memory is bounded.
 * Failure: the agent's refusal is thrown as it gave it; a broken line is Disconnected, and the next call begins anew.
 */
import { ReplicationError, errorCodes, type ErrorCode } from '../proto/errors.ts';
import { granuleBytes, granuleCount, granuleLength, hashBytes, isZeroHash } from '../proto/granule.ts';
import type { Pace } from '../proto/pace.ts';
import { packPayload, type CompressionChoice } from '../proto/payload.ts';
import type { Stream } from '../proto/stream.ts';
import {
  maxDataBytes,
  protocolVersion,
  type MirrorReply,
  type MirrorRequest,
  type MirrorWelcome,
  type Node,
  type Run,
  type VolumeMode,
} from '../proto/wire.ts';

export type RestoreCall = Stream<MirrorRequest, MirrorReply>;

/** A point's content; granules of zeros are holes and are not read. */
export interface Content {
  /** Of a tree: the slot of the file. */
  object?: number;
  sizeBytes: number;
  hashes(first: number, count: number): Buffer;
  read(buffer: Buffer, position: number): Promise<void>;
}

export interface OfferOptions {
  /** Of the restore. */
  uid: string;
  generation: string;
  compression: CompressionChoice;
  pace: Pace;
  signal: AbortSignal;
  progress: (step: string, done: number, total: number) => void;
}

/** 64 MiB of volume: an answer comes soon enough for progress, and costs nothing beside it. */
const offerGranules = 1024;
/** As agents have it: small files fill a message by number before they do by size. */
const maxRuns = 256;
/** A volume that is not right after so many rounds is written by somebody else. */
const rounds = 3;

/** Answers payload bytes that were sent. */
export async function sendPoint(
  call: RestoreCall,
  content: Content,
  point: { sequence: number; digest: Buffer },
  options: OfferOptions,
): Promise<number> {
  const talk = new Talk(call);
  await talk.greet(content.sizeBytes, options);
  let sentBytes = 0;
  for (let round = 0; round < rounds; round++) {
    for await (const { first, bitmap } of talk.offer(content, options))
      sentBytes += await talk.send(content, first, bitmap, options);
    await talk.verified(options.progress);
    await talk.message({ commit: { ...blankCommit, ...point, sizeBytes: content.sizeBytes } });
    const { digest } = await talk.answer('committed');
    if (digest.equals(point.digest)) {
      call.end();
      return sentBytes;
    }
  }
  throw new ReplicationError(
    'TargetFailed',
    `the volume is another one each time it is read: something else writes it; stop that`,
  );
}

export interface Difference {
  granules: number;
  bytes: number;
  /** The first ones, in bytes. */
  ranges: { offset: number; length: number }[];
}

/** What a volume has that the point has not; nothing is sent but hashes. */
export async function comparePoint(
  call: RestoreCall,
  content: Omit<Content, 'read'>,
  options: Pick<OfferOptions, 'uid' | 'generation' | 'signal' | 'progress'>,
  maxRanges: number,
): Promise<Difference> {
  const talk = new Talk(call);
  await talk.greet(content.sizeBytes, options);
  const found: Difference = { granules: 0, bytes: 0, ranges: [] };
  for await (const { first, bitmap } of talk.offer(content, options)) {
    for (const granule of bitsOf(bitmap, first)) {
      const length = granuleLength(granule, content.sizeBytes);
      const last = found.ranges.at(-1);
      found.granules++;
      found.bytes += length;
      if (last && last.offset + last.length === granule * granuleBytes) last.length += length;
      else if (found.ranges.length < maxRanges) found.ranges.push({ offset: granule * granuleBytes, length });
    }
  }
  call.end();
  return found;
}

export const blankCommit = {
  ...{ point: true, sourceUs: 0, consistency: '', verified: true, mismatchedGranules: 0 },
  ...{ startedUs: 0, sentBytes: 0, groupCut: '' },
};

export class Talk {
  readonly #call: RestoreCall;
  #number = 0;

  constructor(call: RestoreCall) {
    this.#call = call;
  }

  async message(kind: Omit<MirrorRequest, 'number'>): Promise<void> {
    await this.#call.send({ number: ++this.#number, ...kind });
  }

  /** The next reply of this kind. @throws what the agent refuses with */
  async answer<K extends keyof MirrorReply>(
    kind: K,
    meanwhile: (reply: MirrorReply) => void = () => undefined,
  ): Promise<NonNullable<MirrorReply[K]>> {
    for (;;) {
      const next = await this.#call.receive.next();
      if (next.done === true) throw new ReplicationError('Disconnected', 'the agent ended the call');
      const { refusal, [kind]: wanted } = next.value;
      if (refusal) throw new ReplicationError(codeOf(refusal.code), refusal.message);
      if (wanted !== undefined) return wanted;
      if (!next.value.verifyProgress && !(kind === 'manifestEnd' && next.value.nodes))
        throw new ReplicationError('BadMessage', `MirrorReply.${kind} was to come`);
      meanwhile(next.value);
    }
  }

  async greet(
    sizeBytes: number,
    { uid, generation }: Pick<OfferOptions, 'uid' | 'generation'>,
    volumeMode: VolumeMode = 'Block',
  ): Promise<MirrorWelcome> {
    const hello = { replicationUid: uid, fencingGeneration: generation, volumeMode, sizeBytes };
    await this.message({ hello: { protocol: protocolVersion, ...hello, sourceId: '', force: false } });
    return this.answer('welcome');
  }

  /** The agent has read all of it again. */
  async verified(progress: OfferOptions['progress']): Promise<void> {
    await this.message({ verify: {} });
    await this.answer('verifyReady', ({ verifyProgress }) => {
      if (verifyProgress) progress('verifying', verifyProgress.bytesDone, verifyProgress.bytesTotal);
    });
  }

  /** Of a tree: the slots of files whose content the folder lacks. */
  async lacking(progress: (done: number, total: number) => void): Promise<number[]> {
    const slots: number[] = [];
    await this.manifest((nodes) => void slots.push(...nodes.map(({ slot }) => slot)), progress);
    return slots;
  }

  /** Of a tree: the nodes that the agent answers with, message by message. */
  async manifest(take: (nodes: Node[]) => void, progress: (done: number, total: number) => void): Promise<void> {
    await this.message({ manifest: {} });
    await this.answer('manifestEnd', ({ nodes, verifyProgress }) => {
      if (nodes) take(nodes.nodes);
      if (verifyProgress) progress(verifyProgress.bytesDone, verifyProgress.bytesTotal);
    });
  }

  /** All of it; what is lacking, part by part. */
  async *offer(
    content: Omit<Content, 'read'>,
    { signal, progress }: Pick<OfferOptions, 'signal' | 'progress'>,
  ): AsyncGenerator<{ first: number; bitmap: Buffer }> {
    const count = granuleCount(content.sizeBytes);
    const open: { number: number; first: number }[] = [];
    for (let first = 0; first < count || open.length > 0;) {
      signal.throwIfAborted();
      while (first < count && open.length < 2) {
        const hashes = content.hashes(first, Math.min(offerGranules, count - first));
        open.push({ number: this.#number + 1, first });
        await this.message({ offer: { object: content.object ?? 0, first, hashes } });
        first += hashes.length / hashBytes;
      }
      const [oldest] = open.splice(0, 1);
      if (!oldest) return;
      const { number, bitmap } = await this.answer('want');
      if (number !== oldest.number) throw new ReplicationError('BadMessage', 'Want.number: answers no offer of ours');
      progress('comparing and sending', Math.min(content.sizeBytes, oldest.first * granuleBytes), content.sizeBytes);
      yield { first: oldest.first, bitmap };
    }
  }

  /** The granules whose bits are set. Answers payload bytes. */
  async send(content: Content, first: number, bitmap: Buffer, options: OfferOptions): Promise<number> {
    const outbox = new Outbox(this, options);
    for (const granule of bitsOf(bitmap, first)) {
      const last = await outbox.add(content, granule);
      options.progress('comparing and sending', last * granuleBytes, content.sizeBytes);
    }
    return outbox.flush();
  }
}

/** A file's granules share a message with those of others as long as they fit. */
export class Outbox {
  readonly #talk: Talk;
  readonly #options: OfferOptions;
  #runs: Run[] = [];
  #hashes: Buffer[] = [];
  #bytes: Buffer[] = [];
  #length = 0;
  #sentBytes = 0;

  constructor(talk: Talk, options: OfferOptions) {
    this.#talk = talk;
    this.#options = options;
  }

  /** Answers the granule. */
  async add(content: Content, granule: number): Promise<number> {
    const { sizeBytes, object = 0 } = content;
    const length = granuleLength(granule, sizeBytes);
    if (length === 0) throw new ReplicationError('BadMessage', 'Want.bitmap: beyond the end of the volume');
    const hash = content.hashes(granule, 1);
    const zero = isZeroHash(hash);
    if (!zero && this.#length + length > maxDataBytes) await this.flush();
    const last = this.#runs.at(-1);
    const isNext = last?.object === object && last.zero === zero && last.first + last.count === granule;
    if (isNext) Object.assign(last, { count: last.count + 1, tailBytes: length });
    else {
      if (this.#runs.length >= maxRuns) await this.flush();
      this.#runs.push({ object, first: granule, count: 1, zero, tailBytes: length });
    }
    if (zero) return granule;
    const bytes = Buffer.allocUnsafe(length);
    await content.read(bytes, granule * granuleBytes);
    this.#hashes.push(hash);
    this.#bytes.push(bytes);
    this.#length += length;
    return granule;
  }

  /** Answers payload bytes that were sent so far. */
  async flush(): Promise<number> {
    if (this.#runs.length === 0) return this.#sentBytes;
    const { compression, pace, signal } = this.#options;
    const raw = Buffer.concat(this.#bytes);
    const packed = await packPayload(raw, compression, pace.perSecond);
    await pace.take(packed.payload.length, signal);
    this.#sentBytes += packed.payload.length;
    const data = { runs: this.#runs, hashes: Buffer.concat(this.#hashes), rawBytes: raw.length, ...packed };
    await this.#talk.message({ data });
    [this.#runs, this.#hashes, this.#bytes, this.#length] = [[], [], [], 0];
    return this.#sentBytes;
  }
}

export function* bitsOf(bitmap: Buffer, first: number): Generator<number> {
  for (const [at, byte] of bitmap.entries())
    for (let bit = 0; bit < 8; bit++) if ((byte & (1 << bit)) !== 0) yield first + at * 8 + bit;
}

function codeOf(code: string): ErrorCode {
  return code in errorCodes ? (code as ErrorCode) : 'TargetFailed';
}
