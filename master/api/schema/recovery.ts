/** Recoveries: what is asked for, how far it is, and the results. See ../schema.ts for how schemas are used. */
import Type from 'typebox';
import type * as R from '../../resources.ts';
import { Point } from './replication.ts';
import { words, nullable, name, time, path, resource, input } from '../schema.ts';

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

const RecoveryTarget = Type.Unsafe<R.RecoveryTarget | null>({
  ...nullable(
    Type.Object(
      {
        path: Type.Optional(path()),
        agent: Type.Optional(name()),
        pvc: Type.Optional(
          Type.Object(
            {
              namespace: Type.Optional(name("of the claim; left out: the master's")),
              name: name('of a new PersistentVolumeClaim; of a group the names of the members follow'),
              storageClassName: Type.Optional(
                Type.String({
                  minLength: 1,
                  maxLength: 253,
                  description:
                    "StorageClass of the cluster; left out: that of the replica's class, else the default one",
                }),
              ),
            },
            { additionalProperties: false },
          ),
        ),
        volumes: Type.Optional(
          Type.Record(Type.String(), Type.Object({ agent: name(), path: path() }, { additionalProperties: false }), {
            // Rules for maps without bounds cost more than an API server computes.
            maxProperties: 100,
            description: 'of a group: by member, a volume that is written over; the others get new copies',
          }),
        ),
      },
      { additionalProperties: false },
    ),
  ),
  default: null,
  description:
    '{"pvc": {"namespace": N, "name": C}}: a new claim of the cluster that the master runs in; or {"path": P}, P absolute and without a "/" at its end; left out: a new path under the folder of recoveries. With "agent" a block device or image of that node, written over: only what differs is sent',
});

export const RecoverySpec = Type.Object({
  replication: Type.Optional(name()),
  group: Type.Optional(name()),
  type: words('drill', 'failover'),
  point: RecoveryPoint,
  target: RecoveryTarget,
});

const RecoveryStatus = Type.Object({
  state: words(
    'Waiting',
    'Running',
    'Pausing',
    'Paused',
    'Cancelling',
    'Cancelled',
    'Completed',
    'Failed',
    'RollingBack',
    'RolledBack',
    'RollbackIgnored',
    'Confirming',
    'Confirmed',
    'ForceConfirmed',
  ),
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
      point: nullable(Point),
      message: nullable(Type.String()),
      startTime: nullable(time()),
      endTime: nullable(time()),
      progress: nullable(Type.Object({ bytesTotal: Type.Number(), bytesDone: Type.Number(), step: Type.String() })),
      check: nullable(
        Type.Object({
          exitStatus: nullable(Type.Integer()),
          output: Type.String(),
          durationSeconds: Type.Number(),
        }),
      ),
      verified: Type.Optional(nullable(Type.Boolean())),
    }),
  ),
});

export const Recovery = resource('Recovery', RecoverySpec, RecoveryStatus);

export const RecoveryCreate = input(
  Type.Object({
    name: Type.Optional(name()),
    ...RecoverySpec.properties,
  }),
);
