/**
 * How old each replica was over the last hour, for plots: one sample for each quarter of a minute, the worst age within it.
 *
 * Between two samples the age is the largest of what it was just before `lastSyncTime` moved and what it is at the end, so
 * no peak is lost. In memory only, 2 KiB for each replication; it begins anew with the master. Prometheus keeps longer.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Clock } from '../proto/effects.ts';
import type { Store } from './store.ts';
import { StoreConflict } from './store.ts';

export const sampleMs = 15_000;
export const maxSamples = 240;

export interface AgeSample {
  /** End of the quarter of a minute. */
  time: string;
  /** null: nothing was synced yet. */
  lagSeconds: number | null;
}

interface Trace {
  lastSyncMs: number | null;
  /** Worst age since the newest sample, seconds. */
  worst: number | null;
  samples: { atMs: number; age: number | null }[];
}

export interface AgeHistory {
  /** Oldest first; empty for one that is not known. */
  of(uid: string): AgeSample[];
  run(signal: AbortSignal): Promise<void>;
}

export function ageHistory(store: Store, clock: Pick<Clock, 'nowMs'>, everyMs = sampleMs): AgeHistory {
  const traces = new Map<string, Trace>();

  function see(uid: string, lastSyncTime: string | null): void {
    const lastSyncMs = lastSyncTime === null ? null : Date.parse(lastSyncTime);
    const trace = traces.get(uid) ?? { lastSyncMs, worst: null, samples: [] };
    traces.set(uid, trace);
    if (trace.lastSyncMs === lastSyncMs) return;
    trace.worst = worstOf(trace, clock.nowMs());
    trace.lastSyncMs = lastSyncMs;
  }
  function sample(): void {
    const atMs = clock.nowMs();
    for (const trace of traces.values()) {
      trace.samples.push({ atMs, age: worstOf(trace, atMs) });
      if (trace.samples.length > maxSamples) trace.samples.shift();
      trace.worst = null;
    }
  }
  async function follow(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const since = store.version();
      const present = store.list('Replication');
      const uids = new Set(present.map(({ metadata }) => metadata.uid));
      for (const uid of traces.keys()) if (!uids.has(uid)) traces.delete(uid);
      for (const { metadata, status } of present) see(metadata.uid, status.lastSyncTime);
      try {
        for await (const change of store.watch({ kinds: ['Replication'], since, signal })) {
          if (change.kind !== 'Replication') continue;
          const { metadata, status } = change.object;
          if (change.type === 'DELETED') traces.delete(metadata.uid);
          else see(metadata.uid, status.lastSyncTime);
        }
      } catch (error) {
        // Too far behind: what is there now is enough.
        if (!(error instanceof StoreConflict)) throw error;
      }
    }
  }

  return {
    of: (uid) =>
      (traces.get(uid)?.samples ?? []).map(({ atMs, age }) => ({
        time: new Date(atMs).toISOString(),
        lagSeconds: age === null ? null : Math.round(age * 1000) / 1000,
      })),
    async run(signal) {
      const following = follow(signal);
      try {
        for (;;) {
          await sleep(everyMs, undefined, { signal });
          sample();
        }
      } catch (error) {
        if (!signal.aborted) throw error;
      }
      await following;
    },
  };
}

function worstOf({ lastSyncMs, worst }: Trace, nowMs: number): number | null {
  const age = lastSyncMs === null ? null : Math.max(0, (nowMs - lastSyncMs) / 1000);
  return age === null ? worst : Math.max(age, worst ?? 0);
}
