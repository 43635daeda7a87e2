/** People over real HTTP: roles, passwords, locks, sessions by cookie and by token, and what a foreign page cannot do. */
import t from 'tap';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { maxLogins } from '../../master/api/users.ts';
import { idleMs, lockMs, weakness } from '../../master/users.ts';
import { refused, serve, v1 } from './apiserver.ts';
import type { Answer, Server } from './apiserver.ts';

const good = 'Correct-horse-9';
const other = 'Other+horse-10';
const logIn = ({ call }: Server, user: string, password: string, cookie = false): Promise<Answer> =>
  call('POST', `${v1}/session`, { user, password, cookie }, { token: null });
async function withUser(t: Parameters<typeof serve>[0]): Promise<Server> {
  const server = await serve(t);
  t.equal((await server.call('POST', `${v1}/users`, { name: 'kim', role: 'operator', password: good })).status, 201);
  return server;
}
const by = (answer: Answer): { token: string } => ({ token: String(answer.body['token']) });

t.test('passwords are 8 to 128 long, of four kinds of characters', async (t) => {
  for (const password of [good, 'Añ1-aaaa', `aA1!${'x'.repeat(124)}`]) t.equal(weakness(password), undefined, password);
  const bad = ['', 'aA1!aaa', `aA1!${'x'.repeat(125)}`, 'aaaa1111!', 'AAAA1111!', 'aaaaAAAA!', 'aaaaAAAA1'];
  for (const password of bad) t.match(weakness(password), /^must have/, password);
});

t.test('a user logs in with the role it has; nothing shows or keeps the password', async (t) => {
  const server = await withUser(t);
  const { call, store, events } = server;
  const session = await logIn(server, 'kim', good);
  t.match(session, { status: 201, body: { kind: 'Session', spec: { user: 'kim', role: 'operator' }, token: /^rps_/ } });
  t.equal((await call('GET', `${v1}/users`, undefined, by(session))).status, 200);
  refused(
    t,
    await call('POST', `${v1}/users`, { name: 'x', role: 'user', password: good }, by(session)),
    403,
    'Forbidden',
  );
  t.match((await call('GET', `${v1}/users/kim`)).body, {
    status: { hasPassword: true, sessions: 1, lockedUntil: null },
  });
  const kept = JSON.stringify([store.listRecords('users'), events.list({ limit: 1000 })]);
  t.notMatch(kept, good);
  t.notMatch(kept, String(session.body['token']));
  t.equal((await call('DELETE', `${v1}/session`, undefined, by(session))).status, 200);
  refused(t, await call('GET', `${v1}/session`, undefined, by(session)), 401, 'Unauthorized');
  t.ok(
    events.list({ limit: 100 }).items.some(({ code, object }) => code === 'SessionStarted' && object === 'User/kim'),
  );
});

t.test('admin exists once: not made, not deleted, not lowered, not touched by a manager', async (t) => {
  const server = await serve(t);
  const { call } = server;
  refused(t, await call('POST', `${v1}/users`, { name: 'two', role: 'admin', password: good }), 422, 'Invalid', /role/);
  refused(t, await call('DELETE', `${v1}/users/admin`), 409, 'BuiltIn');
  refused(t, await call('PATCH', `${v1}/users/admin`, { role: 'user' }), 409, 'BuiltIn');
  refused(t, await logIn(server, 'admin', good), 401, 'Unauthorized'); // none is set
  await call('POST', `${v1}/users`, { name: 'boss', role: 'manager', password: good });
  const boss = by(await logIn(server, 'boss', good));
  refused(t, await call('PATCH', `${v1}/users/admin`, { password: good }, boss), 403, 'Forbidden');
  refused(t, await call('POST', `${v1}/users/admin/actions/endsessions`, undefined, boss), 403, 'Forbidden');
  t.equal((await call('POST', `${v1}/users`, { name: 'lee', role: 'user', password: good }, boss)).status, 201);
  t.equal((await call('PATCH', `${v1}/users/admin`, { password: good })).status, 200);
  t.match((await logIn(server, 'admin', good)).body, { spec: { role: 'admin' } });
  const token = readFileSync(join(server.folder, 'admin.token'), 'utf8').trim();
  t.match((await call('POST', `${v1}/session`, { token }, { token: null })).body, { spec: { user: 'admin' } });
  refused(t, await call('POST', `${v1}/session`, { token: boss.token }, { token: null }), 401, 'Unauthorized');
});

