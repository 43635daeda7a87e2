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
import { mkdir, readdir, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { asReplicationError, ReplicationError } from '../../proto/errors.ts';
import type { Clock, Effects } from '../../proto/effects.ts';
import { Lock } from '../../proto/lock.ts';
import { unpack } from '../../proto/payload.ts';
import type { Commit, Data, Node, Nodes } from '../../proto/wire.ts';
import type { VolumeMode } from '../../proto/wire.ts';
import type { Base, Progress } from './base.ts';
import { Checkpoint } from './checkpoint.ts';
import { Copies, type Copied, type CopyOptions } from './copies.ts';
import type { CommitRecord } from './frame.ts';
import { pointAt, type Point } from './horizon.ts';
import { openHead } from './open.ts';
import type { Journal } from './journal.ts';
import { readNote, type ReplicaNote } from './note.ts';
import type { Place } from './place.ts';
import { scrubReplica } from './scrub.ts';
import { Timeline } from './timeline.ts';
import type { VolumeIndex } from './volumeindex.ts';

export interface ReplicaLimits {
  /** The journal gives up its oldest points beyond this. */
  maxJournalBytes: number;
  /** Bytes since the last commit; a sender that goes on is refused. */
  maxEpochBytes: number;
  /** The journal is given back to the disk in pieces of about this. */
  segmentBytes: number;
}
export const defaultLimits: ReplicaLimits = {
  maxJournalBytes: 64 * 2 ** 30,
  maxEpochBytes: 512 << 20,
  segmentBytes: 64 << 20,
};

/** Of hashes in memory until the epoch closes: 128 MiB. A sender that means well commits long before. */
const maxStagedPages = 32768;

export interface ReplicaHead {
  sequence: number;
  initialized: boolean;
  sizeBytes: number;
  digest: Buffer;
  sourceId: string;
  blank: boolean;
  unknown: number;
}

export class Replica {
  readonly #effects: Effects;
  readonly #mode: VolumeMode;
  readonly #limits: ReplicaLimits;
  readonly #head: VolumeIndex;
  readonly #base: Base;
  readonly #journal: Journal;
  readonly #timeline: Timeline;
  readonly #checkpoint: Checkpoint;
  readonly #copies: Copies;
  #session: ReplicaSession | undefined;
  /** Everything that writes journal and head. */
  readonly #writing = new Lock();
  /** Durable in the journal, but the index could not follow (its disk is full): it does before anything else is written. */
  #behind: CommitRecord | undefined;
  /** Bytes written to the journal since it was opened. */
  #journaledBytes = 0;

  private constructor(
    effects: Effects,
    place: Place,
    mode: VolumeMode,
    limits: ReplicaLimits,
    opened: Awaited<ReturnType<typeof openHead>>,
    note: ReplicaNote,
    lockClock: Clock,
  ) {
    this.#effects = effects;
    this.#mode = mode;
    this.#limits = limits;
    ({ head: this.#head, base: this.#base, journal: this.#journal } = opened);
    this.#timeline = new Timeline(effects.disk, place.folder, note, opened.points);
    const parts = { ...opened, timeline: this.#timeline, lockClock };
    this.#checkpoint = new Checkpoint(lockClock, mode, parts);
    this.#copies = new Copies(effects, place, mode, { ...parts, checkpoint: this.#checkpoint });
  }

  /** Opens, or makes a blank one. `onDoubt` hears why an index was built anew. */
  static async open(options: {
    effects: Effects;
    place: Place;
    mode: VolumeMode;
    limits?: ReplicaLimits;
    onDoubt?: (why: string) => void;
    /** By which the journal's time passes and locks end; default the effects' clock. See trustedclock.ts. */
    trusted?: Clock;
  }): Promise<Replica> {
    const { effects, place, mode, limits = defaultLimits, onDoubt = () => undefined } = options;
    await effects.disk.mkdir(place.folder);
    await effects.disk.syncDirectory(dirname(place.folder));
    await mkdir(place.indexFolder, { recursive: true });
    await removeLeftovers(place.indexFolder);
    const note = await readNote(effects.disk, place.folder, mode);
    const opened = await openHead(effects.disk, place, mode, limits.segmentBytes, onDoubt);
    const replica = new Replica(effects, place, mode, limits, opened, note, options.trusted ?? effects.clock);
    try {
      await replica.#checkpoint.settleHalfApplied(onDoubt);
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

  /** A session is attached. */
  get hasWriter(): boolean {
    return this.#session !== undefined;
  }

  get generation(): string {
    return this.#timeline.note.generation;
  }

  /** Closing it and opening it again brings it to where it still is whole. */
  get damaged(): boolean {
    return this.#journal.damaged;
  }

  /** Bytes written to journal and base since it was opened. */
  get writtenBytes(): number {
    return this.#journaledBytes + this.#checkpoint.writtenBytes;
  }

  get journalBytes(): number {
    return this.#journal.bytes;
  }

  /** Those that can be recovered now, oldest first. */
  get points(): readonly Point[] {
    return this.#timeline.points;
  }

  get newestPoint(): Point | undefined {
    return this.#timeline.newest;
  }

  pointAt(sourceUs: number): Point | undefined {
    return pointAt(this.#timeline.points, sourceUs);
  }

  drilledUs(sequence: number): number | undefined {
    return this.#timeline.note.drilled[sequence];
  }

  async noteDrill(sequence: number, us: number): Promise<void> {
    await this.#timeline.noteDrill(sequence, us);
  }

  /**
   * Lets a writer in. The same writer coming again replaces its older session (its line broke); another one while the
   * first is there is a BackupCollision.
   * @throws Fenced, BackupCollision, SourceChanged, SourceShrunk
   */
  async attach(writer: {
    name: string;
    generation: string;
    sourceId: string;
    sizeBytes: number;
    force: boolean;
  }): Promise<ReplicaSession> {
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
      this.#checkSource(writer);
      if (BigInt(writer.generation) > present) await this.#timeline.setNote({ generation: writer.generation });
      // Whoever was there must not go on when half of what it sent is forgotten.
      this.#session = undefined;
      await this.#discard();
      this.#session = { writer: writer.name, generation: writer.generation, sourceId: writer.sourceId };
      return this.#session;
    });
  }

  #checkSource(writer: { sourceId: string; sizeBytes: number; force: boolean }): void {
    const { sequence, sourceId, sizeBytes } = this.#head;
    if (sequence === 0 || writer.force) return;
    if (sourceId !== writer.sourceId) {
      throw new ReplicationError(
        'SourceChanged',
        'the source is another volume than the one mirrored so far (formatted, replaced or mounted elsewhere). ' +
          'Bring the old one back, or run resync with force to mirror this one',
      );
    }
    if (this.#mode === 'Block' && writer.sizeBytes < sizeBytes) {
      throw new ReplicationError(
        'SourceShrunk',
        `the source has ${writer.sizeBytes} bytes, its replica ${sizeBytes}. Grow it again, or run resync with force to cut the replica`,
      );
    }
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
  }

  want(session: ReplicaSession, object: number, first: number, hashes: Buffer): Buffer {
    this.#mustWrite(session);
    return this.#head.want(object, first, hashes);
  }

  /** Checks and journals content. @throws HashMismatch, EpochTooLarge, TargetFull */
  async data(session: ReplicaSession, data: Data): Promise<void> {
    unpack(data);
    await this.#write(session, () => this.#head.stageData(data), { data });
  }

  async nodes(session: ReplicaSession, nodes: Nodes): Promise<void> {
    await this.#write(session, () => this.#head.stageNodes(nodes), { nodes });
  }

  async #write(session: ReplicaSession, stage: () => void, record: { data: Data } | { nodes: Nodes }): Promise<void> {
    await this.#writing.run(async () => {
      this.#mustWrite(session);
      if (this.#journal.openBytes > this.#limits.maxEpochBytes) {
        throw new ReplicationError('EpochTooLarge', `more than ${this.#limits.maxEpochBytes} bytes without a commit`);
      }
      if (this.#head.stagedPages > maxStagedPages) {
        throw new ReplicationError('EpochTooLarge', `more than ${maxStagedPages} scattered stretches without a commit`);
      }
      stage();
      await this.#guarded(() => this.#journal.append(this.#head.sequence + 1, record));
      if ('data' in record) this.#journaledBytes += record.data.payload.length;
    });
  }

  /** Closes the epoch: durable when it returns. @throws SequenceGap, ReplicaDamaged, ContentMismatch, TargetFull */
  async commit(session: ReplicaSession, commit: Commit): Promise<CommitRecord> {
    return this.#writing.run(async () => {
      this.#mustWrite(session);
      if (commit.sequence !== this.#head.sequence + 1) {
        throw new ReplicationError('SequenceGap', `commit ${commit.sequence} does not follow ${this.#head.sequence}`);
      }
      const unknown = this.#head.stagedUnknown(commit.sizeBytes);
      if (commit.point && unknown > 0) {
        throw new ReplicationError(
          'ReplicaDamaged',
          `${unknown} pieces of the replica are not known; they must be offered first`,
        );
      }
      const record: CommitRecord = {
        ...commit,
        digest: this.#head.stagedDigest(commit.sizeBytes),
        committedUs: Math.round(this.#effects.clock.nowMs() * 1000),
        sourceId: session.sourceId,
        generation: session.generation,
      };
      await this.#guarded(() => this.#journal.commit(record));
      this.#behind = record;
      this.#follow();
      return record;
    });
  }

  /** The index goes to the commit that the journal has got. Until it could, nobody writes: the next commit would follow the wrong one. */
  #follow(): void {
    const record = this.#behind;
    if (!record) return;
    try {
      this.#head.commit(record);
    } catch (error) {
      this.#session = undefined;
      throw asReplicationError(error, 'TargetFailed');
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
  manifest(): Iterable<Node> {
    return this.#head.manifest();
  }

  /** See Checkpoint.advance. Call it after commits and now and then. */
  async advance(
    journalSeconds: number,
    signal: AbortSignal,
    maxJournalBytes = this.#limits.maxJournalBytes,
  ): Promise<{ short: boolean; withheld: number }> {
    return this.#checkpoint.advance(journalSeconds, maxJournalBytes, signal);
  }

  /** See Copies.recover. */
  async recover(point: Point, contentPath: string, options: CopyOptions): Promise<Copied> {
    return this.#copies.recover(point, contentPath, options);
  }

  /** See Copies.snapshot. */
  async snapshot(
    name: string,
    point: Point,
    signal: AbortSignal,
    progress: Progress,
    lockedUntilMs?: number,
  ): Promise<void> {
    await this.#copies.snapshot(name, point, signal, progress, lockedUntilMs);
  }

  /** Size of the volume in it. */
  snapshotBytes(name: string): number | undefined {
    return this.#copies.snapshotBytes(name);
  }

  get snapshotNames(): string[] {
    return this.#copies.snapshotNames;
  }

  async snapshotLock(name: string): Promise<number | undefined> {
    return this.#copies.lockOf(name);
  }

  /** See Copies.lock. */
  async lockSnapshot(name: string, untilMs: number): Promise<number> {
    return this.#copies.lock(name, untilMs);
  }

  /** The point that a snapshot holds; undefined when there is no such snapshot. */
  snapshotPoint(name: string): Point | undefined {
    return this.#copies.snapshotPoint(name);
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
    const parts = { journal: this.#journal, timeline: this.#timeline, checkpoint: this.#checkpoint, mode: this.#mode };
    const { readBytes, bad } = await scrubReplica(parts, this.#head.sequence, signal, progress);
    await this.#writing.run(async () => {
      this.#mustWrite(session);
      for (const { object, granule } of bad) this.#head.markUnknown(object, granule);
    });
    return { readBytes, badGranules: bad.length };
  }

  async close(): Promise<void> {
    this.#session = undefined;
    await this.#writing.run(() =>
      this.#checkpoint.exclusively(async () => {
        await this.#journal.close();
        this.#head.close();
        await this.#base.close();
        await this.#copies.close();
      }),
    );
  }
}

/** Who writes, as long as it is the present one. */
export interface ReplicaSession {
  readonly writer: string;
  readonly generation: string;
  readonly sourceId: string;
}

/** Indexes of copies that a crash cut off. */
async function removeLeftovers(indexFolder: string): Promise<void> {
  const names = (await readdir(indexFolder)).filter((name) => name.startsWith('copy-'));
  for (const name of names) await rm(`${indexFolder}/${name}`, { force: true });
}
