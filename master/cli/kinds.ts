/**
 * The kinds of objects as replctl shows them: their names (plural, singular, short), where they are in the API, and
 * their columns. Pure but for the reading of lists.
 */
import { nearest, UsageError } from '../../proto/cli.ts';
import type { ListView } from '../api/schema.ts';
import type { EventView } from '../api/schema/event.ts';
import type { SinkView } from '../api/schema/sink.ts';
import type { TokenView } from '../api/schema/token.ts';
import type { UserView } from '../api/schema/user.ts';
import type {
  Agent,
  AgentVolume,
  Group,
  GroupPointView,
  PointView,
  Recovery,
  RecoverySchedule,
  Replication,
  Snapshot,
  StorageClass,
} from '../resources.ts';
import { sourceText } from '../resources.ts';
import { withQuery, type Client } from './client.ts';
import { ageOf, percent, size, span } from './format.ts';

export interface Column<T> {
  heading: string;
  cell: (item: T, nowMs: number) => string;
  wide?: true;
}
export interface Kind<T = unknown> {
  plural: string;
  singular: string;
  short: string[];
  /** What operands `get` takes after the kind. */
  operands: '' | 'NAME' | 'AGENT' | 'GROUP' | 'REPLICATION' | 'REPLICATION[/NAME]';
  /** Collection in the API; of the kinds below an owner, with the owner. */
  path: (owner: string) => string;
  /** Those that own items of this kind, where items are listed by owner. */
  owners?: 'agents' | 'replications';
  deletable: boolean;
  key: (item: T, owner: string) => string;
  columns: Column<T>[];
}
/** An item together with whose it is, where the item itself does not say. Added when tables are made, and to lists of several. */
export type Owned<T> = T & { owner: string };

const column = <T>(heading: string, cell: Column<T>['cell']): Column<T> => ({ heading, cell });
const wide = <T>(heading: string, cell: Column<T>['cell']): Column<T> => ({ heading, cell, wide: true });
const text = (value: string | number | null | undefined) =>
  value === null || value === undefined ? '-' : String(value);
const yes = (value: boolean | null) => (value === null ? '-' : value ? 'yes' : 'no');
interface Dated {
  metadata: { name: string; creationTimestamp: string };
}
const nameColumn = column<Dated>('NAME', ({ metadata }) => metadata.name);
const ageColumn = column<Dated>('AGE', ({ metadata }, now) => ageOf(metadata.creationTimestamp, now));
const byName = ({ metadata }: Dated) => metadata.name;

/** Of the condition that says what is wrong, or empty. */
export function degradedReason({ status }: Replication): string {
  const condition = status.conditions.find(({ type, status }) => type === 'Degraded' && status === 'True');
  return condition?.reason ?? '';
}

