/** Protection groups. See ../schema.ts for how schemas are used. */
import Type from 'typebox';
import { inputObject, name, nullable, resource, time, words } from '../schema.ts';
import { FailoverPolicy } from './failover.ts';

const target = (of: string) =>
  Type.Unsafe<number | null>({
    ...nullable(Type.Number({ minimum: 1, maximum: 2_592_000, description: of })),
    default: null,
  });

const GroupSpec = Type.Object({
  members: Type.Array(
    Type.Object({
      replication: name('of a replication, which becomes a member'),
      startOrder: Type.Integer({
        minimum: 1,
        maximum: 1000,
        default: 1,
        description: 'lower ones are recovered first',
      }),
    }),
    { maxItems: 1000, default: [] },
  ),
  rpoSeconds: target('how old may be what all members have in common'),
  rtoSeconds: target('how long may a recovery of the group take'),
  failover: Type.Optional(FailoverPolicy),
});

export const Group = resource(
  'Group',
  GroupSpec,
  Type.Object({
    state: words('PREPARING', 'NORMAL', 'WARNING'),
    targetState: words('NORMAL', 'NOT_FOUND', 'INACTIVE'),
    message: nullable(Type.String()),
    members: Type.Array(
      Type.Object({
        replication: Type.String(),
        startOrder: Type.Integer(),
        state: words('PREPARING', 'NORMAL', 'FAILED', 'ERROR'),
        lagSeconds: nullable(Type.Number()),
      }),
    ),
    recoverableTime: nullable(time()),
  }),
);

export const GroupInput = inputObject('Group', GroupSpec);
