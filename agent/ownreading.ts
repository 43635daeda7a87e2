/**
 * Reading of our own that gives way: a volume that a comparison reads is in use by nobody else for that.
 *
 * Guarantees: while `letGo` works no reader here has the volume open; it waits for one piece of each, and they go on after it.
 */
import { Lock } from '../proto/lock.ts';

export interface Restful {
  /** Lets go of the volume until it is used again. */
  rest(): Promise<void>;
}

/** Runs one piece of reading; between two of them the volume may be let go. */
export type Turn = <T>(piece: () => Promise<T>) => Promise<T>;

interface Volume {
  lock: Lock;
  readers: Set<Restful>;
  users: number;
}

export class OwnReading {
  /** By resolved path. */
  readonly #volumes = new Map<string, Volume>();

  /** The device is used in turns only, and rests after the work. */
  async read<T>(path: string, device: Restful, work: (turn: Turn) => Promise<T>): Promise<T> {
    return this.#use(path, async ({ lock, readers }) => {
      readers.add(device);
      try {
        return await work((piece) => lock.run(piece));
      } finally {
        readers.delete(device);
        await lock.run(() => device.rest());
      }
    });
  }

  async letGo<T>(path: string, work: () => Promise<T>): Promise<T> {
    return this.#use(path, ({ lock, readers }) =>
      lock.run(async () => {
        for (const reader of readers) await reader.rest();
        return work();
      }),
    );
  }

  async #use<T>(path: string, work: (volume: Volume) => Promise<T>): Promise<T> {
    const volume = this.#volumes.get(path) ?? { lock: new Lock(), readers: new Set(), users: 0 };
    this.#volumes.set(path, volume);
    volume.users++;
    try {
      return await work(volume);
    } finally {
      if (--volume.users === 0) this.#volumes.delete(path);
    }
  }
}
