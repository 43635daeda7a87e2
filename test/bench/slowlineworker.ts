/**
 * The thread of `slowline.ts`. Each direction is one line for all connections: what is taken leaves it at its rate, in order, and
 * arrives half a round trip later. Of each connection and direction at most `capacityBytes` (and one read) are held, until the
 * other end's kernel has them: who sends faster is not read from. A connection can be written to after a round trip, as by TCP.
 */
import { createServer, connect, type Socket, type AddressInfo } from 'node:net';
import { setPriority } from 'node:os';
import { parentPort, workerData } from 'node:worker_threads';
import type { LineOptions } from './slowline.ts';

export interface WorkerData extends LineOptions {
  targetPort: number;
  /** Bytes taken so far, there and back. */
  counts: BigInt64Array;
}

/** What the queue before the line holds, as that of a router does. */
const queueMs = 40;
const leastBytes = 128 << 10;

try {
  // Of this thread alone: a line does not wait for a processor.
  setPriority(0, -15);
} catch {
  // Not root: what else runs here may make it narrower.
}

const { targetPort, counts, roundTripMs, bitsPerSecond } = workerData as WorkerData;
const bytesPerMs = bitsPerSecond / 8 / 1000;
const delayMs = roundTripMs / 2;
const capacityBytes = Math.max(leastBytes, Math.ceil(bytesPerMs * (delayMs + queueMs)));

interface Parcel {
  dueMs: number;
  deliver: () => void;
}

/** One direction. */
class Way {
  readonly #parcels: Parcel[] = [];
  #freeMs = 0;
  #timer: NodeJS.Timeout | undefined;

  /** @param notBeforeMs when it may be on the line */
  put(bytes: number, notBeforeMs: number, deliver: () => void): void {
    this.#freeMs = Math.max(this.#freeMs, performance.now(), notBeforeMs) + bytes / bytesPerMs;
    this.#parcels.push({ dueMs: this.#freeMs + delayMs, deliver });
    this.#wait();
  }

  #wait(): void {
    const next = this.#parcels[0];
    if (!next || this.#timer) return;
    this.#timer = setTimeout(
      () => {
        this.#timer = undefined;
        for (let due = this.#parcels[0]; due && due.dueMs <= performance.now(); due = this.#parcels[0]) {
          this.#parcels.shift();
          due.deliver();
        }
        this.#wait();
      },
      Math.max(0, next.dueMs - performance.now()),
    );
  }
}

function carry(from: Socket, to: Socket, way: Way, which: 0 | 1, notBeforeMs: number): void {
  let held = 0;
  const arrived = (bytes: number): void => {
    held -= bytes;
    if (held < capacityBytes && from.isPaused()) from.resume();
  };
  from.on('data', (chunk: Buffer) => {
    Atomics.add(counts, which, BigInt(chunk.length));
    held += chunk.length;
    if (held >= capacityBytes) from.pause();
    way.put(chunk.length, notBeforeMs, () => {
      if (to.writable) to.write(chunk, () => arrived(chunk.length));
    });
  });
  from.on('end', () => way.put(0, notBeforeMs, () => to.end()));
  from.on('error', () => from.destroy());
  from.on('close', () => way.put(0, 0, () => to.destroy()));
}

const [there, back] = [new Way(), new Way()];
const server = createServer({ allowHalfOpen: true, noDelay: true }, (near) => {
  const far = connect({ port: targetPort, host: '127.0.0.1', allowHalfOpen: true, noDelay: true });
  const openMs = performance.now() + roundTripMs;
  carry(near, far, there, 0, openMs);
  carry(far, near, back, 1, openMs);
});
server.listen(0, '127.0.0.1', () => parentPort?.postMessage((server.address() as AddressInfo).port));
