/**
 * A directory tree as a Source. The manifest says what the replica has, a scan finds what differs, hints make the next
 * look quick, and what is dirty is read and sent.
 *
 * Cuts: `filesystem` when the tree is all of a mounted filesystem of its own that may be frozen: live rounds until the rest is
 * read within one freeze into a bounded spool. Else `crash` where a snapshot shows the tree as of one instant (btrfs). Else `file`:
 * each file whole and from one moment, no common instant. Which of them, and why none better, is told when it changes.
 * With `copies` there is one way alone: what the storage makes of the volume is read whole at each cut (`crash`), and nothing else is.
 * A cut claims the beginning of the last scan as its time, never that of a look by hints alone: hints get lost without a word.
 * What cannot be proven (another head than the manifest knows, a commit of another generation, another root) makes the manifest anew from the
 * replica's, and everything is compared.
 * Failures: SourceGone, SourceEmptied (nothing is deleted at the replica), NoConsistentCut naming what did not stand still.
 */
import assert from 'node:assert/strict';
import type { Consistency } from '../proto/wire.ts';
import type { Clock } from '../proto/effects.ts';
import { asReplicationError, messageOf, ReplicationError } from '../proto/errors.ts';
import { syncfs } from '../proto/libc.ts';
import { Pace } from '../proto/pace.ts';
import type { MirrorWelcome, Node } from '../proto/wire.ts';
import { removeSnapshot, snapshotRefusal, snapshotTree } from './capture/btrfs.ts';
import { collect, tickMs, type Collecting } from './capture/collect.ts';
import { copyMethods, copyWays } from './capture/csicbt.ts';
import { Filter } from './capture/filter.ts';
import { Finder, type Instant } from './capture/finder.ts';
import type { Hints } from './capture/hints.ts';
import type { Collected } from './capture/nodes.ts';
import { isEmpty, isSame, keyOf, openTree, type Tree } from './capture/tree.ts';
import { freezable, type Freeze, type Guard } from './guard.ts';
import { openManifest, type Manifest } from './manifest.ts';
import { mountOf, readBlockDevices, readMounts } from './mounts.ts';
import { CutRefused, Refusal, refusalOf } from './refusal.ts';
import { sourceFacts } from './source-facts.ts';
import type { Cut, Hold, Piece, Source, SourceCounters, SourceFacts } from './source.ts';
import { takeTreeCopy, type TreeCopies, type TreeCopy } from './treecopies.ts';
import { Told, type TreeEvent } from './treetold.ts';

/** What a freeze may read into memory. */
const spoolBytes = 64 << 20;
/** Part of maxFreezeMs after which the freeze is given up, so that thawing is ours and not the guard's. */
const freezeRatio = 0.8;
const freezeTries = 3;
/** After a freeze that failed or did not fit, `file` cuts for so long when the caller leaves the choice. */
const freezeAgainMs = 60_000;
/** Up to so many dirty files a cut file by file flushes one by one. */
const flushedAlone = 32;
/** Looks at what had moved on, per cut. */
const vanishTries = 5;
/** Slots remembered between two of these; with more of them everything dirty is read again. */
const maxVanished = 100_000;

export interface TreeSourceOptions {
  path: string;
  /** Of this replication alone. */
  dataDir: string;
  /** The wall clock, which the files' times are of. */
  clock: Clock;
  /** The clock of cuts, microseconds: a steady one, from which the master's is mapped. */
  agentUs(): number;
  include: readonly string[];
  exclude: readonly string[];
  /** null: the best that works. */
  consistency: Consistency | null;
  maxFreezeMs: number;
  cutIntervalSeconds: number;
  /** 0 = no limit. */
  readBytesPerSecond: number;
  /** Take an emptied tree as meant. */
  force: boolean;
  /** Fencing generation of the session. */
  generation: string;
  guard: Guard | undefined;
  /** As `freezable` wants them. */
  protectedPaths: readonly string[];
  /** What its storage makes for each cut; absent: nothing. */
  copies?: TreeCopies | undefined;
  event?(event: TreeEvent): void;
  /** Where hints come from; left out: from the best that works. */
  hints?: Hints['method'];
  /** As the Finder's. */
  scanRatio?: number;
}

