/**
 * A CSI driver for tests with real sidecars: volumes are images in a folder of a filesystem with reflinks, snapshots and clones are reflinks of
 * them, and what differs between two snapshots is found by comparing bytes. It knows the state of each at the instant that it was made.
 *
 * It has a thread of its own (imagedriverthread.ts): sidecars end when their driver does not answer for a second, and a test that waits
 * for a program answers nobody.
 */
import { once } from 'node:events';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';

export const driverName = 'images.example.com';
/** Of each volume. */
export const maxKept = 30;

export interface ThreadData {
  folder: string;
  socket: string;
}
/** How many of the next calls are refused: deltas with FAILED_PRECONDITION, clones with INVALID_ARGUMENT, snapshots with RESOURCE_EXHAUSTED. */
export interface DriverOrder {
  deltas: number;
  snapshots: number;
  clones: number;
}
export type DriverNews =
  | { ready: true }
  | { taken: [id: string, sha256: string] }
  /** More of them. */
  | { toldBytes: number }
  /** What is left of it. */
  | { refuse: DriverOrder };

export interface ImageDriver {
  socket: string;
  /** Of each snapshot and clone that was ever made: SHA-256 of the volume at that instant. */
  taken: Map<string, string>;
  /** Ranges of all answers to deltas, in bytes. */
  toldBytes: number;
  /** What is left of what was ordered. */
  refuse: DriverOrder;
  order(refuse: Partial<DriverOrder>): void;
  image(volume: string): string;
  /** Images of what was made of the volume newest, whatever has become of it, newest first. */
  kept(volume: string): string[];
  close(): Promise<void>;
}

export async function startImageDriver(folder: string): Promise<ImageDriver> {
  for (const name of ['volumes', 'snapshots', 'kept']) mkdirSync(join(folder, name));
  const data: ThreadData = { folder, socket: join(folder, 'csi.sock') };
  const thread = new Worker(new URL('./imagedriverthread.ts', import.meta.url), { workerData: data });
  const driver: ImageDriver = {
    socket: data.socket,
    taken: new Map(),
    toldBytes: 0,
    refuse: { deltas: 0, snapshots: 0, clones: 0 },
    order(refuse) {
      Object.assign(driver.refuse, refuse);
      thread.postMessage(driver.refuse);
    },
    image: (volume) => join(folder, 'volumes', volume),
    kept: (volume) =>
      [...driver.taken.keys()]
        .reverse()
        .map((id) => keptPath(folder, volume, id))
        .filter((path) => existsSync(path)),
    async close() {
      await thread.terminate();
    },
  };
  const ready = once(thread, 'message');
  thread.on('message', (news: DriverNews) => {
    if ('taken' in news) driver.taken.set(...news.taken);
    if ('toldBytes' in news) driver.toldBytes += news.toldBytes;
    if ('refuse' in news) driver.refuse = news.refuse;
  });
  await ready;
  return driver;
}

export function keptPath(folder: string, volume: string, id: string): string {
  return join(folder, 'kept', `${volume}@${id}`);
}
