/**
 * A replica whose files are closed while nobody needs them, so that thousands fit into a limit of open files and into memory.
 *
 * Guarantees: it is closed only when no call is under way and no epoch is open (`isIdle`), and what it tells meanwhile is
 * what it was when it was closed; it is opened again by the code that opens it after a start, so a rest is to it what a restart
 * is. A session stays through a rest: it has nothing uncommitted then, and goes on only if the replica is what it was.
 * Failure: one that does not open again says so to who needed it and is `lost`: its owner closes it and tries with pauses.
 * Which ones rest is said by OpenSet.
 */
import type { Commit, Data, Node, Nodes } from '../../proto/wire.ts';
import { messageOf, ReplicationError } from '../../proto/errors.ts';
import type { Permits } from '../../proto/lock.ts';
import type { HeldReplica } from '../held.ts';
import { serveSession } from '../session.ts';
import type { Progress } from './base.ts';
import type { Copied, CopyOptions } from './copies.ts';
import type { CommitRecord } from './frame.ts';
import { baseTarget, noPins, type Pins, type Point } from './horizon.ts';
import type { KeptSnapshot } from './open.ts';
import type { OpenSet } from './openset.ts';
import { defaultLimits } from './limits.ts';
import { Replica, type ReplicaOptions } from './replica.ts';
import type { ProveOptions, Proven } from './proof.ts';
import type { Part } from './records.ts';
import type { ReplicaHead, ReplicaSession, Writer } from './writer.ts';

/** What is known of a replica without its files. */
interface Facts {
  readonly head: ReplicaHead;
  readonly points: readonly Point[];
  readonly generation: string;
  readonly drilled: Readonly<Record<number, number>>;
  readonly snapshots: ReadonlyMap<string, KeptSnapshot>;
  readonly baseSequence: number;
  readonly journalBytes: number;
  readonly owes: boolean;
}

interface Attached {
  readonly session: ReplicaSession;
  readonly writer: Writer;
  /** The session of the replica as it is, or was, open. */
  inner: { replica: Replica; session: ReplicaSession };
}

export interface OnDemandOptions extends ReplicaOptions {
  openSet: OpenSet<OnDemandReplica>;
  /** So many of its storage are being opened at a time. */
  opening: Permits;
  /** Told of each opening but the first. */
  onOpened?: (replica: OnDemandReplica) => void;
}

export class OnDemandReplica implements HeldReplica {
  readonly #options: OnDemandOptions;
  #replica: Replica | undefined;
  #facts: Facts;
  #opening: Promise<Replica> | undefined;
  #closing: Promise<void> = Promise.resolve();
  #uses = 0;
  #attached: Attached | undefined;
  /** Bytes written before it was opened this time. */
  #writtenBefore = 0;
  #lost: string | undefined;
  #isEnded = false;
  #advanced = { short: false, withheld: 0 };

  private constructor(options: OnDemandOptions, replica: Replica) {
    this.#options = options;
    this.#replica = replica;
    this.#facts = factsOf(replica);
  }

  /** Opens, or makes a blank one. */
  static async open(options: OnDemandOptions): Promise<OnDemandReplica> {
    const made = new OnDemandReplica(options, await options.opening.run(() => Replica.open(options)));
    options.openSet.used(made);
    made.#makeRoom();
    return made;
  }

  get isOpen(): boolean {
    return this.#replica !== undefined;
  }

  /** Whether it may be closed now. */
  get isIdle(): boolean {
    return this.#uses === 0 && this.#replica?.isSettled === true && !this.#replica.damaged;
  }

  get damaged(): boolean {
    return this.#replica?.damaged === true;
  }

  get lost(): string | undefined {
    return this.#lost;
  }

