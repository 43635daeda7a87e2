/**
 * Who needs a snapshot: the one list that deleting by people and by retention both ask. A reference is a sentence that
 * names the object and what to do about it.
 */
import { ended } from './api/replications.ts';
import type { Snapshot } from './resources.ts';
import { snapshotKey, type Store } from './store.ts';

/** By the snapshot's key; those that nobody needs are not in it. */
export function snapshotReferences(store: Store): Map<string, string[]> {
  const found = new Map<string, string[]>();
  const add = (replication: string, name: string | null | undefined, why: string): void => {
    if (name === null || name === undefined) return;
    const key = snapshotKey(replication, name);
    found.set(key, [...(found.get(key) ?? []), why]);
  };
  const snapshots = store.list('Snapshot');
  for (const recovery of store.list('Recovery')) {
    if (ended(recovery)) continue;
    const { spec, status, metadata } = recovery;
    const why = `recovery ${metadata.name} uses it; wait for it or cancel it`;
    const chosen =
      typeof spec.point === 'object' && 'snapshot' in spec.point
        ? spec.point.snapshot
        : spec.point === 'latest-snapshot' && status.point === null
          ? latestReady(snapshots, spec.replication)?.metadata.name
          : status.point?.snapshot;
    add(spec.replication, chosen, why);
  }
  return found;
}

/** The newest that can be chosen. */
export function latestReady(snapshots: readonly Snapshot[], replication: string): Snapshot | undefined {
  return snapshots
    .filter(({ spec, status }) => spec.replication === replication && status.state === 'Ready')
    .sort((a, b) => (a.status.point?.sequence ?? 0) - (b.status.point?.sequence ?? 0))
    .at(-1);
}
