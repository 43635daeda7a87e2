/**
 * A long line in front of a port of this machine: bytes take half a round trip each way, at a rate that all connections share. For
 * machines whose kernel has no netem; what TCP itself does with delay and loss is not in it, as each end speaks to this one. A
 * thread of its own, so that neither who measures nor who is measured holds it up.
 */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import type { WorkerData } from './slowlineworker.ts';

export interface LineOptions {
  roundTripMs: number;
  /** Each way. */
  bitsPerSecond: number;
}

export interface SlowLine {
  port: number;
  /** So far, both ways. */
  bytes(): number;
  close(): Promise<void>;
}

export async function startSlowLine(targetPort: number, options: LineOptions): Promise<SlowLine> {
  const counts = new BigInt64Array(new SharedArrayBuffer(16));
  const workerData: WorkerData = { ...options, targetPort, counts };
  const worker = new Worker(new URL('slowlineworker.ts', import.meta.url), { workerData });
  const [port] = (await once(worker, 'message')) as [number];
  return {
    port,
    bytes: () => Number(Atomics.load(counts, 0) + Atomics.load(counts, 1)),
    async close() {
      await worker.terminate();
    },
  };
}
