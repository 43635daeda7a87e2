/**
 * Who needs a snapshot: the one list that deleting by people and by retention both ask. A reference is a sentence that
 * names the object and what to do about it.
 */
import { startOrder, volumesOf } from './groups.ts';
import { failbackName } from './recovery/failback.ts';
import { hasEnded } from './recovery/machine.ts';
import { owesProof } from './recovery/proven.ts';
import type { PointChoice, Snapshot } from './resources.ts';
import { snapshotKey, type Store } from './store.ts';

/** By the snapshot's key; those that nobody needs are not in it. */
export function snapshotReferences(store: Store): Map<string, string[]> {
  const found = new Map<string, string[]>();
  const add = (replication: string, name: string | null | undefined, why: string): void => {
    if (name === null || name === undefined) return;
    const key = snapshotKey(replication, name);
    found.set(key, [...(found.get(key) ?? []), why]);
  };
  const snapshots = Map.groupBy(store.list('Snapshot'), ({ spec }) => spec.replication);
  const chosen = (replication: string, choice: PointChoice): string | undefined =>
    needed(choice, snapshots.get(replication) ?? [])?.metadata.name;

  for (const recovery of store.list('Recovery')) {
    if (hasEnded(recovery)) continue;
    const { spec, status, metadata } = recovery;
    const why = `recovery ${metadata.name} uses it; wait for it, cancel it or roll it back`;
    for (const volume of volumesOf(store, recovery)) {
      const point = status.tasks.find((task) => task.volume === volume)?.point ?? null;
      // A point that is chosen may lie in several: each of them is what it rests on once the journal has moved on.
      if (point === null) add(volume, chosen(volume, spec.point), why);
      for (const { metadata, status } of snapshots.get(volume) ?? [])
        if (point !== null && status.point?.sequence === point.sequence) add(volume, metadata.name, why);
    }
  }
  for (const { spec, status, metadata } of store.list('RecoverySchedule')) {
    // It was made, and none comes any more.
    if (status.lastTime !== null && status.nextTime === null && !spec.paused) continue;
    const why = `recovery schedule ${metadata.name} uses it; change or delete that first`;
    for (const { replication } of startOrder(store, spec)) add(replication, chosen(replication, spec.point), why);
  }
  return found;
}

/**
 * Sequences of points of a replication that recoveries have chosen and not copied yet, paused and failed ones among them, or have
 * handed out and not read whole yet.
 */
export function pinnedPoints(store: Store, replication: string): number[] {
  return pinsOf(store).get(replication) ?? [];
}

/** Of all replications: each of them asks every few seconds, and recoveries change seldom. */
const pins = new WeakMap<Store, { revision: number; found: Map<string, number[]> }>();
function pinsOf(store: Store): Map<string, number[]> {
  const known = pins.get(store);
  const revision = store.revision('Recovery');
  if (known?.revision === revision) return known.found;
  const found = new Map<string, number[]>();
  for (const recovery of store.list('Recovery')) {
    recovery.status.tasks.forEach(({ volume, point }, index) => {
      if (point === null) return;
      const isOwed = owesProof(recovery, index);
      const stage = recovery.job.volumes[index]?.stage;
      if (!isOwed && (stage !== 'chosen' || hasEnded(recovery))) return;
      // Once it is confirmed the other name has the replica.
      for (const name of isOwed ? [volume, failbackName(volume)] : [volume])
        found.set(name, [...(found.get(name) ?? []), point.sequence]);
    });
  }
  pins.set(store, { revision, found });
  return found;
}

/** The snapshot that a choice leads to now; of a time it may be that the journal has a newer point. */
function needed(choice: PointChoice, snapshots: readonly Snapshot[]): Snapshot | undefined {
  const ready = snapshots.filter(({ status }) => status.state === 'Ready');
  if (choice === 'latest-data') return undefined;
  if (choice === 'latest-snapshot') return newest(ready);
  if ('snapshot' in choice) return snapshots.find(({ metadata }) => metadata.name === choice.snapshot);
  // As recovery/point.ts chooses: the latest time, of equals the newest.
  const timeOf = ({ status }: Snapshot): number => Date.parse(status.point?.sourceTime ?? '');
  const fitting = ready.filter((one) => timeOf(one) <= Date.parse(choice.time));
  const latestMs = fitting.reduce((most, one) => Math.max(most, timeOf(one)), 0);
  return newest(fitting.filter((one) => timeOf(one) === latestMs));
}

/** The newest that can be chosen. */
export function latestReady(snapshots: readonly Snapshot[]): Snapshot | undefined {
  return newest(snapshots.filter(({ status }) => status.state === 'Ready'));
}

function newest(snapshots: readonly Snapshot[]): Snapshot | undefined {
  return snapshots.toSorted((a, b) => (a.status.point?.sequence ?? 0) - (b.status.point?.sequence ?? 0)).at(-1);
}
