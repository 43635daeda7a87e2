/** API tokens, and the roles. See ../schema.ts for how schemas are used. */
import Type from 'typebox';
import type { Static } from 'typebox';
import { apiVersion } from '../../resources.ts';
import { words, nullable, name, time, input } from '../schema.ts';

export const roles = ['admin', 'manager', 'operator', 'user'] as const;
/** Of tokens and users. */
export const boundTo = nullable(
  Type.Array(name(), {
    minItems: 1,
    maxItems: 100,
    uniqueItems: true,
    description:
      'protection groups that it is bound to: it sees and does only what belongs to their replications; null: all',
  }),
);
export const Token = Type.Object({
  apiVersion: Type.Literal(apiVersion),
  kind: Type.Literal('Token'),
  metadata: Type.Object({ name: Type.String(), creationTimestamp: time() }),
  spec: Type.Object({ role: words(...roles), groups: boundTo }),
});

export const NewToken = Type.Object({
  apiVersion: Type.Literal(apiVersion),
  kind: Type.Literal('Token'),
  metadata: Type.Object({ name: Type.String(), creationTimestamp: time() }),
  spec: Type.Object({ kind: words('api', 'join'), role: nullable(words(...roles)), groups: boundTo }),
  token: Type.String({ description: 'the secret; it is shown this once' }),
  ca: Type.Optional(
    Type.String({ description: "with a join token: the master's CA in PEM, which the agent must trust" }),
  ),
});

export const TokenCreate = input(
  Type.Object({
    kind: Type.Unsafe<'api' | 'join'>({ ...words('api', 'join'), default: 'api' }),
    name: Type.Optional(name()),
    nodes: Type.Optional(
      Type.Integer({ minimum: 1, maximum: 1000, description: 'of a join token: how many nodes it lets in; else 1' }),
    ),
    lifeSeconds: Type.Optional(
      Type.Integer({
        minimum: 60,
        maximum: 31_622_400,
        description: 'of a join token: how long it is good; else a day',
      }),
    ),
    role: Type.Optional(words(...roles)),
    groups: Type.Optional(boundTo),
  }),
);

export type TokenView = Static<typeof Token>;
export type NewTokenView = Static<typeof NewToken>;
export type Role = (typeof roles)[number];
