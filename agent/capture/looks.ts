/**
 * The looks after a first one, at what moved while it went over the tree.
 *
 * Guarantees: after `settle` everything in the manifest hangs on the root, so what is sent stands in its place. What has lost
 * its last name has either moved past us or is gone. It is gone for sure when a look at the directories that changed since
 * the look before finds none (`scan.ts` says why). In a tree whose names never rest that does not come; there what slipped
 * past so many looks in a row counts as gone, which takes a file that is moved on during each of them.
 */
import type { Clock } from '../../proto/effects.ts';
import type { Manifest } from '../manifest.ts';
import { walk, type Search, type Walk } from './scan.ts';
import { close, type Tree } from './tree.ts';

/** Looks in a row that take in everything new; the others only bring what is missing, so that they come to an end. */
const everything = 2;
/** Looks in a row for what is missing: so many while they are quick, so many at least. */
const patience = { quick: 8, least: 2 };
const quickMs = 1000;
/** A directory's ctime is of the kernel's clock tick, which comes late on a busy machine: this much is looked at again. */
const slackMs = 250;
/** Handles kept at once; whatever else vanished must stand still for a moment. */
const maxHeld = 256;

export class Looks {
  readonly #tree: Tree;
  readonly #manifest: Manifest;
  readonly #clock: Clock;
  readonly #isRemote: boolean;
  #found: Walk;
  #sinceMs: number;
  /** On looks since the first one. */
  #spentMs = 0;
  readonly #held = new Map<number, number>();
  /** Newest ctime met on what has changed; 0 = nothing has. */
  newestNs: bigint;

  /**
   * @param isRemote times are of another machine's clock: every directory is looked through each time
   * @param startedMs when the walk or visit began that found `first`
   */
  constructor(tree: Tree, manifest: Manifest, clock: Clock, isRemote: boolean, startedMs: number, first: Walk) {
    this.#tree = tree;
    this.#manifest = manifest;
    this.#clock = clock;
    this.#isRemote = isRemote;
    this.#found = first;
    this.#sinceMs = startedMs;
    this.newestNs = first.newestNs;
  }

  /** Handles of what had vanished and was met again, by slot; good until the next settle. */
  get held(): ReadonlyMap<number, number> {
    return this.#held;
  }

  /** Until nothing is missing any more, or counts as gone. */
  async settle(signal: AbortSignal): Promise<void> {
    for (let left = everything; this.#found.restless && left > 0; left--) await this.#again('everything', signal);
    await this.#findMissing(signal);
  }

  /** @param vanished slots of what had moved on when it was to be read; of what else is new nothing is taken in */
  async settleVanished(vanished: ReadonlySet<number>, signal: AbortSignal): Promise<void> {
    await this[Symbol.asyncDispose]();
    await this.#again('everything', signal, vanished);
    await this.#findMissing(signal, vanished);
  }

  async #findMissing(signal: AbortSignal, vanished?: ReadonlySet<number>): Promise<void> {
    for (let looks = 0; this.#isMissing && looks < patience.quick; looks++) {
      if (looks >= patience.least && this.#spentMs > quickMs) break;
      await this.#again('missing', signal, vanished);
    }
    this.#manifest.buryOrphans();
  }

  get #isMissing(): boolean {
    return this.#found.listed > 0 && this.#manifest.hasOrphans;
  }

  async #again(search: Search, signal: AbortSignal, vanished: ReadonlySet<number> = new Set()): Promise<void> {
    const holding = {
      wants: (slot: number) => vanished.has(slot) && !this.#held.has(slot) && this.#held.size < maxHeld,
      hold: async (slot: number, handle: number) => {
        const twice = this.#held.get(slot);
        this.#held.set(slot, handle);
        if (twice !== undefined) await close(twice);
      },
    };
    const sinceNs = this.#isRemote ? 0n : BigInt(Math.floor(this.#sinceMs - slackMs)) * 1_000_000n;
    this.#sinceMs = this.#clock.nowMs();
    const wanted = vanished.size > 0 ? holding : undefined;
    this.#found = await walk(this.#tree, this.#manifest, sinceNs, signal, search, wanted);
    this.#spentMs += this.#clock.nowMs() - this.#sinceMs;
    if (this.#found.newestNs > this.newestNs) this.newestNs = this.#found.newestNs;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const handle of this.#held.values()) await close(handle);
    this.#held.clear();
  }
}
