/**
 * The shapes of the REST API, written once: validation of requests, TypeScript types, the fields that answers show and
 * the OpenAPI document all come from here. The resources' types in master/resources.ts must agree; the compiler checks
 * it in the unit test of this file.
 *
 * Base schemas describe what is answered: complete, and open to fields of later versions. `input` derives what may be
 * sent: fields with a default may be left out, unknown fields are errors. Fields of the contract that belong to later
 * work are unknown until their work is there: a setting that is taken must have its effect.
 *
 * What is not in a base schema never leaves the master: `requests` and `identity` are missing here on purpose.
 */
import Type, { type Static, type TObject, type TSchema } from 'typebox';
import { apiVersion } from '../resources.ts';
import type { Consistency, VolumeMode } from '../../proto/wire.ts';
import type * as R from '../resources.ts';

/* Building blocks */

export const namePattern = '^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$';
const nameRule = 'a name of 1 to 63 lower-case letters, digits and "-", which begins and ends with a letter or digit';

export function words<const T extends string>(...values: T[]) {
  return Type.Unsafe<T>({ type: 'string', enum: values });
}
function nullable<S extends TSchema>(schema: S) {
  const plain = schema as { type?: unknown; enum?: unknown[] };
  if (typeof plain.type !== 'string' || plain.type === 'object')
    return Type.Unsafe<Static<S> | null>({ anyOf: [schema, { type: 'null' }] });
  const values = plain.enum === undefined ? {} : { enum: [...plain.enum, null] };
  return Type.Unsafe<Static<S> | null>({ ...schema, type: [plain.type, 'null'], ...values });
}
export function name(of?: string) {
  const description = of === undefined ? nameRule : `${nameRule} (${of})`;
  return Type.String({ pattern: namePattern, description });
}
function time(of?: string) {
  const rule = 'a time as of RFC 3339, such as 2026-11-20T09:00:00.000Z';
  const description = of === undefined ? rule : `${rule} (${of})`;
  return Type.String({ format: 'date-time', description });
}
/** Absolute, without "//", "/./", "/../" and no "/" at its end, so that one place has one name. */
function path(description = 'an absolute path without "." and ".." parts and without a "/" at its end') {
  return Type.String({
    pattern: '^(/(?!\\.{1,2}(/|$))[^/\\u0000]+)+$',
    maxLength: 4095,
    description,
  });
}
const bytes = () => Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });

/* Objects */

export const Metadata = Type.Object({
  name: name(),
  displayName: Type.Optional(Type.String({ maxLength: 255 })),
  namespace: Type.Optional(name()),
  labels: Type.Optional(
    Type.Record(
      Type.String(),
      Type.String({
        pattern: '^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$',
        description: 'a label value of at most 63 letters, digits, "-", "_", "."',
      }),
      {
        maxProperties: 64,
        propertyNames: {
          pattern: '^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$',
          description: 'a label key such as app or example.com/app',
        },
      },
    ),
  ),
  annotations: Type.Optional(
    Type.Record(Type.String(), Type.String({ maxLength: 4096 }), {
      maxProperties: 64,
      propertyNames: { maxLength: 317 },
    }),
  ),
  uid: Type.String(),
  generation: Type.Integer(),
  resourceVersion: Type.String(),
  creationTimestamp: time(),
});

function resource<K extends string, S extends TSchema, T extends TSchema>(kind: K, spec: S, status: T) {
  return Type.Object({
    apiVersion: Type.Literal(apiVersion),
    kind: Type.Literal(kind),
    metadata: Metadata,
    spec,
    status,
  });
}

const Condition = Type.Object({
  type: Type.String(),
  status: words('True', 'False', 'Unknown'),
  reason: Type.String(),
  message: Type.String(),
  lastTransitionTime: time(),
});
const VolumeMode = words('Block', 'Filesystem');
const Consistency = words('filesystem', 'crash', 'file');
const globs = (description: string) =>
  Type.Array(Type.String({ minLength: 1, maxLength: 4095 }), { maxItems: 1000, default: [], description });

