/**
 * What loops look for among all replications each second - schedules, policies, forks - made anew only when somebody has decided
 * something: with thousands of them, reading all takes longer than all that is done with them.
 */
import type { Replication } from './resources.ts';
import type { Store } from './store.ts';

/** @param pick goes by anything but the status, and keeps what is needed to find them again: see `asTheyAre` */
export function derived<T>(store: Pick<Store, 'decision' | 'list'>, pick: (replications: Replication[]) => T): () => T {
  let known: { decision: number; answer: T } | undefined;
  return () => {
    const decision = store.decision('Replication');
    if (known?.decision !== decision) known = { decision, answer: pick(store.list('Replication')) };
    return known.answer;
  };
}

export interface Found {
  name: string;
  uid: string;
}
export function find({ metadata: { name, uid } }: Replication): Found {
  return { name, uid };
}
/** What has gone is left out. */
export function asTheyAre(store: Pick<Store, 'get'>, found: Found[]): Replication[] {
  return found.flatMap(({ name, uid }) => {
    const now = store.get('Replication', name);
    return now?.metadata.uid === uid ? [now] : [];
  });
}
