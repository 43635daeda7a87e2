/** What a file volume tells people beside its points: what copies lack, and how points are cut. Once each in a source's life. */
import type { Consistency } from '../proto/wire.ts';
import { pathText } from './capture/collect.ts';
import { CutWays, type CutWayEvent } from './cutways.ts';
import type { Manifest } from './manifest.ts';

export type TreeEvent = { code: 'FlagsLeftOut'; level: 'WARNING'; message: string } | CutWayEvent;

/** Files with flags that are counted; beyond them there are just more. */
const maxFlagged = 10_000;

export class Told {
  readonly #manifest: Manifest;
  readonly #event: (event: TreeEvent) => void;
  /** Slots of what is immutable or append-only. */
  readonly #flagged = new Set<number>();
  #flagsTold = false;
  readonly #ways: CutWays;

  constructor(manifest: Manifest, event: (event: TreeEvent) => void) {
    this.#manifest = manifest;
    this.#event = event;
    this.#ways = new CutWays(event);
  }

  flagged(slot: number): void {
    if (this.#flagged.size < maxFlagged) this.#flagged.add(slot);
  }

  /** How the newest cut is taken, and why not better. */
  way(consistency: Consistency, message: string): void {
    this.#ways.way(consistency, message);
  }

  /** The newest cut has become a point. */
  point(): void {
    this.#ways.point();
    const [first] = this.#flagged;
    if (this.#flagsTold || first === undefined) return;
    this.#flagsTold = true;
    const more = this.#flagged.size > 1 ? ` and ${this.#flagged.size - 1} more` : '';
    this.#event({
      code: 'FlagsLeftOut',
      level: 'WARNING',
      message: `immutable or append-only: ${pathText(this.#manifest, first)}${more}. Copies have all of them without these flags; set them again with chattr after a recovery`,
    });
  }
}