t.test('five wrong passwords lock the name for 30 s, one that exists and one that does not', async (t) => {
  const server = await withUser(t);
  for (const user of ['kim', 'nobody']) {
    for (let i = 0; i < 5; i += 1) refused(t, await logIn(server, user, 'wrong'), 401, 'Unauthorized');
    const locked = await logIn(server, user, good);
    refused(t, locked, 429, 'TooManyRequests', /locked.* s$/);
    t.match(locked.headers.get('retry-after'), /^(29|30)$/);
  }
  t.ok(
    server.events.list({ limit: 100 }).items.some(({ code, object }) => code === 'UserLocked' && object === 'User/kim'),
  );
  t.match((await server.call('GET', `${v1}/users/kim`)).body, { status: { lockedUntil: String } });
  server.clock.offsetMs += lockMs;
  t.equal((await logIn(server, 'kim', good)).status, 201);
});

t.test('guesses sent at once are no way around the lock', async (t) => {
  const server = await withUser(t);
  const answers = await Promise.all(Array.from({ length: 20 }, () => logIn(server, 'kim', 'wrong')));
  t.ok(answers.filter(({ status }) => status === 401).length <= 5);
  t.ok(answers.every(({ status }) => status === 401 || status === 429));
});

t.test('one address does not try names without end', async (t) => {
  const server = await serve(t);
  const answers: number[] = [];
  for (let i = 0; i <= maxLogins; i += 1) answers.push((await logIn(server, `n${i}`, 'wrong')).status);
  t.same([answers.at(-2), answers.at(-1)], [401, 429]);
  server.clock.offsetMs += 60_000;
  t.equal((await logIn(server, 'again', 'wrong')).status, 401);
});

t.test('sessions end when idle, with the password, the role and the user', async (t) => {
  const server = await withUser(t);
  const { call } = server;
  const isOpen = async (given: { token: string }): Promise<boolean> =>
    (await call('GET', `${v1}/session`, undefined, given)).status === 200;
  const idle = by(await logIn(server, 'kim', good));
  server.clock.offsetMs += idleMs - 1000;
  t.ok(await isOpen(idle), 'used: goes on');
  server.clock.offsetMs += idleMs - 1000;
  t.ok(await isOpen(idle));
  server.clock.offsetMs += idleMs;
  t.notOk(await isOpen(idle));
  const changing = by(await logIn(server, 'kim', good));
  const change = (current: string, password: string): Promise<Answer> =>
    call('POST', `${v1}/session/actions/password`, { current, password }, changing);
  refused(t, await change('wrong', other), 422, 'Invalid', /current/);
  refused(t, await change(good, good), 422, 'Invalid', /before/);
  refused(t, await change(good, 'short'), 422, 'Invalid', /8 to 128/);
  t.equal((await change(good, other)).status, 202);
  t.notOk(await isOpen(changing));
  refused(t, await logIn(server, 'kim', good), 401, 'Unauthorized');
  const lowered = by(await logIn(server, 'kim', other));
  t.equal((await call('PATCH', `${v1}/users/kim`, { role: 'user' })).status, 200);
  t.notOk(await isOpen(lowered));
  const gone = by(await logIn(server, 'kim', other));
  t.equal((await call('DELETE', `${v1}/users/kim`)).status, 200);
  t.notOk(await isOpen(gone));
});

t.test('a page has its session in a cookie no script reads, and a foreign page can do nothing with it', async (t) => {
  const server = await withUser(t);
  const { call } = server;
  const answer = await logIn(server, 'kim', good, true);
  t.equal(answer.body['token'], undefined);
  const set = answer.headers.get('set-cookie') ?? '';
  t.match(set, /^replicator_session=rps_\S+; Path=\/; HttpOnly; SameSite=Strict$/);
  const cookie = set.split(';')[0] ?? '';
  const session = await call('GET', `${v1}/session`, undefined, { token: null, headers: { cookie } });
  t.match(session, { status: 200, body: { spec: { user: 'kim' }, csrfToken: answer.body['csrfToken'] } });
  const leave = (headers: Record<string, string>): Promise<Answer> =>
    call('DELETE', `${v1}/session`, undefined, { token: null, headers: { cookie, ...headers } });
  refused(t, await leave({}), 403, 'Forbidden', /X-CSRF-Token/);
  refused(t, await leave({ 'x-csrf-token': 'guess' }), 403, 'Forbidden');
  const left = await leave({ 'x-csrf-token': String(answer.body['csrfToken']) });
  t.equal(left.status, 200);
  t.match(left.headers.get('set-cookie'), /Max-Age=0/);
  refused(t, await call('GET', `${v1}/session`, undefined, { token: null, headers: { cookie } }), 401, 'Unauthorized');
});
