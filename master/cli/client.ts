/**
 * The REST API from a program's side: requests, lists over all pages, watches that are resumed without gaps.
 *
 * Guarantees: an answer that is no success is thrown as ApiProblem with what the master said; a master that cannot be
 * reached as Unreachable. A watch whose connection is cut is taken up again after the last event seen, for as long as
 * the caller's signal lets it, and so is one that has gone silent; only the master's refusal ends it. Nothing else is retried.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { plain } from './format.ts';
import type { ListView, ProblemView, WatchMessage } from '../api/schema.ts';

export class ApiProblem extends Error {
  readonly problem: ProblemView;
  /** Asked for, below /api/v1. */
  readonly path: string;
  constructor(problem: ProblemView, path = '') {
    super(problem.detail || problem.title);
    this.name = 'ApiProblem';
    this.problem = problem;
    this.path = path;
  }
}
/** The master's heartbeat comes every 15 s: a connection that brings nothing for so long is dead. */
const silenceMs = 45_000;

export class Unreachable extends Error {}

export interface Client {
  readonly url: string;
  /** OpenAPI, of the master that is there. */
  document<T>(): Promise<T>;
  /** Version of the master, from its OpenAPI document. */
  version(): Promise<string>;
  /** As Prometheus reads them. */
  metrics(): Promise<string>;
  get<T>(path: string, signal?: AbortSignal): Promise<T>;
  send<T>(method: 'POST' | 'PUT' | 'PATCH' | 'DELETE', path: string, body?: unknown, ifMatch?: string): Promise<T>;
  /** All pages as one list. */
  list<T>(path: string): Promise<ListView<T>>;
  /** Changes of a collection after `since` (a resourceVersion). @throws ApiProblem 410 when the history is gone */
  watch<T>(path: string, since: string, signal: AbortSignal): AsyncGenerator<WatchMessage<T>>;
}

/** `token` empty: no Authorization header. Paths given to the client start with `/` and are below /api/v1. */
export function connect(url: string, token: string): Client {
  const root = url.replace(/\/+$/, '');
  const base = `${root}/api/v1`;
  const headers: Record<string, string> = token === '' ? {} : { authorization: `Bearer ${token}` };

  async function request(address: string, init: RequestInit): Promise<Response> {
    let response: Response;
    const ask = () => fetch(address, { ...init, headers: { ...headers, ...(init.headers as object) } });
    try {
      // A kept connection may have been closed just when it was used: what may be asked twice (a POST has its key) is.
      const isRepeatable = ['GET', 'POST'].includes(init.method ?? 'GET');
      response = await ask().catch((error: unknown) => {
        if (!isRepeatable || !wasClosed(error)) throw error as Error;
        return ask();
      });
    } catch (error) {
      if (init.signal?.aborted) throw error;
      throw new Unreachable(`The master at ${url} cannot be reached: ${reasonOf(error)}.`, { cause: error });
    }
    if (!response.ok)
      throw new ApiProblem(await problemOf(response), address.startsWith(base) ? address.slice(base.length) : '');
    return response;
  }
  async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
    return (await (await request(base + path, { signal: signal ?? null })).json()) as T;
  }

  async function openapi<T>(): Promise<T> {
    return (await (await request(`${root}/openapi.json`, {})).json()) as T;
  }

  return {
    url,
    document: openapi,
    version: async () => (await openapi<{ info: { version: string } }>()).info.version,
    metrics: async () => (await request(`${root}/metrics`, {})).text(),
    get,
    async send<T>(method: string, path: string, body?: unknown, ifMatch?: string): Promise<T> {
      const type = method === 'PATCH' ? 'application/merge-patch+json' : 'application/json';
      const response = await request(base + path, {
        method,
        headers: {
          ...(body !== undefined && { 'content-type': type }),
          ...(method === 'POST' && { 'idempotency-key': randomUUID() }),
          ...(ifMatch !== undefined && { 'if-match': `"${ifMatch}"` }),
        },
        ...(body !== undefined && { body: JSON.stringify(body) }),
      });
      const text = await response.text();
      return (text === '' ? undefined : JSON.parse(text)) as T;
    },
    async list<T>(path: string): Promise<ListView<T>> {
      const items: T[] = [];
      for (let next: string | null = ''; ;) {
        const query: string = next === '' ? path : withQuery(path, { continue: next });
        const page: ListView<T> = await get(query);
        items.push(...page.items);
        next = page.metadata.continue;
        if (next === null) return { items, metadata: page.metadata };
      }
    },
    async *watch<T>(path: string, since: string, signal: AbortSignal): AsyncGenerator<WatchMessage<T>> {
      let last = since;
      for (let failures = 0; ;) {
        const silence = new AbortController();
        const alive = setTimeout(() => silence.abort(), silenceMs);
        const both = AbortSignal.any([signal, silence.signal]);
        try {
          const accept = { accept: 'text/event-stream', 'last-event-id': last };
          const response = await request(base + withQuery(path, { watch: 'true' }), { headers: accept, signal: both });
          for await (const event of serverSentEvents(response.body, () => alive.refresh())) {
            failures = 0;
            if (event.data !== '') yield JSON.parse(event.data) as WatchMessage<T>;
            last = event.id ?? last;
          }
        } catch (error) {
          if (signal.aborted || (error instanceof ApiProblem && error.problem.status < 500)) throw error;
        } finally {
          clearTimeout(alive);
        }
        await sleep(Math.min(5000, 100 * 2 ** failures++), undefined, { signal });
      }
    },
  };
}

