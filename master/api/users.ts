/**
 * Users and sessions over REST. Passwords come in and never go out; a manager has no hand on admin. A session is a cookie
 * that scripts cannot read (page) or a bearer token (command line).
 */
import type { Static } from 'typebox';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { apiVersion } from '../resources.ts';
import { builtIn } from '../tokens.ts';
import type { Caller } from '../tokens.ts';
import { PasswordRefused, UsersRefused } from '../users.ts';
import type { Login } from '../users.ts';
import { page } from './list.ts';
import { ApiProblem, invalid, notFound } from './problem.ts';
import { route } from './route.ts';
import type { Context } from './route.ts';
import { isWithinGroups, mustBeWithin } from './scope.ts';
import { PageQuery } from './schema.ts';
import { PasswordChange, SessionCreate, UserChange, UserCreate } from './schema/user.ts';
import type { SessionView, UserView } from './schema/user.ts';

const url = '/api/v1/users';
const tag = 'users';
export const cookieName = 'replicator_session';

/** Log-ins of one address within a minute, so that nobody tries one password on many names. */
export const maxLogins = 60;
const maxAddresses = 10_000;

export function userRoutes(app: FastifyInstance, { users, tokens, store, events, clock }: Context): void {
  route(app, {
    method: 'GET',
    url,
    tag,
    summary: 'List users',
    query: PageQuery,
    answer: 'UserList',
    handle({ query, caller }) {
      const shown = users.list().filter((user) => sees(caller, user));
      return page(shown, ({ metadata }) => metadata.name, query, store.version());
    },
  });
  route(app, {
    method: 'GET',
    url: `${url}/:name`,
    tag,
    summary: 'Read a user',
    answer: 'User',
    handle: ({ params, caller }) => find(params['name'], caller),
  });
  route(app, {
    method: 'POST',
    url,
    tag,
    summary: 'Add a user; the role admin exists once',
    body: UserCreate,
    answer: 'User',
    status: 201,
    secret: true,
    async handle({ body, caller }) {
      const { name, password, groups: asked, ...rest } = body;
      // Absent: as the caller is bound.
      const groups = asked === undefined ? caller.groups : (asked ?? undefined);
      mustBeWithin(caller, groups);
      const made = await refusing(() => users.create(name, password, { ...rest, groups }));
      if (!made) throw new ApiProblem('AlreadyExists', `there is a user ${name} already`);
      return find(name);
    },
  });
  route(app, {
    method: 'PATCH',
    url: `${url}/:name`,
    tag,
    summary: 'Change role, name shown or password; sessions end when role, groups or password change',
    body: UserChange,
    answer: 'User',
    secret: true,
    async handle({ params, body, caller }) {
      const { metadata } = find(params['name'], caller);
      mayTouch(caller, metadata.name);
      const { groups, ...rest } = body;
      if (metadata.name === builtIn && (body.role !== undefined || (groups ?? null) !== null))
        throw new ApiProblem('BuiltIn', 'admin has the role admin, bound to no groups, and keeps it');
      if (groups !== undefined) mustBeWithin(caller, groups ?? undefined);
      const changes = { ...rest, ...(groups === undefined ? {} : { groups: groups ?? undefined }) };
      if (!(await refusing(() => users.change(metadata.name, changes)))) throw notFound('user', metadata.name);
      return find(metadata.name);
    },
  });
  route(app, {
    method: 'DELETE',
    url: `${url}/:name`,
    tag,
    summary: 'Delete a user and end the sessions',
    answer: 'User',
    handle({ params, caller }) {
      const user = find(params['name'], caller);
      mayTouch(caller, user.metadata.name);
      if (user.metadata.name === builtIn) throw new ApiProblem('BuiltIn', 'admin exists once and cannot be deleted');
      users.delete(user.metadata.name);
      return user;
    },
  });
  route(app, {
    method: 'POST',
    url: `${url}/:name/actions/endsessions`,
    tag,
    summary: 'End all sessions of a user',
    answer: 'User',
    status: 202,
    handle({ params, caller }) {
      const { metadata } = find(params['name'], caller);
      mayTouch(caller, metadata.name);
      users.endAll(metadata.name);
      return find(metadata.name);
    },
  });
  route(app, {
    method: 'POST',
    url: '/api/v1/session',
    tag: 'session',
    summary: 'Log in',
    body: SessionCreate,
    answer: 'Session',
    status: 201,
    secret: true,
    async handle({ body, reply }) {
      limit(reply.request.ip);
      const login = await refusing(() => logIn(body));
      if (login === undefined) {
        const message = `wrong name or password from ${reply.request.ip}`;
        events.emit({ code: 'LoginFailed', level: 'WARNING', message, object: `User/${body.user ?? builtIn}` });
        throw new ApiProblem('Unauthorized', 'name or password (or token) are wrong');
      }
      const message = `logged in from ${reply.request.ip}`;
      events.emit({ code: 'SessionStarted', level: 'INFO', message, object: `User/${login.caller.name}` });
      return started(login, body.cookie, reply);
    },
  });
  route(app, {
    method: 'GET',
    url: '/api/v1/session',
    tag: 'session',
    summary: 'Who is calling',
    answer: 'Session',
    secret: true,
    handle: ({ caller, reply }) => shown(caller, users.session(cookieOf(reply.request) ?? '')?.csrf ?? null),
  });
  route(app, {
    method: 'DELETE',
    url: '/api/v1/session',
    tag: 'session',
    summary: 'Log out',
    answer: 'Session',
    secret: true,
    handle({ caller, reply }) {
      const secret = bearerOf(reply.request) ?? cookieOf(reply.request);
      if (secret !== undefined) users.end(secret);
      void reply.header('set-cookie', `${cookieName}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0`);
      return shown(caller, null);
    },
  });
  route(app, {
    method: 'POST',
    url: '/api/v1/session/actions/password',
    tag: 'session',
    summary: 'Change the own password; all own sessions end',
    body: PasswordChange,
    answer: 'Session',
    status: 202,
    secret: true,
    async handle({ body, caller, reply }) {
      // A token of the same name is no person.
      const secret = bearerOf(reply.request) ?? cookieOf(reply.request) ?? '';
      if (users.session(secret)?.name !== caller.name)
        throw new ApiProblem('WrongState', 'a token has no password; log in as the user first');
      if (!(await refusing(() => users.verify(caller.name, body.current))))
        throw invalid([{ path: 'current', message: 'is not the password' }]);
      await refusing(() => users.change(caller.name, { password: body.password }));
      return shown(caller, null);
    },
  });

  async function logIn({ user, password, token }: Static<typeof SessionCreate>): Promise<Login | undefined> {
    if (token !== undefined) {
      const caller = tokens.caller(token);
      return caller?.name === builtIn ? users.start(caller) : undefined;
    }
    if (user === undefined) throw invalid([{ path: 'user', message: 'is required, with password; or give token' }]);
    if (password === undefined) throw invalid([{ path: 'password', message: 'is required' }]);
    return users.login(user, password);
  }
  const tries = new Map<string, { sinceMs: number; count: number }>();
  function limit(address: string): void {
    const nowMs = clock.nowMs();
    const seen = tries.get(address);
    const current = seen !== undefined && nowMs - seen.sinceMs < 60_000 ? seen : { sinceMs: nowMs, count: 0 };
    current.count += 1;
    tries.delete(address);
    tries.set(address, current);
    const [oldest] = tries.keys();
    if (tries.size > maxAddresses && oldest !== undefined) tries.delete(oldest);
    if (current.count > maxLogins)
      throw new ApiProblem(
        'TooManyRequests',
        `more than ${maxLogins} log-ins within a minute from here; wait a minute`,
      );
  }

  function find(name = '', caller?: Caller): UserView {
    const user = users.get(name);
    if (user === undefined || (caller !== undefined && !sees(caller, user))) throw notFound('user', name);
    return user;
  }
}

