/**
 * Finds what changed in a tree: looks where hints say, and a scan of all of it when hints are missing and at a pace of its own.
 *
 * Guarantees: what was changed before the scan began that `scan` tells of is dirty in the manifest, or was when it ended; a look
 * that failed half-way is followed by a scan. While nothing asks for more, scans take a twentieth of the time at most, and up to a
 * fifth of it where that makes one with each cut.
 */
import type { Clock } from '../../proto/effects.ts';
import type { Manifest } from '../manifest.ts';
import type { SourceCounters } from '../source.ts';
import { remoteKind, watchTree, type Hints } from './hints.ts';
import { Looks } from './looks.ts';
import { visit, walk, type Walk } from './scan.ts';
import type { Tree } from './tree.ts';

const usualScanRatio = 0.05;
const mostScanRatio = 0.2;
/** Reasons of scans that do not come one after another: the first ones of a session, and those that time is left for. */
const atTheirPace = ['start', 'round', 'pace'];

/** The same instant on both clocks: the wall clock, which files' times are of, and the one of cuts. */
export interface Instant {
  wallMs: number;
  agentUs: number;
}

export interface FinderOptions {
  manifest: Manifest;
  clock: Clock;
  agentUs(): number;
  counters: SourceCounters;
  cutIntervalSeconds: number;
  /** undefined: the best that works. */
  hints: Hints['method'] | undefined;
  /** Part of the time that scans take unless cuts need more of them; 0 = only those that are asked for. Default a twentieth. */
  scanRatio: number | undefined;
}

/**
 * Whether the next look is a scan: always where one takes at most `ratio` of the time between cuts or of the time since the last one
 * began, else once for each cut as long as a fifth of the time is enough for that. With a ratio of 0 never. Pure.
 */
export function isDue(scan: { costMs: number; sinceMs: number; intervalMs: number; ratio: number }): boolean {
  const { costMs, sinceMs, intervalMs, ratio } = scan;
  if (costMs <= ratio * Math.max(sinceMs, intervalMs)) return true;
  return ratio > 0 && sinceMs >= Math.max(intervalMs, costMs / mostScanRatio);
}

export class Finder {
  readonly #options: FinderOptions;
  #hints: Hints | undefined;
  #isRemote = false;
  #scan: { startedUs: number; startedMonotonicMs: number; costMs: number; foreign: number } | undefined;
  /** Why the next look must be a scan; empty = it need not. */
  #scanReason = 'start';
  /** There was a scan for a reason that may come again with each look. */
  #wasForced = false;

  constructor(options: FinderOptions) {
    this.#options = options;
  }

  get method(): string {
    return this.#hints?.method ?? 'scan';
  }

  get reason(): string {
    return this.#hints?.reason ?? 'not begun yet';
  }

  /** The last completed scan since `begin`: when it began (clock of cuts), what it cost, directories that are mount points. */
  get scan(): { readonly startedUs: number; readonly costMs: number; readonly foreign: number } | undefined {
    return this.#scan;
  }

  /** As Source's. Prompt hints lead to what changed alone; beside them a scan keeps the pace of `isDue`, unless it is forced. */
  needsRest(): boolean {
    const wasForced = this.#wasForced;
    this.#wasForced = false;
    return wasForced || this.#hints?.isPrompt !== true;
  }

  /** A new session: nothing is known, hints come from now on. */
  async begin(tree: Tree): Promise<void> {
    const { manifest, hints } = this.#options;
    this.#isRemote = (await remoteKind(tree.path)) !== undefined;
    this.#hints ??= await watchTree(tree, manifest, hints);
    [this.#scan, this.#scanReason] = [undefined, 'start'];
  }

  /** The next look must be a scan. */
  doubt(reason: string): void {
    this.#scanReason ||= reason;
  }

  now(): Instant {
    return { wallMs: this.#options.clock.nowMs(), agentUs: this.#options.agentUs() };
  }

  /**
   * Everything that changed before this began is dirty afterwards, when it scans; and everything in the manifest has its
   * place. The caller disposes of what is answered.
   */
  async look(tree: Tree, mustScan: boolean, signal: AbortSignal): Promise<Looks> {
    const { manifest, clock } = this.#options;
    const hinted = this.#hints?.take(tree) ?? { names: new Map(), doubt: '' };
    if (mustScan) this.doubt('round');
    this.#hear(hinted.doubt);
    const startedMs = clock.nowMs();
    // What is left out below a directory depends on where it is.
    const moved = tree.filter ? 'moved' : 'new';
    const isScan = this.#isScanDue();
    let first: Walk;
    if (isScan) first = await this.fullScan(tree, this.now(), signal);
    else {
      const through = this.#hints?.isPrompt ? moved : 'all';
      // Until it has ended well: what it was told of is told only once.
      this.#scanReason = 'a look that failed';
      first = await visit(tree, manifest, hinted.names, signal, { through, missed: [] });
      this.#scanReason = '';
    }
    const looks = new Looks({
      tree,
      manifest,
      clock,
      isRemote: this.#isRemote,
      startedMs,
      first,
      hints: this.#hints?.isPrompt ? this.#hints : undefined,
      through: isScan ? 'moved' : moved,
      doubt: (reason) => this.#hear(reason),
    });
    try {
      await looks.settle(signal);
      return looks;
    } catch (error) {
      this.doubt('a look that failed');
      await looks[Symbol.asyncDispose]();
      throw error;
    }
  }

  #hear(doubt: string): void {
    if (doubt !== '') this.doubt(doubt);
    this.#options.counters.lostEvents = this.#hints?.lost ?? 0;
  }

  #isScanDue(): boolean {
    if (!this.#scan || this.#scanReason !== '') return true;
    const { startedMonotonicMs, costMs } = this.#scan;
    const { clock, cutIntervalSeconds, scanRatio = usualScanRatio } = this.#options;
    const sinceMs = clock.monotonicMs() - startedMonotonicMs;
    return isDue({ costMs, sinceMs, intervalMs: cutIntervalSeconds * 1000, ratio: scanRatio });
  }

  /** A scan follows, for this reason: what was hinted at so far is of no use to anybody. */
  drop(tree: Tree, reason: string): void {
    this.#hear(this.#hints?.take(tree).doubt ?? '');
    this.doubt(reason);
  }

  /** What moves meanwhile may be missed, see Looks. */
  async fullScan(tree: Tree, started: Instant, signal: AbortSignal): Promise<Walk> {
    const { clock, counters, manifest } = this.#options;
    const startedMonotonicMs = clock.monotonicMs();
    counters.fullScans++;
    counters.fullScanReason = this.#scanReason || 'pace';
    if (!atTheirPace.includes(counters.fullScanReason)) this.#wasForced = true;
    const found = await walk(tree, manifest, undefined, signal);
    this.#scan = {
      startedUs: started.agentUs,
      startedMonotonicMs,
      costMs: clock.monotonicMs() - startedMonotonicMs,
      foreign: found.foreign,
    };
    this.#scanReason = '';
    return found;
  }

  async close(): Promise<void> {
    await this.#hints?.close();
  }
}
