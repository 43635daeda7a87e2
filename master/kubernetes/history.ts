/**
 * The newest changes of a cache, for watches to resume from. Its versions are positions of its own, as each resource of the
 * API server has its own stream: they begin with the time, so those of an earlier process are older than any here.
 */
import { changed } from '../changed.ts';
import { StoreConflict } from '../store.ts';
import type { Change } from '../store.ts';

export interface History {
  version(): number;
  add(change: Omit<Change, 'version'>): void;
  /** @throws StoreConflict expired */
  watch(kinds: string[] | undefined, since: number, signal: AbortSignal): AsyncGenerator<Change>;
}

export function history(nowMs: number, maxChanges: number): History {
  const news = changed();
  let newest = Math.floor(nowMs) * 100;
  let oldest = newest;
  let log: { version: number; text: string; kind: string }[] = [];

  function check(since: number): void {
    if (since < oldest || since > newest)
      throw new StoreConflict('expired', `changes after ${since} are not known here; list again`);
  }
  async function* follow(kinds: string[] | undefined, since: number, signal: AbortSignal): AsyncGenerator<Change> {
    let at = since;
    while (!signal.aborted) {
      check(at);
      const next = log[at - oldest];
      if (!next) {
        await news.next(signal);
        continue;
      }
      at = next.version;
      if (kinds === undefined || kinds.includes(next.kind)) yield JSON.parse(next.text) as Change;
    }
  }

  return {
    version: () => newest,
    add(change) {
      newest += 1;
      log.push({ version: newest, kind: change.kind, text: JSON.stringify({ ...change, version: newest }) });
      // Not one by one: shifting the array would cost its length each time.
      if (log.length >= maxChanges * 2) {
        log = log.slice(-maxChanges);
        oldest = newest - maxChanges;
      }
      news.tell();
    },
    watch(kinds, since, signal) {
      check(since);
      return follow(kinds, since, signal);
    },
  };
}
