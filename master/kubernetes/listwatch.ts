/**
 * What a collection of the API server holds, for ever: a whole list first, then each change.
 *
 * Guarantees: a watch goes on after the last version seen, whatever ends it; a 410 (the history is gone) lists anew, and so does
 * `resyncMs`, for what a watch could have missed. Failure: `line` says why there is no watch now; it is tried again with
 * growing pauses.
 */
import { messageOf } from '../../proto/errors.ts';
import { ApiFault, pause, type Api } from './api.ts';

export interface Heed {
  listed(items: unknown[]): void;
  changed(change: 'ADDED' | 'MODIFIED' | 'DELETED', object: unknown): void;
  /** undefined: the API server is heard. */
  line(trouble: string | undefined): void;
}

const pages = 500;

export async function listAll(
  api: Api,
  path: string,
  signal: AbortSignal,
): Promise<{ items: unknown[]; version: string }> {
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

/** Until the signal aborts; never throws. */
export async function listWatch(
  api: Api,
  path: string,
  heed: Heed,
  signal: AbortSignal,
  resyncMs = Infinity,
): Promise<void> {
  let version: string | undefined;
  let listedMs = 0;
  let pauseMs = 0;
  while (!signal.aborted) {
    try {
      if (version === undefined || performance.now() - listedMs > resyncMs) {
        const listed = await listAll(api, path, signal);
        listedMs = performance.now();
        heed.listed(listed.items);
        ({ version } = listed);
      }
      heed.line(undefined);
      const from = `${path}${path.includes('?') ? '&' : '?'}resourceVersion=${version}`;
      for await (const { type, object } of api.watch(from, signal)) {
        version = (object as { metadata: { resourceVersion: string } }).metadata.resourceVersion;
        if (type !== 'BOOKMARK' && type !== 'ERROR') heed.changed(type, object);
        pauseMs = 0;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiFault && (error.status === 410 || error.reason === 'Expired')) {
        version = undefined;
        continue;
      }
      heed.line(messageOf(error));
      pauseMs = Math.min(10_000, Math.max(250, pauseMs * 2));
      await pause(pauseMs * (0.75 + Math.random() / 2), signal);
    }
  }
}
