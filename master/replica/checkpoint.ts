/**
 * The base that follows the journal: the oldest point kept, as bytes.
 *
 * Guarantees: the base moves only to a point that `baseTarget` allows, says so in the note before its first byte changes,
 * and is read only where it stands whole; the journal is trimmed only after the base has it durably.
 * Copies of block volumes, a scrub beside them, share the base: it stays where it is until they are done, and moves then at
 * the latest when the journal is over its limit, before copies that come later. Copies of trees wait for each other.
 * What went straight into the image (placing.ts) is of commits that the base has to reach before anybody reads it.
 * Failure: a move that was broken off goes on where it stopped, before anything reads the base.
 */
import type { Clock } from '../../proto/effects.ts';
import { SharedLock } from '../../proto/lock.ts';
import { redo, type Base } from './base.ts';
import { baseTarget, noPins, type Pins } from './horizon.ts';
import { makeDurable } from './indexdatabase.ts';
import type { VolumeMode } from '../../proto/wire.ts';
import type { Journal } from './journal.ts';
import type { Timeline } from './timeline.ts';
import type { VolumeIndex } from './volumeindex.ts';

const never = new AbortController().signal;

interface Parts {
  base: Base;
  head: VolumeIndex;
  journal: Journal;
  timeline: Timeline;
}

export class Checkpoint {
  readonly #clock: Clock;
  readonly #base: Base;
  readonly #head: VolumeIndex;
  readonly #journal: Journal;
  readonly #timeline: Timeline;
  /** Everything that writes the base's bytes, alone; what reads them shares it. */
  readonly #work = new SharedLock();
  readonly #mode: VolumeMode;
  /** Where the base is going, as note.applying, also before the first point. */
  #applying = 0;
  /** As it was found at the newest move. */
  #short = false;
  /** Bytes written to the base since it was opened. */
  writtenBytes = 0;

  /** `clock` is the one by which the journal's time passes. */
  constructor(clock: Clock, mode: VolumeMode, parts: Parts) {
    this.#clock = clock;
    this.#mode = mode;
    this.#base = parts.base;
    this.#head = parts.head;
    this.#journal = parts.journal;
    this.#timeline = parts.timeline;
  }

  /** Commits that the base does not have, or has and the journal keeps. */
  get owes(): boolean {
    return this.#unfinished || this.#head.sequence > this.#base.index.sequence || this.#short;
  }

