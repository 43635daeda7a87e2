/** Who may do what over real HTTP: every route for every role, tokens, what is open. */
import t from 'tap';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { rightOf, rights } from '../../master/api/rights.ts';
import { roles } from '../../master/api/schema/token.ts';
import { refused, serve, v1 } from './apiserver.ts';

t.test('every route has its rights, and each role gets what the table says', async (t) => {
  const server = await serve(t);
  const { call, api, tokens } = server;
  t.ok(api.routes.length > 40);
  for (const route of api.routes) t.ok(rightOf(...(route.split(' ') as [string, string])), route);
  const unused = Object.keys(rights).filter((key) => key !== 'GET /docs' && !api.routes.includes(key));
  t.same(unused, [], 'no right without a route');
  const secrets = Object.fromEntries(roles.map((role) => [role, tokens.create(`t-${role}`, role)?.secret ?? '']));
  // The rows of the rights table, written down once more.
  const allowed: Record<string, readonly string[]> = {
    read: roles,
    admins: ['admin', 'manager'],
    operators: ['admin', 'manager', 'operator'],
  };
  const rowOf = (method: string, path: string): string =>
    path.endsWith('/log')
      ? 'admins'
      : method === 'GET' || path.startsWith(`${v1}/session`)
        ? 'read'
        : /\/(snapshots|recoveries|recoveryschedules)/.test(path)
          ? 'operators'
          : 'admins';
  for (const [key, right] of Object.entries(rights)) {
    const [method = '', url = ''] = key.split(' ');
    const path = url.replace(/:\w+/g, 'none');
    if (key === `POST ${v1}/session`) continue; // logging in: apiusers.test.ts
    if (right === 'open') {
      t.equal((await call(method, path, undefined, { token: null })).status, 200, key);
      continue;
    }
    if (!right.startsWith('local-'))
      refused(t, await call(method, path, undefined, { token: null }), 401, 'Unauthorized');
    for (const role of roles) {
      const { status } = await call(method, path, method === 'GET' || method === 'DELETE' ? undefined : {}, {
        token: secrets[role] ?? '',
      });
      const may = allowed[rowOf(method, path)]?.includes(role) === true;
      t.equal(status === 403, !may, `${role}: ${key} answers ${status}`);
    }
  }
  const answer = await call('GET', `${v1}/agents`, undefined, { token: 'wrong' });
  refused(t, answer, 401, 'Unauthorized');
  t.equal(answer.headers.get('www-authenticate'), 'Bearer');
  for (const authorization of ['', 'Basic YTpi', 'Bearer', 'Bearer  ', `Bearer ${'x'.repeat(10_000)}`])
    t.equal((await call('GET', `${v1}/agents`, undefined, { token: null, headers: { authorization } })).status, 401);
  refused(t, await call('GET', `${v1}/nothing`), 404, 'NotFound');
  refused(t, await call('GET', `${v1}/nothing`, undefined, { token: null }), 401, 'Unauthorized');
});

t.test('metrics and the page are open on this machine, not through a proxy', async (t) => {
  const { call } = await serve(t);
  for (const path of ['/metrics', '/openapi.json', '/docs', '/docs/static/swagger-ui.css']) {
    t.equal((await call('GET', path, undefined, { token: null })).status, 200, path);
    const proxied = { token: null, headers: { 'x-forwarded-for': '192.0.2.1' } };
    t.equal((await call('GET', path, undefined, proxied)).status, 401, `${path} for others`);
    t.equal((await call('GET', path, undefined, { token: 'wrong' })).status, 401, `${path} with a wrong token`);
  }
});

t.test('tokens: shown once, kept as hashes, worthless when deleted; managers have no hand on admins', async (t) => {
  const server = await serve(t);
  const { call, store, folder } = server;
  t.equal(statSync(join(folder, 'admin.token')).mode & 0o777, 0o600);
  const made = await call('POST', `${v1}/tokens`, { name: 'ci', role: 'manager' });
  t.match(made, {
    status: 201,
    body: { kind: 'Token', metadata: { name: 'ci' }, spec: { role: 'manager' }, token: /^rpl_\S{43}$/ },
  });
  const token = String(made.body['token']);
  t.equal((await call('GET', `${v1}/tokens`, undefined, { token })).status, 200);
  t.notMatch((await call('GET', `${v1}/tokens`)).text, token);
  t.notMatch(JSON.stringify(store.listRecords('tokens')), token);
  t.notMatch(JSON.stringify(server.events.list({ limit: 100 })), token);
  refused(t, await call('POST', `${v1}/tokens`, { name: 'ci', role: 'user' }), 409, 'AlreadyExists');
  refused(t, await call('POST', `${v1}/tokens`, { name: 'x', role: 'admin' }, { token }), 403, 'Forbidden');
  refused(t, await call('DELETE', `${v1}/tokens/admin`, undefined, { token }), 403, 'Forbidden');
  refused(t, await call('DELETE', `${v1}/tokens/admin`), 409, 'BuiltIn', /admin.token/);
  refused(t, await call('POST', `${v1}/tokens`, { name: 'x' }), 422, 'Invalid', /role/);
  refused(t, await call('POST', `${v1}/tokens`, { name: 'x', role: 'root' }), 422, 'Invalid', /manager/);
  t.match((await call('POST', `${v1}/tokens`, { kind: 'join' })).body, {
    spec: { kind: 'join' },
    token: 'join-secret',
  });
  t.equal((await call('DELETE', `${v1}/tokens/ci`)).status, 200);
  refused(t, await call('GET', `${v1}/tokens`, undefined, { token }), 401, 'Unauthorized');
  refused(t, await call('DELETE', `${v1}/tokens/ci`), 404, 'NotFound');
});
