/** What belongs to nothing any more. See ../schema.ts for how schemas are used. */
import Type from 'typebox';
import { input, nullable, words } from '../schema.ts';
import type { CleanupMode } from '../../garbage.ts';

export const Garbage = Type.Object({
  kind: words('Copy', 'Replica'),
  name: Type.String({ description: "a copy's path, a replica's uid" }),
  storageClass: nullable(Type.String()),
  sizeBytes: nullable(Type.Number()),
  message: Type.String(),
  lockedUntil: nullable(Type.String()),
});
export const Cleanup = Type.Object({ removed: Type.Array(Garbage), left: Type.Array(Garbage) });
export const CleanupInput = input(
  Type.Object({
    mode: Type.Unsafe<CleanupMode>({
      ...words('none', 'restored', 'all'),
      description:
        'none: only looks; restored: copies of recoveries that are gone; all: replicas of deleted replications too',
    }),
  }),
);
