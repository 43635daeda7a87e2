/** One at a time, in order of arrival. */
export class Lock {
  #tail: Promise<unknown> = Promise.resolve();

  async run<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#tail.then(work);
    this.#tail = turn.catch(() => undefined);
    return turn;
  }
}

/** One at a time, or several that only share; in order of arrival, so that neither kind starves the other. */
export class SharedLock {
  #tail: Promise<unknown> = Promise.resolve();
  /** Shared ones that came after the newest exclusive one. */
  #sharing = new Set<Promise<unknown>>();

  /** Somebody shares it, and nobody waits to have it alone. */
  get shared(): boolean {
    return this.#sharing.size > 0;
  }

  /** Alone. */
  async run<T>(work: () => Promise<T>): Promise<T> {
    const turn = Promise.all([this.#tail, ...this.#sharing]).then(work);
    this.#sharing = new Set();
    this.#tail = turn.catch(() => undefined);
    return turn;
  }

  /** Beside others that share. */
  async share<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#tail.then(work);
    const sharing = this.#sharing;
    const held: Promise<unknown> = turn.catch(() => undefined).finally(() => sharing.delete(held));
    sharing.add(held);
    return turn;
  }
}

/** So many at a time, the others in order of arrival. */
export class Permits {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(count: number) {
    this.#free = count;
  }

  async run<T>(work: () => Promise<T>): Promise<T> {
    if (this.#free > 0) this.#free--;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
    try {
      return await work();
    } finally {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#free++;
    }
  }
}