  /**
   * Applies what has left the journal's time to the base and drops it from the journal. Before the first point every
   * commit is applied at once. Of `pinned` (sequences) those that are points of the journal stay points.
   */
  async advance(
    journalSeconds: number,
    maxJournalBytes: number,
    signal: AbortSignal,
    pinned: Pins = noPins,
  ): Promise<{ short: boolean; withheld: number }> {
    // Nobody waits for copies without need: they end sooner or later, and what the base owes stays in the journal.
    if (this.#work.shared && this.#journal.bytes <= maxJournalBytes)
      return { short: this.#short, withheld: this.#base.withheld ?? 0 };
    return this.#work.run(async () => {
      // As it is now that the base is to move: it may have waited for long.
      const pins = pinned();
      const listed = this.#timeline.points.filter((point) => pins.includes(point.sequence));
      const oldest = Math.min(this.#timeline.oldestPinned ?? Infinity, listed[0]?.sequence ?? Infinity);
      const { sequence, short } = baseTarget({
        points: this.#timeline.points,
        nowUs: this.#clock.nowMs() * 1000,
        journalUs: journalSeconds * 1e6,
        journalBytes: this.#journal.bytes,
        maxJournalBytes,
        pinned: oldest === Infinity ? undefined : oldest,
      });
      this.#short = short;
      const target = sequence ?? this.#head.sequence;
      if (target > this.#base.index.sequence) await this.#begin(target);
      await this.#finish(signal);
      this.#timeline.dropBelow(this.#base.index.sequence);
      const unneeded = Math.min(this.#base.index.sequence, this.#timeline.oldestPinned ?? Infinity);
      if (this.#journal.canTrim(unneeded)) {
        // The index says that the base has them; a power cut must not take that back once the journal has them no more.
        makeDurable(this.#base.index.database);
        await this.#journal.trim(unneeded);
      }
      return { short, withheld: this.#base.withheld ?? 0 };
    });
  }

  /** The base stands at a point, where there is one. Before the first of them it may stand anywhere. */
  async reachPoint(signal: AbortSignal): Promise<void> {
    await this.#work.run(async () => {
      await this.#finish(signal);
      const [oldest] = this.#timeline.points;
      if (!oldest || oldest.sequence <= this.#base.index.sequence) return;
      await this.#begin(oldest.sequence);
      await this.#finish(signal);
    });
  }

  /** Runs `work` on the base, which stands whole at a commit and does not move until it is done. */
  async hold<T>(signal: AbortSignal, work: (base: Base) => Promise<T>): Promise<T> {
    if (this.#mode === 'Filesystem') {
      // Reading a tree may loosen its permissions for a while: one at a time.
      return this.#work.run(async () => {
        await this.#finish(signal);
        return work(this.#base);
      });
    }
    for (;;) {
      if (this.#unfinished) await this.#work.run(() => this.#finish(signal));
      signal.throwIfAborted();
      const done = await this.#work.share(async () =>
        this.#unfinished ? undefined : { result: await work(this.#base) },
      );
      // A move that began in between and failed half-way: it is finished first.
      if (done) return done.result;
    }
  }

  /** The base stands at the newest commit of which something was placed. */
  async follow(): Promise<void> {
    await this.#work.run(() => this.#finish(never));
  }

  /** What lies in the image of epochs that were not committed is unknown from now on, durably. Answers how much that is. */
  async settlePlaced(): Promise<number> {
    const { placing } = this.#timeline.note;
    if (!placing) return 0;
    return this.#work.run(async () => {
      await this.#finish(never);
      const { index } = this.#base;
      await this.#base.cut?.();
      // Commits of before that are lost with the journal: where they have written is not known any more.
      const windows = index.sequence < placing.epoch - 1 ? undefined : placing.windows;
      const { bad } = await this.#base.verify(never, () => undefined, windows);
      this.#forget(bad);
      await this.endPlacing();
      return bad.length;
    });
  }

  /** Nothing is placed from now on, or nothing that is not in the index. */
  async endPlacing(): Promise<void> {
    if (!this.#timeline.note.placing) return;
    makeDurable(this.#base.index.database);
    makeDurable(this.#head.database);
    await this.#timeline.setNote({ placing: undefined });
  }

  /** Without bringing the base anywhere first: for what only must not run beside a move. */
  async exclusively<T>(work: () => Promise<T>): Promise<T> {
    return this.#work.run(work);
  }

  /**
   * The base was on its way and the journal that would bring it there is lost: its bytes are read, and what is not as the
   * index says must come from the source again.
   */
  async settleHalfApplied(onDoubt: (why: string) => void): Promise<void> {
    const { applying } = this.#timeline.note;
    if (applying === undefined || applying <= this.#head.sequence) return;
    const { bad } = await this.#base.verify(never, () => undefined);
    this.#forget(bad);
    // Once the note says that all was read, nobody looks again.
    makeDurable(this.#base.index.database);
    makeDurable(this.#head.database);
    const { newest } = this.#base.index;
    this.#timeline.replace(bad.length === 0 && newest?.point === true ? [newest] : []);
    onDoubt(
      `the base was read whole, as the journal was lost while it was applied: ${bad.length} pieces are fetched again`,
    );
    await this.#timeline.setNote({ applying: 0 });
  }

  #forget(bad: { object: number; granule: number }[]): void {
    for (const { object, granule } of bad) {
      this.#base.index.markUnknown(object, granule);
      this.#head.markUnknown(object, granule);
    }
  }

  /** A tree is copied only at points: before the first one there is nothing that a half-applied base could spoil. */
  async #begin(target: number): Promise<void> {
    if (this.#timeline.points.length > 0 || this.#mode === 'Block') await this.#timeline.setNote({ applying: target });
    this.#timeline.dropBelow(target);
    this.#applying = target;
  }

  /** Where the base has to go before anybody may read it. */
  get #target(): number {
    return Math.max(this.#applying, this.#timeline.note.applying ?? 0, this.#journal.placedThrough);
  }

  get #unfinished(): boolean {
    return this.#target > this.#base.index.sequence;
  }

  /** The base stands where it was going: bytes and index are of one commit. */
  async #finish(signal: AbortSignal): Promise<void> {
    if (!this.#unfinished) return;
    await redo(this.#base, this.#journal, this.#target, signal, (bytes) => (this.writtenBytes += bytes));
  }
}
