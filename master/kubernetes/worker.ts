/**
 * The thread that talks with the API server for the store: keeps its cache fed by one list and watch for each resource, and
 * carries out requests. Everything goes over one port in order, so what the store has read is never older than what it is
 * answered later.
 *
 * A watch goes on after the last version seen, whatever ends it; a 410 (the history is gone) lists anew. Answers to
 * requests that the store waits for are announced by a shared counter, as it sleeps on that.
 */
import { workerData, type MessagePort } from 'node:worker_threads';
import { messageOf } from '../../proto/errors.ts';
import { ApiFault, connectApi, pause, type Api, type ClusterOptions } from './api.ts';

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
  | { type: 'answer'; id: number; body?: unknown; fault?: { status: number; reason: string; message: string } };

const { cluster, collections, answered, port } = workerData as WorkerData;
const tell = (message: FromWorker): void => port.postMessage(message);
const pages = 500;

async function listAll(api: Api, path: string, signal: AbortSignal): Promise<{ items: unknown[]; version: string }> {
  const items: unknown[] = [];
  let next: string | undefined;
  for (;;) {
    const query = `${path.includes('?') ? '&' : '?'}limit=${pages}${next === undefined ? '' : `&continue=${encodeURIComponent(next)}`}`;
    const page = (await api.request('GET', path + query, undefined, signal)) as {
      items?: unknown[];
      metadata: { resourceVersion: string; continue?: string };
    };
    items.push(...(page.items ?? []));
    next = page.metadata.continue;
    if (next === undefined || next === '') return { items, version: page.metadata.resourceVersion };
  }
}

async function follow(api: Api, { name, path }: { name: string; path: string }, signal: AbortSignal): Promise<void> {
  let version: string | undefined;
  let pauseMs = 0;
  while (!signal.aborted) {
    try {
      if (version === undefined) {
        const listed = await listAll(api, path, signal);
        tell({ type: 'listed', name, items: listed.items });
        ({ version } = listed);
      }
      tell({ type: 'line', name, trouble: undefined });
      const from = `${path}${path.includes('?') ? '&' : '?'}resourceVersion=${version}`;
      for await (const { type, object } of api.watch(from, signal)) {
        version = (object as { metadata: { resourceVersion: string } }).metadata.resourceVersion;
        if (type !== 'BOOKMARK' && type !== 'ERROR') tell({ type: 'changed', name, change: type, object });
        pauseMs = 0;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiFault && (error.status === 410 || error.reason === 'Expired')) {
        version = undefined;
        continue;
      }
      tell({ type: 'line', name, trouble: messageOf(error) });
      pauseMs = Math.min(10_000, Math.max(250, pauseMs * 2));
      await pause(pauseMs * (0.75 + Math.random() / 2), signal);
    }
  }
}

const api = connectApi(cluster);
port.on('message', ({ id, method, path, body }: ToWorker) => {
  api
    .request(method, path, body)
    .then(
      (result) => tell({ type: 'answer', id, body: result }),
      (error: unknown) => {
        const { status, reason, message } =
          error instanceof ApiFault ? error : new ApiFault(0, 'Internal', messageOf(error));
        tell({ type: 'answer', id, fault: { status, reason, message } });
      },
    )
    .finally(() => {
      Atomics.add(answered, 0, 1);
      Atomics.notify(answered, 0);
    });
});
const forever = new AbortController().signal;
for (const collection of collections) void follow(api, collection, forever);