/** Those who are bound to no more than the caller, and itself. */
function sees(caller: Caller, { metadata, spec }: UserView): boolean {
  return metadata.name === caller.name || isWithinGroups(caller, spec.groups ?? undefined);
}

function shown({ name, role, groups }: Caller, csrfToken: string | null): SessionView {
  return {
    ...{ apiVersion, kind: 'Session' },
    spec: { user: name, role, groups: groups === undefined ? null : [...groups] },
    csrfToken,
  };
}

function started({ caller, secret, csrf }: Login, isCookie: boolean, reply: FastifyReply): SessionView {
  if (!isCookie) return { ...shown(caller, null), token: secret };
  const secure = 'encrypted' in reply.request.socket ? '; Secure' : '';
  void reply.header('set-cookie', `${cookieName}=${secret}; Path=/; HttpOnly; SameSite=Strict${secure}`);
  return shown(caller, csrf);
}

export function cookieOf(request: FastifyRequest): string | undefined {
  const pairs = (request.headers.cookie ?? '').split(';').map((pair) => pair.trim().split('='));
  return pairs.find(([name]) => name === cookieName)?.[1];
}
export function bearerOf(request: FastifyRequest): string | undefined {
  return /^Bearer +([\x21-\x7e]{1,512})$/i.exec(request.headers.authorization ?? '')?.[1];
}

async function refusing<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof PasswordRefused) throw invalid([{ path: 'password', message: error.message }]);
    if (!(error instanceof UsersRefused)) throw error;
    const { message, retryAfterSeconds } = error;
    throw new ApiProblem(
      retryAfterSeconds === undefined ? 'LimitReached' : 'TooManyRequests',
      message,
      [],
      retryAfterSeconds,
    );
  }
}

function mayTouch(caller: Caller, name: string): void {
  if (name === builtIn && caller.role !== 'admin')
    throw new ApiProblem('Forbidden', `admin is changed by admin only, not by ${caller.role}`);
}