const SnapshotPeriod = words('minute', 'hour', 'day', 'week', 'month');
const SnapshotSchedule = Type.Object({
  period: Type.Unsafe<R.SnapshotPeriod>({ ...SnapshotPeriod, description: 'minute, hour, day, week or month' }),
  every: Type.Integer({ minimum: 1, maximum: 1000, default: 1, description: 'how many of the period lie in between' }),
  retain: Type.Integer({ minimum: 1, maximum: 1000, description: 'how many of its snapshots stay' }),
  startTime: Type.Unsafe<string | null>({
    ...nullable(time('of the first one; its time of day is kept')),
    default: null,
  }),
  timeZone: Type.String({ maxLength: 64, default: 'UTC', description: 'such as Asia/Seoul' }),
});

export const ReplicationSpec = Type.Object({
  source: Type.Object({
    agent: name('of the agent that reads the volume'),
    path: path(
      'the absolute path of a block device, a raw image or a directory on the agent, without "." and ".." parts and without a "/" at its end',
    ),
    volumeMode: Type.Unsafe<VolumeMode>({
      ...VolumeMode,
      description: 'Block or Filesystem; may be left out when the agent has reported the path',
      'x-inferred': true,
    }),
    include: globs('patterns of the paths to mirror (Filesystem only); empty: all'),
    exclude: globs('patterns of the paths to leave out (Filesystem only)'),
  }),
  target: Type.Object({ storageClass: name('of a storage class') }),
  replicationState: Type.Unsafe<'primary'>({
    ...words('primary'),
    default: 'primary',
    description: "the source's role",
  }),
  trigger: Type.Object(
    {
      continuous: Type.Optional(Type.Literal(true)),
      schedule: Type.Optional(
        Type.String({ maxLength: 256, description: 'cron expression of five fields, such as */5 * * * * (UTC)' }),
      ),
      manual: Type.Optional(
        Type.String({ minLength: 1, maxLength: 253, description: 'free text; each change of it starts one sync' }),
      ),
    },
    {
      minProperties: 1,
      maxProperties: 1,
      default: { continuous: true },
      description: 'exactly one of continuous: true, schedule: CRON, manual: TAG',
    },
  ),
  copyMethod: Type.Unsafe<'Direct'>({
    ...words('Direct'),
    default: 'Direct',
    description: "what of the source's storage is used for a cut",
  }),
  rpoSeconds: Type.Number({ minimum: 1, maximum: 2_592_000, default: 30 }),
  consistency: Type.Unsafe<Consistency | null>({
    ...nullable(Consistency),
    default: null,
    description: 'filesystem, crash or file; null: the best that the volume can have',
  }),
  maxFreezeMs: Type.Integer({ minimum: 1, maximum: 60_000, default: 500 }),
  snapshotSchedules: Type.Array(SnapshotSchedule, {
    maxItems: 5,
    default: [],
    description: 'one of each period at most',
  }),
  journalSeconds: Type.Integer({ minimum: 0, maximum: 31_536_000, default: 3600, description: '0: snapshots only' }),
  maxJournalBytes: Type.Integer({
    minimum: 64 * 2 ** 20,
    maximum: Number.MAX_SAFE_INTEGER,
    default: 64 * 2 ** 30,
    description: 'beyond it the oldest points are given up before journalSeconds have passed (Degraded/JournalShort)',
  }),
  compression: Type.Unsafe<'auto' | 'none' | 'lz4' | 'zstd'>({
    ...words('auto', 'none', 'lz4', 'zstd'),
    default: 'auto',
  }),
  bandwidthBytesPerSecond: Type.Integer({ ...bytes(), default: 0, description: '0: no limit' }),
  readBytesPerSecond: Type.Integer({ ...bytes(), default: 0, description: '0: no limit' }),
  paused: Type.Boolean({ default: false }),
});

export const Point = Type.Object({
  sequence: Type.Integer(),
  sourceTime: time(),
  committedTime: time(),
  consistency: Consistency,
  digest: Type.String(),
  snapshot: nullable(Type.String()),
  drilledTime: nullable(time()),
});