  get #now(): Facts {
    return this.#replica ?? this.#facts;
  }

  get head(): ReplicaHead {
    return this.#now.head;
  }

  get generation(): string {
    return this.#now.generation;
  }

  /** Those that can be recovered now, oldest first. */
  get points(): readonly Point[] {
    return this.#now.points;
  }

  get newestPoint(): Point | undefined {
    return this.points.at(-1);
  }

  /** Of those that are whole. */
  get snapshotNames(): string[] {
    return [...this.#now.snapshots.keys()];
  }

  snapshotBytes(name: string): number | undefined {
    return this.#now.snapshots.get(name)?.sizeBytes;
  }

  snapshotPoint(name: string): Point | undefined {
    return this.#now.snapshots.get(name)?.point;
  }

  drilledUs(sequence: number): number | undefined {
    return this.#now.drilled[sequence];
  }

  get journalBytes(): number {
    return this.#now.journalBytes;
  }

  /** Whether the base has still to follow, now or when the journal's time has passed. */
  get owes(): boolean {
    return this.#now.owes;
  }

  /** Whether a session may write. One that a newer generation fenced off while all was closed is only told so later. */
  get hasWriter(): boolean {
    return this.#attached?.writer.generation === this.generation;
  }

  /** Bytes written to journal and base since the first opening. */
  get writtenBytes(): number {
    return this.#writtenBefore + (this.#replica?.writtenBytes ?? 0);
  }

  async serve(...call: Parameters<HeldReplica['serve']>): Promise<void> {
    await serveSession(this, ...call);
  }

  /** See Replica.attach. */
  async attach(writer: Writer): Promise<ReplicaSession> {
    return this.#use(async (replica) => {
      // Who wrote before its rest still does, so that a second writer is refused.
      const present = this.#attached;
      if (present) await this.#resume(present.session, replica).catch(() => (this.#attached = undefined));
      const session = await replica.attach(writer);
      this.#attached = { session, writer, inner: { replica, session } };
      return session;
    });
  }

  async detach(session: ReplicaSession): Promise<void> {
    const attached = this.#attached;
    if (attached?.session !== session) return;
    this.#attached = undefined;
    const { inner } = attached;
    // At rest nothing is open that could be forgotten.
    if (this.#replica === inner.replica) await this.#use((replica) => replica.detach(inner.session));
  }

  /** See Replica.fence. */
  async fence(generation: string): Promise<void> {
    if (BigInt(generation) <= BigInt(this.generation)) return;
    await this.#use((replica) => replica.fence(generation));
  }

  async want(session: ReplicaSession, object: number, first: number, hashes: Buffer): Promise<Buffer> {
    return this.#write(session, async (replica, inner) => replica.want(inner, object, first, hashes));
  }

  async data(session: ReplicaSession, data: Data): Promise<void> {
    await this.#write(session, (replica, inner) => replica.data(inner, data));
  }

  async nodes(session: ReplicaSession, nodes: Nodes): Promise<void> {
    await this.#write(session, (replica, inner) => replica.nodes(inner, nodes));
  }

  async commit(session: ReplicaSession, commit: Commit): Promise<CommitRecord> {
    return this.#write(session, (replica, inner) => replica.commit(inner, commit));
  }

  async scrub(
    session: ReplicaSession,
    signal: AbortSignal,
    progress: Progress,
  ): Promise<{ readBytes: number; badGranules: number }> {
    return this.#write(session, (replica, inner) => replica.scrub(inner, signal, progress));
  }

  /** All nodes of the newest commit (Filesystem). */
  async *manifest(session: ReplicaSession): AsyncGenerator<Node> {
    const release = this.#hold();
    try {
      const replica = await this.#opened();
      await this.#resume(session, replica);
      yield* replica.manifest();
    } finally {
      release();
    }
  }

  /** See Checkpoint.advance. One at rest is opened only when its base is to move. */
  async advance(
    journalSeconds: number,
    signal: AbortSignal,
    maxJournalBytes = (this.#options.limits ?? defaultLimits).maxJournalBytes,
    pinned: Pins = noPins,
  ): Promise<{ short: boolean; withheld: number }> {
    if (!this.#replica && !this.#moves(journalSeconds, maxJournalBytes, pinned)) return this.#advanced;
    return this.#use(async (replica) => {
      this.#advanced = await replica.advance(journalSeconds, signal, maxJournalBytes, pinned);
      return this.#advanced;
    });
  }

  #moves(journalSeconds: number, maxJournalBytes: number, pinned: Pins): boolean {
    const { points, head, journalBytes, baseSequence, owes } = this.#facts;
    if (!owes) return false;
    const { sequence, short } = baseTarget({
      points,
      nowUs: (this.#options.trusted ?? this.#options.effects.clock).nowMs() * 1000,
      journalUs: journalSeconds * 1e6,
      journalBytes,
      maxJournalBytes,
      pinned: points.find((point) => pinned().includes(point.sequence))?.sequence,
    });
    return (sequence ?? head.sequence) > baseSequence || short !== this.#advanced.short;
  }

  /** See Copies.pour. */
  async pour(point: Point, sink: (part: Part) => Promise<void>, signal: AbortSignal): Promise<void> {
    await this.#use((replica) => replica.pour(point, sink, signal));
  }

  /** See Copies.measure. */
  async measure(point: Point): Promise<number> {
    return this.#use((replica) => replica.measure(point));
  }

  /** See Copies.recover. */
  async recover(point: Point, contentPath: string, options: CopyOptions): Promise<Copied> {
    return this.#use((replica) => replica.recover(point, contentPath, options));
  }

  /** See Copies.prove. */
  async prove(point: Point, options: ProveOptions): Promise<Proven> {
    return this.#use((replica) => replica.prove(point, options));
  }

  /** See Copies.snapshot. */
  async snapshot(
    name: string,
    point: Point,
    signal: AbortSignal,
    progress: Progress,
    lockedUntilMs?: number,
  ): Promise<void> {
    await this.#use((replica) => replica.snapshot(name, point, signal, progress, lockedUntilMs));
  }

  async snapshotLock(name: string): Promise<number | undefined> {
    return this.#use((replica) => replica.snapshotLock(name));
  }

  /** See Copies.lock. */
  async lockSnapshot(name: string, untilMs: number): Promise<number> {
    return this.#use((replica) => replica.lockSnapshot(name, untilMs));
  }

  /** @throws SnapshotLocked */
  async deleteSnapshot(name: string): Promise<void> {
    await this.#use((replica) => replica.deleteSnapshot(name));
  }

  async noteDrill(sequence: number, us: number): Promise<void> {
    await this.#use((replica) => replica.noteDrill(sequence, us));
  }

  /** For good. */
  async close(): Promise<void> {
    this.#isEnded = true;
    this.#attached = undefined;
    await this.#opening?.catch(() => undefined);
    this.#rest();
    await this.#closing;
  }

  /** Closes the files. */
  #rest(): void {
    const replica = this.#replica;
    if (!replica) return;
    this.#options.openSet.closed(this);
    this.#facts = factsOf(replica);
    this.#writtenBefore += replica.writtenBytes;
    this.#replica = undefined;
    this.#closing = replica.close().catch((error: unknown) => {
      // What it could not write is in the journal; what it could not close is not trusted.
      this.#lost = `closing it failed: ${messageOf(error)}`;
    });
  }

  async #use<T>(work: (replica: Replica) => Promise<T>): Promise<T> {
    const release = this.#hold();
    try {
      return await work(await this.#opened());
    } finally {
      release();
    }
  }

  /** It stays open until this is given back. */
  #hold(): () => void {
    this.#uses++;
    return () => {
      this.#uses--;
      this.#makeRoom();
    };
  }

  #makeRoom(): void {
    for (const one of this.#options.openSet.surplus()) one.#rest();
  }

  async #opened(): Promise<Replica> {
    const replica = this.#replica ?? (await (this.#opening ??= this.#reopen()));
    if (this.#replica === replica) this.#options.openSet.used(this);
    return replica;
  }

  async #reopen(): Promise<Replica> {
    try {
      await this.#closing;
      if (this.#isEnded || this.#lost !== undefined)
        throw new ReplicationError(
          'TargetFailed',
          `the replica was closed${this.#lost === undefined ? '' : ` (${this.#lost})`}; try again`,
        );
      const replica = await this.#options.opening.run(() => Replica.open(this.#options));
      this.#replica = replica;
      this.#options.onOpened?.(this);
      return replica;
    } catch (error) {
      this.#lost ??= `opening it again failed: ${messageOf(error)}`;
      throw error;
    } finally {
      this.#opening = undefined;
    }
  }

  /** What fails ends the session, as what it had sent is forgotten then. */
  async #write<T>(session: ReplicaSession, work: (replica: Replica, inner: ReplicaSession) => Promise<T>): Promise<T> {
    return this.#use(async (replica) => {
      try {
        return await work(replica, await this.#resume(session, replica));
      } catch (error) {
        if (this.#attached?.session === session) this.#attached = undefined;
        throw error;
      }
    });
  }

  /** The session of the replica as it is open now: after a rest it is let in again. */
  async #resume(session: ReplicaSession, replica: Replica): Promise<ReplicaSession> {
    const attached = this.#attached;
    if (attached?.session !== session)
      throw new ReplicationError('Fenced', 'this session was replaced by a newer one or fenced off');
    if (attached.inner.replica !== replica) {
      const { sequence, unknown, digest } = this.#facts.head;
      const { head } = replica;
      if (head.sequence !== sequence || head.unknown !== unknown || !head.digest.equals(digest))
        throw new ReplicationError('ReplicaDamaged', 'the replica is not as it was before its rest; begin anew');
      // That its source is the right one was seen at the first time.
      attached.inner = { replica, session: await replica.attach({ ...attached.writer, force: true }) };
    }
    return attached.inner.session;
  }
}

function factsOf(replica: Replica): Facts {
  const { head, points, generation, drilled, snapshots, baseSequence, journalBytes, owes } = replica;
  return { head, points, generation, drilled, snapshots: new Map(snapshots), baseSequence, journalBytes, owes };
}
