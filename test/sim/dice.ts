/**
 * Seeded randomness (sfc32, http://pracrand.sourceforge.net). Each part of the simulation throws its own dice, made by
 * `fork`, so that one part throwing once more does not change what the others do.
 */
import type { Random } from '../../proto/effects.ts';

export class Dice implements Random {
  readonly #seed: number;
  #a: number;
  #b: number;
  #c: number;
  #d = 1;

  constructor(seed: number, label = '') {
    this.#seed = seed;
    this.#a = seed | 0;
    this.#b = 0x9e3779b9;
    this.#c = mixText(label);
    for (let i = 0; i < 12; i++) this.#next();
  }

  fork(label: string): Dice {
    return new Dice(this.#seed ^ mixText(label), label);
  }

  #next(): number {
    const sum = (((this.#a + this.#b) | 0) + this.#d) | 0;
    this.#d = (this.#d + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = ((this.#c << 21) | (this.#c >>> 11)) + sum;
    return sum >>> 0;
  }

  /** 0 <= x < 1 */
  fraction(): number {
    return this.#next() / 2 ** 32;
  }

  chance(probability: number): boolean {
    return this.fraction() < probability;
  }

  /** Whole number from 0 up to below `below`. */
  below(below: number): number {
    return Math.floor(this.fraction() * below);
  }

  /** from <= x < to */
  between(from: number, to: number): number {
    return from + this.fraction() * (to - from);
  }

  pick<T>(items: readonly T[]): T {
    const item = items[this.below(items.length)];
    if (item === undefined) throw new Error('nothing to pick from');
    return item;
  }

  bytes(length: number): Buffer {
    const bytes = Buffer.alloc(length);
    for (let i = 0; i < length; i++) bytes[i] = this.#next() & 0xff;
    return bytes;
  }
}

function mixText(text: string): number {
  let sum = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) sum = Math.imul(sum ^ text.charCodeAt(i), 0x01000193);
  return sum;
}
