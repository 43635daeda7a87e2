/**
 * The looks after a first one, at what moved while it went over the tree.
 *
 * Guarantees: after `settle` everything in the manifest hangs on the root, so what is sent stands in its place. What has lost
 * its last name has either moved past us or is gone. It is gone for sure when a look at the directories that changed since
 * the look before finds none (`scan.ts` says why). In a tree whose names never rest that does not come; there what slipped
 * past so many looks in a row counts as gone, which takes a file that is moved on during each of them.
 */
import type { Clock } from '../../proto/effects.ts';
import { nodeTypes, type Name } from '../../proto/wire.ts';
import type { Manifest } from '../manifest.ts';
import { tickMs } from './collect.ts';
import type { Hints } from './hints.ts';
import { visit, walk, type Search, type Through, type Walk } from './scan.ts';
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
/** Names that were left, remembered for what takes them over; with more of them everything new counts as such. */
const maxLeft = 100_000;

export interface LooksOptions {
  tree: Tree;
  manifest: Manifest;
  clock: Clock;
  /** Times are of another machine's clock: every directory is looked through each time. */
  isRemote: boolean;
  /** When the walk or visit began that found `first`. */
  startedMs: number;
  first: Walk;
  /** Prompt ones: they say where to look again, and no directory but those is touched. */
  hints: Hints | undefined;
  /** Directories, of those that hints name, to be looked through. */
  through: Through;
  /** Hears why hints were of no use. */
  doubt: (reason: string) => void;
}

export class Looks {
  readonly #options: LooksOptions;
  #hints: Hints | undefined;
  #found: Walk;
  #sinceMs: number;
  /** On looks since the first one. */
  #spentMs = 0;
  readonly #held = new Map<number, number>();
  /** Names that something left since, and what came there, with what is below it. */
  readonly #left = new Set<string>();
  readonly #takers = new Set<number>();
  /** Newest ctime met on what has changed; 0 = nothing has. */
  newestNs: bigint;

  constructor(options: LooksOptions) {
    this.#options = options;
    this.#hints = options.hints;
    this.#found = options.first;
    this.#sinceMs = options.startedMs;
    this.newestNs = options.first.newestNs;
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

  /**
   * @param vanished slots of what had moved on when it was to be read
   * @returns those to be read now: they, and what took over names, which would be missing where all the time something was. What
   * else is new is left to the next cut.
   */
  async settleVanished(vanished: ReadonlySet<number>, signal: AbortSignal): Promise<Set<number>> {
    await this[Symbol.asyncDispose]();
    this.#left.clear();
    this.#takers.clear();
    await this.#again('everything', signal, vanished);
    await this.#findMissing(signal, vanished);
    return new Set([...vanished, ...this.#takers]);
  }

  async #findMissing(signal: AbortSignal, vanished?: ReadonlySet<number>): Promise<void> {
    const { manifest, doubt } = this.#options;
    for (let looks = 0; this.#isMissing(looks); looks++) {
      if (looks >= patience.least && this.#spentMs > quickMs) break;
      await this.#again('missing', signal, vanished);
    }
    manifest.buryOrphans();
    if (this.#hints && this.#missed.length > 0) doubt('directories that kept moving');
  }

  #isMissing(looks: number): boolean {
    if (looks >= patience.quick) return false;
    const { hasOrphans } = this.#options.manifest;
    if (!this.#hints) return this.#found.listed > 0 && hasOrphans;
    // The two halves of a rename are told one after the other, so that one look more is needed.
    return this.#missed.length > 0 || (hasOrphans && (this.#found.listed > 0 || looks === 0));
  }

  /** Directories that were not found, and are not known to be gone. */
  get #missed(): number[] {
    return this.#found.missed.filter((slot) => this.#options.manifest.row(slot)?.type === nodeTypes.directory);
  }

  async #again(search: Search, signal: AbortSignal, vanished: ReadonlySet<number> = new Set()): Promise<void> {
    const { tree, manifest, clock, isRemote, through, doubt } = this.#options;
    const holding = {
      wants: (slot: number) => vanished.has(slot) && !this.#held.has(slot) && this.#held.size < maxHeld,
      hold: async (slot: number, handle: number) => {
        const twice = this.#held.get(slot);
        this.#held.set(slot, handle);
        if (twice !== undefined) await close(twice);
      },
      left: (names: Name[]) => {
        for (const name of names) if (this.#left.size < maxLeft) this.#left.add(keyOf(name));
      },
      put: (slot: number, name: Name, replaces: boolean) => {
        const isTaker = replaces || this.#left.has(keyOf(name)) || this.#left.size >= maxLeft;
        if (isTaker || this.#takers.has(name.parent)) this.#takers.add(slot);
      },
    };
    const wanted = vanished.size > 0 ? holding : undefined;
    const sinceNs = isRemote ? 0n : BigInt(Math.floor(this.#sinceMs - slackMs)) * 1_000_000n;
    if (this.#hints && search === 'missing') await clock.sleep(tickMs, signal);
    this.#sinceMs = clock.nowMs();
    const hinted = this.#hints?.take(tree);
    if (hinted && hinted.doubt !== '') {
      doubt(hinted.doubt);
      this.#hints = undefined;
    }
    if (this.#hints && hinted) {
      const missed = this.#missed;
      this.#found = await visit(tree, manifest, hinted.names, signal, { through, missed, holding: wanted });
    } else this.#found = await walk(tree, manifest, sinceNs, signal, search, wanted);
    this.#spentMs += clock.nowMs() - this.#sinceMs;
    if (this.#found.newestNs > this.newestNs) this.newestNs = this.#found.newestNs;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const handle of this.#held.values()) await close(handle);
    this.#held.clear();
  }
}

function keyOf({ parent, name }: Name): string {
  return `${parent} ${name.toString('latin1')}`;
}
