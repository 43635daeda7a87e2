/** API tokens, and the roles. See ../schema.ts for how schemas are used. */
import Type from 'typebox';
import type { Static } from 'typebox';
import { apiVersion } from '../../resources.ts';
import { words, nullable, name, time, input } from '../schema.ts';

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
  ca: Type.Optional(
    Type.String({ description: "with a join token: the master's CA in PEM, which the agent must trust" }),
  ),
});

export const TokenCreate = input(
  Type.Object({
    kind: Type.Unsafe<'api' | 'join'>({ ...words('api', 'join'), default: 'api' }),
    name: Type.Optional(name()),
    role: Type.Optional(words(...roles)),
  }),
);

export type TokenView = Static<typeof Token>;
export type NewTokenView = Static<typeof NewToken>;
export type Role = (typeof roles)[number];
