/**
 * The thread that talks with the API server for the store: keeps its cache fed by one list and watch for each resource, and
 * carries out requests. Everything goes over one port in order, so what the store has read is never older than what it is
 * answered later.
 *
 * Answers to requests that the store waits for are announced by a shared counter, as it sleeps on that.
 */
import { workerData, type MessagePort } from 'node:worker_threads';
import { messageOf } from '../../proto/errors.ts';
import { ApiFault, connectApi, type ClusterOptions, type Fault } from './api.ts';
import { listWatch } from './listwatch.ts';

export interface WorkerData {
  cluster: ClusterOptions;
  /** Path of each collection, by a name that comes back with its messages. */
  collections: { name: string; path: string }[];
  /** Grows by one with each answer. */
  answered: Int32Array;
  port: MessagePort;
}
export type ToWorker = { id: number; method: string; path: string; body?: unknown };
export type FromWorker =
  | { type: 'listed'; name: string; items: unknown[] }
  | { type: 'changed'; name: string; change: 'ADDED' | 'MODIFIED' | 'DELETED'; object: unknown }
  | { type: 'line'; name: string; trouble: string | undefined }
  | { type: 'answer'; id: number; body?: unknown; fault?: Fault };

const { cluster, collections, answered, port } = workerData as WorkerData;
const tell = (message: FromWorker): void => port.postMessage(message);
const api = connectApi(cluster);
port.on('message', ({ id, method, path, body }: ToWorker) => {
  api
    .request(method, path, body)
    .then(
      (result) => tell({ type: 'answer', id, body: result }),
      (error: unknown) => {
        const { status, reason, message, causes } =
          error instanceof ApiFault ? error : new ApiFault(0, 'Internal', messageOf(error));
        tell({ type: 'answer', id, fault: { status, reason, message, causes } });
      },
    )
    .finally(() => {
      Atomics.add(answered, 0, 1);
      Atomics.notify(answered, 0);
    });
});
const forever = new AbortController().signal;
for (const { name, path } of collections)
  void listWatch(
    api,
    path,
    {
      listed: (items) => tell({ type: 'listed', name, items }),
      changed: (change, object) => tell({ type: 'changed', name, change, object }),
      line: (trouble) => tell({ type: 'line', name, trouble }),
    },
    forever,
  );
