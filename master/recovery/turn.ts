/**
 * Whose turn it is: one recovery of a group at a time, the next waits; of a replication one failover. Pure.
 *
 * A recovery of a single member takes its whole group. Drills of a replication that is in no group run side by side, and a
 * failover never waits for them.
 */
import type { Recovery } from '../resources.ts';
import { hasEnded, isUnderWay } from './machine.ts';

/** Group of a replication, if it is in one. */
export type GroupOf = (replication: string) => string | undefined;

/** The recovery that this one waits for; undefined: it may begin. */
export function blockedBy(one: Recovery, all: readonly Recovery[], groupOf: GroupOf): Recovery | undefined {
  const rivals = all.filter(
    (other) => other.metadata.uid !== one.metadata.uid && !hasEnded(other) && conflict(one, other, groupOf),
  );
  return rivals.find(isUnderWay) ?? rivals.find((other) => isEarlier(other, one));
}

export function conflict(a: Recovery, b: Recovery, groupOf: GroupOf): boolean {
  const group = groupIn(a, groupOf);
  if (group !== undefined && group === groupIn(b, groupOf)) return true;
  const isSame = a.spec.replication !== undefined && a.spec.replication === b.spec.replication;
  return isSame && a.spec.type === 'failover' && b.spec.type === 'failover';
}

function groupIn({ spec }: Recovery, groupOf: GroupOf): string | undefined {
  return spec.group ?? (spec.replication === undefined ? undefined : groupOf(spec.replication));
}

/** By time, then by uid, so that of two made in the same millisecond one is first for both. */
function isEarlier({ metadata: a }: Recovery, { metadata: b }: Recovery): boolean {
  const [timeA, timeB] = [Date.parse(a.creationTimestamp), Date.parse(b.creationTimestamp)];
  return timeA === timeB ? a.uid < b.uid : timeA < timeB;
}
