/**
 * One replica: journal, head and base, and the points between them. The receive side of `receive -> journal -> commit ->
 * ack -> apply`; session.ts drives it from the wire, the controllers take points, snapshots and copies from it.
 *
 * Guarantees
 *   - `commit` that returned is durable (I1); what a crash leaves is the newest such commit, whole (I2, I3).
 *   - One writer at a time, of the newest generation (I4); a session that was replaced writes nothing more.
 *   - Every byte is checked against its hash on arrival, when applied, and on a copy before that is called verified.
 *   - Doubt about the index (a crash, damage) is settled from base and journal when opening.
 * Failure: a full or failing disk ends the session with TargetFull or TargetFailed; the open epoch is dropped, nothing
 * committed is lost. Not here: when to snapshot and what to keep is the controllers' business.
 *
 * Layout of the place: replica.json, journal/, base/{image.raw | tree, index.db}, head.db, snapshots/<name>/ as base/.
 */
import assert from 'node:assert/strict';
import { dirname } from 'node:path';
import { asReplicationError, messageOf, ReplicationError } from '../../proto/errors.ts';
import type { Clock, Effects } from '../../proto/effects.ts';
import { Lock } from '../../proto/lock.ts';
import { unpack } from '../../proto/payload.ts';
import { isSqliteDamage } from '../../proto/sqlite.ts';
import type { Commit, Data, Node, Nodes, VolumeMode } from '../../proto/wire.ts';
import type { Base, Progress } from './base.ts';
import { Checkpoint } from './checkpoint.ts';
import { Copies, type Copied, type CopyOptions } from './copies.ts';
import type { CommitRecord, JournalRecord } from './frame.ts';
import { noPins, type Pins, type Point } from './horizon.ts';
import { makeDurable, removeIndex } from './indexdatabase.ts';
import { headPathOf, openHead, renew, type KeptSnapshot, type Opened } from './open.ts';
import type { Journal } from './journal.ts';
import { readNote, type ReplicaNote } from './note.ts';
import { defaultLimits, type ReplicaLimits } from './limits.ts';
import { Placing } from './placing.ts';
import { fullOr, named, type Place } from './place.ts';
import { scrubReplica } from './scrub.ts';
import { Timeline } from './timeline.ts';
import type { VolumeIndex } from './volumeindex.ts';
import { checkSource, type ReplicaHead, type ReplicaSession, type Writer } from './writer.ts';

export interface ReplicaOptions {
  effects: Effects;
  place: Place;
  mode: VolumeMode;
  limits?: ReplicaLimits;
  /** Hears why an index was built anew. */
  onDoubt?: (why: string) => void;
  /** By which the journal's time passes and locks end; default the effects' clock. See trustedclock.ts. */
  trusted?: Clock;
}

const none = Buffer.alloc(0);
/** 128 MiB of hashes until the epoch closes. A sender that means well commits long before. */
const maxStagedPages = 32768;

export class Replica {
  readonly #effects: Effects;
  readonly #mode: VolumeMode;
  readonly #limits: ReplicaLimits;
  readonly #head: VolumeIndex;
  readonly #base: Base;
  readonly #journal: Journal;
  readonly #timeline: Timeline;
  readonly #checkpoint: Checkpoint;
  readonly #placing: Placing;
  readonly #copies: Copies;
  #session: ReplicaSession | undefined;
  /** Everything that writes journal and head. */
  readonly #writing = new Lock();
  /** Durable in the journal, but the index could not follow (its disk is full): it does before anything else is written. */
  #behind: CommitRecord | undefined;
  /** Bytes written to the journal since it was opened. */
  #journaledBytes = 0;
  readonly #headPath: string;
  #headLost = false;

