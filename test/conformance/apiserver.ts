/** A control API on the real store with a real port; only the engine behind it and the clock are the test's. */
import type { Test } from 'tap';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startApi } from '../../master/api/server.ts';
import type { Api } from '../../master/api/server.ts';
import { openDatabase } from '../../master/database.ts';
import type { Engine } from '../../master/engine.ts';
import { eventLog } from '../../master/events.ts';
import type { EventLog } from '../../master/events.ts';
import type { AgentVolume, PointView } from '../../master/resources.ts';
import { sqliteStore } from '../../master/store-sqlite.ts';
import type { Store } from '../../master/store.ts';
import { openTokens } from '../../master/tokens.ts';
import type { Tokens } from '../../master/tokens.ts';
import { openSinks } from '../../master/sinks.ts';
import { openUsers } from '../../master/users.ts';
import { systemClock } from '../../proto/system.ts';

export type Json = Record<string, unknown>;
export interface Answer {
  status: number;
  headers: Headers;
  text: string;
  /** The body as JSON; undefined when it is none. */
  body: Json;
}
export interface Given {
  token?: string | null;
  headers?: Record<string, string>;
  /** As it is, instead of as JSON. */
  text?: string;
}
export interface Server {
  api: Api;
  store: Store;
  events: EventLog;
  tokens: Tokens;
  folder: string;
  /** `atMs`: it stands still. */
  clock: { offsetMs: number; atMs?: number };
  points: PointView[];
  volumes: AgentVolume[];
  revoked: string[];
  /** What the metrics are. */
  metrics: { text: string };
  call: (method: string, path: string, body?: unknown, given?: Given) => Promise<Answer>;
  /** The data of server-sent events and their ids, as they come. */
  watch: (
    path: string,
    lastEventId?: string,
    token?: string,
  ) => AsyncGenerator<{ id: string; data: { type: string; object: Json } }>;
  close: () => Promise<void>;
}

export const v1 = '/api/v1';
export function point(sequence: number, sourceTime: string): PointView {
  const digest = 'ab'.repeat(16);
  return {
    sequence,
    sourceTime,
    committedTime: sourceTime,
    consistency: 'crash',
    digest,
    snapshot: null,
    drilledTime: null,
  };
}

