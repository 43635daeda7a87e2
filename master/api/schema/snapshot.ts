/** Snapshots of a replication. See ../schema.ts for how schemas are used. */
import Type from 'typebox';
import { Point } from './replication.ts';
import { words, nullable, name, time, resource, SnapshotPeriod, input, inputObject } from '../schema.ts';

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

export const SnapshotInput = inputObject('Snapshot', SnapshotSpec);
export const SnapshotCreate = input(
  Type.Object({
    name: Type.Optional(name()),
    lockedUntil: SnapshotSpec.properties.lockedUntil,
    pinned: SnapshotSpec.properties.pinned,
  }),
);
