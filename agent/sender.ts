/**
 * Send side of one Mirror call: pieces become offers and data, replies move the window, commits are awaited.
 *
 * Guarantees: at most windowBytes of content are sent and not yet taken by the replica, and maxOfferedBytes held for an answer; a
 * piece is released as soon as its bytes are copied, not wanted, or, of a piece that fills a message by itself and is not
 * copied, taken; `commit` goes out only after every piece before it (I1), and pieces about the same part reach the replica in their order.
 * Failure: the first fault of the call ends every wait with it; nothing is retried here, the loop opens a new session.
 */
import assert from 'node:assert/strict';
import { granuleBytes, hashBytes, zeroHash } from '../proto/granule.ts';
import { asReplicationError, ReplicationError } from '../proto/errors.ts';
import { Lock } from '../proto/lock.ts';
import { fastLineBytesPerSecond, packPayload, type CompressionChoice } from '../proto/payload.ts';
import type { Clock } from '../proto/effects.ts';
import { Line } from '../proto/line.ts';
import type { Pace } from '../proto/pace.ts';
import { bell, type Stream } from '../proto/stream.ts';
import {
  maxDataBytes,
  maxOfferGranules,
  type Commit,
  type GroupAnswer,
  type GroupAsk,
  type MirrorHello,
  type MirrorReply,
  type MirrorRequest,
  type MirrorWelcome,
  type Node,
  type Run,
} from '../proto/wire.ts';
import { isAmong, Pending } from './pending.ts';
import { nodeHashes, release, type ContentPiece, type NodesPiece, type Piece, type ZeroPiece } from './source.ts';

export type MirrorCall = Stream<MirrorRequest, MirrorReply>;

/** Sent and not yet taken. */
export const windowBytes = 32 << 20;
/** Read and held until the replica says whether it wants it: this much of the agent's buffers one replication may hold. */
const maxOfferedBytes = 8 << 20;
/** Lent to messages that are not yet taken: more than a fast line has under way, a part of what the agent has for all. */
const maxLentBytes = 16 << 20;
/** Runs of one message: many small files fill a message by number before they do by size. */
const maxRuns = 256;

/** Of a manifest being fetched: read from the call and not yet taken. */
const maxManifestNodes = 5000;

export interface SenderOptions {
  compression: CompressionChoice;
  pace: Pace;
  clock: Clock;
  signal: AbortSignal;
}

/** Content on its way into one Data message. */
interface Outbox {
  runs: Run[];
  hashes: Buffer[];
  bytes: Buffer[];
  length: number;
  /** Of the piece whose bytes are not copied: called when they are no longer needed. */
  release: (() => void) | undefined;
}

export class Sender {
  readonly welcome: MirrorWelcome;
  /** Payload bytes since the session began. */
  sentBytes = 0;
  /** Stretches of content and zeros since the session began. */
  sentRuns = 0;
  /** Nodes since the session began. */
  sentNodes = 0;
  /** Granules and nodes that the replica wanted although the source believed it had them. */
  mismatched = 0;
  /** Offered and not wanted. */
  sameBytes = 0;
  readonly #call: MirrorCall;
  readonly #options: SenderOptions;
  readonly #line: Line;
  #number: number;
  #received = 1;
  #committed: { sequence: number; digest: Buffer } | undefined;
  readonly #wants = new Map<number, Buffer>();
  /** Message number and bytes of what is sent and not yet received. */
  readonly #underWay: { number: number; bytes: number; release: (() => void) | undefined }[] = [];
  #underWayBytes = 0;
  #lentBytes = 0;
  readonly #offered: { number: number; piece: ContentPiece | NodesPiece; bytes: number }[] = [];
  #offeredBytes = 0;
  readonly #pending = new Pending();
  /** Answers the offers while the next pieces are read: what is held for them must not wait for more to be read. */
  #answering: Promise<void> | undefined;
  readonly #out = new Lock();
  #outbox: Outbox | undefined;
  #manifest: { nodes: Node[]; end: boolean } | undefined;
  #verify: { progress: (done: number, total: number) => void; ready: { badGranules: number } | undefined } | undefined;
  #failure: ReplicationError | undefined;
  readonly #bell = bell();
  /** Of the group, oldest first, but calls. */
  readonly #asks: GroupAsk[] = [];
  /** The group takes a cut, and this member has not yet said that it is ready. */
  called = false;
  /** When that comes to be. */
  onCall: () => void = () => undefined;

