/**
 * Protection groups: who is a member, in which order members are recovered, how a group is. Reads the store, changes nothing.
 *
 * Members are the replications whose spec.group names the group; its object, where there is one, adds order and targets.
 */
import { apiVersion } from './resources.ts';
import type {
  Group,
  GroupStatus,
  Recovery,
  RecoverySpec,
  RecoveryTarget,
  Replication,
  StorageClass,
} from './resources.ts';
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
  store: Pick<Store, 'get' | 'replicationsIn'>,
  { replication, group }: Pick<RecoverySpec, 'replication' | 'group'>,
): Member[] {
  if (replication !== undefined) return [{ replication, order: 1 }];
  return group === undefined ? [] : membersOf(group, store.get('Group', group), store.replicationsIn(group));
}

/** Where a member goes: to its own volume, where the target names one for it. */
export function targetOf({ target }: Pick<RecoverySpec, 'target'>, member: string): RecoveryTarget | null {
  return target?.volumes === undefined ? target : (target.volumes[member] ?? null);
}

/** Names of what a recovery is of: as it was when it began, or as it would be now. */
export function volumesOf(
  store: Pick<Store, 'get' | 'replicationsIn'>,
  { spec, status }: Pick<Recovery, 'spec' | 'status'>,
): string[] {
  if (status.tasks.length > 0) return status.tasks.map(({ volume }) => volume);
  return startOrder(store, spec).map(({ replication }) => replication);
}

/** A group comes to be with its first member. */
export function ensureGroup(store: Store, name: string | undefined): void {
  if (name === undefined || store.get('Group', name)) return;
  const spec = { members: [], rpoSeconds: null, rtoSeconds: null };
  store.create('Group', name, { apiVersion, kind: 'Group', metadata: { name }, spec, status: blankStatus });
}

/** Before it was looked at; what is shown is made anew at each read. */
export const blankStatus: GroupStatus = {
  state: 'PREPARING',
  targetState: 'NORMAL',
  message: null,
  members: [],
  recoverableTime: null,
};

/** The group of a replication, by name. */
export function groupOf(store: Pick<Store, 'get'>): (replication: string) => string | undefined {
  return (replication) => store.get('Replication', replication)?.spec.group;
}

/** As it is now. Pure. */
export function groupStatus(
  group: Group,
  facts: {
    replications: readonly Replication[];
    recoveries: readonly Recovery[];
    classes: readonly StorageClass[];
    /** Newest moment that was cut on all members together, ms. */
    commonMs: number | undefined;
    nowMs: number;
  },
): GroupStatus {
  const { replications, nowMs } = facts;
  const { rpoSeconds, rtoSeconds } = group.spec;
  const byName = new Map(replications.map((one) => [one.metadata.name, one]));
  const members = membersOf(group.metadata.name, group, replications).map(({ replication, order }) => {
    const { state, lastSyncTime } = byName.get(replication)?.status ?? {
      state: 'PREPARING' as const,
      lastSyncTime: null,
    };
    const lagSeconds = lastSyncTime === null ? null : Math.max(0, nowMs - Date.parse(lastSyncTime)) / 1000;
    return { replication, startOrder: order, state, lagSeconds };
  });
  const lags = members.map(({ lagSeconds }) => lagSeconds);
  const oldestMs =
    lags.length === 0 || lags.includes(null) ? undefined : nowMs - Math.max(...(lags as number[])) * 1000;
  const recoverableMs = oldestMs === undefined ? undefined : (facts.commonMs ?? oldestMs);
  const named = (list: typeof members): string => list.map(({ replication }) => replication).join(', ');
  const stuck = members.filter(({ state }) => state === 'ERROR' || state === 'FAILED');
  const preparing = members.filter(({ state }) => state === 'PREPARING');
  const last = facts.recoveries
    .filter(({ spec, status }) => spec.group === group.metadata.name && status.rtoSeconds !== null)
    .toSorted((a, b) => (a.status.endTime ?? '').localeCompare(b.status.endTime ?? ''))
    .at(-1);
  const isOld = rpoSeconds !== null && recoverableMs !== undefined && nowMs - recoverableMs > rpoSeconds * 1000;
  const isSlow = rtoSeconds !== null && (last?.status.rtoSeconds ?? 0) > rtoSeconds;
  const wrong = [
    stuck.length > 0 ? `${named(stuck)} cannot be mirrored now; see its condition Degraded` : '',
    isOld ? `what all members have in common is older than rpoSeconds ${rpoSeconds}` : '',
    isSlow ? `recovery ${last?.metadata.name} took ${last?.status.rtoSeconds} s, rtoSeconds is ${rtoSeconds}` : '',
  ].filter(Boolean);
  const targets = members.map(({ replication }) =>
    facts.classes.find(({ metadata }) => metadata.name === byName.get(replication)?.spec.target.storageClass),
  );
  const waiting = preparing.length > 0 ? `the first copy of ${named(preparing)} is not complete` : null;
  return {
    state: wrong.length > 0 ? 'WARNING' : preparing.length > 0 || members.length === 0 ? 'PREPARING' : 'NORMAL',
    targetState: targets.includes(undefined)
      ? 'NOT_FOUND'
      : targets.some((one) => one?.status.capacityBytes === null)
        ? 'INACTIVE'
        : 'NORMAL',
    message: wrong.length > 0 ? wrong.join('; ') : members.length === 0 ? 'it has no members' : waiting,
    members,
    recoverableTime: recoverableMs === undefined ? null : new Date(recoverableMs).toISOString(),
  };
}