const agents: Kind<Agent> = {
  plural: 'agents', singular: 'agent', short: ['ag'], operands: 'NAME', path: () => '/agents', deletable: true,
  key: byName,
  columns: [
    nameColumn,
    column('STATE', ({ status }) => status.state),
    column('ROLE', ({ spec }) => spec.role),
    column('VERSION', ({ status }) => text(status.version)),
    column('SEEN', ({ status }, now) => ageOf(status.lastSeenTime, now)),
    wide('KERNEL', ({ status }) => text(status.kernel)),
    wide('CLOCK', ({ status }) => (status.clockOffsetSeconds === null ? '-' : `${status.clockOffsetSeconds.toFixed(3)}s`)),
    wide('CERTIFICATE UNTIL', ({ status }) => text(status.certificateExpiryTime)),
    wide('MESSAGE', ({ status }) => status.message),
    ageColumn,
  ],
}; // prettier-ignore
const volumes: Kind<Owned<AgentVolume>> = {
  plural: 'volumes', singular: 'volume', short: ['vol'], operands: 'AGENT', deletable: false,
  path: (agent) => `/agents/${agent}/volumes`, owners: 'agents',
  key: ({ path }, owner) => `${owner}:${path}`,
  columns: [
    column('AGENT', ({ owner }) => owner),
    column('PATH', ({ path }) => path),
    column('KIND', ({ kind }) => kind),
    column('MODE', ({ volumeMode }) => volumeMode),
    column('SIZE', ({ sizeBytes }) => size(sizeBytes)),
    column('FILESYSTEM', ({ filesystem }) => text(filesystem)),
    column('ELIGIBLE', ({ eligible }) => yes(eligible)),
    wide('MOUNTED AT', ({ mountPoint }) => text(mountPoint)),
    wide('CLAIM', ({ csi }) => text(csi?.claim ?? csi?.persistentVolume)),
    column('REASON', ({ reason }) => text(reason)),
  ],
}; // prettier-ignore
const replications: Kind<Replication> = {
  plural: 'replications', singular: 'replication', short: ['repl', 'rep'], operands: 'NAME', deletable: true,
  path: () => '/replications', key: byName,
  columns: [
    nameColumn,
    column('STATE', ({ status }) => status.state),
    column('PHASE', ({ status }) => status.phase),
    column('DONE', ({ status }) => (status.progress === null ? '-' : percent(status.progress))),
    column('LAG', ({ status }) => span(status.lagSeconds)),
    column('SOURCE', ({ spec }) => sourceText(spec.source)),
    column('CLASS', ({ spec }) => spec.target.storageClass),
    wide('MODE', ({ spec }) => spec.source.volumeMode),
    wide('CAPTURE', ({ status }) => text(status.captureMethod)),
    wide('RPO', ({ spec }) => span(spec.rpoSeconds)),
    wide('POINT', ({ status }) => text(status.recoveryPoint?.sequence)),
    wide('CONSISTENCY', ({ status }) => text(status.recoveryPoint?.consistency)),
    wide('VERIFIED', ({ status }, now) => ageOf(status.lastVerifiedTime, now)),
    column('DEGRADED', degradedReason),
    ageColumn,
  ],
}; // prettier-ignore
const snapshots: Kind<Snapshot> = {
  plural: 'snapshots', singular: 'snapshot', short: ['snap'], operands: 'REPLICATION[/NAME]', deletable: true,
  path: (replication) => `/replications/${replication}/snapshots`, owners: 'replications',
  key: (item, owner) => `${owner}/${item.metadata.name}`,
  columns: [
    column('REPLICATION', ({ spec }) => spec.replication),
    nameColumn,
    column('STATE', ({ status }) => status.state),
    column('SOURCE TIME', ({ status }) => text(status.point?.sourceTime)),
    column('SIZE', ({ status }) => size(status.sizeBytes)),
    column('LOCKED UNTIL', ({ spec }) => text(spec.lockedUntil)),
    column('PINNED', ({ spec }) => yes(spec.pinned)),
    wide('POINT', ({ status }) => text(status.point?.sequence)),
    wide('CONSISTENCY', ({ status }) => text(status.point?.consistency)),
    wide('MESSAGE', ({ status }) => text(status.message)),
    ageColumn,
  ],
}; // prettier-ignore
const points: Kind<PointView> = {
  plural: 'points', singular: 'point', short: ['pt'], operands: 'REPLICATION', deletable: false,
  path: (replication) => `/replications/${replication}/points`,
  key: ({ sequence }, owner) => `${owner}/${sequence}`,
  columns: [
    column('SEQUENCE', ({ sequence }) => String(sequence)),
    column('SOURCE TIME', ({ sourceTime }) => sourceTime),
    column('COMMITTED', ({ committedTime }) => committedTime),
    column('CONSISTENCY', ({ consistency }) => consistency),
    column('SNAPSHOT', ({ snapshot }) => text(snapshot)),
    column('DRILLED', ({ drilledTime }, now) => ageOf(drilledTime, now)),
    wide('DIGEST', ({ digest }) => digest),
  ],
}; // prettier-ignore
const grouppoints: Kind<GroupPointView> = {
  plural: 'grouppoints', singular: 'grouppoint', short: ['gpt'], operands: 'GROUP', deletable: false,
  path: (group) => `/groups/${group}/points`,
  key: ({ cut }, owner) => `${owner}/${cut}`,
  columns: [
    column('SOURCE TIME', ({ sourceTime }) => sourceTime),
    column('CONSISTENCY', ({ consistency }) => consistency),
    column('MEMBERS', ({ points }) => points.map(({ replication, point }) => `${replication}/${point.sequence}`).join(',')),
    wide('CUT', ({ cut }) => cut),
  ],
}; // prettier-ignore
const recoveries: Kind<Recovery> = {
  plural: 'recoveries', singular: 'recovery', short: ['rec'], operands: 'NAME', path: () => '/recoveries', deletable: true,
  key: byName,
  columns: [
    nameColumn,
    column('OF', ({ spec }) => spec.replication ?? `group ${spec.group ?? ''}`),
    column('TYPE', ({ spec }) => spec.type),
    column('STATE', ({ status }) => status.state),
    column('OUTCOME', ({ status }) => text(status.outcome)),
    column('VERIFIED', ({ status }) => yes(status.verified)),
    column('RTO', ({ status }) => span(status.rtoSeconds)),
    column('RPO', ({ status }) => span(status.rpoSeconds)),
    column('PATH', ({ status: { tasks } }) => (tasks.length > 1 ? `${tasks.length} volumes` : text(tasks[0]?.path))),
    wide('POINT', ({ status }) => text(status.point?.sequence)),
    wide('MESSAGE', ({ status }) => text(status.message)),
    ageColumn,
  ],
}; // prettier-ignore
const recoveryschedules: Kind<RecoverySchedule> = {
  plural: 'recoveryschedules', singular: 'recoveryschedule', short: ['rs'], operands: 'NAME',
  path: () => '/recoveryschedules', deletable: true, key: byName,
  columns: [
    nameColumn,
    column('OF', ({ spec }) => spec.replication ?? `group ${spec.group ?? ''}`),
    column('TYPE', ({ spec }) => spec.type),
    column('REPEAT', ({ spec }) => spec.repeat),
    column('STATE', ({ status }) => status.state),
    column('NEXT', ({ status }) => text(status.nextTime)),
    column('LAST', ({ status }) => text(status.lastRecovery)),
    wide('MESSAGE', ({ status }) => text(status.message)),
    ageColumn,
  ],
}; // prettier-ignore
const groups: Kind<Group> = {
  plural: 'groups', singular: 'group', short: ['gr'], operands: 'NAME', path: () => '/groups', deletable: true, key: byName,
  columns: [
    nameColumn,
    column('STATE', ({ status }) => status.state),
    column('TARGET', ({ status }) => status.targetState),
    column('MEMBERS', ({ status }) => status.members.map(({ replication }) => replication).join(',') || '-'),
    column('RPO', ({ spec }) => span(spec.rpoSeconds)),
    column('RTO', ({ spec }) => span(spec.rtoSeconds)),
    column('RECOVERABLE', ({ status }, now) => ageOf(status.recoverableTime, now)),
    wide('MESSAGE', ({ status }) => text(status.message)),
    ageColumn,
  ],
}; // prettier-ignore
const storageclasses: Kind<StorageClass> = {
  plural: 'storageclasses', singular: 'storageclass', short: ['sc'], operands: 'NAME', path: () => '/storageclasses',
  deletable: true, key: byName,
  columns: [
    nameColumn,
    column('DRIVER', ({ spec }) => spec.driver),
    column('USED', ({ status }) => size(status.usedBytes)),
    column('CAPACITY', ({ status }) => size(status.capacityBytes)),
    column('REFLINK', ({ status }) => yes(status.reflink)),
    column('PLACE', ({ spec }) => text(spec.parameters.path ?? spec.parameters.storageClassName ?? null)),
    ageColumn,
  ],
}; // prettier-ignore
const events: Kind<EventView> = {
  plural: 'events', singular: 'event', short: ['ev'], operands: '', path: () => '/events', deletable: false,
  key: ({ id }) => id,
  columns: [
    column('TIME', ({ time }) => time),
    column('LEVEL', ({ level }) => level),
    column('COUNT', ({ count }) => String(count)),
    column('CODE', ({ code }) => code),
    column('OBJECT', ({ object }) => text(object)),
    wide('SERVICE', ({ service }) => service),
    column('MESSAGE', ({ message }) => message),
  ],
}; // prettier-ignore
const tokens: Kind<TokenView> = {
  plural: 'tokens', singular: 'token', short: ['tok'], operands: 'NAME', path: () => '/tokens', deletable: true, key: byName,
  columns: [
    nameColumn,
    column('ROLE', ({ spec }) => spec.role),
    column('GROUPS', ({ spec }) => spec.groups?.join(',') ?? 'all'),
    ageColumn,
  ],
}; // prettier-ignore

