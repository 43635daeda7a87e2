/**
 * A replica that a receiver keeps, as its master sees it: what it tells of itself is there at once, what is asked of it goes over
 * one Hold call, agents' Mirror calls are relayed message by message.
 *
 * Guarantees: `Committed` goes to the agent after the receiver has it durable (I1) and after this side knows of it, so that what
 * controllers see is never behind an acknowledgement. A line that breaks ends all that was under way; `lost` says why, and
 * the replica is opened anew, which asks the durable side where it stands.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '../../proto/effects.ts';
import { asReplicationError, errorCodes, messageOf, ReplicationError, type ErrorCode } from '../../proto/errors.ts';
import { untilFromWire, untilOnWire, type HoldDone, type HoldReply, type HoldRequest } from '../../proto/holdwire.ts';
import type { HeldPoint, HeldSnapshot, HoldState } from '../../proto/holdwire.ts';
import type { ReceiverClient } from '../../proto/rpc.ts';
import { bell, type Stream } from '../../proto/stream.ts';
import { protocolVersion, type MirrorHello } from '../../proto/wire.ts';
import type { HeldReplica } from '../held.ts';
import type { Copied, CopyOptions } from '../replica/copies.ts';
import type { Progress } from '../replica/base.ts';
import { noPins, type Pins, type Point } from '../replica/horizon.ts';
import { defaultLimits } from '../replica/limits.ts';
import type { Part } from '../replica/records.ts';
import type { MirrorStream, SessionEvents } from '../session.ts';
import type { OpenOptions } from '../storage.ts';
import { relay } from './relay.ts';

export interface Line {
  client: ReceiverClient;
  /** Which leader this master is. */
  term: number;
  clock: Clock;
  /** By which journals and locks end. */
  trusted: Clock;
  /** When the replica that it was dialled for is closed. */
  release?: () => void;
}

/** A receiver that does not answer the first word is not there. */
const answerMs = 15_000;
/** Steady clocks drift apart. */
const tickMs = 60_000;
const none = Buffer.alloc(0);

export type Ask = Omit<HoldRequest, 'id' | 'nowUs' | 'trustedUs'>;
type Tell = (step: string, done: number, total: number) => void;
interface Waiting {
  resolve: (done: Partial<HoldDone>) => void;
  reject: (error: ReplicationError) => void;
  progress: Tell | undefined;
}

/** A Hold call: questions and their answers. */
export class HoldCall {
  readonly #line: Line;
  readonly #stream: Stream<HoldRequest, HoldReply>;
  readonly #waiting = new Map<number, Waiting>();
  readonly #hear: (reply: HoldReply) => void;
  readonly #reading: Promise<void>;
  #ids = 0;
  /** Why it is over. */
  lost: ReplicationError | undefined;

  private constructor(line: Line, hear: (reply: HoldReply) => void, onLost: () => void) {
    this.#line = line;
    this.#stream = line.client.hold();
    this.#hear = hear;
    this.#reading = this.#read().catch((error: unknown) => {
      this.lost ??= asReplicationError(error, 'Disconnected');
      for (const { reject } of this.#waiting.values()) reject(this.lost);
      this.#waiting.clear();
      onLost();
    });
  }

  /** @throws Disconnected, NotAuthenticated, Fenced, VersionMismatch */
  static async begin(line: Line, hear: (reply: HoldReply) => void, onLost: () => void): Promise<HoldCall> {
    const call = new HoldCall(line, hear, onLost);
    const late = setTimeout(() => {
      call.lost = new ReplicationError('Disconnected', `it has not answered for ${answerMs / 1000} s`);
      call.#stream.cancel();
    }, answerMs);
    try {
      await call.ask({ hello: { protocol: protocolVersion, term: line.term } });
      return call;
    } catch (error) {
      call.#stream.cancel();
      throw error;
    } finally {
      clearTimeout(late);
    }
  }

  async #read(): Promise<void> {
    for await (const reply of this.#stream.receive) {
      const waiting = this.#waiting.get(reply.id);
      if (reply.progress) waiting?.progress?.(reply.progress.step, reply.progress.done, reply.progress.total);
      else if (reply.done || reply.failed) {
        this.#waiting.delete(reply.id);
        if (reply.done) waiting?.resolve(reply.done);
        else waiting?.reject(errorOf(reply.failed));
      } else this.#hear(reply);
    }
    throw new ReplicationError('Disconnected', 'the receiver has ended the call');
  }

  async ask(ask: Ask, signal?: AbortSignal, progress?: Tell): Promise<Partial<HoldDone>> {
    signal?.throwIfAborted();
    if (this.lost) throw this.lost;
    const id = ++this.#ids;
    const { promise, resolve, reject } = Promise.withResolvers<Partial<HoldDone>>();
    this.#waiting.set(id, { resolve, reject, progress });
    const cancel = (): void => this.#send({ cancel: { id } });
    signal?.addEventListener('abort', cancel, { once: true });
    this.#send(ask, id);
    try {
      return await promise;
    } finally {
      signal?.removeEventListener('abort', cancel);
    }
  }

  #send(ask: Ask, id = ++this.#ids): void {
    const { clock, trusted } = this.#line;
    const [nowUs, trustedUs] = [clock.nowMs(), trusted.nowMs()].map((ms) => Math.round(ms * 1000));
    // A line that breaks here is seen by who reads it.
    this.#stream.send({ id, nowUs: nowUs ?? 0, trustedUs: trustedUs ?? 0, ...ask }).catch(() => undefined);
  }

  /** Lets the receiver end it, and waits for that, or for the line to be given up. */
  async end(): Promise<void> {
    this.lost ??= new ReplicationError('Stopped', 'the replica was closed');
    this.#stream.end();
    await this.#reading;
  }
}

