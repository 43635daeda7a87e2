/**
 * One connection to a Kubernetes API server: requests and watches. @kubernetes/client-node reads the configuration (a
 * kubeconfig, or the service account of the pod) and knows how to authenticate; bodies stay plain JSON here.
 *
 * Guarantees: a request ends, with an answer or an error, within its time-out; a watch ends or throws when its line was silent for
 * longer than the server lets a watch live. Failure: what the server answered is an ApiFault with its status and reason;
 * no answer at all is one with status 0.
 */
import { request as sendHttp } from 'node:http';
import type { IncomingMessage } from 'node:http';
import { request as sendHttps } from 'node:https';
import type { RequestOptions } from 'node:https';
import { setTimeout as wait } from 'node:timers/promises';
import { KubeConfig } from '@kubernetes/client-node';
import { parse as parseYaml } from 'yaml';
import { messageOf, systemErrorCode } from '../../proto/errors.ts';

export interface ClusterOptions {
  /** File; absent: the pod's service account, or as kubectl finds it. */
  kubeconfig?: string;
  /** Content of one that came from elsewhere: it names no files and runs nothing. */
  inline?: string;
}

export interface Answer {
  status: number;
  body: unknown;
}

export class ApiFault extends Error {
  /** HTTP; 0: there was no answer. */
  readonly status: number;
  /** The server's word, such as Conflict, AlreadyExists, NotFound, Invalid, Expired. */
  readonly reason: string;
  /** Fields that it names. */
  readonly causes: FaultCause[];
  constructor(status: number, reason: string, message: string, causes: FaultCause[] = []) {
    super(message);
    this.name = 'ApiFault';
    this.status = status;
    this.reason = reason;
    this.causes = causes;
  }
}
/** As it goes between threads. */
export type Fault = Pick<ApiFault, 'status' | 'reason' | 'message' | 'causes'>;
export interface FaultCause {
  /** Such as spec.rpoSeconds. */
  field: string;
  message: string;
}

export interface WatchEvent {
  type: 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK' | 'ERROR';
  object: Record<string, unknown>;
}

export interface Api {
  /** @throws ApiFault for every status beyond 299 */
  request(method: string, path: string, body?: unknown, signal?: AbortSignal): Promise<unknown>;
  /** Lines of a watch, until it ends. @throws ApiFault */
  watch(path: string, signal: AbortSignal): AsyncGenerator<WatchEvent>;
}

const timeoutMs = 10_000;
/** A server ends a watch by itself after this, so a line that is silent for longer is dead. */
const watchSeconds = 300;