const users: Kind<UserView> = {
  plural: 'users', singular: 'user', short: [], operands: 'NAME', path: () => '/users', deletable: true, key: byName,
  columns: [
    nameColumn,
    column('ROLE', ({ spec }) => spec.role),
    column('GROUPS', ({ spec }) => spec.groups?.join(',') ?? 'all'),
    column('SESSIONS', ({ status }) => String(status.sessions)),
    column('LOCKED UNTIL', ({ status }) => text(status.lockedUntil)),
    wide('LAST LOG-IN', ({ status }, now) => ageOf(status.lastLoginTime, now)),
    wide('NAME SHOWN', ({ metadata }) => text(metadata.displayName)),
    ageColumn,
  ],
}; // prettier-ignore
const sinks: Kind<SinkView> = {
  plural: 'sinks', singular: 'sink', short: [], operands: 'NAME', path: () => '/sinks', deletable: true, key: byName,
  columns: [
    nameColumn,
    column('TO', ({ spec }) => spec.to),
    column('LEVEL', ({ spec }) => spec.level),
    column('STATE', ({ status }) => status.state),
    column('SENT', ({ status }, now) => ageOf(status.lastSentTime, now)),
    column('MESSAGE', ({ status }) => text(status.message)),
    ageColumn,
  ],
}; // prettier-ignore