  private constructor(
    effects: Effects,
    place: Place,
    mode: VolumeMode,
    limits: ReplicaLimits,
    opened: Opened,
    note: ReplicaNote,
    lockClock: Clock,
  ) {
    this.#effects = effects;
    this.#mode = mode;
    this.#limits = limits;
    ({ head: this.#head, base: this.#base, journal: this.#journal } = opened);
    this.#timeline = new Timeline(effects.disk, place.folder, note, opened.points);
    this.#headPath = headPathOf(place);
    const parts = { ...opened, timeline: this.#timeline, lockClock };
    this.#checkpoint = new Checkpoint(lockClock, mode, parts);
    this.#placing = new Placing({ ...parts, checkpoint: this.#checkpoint });
    this.#copies = new Copies(effects, place, mode, { ...parts, checkpoint: this.#checkpoint });
  }

  /** Opens, or makes a blank one. */
  static async open(options: ReplicaOptions): Promise<Replica> {
    try {
      return await Replica.#open(options);
    } catch (error) {
      throw await fullOr(options.effects.disk, options.place, error);
    }
  }

  static async #open(options: ReplicaOptions): Promise<Replica> {
    const { effects, place, mode, limits = defaultLimits, onDoubt = () => undefined } = options;
    await effects.disk.mkdir(place.folder);
    await effects.disk.syncDirectory(dirname(place.folder));
    const { note, damage } = await readNote(effects.disk, place.folder, mode);
    const opened = await openHead(effects.disk, place, mode, limits.segmentBytes, onDoubt);
    if (damage !== undefined) renew(note, damage, opened, onDoubt);
    const replica = new Replica(effects, place, mode, limits, opened, note, options.trusted ?? effects.clock);
    try {
      if (damage !== undefined) await replica.#timeline.setNote({});
      await replica.#checkpoint.settleHalfApplied(onDoubt);
      await replica.#checkpoint.settlePlaced();
      return replica;
    } catch (error) {
      await replica.close();
      throw error;
    }
  }

  get head(): ReplicaHead {
    const { sequence, sizeBytes, digest, sourceId, unknown } = this.#head;
    return {
      sequence,
      sizeBytes,
      digest,
      sourceId,
      unknown,
      initialized: this.#timeline.points.length > 0,
      blank: sequence === 0,
    };
  }

  get generation(): string {
    return this.#timeline.note.generation;
  }

  /** Closing it and opening it again brings it to where it still is whole. */
  get damaged(): boolean {
    return this.#journal.damaged || this.#base.index.damaged || this.#isHeadLost;
  }

  /** The head's index is a cache: one that rotted goes when the replica is closed, and is made anew when it is opened. */
  get #isHeadLost(): boolean {
    return this.#headLost || this.#head.damaged;
  }

  /** What the head's index could not do, as it is to be told. */
  #ofHead(error: unknown): unknown {
    if (isSqliteDamage(error)) this.#headLost = true;
    if (!this.#isHeadLost) return error;
    const message = `${this.#headPath} is damaged and is made anew from base and journal: ${messageOf(error)}`;
    return new ReplicationError('ReplicaDamaged', message, { cause: error });
  }

  /** Bytes written to journal and base since it was opened. */
  get writtenBytes(): number {
    return this.#journaledBytes + this.#checkpoint.writtenBytes;
  }

  /** Whether the base has still to follow, now or when the journal's time has passed. */
  get owes(): boolean {
    return this.#checkpoint.owes;
  }

  /** Where the base stands. */
  get baseSequence(): number {
    return this.#base.index.sequence;
  }

  get journalBytes(): number {
    return this.#journal.bytes;
  }

  /** Nothing is open that closing would lose, or that makes opening costly: neither an epoch nor a first copy. */
  get isSettled(): boolean {
    return this.#journal.openBytes === 0 && this.#behind === undefined && this.#timeline.note.placing === undefined;
  }

  /** Those that can be recovered now, oldest first. */
  get points(): readonly Point[] {
    return this.#timeline.points;
  }

  get newestPoint(): Point | undefined {
    return this.#timeline.newest;
  }

  /** When points (sequences) were drilled, microseconds since the epoch. */
  get drilled(): Readonly<Record<number, number>> {
    return this.#timeline.note.drilled;
  }

  drilledUs(sequence: number): number | undefined {
    return this.drilled[sequence];
  }

  async noteDrill(sequence: number, us: number): Promise<void> {
    await this.#timeline.noteDrill(sequence, us);
  }

  /**
   * Lets a writer in. The same writer coming again replaces its older session (its line broke); another one while the
   * first is there is a BackupCollision.
   * @throws Fenced, BackupCollision, SourceChanged, SourceShrunk
   */
  async attach(writer: Writer): Promise<ReplicaSession> {
    return this.#writing.run(async () => {
      const present = BigInt(this.#timeline.note.generation);
      if (BigInt(writer.generation) < present) {
        throw new ReplicationError('Fenced', `generation ${writer.generation} may not write: ${present} does`);
      }
      if (this.#session && this.#session.writer !== writer.name && BigInt(writer.generation) === present) {
        throw new ReplicationError(
          'BackupCollision',
          `${this.#session.writer} already writes this replica; stop one of the two`,
        );
      }
      checkSource(this.#mode, this.#head, writer);
      if (BigInt(writer.generation) > present) await this.#timeline.setNote({ generation: writer.generation });
      // Whoever was there must not go on when half of what it sent is forgotten.
      this.#session = undefined;
      await this.#discard();
      this.#session = { writer: writer.name, generation: writer.generation, sourceId: writer.sourceId };
      return this.#session;
    });
  }

  /** Raises who may write: older sessions and older generations write nothing from now on. */
  async fence(generation: string): Promise<void> {
    await this.#writing.run(async () => {
      if (BigInt(generation) <= BigInt(this.#timeline.note.generation)) return;
      await this.#timeline.setNote({ generation });
      this.#session = undefined;
      await this.#discard();
    });
  }

  /** Ends the session if it is still the present one; what it had not committed is forgotten. */
  async detach(session: ReplicaSession): Promise<void> {
    await this.#writing.run(async () => {
      if (this.#session !== session) return;
      this.#session = undefined;
      await this.#discard();
    });
  }

