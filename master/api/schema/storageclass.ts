/** Storage classes. See ../schema.ts for how schemas are used. */
import Type from 'typebox';
import { words, nullable, path, resource, Condition, inputObject } from '../schema.ts';

export const StorageClassSpec = Type.Object({
  driver: words('directory', 'kubernetes'),
  parameters: Type.Object({
    path: Type.Optional(path()),
    storageClassName: Type.Optional(
      Type.String({
        pattern: '^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$',
        description: 'the name of a StorageClass of the cluster (driver kubernetes)',
      }),
    ),
    accessMode: Type.Optional(words('ReadWriteOnce', 'ReadWriteOncePod')),
  }),
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

export const StorageClassInput = inputObject('StorageClass', StorageClassSpec);