/* The columns of a kind are only ever given items of that kind: its own lists. */
export const kinds = [
  agents, volumes, replications, snapshots, points, grouppoints, recoveries, recoveryschedules, groups, storageclasses, events, tokens, users, sinks,
] as unknown as Kind[]; // prettier-ignore

/** By any of its names. @throws UsageError naming the known ones */
export function kindOf(typed: string): Kind {
  const found = kinds.find((kind) => [kind.plural, kind.singular, ...kind.short].includes(typed.toLowerCase()));
  if (found !== undefined) return found;
  const near = nearest(typed, kinds.flatMap(({ plural, singular }) => [plural, singular])); // prettier-ignore
  const cure = near === undefined ? '' : `Did you mean ${near}? `;
  throw new UsageError(`There is no kind ${typed}.`, `${cure}Kinds: ${kinds.map(({ plural }) => plural).join(', ')}`);
}

/** The items of a kind; for a kind listed by owner, of one owner or of all. */
export async function listOf(
  client: Client,
  kind: Kind,
  owner: string,
  query: Record<string, string | undefined>,
): Promise<ListView<unknown>> {
  if (kind.owners === undefined || owner !== '') return client.list(withQuery(kind.path(owner), query));
  const owners = await client.list<{ metadata: { name: string } }>(`/${kind.owners}`);
  const items: unknown[] = [];
  for (const { metadata } of owners.items) {
    const list = await client.list<object>(withQuery(kind.path(metadata.name), query));
    items.push(...list.items.map((item) => (kind.owners === 'agents' ? { ...item, owner: metadata.name } : item)));
  }
  return { items, metadata: owners.metadata };
}
