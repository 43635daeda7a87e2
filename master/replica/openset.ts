/**
 * Which replicas keep their files open: those used last. Pure.
 *
 * Guarantees: who is not idle is never named; beyond `bound` only those are open that are at work.
 */
export class OpenSet<T extends { readonly isIdle: boolean }> {
  /** How many stay open at rest. 0 = none. */
  readonly bound: number;
  /** Least recently used first. */
  readonly #open = new Set<T>();

  constructor(bound: number) {
    this.bound = bound;
  }

  get size(): number {
    return this.#open.size;
  }

  used(one: T): void {
    this.#open.delete(one);
    this.#open.add(one);
  }

  closed(one: T): void {
    this.#open.delete(one);
  }

  /** Those to be closed now, least recently used first. */
  surplus(): T[] {
    let left = this.#open.size - this.bound;
    const named: T[] = [];
    for (const one of this.#open) {
      if (left <= 0) break;
      if (!one.isIdle) continue;
      named.push(one);
      left--;
    }
    return named;
  }
}
