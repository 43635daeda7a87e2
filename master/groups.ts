/**
 * Protection groups: who is a member, in which order members are recovered, how a group is. Reads the store, changes nothing.
 *
 * Members are the replications whose spec.group names the group; its object, where there is one, adds order and targets.
 */
import type { Group, GroupStatus, Recovery, RecoverySpec, Replication } from './resources.ts';
import type { Store } from './store.ts';

export interface Member {
  replication: string;
  order: number;
}

/** By order, then by name. */
export function membersOf(name: string, group: Group | undefined, replications: readonly Replication[]): Member[] {
  const orders = new Map(group?.spec.members.map(({ replication, startOrder }) => [replication, startOrder]));
  return replications
    .filter(({ spec }) => spec.group === name)
    .map(({ metadata }) => ({ replication: metadata.name, order: orders.get(metadata.name) ?? 1 }))
    .sort((a, b) => a.order - b.order || (a.replication < b.replication ? -1 : 1));
}

/** Of a recovery: its one replication, or the members of its group. */
export function startOrder(
  store: Pick<Store, 'get' | 'list'>,
  { replication, group }: Pick<RecoverySpec, 'replication' | 'group'>,
): Member[] {
  if (replication !== undefined) return [{ replication, order: 1 }];
  return group === undefined ? [] : membersOf(group, store.get('Group', group), store.list('Replication'));
}

/** Names of what a recovery is of: as it was when it began, or as it would be now. */
export function volumesOf(
  store: Pick<Store, 'get' | 'list'>,
  { spec, status }: Pick<Recovery, 'spec' | 'status'>,
): string[] {
  if (status.tasks.length > 0) return status.tasks.map(({ volume }) => volume);
  return startOrder(store, spec).map(({ replication }) => replication);
}

/** The group of a replication, by name. */
export function groupOf(store: Pick<Store, 'get'>): (replication: string) => string | undefined {
  return (replication) => store.get('Replication', replication)?.spec.group;
}

/** As it is now. Pure. @param nowMs of the master's clock */
export function groupStatus(
  group: Group,
  replications: readonly Replication[],
  classes: readonly { metadata: { name: string }; status: { capacityBytes: number | null } }[],
  nowMs: number,
): GroupStatus {
  const byName = new Map(replications.map((one) => [one.metadata.name, one]));
  const lagOf = (one: Replication | undefined): number | null => {
    const time = one?.status.lastSyncTime ?? null;
    return time === null ? null : Math.max(0, nowMs - Date.parse(time)) / 1000;
  };
  const members = membersOf(group.metadata.name, group, replications).map(({ replication, order }) => {
    const one = byName.get(replication);
    return { replication, startOrder: order, state: one?.status.state ?? null, lagSeconds: lagOf(one) };
  });
  const times = members.map(({ replication }) => byName.get(replication)?.status.lastSyncTime ?? null);
  const common =
    times.includes(null) || times.length === 0 ? null : (times as string[]).reduce((a, b) => (a < b ? a : b));
  const wanted = members.map(({ replication }) => byName.get(replication)?.spec.target.storageClass);
  const targets = wanted.map((name) => classes.find(({ metadata }) => metadata.name === name));
  const { rpoSeconds } = group.spec;
  const late =
    rpoSeconds === null ? [] : members.filter(({ lagSeconds }) => lagSeconds !== null && lagSeconds > rpoSeconds);
  const named = (list: typeof members): string => list.map(({ replication }) => replication).join(', ');
  const missing = members.filter(({ state }) => state === null);
  const stuck = members.filter(({ state }) => state === 'ERROR' || state === 'FAILED');
  const preparing = members.filter(({ state }) => state === 'PREPARING');
  const wrong = [
    missing.length > 0 ? `there is no replication ${named(missing)}` : '',
    stuck.length > 0 ? `${named(stuck)} cannot be mirrored now; see its condition Degraded` : '',
    late.length > 0 ? `${named(late)} is older than rpoSeconds ${rpoSeconds}` : '',
  ].filter(Boolean);
  const first = preparing.length > 0 ? `the first copy of ${named(preparing)} is not complete` : null;
  return {
    state: wrong.length > 0 ? 'WARNING' : preparing.length > 0 || members.length === 0 ? 'PREPARING' : 'NORMAL',
    targetState: targets.includes(undefined)
      ? 'NOT_FOUND'
      : targets.some((one) => one?.status.capacityBytes === null)
        ? 'INACTIVE'
        : 'NORMAL',
    message: wrong.length > 0 ? wrong.join('; ') : members.length === 0 ? 'it has no members' : first,
    members,
    recoverableTime: common,
  };
}
