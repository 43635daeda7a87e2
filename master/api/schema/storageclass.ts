/** Storage classes. See ../schema.ts for how schemas are used. */
import Type from 'typebox';
import { words, nullable, path, resource, Condition, inputObject } from '../schema.ts';

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

export const StorageClassInput = inputObject('StorageClass', StorageClassSpec);
