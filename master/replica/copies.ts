/**
 * Copies of a replica's points: those handed out by recoveries, and its own snapshots.
 *
 * Guarantees: a copy is handed out only with the digest that its point was committed with; a snapshot is whole under its
 * name or not there; nothing stays behind of a copy that failed, and nothing that was there before is touched.
 */
import { mkdir, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Clock, Effects } from '../../proto/effects.ts';
import { asReplicationError, ReplicationError } from '../../proto/errors.ts';
import { Lock } from '../../proto/lock.ts';
import type { VolumeMode } from '../../proto/wire.ts';
import { redo, redoNewest, type Base, type Progress } from './base.ts';
import type { Checkpoint } from './checkpoint.ts';
import type { Point } from './horizon.ts';
import { removeIndex } from './indexdatabase.ts';
import type { Journal } from './journal.ts';
import { readSnapshot, type KeptSnapshot } from './open.ts';
import { contentName, inside, named, openBase, type Place } from './place.ts';
import { provePoint, type ProveOptions, type Proven } from './proof.ts';
import { readLock, removeFolder, unlock, writeLock } from './snapshotlock.ts';
import type { JournalRecord } from './frame.ts';
import type { Part } from './records.ts';
import type { Timeline } from './timeline.ts';
import { removeTreeBase } from './treebase.ts';
import { TreeIndex } from './treeindex.ts';
import type { VolumeIndex } from './volumeindex.ts';

const none = Buffer.alloc(0);
const never = new AbortController().signal;
/** A block that is not full, an inode, a name. */
const nodeBytes = 4096;

export interface CopyOptions {
  /** Reads every byte of the copy again and compares it. */
  verify: boolean;
  /** The copy's index stays there; absent: it is removed at the end. */
  keepIndexAt?: string;
  signal: AbortSignal;
  progress: (step: string, done: number, total: number) => void;
}

export interface Copied {
  verified: boolean;
  readBytes: number;
  withheld: number;
}

export class Copies {
  readonly #effects: Effects;
  readonly #place: Place;
  readonly #mode: VolumeMode;
  readonly #head: VolumeIndex;
  readonly #journal: Journal;
  readonly #timeline: Timeline;
  readonly #checkpoint: Checkpoint;
  readonly #snapshots: Map<string, KeptSnapshot>;
  /** Locking and removing snapshots. */
  readonly #noting = new Lock();
  /** By which locks end. */
  readonly #lockClock: Clock;

  constructor(
    effects: Effects,
    place: Place,
    mode: VolumeMode,
    parts: {
      head: VolumeIndex;
      journal: Journal;
      timeline: Timeline;
      checkpoint: Checkpoint;
      snapshots: Map<string, KeptSnapshot>;
      lockClock: Clock;
    },
  ) {
    this.#effects = effects;
    this.#place = place;
    this.#mode = mode;
    this.#head = parts.head;
    this.#journal = parts.journal;
    this.#timeline = parts.timeline;
    this.#checkpoint = parts.checkpoint;
    this.#snapshots = parts.snapshots;
    this.#lockClock = parts.lockClock;
  }

  /**
   * Makes a copy of the point at `contentPath` (see Base.cloneTo) from the newest base or snapshot before it.
   * @throws PointGone, ReplicaDamaged, TargetRefused, TargetFull
   */
  async recover(point: Point, contentPath: string, options: CopyOptions): Promise<Copied> {
    const { signal, progress } = options;
    const indexPath =
      options.keepIndexAt ?? `${this.#place.indexFolder}/copy-${this.#effects.random.bytes(8).toString('hex')}.db`;
    const pin = this.#timeline.pin(point.sequence);
    let copy: Base | undefined;
    let from = '';
    try {
      ({ copy, from } = await this.#cloneBefore(point, contentPath, indexPath, signal, (done, total) =>
        progress('copying', done, total),
      ));
      // From here on the copy needs the journal, not the base any more.
      pin.sequence = copy.index.sequence;
      const redoTotal = this.#journal.bytes;
      let redone = 0;
      await (this.#mode === 'Block' ? redoNewest : redo)(copy, this.#journal, point.sequence, signal, (bytes) =>
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
          `${read.bad.length} pieces of the copy are not as they were mirrored (${read.bad
            .slice(0, 5)
            .map((piece) => copy?.nameOf(piece))
            .join(', ')}); choose another point and run verify`,
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
      // Its index is a copy of that one, with all damage.
      throw asReplicationError(from === '' ? error : named(error, from), 'TargetFailed');
    } finally {
      this.#timeline.unpin(pin);
      await copy?.close();
      if (options.keepIndexAt === undefined) await removeIndex(indexPath);
    }
  }

