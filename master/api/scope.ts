/**
 * Callers that are bound to protection groups: what they see and do is what belongs to the replications of these groups.
 *
 * Guarantees: no route answers such a caller without an entry in `scopeRules` that says how it is held to this (the server does not
 * start otherwise); what is beyond is not found, as if it was not there, and never forbidden, so that nothing tells that it exists.
 * What all share (agents, storage classes, sinks, left-overs) they do not change.
 * A recovery belongs to the group that its replication had when it was made. An event that is older than the object of its name is of
 * another one, and is not shown. Names are shared: that one is taken is told.
 */
import { isDeepStrictEqual } from 'node:util';
import type { Kind, Replication, ReplicationSpec, Resources } from '../resources.ts';
import type { Change, Store } from '../store.ts';
import type { Caller } from '../tokens.ts';
import { ApiProblem, notFound } from './problem.ts';

/**
 * How a route holds callers to their groups: `own` it shows nothing of objects; `named` the object named in its address must belong;
 * `filtered` its handler shows or takes only what belongs; `whole` only callers who are bound to no groups.
 */
export type ScopeRule = 'own' | 'named' | 'filtered' | 'whole';

const kindsByPlural: Record<string, { kind: Kind; singular: string }> = {
  replications: { kind: 'Replication', singular: 'replication' },
  groups: { kind: 'Group', singular: 'group' },
  recoveries: { kind: 'Recovery', singular: 'recovery' },
  recoveryschedules: { kind: 'RecoverySchedule', singular: 'recovery schedule' },
  agents: { kind: 'Agent', singular: 'agent' },
  storageclasses: { kind: 'StorageClass', singular: 'storage class' },
};
const shared = ['agents', 'storageclasses'];
const collections: Record<string, ScopeRule> = {
  ...{ replications: 'filtered', groups: 'filtered', recoveries: 'filtered', recoveryschedules: 'filtered' },
  ...{ agents: 'filtered', storageclasses: 'filtered', events: 'filtered', watch: 'filtered' },
  ...{ tokens: 'filtered', users: 'filtered', session: 'own' },
  ...{ garbage: 'whole', sinks: 'whole', log: 'whole' },
};

/** Undefined: nobody has thought about it. */
export function scopeRule(method: string, url: string): ScopeRule | undefined {
  if (url === '/metrics') return 'filtered';
  if (!url.startsWith('/api/v1/')) return 'own';
  const [plural = '', item] = url.slice('/api/v1/'.length).split('/');
  // A log tells of everybody's.
  if (shared.includes(plural) && (method !== 'GET' || url.endsWith('/log'))) return 'whole';
  if (item === ':name' && plural in kindsByPlural) return 'named';
  return collections[plural];
}

export interface Scope {
  /** Bound to no groups. */
  isWhole: boolean;
  sees: (object: Resources[Kind]) => boolean;
  /** Of an event's object, such as Replication/orders, as of the time when it happened first. */
  seesEvent: (object: string | null, timeMs: number) => boolean;
  hasGroup: (name: string | undefined) => boolean;
}

/** As the store is at each question. */
export function scopeOf(store: Pick<Store, 'get' | 'list'>, { groups }: Pick<Caller, 'groups'>): Scope {
  if (groups === undefined) return { isWhole: true, sees: () => true, seesEvent: () => true, hasGroup: () => true };
  const own = groupsOnly(groups);
  // One look at all of them, when something is asked that is not of one replication.
  let used: Uses | undefined;
  const uses = (): Uses => {
    if (used !== undefined) return used;
    const listed = usesOf();
    for (const one of store.list('Replication')) if (own(one.spec.group)) listed.add(one);
    return (used = listed);
  };
  const member = (name: string | undefined): Replication | undefined => {
    const found = name === undefined ? undefined : store.get('Replication', name);
    return found && own(found.spec.group) ? found : undefined;
  };
  const sees = (object: Resources[Kind]): boolean => isWithin(object, own, member, uses);
  return {
    isWhole: false,
    sees,
    hasGroup: own,
    seesEvent(object, timeMs) {
      const [kind = '', name = '', snapshot = ''] = (object ?? '').split('/');
      if (kind === 'Replication' || kind === 'Snapshot') {
        const found = member(kind === 'Snapshot' && snapshot === '' ? undefined : name);
        return found !== undefined && timeMs >= bornMs(found);
      }
      if (kind === 'Group') return own(name);
      if (kind !== 'Recovery' && kind !== 'RecoverySchedule') return false;
      const found = store.get(kind, name);
      return found !== undefined && timeMs >= bornMs(found) && sees(found);
    },
  };
}

