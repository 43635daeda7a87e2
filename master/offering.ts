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
import { maxDataBytes, protocolVersion, type MirrorReply, type MirrorRequest, type Run } from '../proto/wire.ts';

export type RestoreCall = Stream<MirrorRequest, MirrorReply>;

/** A point's content; granules of zeros are holes and are not read. */
export interface Content {
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
    await talk.message({ verify: {} });
    await talk.answer('verifyReady', ({ verifyProgress }) => {
      if (verifyProgress) options.progress('verifying', verifyProgress.bytesDone, verifyProgress.bytesTotal);
    });
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

const blankCommit = {
  ...{ point: true, sourceUs: 0, consistency: '', verified: true, mismatchedGranules: 0 },
  ...{ startedUs: 0, sentBytes: 0, groupCut: '' },
};

class Talk {
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
      if (!next.value.verifyProgress) throw new ReplicationError('BadMessage', `MirrorReply.${kind} was to come`);
      meanwhile(next.value);
    }
  }

  async greet(sizeBytes: number, { uid, generation }: Pick<OfferOptions, 'uid' | 'generation'>): Promise<void> {
    const hello = { replicationUid: uid, fencingGeneration: generation, volumeMode: 'Block', sizeBytes };
    await this.message({ hello: { protocol: protocolVersion, ...hello, sourceId: '', force: false } });
    await this.answer('welcome');
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
        await this.message({ offer: { object: 0, first, hashes } });
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
  async send(
    content: Content,
    first: number,
    bitmap: Buffer,
    { compression, pace, signal, progress }: OfferOptions,
  ): Promise<number> {
    let sentBytes = 0;
    let parts: { runs: Run[]; hashes: Buffer[]; bytes: Buffer[]; length: number } | undefined;
    const flush = async (): Promise<void> => {
      if (!parts) return;
      const raw = Buffer.concat(parts.bytes);
      const packed = await packPayload(raw, compression, pace.perSecond);
      await pace.take(packed.payload.length, signal);
      sentBytes += packed.payload.length;
      progress('comparing and sending', (parts.runs.at(-1)?.first ?? 0) * granuleBytes, content.sizeBytes);
      await this.message({
        data: { runs: parts.runs, hashes: Buffer.concat(parts.hashes), rawBytes: raw.length, ...packed },
      });
      parts = undefined;
    };
    for (const granule of bitsOf(bitmap, first)) {
      const length = granuleLength(granule, content.sizeBytes);
      if (length === 0) throw new ReplicationError('BadMessage', 'Want.bitmap: beyond the end of the volume');
      const hash = content.hashes(granule, 1);
      const zero = isZeroHash(hash);
      if (parts && !zero && parts.length + length > maxDataBytes) await flush();
      parts ??= { runs: [], hashes: [], bytes: [], length: 0 };
      const last = parts.runs.at(-1);
      if (last?.zero === zero && last.first + last.count === granule) Object.assign(last, { count: last.count + 1 });
      else parts.runs.push({ object: 0, first: granule, count: 1, zero, tailBytes: length });
      Object.assign(parts.runs.at(-1) ?? {}, { tailBytes: length });
      if (zero) continue;
      const bytes = Buffer.allocUnsafe(length);
      await content.read(bytes, granule * granuleBytes);
      parts.hashes.push(hash);
      parts.bytes.push(bytes);
      parts.length += length;
    }
    await flush();
    return sentBytes;
  }
}

function* bitsOf(bitmap: Buffer, first: number): Generator<number> {
  for (const [at, byte] of bitmap.entries())
    for (let bit = 0; bit < 8; bit++) if ((byte & (1 << bit)) !== 0) yield first + at * 8 + bit;
}

function codeOf(code: string): ErrorCode {
  return code in errorCodes ? (code as ErrorCode) : 'TargetFailed';
}