  /** Reads whole what a copy of the point was taken from. See proof.ts. @throws PointGone, ReplicaDamaged */
  async prove(point: Point, options: ProveOptions): Promise<Proven> {
    const parts = {
      ...{ clock: this.#effects.clock, mode: this.#mode, journal: this.#journal, timeline: this.#timeline },
      before: <T>(work: (from: Base) => Promise<T>) => this.#before(point, options.signal, work),
    };
    return provePoint(parts, point, options);
  }

  async #removeContent(contentPath: string): Promise<void> {
    if (this.#mode === 'Block') return this.#effects.disk.remove(contentPath);
    return removeTreeBase(contentPath);
  }

  /**
   * All that makes the point from nothing, one part after the other: the newest base or snapshot before it, then the journal up
   * to it. The base stays where it is until it has been told. @throws PointGone, ReplicaDamaged, and what `sink` throws
   */
  async pour(point: Point, sink: (part: Part) => Promise<void>, signal: AbortSignal): Promise<void> {
    const pin = this.#timeline.pin(point.sequence);
    const tell = async (record: JournalRecord): Promise<void> => {
      signal.throwIfAborted();
      if (!('commit' in record)) return sink(record);
      const { sequence, digest } = record.commit;
      const isWhole = record.commit.point && sequence === point.sequence;
      await sink({ commit: { ...record.commit, digest: isWhole ? digest : none } });
    };
    try {
      // Content that is ahead of its node cannot be told.
      if (this.#mode === 'Filesystem') await this.#checkpoint.reachPoint(signal);
      const reached = await this.#before(point, signal, async (from) => {
        for await (const record of from.records(signal)) await tell(record);
        return from.index.sequence;
      });
      pin.sequence = reached;
      for await (const record of this.#journal.read(reached, point.sequence)) await tell(record);
    } catch (error) {
      throw asReplicationError(error, 'TargetFailed');
    } finally {
      this.#timeline.unpin(pin);
    }
  }

  /** What a volume of its own needs to hold the point; of a tree an estimate, as blocks and names take room too. */
  async measure(point: Point): Promise<number> {
    const sizeOf = (index: VolumeIndex): number =>
      index instanceof TreeIndex ? index.contentBytes + index.sizeBytes * nodeBytes : index.sizeBytes;
    let largest = sizeOf(this.#head);
    for (const [name, kept] of this.#snapshots) {
      if (kept.point?.sequence !== point.sequence) continue;
      const base = await this.#openSnapshot(name);
      largest = Math.max(largest, sizeOf(base.index));
      await base.close();
    }
    // What was removed since then is in the base.
    return this.#checkpoint.hold(never, (base) => Promise.resolve(Math.max(largest, sizeOf(base.index))));
  }

  async #cloneBefore(
    point: Point,
    contentPath: string,
    indexPath: string,
    signal: AbortSignal,
    progress: Progress,
  ): Promise<{ copy: Base; from: string }> {
    return this.#before(point, signal, async (from) => {
      const copy = await from.cloneTo(contentPath, indexPath, signal, progress);
      return { copy, from: from.indexPath };
    });
  }

  /** Runs `work` on the newest base or snapshot from which the journal leads to the point. */
  async #before<T>(point: Point, signal: AbortSignal, work: (from: Base) => Promise<T>): Promise<T> {
    // Work on the base goes on while we wait for our turn, so the choice is made when it is ours.
    return this.#checkpoint.hold(signal, async (base) => {
      const nearest = this.#nearest(point, base);
      if (!nearest)
        throw new ReplicationError('PointGone', `point ${point.sequence} is no longer kept; choose one that is listed`);
      const { name } = nearest;
      const from = name === undefined ? base : await this.#openSnapshot(name);
      try {
        return await work(from);
      } catch (error) {
        throw named(error, from.indexPath);
      } finally {
        if (from !== base) await from.close();
      }
    });
  }

  /**
   * `name` undefined: the base. A number alone says nothing: after damage to the journal commits that were lost with it have their
   * numbers again, and a snapshot of one of them is of another history than the points of now.
   */
  #nearest(point: Point, base: Base): { name: string | undefined } | undefined {
    const { newest, sequence } = base.index;
    const blank = { sequence, digest: Buffer.alloc(0) };
    const all = [
      { name: undefined, at: (newest ?? blank) as Pick<Point, 'sequence' | 'digest'> },
      ...[...this.#snapshots].flatMap(([name, { point: at }]) => (at ? [{ name, at }] : [])),
    ];
    const itself = all.find(({ at }) => isSame(at, point));
    if (itself) return itself;
    const isOfNow = (at: Pick<Point, 'sequence' | 'digest'>): boolean =>
      this.#timeline.points.some((one) => isSame(one, at));
    if (!isOfNow(point)) return undefined;
    const journalBase = this.#journal.baseSequence ?? this.#head.sequence;
    return all
      .filter(
        ({ name, at }) =>
          at.sequence < point.sequence && at.sequence >= journalBase && (name === undefined || isOfNow(at)),
      )
      .sort((a, b) => b.at.sequence - a.at.sequence)[0];
  }

  async #openSnapshot(name: string): Promise<Base> {
    const place = inside(inside(this.#place, 'snapshots'), name);
    return openBase(this.#effects.disk, place, this.#mode, 'read');
  }

  /**
   * A named copy inside the replica that outlives the journal; whole or absent after a crash, and locked from the
   * moment that it is there when `lockedUntilMs` is given.
   */
  async snapshot(
    name: string,
    point: Point,
    signal: AbortSignal,
    progress: Progress,
    lockedUntilMs?: number,
  ): Promise<void> {
    const { disk } = this.#effects;
    const folder = inside(this.#place, 'snapshots');
    const unfinished = inside(folder, `.${name}`);
    const finished = inside(folder, name);
    await removeFolder(disk, unfinished.folder);
    await disk.mkdir(unfinished.folder);
    await mkdir(unfinished.indexFolder, { recursive: true });
    await this.recover(point, `${unfinished.folder}/${contentName(this.#mode)}`, {
      verify: false,
      keepIndexAt: `${unfinished.indexFolder}/index.db`,
      signal,
      progress: (_step, done, total) => progress(done, total),
    });
    if (lockedUntilMs !== undefined) await writeLock(disk, unfinished.folder, lockedUntilMs);
    await disk.syncDirectory(unfinished.folder);
    await disk.rename(unfinished.folder, finished.folder);
    if (unfinished.indexFolder !== unfinished.folder) await rename(unfinished.indexFolder, finished.indexFolder);
    await disk.syncDirectory(folder.folder);
    this.#snapshots.set(name, await readSnapshot(disk, finished, this.#mode));
  }

  /** Those that are whole, by name. */
  get snapshots(): ReadonlyMap<string, KeptSnapshot> {
    return this.#snapshots;
  }

  /** Until when it is locked on storage, milliseconds since the epoch. */
  async lockOf(name: string): Promise<number | undefined> {
    return readLock(this.#effects.disk, this.#folderOf(name));
  }

  /** Locks it until then, or longer where it is already; answers until when. @throws PointGone when there is no such snapshot */
  async lock(name: string, untilMs: number): Promise<number> {
    return this.#noting.run(async () => {
      if (!this.#snapshots.has(name))
        throw new ReplicationError('PointGone', `there is no snapshot ${name} on storage`);
      return writeLock(this.#effects.disk, this.#folderOf(name), untilMs);
    });
  }

  #folderOf(name: string): string {
    return inside(inside(this.#place, 'snapshots'), name).folder;
  }

  /** No error when there is none. @throws SnapshotLocked */
  async deleteSnapshot(name: string): Promise<void> {
    await this.#noting.run(() => this.#delete(name));
  }

  async #delete(name: string): Promise<void> {
    await this.#checkpoint.exclusively(async () => {
      await unlock(this.#effects.disk, this.#folderOf(name), name, this.#lockClock.nowMs());
      this.#snapshots.delete(name);
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
}

function isSame(a: Pick<Point, 'sequence' | 'digest'>, b: Pick<Point, 'sequence' | 'digest'>): boolean {
  return a.sequence === b.sequence && a.digest.equals(b.digest);
}