  private constructor(call: MirrorCall, welcome: MirrorWelcome, options: SenderOptions) {
    this.#call = call;
    this.welcome = welcome;
    this.#options = options;
    this.#line = new Line(options.clock);
    this.#number = 1;
    options.signal.addEventListener('abort', () => this.#fail(asReplicationError(options.signal.reason, 'Stopped')), {
      once: true,
    });
  }

  /** @throws what the master refuses the session with */
  static async open(call: MirrorCall, hello: MirrorHello, options: SenderOptions): Promise<Sender> {
    const welcome = await greet(call, hello).catch((error: unknown) => {
      call.cancel();
      throw error;
    });
    const sender = new Sender(call, welcome, options);
    void sender.#pump();
    return sender;
  }

  /** Everything the master says; the only reader of the call. */
  async #pump(): Promise<void> {
    try {
      for await (const reply of this.#call.receive) {
        this.#take(reply);
        this.#bell.ring();
        while ((this.#manifest?.nodes.length ?? 0) > maxManifestNodes && !this.#failure) await this.#bell.rung();
      }
      this.#fail(new ReplicationError('Disconnected', 'the master ended the call'));
    } catch (error) {
      this.#fail(asReplicationError(error, 'Disconnected'));
    }
  }

  #take(reply: MirrorReply): void {
    if (reply.received) {
      this.#received = reply.received.number;
      let taken = 0;
      while ((this.#underWay[0]?.number ?? Infinity) <= this.#received) {
        const oldest = this.#underWay.shift();
        taken += oldest?.bytes ?? 0;
        if (oldest) this.#returnLent(oldest);
      }
      this.#underWayBytes -= taken;
      this.#line.taken(taken, reply.received.workedUs / 1000);
    } else if (reply.want) {
      this.#wants.set(reply.want.number, reply.want.bitmap);
    } else if (reply.committed) {
      this.#committed = reply.committed;
    } else if (reply.nodes) {
      this.#manifest?.nodes.push(...reply.nodes.nodes);
    } else if (reply.manifestEnd) {
      if (this.#manifest) this.#manifest.end = true;
    } else if (reply.verifyProgress) {
      this.#verify?.progress(reply.verifyProgress.bytesDone, reply.verifyProgress.bytesTotal);
    } else if (reply.verifyReady) {
      if (this.#verify) this.#verify.ready = reply.verifyReady;
    } else if (reply.group?.step === 'call') {
      this.called = true;
      this.onCall();
    } else if (reply.group) {
      this.#asks.push(reply.group);
    }
  }

  #fail(error: ReplicationError): void {
    this.#failure ??= error;
    this.#giveBack();
    this.#bell.ring();
  }

  /**
   * At once when the call fails: the reading of the next piece may be waiting for just these buffers. Whatever of the dying call
   * is still sent from them has no longer the hashes that went with it.
   */
  #giveBack(): void {
    for (const { piece } of this.#offered.splice(0)) release(piece);
    this.#offeredBytes = 0;
    for (const sent of this.#underWay) this.#returnLent(sent);
  }

  #returnLent(sent: { bytes: number; release: (() => void) | undefined }): void {
    if (!sent.release) return;
    this.#lentBytes -= sent.bytes;
    sent.release();
    sent.release = undefined;
  }

  async #until(done: () => boolean): Promise<void> {
    while (!done()) {
      if (this.#failure) throw this.#failure;
      await this.#bell.rung();
    }
    if (this.#failure) throw this.#failure;
  }

  /**
   * Takes every piece; all are released when it returns or throws: what is read next, a frozen volume perhaps, waits for no
   * buffer that the line has. `between` runs after each piece, with nothing held.
   */
  async send(pieces: AsyncIterable<Piece>, between: () => Promise<void> = async () => undefined): Promise<void> {
    try {
      for await (const piece of pieces) {
        await this.#one(piece);
        await between();
      }
      await this.settle();
      await this.#until(() => this.#lentBytes === 0);
    } catch (error) {
      // What is still offered must not be answered from buffers that are given back here.
      this.#fail(asReplicationError(error));
      throw error;
    }
  }

  async #one(piece: Piece): Promise<void> {
    if (this.#failure) {
      release(piece);
      throw this.#failure;
    }
    await this.#inTurn(piece).catch((error: unknown) => {
      release(piece);
      throw error;
    });
    if (piece.kind === 'zeros') {
      if (piece.expectSame) await this.#countZeroMismatch(piece);
      const { object, first, count, tailBytes } = piece;
      await this.#out.run(() => this.#put({ object, first, count, zero: true, tailBytes }));
    } else if (piece.offer) {
      await this.#offer(piece);
    } else if (piece.kind === 'content') {
      await this.#out.run(() => this.#content(piece, () => true));
    } else {
      await this.#out.run(() => this.#nodes(piece.nodes));
    }
  }

  /** After all that is about the same part. The replica answers an offer by what it has, so that must be there. */
  async #inTurn(piece: Piece): Promise<void> {
    await this.#until(() => !this.#pending.meets(piece));
    const isOffer = piece.kind !== 'zeros' && piece.offer;
    if (isOffer && isAmong(this.#outbox?.runs ?? [], piece)) await this.#out.run(() => this.#flush());
  }

  async #offer(piece: ContentPiece | NodesPiece): Promise<void> {
    const bytes = piece.kind === 'content' ? piece.bytes.length : piece.nodes.length * 256;
    this.#pending.add(piece);
    this.#offered.push({ number: this.#number + 1, piece, bytes });
    this.#offeredBytes += bytes;
    const [first, hashes] = piece.kind === 'content' ? [piece.first, piece.hashes] : nodeHashes(piece);
    const sent = this.#message({ offer: { object: piece.kind === 'content' ? piece.object : 0, first, hashes } });
    this.#answering ??= this.#answerOffers();
    await sent;
    await this.#until(() => this.#offeredBytes <= maxOfferedBytes);
  }

  /** Runs beside the reading of pieces; its failure is the session's. */
  async #answerOffers(): Promise<void> {
    try {
      while (this.#offered.length > 0) await this.#answerOldest();
    } catch (error) {
      this.#fail(asReplicationError(error));
    } finally {
      this.#answering = undefined;
      this.#bell.ring();
    }
  }

  /** Sends what is wanted of the oldest offer. */
  async #answerOldest(): Promise<void> {
    const oldest = this.#offered[0];
    if (!oldest) return;
    await this.#until(() => this.#wants.has(oldest.number));
    const bitmap = this.#wants.get(oldest.number) ?? Buffer.alloc(0);
    this.#wants.delete(oldest.number);
    this.#offered.shift();
    this.#offeredBytes -= oldest.bytes;
    this.#bell.ring();
    const { piece } = oldest;
    const wanted = (index: number) => ((bitmap[index >> 3] ?? 0) & (1 << (index & 7))) !== 0;
    if (piece.kind === 'content') {
      const count = piece.hashes.length / hashBytes;
      let lacking = 0;
      for (let i = 0; i < count; i++) if (wanted(i)) lacking++;
      if (piece.expectSame) this.mismatched += lacking;
      this.sameBytes += Math.max(0, piece.bytes.length - lacking * granuleBytes);
      if (lacking > 0) await this.#out.run(() => this.#content(piece, wanted));
      else piece.release();
    } else {
      const lacking = piece.nodes.filter((_node, index) => wanted(index));
      if (piece.expectSame) this.mismatched += lacking.length;
      if (lacking.length > 0) await this.#out.run(() => this.#nodes(lacking));
    }
    this.#pending.delete(piece);
    this.#bell.ring();
  }

  /** The zeros that the replica should already have are asked for only to count what was wrong. */
  async #countZeroMismatch(piece: ZeroPiece): Promise<void> {
    for (let at = 0; at < piece.count; at += maxOfferGranules) {
      const count = Math.min(maxOfferGranules, piece.count - at);
      await this.#message({
        offer: { object: piece.object, first: piece.first + at, hashes: Buffer.alloc(count * hashBytes, zeroHash) },
      });
      const number = this.#number;
      await this.#until(() => this.#wants.has(number));
      const bitmap = this.#wants.get(number) ?? Buffer.alloc(0);
      this.#wants.delete(number);
      for (const byte of bitmap) for (let bits = byte; bits > 0; bits &= bits - 1) this.mismatched++;
    }
  }

  /** Sends what is wanted of it, and releases it. */
  async #content(piece: ContentPiece, wanted: (index: number) => boolean): Promise<void> {
    const count = piece.hashes.length / hashBytes;
    // A whole message by itself is not copied, and given back when it is taken: the replica answers one of this size at once.
    let borrowed = false;
    try {
      for (let i = 0; i < count;) {
        if (!wanted(i)) {
          i++;
          continue;
        }
        let end = i + 1;
        while (end < count && wanted(end)) end++;
        const from = i * granuleBytes;
        const to = Math.min(piece.bytes.length, end * granuleBytes);
        const tailBytes = to - from - (end - i - 1) * granuleBytes;
        borrowed = to - from === maxDataBytes && this.#mayLend;
        await this.#put(
          { object: piece.object, first: piece.first + i, count: end - i, zero: false, tailBytes },
          piece.hashes.subarray(i * hashBytes, end * hashBytes),
          piece.bytes.subarray(from, to),
          borrowed ? () => piece.release() : undefined,
        );
        i = end;
      }
    } finally {
      if (!borrowed) piece.release();
    }
  }

  /** A slow line would keep buffers from those that read. */
  get #mayLend(): boolean {
    const isFast = (this.#lineBytesPerSecond ?? Infinity) >= fastLineBytesPerSecond;
    return isFast && this.#lentBytes + maxDataBytes <= maxLentBytes;
  }

  /**
   * Into the message in the making, copied if it is not lent until `release`, which is then called whatever happens. Sends the
   * message first when it is full.
   */
  async #put(run: Run, hashes?: Buffer, bytes?: Buffer, release?: () => void): Promise<void> {
    const length = bytes?.length ?? 0;
    try {
      if (this.#outbox && (this.#outbox.length + length > maxDataBytes || this.#outbox.runs.length >= maxRuns))
        await this.#flush();
    } catch (error) {
      release?.();
      throw error;
    }
    this.#outbox ??= { runs: [], hashes: [], bytes: [], length: 0, release: undefined };
    this.#outbox.runs.push(run);
    this.sentRuns++;
    if (hashes) this.#outbox.hashes.push(Buffer.from(hashes));
    if (bytes) this.#outbox.bytes.push(release ? bytes : Buffer.from(bytes));
    this.#outbox.length += length;
    this.#outbox.release = release;
    if (this.#outbox.length === maxDataBytes) await this.#flush();
  }

  async #flush(): Promise<void> {
    const outbox = this.#outbox;
    if (!outbox) return;
    this.#outbox = undefined;
    let { release } = outbox;
    try {
      const raw = outbox.bytes.length === 1 && outbox.bytes[0] ? outbox.bytes[0] : Buffer.concat(outbox.bytes);
      const packed = await packPayload(raw, this.#options.compression, this.#lineBytesPerSecond);
      if (packed.payload !== raw) {
        release?.();
        release = undefined;
      }
      const bytes = packed.payload.length;
      await this.#options.pace.take(bytes, this.#options.signal);
      await this.#until(() => this.#underWayBytes + bytes <= windowBytes || this.#underWayBytes === 0);
      this.sentBytes += bytes;
      this.#underWay.push({ number: this.#number + 1, bytes, release });
      if (release) this.#lentBytes += bytes;
      release = undefined;
      this.#underWayBytes += bytes;
      this.#line.sent(bytes);
      await this.#message({
        data: { runs: outbox.runs, hashes: Buffer.concat(outbox.hashes), rawBytes: raw.length, ...packed },
      });
    } finally {
      release?.();
    }
  }

  /** What a limit leaves of it is what can be used of the line. */
  get #lineBytesPerSecond(): number | undefined {
    const { perSecond } = this.#options.pace;
    return perSecond === 0 ? this.#line.bytesPerSecond : perSecond;
  }

  /** Nodes follow the content they name. */
  async #nodes(nodes: Node[]): Promise<void> {
    await this.#flush();
    this.sentNodes += nodes.length;
    await this.#message({ nodes: { nodes } });
  }

  /** Every piece so far is sent. */
  async settle(): Promise<void> {
    await this.#until(() => this.#answering === undefined);
    await this.#out.run(() => this.#flush());
  }

  /** Goes out at once, after `settle`, one at a time; durable at the replica when it returns. What is sent meanwhile comes after it. */
  async commit(commit: Commit): Promise<Buffer> {
    assert(this.#outbox === undefined && this.#answering === undefined, 'every piece before it is sent');
    await this.#message({ commit });
    await this.#until(() => (this.#committed?.sequence ?? 0) >= commit.sequence);
    assert.equal(this.#committed?.sequence, commit.sequence);
    return this.#committed.digest;
  }

  /** The replica re-reads all it holds. Answers how many pieces were bad; the next offers bring them again. */
  async verify(progress: (done: number, total: number) => void): Promise<number> {
    await this.settle();
    const state = (this.#verify = { progress, ready: undefined as { badGranules: number } | undefined });
    await this.#message({ verify: {} });
    await this.#until(() => state.ready !== undefined);
    this.#verify = undefined;
    return state.ready?.badGranules ?? 0;
  }

  /** To the group, after every piece so far. */
  async answer(group: GroupAnswer): Promise<void> {
    await this.settle();
    if (group.step === 'ready') {
      this.called = false;
      this.#asks.length = 0;
    }
    await this.#message({ group });
  }

  /** What the group asks next; undefined when `late` comes first. */
  async asked(late?: Promise<unknown>): Promise<GroupAsk | undefined> {
    let isLate = false;
    void late
      ?.catch(() => undefined)
      .then(() => {
        isLate = true;
        this.#bell.ring();
      });
    await this.#until(() => this.#asks.length > 0 || isLate);
    return this.#asks.shift();
  }

  /** The replica's nodes (Filesystem). Only before the first piece. */
  async *manifest(): AsyncGenerator<Node> {
    const state = (this.#manifest = { nodes: [] as Node[], end: false });
    await this.#message({ manifest: {} });
    for (;;) {
      await this.#until(() => state.nodes.length > 0 || state.end);
      const nodes = state.nodes.splice(0);
      this.#bell.ring();
      if (nodes.length === 0) break;
      yield* nodes;
    }
    this.#manifest = undefined;
  }

  close(): void {
    this.#call.cancel();
  }

  async #message(kind: Omit<MirrorRequest, 'number'>): Promise<void> {
    if (this.#failure) throw this.#failure;
    await this.#call.send({ number: ++this.#number, ...kind });
  }
}

async function greet(call: MirrorCall, hello: MirrorHello): Promise<MirrorWelcome> {
  await call.send({ number: 1, hello });
  const first = await call.receive.next();
  const welcome = first.done === true ? undefined : first.value.welcome;
  if (!welcome) throw new ReplicationError('Disconnected', 'the master ended the call before its welcome');
  return welcome;
}