export class TreeSource implements Source {
  readonly counters: SourceCounters = {
    readBytes: 0,
    skippedSameBytes: 0,
    skippedZeroBytes: 0,
    fullScans: 0,
    fullScanReason: '',
    lostEvents: 0,
  };
  readonly #options: TreeSourceOptions;
  readonly #manifest: Manifest;
  readonly #pace: Pace;
  readonly #finder: Finder;
  readonly #filter: Filter | undefined;
  #blank = false;
  /** A generator or a look is under way. */
  #busy = false;
  /** Of what must go together a part is sent. */
  #isParted = false;
  /** What was read in a freeze is only partly sent. */
  #spooling = false;
  #wholeDone = false;
  #headIsPoint = false;
  #backlog = false;
  #noFreeze: { why: Refusal; untilMs: number } | undefined;
  readonly #told: Told;
  /** Of copies: the next one is to be compared with all that the replica has. */
  #owesWhole = false;
  #progress: (bytesDone: number, bytesTotal: number) => void = () => undefined;
  #total: { scan: Finder['scan']; bytes: number } | undefined;

  constructor(options: TreeSourceOptions) {
    this.#options = options;
    const filter = new Filter(options);
    this.#filter = filter.isOpen ? undefined : filter;
    this.#manifest = openManifest(options.dataDir);
    this.#pace = new Pace(options.clock, options.readBytesPerSecond);
    this.#told = new Told(this.#manifest, (event) => options.event?.(event));
    const { clock, cutIntervalSeconds, copies, hints = copies && 'scan', scanRatio } = options;
    this.#finder = new Finder({
      manifest: this.#manifest,
      clock,
      agentUs: () => options.agentUs(),
      counters: this.counters,
      cutIntervalSeconds,
      hints,
      scanRatio,
    });
  }

  get captureMethod(): string {
    return this.#finder.method;
  }

  get captureReason(): string {
    const { copies } = this.#options;
    return copies ? `${copyWays[copies.kind]} at each cut, read whole` : this.#finder.reason;
  }

  /** Its manifest has one open commit. */
  readonly readsOn = false;

  needsRest(): boolean {
    return this.#finder.needsRest();
  }

  get isIndivisible(): boolean {
    return this.#isParted || this.#spooling || this.#manifest.isUnsettled;
  }

  async facts(): Promise<SourceFacts> {
    const { path } = this.#options;
    const facts = await sourceFacts(path, 'Filesystem');
    if (!facts.exists) throw new ReplicationError('SourceGone', `${path} does not exist; bring it back`);
    await using _tree = await this.#open(false); // is it empty?
    return { sizeBytes: facts.sizeBytes || this.#totalBytes(), sourceId: facts.sourceId };
  }

  /** As of the last scan: to add it up takes a look at each row. */
  #totalBytes(): number {
    const { scan } = this.#finder;
    if (!this.#total || this.#total.scan !== scan) this.#total = { scan, bytes: this.#manifest.totalBytes };
    return this.#total.bytes;
  }

  /** @throws SourceGone, SourceEmptied */
  async #open(sameRoot: boolean): Promise<Tree & AsyncDisposable> {
    const tree = await openTree(this.#options.path, this.#filter);
    const opened = { ...tree, [Symbol.asyncDispose]: () => tree.close() };
    try {
      const root = this.#manifest.row(0);
      if (sameRoot && root && !this.#manifest.isAdopted(root) && !isSame(keyOf(tree, tree.stat), root)) {
        throw new ReplicationError(
          'SourceGone',
          `${tree.path} is another directory than before: unmounted or replaced`,
        );
      }
      if (!this.#options.force && this.#manifest.childCount(0) > 0 && (await isEmpty(tree))) {
        throw new ReplicationError(
          'SourceEmptied',
          `${tree.path} is suddenly empty; resync with force if that is meant, else bring it back`,
        );
      }
      return opened;
    } catch (error) {
      await tree.close();
      throw error;
    }
  }

  async attach(
    welcome: MirrorWelcome,
    manifest: () => AsyncIterable<Node>,
  ): Promise<{ whole: boolean; reason: string }> {
    return this.#alone(async () => {
      [this.#wholeDone, this.#headIsPoint, this.#owesWhole] = [false, false, false];
      this.#backlog = true;
      this.#blank = welcome.blank;
      const { headSequence, digest } = welcome;
      const mine = this.#manifest;
      await using tree = await this.#open(false);
      await removeSnapshot(this.#options.dataDir);
      await this.#finder.begin(tree);
      const root = mine.row(0);
      // What is known of inodes is of a copy.
      const isOther =
        !this.#options.copies && root !== undefined && !mine.isAdopted(root) && !isSame(keyOf(tree, tree.stat), root);
      if (!isOther && mine.settle(headSequence, digest, this.#options.generation)) {
        const reason = mine.wholeReason;
        return { whole: reason !== '', reason: reason || 'the manifest knows what the replica has' };
      }
      const acked = mine.acked;
      mine.clear();
      if (headSequence === 0) {
        mine.adopted(0, Buffer.alloc(0), '');
        return { whole: false, reason: 'the replica has nothing yet' };
      }
      for await (const node of manifest()) mine.adopt(node);
      const reason = isOther
        ? 'the root directory is another one than before'
        : acked <= 0
          ? 'this agent did not know the replica'
          : `the replica is at commit ${headSequence} and this agent knew ${acked}, or another one of that number`;
      mine.adopted(headSequence, digest, reason);
      return { whole: true, reason };
    });
  }

  async *round(
    whole: boolean,
    progress: (bytesDone: number, bytesTotal: number) => void,
    signal: AbortSignal,
  ): AsyncGenerator<Piece> {
    if (this.#options.copies) {
      this.#owesWhole ||= whole;
      this.#progress = progress;
      return;
    }
    // After the first one a cut finds and brings everything by itself.
    if (!whole && !this.#backlog) return;
    this.#enter();
    try {
      await using tree = await this.#open(true);
      await this.#look(tree, true, signal);
      if (whole) this.#manifest.markAllDirty();
      yield* this.#live(tree, whole, progress, signal);
      this.#backlog = false;
      if (whole) this.#wholeDone = true;
    } finally {
      this.#busy = false;
    }
  }

  async *#live(
    tree: Tree,
    whole: boolean,
    progress: (bytesDone: number, bytesTotal: number) => void,
    signal: AbortSignal,
  ): AsyncGenerator<Piece> {
    const bytesTotal = this.#manifest.dirtyBytes;
    let bytesDone = 0;
    progress(0, bytesTotal);
    const sinceMs = this.#options.clock.nowMs();
    if (this.#manifest.hasDirty) await syncfs(tree.fd);
    yield* collect({
      ...this.#collecting(tree, { mode: 'live', sinceMs }, signal),
      whole,
      progress: (bytes) => progress((bytesDone += bytes), Math.max(bytesDone, bytesTotal)),
    });
  }

  #collecting(tree: Tree, how: Collecting['how'], signal: AbortSignal): Collecting {
    return {
      tree,
      manifest: this.#manifest,
      clock: this.#options.clock,
      pace: this.#pace,
      counters: this.counters,
      whole: false,
      blank: this.#blank,
      how,
      progress: () => undefined,
      flagged: (slot) => this.#told.flagged(slot),
      indivisible: (now) => {
        this.#isParted = now;
      },
      signal,
    };
  }

  async #look(tree: Tree, mustScan: boolean, signal: AbortSignal): Promise<void> {
    await using _looks = await this.#finder.look(tree, mustScan, signal);
  }

  // ---- cuts

  async cut(signal: AbortSignal, group?: Hold): Promise<Cut> {
    signal.throwIfAborted();
    const made: Made = { consistency: 'file', agentUs: 0, freezeUs: 0, broken: undefined };
    return {
      get consistency() {
        return made.consistency;
      },
      get agentUs() {
        assert(made.agentUs > 0, 'known only after the pieces');
        return made.agentUs;
      },
      get freezeUs() {
        return made.freezeUs;
      },
      pieces: (piecesSignal) => this.#cutPieces(made, AbortSignal.any([signal, piecesSignal]), group),
      broken: async () => made.broken,
      release: async () => undefined,
    };
  }

  async *#cutPieces(made: Made, signal: AbortSignal, group: Hold | undefined): AsyncGenerator<Piece> {
    this.#enter();
    try {
      const { copies } = this.#options;
      if (copies) {
        yield* this.#copyCut(made, copies, signal, group);
        return;
      }
      const refusal = await this.#freezeRefusal();
      let why = refusal;
      for (let left = group ? 1 : freezeTries; refusal === undefined && left > 0; left--) {
        // Not longer than needed in the freeze: what is dirty already goes before it.
        {
          await using tree = await this.#open(true);
          await this.#look(tree, false, signal);
          yield* this.#live(tree, false, () => undefined, signal);
        }
        const spool = await this.#frozen(made, signal, group);
        if (!(spool instanceof Refusal)) {
          this.#told.way('filesystem', 'its filesystem is frozen meanwhile');
          yield* this.#spooled(spool);
          return;
        }
        why = spool;
        // What a hook prevents shall not become a point of a lesser kind.
        if (spool.reason === 'hook') {
          made.broken = spool;
          return;
        }
        // More looks would not help a freeze that could not be.
        if (spool.reason === 'freeze') break;
      }
      if (this.#options.consistency === 'filesystem') {
        made.broken = why?.prefixed('no filesystem-consistent cut: ');
        return;
      }
      if (group) {
        made.broken = why?.prefixed('file by file there is no common instant, as a group needs; ');
        return;
      }
      if (refusal === undefined && why !== undefined)
        this.#noFreeze = { why, untilMs: this.#options.clock.monotonicMs() + freezeAgainMs };
      const snapshot = await this.#snapshot();
      if (typeof snapshot !== 'string') {
        this.#told.way('crash', `read from btrfs snapshots. No freeze: ${why?.message}`);
        yield* this.#snapshotCut(made, snapshot, signal);
        return;
      }
      if (this.#options.consistency === 'crash') {
        made.broken = new Refusal('unsupported', `no crash-consistent cut: ${snapshot}`);
        return;
      }
      this.#told.way('file', `each file by itself. No freeze: ${why?.message}. No snapshot: ${snapshot}`);
      yield* this.#fileCut(made, signal);
    } finally {
      this.#busy = false;
    }
  }

  async *#spooled(spool: Piece[]): AsyncGenerator<Piece> {
    let finished = false;
    // The manifest counts all of it as sent: a commit on the way would say so for ever of what a broken line then loses.
    this.#spooling = true;
    try {
      yield* spool;
      finished = true;
    } finally {
      this.#spooling = false;
      if (!finished) this.#manifest.unsend();
    }
  }

  /** Or why there can be none. */
  async #snapshot(): Promise<Snapshot | string> {
    const { consistency, dataDir } = this.#options;
    if (consistency === 'file') return 'file is what was asked for';
    await using tree = await this.#open(true);
    const refusal = await snapshotRefusal(tree);
    if (refusal !== undefined) return refusal;
    // They are empty directories to us, and something else below a snapshot.
    const foreign = this.#finder.scan?.foreign ?? 0;
    if (foreign > 0) return `${foreign} subvolumes or other filesystems are mounted in it`;
    this.#finder.drop(tree, 'snapshot');
    const started = this.#finder.now();
    try {
      return { tree: await snapshotTree(tree, dataDir), started };
    } catch (error) {
      return `no btrfs snapshot: ${messageOf(error)}`;
    }
  }

  /** Of all of the volume, as the storage copies it. */
  async *#copyCut(made: Made, copies: TreeCopies, signal: AbortSignal, group: Hold | undefined): AsyncGenerator<Piece> {
    const { consistency } = this.#options;
    const refused = (why: string): void => {
      made.broken = new Refusal('unsupported', `spec.copyMethod ${copyMethods[copies.kind]} ${why}`);
    };
    if (group) return refused('of a file volume has no instant in common with other volumes: use Direct in a group');
    if (consistency === 'filesystem' || consistency === 'file')
      return refused('makes crash-consistent points; use crash');
    const started = this.#finder.now();
    const copy = await takeTreeCopy(copies, () => this.#open(false), this.#filter);
    if (copy instanceof Refusal) {
      made.broken = copy.prefixed(`${copyWays[copies.kind]}: `);
      return;
    }
    const { tree, lost } = copy;
    const root = this.#manifest.row(0);
    const isKept = root !== undefined && root.birthNs !== 0n && isSame(keyOf(tree, tree.stat), root);
    this.#manifest.doubtAll(!isKept);
    this.#finder.doubt('snapshot');
    this.#told.way('crash', copyWays[copies.kind]);
    yield* this.#snapshotCut(made, { tree, started, lost }, signal);
    if (made.broken === undefined && this.#owesWhole) [this.#owesWhole, this.#wholeDone] = [false, true];
  }

  async *#snapshotCut(made: Made, { tree, started, lost }: Snapshot, signal: AbortSignal): AsyncGenerator<Piece> {
    try {
      await this.#finder.fullScan(tree, started, signal);
      // Nothing moves: what was not found is nowhere.
      this.#manifest.buryOrphans();
      // What was written while the snapshot was made may be in it by its time only: it is racy, as what a freeze caught. Of a copy all is.
      const how = { mode: 'frozen' as const, sinceMs: lost ? -Infinity : started.wallMs };
      const { dirtyBytes } = this.#manifest;
      let bytesDone = 0;
      const { vanished, torn } = yield* collect({
        ...this.#collecting(tree, how, signal),
        whole: this.#owesWhole,
        progress: (bytes) => this.#progress((bytesDone += bytes), Math.max(bytesDone, dirtyBytes)),
      });
      if (vanished.size > 0) made.broken = new Refusal('busy', 'the snapshot does not have what it was seen to have');
      if (torn !== undefined) made.broken = new Refusal('busy', `${torn} changed in the snapshot`);
      const why = await lost?.();
      if (why !== undefined) made.broken = new Refusal('other', why);
      made.consistency = 'crash';
      made.agentUs = started.agentUs;
    } finally {
      await tree.close();
    }
  }

  async *#fileCut(made: Made, signal: AbortSignal): AsyncGenerator<Piece> {
    const { clock } = this.#options;
    const manifest = this.#manifest;
    await using tree = await this.#open(true);
    await using looks = await this.#finder.look(tree, false, signal);
    // Once for all instead of once for each file, see `standing`.
    const waitMs = Number(looks.newestNs / 1_000_000n) + tickMs + 1 - clock.nowMs();
    if (waitMs > 0) await clock.sleep(Math.min(waitMs, tickMs), signal);
    // Of a few each is flushed by itself (`standing`): all of the filesystem would have to wait for what others write.
    const isFew = manifest.dirty(-1, flushedAlone + 1).length <= flushedAlone;
    const how = { mode: 'still' as const, sinceMs: isFew ? -Infinity : clock.nowMs() };
    if (!isFew) await syncfs(tree.fd);
    let only: Set<number> | undefined;
    for (let left = vanishTries; ; left--) {
      const collected: Collected = yield* collect({ ...this.#collecting(tree, how, signal), only, held: looks.held });
      if (collected.torn !== undefined)
        made.broken ??= new Refusal('busy', `${collected.torn} was written to whenever it was read`);
      if (collected.vanished.size === 0) break;
      if (left === 0) {
        this.#finder.doubt('names that kept moving');
        made.broken ??= new Refusal('busy', 'files were renamed faster than they could be read');
        break;
      }
      // What is new since then belongs to the next cut: this one ends, however busy the tree is.
      only = await looks.settleVanished(collected.vanished, signal);
      if (only.size > maxVanished) only = undefined;
    }
    if (manifest.isUnsettled)
      made.broken ??= new Refusal('busy', 'names changed hands faster than they could be followed');
    const { scan } = this.#finder;
    assert(scan);
    made.consistency = 'file';
    made.agentUs = scan.startedUs;
  }

  /** Why this tree is not frozen; undefined = it can be. */
  async #freezeRefusal(): Promise<Refusal | undefined> {
    const { consistency, guard, path, protectedPaths, maxFreezeMs, clock } = this.#options;
    if (consistency === 'file' || consistency === 'crash')
      return new Refusal('unsupported', `${consistency} is what was asked for`);
    if (!guard) return new Refusal('unsupported', 'this agent freezes nothing');
    if (consistency === null && this.#noFreeze && clock.monotonicMs() < this.#noFreeze.untilMs)
      return this.#noFreeze.why.prefixed('the last freeze failed: ');
    await using tree = await this.#open(true);
    const mounts = await readMounts();
    const mount = mountOf(tree.path, mounts);
    if (mount?.mountPoint !== tree.path)
      return new Refusal('unsupported', `${path} is not the root of a mounted filesystem of its own`);
    const refusal = freezable(tree.path, mounts, await readBlockDevices(), protectedPaths);
    if (refusal !== undefined) return new Refusal('unsupported', refusal);
    const { scan } = this.#finder;
    if (scan && scan.costMs > maxFreezeMs * freezeRatio) {
      return new Refusal(
        'large',
        `a look at all files takes ${Math.ceil(scan.costMs)} ms, more than maxFreezeMs ${maxFreezeMs} allows: raise it`,
      );
    }
    return undefined;
  }

  /** All that still differs, read while the filesystem stood still; or why that did not work. */
  async #frozen(made: Made, signal: AbortSignal, group: Hold | undefined): Promise<Piece[] | Refusal> {
    const { guard, maxFreezeMs } = this.#options;
    assert(guard);
    await using tree = await this.#open(true);
    let freeze: Freeze;
    try {
      freeze = await guard.freeze(tree.path, maxFreezeMs, signal, group && (() => group.prepared()));
    } catch (error) {
      if (error instanceof ReplicationError && error.code === 'NoConsistentCut') return refusalOf(error, 'freeze');
      throw error;
    }
    const released = group?.frozen();
    const frozen = this.#finder.now();
    const spool: Piece[] = [];
    let problem: Refusal | undefined;
    try {
      const limit = AbortSignal.any([signal, AbortSignal.timeout(Math.max(1, Math.floor(maxFreezeMs * freezeRatio)))]);
      this.#finder.doubt('freeze');
      await this.#finder.fullScan(tree, frozen, limit);
      // Nothing moves: what was not found is nowhere.
      this.#manifest.buryOrphans();
      let bytes = 0;
      for await (const piece of collect(this.#collecting(tree, { mode: 'frozen', sinceMs: frozen.wallMs }, limit))) {
        spool.push(piece);
        if (piece.kind === 'content') bytes += piece.bytes.length;
        if (bytes > spoolBytes) throw new CutRefused('large', `more than ${spoolBytes >> 20} MiB changed meanwhile`);
      }
    } catch (error) {
      if (signal.aborted) throw error;
      const { reason, message } = refusalOf(asReplicationError(error), 'late');
      problem = new Refusal(reason, `${message} within maxFreezeMs ${maxFreezeMs}`);
    } finally {
      const alone = problem ?? (await released);
      if (typeof alone === 'string') problem = new Refusal('group', alone);
      const held = await freeze.thaw();
      made.freezeUs = freeze.frozenUs;
      if (!held) problem ??= new Refusal('late', 'the freeze did not hold');
    }
    if (problem !== undefined) {
      this.#manifest.unsend();
      return problem;
    }
    made.consistency = 'filesystem';
    made.agentUs = frozen.agentUs;
    return spool;
  }

  // ---- between cuts

  async unchangedUntil(): Promise<number | undefined> {
    if (this.#busy || !this.#headIsPoint || this.#manifest.isBehind || this.#options.copies) return undefined;
    return this.#alone(async () => {
      await using tree = await this.#open(true);
      await this.#look(tree, false, new AbortController().signal);
      return this.#manifest.hasDirty ? undefined : this.#finder.scan?.startedUs;
    });
  }

  dirtyBytes(): number | undefined {
    return this.#finder.scan && !this.#options.copies ? this.#manifest.dirtyBytes : undefined;
  }

  commitSizeBytes(): number {
    return this.#manifest.slots;
  }

  async prepare(sequence: number): Promise<void> {
    assert(!this.#isParted, 'no commit between what must go together');
    this.#headIsPoint = false;
    this.#manifest.prepare(sequence, this.#options.generation);
  }

  /** @param digest of the commit, as the replica answered */
  async committed(sequence: number, point: boolean, digest: Buffer): Promise<void> {
    this.#headIsPoint = point;
    if (point) this.#told.point();
    if (this.#wholeDone) this.#manifest.wholeReason = '';
    this.#wholeDone = false;
    this.#blank = false;
    this.#manifest.committed(sequence, digest);
  }

  /** Descriptors are held during a look or a round only. */
  async idle(): Promise<void> {
    assert(!this.#busy, 'idle between rounds');
  }

  async close(): Promise<void> {
    await this.#finder.close();
    this.#manifest.close();
  }

  #enter(): void {
    assert(!this.#busy, 'one round, cut or look at a time');
    this.#busy = true;
  }

  async #alone<T>(work: () => Promise<T>): Promise<T> {
    this.#enter();
    try {
      return await work();
    } finally {
      this.#busy = false;
    }
  }
}

/** The tree as it was at an instant that `started` is just before. */
interface Snapshot {
  tree: Tree;
  started: Instant;
  /** Of a copy by the storage. */
  lost?: TreeCopy['lost'];
}

interface Made {
  consistency: Consistency;
  agentUs: number;
  freezeUs: number;
  /** Why this is no cut. */
  broken: Refusal | undefined;
}
