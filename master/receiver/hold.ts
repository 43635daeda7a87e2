/**
 * One Hold call at the receiver: does what its master asks of the replica, and tells what has become of it.
 *
 * Guarantees: the state that an answer rests on has been told before the answer; what is asked ends with the call, and the
 * replica is closed then. Requests run beside each other, as the controllers of a master in one process call them.
 */
import assert from 'node:assert/strict';
import type { Clock } from '../../proto/effects.ts';
import { asReplicationError, ReplicationError } from '../../proto/errors.ts';
import {
  untilFromWire,
  untilOnWire,
  type HeldPoint,
  type HoldDone,
  type HoldReply,
  type HoldRequest,
  type HoldState,
} from '../../proto/holdwire.ts';
import type { Stream } from '../../proto/stream.ts';
import type { Point } from '../replica/horizon.ts';
import type { Replica } from '../replica/replica.ts';
import type { FolderDriver } from '../storage.ts';

export type HoldStream = Stream<HoldReply, HoldRequest>;

const maxUnderWay = 256;
const progressEveryMs = 500;
/** Of one message. */
const maxPoints = 1000;

export class Hold {
  /** Ends the call with its reason. */
  readonly ending = new AbortController();
  readonly term: number;
  readonly #stream: HoldStream;
  readonly #driver: FolderDriver;
  readonly #clock: Clock;
  readonly #underWay = new Map<number, AbortController>();
  readonly #running = new Set<Promise<void>>();
  #replica: Replica | undefined;
  #told: readonly Point[] = [];
  #toldSnapshots = '[]';

  constructor(stream: HoldStream, term: number, driver: FolderDriver, clock: Clock) {
    this.#stream = stream;
    this.term = term;
    this.#driver = driver;
    this.#clock = clock;
  }

  get replica(): Replica | undefined {
    return this.#replica;
  }

  set replica(replica: Replica) {
    this.#replica = replica;
  }

  /** For people. A line that breaks here is seen by who reads it. */
  doubt(message: string): void {
    this.#stream.send({ id: 0, doubt: { message } }).catch(() => undefined);
  }

  /** Begins what is asked; its answer goes out by itself. @throws BadMessage when too much is under way */
  begin(request: HoldRequest, work: (signal: AbortSignal) => Promise<Partial<HoldDone>>): void {
    if (this.#underWay.size >= maxUnderWay)
      throw new ReplicationError('BadMessage', `HoldRequest: more than ${maxUnderWay} are under way`);
    const { id } = request;
    const own = new AbortController();
    this.#underWay.set(id, own);
    const running = this.#answer(id, () => work(AbortSignal.any([own.signal, this.ending.signal])))
      .catch(() => undefined)
      .finally(() => {
        this.#underWay.delete(id);
        this.#running.delete(running);
      });
    this.#running.add(running);
  }

  async #answer(id: number, work: () => Promise<Partial<HoldDone>>): Promise<void> {
    let reply: HoldReply;
    try {
      reply = { id, done: await work() };
    } catch (error) {
      const { code, message } = asReplicationError(error, 'TargetFailed');
      reply = { id, failed: { code, message } };
    }
    this.tellState();
    await this.#stream.send(reply);
  }

  cancel(id: number): void {
    this.#underWay.get(id)?.abort(new ReplicationError('Stopped', 'the master has given it up'));
  }