/** @throws ApiProblem NotFound, Forbidden: by the address alone */
export function holdToScope(
  store: Pick<Store, 'get' | 'list'>,
  caller: Caller,
  { method, url }: { method: string; url: string },
  params: Record<string, string>,
): void {
  if (caller.groups === undefined) return;
  const rule = scopeRule(method, url);
  if (rule === 'own' || rule === 'filtered') return;
  const bound = `${caller.name} is bound to ${caller.groups.join(', ')}`;
  if (rule === 'whole') throw new ApiProblem('Forbidden', `${bound}; this is for those who are bound to no groups`);
  const { kind, singular } = kindsByPlural[url.split('/')[3] ?? ''] ?? { kind: 'Replication', singular: '' };
  const name = params['name'] ?? '';
  const found = store.get(kind, name);
  // A group comes to be with its first member: its name is enough.
  if (kind === 'Group' && found === undefined && caller.groups.includes(name)) return;
  if (found === undefined || !scopeOf(store, caller).sees(found)) throw notFound(singular, name);
}

/** Groups that somebody bound to `caller`'s may be given: at most those. @throws ApiProblem Forbidden */
export function mustBeWithin(caller: Caller, groups: readonly string[] | undefined): void {
  if (caller.groups === undefined) return;
  const own = caller.groups;
  if (groups !== undefined && groups.every((name) => own.includes(name))) return;
  throw new ApiProblem('Forbidden', `${caller.name} is bound to ${own.join(', ')}: others can be bound to these alone`);
}
export function isWithinGroups(caller: Caller, groups: readonly string[] | undefined): boolean {
  const own = caller.groups;
  return own === undefined || (groups !== undefined && groups.every((name) => own.includes(name)));
}

/** @throws ApiProblem Forbidden: a replication that is made or changed must stay within the caller's groups */
export function mustHaveGroup(caller: Caller, group: string | undefined): void {
  if (caller.groups === undefined || (group !== undefined && caller.groups.includes(group))) return;
  const message = `must be ${caller.groups.length === 1 ? '' : 'one of '}${caller.groups.join(', ')}, which ${caller.name} is bound to`;
  throw new ApiProblem('Forbidden', `spec.group ${message}`, [{ path: 'spec.group', message }]);
}

/** What others mirror is not mirrored into one's own group to be read there. @throws ApiProblem Forbidden */
export function mustBeApart(
  store: Pick<Store, 'list'>,
  caller: Caller,
  { agent, path, pvc }: ReplicationSpec['source'],
): void {
  if (caller.groups === undefined) return;
  const own = groupsOnly(caller.groups);
  const isBelow = (a: string, b: string): boolean => a === b || a.startsWith(`${b}/`);
  const isOthers = store.list('Replication').some(({ spec: { group, source } }) => {
    if (own(group)) return false;
    if (pvc !== undefined && isDeepStrictEqual(pvc, source.pvc)) return true;
    return agent !== '' && source.agent === agent && (isBelow(path, source.path) || isBelow(source.path, path));
  });
  if (!isOthers) return;
  const message = `is, holds or lies in a volume of a replication beyond the groups that ${caller.name} is bound to`;
  throw new ApiProblem('Forbidden', `spec.source.path ${message}`, [{ path: 'spec.source.path', message }]);
}

/** Metrics in Prometheus' text format: of replications that belong, and nothing else. */
export function metricsWithin(text: string, isSeen: (replication: string) => boolean): string {
  const known = new Map<string, boolean>();
  const seen = (name: string): boolean => {
    const before = known.get(name);
    if (before !== undefined) return before;
    const now = isSeen(name);
    known.set(name, now);
    return now;
  };
  let comments: string[] = [];
  const lines: string[] = [];
  let isComment = false;
  for (const line of text.split('\n')) {
    if (line.startsWith('#')) {
      if (!isComment) comments = [];
      comments.push(line);
      isComment = true;
      continue;
    }
    isComment = false;
    const name = /[{,]replication="([^"\\]*)"/.exec(line)?.[1];
    if (name === undefined || !seen(name)) continue;
    lines.push(...comments, line);
    comments = [];
  }
  return `${lines.join('\n')}\n`;
}

/** One change of the store, as what it is for this watcher: several, when a replication comes or goes with what belongs to it. */
export interface SeenChange {
  version: number;
  changes: Pick<Change, 'type' | 'object' | 'labelsBefore'>[];
}

/**
 * The store's changes for a caller. Who is bound to groups is told of a replication that joins one of them as ADDED and of one that
 * leaves as DELETED, each with what belongs to it. Goes by the order of the changes, not by what the store is meanwhile.
 */
export function changesWithin(
  store: Store,
  { groups }: Pick<Caller, 'groups'>,
  kinds: Kind[],
  since: number,
  signal: AbortSignal,
): AsyncIterable<SeenChange> {
  if (groups === undefined) return each(store.watch({ kinds, since, signal }));
  const own = groupsOnly(groups);
  const members = new Map<string, Replication>();
  for (const one of store.list('Replication')) if (own(one.spec.group)) members.set(one.metadata.name, one);
  // Throws Expired here, before anything is answered.
  const all = store.watch({ kinds: [...new Set<Kind>([...kinds, 'Replication'])], since, signal });
  return within(store, all, own, members, kinds);
}