export function connectApi(options: ClusterOptions): Api {
  const config = new KubeConfig();
  if (options.inline !== undefined) loadInline(config, options.inline);
  else if (options.kubeconfig !== undefined) config.loadFromFile(options.kubeconfig);
  else config.loadFromDefault();
  const server = config.getCurrentCluster()?.server;
  if (server === undefined)
    throw new Error('there is no cluster in the kubeconfig; name a file with a current context');
  const base = new URL(server);

  async function send(
    method: string,
    path: string,
    body: unknown,
    headers: Record<string, string>,
    limitMs: number,
    signal?: AbortSignal,
  ): Promise<IncomingMessage> {
    const options: RequestOptions = {};
    await config.applyToHTTPSOptions(options);
    const url = new URL(base.pathname.replace(/\/$/, '') + path, base);
    const text = body === undefined ? undefined : JSON.stringify(body);
    options.method = method;
    options.headers = { ...(options.headers as Record<string, string>), accept: 'application/json', ...headers };
    if (text !== undefined) options.headers['content-length'] = String(Buffer.byteLength(text));
    if (signal) options.signal = signal;
    return new Promise((resolve, reject) => {
      function ask(isAgain: boolean): void {
        const call = (base.protocol === 'http:' ? sendHttp : sendHttps)(url, options, resolve);
        call.setTimeout(limitMs, () => call.destroy(new Error(`no answer within ${limitMs / 1000} s`)));
        call.on('error', (error) => {
          // A kept connection that the server had closed already: what it had not read it has not done, and had it been
          // done, the version or name in it makes the second one a conflict.
          if (call.reusedSocket && !isAgain && systemErrorCode(error) === 'ECONNRESET') ask(true);
          else reject(new ApiFault(0, 'NoAnswer', `${base.host}: ${messageOf(error)}`));
        });
        call.end(text);
      }
      ask(false);
    });
  }

  return {
    async request(method, path, body, signal) {
      const type = method === 'PATCH' ? 'application/merge-patch+json' : 'application/json';
      const response = await send(
        method,
        path,
        body,
        body === undefined ? {} : { 'content-type': type },
        timeoutMs,
        signal,
      );
      const text = await textOf(response);
      const status = response.statusCode ?? 0;
      const parsed = parse(text);
      if (status >= 300) throw faultOf(status, parsed, text);
      return parsed;
    },
    async *watch(path, signal) {
      const url = `${path}${path.includes('?') ? '&' : '?'}watch=1&allowWatchBookmarks=true&timeoutSeconds=${watchSeconds}`;
      const response = await send('GET', url, undefined, {}, (watchSeconds + 30) * 1000, signal);
      const status = response.statusCode ?? 0;
      if (status >= 300) {
        const text = await textOf(response);
        throw faultOf(status, parse(text), text);
      }
      try {
        for await (const line of linesOf(response)) {
          const event = JSON.parse(line) as WatchEvent;
          if (event.type === 'ERROR') throw faultOf(Number(event.object['code']), event.object, line);
          yield event;
        }
      } catch (error) {
        if (error instanceof ApiFault) throw error;
        throw new ApiFault(0, 'NoAnswer', `${base.host}: ${messageOf(error)}`);
      } finally {
        response.destroy();
      }
    },
  };
}

const inlineKeys = {
  user: ['token', 'username', 'password', 'client-certificate-data', 'client-key-data'],
  cluster: ['server', 'certificate-authority-data', 'insecure-skip-tls-verify', 'tls-server-name'],
};

/** @throws Error for one that names files of this machine or programs to run: the library would read and run them */
function loadInline(config: KubeConfig, text: string): void {
  const { users = [], clusters = [] } = (parseYaml(text) ?? {}) as { users?: object[]; clusters?: object[] };
  for (const [kind, list] of [['user', users] as const, ['cluster', clusters] as const])
    for (const one of list) {
      const fields = Object.keys((one as Record<string, object>)[kind] ?? {});
      const wrong = fields.filter((field) => !inlineKeys[kind].includes(field));
      if (wrong.length > 0)
        throw new Error(
          `the kubeconfig has ${wrong.join(', ')} of a ${kind}; only ${inlineKeys[kind].join(', ')} are taken, no files or programs`,
        );
    }
  config.loadFromString(text);
}

/** Waits, or until the signal aborts; never throws. */
export async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await wait(ms, undefined, { signal }).catch(() => undefined);
}

async function textOf(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  try {
    for await (const chunk of response) chunks.push(chunk as Buffer);
  } catch (error) {
    throw new ApiFault(0, 'NoAnswer', messageOf(error));
  }
  return Buffer.concat(chunks).toString();
}

async function* linesOf(response: AsyncIterable<unknown>): AsyncGenerator<string> {
  let rest: Buffer[] = [];
  for await (const item of response) {
    let chunk = item as Buffer;
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10)) {
      yield Buffer.concat([...rest, chunk.subarray(0, end)]).toString();
      rest = [];
      chunk = chunk.subarray(end + 1);
    }
    if (chunk.length > 0) rest.push(chunk);
  }
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function faultOf(status: number, body: unknown, text: string): ApiFault {
  const { reason, message, details } = (body ?? {}) as {
    reason?: string;
    message?: string;
    details?: { causes?: Partial<FaultCause>[] };
  };
  const causes = (details?.causes ?? []).map(({ field = '', message = '' }) => ({ field, message }));
  return new ApiFault(status, reason ?? 'Unknown', message ?? `status ${status}: ${text.slice(0, 200)}`, causes);
}