  /** What has changed since the last time; goes out before whatever is sent after. */
  tellState(): void {
    if (!this.#replica) return;
    for (const state of this.#news(this.#replica)) this.#stream.send({ id: 0, state }).catch(() => undefined);
  }

  *#news(replica: Replica): Generator<HoldState> {
    const { points } = replica;
    const kept = this.#told.length === 0 ? -1 : this.#told.findIndex((point) => point === points[0]);
    const isFollowed = kept >= 0 && this.#told.slice(kept).every((point, index) => point === points[index]);
    let dropped = isFollowed ? kept : this.#told.length;
    let from = isFollowed ? this.#told.length - kept : 0;
    const snapshots = replica.snapshotNames.map((name) => {
      const point = replica.snapshotPoint(name);
      return { name, sizeBytes: replica.snapshotBytes(name) ?? 0, point: point && held(point, replica) };
    });
    const text = JSON.stringify(snapshots);
    this.#told = [...points];
    do {
      yield {
        sequence: replica.head.sequence,
        damaged: replica.damaged,
        owes: replica.owes,
        writtenBytes: replica.writtenBytes,
        dropped,
        points: points.slice(from, from + maxPoints).map((point) => held(point, replica)),
        snapshotsTold: text !== this.#toldSnapshots,
        snapshots: text === this.#toldSnapshots ? [] : snapshots,
      };
      this.#toldSnapshots = text;
      dropped = 0;
      from += maxPoints;
    } while (from < points.length);
  }

  /** The work behind a request that is about storage or the open replica. */
  async run(request: HoldRequest, signal: AbortSignal): Promise<Partial<HoldDone>> {
    const driver = this.#driver;
    if (request.list) return { uids: await driver.list() };
    if (request.locks) {
      const locks = await driver.locks(request.locks.uid);
      return { locked: [...locks].map(([name, ms]) => ({ name, sequence: 0, untilMs: untilOnWire(ms) })) };
    }
    if (request.usage) {
      const usage = await driver.usage(request.usage.uid);
      return { ...usage, known: usage !== undefined };
    }
    if (request.space) {
      const { capacityBytes = 0, freeBytes = 0 } = await driver.space();
      return { capacityBytes, freeBytes, reflink: (await driver.reflink()) === true };
    }
    if (!this.#replica) throw new ReplicationError('BadMessage', 'HoldRequest.open must come first');
    return this.#work(this.#replica, request, signal);
  }

  async #work(replica: Replica, request: HoldRequest, signal: AbortSignal): Promise<Partial<HoldDone>> {
    const { fence, advance, recover, snapshot, lock, unsnapshot, drilled, measure } = request;
    if (fence) await replica.fence(fence.generation);
    if (unsnapshot) await replica.deleteSnapshot(unsnapshot.name);
    if (drilled) await replica.noteDrill(drilled.sequence, drilled.us);
    if (lock) return { untilMs: untilOnWire(await replica.lockSnapshot(lock.name, untilFromWire(lock.untilMs))) };
    if (advance) return replica.advance(advance.journalSeconds, signal, advance.maxJournalBytes, () => advance.pinned);
    if (measure) return { sizeBytes: await replica.measure(pointOf(replica, measure.sequence)) };
    const tell = this.#progressOf(request.id);
    if (snapshot) {
      const { name, untilMs } = snapshot;
      const point = pointOf(replica, snapshot.sequence);
      const until = untilMs === 0 ? undefined : untilFromWire(untilMs);
      await replica.snapshot(name, point, signal, (done, total) => tell('copying', done, total), until);
    }
    if (recover) {
      const { path, indexPath, verify } = recover;
      const options = { verify, signal, progress: tell, ...(indexPath !== '' && { keepIndexAt: indexPath }) };
      return replica.recover(pointOf(replica, recover.sequence), path, options);
    }
    return {};
  }

  #progressOf(id: number): (step: string, done: number, total: number) => void {
    let last = { step: '', ms: -Infinity };
    return (step, done, total) => {
      const ms = this.#clock.monotonicMs();
      if (step === last.step && ms - last.ms < progressEveryMs) return;
      last = { step, ms };
      this.#stream.send({ id, progress: { step, done, total } }).catch(() => undefined);
    };
  }

  /** All that was asked has ended, and the replica is closed. */
  async close(): Promise<void> {
    assert(this.ending.signal.aborted, 'what it does must be ending');
    await Promise.all(this.#running);
    const replica = this.#replica;
    this.#replica = undefined;
    await replica?.close();
  }
}

function held(point: Point, replica: Replica): HeldPoint {
  const { sequence, sourceUs, committedUs, consistency, digest, groupCut } = point;
  const drilledUs = replica.drilledUs(sequence) ?? 0;
  return { sequence, sourceUs, committedUs, consistency, digest, groupCut, drilledUs };
}

/** @throws PointGone */
export function pointOf(replica: Replica, sequence: number): Point {
  const all = [...replica.points, ...replica.snapshotNames.map((name) => replica.snapshotPoint(name))];
  const found = all.find((point) => point?.sequence === sequence);
  if (!found) throw new ReplicationError('PointGone', `point ${sequence} is no longer kept; choose one that is listed`);
  return found;
}