async function* each(changes: AsyncIterable<Change>): AsyncGenerator<SeenChange> {
  for await (const change of changes) yield { version: change.version, changes: [change] };
}

async function* within(
  store: Store,
  all: AsyncIterable<Change>,
  own: (group: string | undefined) => boolean,
  members: Map<string, Replication>,
  kinds: Kind[],
): AsyncGenerator<SeenChange> {
  const uses = usesOf();
  for (const one of members.values()) uses.add(one);
  const sees = (object: Resources[Kind]): boolean =>
    isWithin(object, own, (name) => members.get(name ?? ''), () => uses); // prettier-ignore
  const dependents = (of: Replication): Resources[Kind][] =>
    kinds
      .filter((kind) => !['Replication', 'Group', 'Recovery'].includes(kind))
      .flatMap((kind): Resources[Kind][] => store.list(kind))
      .filter((object) => concerns(object, of));
  for await (const change of all) {
    const { version, object } = change;
    if (object.kind !== 'Replication') {
      yield { version, changes: sees(object) ? [change] : [] };
      continue;
    }
    const { name } = object.metadata;
    const isIn = own(object.spec.group) && change.type !== 'DELETED';
    const wasIn =
      change.type === 'ADDED' ? false : change.groupBefore === undefined ? own(object.spec.group) : own(change.groupBefore ?? undefined); // prettier-ignore
    const moved = isIn !== wasIn;
    const before = moved ? dependents(object).filter(sees) : [];
    const old = members.get(name);
    if (old) uses.remove(old);
    if (isIn) {
      members.set(name, object);
      uses.add(object);
    } else members.delete(name);
    const changes: SeenChange['changes'] = [];
    if (kinds.includes('Replication') && (isIn || wasIn))
      changes.push(isIn && wasIn ? change : { type: isIn ? 'ADDED' : 'DELETED', object });
    if (moved) {
      const after = dependents(object).filter(sees);
      const keyOf = ({ metadata }: Resources[Kind]): string => metadata.uid;
      const had = new Set(before.map(keyOf));
      const has = new Set(after.map(keyOf));
      for (const one of after) if (!had.has(keyOf(one))) changes.push({ type: 'ADDED', object: one });
      // What goes with a replication that is deleted has messages of its own; what stays (results) is seen no more.
      for (const one of before) if (!has.has(keyOf(one))) changes.push({ type: 'DELETED', object: one });
    }
    yield { version, changes };
  }
}

/** Agents and storage classes that replications use. */
interface Uses {
  add(replication: Replication): void;
  remove(replication: Replication): void;
  has(kind: 'Agent' | 'StorageClass', name: string): boolean;
}
function usesOf(): Uses {
  const counts = new Map<string, number>();
  const count = ({ spec }: Replication, by: number): void => {
    for (const key of [`Agent/${spec.source.agent}`, `StorageClass/${spec.target.storageClass}`])
      counts.set(key, (counts.get(key) ?? 0) + by);
  };
  return {
    add: (one) => count(one, 1),
    remove: (one) => count(one, -1),
    has: (kind, name) => (counts.get(`${kind}/${name}`) ?? 0) > 0,
  };
}

function groupsOnly(groups: readonly string[]): (group: string | undefined) => boolean {
  const own = new Set(groups);
  return (group) => group !== undefined && own.has(group);
}

function isWithin(
  object: Resources[Kind],
  own: (group: string | undefined) => boolean,
  member: (name: string | undefined) => Replication | undefined,
  uses: () => Uses,
): boolean {
  switch (object.kind) {
    case 'Replication':
      return own(object.spec.group);
    case 'Group':
      return own(object.metadata.name);
    case 'Snapshot':
      return member(object.spec.replication) !== undefined;
    case 'Recovery':
      // Of the group that its replication had then: results stay when that is gone.
      return own(object.job.group);
    case 'RecoverySchedule':
      return object.spec.group === undefined ? member(object.spec.replication) !== undefined : own(object.spec.group);
    case 'Agent':
    case 'StorageClass':
      return uses().has(object.kind, object.metadata.name);
  }
}

function concerns(object: Resources[Kind], { metadata, spec }: Replication): boolean {
  if (object.kind === 'Agent') return object.metadata.name === spec.source.agent;
  if (object.kind === 'StorageClass') return object.metadata.name === spec.target.storageClass;
  if (object.kind !== 'Snapshot' && object.kind !== 'RecoverySchedule') return false;
  return object.spec.replication === metadata.name;
}

function bornMs({ metadata }: Resources[Kind]): number {
  return Date.parse(metadata.creationTimestamp);
}
