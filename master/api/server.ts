/**
 * The HTTP server of the control API: authentication, rights, errors, audit, idempotency, OpenAPI - and the routes of the
 * other files here.
 *
 * Guarantees: no route is answered without an entry in rights.ts; every error is a problem document; an answered write is
 * durable and has its audit event; bodies are at most 1 MiB and 64 levels deep. A fault of ours answers 500 with the
 * request's id and nothing more. TLS when `listen.tls` is given; that plain HTTP stays on the loopback is for the caller.
 */
import type { AddressInfo, Socket } from 'node:net';
import { randomUUID } from 'node:crypto';
import { Server as TlsServer } from 'node:tls';
import { isDeepStrictEqual } from 'node:util';
import swagger from '@fastify/swagger';
import swaggerUi from '@fastify/swagger-ui';
import fastify, { LogController } from 'fastify';
import type { FastifyBaseLogger, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import Type from 'typebox';
import type { TSchema } from 'typebox';
import { formatHostPort, isLoopback, nearHost } from '../../proto/value.ts';
import { agentRoutes } from './agents.ts';
import { eventRoutes } from './events.ts';
import { idempotency } from './idempotency.ts';
import { ApiProblem, asProblem, document, problemCodes } from './problem.ts';
import { groupPointRoutes } from './grouppoints.ts';
import { garbageRoutes } from './garbage.ts';
import { groupRoutes } from './groups.ts';
import { recoveryScheduleRoutes } from './recoveryschedules.ts';
import { Cleanup, Garbage } from './schema/garbage.ts';
import { recoveryRoutes } from './recoveries.ts';
import { replicationRoutes } from './replications.ts';
import { allows, rightOf } from './rights.ts';
import type { Right } from './rights.ts';
import { header } from './route.ts';
import type { Context } from './route.ts';
import type { Caller } from '../tokens.ts';
import { listOf, Problem } from './schema.ts';
import { Agent, AgentVolume, Log } from './schema/agent.ts';
import { Event } from './schema/event.ts';
import { Group } from './schema/group.ts';
import { Recovery } from './schema/recovery.ts';
import { RecoverySchedule } from './schema/recoveryschedule.ts';
import { AgeSample, GroupPoint, Point, Replication } from './schema/replication.ts';
import { Sink } from './schema/sink.ts';
import { Snapshot } from './schema/snapshot.ts';
import { StorageClass } from './schema/storageclass.ts';
import { NewToken, Token } from './schema/token.ts';
import { Session, User } from './schema/user.ts';
import { roleRoutes } from './roles.ts';
import { holdToScope, metricsWithin, scopeOf, scopeRule } from './scope.ts';
import { sinkRoutes } from './sinks.ts';
import { snapshotRoutes } from './snapshots.ts';
import { storageClassRoutes } from './storageclasses.ts';
import { tokenRoutes } from './tokens.ts';
import { bearerOf, cookieOf, userRoutes } from './users.ts';
import { pageFiles, pageRoutes } from './page.ts';
import { securityHeaders } from './headers.ts';
import { requestLimits } from './limits.ts';
import { watches } from './watch.ts';
import { watchRoutes } from './watchall.ts';

export interface ApiOptions extends Omit<Context, 'watches'> {
  /** Port 0: any free one. */
  listen: { host: string; port: number; tls?: { key: string | Buffer; cert: string | Buffer } };
  metrics: { contentType: string; text(): Promise<string> };
  version: string;
  /** Whether /readyz says so; absent: as soon as it listens. */
  ready?: () => boolean;
  /** Faults of ours are logged here; absent: nowhere. */
  logger?: FastifyBaseLogger;
  heartbeatMs?: number;
  /** Of one caller; absent: 100. */
  requestsPerSecond?: number;
}
export interface Api {
  /** As it is dialled from this machine, such as http://127.0.0.1:8080, with the port that it got. */
  url: string;
  /** Every route as "METHOD /path". */
  routes: string[];
  /** A call from within this process, with the same rights, checks and audit as one over the line. */
  call(
    method: 'POST' | 'PATCH' | 'DELETE',
    path: string,
    token: string,
    body?: object,
  ): Promise<{ status: number; body: unknown }>;
  close(): Promise<void>;
  /** For connections that come from now on. Without effect where there was no TLS. */
  setTls(tls: { key: string | Buffer; cert: string | Buffer }): void;
  setRequestsPerSecond(count: number | undefined): void;
}

const maxBodyBytes = 1 << 20;
const maxHeaderSize = 1 << 16;
const maxDepth = 64;
const maxRequestMs = 60_000;
const problemType = 'application/problem+json';

export async function startApi(options: ApiOptions): Promise<Api> {
  const { listen, events } = options;
  const open = watches(options.heartbeatMs);
  const context: Context = { ...options, watches: open };
  const app = fastify({
    // Long selectors are refused with the reason, not cut off.
    ...(listen.tls === undefined ? { http: { maxHeaderSize } } : { https: { ...listen.tls, maxHeaderSize } }),
    clientErrorHandler: (error, socket) => refuseUnread(error, socket),
    ...(options.logger === undefined ? { logger: false } : { loggerInstance: options.logger }),
    logController: new LogController({ disableRequestLogging: true }),
    frameworkErrors: (error, request, reply) => void sendProblem(error, request, reply),
    bodyLimit: maxBodyBytes,
    // Of the whole request; an answer (a watch) may take as long as it likes.
    requestTimeout: maxRequestMs,
    exposeHeadRoutes: false,
    forceCloseConnections: true,
    genReqId: ({ headers }) => requestIdOf(headers['x-request-id']),
    requestIdHeader: false,
    routerOptions: { maxParamLength: 512 },
  }) as unknown as FastifyInstance;

  const limits = requestLimits(options.clock, options.requestsPerSecond);
  const routes: string[] = [];
  app.addHook('onRoute', ({ method, url }) => {
    for (const verb of [method].flat()) {
      // Our bug, found at the start: nothing may be reachable by forgetting.
      if (rightOf(verb, url) === undefined) throw new Error(`${verb} ${url} has no entry in rights.ts`);
      if (scopeRule(verb, url) === undefined) throw new Error(`${verb} ${url} has no entry in scope.ts`);
      routes.push(`${verb} ${url}`);
    }
  });
  app.decorateRequest('caller', null);
  app.decorateRequest('isStillGood', () => true);
  app.decorateRequest('text', '');
  app.decorateRequest('about', null);
  app.addHook('onRequest', async (request, reply) => {
    void reply.header('x-request-id', request.id).headers(securityHeaders(request.url, listen.tls !== undefined));
    const url = request.routeOptions.url;
    const right = url === undefined ? 'agents:read' : rightOf(request.method, url);
    try {
      authorize(context, request, right);
    } finally {
      // Probes never wait; who is not known waits by where it comes from.
      if (url !== '/healthz' && url !== '/readyz') limits.take(request);
    }
  });
  parseBodies(app);
  // Bodies and queries are checked in route.ts, by the same schemas, with messages that name field and cure.
  app.setValidatorCompiler(() => () => true);
  // Where nothing is, what is wrong with the rest of the request is of no interest.
  app.setErrorHandler((error, request, reply) =>
    request.is404 && asProblem(error).code === 'BadRequest'
      ? notThere(request, reply)
      : sendProblem(error, request, reply),
  );
  app.setNotFoundHandler((request, reply) => notThere(request, reply));
  function notThere(request: FastifyRequest, reply: FastifyReply): FastifyReply {
    const path = request.url.split('?')[0] ?? '';
    const others = methodsOf(routes, path);
    if (others.length === 0)
      return sendProblem(
        new ApiProblem('NotFound', `there is no ${request.method} ${path}; see /docs`),
        request,
        reply,
      );
    void reply.header('allow', others.join(', '));
    const detail = `${path} has ${others.join(', ')}, not ${request.method}; see /docs`;
    return sendProblem(new ApiProblem('MethodNotAllowed', detail), request, reply);
  }
  keepAnswers(app, context);
  app.addHook('onSend', async (request, reply, payload: unknown) => {
    audit(request, reply, events);
    logWrite(request, reply);
    return payload;
  });

  await openapi(app, options.version);
  app.get('/healthz', { schema: { hide: true } }, async () => ({ status: 'ok' }));
  app.get('/readyz', { schema: { hide: true } }, async () => {
    if (options.ready?.() === false) throw new ApiProblem('Unavailable', 'the master is starting or stopping');
    return { status: 'ok' };
  });
  app.get('/metrics', { schema: { hide: true } }, async ({ caller }, reply) => {
    const text = await options.metrics.text();
    const scope = scopeOf(options.store, caller ?? {});
    const isSeen = (name: string): boolean => {
      const found = options.store.get('Replication', name);
      return found !== undefined && scope.sees(found);
    };
    return reply.type(options.metrics.contentType).send(scope.isWhole ? text : metricsWithin(text, isSeen));
  });
  app.get('/openapi.json', { schema: { hide: true } }, async () => app.swagger());
  pageRoutes(app, await pageFiles());
  replicationRoutes(app, context);
  snapshotRoutes(app, context);
  roleRoutes(app, context);
  recoveryRoutes(app, context);
  recoveryScheduleRoutes(app, context);
  groupRoutes(app, context);
  agentRoutes(app, context);
  storageClassRoutes(app, context);
  groupPointRoutes(app, context);
  garbageRoutes(app, context);
  eventRoutes(app, context);
  watchRoutes(app, context);
  tokenRoutes(app, context);
  userRoutes(app, context);
  sinkRoutes(app, context);

  await app.listen({ host: listen.host, port: listen.port });
  const { address, port } = app.server.address() as AddressInfo;
  return {
    url: `http${listen.tls === undefined ? '' : 's'}://${formatHostPort({ host: nearHost(address), port })}`,
    routes,
    async call(method, path, token, body) {
      const headers = { authorization: `Bearer ${token}` };
      const answer = await app.inject({ method, url: path, headers, ...(body ? { payload: body } : {}) });
      return { status: answer.statusCode, body: answer.json<unknown>() };
    },
    setTls(tls) {
      if (app.server instanceof TlsServer) app.server.setSecureContext(tls);
    },
    setRequestsPerSecond: (count) => limits.set(count),
    async close() {
      open.close();
      await app.close();
    },
  };
}

/** Finds out who calls, and whether they may. @throws ApiProblem Unauthorized, Forbidden */
function authorize({ tokens, users, store }: Context, request: FastifyRequest, right: Right | undefined): void {
  if (right === 'open') return;
  const authorization = request.headers.authorization;
  const secret = bearerOf(request);
  const cookie = authorization === undefined ? cookieOf(request) : undefined;
  if (authorization === undefined && right?.startsWith('local-') && isLocal(request)) return;
  const session = users.session(secret ?? cookie ?? '');
  const caller = (secret === undefined ? undefined : tokens.caller(secret)) ?? session;
  if (caller === undefined) {
    const detail =
      authorization === undefined
        ? 'log in (POST /api/v1/session) or send Authorization: Bearer TOKEN; the first token is in the file admin.token of the master'
        : 'this token is not (any more) valid; an admin makes a new one with POST /api/v1/tokens, or log in again';
    throw new ApiProblem('Unauthorized', detail);
  }
  // A cookie comes with whatever a browser is led to send; this header only with what our own page means.
  if (cookie !== undefined && isWrite(request) && header(request, 'x-csrf-token') !== session?.csrf)
    throw new ApiProblem('Forbidden', "send the session's csrfToken (GET /api/v1/session) as X-CSRF-Token");
  request.caller = { name: caller.name, role: caller.role, groups: caller.groups };
  request.isStillGood = () => {
    const now =
      (secret === undefined ? undefined : tokens.caller(secret)) ?? users.session(secret ?? cookie ?? '', false);
    return now?.name === caller.name && now.role === caller.role && isDeepStrictEqual(now.groups, caller.groups);
  };
  // A method that a known path does not have: not found, for those who may look at all.
  if (right !== undefined && !allows(right, caller.role))
    throw new ApiProblem('Forbidden', `the role ${caller.role} has no right ${right}; ask an admin or manager`);
  const url = request.routeOptions.url;
  if (url !== undefined)
    holdToScope(store, request.caller, { method: request.method, url }, request.params as Record<string, string>);
}

/** From this machine and not passed on by a proxy that stands here for others. */
function isLocal(request: FastifyRequest): boolean {
  const address = (request.socket.remoteAddress ?? '').replace(/^::ffff:/, '');
  const isPassedOn = 'x-forwarded-for' in request.headers || 'forwarded' in request.headers;
  // A browser that was led here under a foreign name reads for that name's page (DNS rebinding).
  const host = (request.headers.host ?? '').replace(/:\d+$/, '').replace(/^\[(.*)\]$/, '$1');
  return isLoopback(address) && isLoopback(host) && !isPassedOn;
}

/** Methods of the routes that the path fits, sorted. */
function methodsOf(routes: string[], path: string): string[] {
  const parts = path.split('/');
  const fitting = routes.filter((route) => {
    const own = (route.split(' ')[1] ?? '').split('/');
    return (
      own.length === parts.length && own.every((part, i) => part === parts[i] || (part.startsWith(':') && parts[i]))
    );
  });
  return [...new Set(fitting.map((route) => route.split(' ')[0] ?? ''))].sort();
}

function parseBodies(app: FastifyInstance): void {
  const parse = app.getDefaultJsonParser('error', 'error');
  app.removeAllContentTypeParsers();
  const types = ['application/json', 'application/merge-patch+json'];
  app.addContentTypeParser(types, { parseAs: 'string' }, (request, body, done) => {
    request.text = body as string;
    if (request.text.trim() === '') return done(null, undefined);
    return void parse(request, request.text, (error, value: unknown) => {
      if (error !== null) done(new ApiProblem('BadJson', error.message));
      else if (isDeeper(value, maxDepth)) done(new ApiProblem('BadJson', `more than ${maxDepth} levels deep`));
      else done(null, value);
    });
  });
}

function isDeeper(value: unknown, levels: number): boolean {
  if (typeof value !== 'object' || value === null) return false;
  return levels === 0 || Object.values(value).some((item) => isDeeper(item, levels - 1));
}

function sendProblem(error: unknown, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  const problem = asProblem(error);
  if (problem.code === 'Internal') request.log.error({ err: error, requestId: request.id }, 'request failed');
  if (problem.retryAfterSeconds !== undefined) void reply.header('retry-after', String(problem.retryAfterSeconds));
  if (problem.code === 'Unauthorized') void reply.header('www-authenticate', 'Bearer');
  const { status } = problemCodes[problem.code];
  // As a string: the route's answer schema is not for this one.
  return reply
    .code(status)
    .type(problemType)
    .send(JSON.stringify(document(problem, request.id)));
}

/** What is no HTTP, or has too long a head, is not a request yet: the answer is written as it goes over the line. */
function refuseUnread(error: Error & { code?: string }, socket: Socket): void {
  if (error.code === 'ECONNRESET' || !socket.writable) return void socket.destroy(error);
  const isLong = error.code === 'HPE_HEADER_OVERFLOW';
  const problem = isLong
    ? new ApiProblem('HeadTooLarge', `address and headers may have ${maxHeaderSize} bytes`)
    : new ApiProblem('BadRequest', 'this is no HTTP request');
  const { status } = problemCodes[problem.code];
  const body = JSON.stringify(document(problem, randomUUID()));
  const head = `HTTP/1.1 ${status} ${problemCodes[problem.code].title}\r\nContent-Type: ${problemType}\r\nConnection: close`;
  socket.end(`${head}\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`);
}

function isWrite(request: FastifyRequest): boolean {
  return request.method !== 'GET' && request.method !== 'HEAD';
}

/** Idempotency-Key; see idempotency.ts. */
function keepAnswers(app: FastifyInstance, { store, clock }: Context): void {
  const kept = idempotency(store, clock);
  const replayed = new WeakSet<FastifyRequest>();
  const keyOf = (request: FastifyRequest): string | undefined => {
    const key = isWrite(request) && !request.is404 ? header(request, 'idempotency-key') : undefined;
    return request.caller === null || request.routeOptions.config.secret === true ? undefined : key;
  };
  // Somebody else who gets the name later, or other rights, is not answered what this one was.
  const who = ({ name, role, groups = [] }: Caller): string => [name, role, ...groups].join(' ');
  const requestOf = (request: FastifyRequest): string =>
    [request.method, request.url, header(request, 'if-match') ?? '*', request.text].join('\n');
  app.addHook('preHandler', async (request, reply) => {
    const key = keyOf(request);
    if (key === undefined || request.caller === null) return;
    const answer = kept.find(who(request.caller), key, requestOf(request));
    if (answer === undefined) return;
    replayed.add(request);
    return reply
      .code(answer.status)
      .header('idempotency-replayed', 'true')
      .type('application/json; charset=utf-8')
      .send(answer.body);
  });
  app.addHook('onSend', async (request, reply, payload: unknown) => {
    const key = keyOf(request);
    const isDone = reply.statusCode < 300 && typeof payload === 'string' && !replayed.has(request);
    if (key !== undefined && request.caller !== null && isDone)
      kept.keep(who(request.caller), key, requestOf(request), { status: reply.statusCode, body: payload });
    return payload;
  });
}

/** The caller's own, so that its logs and ours are found by one id, where it is one that a log can hold. */
function requestIdOf(given: string | string[] | undefined): string {
  return typeof given === 'string' && /^[\w.:-]{1,64}$/.test(given) ? given : randomUUID();
}

/** One line for each write, done or refused, by which the answer's x-request-id is found; never bodies. */
function logWrite(request: FastifyRequest, reply: FastifyReply): void {
  if (!isWrite(request)) return;
  const { id, method, caller } = request;
  const line = {
    requestId: id,
    caller: caller?.name ?? null,
    method,
    url: request.url.slice(0, 512),
    status: reply.statusCode,
    object: request.about,
    milliseconds: Math.round(reply.elapsedTime),
  };
  request.log[reply.statusCode < 500 ? 'info' : 'error'](line, 'request');
}

/** Writes that were done, and those that the role forbade: the others changed nothing and are the caller's own business. */
function audit(request: FastifyRequest, reply: FastifyReply, events: Context['events']): void {
  const isDone = reply.statusCode < 300;
  const isForbidden = reply.statusCode === 403;
  const who = request.caller;
  if (!isWrite(request) || who === null || !(isDone || isForbidden) || reply.hasHeader('idempotency-replayed')) return;
  const message = `${who.name} (${who.role}): ${request.method} ${request.url} - ${reply.statusCode}`;
  events.emit({ code: 'AuditWrite', level: isDone ? 'INFO' : 'WARNING', message, object: request.about });
}

async function openapi(app: FastifyInstance, version: string): Promise<void> {
  const items = {
    Replication,
    Agent,
    AgentVolume,
    StorageClass,
    Snapshot,
    Recovery,
    RecoverySchedule,
    Group,
    Point,
    GroupPoint,
    AgeSample,
    Event,
    Token,
    User,
    Garbage,
    Sink,
  };
  const add = (id: string, schema: TSchema): unknown => app.addSchema({ ...schema, $id: id });
  for (const [id, schema] of Object.entries(items)) {
    add(id, schema);
    add(`${id}List`, listOf(Type.Unsafe({ $ref: `${id}#` })));
  }
  add('NewToken', NewToken);
  add('Log', Log);
  add('Session', Session);
  add('Cleanup', Cleanup);
  add('Problem', Problem);
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: { title: 'Replicator control API', version },
      security: [{ token: [] }],
      components: { securitySchemes: { token: { type: 'http', scheme: 'bearer' } } },
    },
    refResolver: {
      buildLocalReference: (json, _base, _fragment, index) =>
        typeof json['$id'] === 'string' ? json['$id'] : `def-${index}`,
    },
  });
  // Everything that the page needs comes from here; no validator on the internet.
  await app.register(swaggerUi, {
    routePrefix: '/docs',
    staticCSP: true,
    uiConfig: { validatorUrl: null, persistAuthorization: true },
  });
}