const ReplicationStatus = Type.Object({
  state: words('PREPARING', 'NORMAL', 'FAILED', 'ERROR'),
  phase: words(
    'Pending',
    'InitialSync',
    'Mirroring',
    'Resyncing',
    'Verifying',
    'Paused',
    'Promoting',
    'Promoted',
    'Demoted',
    'Disconnected',
  ),
  role: words('Secondary', 'Primary', 'Unknown'),
  captureMethod: nullable(Type.String()),
  fencingGeneration: Type.String(),
  progress: nullable(
    Type.Object({
      bytesTotal: Type.Number(),
      bytesDone: Type.Number(),
      bytesPerSecond: Type.Number(),
      secondsLeft: nullable(Type.Number()),
    }),
  ),
  recoveryPoint: nullable(Point),
  lastSyncTime: nullable(time()),
  lagSeconds: nullable(Type.Number()),
  lagBytes: nullable(Type.Number()),
  lastSyncDuration: nullable(Type.String()),
  lastSyncBytes: nullable(Type.Number()),
  lastAttemptTime: nullable(time()),
  lastVerifiedTime: nullable(time()),
  lastDrilledTime: nullable(time()),
  nextSyncTime: nullable(time()),
  latestImage: nullable(Type.String()),
  nextSnapshotTime: nullable(time()),
  usedBytes: nullable(Type.Number()),
  observedGeneration: Type.Integer(),
  conditions: Type.Array(Condition),
});
export const Replication = resource('Replication', ReplicationSpec, ReplicationStatus);

export const AgentVolume = Type.Object({
  path: Type.String(),
  kind: Type.String(),
  volumeMode: VolumeMode,
  sizeBytes: Type.Number(),
  filesystem: nullable(Type.String()),
  filesystemId: nullable(Type.String()),
  mountPoint: nullable(Type.String()),
  csi: nullable(
    Type.Object({
      driver: Type.String(),
      volumeHandle: Type.String(),
      persistentVolume: Type.String(),
      podUid: Type.String(),
      claim: nullable(Type.String()),
    }),
  ),
  eligible: Type.Boolean(),
  reason: nullable(Type.String()),
});
export const Agent = resource(
  'Agent',
  Type.Object({ role: words('source', 'target') }),
  Type.Object({
    state: words('ACTIVE', 'CONN FAILED', 'WARNING', 'NO CONN INFO', 'NOT INSTALLED', 'UNKNOWN'),
    message: Type.String(),
    version: nullable(Type.String()),
    kernel: nullable(Type.String()),
    bootId: nullable(Type.String()),
    lastSeenTime: nullable(time()),
    clockOffsetSeconds: nullable(Type.Number()),
    certificateExpiryTime: nullable(time()),
  }),
);

export const StorageClassSpec = Type.Object({
  driver: words('directory'),
  parameters: Type.Object({ path: path() }),
});
export const StorageClass = resource(
  'StorageClass',
  StorageClassSpec,
  Type.Object({
    capacityBytes: nullable(Type.Number()),
    usedBytes: nullable(Type.Number()),
    reflink: nullable(Type.Boolean()),
    conditions: Type.Array(Condition),
  }),
);

const SnapshotSpec = Type.Object({
  replication: Type.String(),
  lockedUntil: Type.Unsafe<string | null>({ ...nullable(time()), default: null }),
  pinned: Type.Boolean({ default: false }),
});
export const Snapshot = resource(
  'Snapshot',
  SnapshotSpec,
  Type.Object({
    state: words('Creating', 'Ready', 'Failed', 'Deleting'),
    message: nullable(Type.String()),
    point: nullable(Point),
    sizeBytes: nullable(Type.Number()),
    readyTime: nullable(time()),
    schedule: nullable(SnapshotPeriod),
  }),
);

