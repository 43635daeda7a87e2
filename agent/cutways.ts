/** Tells how points are cut, and why not better: once for each consistency in a source's life. */
import type { Consistency } from '../proto/wire.ts';

export interface CutWayEvent {
  code: 'CutWay';
  level: 'INFO';
  message: string;
}

export class CutWays {
  readonly #event: (event: CutWayEvent) => void;
  /** A freeze that fits now and then is no news each time. */
  readonly #told = new Set<Consistency>();
  #newest: { consistency: Consistency; message: string } | undefined;

  constructor(event: (event: CutWayEvent) => void) {
    this.#event = event;
  }

  /** Of the cut that is being taken. */
  way(consistency: Consistency, message: string): void {
    this.#newest = { consistency, message };
  }

  /** It has become a point. */
  point(): void {
    const way = this.#newest;
    if (!way || this.#told.has(way.consistency)) return;
    this.#told.add(way.consistency);
    const message = `points have consistency ${way.consistency}: ${way.message}`.slice(0, 4000);
    this.#event({ code: 'CutWay', level: 'INFO', message });
  }
}
