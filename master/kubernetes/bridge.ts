/**
 * Requests to the API server that this thread waits for, and the changes that the watches bring, in one order.
 *
 * Why waiting: the store's writes are one step with the checks before them and durable when they return, as those of SQLite
 * are, which keep the thread as long (an fsync, as etcd's). An API server that does not answer costs its time-out once:
 * after that requests fail at once until a watch or a probe has heard of it again.
 */
import { MessageChannel, receiveMessageOnPort, Worker } from 'node:worker_threads';
import { ApiFault, type Fault } from './api.ts';
import type { FromWorker, ToWorker, WorkerData } from './worker.ts';

export type Arrival = Exclude<FromWorker, { type: 'answer' }>;

export interface Bridge {
  /** What has arrived before the answer is handed to `onArrival` first. @throws ApiFault */
  wait(method: string, path: string, body?: unknown): unknown;
  /** The same without waiting. @throws ApiFault */
  send(method: string, path: string, body?: unknown): Promise<unknown>;
  close(): void;
}

/** Longer than the worker's own. */
const limitMs = 12_000;

export function openBridge(
  options: Omit<WorkerData, 'answered' | 'port'>,
  onArrival: (arrival: Arrival) => void,
  onFailure: (error: Error) => void,
): Bridge {
  const answered = new Int32Array(new SharedArrayBuffer(4));
  const { port1: port, port2 } = new MessageChannel();
  const worker = new Worker(new URL('./worker.ts', import.meta.url), {
    workerData: { ...options, answered, port: port2 } satisfies WorkerData,
    transferList: [port2],
  });
  const pending = new Map<number, { resolve: (body: unknown) => void; reject: (fault: ApiFault) => void }>();
  const results = new Map<number, Extract<FromWorker, { type: 'answer' }>>();
  let waitingFor: number | undefined;
  let lastId = 0;
  /** No answer came to the last request. */
  let silent: ApiFault | undefined;
  let probing = false;

  function take(message: FromWorker): void {
    if (message.type !== 'answer') {
      if (message.type !== 'line' || message.trouble === undefined) silent = undefined;
      return onArrival(message);
    }
    if (message.fault?.status !== 0) silent = undefined;
    if (message.id === waitingFor) return void results.set(message.id, message);
    const one = pending.get(message.id);
    pending.delete(message.id);
    if (message.fault) one?.reject(faultOf(message.fault));
    else one?.resolve(message.body);
  }
  port.on('message', take);
  worker.on('error', onFailure);

  function post(method: string, path: string, body: unknown): number {
    const id = ++lastId;
    port.postMessage({ id, method, path, ...(body === undefined ? {} : { body }) } satisfies ToWorker);
    return id;
  }
  function sendIt(method: string, path: string, body?: unknown): Promise<unknown> {
    return new Promise((resolve, reject) => pending.set(post(method, path, body), { resolve, reject }));
  }
  function probe(): void {
    if (probing) return;
    probing = true;
    sendIt('GET', '/version')
      .catch(() => undefined)
      .finally(() => (probing = false));
  }
  function answerTo(id: number): Extract<FromWorker, { type: 'answer' }> {
    const endMs = performance.now() + limitMs;
    waitingFor = id;
    try {
      for (;;) {
        const before = Atomics.load(answered, 0);
        for (;;) {
          const received = receiveMessageOnPort(port) as { message: FromWorker } | undefined;
          if (!received) break;
          take(received.message);
        }
        const found = results.get(id);
        results.delete(id);
        if (found) return found;
        const leftMs = endMs - performance.now();
        if (leftMs <= 0) throw new ApiFault(0, 'NoAnswer', 'the API server has not answered in time');
        Atomics.wait(answered, 0, before, leftMs);
      }
    } finally {
      waitingFor = undefined;
    }
  }

  return {
    wait(method, path, body) {
      if (silent) {
        probe();
        throw silent;
      }
      try {
        const { fault, body: answer } = answerTo(post(method, path, body));
        if (fault) throw faultOf(fault);
        return answer;
      } catch (error) {
        if (error instanceof ApiFault && error.status === 0) silent = error;
        throw error;
      }
    },
    send: sendIt,
    close() {
      const closed = new ApiFault(0, 'NoAnswer', 'the store is closed');
      for (const { reject } of pending.values()) reject(closed);
      pending.clear();
      port.close();
      void worker.terminate();
    },
  };
}

function faultOf({ status, reason, message, causes }: Fault): ApiFault {
  return new ApiFault(status, reason, message, causes);
}
