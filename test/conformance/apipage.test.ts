/** The page's files and what browsers are told with every answer. */
import t from 'tap';
import { get } from 'node:http';
import { maxWatchesOfCaller } from '../../master/api/watch.ts';
import { refused, serve, v1 } from './apiserver.ts';

t.test('the page comes with a strict policy, and again only when it has changed', async (t) => {
  const { call, api } = await serve(t);
  const open = { token: null };
  const page = await call('GET', '/', undefined, open);
  t.match(page.headers.get('content-type'), /^text\/html/);
  const policy = page.headers.get('content-security-policy') ?? '';
  for (const rule of [
    "default-src 'none'",
    "script-src 'self'",
    "require-trusted-types-for 'script'",
    "frame-ancestors 'none'",
  ])
    t.ok(policy.split('; ').includes(rule), rule);
  t.notMatch(policy, /unsafe|\*|https?:/);
  const etag = page.headers.get('etag') ?? '';
  t.equal((await call('GET', '/', undefined, { ...open, headers: { 'if-none-match': etag } })).status, 304);
  const files = api.routes.filter((route) => route.startsWith('GET /page/')).map((route) => route.slice(4));
  t.ok(files.length > 8);
  for (const file of files) {
    const answer = await call('GET', file, undefined, open);
    t.equal(answer.status, 200);
    t.match(answer.headers.get('content-type'), /javascript|css|svg/);
    t.equal(answer.headers.get('x-content-type-options'), 'nosniff');
  }
  for (const path of ['/page/../main.ts', '/page/%2e%2e/main.ts', '/page/none.js', '/page/tsconfig.json'])
    refused(t, await call('GET', path), 404, 'NotFound');
});

t.test('answers of the API may be neither kept, framed nor run', async (t) => {
  const { call } = await serve(t);
  for (const answer of [
    await call('GET', `${v1}/agents`),
    await call('GET', `${v1}/none`),
    await call('GET', `${v1}/agents`, undefined, { token: null }),
  ]) {
    t.equal(answer.headers.get('cache-control'), 'no-store');
    t.equal(answer.headers.get('content-security-policy'), "default-src 'none'; frame-ancestors 'none'");
    t.equal(answer.headers.get('referrer-policy'), 'no-referrer');
    t.match(answer.headers.get('x-request-id'), /^[0-9a-f-]{36}$/);
    t.equal(answer.headers.get('strict-transport-security'), null, 'only over TLS');
  }
  t.match((await call('GET', '/docs')).headers.get('content-security-policy'), /default-src 'self'/);
});

t.test("an answer has the caller's request id, where that can stand in a log, else one of its own", async (t) => {
  const { call } = await serve(t);
  for (const [given, answered] of [
    ['drill-7:2026.11', 'drill-7:2026.11'],
    ['two words', /^[0-9a-f-]{36}$/],
    ['x'.repeat(65), /^[0-9a-f-]{36}$/],
  ] as const) {
    const answer = await call('GET', `${v1}/agents/none`, undefined, { headers: { 'x-request-id': given } });
    t.match(answer.headers.get('x-request-id'), answered);
    t.match(answer.body, { requestId: answered });
  }
});

t.test(
  'a method that a path does not have is 405 with those that it has; what cannot be read is a problem document',
  async (t) => {
    const { call } = await serve(t);
    const answer = await call('PUT', `${v1}/agents/none`);
    refused(t, answer, 405, 'MethodNotAllowed', /DELETE, GET/);
    t.equal(answer.headers.get('allow'), 'DELETE, GET');
    refused(t, await call('PUT', `${v1}/none`), 404, 'NotFound');
    refused(t, await call('GET', `${v1}/agents?labelSelector=${'x'.repeat(20_000)}`), 422, 'Invalid', /labelSelector/);
    refused(t, await call('GET', `${v1}/agents?labelSelector=${'x'.repeat(100_000)}`), 431, 'HeadTooLarge');
  },
);

t.test('one caller in a loop is slowed down, others are not', async (t) => {
  const { call, clock, tokens } = await serve(t);
  clock.atMs = Date.now(); // however slow this machine is
  const token = tokens.create('loop', 'user')?.secret ?? '';
  const answers = await Promise.all(
    Array.from({ length: 450 }, () => call('GET', `${v1}/session`, undefined, { token })),
  );
  const late = answers.find(({ status }) => status === 429);
  t.ok(late, 'more than a burst');
  if (late) refused(t, late, 429, 'TooManyRequests', /a second/);
  t.equal(late?.headers.get('retry-after'), '1');
  t.equal((await call('GET', `${v1}/session`)).status, 200);
});

t.test('what is open on this machine is not open to pages under a foreign name', async (t) => {
  const { api } = await serve(t);
  const status = (host: string): Promise<number | undefined> =>
    new Promise((resolve, reject) => {
      get(`${api.url}/metrics`, { headers: { host } }, (answer) => resolve(answer.resume().statusCode)).on(
        'error',
        reject,
      );
    });
  const { port } = new URL(api.url);
  for (const host of [`127.0.0.1:${port}`, `localhost:${port}`, `[::1]:${port}`])
    t.equal(await status(host), 200, host);
  for (const host of [`evil.example:${port}`, 'evil.example', '127.0.0.1.evil.example'])
    t.equal(await status(host), 401, host);
});

t.test('nobody takes all watches', async (t) => {
  const { api, call, tokens } = await serve(t);
  const secret = tokens.create('greedy', 'user')?.secret ?? '';
  const stop = new AbortController();
  t.teardown(() => stop.abort());
  const watch = (token: string): Promise<Response> =>
    fetch(`${api.url}${v1}/watch?kinds=Agent`, { headers: { authorization: `Bearer ${token}` }, signal: stop.signal });
  // Held: an answer that nobody refers to any more is given up with its line.
  const held: Response[] = [];
  while (held.length < maxWatchesOfCaller) held.push(await watch(secret));
  t.ok(held.every(({ status }) => status === 200));
  t.equal((await watch(secret)).status, 429);
  t.equal((await watch(tokens.create('modest', 'user')?.secret ?? '')).status, 200);
  t.equal((await call('GET', `${v1}/agents`, undefined, { token: secret })).status, 200, 'lists go on');
});

t.test('the OpenAPI document says which roles may call an operation', async (t) => {
  const { call } = await serve(t);
  const { body } = await call('GET', '/openapi.json');
  const paths = body['paths'] as Record<string, Record<string, { 'x-roles': string[] }>>;
  t.same(paths[`${v1}/replications`]?.['post']?.['x-roles'], ['admin', 'manager']);
  t.same(paths[`${v1}/recoveries`]?.['post']?.['x-roles'], ['admin', 'manager', 'operator']);
  for (const operations of Object.values(paths))
    for (const one of Object.values(operations)) t.ok(one['x-roles'].length > 0);
});