function errorOf(failed: HoldReply['failed']): ReplicationError {
  const { code = 'Internal', message = '' } = failed ?? {};
  return new ReplicationError(code in errorCodes ? (code as ErrorCode) : 'Internal', message);
}

export class RemoteReplica implements HeldReplica {
  readonly #line: Line;
  readonly #uid: string;
  readonly #hold = randomUUID();
  readonly #onChange: () => void;
  readonly #changed = bell();
  readonly #ticking: NodeJS.Timeout;
  #call: HoldCall | undefined;
  #state: Pick<HoldState, 'sequence' | 'damaged' | 'owes' | 'writtenBytes'> = {
    sequence: 0,
    damaged: false,
    owes: false,
    writtenBytes: 0,
  };
  #points: readonly Point[] = [];
  #drilled = new Map<number, number>();
  #snapshots = new Map<string, HeldSnapshot>();

  private constructor(line: Line, { uid, onChange }: OpenOptions) {
    this.#line = line;
    this.#uid = uid;
    this.#onChange = onChange;
    this.#ticking = setInterval(() => void this.#ask({ tick: {} }).catch(() => undefined), tickMs).unref();
  }

  /** @throws Disconnected, NotAuthenticated, Fenced, VersionMismatch, and what opening a replica throws */
  static async open(line: Line, options: OpenOptions): Promise<RemoteReplica> {
    const made = new RemoteReplica(line, options);
    const hear = (reply: HoldReply): void => {
      if (reply.doubt) options.onDoubt(reply.doubt.message);
      if (reply.state) made.#take(reply.state);
    };
    try {
      made.#call = await HoldCall.begin(line, hear, () => made.#tell());
      const { uid, name, mode: volumeMode } = options;
      await made.#ask({ open: { uid, name, volumeMode, hold: made.#hold } });
      return made;
    } catch (error) {
      await made.close();
      throw error;
    }
  }

  #take(state: HoldState): void {
    this.#state = state;
    this.#points = [...this.#points.slice(state.dropped), ...state.points.map((point) => this.#pointOf(point))];
    if (state.snapshotsTold) this.#snapshots = new Map(state.snapshots.map((snapshot) => [snapshot.name, snapshot]));
    this.#tell();
  }

  #pointOf({ drilledUs, ...point }: HeldPoint): Point {
    if (drilledUs > 0) this.#drilled.set(point.sequence, drilledUs);
    return point;
  }

  #tell(): void {
    this.#changed.ring();
    this.#onChange();
  }

  async #ask(ask: Ask, signal?: AbortSignal, progress?: Tell): Promise<Partial<HoldDone>> {
    if (!this.#call) throw new ReplicationError('Disconnected', 'the receiver is not dialled');
    return this.#call.ask(ask, signal, progress);
  }

  get lost(): string | undefined {
    const lost = this.#call?.lost;
    return lost && `its receiver: ${messageOf(lost)}`;
  }

  get damaged(): boolean {
    return this.#state.damaged;
  }

  get owes(): boolean {
    return this.#state.owes;
  }

  get writtenBytes(): number {
    return this.#state.writtenBytes;
  }

  get points(): readonly Point[] {
    return this.#points;
  }

  get newestPoint(): Point | undefined {
    return this.#points.at(-1);
  }

  drilledUs(sequence: number): number | undefined {
    return this.#drilled.get(sequence);
  }

  get snapshotNames(): string[] {
    return [...this.#snapshots.keys()];
  }

  snapshotPoint(name: string): Point | undefined {
    const point = this.#snapshots.get(name)?.point;
    return point ? this.#pointOf(point) : undefined;
  }

  snapshotBytes(name: string): number | undefined {
    return this.#snapshots.get(name)?.sizeBytes;
  }

  async fence(generation: string): Promise<void> {
    await this.#ask({ fence: { generation } });
  }

  async advance(
    journalSeconds: number,
    signal: AbortSignal,
    maxJournalBytes = defaultLimits.maxJournalBytes,
    pinned: Pins = noPins,
  ): Promise<{ short: boolean; withheld: number }> {
    const ask = { advance: { journalSeconds, maxJournalBytes, pinned: [...pinned()] } };
    const { short = false, withheld = 0 } = await this.#ask(ask, signal);
    return { short, withheld };
  }

  async pour({ sequence }: Point, sink: (part: Part) => Promise<void>, signal: AbortSignal): Promise<void> {
    const call = this.#line.client.read(signal);
    await call.send({ restore: { protocol: protocolVersion, uid: this.#uid, hold: this.#hold, sequence } });
    call.end();
    for await (const { data, nodes, commit } of call.receive) {
      if (data) await sink({ data });
      else if (nodes) await sink({ nodes });
      else if (commit) await sink({ commit: { digest: none, ...commit } });
      else throw new ReplicationError('BadMessage', 'MirrorRequest: no part of a point');
    }
  }

  async measure({ sequence }: Point): Promise<number> {
    const { sizeBytes = 0 } = await this.#ask({ measure: { sequence, us: 0 } });
    return sizeBytes;
  }

  async recover(point: Point, path: string, { verify, keepIndexAt, signal, progress }: CopyOptions): Promise<Copied> {
    const ask = { recover: { sequence: point.sequence, path, indexPath: keepIndexAt ?? '', verify } };
    const { verified = false, readBytes = 0, withheld = 0 } = await this.#ask(ask, signal, progress);
    return { verified, readBytes, withheld };
  }

  async snapshot(
    name: string,
    { sequence }: Point,
    signal: AbortSignal,
    progress: Progress,
    untilMs?: number,
  ): Promise<void> {
    const ask = { snapshot: { name, sequence, untilMs: untilMs === undefined ? 0 : untilOnWire(untilMs) } };
    await this.#ask(ask, signal, (_step, done, total) => progress(done, total));
  }

  async snapshotLock(name: string): Promise<number | undefined> {
    const { locked = [] } = await this.#ask({ locks: { uid: this.#uid } });
    const found = locked.find((one) => one.name === name);
    return found && untilFromWire(found.untilMs);
  }

  async lockSnapshot(name: string, untilMs: number): Promise<number> {
    const done = await this.#ask({ lock: { name, sequence: 0, untilMs: untilOnWire(untilMs) } });
    return untilFromWire(done.untilMs ?? 0);
  }

  async deleteSnapshot(name: string): Promise<void> {
    await this.#ask({ unsnapshot: { name, sequence: 0, untilMs: 0 } });
  }

  async noteDrill(sequence: number, us: number): Promise<void> {
    await this.#ask({ drilled: { sequence, us } });
    this.#drilled.set(sequence, us);
  }

  async serve(
    agent: string,
    hello: MirrorHello,
    stream: MirrorStream,
    clock: Clock,
    events: SessionEvents,
    signal: AbortSignal,
  ): Promise<void> {
    const relayed = { ...hello, replicationUid: this.#uid, writer: agent, hold: this.#hold };
    const known = (sequence: number): Promise<void> => this.#known(sequence);
    await relay({ hello: relayed, agent: stream, receiver: this.#line.client.mirror(signal), clock, events, known });
  }

  /** Resolves when the state is that of the commit, or a later one. */
  async #known(sequence: number): Promise<void> {
    while (this.#state.sequence < sequence) {
      const { lost } = this;
      if (lost !== undefined) throw new ReplicationError('Disconnected', lost);
      await this.#changed.rung();
    }
  }

  async close(): Promise<void> {
    clearInterval(this.#ticking);
    await this.#call?.end();
    this.#line.release?.();
  }
}
