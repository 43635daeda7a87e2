/**
 * How a route is written: what it takes, what it answers and what it does, in one object. From it come the checks, the
 * answer's shape (fields that the schema does not have never leave), the OpenAPI operation and the ETag.
 */
import type { FastifyInstance, FastifyReply, FastifyRequest, HTTPMethods } from 'fastify';
import type { Static, TSchema } from 'typebox';
import type { Clock } from '../../proto/effects.ts';
import type { Engine } from '../engine.ts';
import type { EventLog } from '../events.ts';
import type { Store } from '../store.ts';
import type { Caller, Tokens } from '../tokens.ts';
import type { Sinks } from '../sinks.ts';
import type { Users } from '../users.ts';
import { check, fromQuery } from './check.ts';
import { invalid } from './problem.ts';
import { rightOf, rolesOf } from './rights.ts';
import { scopeRule } from './scope.ts';
import type { Watches } from './watch.ts';

/** What handlers work with. */
export interface Context {
  store: Store;
  engine: Engine;
  events: EventLog;
  tokens: Tokens;
  users: Users;
  sinks: Sinks;
  clock: Clock;
  /** By which locks end: see trustedclock.ts. */
  trusted: Clock;
  watches: Watches;
  newJoinToken: (lifeMs?: number, nodes?: number) => string | Promise<string>;
  /** PEM of the CA that a joining agent must trust. */
  caPem?: string | undefined;
}

export interface Call<B = undefined, Q = undefined> {
  params: Record<string, string>;
  query: Q;
  body: B;
  caller: Caller;
  /** resourceVersion that the caller wants to change, from If-Match. */
  ifVersion: string | undefined;
  idempotencyKey: string | undefined;
  reply: FastifyReply;
}

export interface Route<B extends TSchema, Q extends TSchema> {
  method: HTTPMethods;
  url: string;
  summary: string;
  tag: string;
  query?: Q;
  body?: B;
  /** Name of a shared schema (see server.ts), e.g. Replication or ReplicationList. */
  answer: string;
  /** 200 unless given. */
  status?: 201 | 202;
  /** The body may be left out. */
  bodyOptional?: true;
  /** Kept out of the records of Idempotency-Key, as the answer holds a secret. */
  secret?: true;
  /** Answers an object of `answer`'s schema, or the reply itself when it is on its way. */
  handle: (call: Call<Static<B>, Static<Q>>) => unknown;
}

declare module 'fastify' {
  interface FastifyRequest {
    caller: Caller | null;
    /** Whether who calls may still do so: tokens and sessions end while a watch is open. */
    isStillGood: () => boolean;
    /** The body as it was sent. */
    text: string;
    /** Object of the answer, such as Replication/orders, for the audit. */
    about: string | null;
  }
  interface FastifyContextConfig {
    secret?: boolean;
  }
}

const writeHeaders = {
  type: 'object',
  properties: {
    'idempotency-key': {
      type: 'string',
      pattern: '^[\\x21-\\x7e]{1,255}$',
      description: 'the same key again within 24 h: the same answer, nothing done',
    },
    'if-match': {
      type: 'string',
      pattern: '^(\\*|(W/)?"?[0-9]{1,15}"?)$',
      description: 'resourceVersion that is to be changed; 409 when more than the status has changed since',
    },
  },
};
/** Of routes whose answers are never kept: a key would promise what is not so. */
const versionHeader = { type: 'object', properties: { 'if-match': writeHeaders.properties['if-match'] } };
const watchHeaders = {
  type: 'object',
  properties: {
    'last-event-id': { type: 'string', pattern: '^[0-9]{0,15}$', description: 'with watch=true: go on after this id' },
  },
};

export function route<B extends TSchema, Q extends TSchema>(app: FastifyInstance, spec: Route<B, Q>): void {
  const status = spec.status ?? 200;
  const names = [...spec.url.matchAll(/:(\w+)/g)].map((match) => match[1] ?? '');
  const params = Object.fromEntries(names.map((name) => [name, { type: 'string' }]));
  const watchable = spec.query !== undefined && 'watch' in ((spec.query as { properties?: object }).properties ?? {});
  app.route({
    method: spec.method,
    url: spec.url,
    config: { secret: spec.secret === true },
    schema: {
      ...{ 'x-roles': rolesOf(rightOf(String(spec.method), spec.url) ?? 'open') },
      // Whether callers who are bound to groups may call it at all.
      ...{ 'x-groups': scopeRule(String(spec.method), spec.url) !== 'whole' },
      summary: spec.summary,
      tags: [spec.tag],
      operationId: operationId(spec.method, spec.url),
      ...(names.length === 0 ? {} : { params: { type: 'object', properties: params, required: names } }),
      ...(spec.query === undefined ? {} : { querystring: spec.query }),
      ...(spec.body === undefined ? {} : { body: spec.body }),
      ...(spec.method === 'GET'
        ? watchable
          ? { headers: watchHeaders }
          : {}
        : { headers: spec.secret ? versionHeader : writeHeaders }),
      response: {
        [status]: answered(spec.answer, watchable),
        '4xx': {
          description: 'a problem document (RFC 9457)',
          content: { 'application/problem+json': { schema: { $ref: 'Problem#' } } },
        },
      },
    },
    async handler(request, reply) {
      const query =
        spec.query === undefined ? undefined : check(spec.query, fromQuery(spec.query, request.query), 'query');
      // A body that says null was not left out.
      const given = request.body === undefined && spec.bodyOptional ? {} : request.body;
      const made = spec.handle({
        params: request.params as Record<string, string>,
        query: query as Static<Q>,
        body: (spec.body === undefined ? undefined : check(spec.body, given)) as Static<B>,
        caller: request.caller ?? { name: '', role: 'user' },
        ifVersion: ifMatch(request),
        idempotencyKey: header(request, 'idempotency-key'),
        reply,
      });
      // A watch answers by itself, for as long as it lasts; to await a reply is to wait for its end.
      if (made === reply) return reply;
      const answer = await made;
      const { kind, metadata } = answer as { kind?: string; metadata?: { name?: string; resourceVersion?: string } };
      if (kind !== undefined && metadata?.name !== undefined) {
        request.about = `${kind}/${metadata.name}`;
        if (metadata.resourceVersion !== undefined) void reply.header('etag', `"${metadata.resourceVersion}"`);
      }
      return reply.code(status).send(answer);
    },
  });
}

/** A list may be watched; `Stream` is nothing else. */
function answered(name: string, watchable: boolean): object {
  const stream = { 'text/event-stream': { schema: { type: 'string' } } };
  const object = { 'application/json': { schema: { $ref: `${name}#` } } };
  return { description: 'done', content: name === 'Stream' ? stream : { ...object, ...(watchable ? stream : {}) } };
}

export function header(request: FastifyRequest, name: string): string | undefined {
  const value = request.headers[name];
  return Array.isArray(value) ? value[0] : value;
}

function ifMatch(request: FastifyRequest): string | undefined {
  const value = header(request, 'if-match')?.trim();
  if (value === undefined || value === '*') return undefined;
  const version = /^(?:W\/)?"?(\d{1,15})"?$/.exec(value)?.[1];
  if (version === undefined)
    throw invalid([{ path: 'If-Match', message: 'must be one resourceVersion such as "42", as in ETag' }]);
  return version;
}

/** get /api/v1/replications/:name/points: getReplicationsNamePoints */
function operationId(method: string, url: string): string {
  const words = url.replace('/api/v1', '').split(/[/:]+/).filter(Boolean);
  return method.toLowerCase() + words.map((word) => (word[0] ?? '').toUpperCase() + word.slice(1)).join('');
}
