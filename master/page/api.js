/**
 * The public REST API from a browser: requests, and watches that are resumed without gap or repeat.
 *
 * The session's secret is in a cookie that no script reads; its csrfToken goes with each write. What the master can do and
 * which role may do it is read from its OpenAPI document, so that only what will work is offered.
 */
const root = '/api/v1';
/** The master says something each 15 s. */
const silenceMs = 45_000;

/** @typedef {{ user: string, role: string, groups: string[] | null }} Session */

export class Problem extends Error {
  /** @param {{ status: number, code?: string, title?: string, detail?: string, errors?: { path: string, message: string }[] }} problem */
  constructor(problem) {
    super(problem.detail || problem.title || `HTTP ${problem.status}`);
    this.status = problem.status;
    this.code = problem.code ?? '';
    this.errors = problem.errors ?? [];
  }
}

/** @type {Session | null} */
let session = null;
/** @type {string | null} */
let csrf = null;
/** @type {any} */
let openapi = null;
/** Called when the session has ended. */
let onEnded = () => {};

export const currentSession = () => session;
/** @param {() => void} then */
export function whenEnded(then) {
  onEnded = then;
}

/**
 * @param {string} method
 * @param {string} path below /api/v1
 * @param {unknown} [body]
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function call(method, path, body, signal) {
  const answer = await fetch(root + path, {
    method,
    headers: {
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      ...(method === 'GET' || csrf === null ? {} : { 'x-csrf-token': csrf, 'idempotency-key': crypto.randomUUID() }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    ...(signal === undefined ? {} : { signal }),
  });
  if (!answer.ok) throw await problemOf(answer);
  return answer.json();
}

/** @param {Response} answer */
async function problemOf(answer) {
  const text = await answer.text();
  let problem = { status: answer.status, detail: text.slice(0, 300) };
  if (/json/.test(answer.headers.get('content-type') ?? '')) problem = { ...problem, ...JSON.parse(text) };
  if (answer.status === 401 && session !== null) end();
  return new Problem(problem);
}
function end() {
  session = null;
  csrf = null;
  onEnded();
}

/** All pages of a list. @param {string} path @param {AbortSignal} [signal] @returns {Promise<any[]>} */
export async function all(path, signal) {
  const items = [];
  for (let token = ''; ;) {
    const more = token === '' ? '' : `${path.includes('?') ? '&' : '?'}continue=${token}`;
    const page = await call('GET', path + more, undefined, signal);
    items.push(...page.items);
    token = page.metadata.continue ?? '';
    if (token === '') return items;
  }
}

/** The session that the cookie is of, if it is one. @returns {Promise<Session | null>} */
export async function resume() {
  try {
    await begin(await call('GET', '/session'));
  } catch (error) {
    if (!(error instanceof Problem) || error.status !== 401) throw error;
  }
  return session;
}
/** @param {{ user: string, password: string } | { token: string }} who */
export async function logIn(who) {
  await begin(await call('POST', '/session', { ...who, cookie: true }));
}
export async function logOut() {
  await call('DELETE', '/session');
  end();
}
/** @param {{ spec: Session, csrfToken: string | null }} answer */
async function begin(answer) {
  session = answer.spec;
  csrf = answer.csrfToken;
  openapi = await (await fetch('/openapi.json')).json();
}

/** @param {string} method @param {string} path as in OpenAPI, such as /replications/{name}/actions/pause */
export function can(method, path) {
  const operation = openapi?.paths?.[root + path]?.[method.toLowerCase()];
  if (operation === undefined || session === null || !(operation['x-roles'] ?? []).includes(session.role)) return false;
  // Who is bound to groups may not change what all share.
  return session.groups === null || operation['x-groups'] !== false;
}
/** Values that a field of a body may have. @param {string} method @param {string} path @param {string} field @returns {string[]} */
export function choices(method, path, field) {
  const body = openapi?.paths?.[root + path]?.[method.toLowerCase()]?.requestBody;
  return body?.content?.['application/json']?.schema?.properties?.[field]?.enum ?? [];
}
/**
 * Follows a watch until the signal aborts. While nobody looks at the page the line is given up and taken up again after
 * the last message seen.
 * @param {string} path
 * @param {{ since?: string, reset: () => unknown, message: (message: { type: string, object: any }) => void, state: (live: boolean) => void, synced?: () => void }} to
 *   reset: everything comes anew; what it answers, if it does, is where to go on instead
 * @param {AbortSignal} signal
 */
export async function watch(path, to, signal) {
  let lastId = to.since ?? '';
  for (let pauseMs = 500; !signal.aborted; pauseMs = Math.min(pauseMs * 2, 10_000)) {
    await shown(signal);
    if (signal.aborted) return;
    const line = new AbortController();
    const hide = () => document.hidden && line.abort();
    document.addEventListener('visibilitychange', hide);
    let silence = 0;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => line.abort(), silenceMs);
    };
    try {
      heard();
      const answer = await fetch(root + path, {
        headers: { accept: 'text/event-stream', ...(lastId === '' ? {} : { 'last-event-id': lastId }) },
        signal: AbortSignal.any([signal, line.signal]),
      });
      if (answer.status === 410) lastId = String((await to.reset()) ?? '');
      if (!answer.ok || answer.body === null) throw await problemOf(answer);
      if (lastId === '') await to.reset();
      to.state(true);
      for await (const { id, data } of messages(answer.body, heard)) {
        pauseMs = 500;
        if (data !== undefined) to.message(JSON.parse(data));
        // After the message: one that is half there is asked for again.
        if (id !== undefined) lastId = id;
        if (data === undefined) to.synced?.();
      }
    } catch (error) {
      if (error instanceof Problem && error.status === 401) return;
    } finally {
      clearTimeout(silence);
      document.removeEventListener('visibilitychange', hide);
    }
    if (signal.aborted) return;
    to.state(false);
    if (!document.hidden) await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
}

/** @param {ReadableStream<Uint8Array>} body @param {() => void} heard */
async function* messages(body, heard) {
  const reader = body
    .pipeThrough(/** @type {ReadableWritablePair<string, Uint8Array>} */ (new TextDecoderStream()))
    .getReader();
  let buffer = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      heard();
      const parts = (buffer + value).split('\n\n');
      buffer = parts.pop() ?? '';
      for (const part of parts) yield { id: /^id: (.*)$/m.exec(part)?.[1], data: /^data: (.*)$/m.exec(part)?.[1] };
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Resolves when somebody looks at the page, or the signal aborts. @param {AbortSignal} signal */
function shown(signal) {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => {
    const done = () => {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener('visibilitychange', done);
      signal.removeEventListener('abort', done);
      resolve(undefined);
    };
    document.addEventListener('visibilitychange', done);
    signal.addEventListener('abort', done);
  });
}
