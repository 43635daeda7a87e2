/** Users and their sessions. See ../schema.ts for how schemas are used. */
import Type from 'typebox';
import type { Static } from 'typebox';
import { apiVersion } from '../../resources.ts';
import { input, name, nullable, time, words } from '../schema.ts';
import { boundTo, roles } from './token.ts';

const displayName = Type.Optional(Type.String({ maxLength: 255 }));
/** `admin` exists once. */
const grantable = words('manager', 'operator', 'user');
const password = Type.String({
  maxLength: 512,
  description: '8 to 128 characters with upper and lower case, a digit and a special character; not the one before',
});

export const User = Type.Object({
  apiVersion: Type.Literal(apiVersion),
  kind: Type.Literal('User'),
  metadata: Type.Object({ name: Type.String(), displayName, creationTimestamp: time() }),
  spec: Type.Object({ role: words(...roles), groups: boundTo }),
  status: Type.Object({
    hasPassword: Type.Boolean(),
    sessions: Type.Integer({ description: 'that are open' }),
    lockedUntil: nullable(time('wrong passwords: until then nobody can log in under this name')),
    lastLoginTime: nullable(time('since the master was started')),
  }),
});
export const Session = Type.Object({
  apiVersion: Type.Literal(apiVersion),
  kind: Type.Literal('Session'),
  spec: Type.Object({ user: Type.String(), role: words(...roles), groups: boundTo }),
  csrfToken: nullable(Type.String({ description: 'sent as X-CSRF-Token with each write of a cookie session' })),
  token: Type.Optional(
    Type.String({ description: 'with "cookie": false; a bearer token for the time of the session' }),
  ),
});

export const UserCreate = input(
  Type.Object({ name: name(), role: grantable, password, displayName, groups: Type.Optional(boundTo) }),
);
export const UserChange = input(
  Type.Object({
    role: Type.Optional(grantable),
    password: Type.Optional(password),
    displayName,
    groups: Type.Optional(boundTo),
  }),
);
export const SessionCreate = input(
  Type.Object({
    user: Type.Optional(name()),
    password: Type.Optional(Type.String({ maxLength: 512 })),
    token: Type.Optional(Type.String({ maxLength: 512, description: 'of admin.token, instead of user and password' })),
    cookie: Type.Boolean({
      default: false,
      description: 'true: for a page; the secret is in an HttpOnly cookie alone',
    }),
  }),
);
export const PasswordChange = input(Type.Object({ current: Type.String({ maxLength: 512 }), password }));

export type UserView = Static<typeof User>;
export type SessionView = Static<typeof Session>;
