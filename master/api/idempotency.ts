/**
 * Idempotency-Key: a write that was answered well is answered the same again for 24 hours instead of being done twice.
 *
 * The answer is kept in the store right after the write, before it is sent. A crash just between the two loses the
 * answer, not the write: the retry is then told that the name is taken. At most 10,000 answers are kept; the oldest go
 * first. Answers that hold secrets (tokens) are never kept.
 */
import { createHash } from 'node:crypto';
import type { Clock } from '../../proto/effects.ts';
import type { Store } from '../store.ts';
import { ApiProblem, invalid } from './problem.ts';

export const keepMs = 24 * 3600 * 1000;
export const maxAnswers = 10_000;
const table = 'idempotency';

export interface Answer {
  status: number;
  body: string;
}
export interface Idempotency {
  /** @throws ApiProblem KeyReused when the key came with another request, Invalid when it is no key */
  find(caller: string, key: string, request: string): Answer | undefined;
  keep(caller: string, key: string, request: string, answer: Answer): void;
}

export function idempotency(
  store: Pick<Store, 'getRecord' | 'putRecord' | 'listRecords'>,
  clock: Pick<Clock, 'nowMs'>,
): Idempotency {
  // By age; the map keeps the order of insertion.
  const ages = new Map<string, number>();
  const timeOf = (value: string): number => (JSON.parse(value) as { timeMs: number }).timeMs;
  const stored = store.listRecords(table).map(({ key, value }) => ({ key, timeMs: timeOf(value) }));
  for (const { key, timeMs } of stored.sort((a, b) => a.timeMs - b.timeMs)) ages.set(key, timeMs);

  function forgetOld(): void {
    for (const [key, timeMs] of ages) {
      if (ages.size <= maxAnswers && clock.nowMs() - timeMs < keepMs) return;
      store.putRecord(table, key, undefined);
      ages.delete(key);
    }
  }

  return {
    find(caller, key, request) {
      if (!/^[\x21-\x7e]{1,255}$/.test(key))
        throw invalid([{ path: 'Idempotency-Key', message: 'must be 1 to 255 visible ASCII characters' }]);
      forgetOld();
      const value = store.getRecord(table, digest(caller, key));
      if (value === undefined) return undefined;
      const kept = JSON.parse(value) as Answer & { request: string };
      if (kept.request !== digest(request))
        throw new ApiProblem('KeyReused', 'this Idempotency-Key came with another request before; use a new key');
      return kept;
    },
    keep(caller, key, request, answer) {
      const name = digest(caller, key);
      const timeMs = clock.nowMs();
      store.putRecord(table, name, JSON.stringify({ ...answer, request: digest(request), timeMs }));
      ages.delete(name);
      ages.set(name, timeMs);
      forgetOld();
    },
  };
}

function digest(...parts: string[]): string {
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex');
}