/** What a refusal says, for people: the detail, each field that it does not name itself, and where to look for more. */
export function explainProblem({ detail, title, status, errors, requestId }: ProblemView): string {
  const said = plain(detail || title);
  const unsaid = (errors ?? []).filter(({ path, message }) => !detail.includes(`${path} ${message}`));
  const fields = unsaid.map(({ path, message }) => `\n  ${plain(path)}: ${plain(message)}`);
  return said + fields.join('') + (status >= 500 && requestId !== '' ? ` (request id ${plain(requestId)})` : '');
}

export function withQuery(path: string, query: Record<string, string | undefined>): string {
  const given = Object.entries(query).filter((entry): entry is [string, string] => entry[1] !== undefined);
  if (given.length === 0) return path;
  return `${path}${path.includes('?') ? '&' : '?'}${new URLSearchParams(given).toString()}`;
}

/** Events of a `text/event-stream` (WHATWG HTML, 9.2); comments and fields that are not id or data are passed over. */
export async function* serverSentEvents(
  body: ReadableStream<Uint8Array> | null,
  onBytes: () => void = () => undefined,
): AsyncGenerator<{ id: string | undefined; data: string }> {
  const decoder = new TextDecoder();
  let rest = '';
  let event: { id: string | undefined; data: string[] } = { id: undefined, data: [] };
  for await (const chunk of body ?? []) {
    onBytes();
    const lines = (rest + decoder.decode(chunk, { stream: true })).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop() ?? '';
    for (const line of lines) {
      if (line === '') {
        if (event.data.length > 0 || event.id !== undefined) yield { id: event.id, data: event.data.join('\n') };
        event = { id: undefined, data: [] };
      } else if (line.startsWith('data:')) event.data.push(line.slice(5).replace(/^ /, ''));
      else if (line.startsWith('id:')) event.id = line.slice(3).replace(/^ /, '');
    }
  }
}

async function problemOf(response: Response): Promise<ProblemView> {
  const text = await response.text();
  try {
    const problem = JSON.parse(text) as ProblemView;
    if (typeof problem.status === 'number') return problem;
  } catch {
    // Not from the master but from something between us and it: said as it is below.
  }
  const { status, statusText: title } = response;
  const detail = `The answer was HTTP status ${status} ${title}, without a problem document: is this a replicator master?`;
  return { type: 'about:blank', title, status, detail, code: 'Unknown', requestId: '' };
}

function wasClosed(error: unknown): boolean {
  const cause = error instanceof Error ? error.cause : undefined;
  const code = cause instanceof Error && 'code' in cause ? cause.code : undefined;
  return code === 'UND_ERR_SOCKET' || code === 'ECONNRESET' || code === 'EPIPE';
}

function reasonOf(error: unknown): string {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  if (cause instanceof AggregateError && cause.errors[0] instanceof Error) return cause.errors[0].message;
  return cause instanceof Error ? cause.message : String(cause);
}

interface Named {
  metadata: { name: string; resourceVersion: string };
}
/**
 * One object now and after each of its changes, without gaps; ends when it is deleted. With `from` (an answer of the
 * master) it begins there, so that nothing that followed that answer is missed.
 */
export async function* follow<T extends Named>(
  client: Client,
  collection: string,
  name: string,
  signal: AbortSignal,
  from?: T,
): AsyncGenerator<T> {
  let start = from;
  for (;;) {
    // Read the version first: a change between the two reads is then seen twice rather than never.
    const since = start?.metadata.resourceVersion ?? (await versionOf(client, collection, signal));
    yield start ?? (await client.get<T>(`${collection}/${name}`, signal));
    start = undefined;
    try {
      for await (const { type, object } of client.watch<T>(collection, since, signal)) {
        if (object.metadata.name !== name) continue;
        if (type === 'DELETED') return;
        yield object;
      }
    } catch (error) {
      if (!(error instanceof ApiProblem && error.problem.status === 410)) throw error;
    }
  }
}
async function versionOf(client: Client, collection: string, signal: AbortSignal): Promise<string> {
  const { metadata } = await client.get<ListView<unknown>>(withQuery(collection, { limit: '1' }), signal);
  return metadata.resourceVersion;
}
