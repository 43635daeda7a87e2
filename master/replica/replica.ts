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
import { mkdir, readdir, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { asReplicationError, ReplicationError } from '../../proto/errors.ts';
import type { Effects } from '../../proto/effects.ts';
import { granuleCount } from '../../proto/granule.ts';
import { Lock } from '../../proto/lock.ts';
import { unpack } from '../../proto/payload.ts';
import type { Commit, Data, Node, Nodes } from '../../proto/wire.ts';
import type { VolumeMode } from '../../proto/wire.ts';
import { redo, type Base, type Progress } from './base.ts';
import type { CommitRecord } from './frame.ts';
import { baseTarget, pointAt, type Point } from './horizon.ts';
import { makeDurable, removeIndex } from './indexdatabase.ts';
import { openHead } from './open.ts';
import type { Journal } from './journal.ts';
import { contentName, inside, openBase, type Place } from './place.ts';
import { readNote, writeNote, type ReplicaNote } from './note.ts';
import { removeTreeBase } from './treebase.ts';
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
  readonly #place: Place;
  readonly #mode: VolumeMode;
  readonly #limits: ReplicaLimits;
  readonly #head: VolumeIndex;
  readonly #base: Base;
  readonly #journal: Journal;
  #note: ReplicaNote;
  #points: Point[];
  #session: ReplicaSession | undefined;
  /** Everything that writes journal and head. */
  readonly #writing = new Lock();
  /** Everything that reads or writes the base's bytes. */
  readonly #baseWork = new Lock();
  /** Everything that changes the note. */
  readonly #noting = new Lock();
  /** Durable in the journal, but the index could not follow (its disk is full): it does before anything else is written. */
  #behind: CommitRecord | undefined;
  /** Where the base is going, as note.applying, also before the first point. */
  #applying = 0;
  /** Bytes written to journal and base since it was opened. */
  writtenBytes = 0;
  /** What copies in the making still need: first the point that the base may not pass, then where their redo begins. */
  readonly #pins = new Set<{ sequence: number }>();
  #snapshots: Map<string, Base>;

  private constructor(
    effects: Effects,
    place: Place,
    mode: VolumeMode,
    limits: ReplicaLimits,
    opened: Awaited<ReturnType<typeof openHead>>,
    note: ReplicaNote,
  ) {
    this.#effects = effects;
    this.#place = place;
    this.#mode = mode;
    this.#limits = limits;
    ({
      head: this.#head,
      base: this.#base,
      journal: this.#journal,
      points: this.#points,
      snapshots: this.#snapshots,
    } = opened);
    this.#note = note;
    this.#dropPointsBelow(note.applying ?? 0);
  }

  /** Opens, or makes a blank one. `onDoubt` hears why an index was built anew. */
  static async open(options: {
    effects: Effects;
    place: Place;
    mode: VolumeMode;
    limits?: ReplicaLimits;
    onDoubt?: (why: string) => void;
  }): Promise<Replica> {
    const { effects, place, mode, limits = defaultLimits, onDoubt = () => undefined } = options;
    await effects.disk.mkdir(place.folder);
    await effects.disk.syncDirectory(dirname(place.folder));
    await mkdir(place.indexFolder, { recursive: true });
    await removeLeftovers(place.indexFolder);
    const note = await readNote(effects.disk, place.folder, mode);
    const opened = await openHead(effects.disk, place, mode, limits.segmentBytes, onDoubt);
    const replica = new Replica(effects, place, mode, limits, opened, note);
    try {
      await replica.#settleHalfApplied(onDoubt);
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
      initialized: this.#points.length > 0,
      blank: sequence === 0,
    };
  }

  /** A session is attached. */
  get hasWriter(): boolean {
    return this.#session !== undefined;
  }

  get generation(): string {
    return this.#note.generation;
  }

  /** Closing it and opening it again brings it to where it still is whole. */
  get damaged(): boolean {
    return this.#journal.damaged;
  }

  get journalBytes(): number {
    return this.#journal.bytes;
  }

  /** Those that can be recovered now, oldest first. */
  get points(): readonly Point[] {
    return this.#points;
  }

  get newestPoint(): Point | undefined {
    return this.#points.at(-1);
  }

  pointAt(sourceUs: number): Point | undefined {
    return pointAt(this.#points, sourceUs);
  }

  drilledUs(sequence: number): number | undefined {
    return this.#note.drilled[sequence];
  }

  async noteDrill(sequence: number, us: number): Promise<void> {
    const kept = Object.entries(this.#note.drilled).filter(([key]) =>
      this.#points.some((point) => point.sequence === Number(key)),
    );
    await this.#setNote({ drilled: { ...Object.fromEntries(kept), [sequence]: us } });
  }

  /** Durable when it returns, and unchanged when it throws. */
  async #setNote(change: Partial<ReplicaNote>): Promise<void> {
    await this.#noting.run(async () => {
      const note = { ...this.#note, ...change };
      await writeNote(this.#effects.disk, this.#place.folder, note);
      this.#note = note;
    });
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
      const present = BigInt(this.#note.generation);
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
      if (BigInt(writer.generation) > present) await this.#setNote({ generation: writer.generation });
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
      if (BigInt(generation) <= BigInt(this.#note.generation)) return;
      await this.#setNote({ generation });
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
      if ('data' in record) this.writtenBytes += record.data.payload.length;
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
    if (record.point) this.#points.push(record);
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

  /**
   * Applies what has left the journal's time to the base and drops it from the journal. Before the first point every
   * commit is applied at once. Call it after commits and now and then.
   */
  async advance(journalSeconds: number, signal: AbortSignal): Promise<{ short: boolean; withheld: number }> {
    return this.#baseWork.run(async () => {
      const nowUs = this.#effects.clock.nowMs() * 1000;
      const { sequence, short } = baseTarget({
        points: this.#points,
        nowUs,
        journalUs: journalSeconds * 1e6,
        journalBytes: this.#journal.bytes,
        maxJournalBytes: this.#limits.maxJournalBytes,
        pinned: [...this.#pins].map((pin) => pin.sequence).sort((a, b) => a - b)[0],
      });
      const target = sequence ?? this.#head.sequence;
      if (target > this.#base.index.sequence) await this.#beginApply(target);
      await this.#finishApply(signal);
      this.#dropPointsBelow(this.#base.index.sequence);
      const unneeded = Math.min(this.#base.index.sequence, ...[...this.#pins].map((pin) => pin.sequence));
      if (this.#journal.canTrim(unneeded)) {
        // The index says that the base has them; a power cut must not take that back once the journal has them no more.
        makeDurable(this.#base.index.database);
        await this.#journal.trim(unneeded);
      }
      return { short, withheld: this.#base.withheld ?? 0 };
    });
  }

  /** Only points are copied: before the first one there is nothing that a half-applied base could spoil. */
  async #beginApply(target: number): Promise<void> {
    if (this.#points.length > 0) await this.#setNote({ applying: target });
    this.#dropPointsBelow(target);
    this.#applying = target;
  }

  /** The base stands where it was going: bytes and index are of one commit. */
  async #finishApply(signal: AbortSignal): Promise<void> {
    const target = Math.max(this.#applying, this.#note.applying ?? 0);
    if (target <= this.#base.index.sequence) return;
    await redo(this.#base, this.#journal, target, signal, (bytes) => (this.writtenBytes += bytes));
  }

  /**
   * The base was on its way and the journal that would bring it there is lost: its bytes are read, and what is not as the
   * index says must come from the source again.
   */
  async #settleHalfApplied(onDoubt: (why: string) => void): Promise<void> {
    const { applying } = this.#note;
    if (applying === undefined || applying <= this.#head.sequence) return;
    const { bad } = await this.#base.verify(new AbortController().signal, () => undefined);
    for (const { object, granule } of bad) {
      this.#base.index.markUnknown(object, granule);
      this.#head.markUnknown(object, granule);
    }
    if (bad.length > 0) this.#points = [];
    else this.#points = this.#base.index.newest?.point === true ? [this.#base.index.newest] : [];
    onDoubt(
      `the base was read whole, as the journal was lost while it was applied: ${bad.length} pieces are fetched again`,
    );
    await this.#setNote({ applying: 0 });
  }

  #dropPointsBelow(sequence: number): void {
    this.#points = this.#points.filter((point) => point.sequence >= sequence);
  }

  /**
   * Makes a copy of the point at `contentPath` (see Base.cloneTo) from the newest base or snapshot before it.
   * With `verify` every byte of the copy is read again and compared. Nothing stays behind when it fails.
   * @throws PointGone, ReplicaDamaged, TargetRefused, TargetFull
   */
  async recover(
    point: Point,
    contentPath: string,
    options: {
      verify: boolean;
      keepIndexAt?: string;
      signal: AbortSignal;
      progress: (step: string, done: number, total: number) => void;
    },
  ): Promise<{ verified: boolean; readBytes: number; withheld: number }> {
    const { signal, progress } = options;
    const indexPath =
      options.keepIndexAt ?? `${this.#place.indexFolder}/copy-${this.#effects.random.bytes(8).toString('hex')}.db`;
    const pin = { sequence: point.sequence };
    this.#pins.add(pin);
    let copy: Base | undefined;
    try {
      copy = await this.#cloneBefore(point, contentPath, indexPath, signal, (done, total) =>
        progress('copying', done, total),
      );
      // From here on the copy needs the journal, not the base any more.
      pin.sequence = copy.index.sequence;
      const redoTotal = this.#journal.bytes;
      let redone = 0;
      await redo(copy, this.#journal, point.sequence, signal, (bytes) =>
        progress('applying the journal', (redone += bytes), redoTotal),
      );
      if (!copy.index.digest.equals(point.digest)) {
        throw new ReplicationError(
          'ReplicaDamaged',
          `point ${point.sequence} does not have its digest any more; choose another point and run verify`,
        );
      }
      await copy.sync();
      await this.#effects.disk.syncDirectory(dirname(contentPath));
      const read = options.verify
        ? await copy.verify(signal, (done, total) => progress('verifying', done, total))
        : undefined;
      if (read && read.bad.length > 0) {
        throw new ReplicationError(
          'ReplicaDamaged',
          `${read.bad.length} pieces of the copy are not as they were mirrored; choose another point and run verify`,
        );
      }
      return { verified: read !== undefined, readBytes: read?.readBytes ?? 0, withheld: copy.withheld ?? 0 };
    } catch (error) {
      // What is not our copy was there before.
      if (copy) {
        await copy.close();
        copy = undefined;
        await this.#removeContent(contentPath);
      }
      if (options.keepIndexAt !== undefined) await removeIndex(indexPath);
      throw asReplicationError(error, 'TargetFailed');
    } finally {
      this.#pins.delete(pin);
      await copy?.close();
      if (options.keepIndexAt === undefined) await removeIndex(indexPath);
    }
  }

  async #removeContent(contentPath: string): Promise<void> {
    if (this.#mode === 'Block') return this.#effects.disk.remove(contentPath);
    return removeTreeBase(contentPath);
  }

  async #cloneBefore(
    point: Point,
    contentPath: string,
    indexPath: string,
    signal: AbortSignal,
    progress: Progress,
  ): Promise<Base> {
    const fits = (base: Base) => {
      const journalBase = this.#journal.baseSequence ?? this.#head.sequence;
      const { sequence } = base.index;
      return sequence === point.sequence || (sequence < point.sequence && sequence >= journalBase);
    };
    // Work on the base goes on while we wait for our turn, so the choice is made when it is ours.
    return this.#baseWork.run(async () => {
      await this.#finishApply(signal);
      const from = [this.#base, ...this.#snapshots.values()]
        .filter(fits)
        .sort((a, b) => b.index.sequence - a.index.sequence)[0];
      if (!from)
        throw new ReplicationError('PointGone', `point ${point.sequence} is no longer kept; choose one that is listed`);
      return from.cloneTo(contentPath, indexPath, signal, progress);
    });
  }

  /** A named copy inside the replica that outlives the journal; whole or absent after a crash. */
  async snapshot(name: string, point: Point, signal: AbortSignal, progress: Progress): Promise<void> {
    const { disk } = this.#effects;
    const folder = inside(this.#place, 'snapshots');
    const unfinished = inside(folder, `.${name}`);
    const finished = inside(folder, name);
    await disk.remove(unfinished.folder);
    await disk.mkdir(unfinished.folder);
    await mkdir(unfinished.indexFolder, { recursive: true });
    await this.recover(point, `${unfinished.folder}/${contentName(this.#mode)}`, {
      verify: false,
      keepIndexAt: `${unfinished.indexFolder}/index.db`,
      signal,
      progress: (_step, done, total) => progress(done, total),
    });
    await disk.syncDirectory(unfinished.folder);
    await disk.rename(unfinished.folder, finished.folder);
    if (unfinished.indexFolder !== unfinished.folder) await rename(unfinished.indexFolder, finished.indexFolder);
    await disk.syncDirectory(folder.folder);
    this.#snapshots.set(name, await openBase(disk, finished, this.#mode));
  }

  /** The point that a snapshot holds; undefined when there is no such snapshot. */
  snapshotPoint(name: string): Point | undefined {
    return this.#snapshots.get(name)?.index.newest;
  }

  async deleteSnapshot(name: string): Promise<void> {
    await this.#baseWork.run(async () => {
      const base = this.#snapshots.get(name);
      this.#snapshots.delete(name);
      await base?.close();
      const { disk } = this.#effects;
      const all = inside(this.#place, 'snapshots');
      const { folder, indexFolder } = inside(all, name);
      const going = inside(all, `.${name}`).folder;
      // In one step, so that no crash leaves half of one under its name; what has no name goes at the next start.
      if ((await disk.list(all.folder)).includes(name)) await disk.rename(folder, going);
      await disk.syncDirectory(all.folder);
      await this.#removeContent(`${going}/${contentName(this.#mode)}`);
      await disk.remove(going);
      await rm(indexFolder, { recursive: true, force: true });
    });
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
    const through = this.#head.sequence;
    const pin = { sequence: this.#points[0]?.sequence ?? through };
    this.#pins.add(pin);
    try {
      const bad = new Map<string, { object: number; granule: number }>();
      const note = (object: number, granule: number) => bad.set(`${object}/${granule}`, { object, granule });
      const journalBytes = this.#journal.bytes;
      const { readBytes, from } = await this.#baseWork.run(async () => {
        await this.#finishApply(signal);
        const result = await this.#base.verify(signal, (done, total) => progress(done, total + journalBytes));
        result.bad.forEach(({ object, granule }) => note(object, granule));
        pin.sequence = this.#base.index.sequence;
        return { readBytes: result.readBytes, from: this.#base.index.sequence };
      });
      let journalRead = 0;
      for await (const record of this.#journal.read(from, through)) {
        signal.throwIfAborted();
        if ('commit' in record && this.#mode === 'Block') {
          // What a volume that shrank has lost is nobody's loss.
          const count = granuleCount(record.commit.sizeBytes);
          for (const [key, { granule }] of bad) if (granule >= count) bad.delete(key);
        }
        if (!('data' in record)) continue;
        journalRead += record.data.payload.length;
        // What was bad before and is good here is good from here on.
        const right = isRight(record.data);
        eachGranule(record.data, (object, granule, zero) => {
          if (right || zero) bad.delete(`${object}/${granule}`);
          else note(object, granule);
        });
        progress(readBytes + journalRead, readBytes + journalBytes);
      }
      await this.#writing.run(async () => {
        this.#mustWrite(session);
        for (const { object, granule } of bad.values()) this.#head.markUnknown(object, granule);
      });
      return { readBytes: readBytes + journalRead, badGranules: bad.size };
    } finally {
      this.#pins.delete(pin);
    }
  }

  async close(): Promise<void> {
    this.#session = undefined;
    await this.#writing.run(() =>
      this.#baseWork.run(async () => {
        await this.#journal.close();
        this.#head.close();
        await this.#base.close();
        for (const base of this.#snapshots.values()) await base.close();
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

function isRight(data: Data): boolean {
  try {
    unpack(data);
    return true;
  } catch {
    return false;
  }
}

function eachGranule(data: Data, visit: (object: number, granule: number, zero: boolean) => void): void {
  for (const run of data.runs) for (let i = 0; i < run.count; i++) visit(run.object, run.first + i, run.zero);
}

/** Indexes of copies that a crash cut off. */
async function removeLeftovers(indexFolder: string): Promise<void> {
  const names = (await readdir(indexFolder)).filter((name) => name.startsWith('copy-'));
  for (const name of names) await rm(`${indexFolder}/${name}`, { force: true });
}