async function startServer(options: { maxChanges?: number; heartbeatMs?: number } = {}): Promise<Server> {
  const folder = mkdtempSync(join(tmpdir(), 'api-'));
  const offset: Server['clock'] = { offsetMs: 0 };
  const clock = { ...systemClock, nowMs: () => offset.atMs ?? Date.now() + offset.offsetMs };
  const random = { bytes: (length: number) => randomBytes(length) };
  const database = openDatabase(join(folder, 'master.db'));
  const { maxChanges, heartbeatMs } = options;
  const store = sqliteStore(database, { clock, random, ...(maxChanges === undefined ? {} : { maxChanges }) });
  const events = eventLog(database, clock);
  const adminFile = join(folder, 'admin.token');
  const tokens = await openTokens({ store, clock, random, adminFile });
  const points: PointView[] = [];
  const volumes: AgentVolume[] = [];
  const revoked: string[] = [];
  const engine: Engine = {
    points: (_uid, from = -Infinity, to = Infinity) =>
      points.filter(({ sourceTime }) => Date.parse(sourceTime) >= from && Date.parse(sourceTime) <= to),
    volumes: () => volumes,
    validateReplication: ({ source }) =>
      source.path.startsWith('/etc') ? [{ path: 'spec.source.path', message: 'is a system directory' }] : [],
    validateStorageClass: ({ parameters }) =>
      parameters.path === '/etc' ? [{ path: 'spec.parameters.path', message: 'is a system directory' }] : [],
    revokeAgent: (name) => void revoked.push(name),
  };
  const metrics = { text: 'replicator_up 1\n' };
  const sinks = openSinks({ store, events, clock });
  const stopping = new AbortController();
  const sending = sinks.run(stopping.signal);
  const api = await startApi({
    store,
    engine,
    events,
    tokens,
    sinks,
    users: openUsers({
      store,
      clock,
      random,
      onLocked: (name) =>
        events.emit({ code: 'UserLocked', level: 'WARNING', message: 'locked', object: `User/${name}` }),
    }),
    clock,
    trusted: clock,
    listen: { host: '127.0.0.1', port: 0 },
    metrics: { contentType: 'text/plain; version=0.0.4', text: async () => metrics.text },
    version: '1.2.3',
    newJoinToken: () => 'join-secret',
    ...(heartbeatMs === undefined ? {} : { heartbeatMs }),
  });
  const admin = readFileSync(adminFile, 'utf8').trim();

  async function call(method: string, path: string, body?: unknown, given: Given = {}): Promise<Answer> {
    const { token = admin, headers = {}, text = body === undefined ? undefined : JSON.stringify(body) } = given;
    const answer = await fetch(api.url + path, {
      method,
      headers: {
        ...(token === null ? {} : { authorization: `Bearer ${token}` }),
        ...(text === undefined ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
      ...(text === undefined ? {} : { body: text }),
    });
    const found = await answer.text();
    const isJson = /json/.test(answer.headers.get('content-type') ?? '') && found !== '';
    return {
      status: answer.status,
      headers: answer.headers,
      text: found,
      body: (isJson ? JSON.parse(found) : undefined) as Json,
    };
  }
  async function* watch(path: string, lastEventId?: string, token = admin): ReturnType<Server['watch']> {
    const stop = new AbortController();
    try {
      const answer = await fetch(`${api.url}${path}`, {
        headers: {
          authorization: `Bearer ${token}`,
          ...(lastEventId === undefined ? {} : { 'last-event-id': lastEventId }),
        },
        signal: stop.signal,
      });
      if (answer.status !== 200 || answer.body === null) throw new Error(`watch answered ${answer.status}`);
      let buffer = '';
      let id = lastEventId ?? '';
      for await (const chunk of answer.body.pipeThrough(new TextDecoderStream())) {
        buffer += chunk;
        const messages = buffer.split('\n\n');
        buffer = messages.pop() ?? '';
        for (const message of messages) {
          id = /^id: (.*)$/m.exec(message)?.[1] ?? id;
          const data = /^data: (.*)$/m.exec(message)?.[1];
          if (data !== undefined) yield { id, data: JSON.parse(data) as { type: string; object: Json } };
          else yield { id, data: { type: message.startsWith(':') ? 'heartbeat' : 'synced', object: {} } };
        }
      }
    } finally {
      stop.abort();
    }
  }
  async function close(): Promise<void> {
    await api.close();
    stopping.abort();
    await sending;
    events.close();
    store.close();
    rmSync(folder, { recursive: true });
  }
  return { api, store, events, tokens, folder, clock: offset, points, volumes, revoked, metrics, call, watch, close };
}

export function replication(name: string, spec: Json = {}, metadata: Json = {}): Json {
  return {
    metadata: { name, ...metadata },
    spec: {
      source: { agent: 'node-a', path: `/dev/${name}`, volumeMode: 'Block' },
      target: { storageClass: 'local' },
      ...spec,
    },
  };
}
export async function addClass({ call }: Server, name = 'local'): Promise<void> {
  await call('POST', `${v1}/storageclasses`, {
    metadata: { name },
    spec: { driver: 'directory', parameters: { path: `/srv/${name}` } },
  });
}

/** Started for one test, with the storage class `local`. */
export async function serve(t: Test, options?: { maxChanges?: number; heartbeatMs?: number }): Promise<Server> {
  const server = await startServer(options);
  t.teardown(() => server.close());
  await addClass(server);
  return server;
}
export function refused(t: Test, answer: Answer, status: number, code: string, detail?: RegExp): void {
  t.equal(answer.status, status, `${status} ${code}: ${answer.text.slice(0, 200)}`);
  t.match(answer.headers.get('content-type'), /^application\/problem\+json/);
  t.match(answer.body, { status, code, type: String, title: String, detail: String, requestId: String });
  if (detail !== undefined) t.match(answer.body['detail'], detail);
  t.notMatch(answer.text, /node_modules|\.ts:\d|rpl_/, 'no stack, no secret');
}
