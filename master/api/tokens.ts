/** Tokens over REST: shown once, when they are made; a manager neither makes nor deletes one of the role admin. */
import type { FastifyInstance } from 'fastify';
import { apiVersion } from '../resources.ts';
import { builtIn, TooManyTokens } from '../tokens.ts';
import type { Caller } from '../tokens.ts';
import { page } from './list.ts';
import { ApiProblem, invalid, notFound } from './problem.ts';
import { route } from './route.ts';
import type { Context } from './route.ts';
import { isWithinGroups, mustBeWithin } from './scope.ts';
import { PageQuery } from './schema.ts';
import { TokenCreate } from './schema/token.ts';
import type { NewTokenView, Role } from './schema/token.ts';

const url = '/api/v1/tokens';
const tag = 'tokens';

export function tokenRoutes(app: FastifyInstance, { tokens, store, clock, newJoinToken, caPem }: Context): void {
  route(app, {
    method: 'GET',
    url,
    tag,
    summary: 'List tokens, without their secrets',
    query: PageQuery,
    answer: 'TokenList',
    handle({ query, caller }) {
      const shown = tokens.list().filter(({ spec }) => isWithinGroups(caller, spec.groups ?? undefined));
      return page(shown, ({ metadata }) => metadata.name, query, store.version());
    },
  });
  route(app, {
    method: 'POST',
    url,
    tag,
    summary: 'Make an API token {"name", "role", "groups"} or a join token {"kind": "join"}; it is shown this once',
    body: TokenCreate,
    answer: 'NewToken',
    status: 201,
    secret: true,
    async handle({ body, caller }): Promise<NewTokenView> {
      const { kind, name, role, groups: asked, nodes, lifeSeconds } = body;
      if (kind === 'join') {
        for (const field of ['role', 'groups'] as const)
          if (body[field] !== undefined) throw invalid([{ path: field, message: 'is for API tokens; leave it out' }]);
        // It lets a node in, which is everybody's.
        mustBeWithin(caller, undefined);
        const metadata = { name: name ?? 'join', creationTimestamp: new Date(clock.nowMs()).toISOString() };
        const token = await newJoinToken(lifeSeconds === undefined ? undefined : lifeSeconds * 1000, nodes);
        const ca = caPem === undefined ? {} : { ca: caPem };
        return { apiVersion, kind: 'Token', metadata, spec: { kind, role: null, groups: null }, token, ...ca };
      }
      for (const field of ['nodes', 'lifeSeconds'] as const)
        if (body[field] !== undefined) throw invalid([{ path: field, message: 'is for join tokens; leave it out' }]);
      if (name === undefined) throw invalid([{ path: 'name', message: 'is required: what the token is for' }]);
      if (role === undefined)
        throw invalid([{ path: 'role', message: 'is required: admin, manager, operator or user' }]);
      mayTouch(caller, role);
      // Absent: as the caller is bound.
      const groups = asked === undefined ? caller.groups : (asked ?? undefined);
      if (groups !== undefined && role === 'admin')
        throw invalid([{ path: 'groups', message: 'is for other roles: admin is bound to none' }]);
      mustBeWithin(caller, groups);
      const made = create(name, role, groups);
      if (made === undefined)
        throw new ApiProblem('AlreadyExists', `there is a token ${name} already; delete it first`);
      return { ...made.view, spec: { kind, ...made.view.spec }, token: made.secret };
    },
  });
  route(app, {
    method: 'DELETE',
    url: `${url}/:name`,
    tag,
    summary: 'Delete a token; it is worthless at once',
    answer: 'Token',
    handle({ params, caller }) {
      const name = params['name'] ?? '';
      const token = tokens.get(name);
      if (token === undefined || !isWithinGroups(caller, token.spec.groups ?? undefined)) throw notFound('token', name);
      mayTouch(caller, token.spec.role);
      if (name === builtIn)
        throw new ApiProblem(
          'BuiltIn',
          'this token is in the file admin.token; replace or remove it there and restart',
        );
      tokens.delete(name);
      return token;
    },
  });

  function create(name: string, role: Role, groups?: readonly string[]): ReturnType<typeof tokens.create> {
    try {
      return tokens.create(name, role, groups);
    } catch (error) {
      throw error instanceof TooManyTokens ? new ApiProblem('LimitReached', error.message) : error;
    }
  }
}

function mayTouch(caller: Caller, role: Role): void {
  if (role === 'admin' && caller.role !== 'admin')
    throw new ApiProblem(
      'Forbidden',
      `tokens of the role admin are made and deleted by admin only, not by ${caller.role}`,
    );
}
