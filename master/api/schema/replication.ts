/** Replications and their recovery points. See ../schema.ts for how schemas are used. */
import Type from 'typebox';
import type { Static } from 'typebox';
import type * as R from '../../resources.ts';
import {
  words,
  nullable,
  name,
  time,
  resource,
  Condition,
  VolumeMode,
  Consistency,
  SnapshotPeriod,
  bytes,
  inputObject,
  namePattern,
  nameRule,
  ListQuery,
} from '../schema.ts';
import { FailoverPolicy } from './failover.ts';

const globs = (description: string) =>
  Type.Array(Type.String({ minLength: 1, maxLength: 4095 }), { maxItems: 1000, default: [], description });

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

/** As Kubernetes names most objects. */
const objectName = (description: string) =>
  Type.String({ pattern: '^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$', description });

export const ReplicationSpec = Type.Object({
  source: Type.Object({
    agent: Type.String({
      pattern: `^(${namePattern.slice(1, -1)})?$`,
      default: '',
      description: `${nameRule} (of the agent that reads the volume; with pvc the master finds it)`,
    }),
    path: Type.String({
      pattern: '^(/(?!\\.{1,2}(/|$))[^/\\u0000]+)*$',
      maxLength: 4095,
      default: '',
      description:
        'the absolute path of a block device, a raw image or a directory on the agent, without "." and ".." parts and without a "/" at its end; with pvc the master finds it',
    }),
    pvc: Type.Optional(
      Type.Object(
        {
          cluster: Type.Optional(name('of a cluster that the master knows; absent: its own')),
          namespace: name('of the claim'),
          name: objectName('name of a PersistentVolumeClaim with access mode ReadWriteOnce or ReadWriteOncePod'),
        },
        {
          additionalProperties: false,
          description: 'instead of agent and path: the claim is followed to whatever node its pod runs on',
        },
      ),
    ),
    volumeSnapshotClassName: Type.Optional(
      objectName(
        'the VolumeSnapshotClass of the snapshots of copyMethod Snapshot; absent: the default one of the driver',
      ),
    ),
    storageClassName: Type.Optional(
      objectName(
        "the StorageClass of the claims that show snapshots and clones, of the volume's driver and with reclaimPolicy Delete; absent: the claim's own",
      ),
    ),
    volumeMode: Type.Unsafe<Static<typeof VolumeMode>>({
      ...VolumeMode,
      description: 'Block or Filesystem; may be left out when the agent has reported the path',
      'x-inferred': true,
    }),
    include: globs(
      'patterns of the paths to mirror, in the syntax of gitignore, relative to the source (Filesystem only); empty: all',
    ),
    exclude: globs('patterns of the paths to leave out, in the syntax of gitignore (Filesystem only)'),
  }),
  target: Type.Object({ storageClass: name('of a storage class') }),
  replicationState: Type.Unsafe<'primary' | 'secondary'>({
    ...words('primary', 'secondary'),
    default: 'primary',
    description: "the source's role; a failover makes it secondary, its rollback primary again",
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
  copyMethod: Type.Unsafe<'Direct' | 'Snapshot' | 'Clone'>({
    ...words('Direct', 'Snapshot', 'Clone'),
    default: 'Direct',
    description:
      "what of the source's storage is used for a cut: nothing, or a VolumeSnapshot or a clone at each cut (of source.pvc; source-snapshots.yaml)",
  }),
  rpoSeconds: Type.Number({ minimum: 1, maximum: 2_592_000, default: 30 }),
  consistency: Type.Unsafe<Static<typeof Consistency> | null>({
    ...nullable(Consistency),
    default: null,
    description: 'filesystem, crash or file; null: the best that the volume can have',
  }),
  maxFreezeMs: Type.Integer({ minimum: 1, maximum: 60_000, default: 500 }),
  hooks: Type.Optional(
    Type.Object(
      {
        beforeFreeze: Type.Array(Type.String({ minLength: 1, maxLength: 4096 }), { maxItems: 64, default: [] }),
        afterThaw: Type.Array(Type.String({ minLength: 1, maxLength: 4096 }), { maxItems: 64, default: [] }),
        timeoutSeconds: Type.Number({ minimum: 1, maximum: 3600, default: 30 }),
      },
      {
        additionalProperties: false,
        description:
          "programs with arguments on the source's node around each freeze; its agent runs only what its own --allow names",
      },
    ),
  ),
  check: Type.Optional(
    Type.Object(
      {
        argv: Type.Array(Type.String({ minLength: 1, maxLength: 4096 }), { minItems: 1, maxItems: 64 }),
        timeoutSeconds: Type.Number({ minimum: 1, maximum: 86_400, default: 60 }),
      },
      {
        additionalProperties: false,
        description:
          "a program of the master's machine, run on each recovered copy: RECOVERY_PATH and the argument {path} say where it is; the master runs only what its own --allow names",
      },
    ),
  ),
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
  group: Type.Optional(
    name("of a consistency group: its members' points are of one moment, on all agents, all of them or none"),
  ),
  failover: Type.Optional(FailoverPolicy),
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

export const GroupPoint = Type.Object({
  cut: Type.String({ description: 'name of the cut' }),
  sourceTime: time('the moment at which all members stood still; the same for each'),
  consistency: Consistency,
  points: Type.Array(Type.Object({ replication: Type.String(), point: Point })),
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
  fork: nullable(
    Type.Object({
      agent: Type.String(),
      path: Type.String(),
      sequence: Type.Integer(),
      found: nullable(
        Type.Object({
          bytes: Type.Number({ description: 'of content that differs' }),
          granules: nullable(Type.Integer({ description: 'of a block volume' })),
          ranges: nullable(
            Type.Array(Type.Object({ offset: Type.Number(), length: Type.Number() }), {
              description: 'of a block volume: the first ones',
            }),
          ),
          entries: nullable(
            Type.Object(
              { changed: Type.Integer(), new: Type.Integer(), gone: Type.Integer() },
              { description: 'of a tree' },
            ),
          ),
          paths: nullable(
            Type.Array(
              Type.Object({
                path: Type.String({ description: 'what is no printable text in it as \\xNN' }),
                change: words('changed', 'new', 'gone'),
                what: Type.Array(words('content', 'name', 'mode', 'owner', 'time', 'attributes', 'target', 'type'), {
                  description: 'what has changed of it',
                }),
                formerPath: nullable(Type.String({ description: 'at the point, when that was another one' })),
              }),
              { description: 'of a tree: some of each' },
            ),
          ),
          comparedTime: time(),
        }),
      ),
    }),
  ),
  observedGeneration: Type.Integer(),
  conditions: Type.Array(Condition),
});

export const Replication = resource('Replication', ReplicationSpec, ReplicationStatus);
export const ReplicationInput = inputObject('Replication', ReplicationSpec);
export const PointsQuery = Type.Object(
  {
    from: Type.Optional(time('oldest sourceTime, inclusive')),
    to: Type.Optional(time('newest sourceTime, inclusive')),
    limit: ListQuery.properties.limit,
    continue: ListQuery.properties.continue,
  },
  { additionalProperties: false },
);

export const AgeSample = Type.Object({
  time: time('end of the quarter of a minute'),
  lagSeconds: nullable(Type.Number({ description: 'worst age of the copy within it' })),
});

export const DeleteReplicationQuery = Type.Object(
  { keepReplica: Type.Boolean({ default: false, description: 'leave the replica data in the storage class' }) },
  { additionalProperties: false },
);