  async #discard(): Promise<void> {
    this.#follow();
    this.#head.discard();
    await this.#journal.discard();
    await this.#placing.discard();
  }

  want(session: ReplicaSession, object: number, first: number, hashes: Buffer): Buffer {
    this.#mustWrite(session);
    try {
      return this.#head.want(object, first, hashes);
    } catch (error) {
      throw this.#ofHead(error);
    }
  }

  /** Checks and journals content. @throws HashMismatch, EpochTooLarge, TargetFull */
  async data(session: ReplicaSession, data: Data): Promise<void> {
    const raw = unpack(data);
    await this.#write(
      session,
      () => this.#head.stageData(data),
      async () => {
        if (await this.#placing.place(data, raw)) return { data: { ...data, payload: none }, placed: true };
        this.#journaledBytes += data.payload.length;
        return { data };
      },
    );
  }

  async nodes(session: ReplicaSession, nodes: Nodes): Promise<void> {
    await this.#write(
      session,
      () => this.#head.stageNodes(nodes),
      () => Promise.resolve({ nodes }),
    );
  }

  async #write(session: ReplicaSession, stage: () => void, record: () => Promise<JournalRecord>): Promise<void> {
    await this.#writing.run(async () => {
      this.#mustWrite(session);
      if (this.#journal.openBytes + this.#placing.bytes > this.#limits.maxEpochBytes) {
        throw new ReplicationError('EpochTooLarge', `more than ${this.#limits.maxEpochBytes} bytes without a commit`);
      }
      if (this.#head.stagedPages > maxStagedPages) {
        throw new ReplicationError('EpochTooLarge', `more than ${maxStagedPages} scattered stretches without a commit`);
      }
      try {
        stage();
      } catch (error) {
        throw this.#ofHead(error);
      }
      await this.#guarded(async () => this.#journal.append(this.#head.sequence + 1, await record()));
    });
  }

  /** Closes the epoch: durable when it returns. @throws SequenceGap, ReplicaDamaged, ContentMismatch, TargetFull */
  async commit(session: ReplicaSession, commit: Commit): Promise<CommitRecord> {
    return this.#writing.run(async () => {
      this.#mustWrite(session);
      if (commit.sequence !== this.#head.sequence + 1) {
        throw new ReplicationError('SequenceGap', `commit ${commit.sequence} does not follow ${this.#head.sequence}`);
      }
      const { unknown, digest } = this.#staged(commit.sizeBytes);
      if (commit.point && unknown > 0) {
        throw new ReplicationError(
          'ReplicaDamaged',
          `${unknown} pieces of the replica are not known; they must be offered first`,
        );
      }
      const record: CommitRecord = {
        ...commit,
        digest,
        committedUs: Math.round(this.#effects.clock.nowMs() * 1000),
        sourceId: session.sourceId,
        generation: session.generation,
      };
      await this.#guarded(async () => {
        await this.#placing.sync();
        await this.#journal.commit(record);
      });
      this.#behind = record;
      const placed = this.#placing.committed();
      this.#follow();
      await this.#endEpoch(placed, commit.point);
      return record;
    });
  }

  async #endEpoch(placed: boolean, point: boolean): Promise<void> {
    try {
      if (placed) await this.#checkpoint.follow();
      if (point) await this.#checkpoint.endPlacing();
    } catch (error) {
      this.#session = undefined;
      throw asReplicationError(error, 'TargetFailed');
    }
  }

  #staged(sizeBytes: number): { unknown: number; digest: Buffer } {
    try {
      return { unknown: this.#head.stagedUnknown(sizeBytes), digest: this.#head.stagedDigest(sizeBytes) };
    } catch (error) {
      throw this.#ofHead(error);
    }
  }

  /** The index goes to the commit that the journal has got. Until it could, nobody writes: the next commit would follow the wrong one. */
  #follow(): void {
    const record = this.#behind;
    if (!record) return;
    try {
      this.#head.commit(record);
    } catch (error) {
      this.#session = undefined;
      throw asReplicationError(this.#ofHead(error), 'TargetFailed');
    }
    this.#behind = undefined;
    assert(this.#head.digest.equals(record.digest), 'the index must end at the digest that was made durable');
    if (record.point) this.#timeline.add(record);
  }

  /** A failed write leaves the journal at its newest commit, as if the session had ended. */
  async #guarded(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      this.#session = undefined;
      this.#head.discard();
      await this.#journal.discard().catch(() => undefined);
      throw asReplicationError(error, 'TargetFailed');
    }
  }

  #mustWrite(session: ReplicaSession): void {
    if (this.#session !== session) {
      throw new ReplicationError('Fenced', 'this session was replaced by a newer one or fenced off');
    }
  }

  /** All nodes of the newest commit (Filesystem). */
  *manifest(): Iterable<Node> {
    try {
      yield* this.#head.manifest();
    } catch (error) {
      throw this.#ofHead(error);
    }
  }

  /** See Checkpoint.advance. Call it after commits and now and then. */
  async advance(
    journalSeconds: number,
    signal: AbortSignal,
    maxJournalBytes = this.#limits.maxJournalBytes,
    pinned: Pins = noPins,
  ): Promise<{ short: boolean; withheld: number }> {
    return this.#ofBase(() => this.#checkpoint.advance(journalSeconds, maxJournalBytes, signal, pinned));
  }

  async #ofBase<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      throw named(error, this.#base.indexPath);
    }
  }

  // Of these see Copies.

  async pour(...call: Parameters<Copies['pour']>): Promise<void> {
    await this.#ofBase(() => this.#copies.pour(...call));
  }

  async measure(point: Point): Promise<number> {
    return this.#copies.measure(point);
  }

  async recover(point: Point, contentPath: string, options: CopyOptions): Promise<Copied> {
    return this.#ofBase(() => this.#copies.recover(point, contentPath, options));
  }

  async prove(...call: Parameters<Copies['prove']>): ReturnType<Copies['prove']> {
    return this.#ofBase(() => this.#copies.prove(...call));
  }

  async snapshot(...call: Parameters<Copies['snapshot']>): Promise<void> {
    await this.#ofBase(() => this.#copies.snapshot(...call));
  }

  /** Those that are whole, by name. */
  get snapshots(): ReadonlyMap<string, KeptSnapshot> {
    return this.#copies.snapshots;
  }

  get snapshotNames(): string[] {
    return [...this.snapshots.keys()];
  }

  /** Size of the volume in it. */
  snapshotBytes(name: string): number | undefined {
    return this.snapshots.get(name)?.sizeBytes;
  }

  /** The point that a snapshot holds; undefined when there is no such snapshot. */
  snapshotPoint(name: string): Point | undefined {
    return this.snapshots.get(name)?.point;
  }

  async snapshotLock(name: string): Promise<number | undefined> {
    return this.#copies.lockOf(name);
  }

  /** See Copies.lock. */
  async lockSnapshot(name: string, untilMs: number): Promise<number> {
    return this.#copies.lock(name, untilMs);
  }

  /** @throws SnapshotLocked */
  async deleteSnapshot(name: string): Promise<void> {
    await this.#copies.deleteSnapshot(name);
  }

  /**
   * Scrub: re-reads base and journal against their hashes. What is wrong becomes unknown in the head, so that the next
   * offers ask for it again.
   */
  async scrub(
    session: ReplicaSession,
    signal: AbortSignal,
    progress: Progress,
  ): Promise<{ readBytes: number; badGranules: number }> {
    const parts = {
      head: this.#head,
      journal: this.#journal,
      timeline: this.#timeline,
      checkpoint: this.#checkpoint,
      mode: this.#mode,
    };
    const { readBytes, bad } = await this.#ofBase(() => scrubReplica(parts, signal, progress));
    return this.#writing.run(async () => {
      this.#mustWrite(session);
      try {
        bad.push(...this.#head.unsound());
        for (const { object, granule } of bad) this.#head.markUnknown(object, granule);
        // The digests of what is committed next are over that: no power cut may take it back alone.
        if (bad.length > 0) makeDurable(this.#head.database);
      } catch (error) {
        throw this.#ofHead(error);
      }
      return { readBytes, badGranules: bad.length };
    });
  }

  async close(): Promise<void> {
    this.#session = undefined;
    await this.#writing.run(() =>
      this.#checkpoint.exclusively(async () => {
        await this.#journal.close();
        this.#head.close();
        await this.#base.close();
        if (this.#isHeadLost) await removeIndex(this.#headPath);
      }),
    );
  }
}
