/** By which rule a source that is gone is failed over. See ../schema.ts for how schemas are used. */
import Type from 'typebox';
import type * as R from '../../resources.ts';
import { name, words } from '../schema.ts';

export const FailoverPolicy = Type.Object(
  {
    policy: Type.Unsafe<R.FailoverPolicy['policy']>({
      ...words('manual', 'automatic'),
      default: 'manual',
      description: 'automatic: a failover begins by itself once nobody has heard of the source for holdOffSeconds',
    }),
    holdOffSeconds: Type.Integer({
      minimum: 10,
      maximum: 86_400,
      default: 120,
      description: 'how long neither its agent nor a witness may have heard of the node; counts anew when one has',
    }),
    witness: Type.Object(
      {
        agents: Type.Array(name('of an agent on another node'), {
          maxItems: 8,
          default: [],
          description: 'asked whether the node answers; best where neither the source nor the master is',
        }),
        port: Type.Integer({
          minimum: 1,
          maximum: 65_535,
          default: 22,
          description: 'of the node, over TCP; that it refuses is an answer too',
        }),
      },
      {
        additionalProperties: false,
        default: { agents: [], port: 22 },
        description: "the second view; of a claim the API server's view of the node is one more",
      },
    ),
  },
  { additionalProperties: false, description: 'what happens when the source is gone; absent: a person decides' },
);