const pointRule = 'one of "latest-data", "latest-snapshot", {"snapshot": NAME}, {"time": RFC 3339 TIME}';
const RecoveryPoint = Type.Unsafe<R.PointChoice>({
  anyOf: [
    { type: 'string', enum: ['latest-data', 'latest-snapshot'] },
    Type.Object({ snapshot: name() }, { additionalProperties: false }),
    Type.Object({ time: time() }, { additionalProperties: false }),
  ],
  default: 'latest-data',
  description: pointRule,
});
const RecoveryTarget = Type.Unsafe<{ path: string } | null>({
  ...nullable(Type.Object({ path: path() }, { additionalProperties: false })),
  default: null,
  description:
    '{"path": P}, P absolute and without a "/" at its end; left out: a new path under the folder of recoveries',
});
const RecoverySpec = Type.Object({
  replication: name(),
  type: words('drill'),
  point: RecoveryPoint,
  target: RecoveryTarget,
});
export const Recovery = resource(
  'Recovery',
  RecoverySpec,
  Type.Object({
    state: words('Waiting', 'Running', 'Cancelling', 'Cancelled', 'Completed', 'Failed', 'RollingBack', 'RolledBack'),
    outcome: nullable(words('success', 'cancelled', 'failed')),
    message: nullable(Type.String()),
    point: nullable(Point),
    verified: nullable(Type.Boolean()),
    rtoSeconds: nullable(Type.Number()),
    rpoSeconds: nullable(Type.Number()),
    startTime: nullable(time()),
    endTime: nullable(time()),
    tasks: Type.Array(
      Type.Object({
        volume: Type.String(),
        state: words('Waiting', 'Running', 'Completed', 'Failed', 'Cancelled', 'RolledBack'),
        path: nullable(Type.String()),
        message: nullable(Type.String()),
        startTime: nullable(time()),
        endTime: nullable(time()),
        progress: nullable(Type.Object({ bytesTotal: Type.Number(), bytesDone: Type.Number(), step: Type.String() })),
      }),
    ),
  }),
);

export const levels = ['FATAL', 'ERROR', 'WARNING', 'INFO', 'TRACE'] as const;
export const Event = Type.Object({
  apiVersion: Type.Literal(apiVersion),
  kind: Type.Literal('Event'),
  id: Type.String({ description: 'stays the same while the event is counted up' }),
  time: time('when it happened last'),
  firstTime: time('when it happened first'),
  count: Type.Integer({ description: 'how often: equal events within a minute are counted, not added' }),
  code: Type.String(),
  level: words(...levels),
  service: Type.String(),
  message: Type.String(),
  object: nullable(Type.String({ description: 'such as Replication/orders' })),
});

export const roles = ['admin', 'manager', 'operator', 'user'] as const;
export const Token = Type.Object({
  apiVersion: Type.Literal(apiVersion),
  kind: Type.Literal('Token'),
  metadata: Type.Object({ name: Type.String(), creationTimestamp: time() }),
  spec: Type.Object({ role: words(...roles) }),
});
export const NewToken = Type.Object({
  apiVersion: Type.Literal(apiVersion),
  kind: Type.Literal('Token'),
  metadata: Type.Object({ name: Type.String(), creationTimestamp: time() }),
  spec: Type.Object({ kind: words('api', 'join'), role: nullable(words(...roles)) }),
  token: Type.String({ description: 'the secret; it is shown this once' }),
});

export const Problem = Type.Object({
  type: Type.String(),
  title: Type.String(),
  status: Type.Integer(),
  detail: Type.String(),
  code: Type.String(),
  requestId: Type.String(),
  errors: Type.Optional(Type.Array(Type.Object({ path: Type.String(), message: Type.String() }))),
});

export function listOf<S extends TSchema>(item: S) {
  return Type.Object({
    items: Type.Array(item),
    metadata: Type.Object({
      continue: nullable(Type.String({ description: 'give it as continue= for what follows; null: nothing follows' })),
      resourceVersion: Type.String({
        description: 'state of the list; watch=true with this Last-Event-ID goes on from it',
      }),
    }),
  });
}

/* What may be sent */

const serverFields = ['uid', 'generation', 'resourceVersion', 'creationTimestamp'];

/** Closed, and what has a default may be left out. The type stays: defaults are filled in before the check. */
function input<S extends TSchema>(schema: S): S {
  const plain = schema as Record<string, unknown>;
  if (plain['type'] === 'array') return { ...plain, items: input(plain['items'] as TSchema) } as unknown as S;
  if (plain['type'] !== 'object' || plain['properties'] === undefined) return schema;
  const properties = Object.entries(plain['properties'] as Record<string, Record<string, unknown>>);
  const required = ((plain['required'] ?? []) as string[]).filter((key) => {
    const field = properties.find(([property]) => property === key)?.[1];
    return field !== undefined && !('default' in field || 'x-inferred' in field);
  });
  return {
    ...plain,
    required,
    properties: Object.fromEntries(properties.map(([key, value]) => [key, input(value as TSchema)])),
    additionalProperties: false,
  } as unknown as S;
}
/** An object as written by people, or as it was read: what the server decides may be there and is not looked at. */
function inputObject<S extends TObject>(kind: string, spec: S) {
  return Type.Object(
    {
      apiVersion: Type.Optional(Type.Literal(apiVersion)),
      kind: Type.Optional(Type.Literal(kind)),
      metadata: Type.Unsafe<Pick<R.Metadata, 'name'> & Partial<R.Metadata>>({
        ...Metadata,
        required: Metadata.required.filter((field) => !serverFields.includes(field)),
        additionalProperties: false,
      }),
      spec: input(spec),
      status: Type.Optional(Type.Unknown({ description: 'not looked at' })),
    },
    { additionalProperties: false },
  );
}

export const ReplicationInput = inputObject('Replication', ReplicationSpec);
export const StorageClassInput = inputObject('StorageClass', StorageClassSpec);
export const SnapshotInput = inputObject('Snapshot', SnapshotSpec);
export const SnapshotCreate = input(
  Type.Object({
    name: Type.Optional(name()),
    lockedUntil: SnapshotSpec.properties.lockedUntil,
    pinned: SnapshotSpec.properties.pinned,
  }),
);
export const RecoveryCreate = input(
  Type.Object({
    name: Type.Optional(name()),
    replication: name(),
    type: RecoverySpec.properties.type,
    point: RecoveryPoint,
    target: RecoveryTarget,
  }),
);
export const TokenCreate = input(
  Type.Object({
    kind: Type.Unsafe<'api' | 'join'>({ ...words('api', 'join'), default: 'api' }),
    name: Type.Optional(name()),
    role: Type.Optional(words(...roles)),
  }),
);
export const ActionInput = input(Type.Object({ force: Type.Boolean({ default: false }) }));
export const MergePatch = Type.Unsafe<Record<string, unknown>>({
  type: 'object',
  description: 'a merge patch (RFC 7396) of the object: what is given is replaced, null takes away',
});

export const ListQuery = Type.Object(
  {
    limit: Type.Integer({ minimum: 1, maximum: 1000, default: 1000 }),
    continue: Type.Optional(Type.String({ maxLength: 1024 })),
    labelSelector: Type.Optional(
      Type.String({ maxLength: 1024, description: 'such as app=shop,tier!=test,owner,!old,zone in (a,b)' }),
    ),
    watch: Type.Boolean({ default: false, description: 'server-sent events, resumed by Last-Event-ID' }),
  },
  { additionalProperties: false },
);
/** Of lists that have neither labels nor watches. */
export const PageQuery = Type.Object(
  { limit: ListQuery.properties.limit, continue: ListQuery.properties.continue },
  { additionalProperties: false },
);
export const PointsQuery = Type.Object(
  {
    from: Type.Optional(time('oldest sourceTime, inclusive')),
    to: Type.Optional(time('newest sourceTime, inclusive')),
    limit: ListQuery.properties.limit,
    continue: ListQuery.properties.continue,
  },
  { additionalProperties: false },
);
export const EventsQuery = Type.Object(
  {
    level: Type.Optional(words(...levels)),
    since: Type.Optional(time('events that happened at or after this time')),
    limit: ListQuery.properties.limit,
    continue: ListQuery.properties.continue,
    watch: ListQuery.properties.watch,
  },
  { additionalProperties: false },
);
export const DeleteReplicationQuery = Type.Object(
  { keepReplica: Type.Boolean({ default: false, description: 'leave the replica data in the storage class' }) },
  { additionalProperties: false },
);

export type EventView = Static<typeof Event>;
export type TokenView = Static<typeof Token>;
export type NewTokenView = Static<typeof NewToken>;
export type ProblemView = Static<typeof Problem>;
export type Role = (typeof roles)[number];
/** One message of a watch: the `data` of a server-sent event. */
export interface WatchMessage<T> {
  type: 'ADDED' | 'MODIFIED' | 'DELETED';
  object: T;
}
export interface ListView<T> {
  items: T[];
  metadata: { continue: string | null; resourceVersion: string };
}
