/** Lists, watches and events over real HTTP: nothing missed, nothing twice, over broken lines too. */
import t from 'tap';
import { idleMs } from '../../master/users.ts';
import { point, refused, replication, serve, v1 } from './apiserver.ts';
import type { Answer, Json } from './apiserver.ts';

const one = `${v1}/replications/a`;

t.test('lists come in pages and by labels', async (t) => {
  const { call } = await serve(t);
  for (const name of ['e', 'd', 'c', 'b', 'a'])
    await call(
      'POST',
      `${v1}/replications`,
      replication(name, {}, { labels: { app: name < 'c' ? 'low' : 'high', [name]: '' } }),
    );
  const names = (answer: Answer): unknown =>
    (answer.body['items'] as { metadata: Json }[]).map(({ metadata }) => metadata['name']).join('');
  const seen: unknown[] = [];
  for (let token: string | null = ''; token !== null;) {
    const answer = await call('GET', `${v1}/replications?limit=2${token === '' ? '' : `&continue=${token}`}`);
    seen.push(names(answer));
    token = (answer.body['metadata'] as Json)['continue'] as string | null;
  }
  t.same(seen, ['ab', 'cd', 'e']);
  for (const [selector, expected] of [
    ['app=low', 'ab'],
    ['app!=low', 'cde'],
    ['app in (low,high),!a', 'bcde'],
    ['app notin (low)', 'cde'],
    ['b', 'b'],
    ['app==high,d', 'd'],
    ['toString', ''],
  ] as const)
    t.equal(
      names(await call('GET', `${v1}/replications?labelSelector=${encodeURIComponent(selector)}`)),
      expected,
      selector,
    );
});

t.test('a watch begins with what is there, then has every change once; it resumes without gap or repeat', async (t) => {
  const { call, watch, store } = await serve(t);
  await call('POST', `${v1}/replications`, replication('a'));
  const versions: string[] = [];
  let lastId = '';
  const total = 40;
  const change = (count: number): unknown =>
    store.update('Replication', 'a', ({ status }) => (status.lagBytes = count));
  for await (const { id, data } of watch(`${v1}/replications?watch=true`)) {
    lastId = id;
    if (data.type === 'synced') {
      for (let count = 0; count < total / 2; count++) change(count);
      continue;
    }
    t.notOk('requests' in data.object);
    versions.push(`${data.type} ${String((data.object['metadata'] as Json)['resourceVersion'])}`);
    if (versions.length === 8) break; // in the middle of what is on its way
  }
  for (let count = total / 2; count < total; count++) change(count);
  await call('DELETE', one);
  for await (const { data } of watch(`${v1}/replications?watch=true`, lastId)) {
    if (data.type === 'synced') continue;
    versions.push(`${data.type} ${String((data.object['metadata'] as Json)['resourceVersion'])}`);
    if (data.type === 'DELETED') break;
  }
  const from = Number(versions[0]?.split(' ')[1]);
  const expected = Array.from({ length: total }, (_, index) => `MODIFIED ${from + 1 + index}`);
  t.same(versions, [`ADDED ${from}`, ...expected, `DELETED ${from + total + 1}`]);
});

t.test('a watch by label sees objects come and leave', async (t) => {
  const { call, watch } = await serve(t);
  await call('POST', `${v1}/replications`, replication('a', {}, { labels: { tier: 'one' } }));
  const seen: string[] = [];
  for await (const { data } of watch(`${v1}/replications?watch=true&labelSelector=tier%3Done`)) {
    seen.push(data.type);
    if (data.type === 'synced') {
      await call('PATCH', one, { metadata: { labels: { tier: 'two' } } });
      await call('PATCH', one, { spec: { paused: true } });
      await call('PATCH', one, { metadata: { labels: { tier: 'one' } } });
      await call('DELETE', one);
    }
    if (seen.length === 5) break;
  }
  t.same(seen, ['ADDED', 'synced', 'DELETED', 'ADDED', 'DELETED']);
});

t.test('a watch from before the history is 410, one from nowhere 422; idle ones get heartbeats', async (t) => {
  const { call, watch, store } = await serve(t, { maxChanges: 20, heartbeatMs: 20 });
  await call('POST', `${v1}/replications`, replication('a'));
  for (let count = 0; count < 50; count++) store.update('Replication', 'a', ({ status }) => (status.lagBytes = count));
  const path = `${v1}/replications?watch=true`;
  refused(t, await call('GET', path, undefined, { headers: { 'last-event-id': '1' } }), 410, 'Expired', /list again/);
  refused(t, await call('GET', path, undefined, { headers: { 'last-event-id': '999999' } }), 410, 'Expired');
  refused(t, await call('GET', path, undefined, { headers: { 'last-event-id': 'x' } }), 422, 'Invalid');
  for await (const { id, data } of watch(path, String(store.version()))) {
    if (data.type !== 'heartbeat') continue;
    t.equal(id, String(store.version()), 'a heartbeat tells the position');
    break;
  }
});

t.test('events: writes are audited, refusals of rights too; listed, filtered, watched', async (t) => {
  const { call, watch, tokens, events } = await serve(t);
  const token = tokens.create('eve', 'user')?.secret ?? '';
  await call('POST', `${v1}/replications`, replication('a'));
  await call('DELETE', one, undefined, { token });
  const { body } = await call('GET', `${v1}/events?limit=3`);
  t.match(body['items'], [
    { kind: 'Event', code: 'AuditWrite', level: 'WARNING', message: /^eve \(user\): DELETE .* - 403$/ },
    { code: 'AuditWrite', level: 'INFO', message: /^admin \(admin\): POST .* - 201$/, object: 'Replication/a' },
    { code: 'ReplicationCreated', object: 'Replication/a' },
  ]);
  t.match((await call('GET', `${v1}/events?level=WARNING`)).body, { items: [{ level: 'WARNING' }] });
  t.same((await call('GET', `${v1}/events?since=2999-01-01T00:00:00Z`)).body['items'], []);
  refused(t, await call('GET', `${v1}/events?level=LOUD`), 422, 'Invalid', /WARNING/);
  const codes: unknown[] = [];
  let last = '';
  for await (const { id, data } of watch(`${v1}/events?watch=true&level=INFO`)) {
    if (data.type === 'synced') {
      events.emit({ code: 'FullScan', level: 'INFO', message: 'new', object: null });
      continue;
    }
    codes.push(data.object['code']);
    last = id;
    if (data.object['code'] === 'FullScan') break;
  }
  t.same(codes.slice(-3), ['AuditWrite', 'AuditWrite', 'FullScan'], 'what is there in order, then what comes');
  events.emit({ code: 'SnapshotReady', level: 'INFO', message: 'x', object: null });
  for await (const { data } of watch(`${v1}/events?watch=true`, last)) {
    if (data.type === 'synced') continue;
    t.equal(data.object['code'], 'SnapshotReady');
    break;
  }
});

t.test('several kinds in one stream, of all or of one replication, resumed as any watch', async (t) => {
  const { call, watch, store, points } = await serve(t);
  points.push(point(1, '2026-11-20T00:00:00.000Z'));
  for (const name of ['a', 'b']) await call('POST', `${v1}/replications`, replication(name));
  await call('POST', `${v1}/replications/a/snapshots`, { name: 'sa' });
  await call('POST', `${v1}/replications/b/snapshots`, { name: 'sb' });
  const nameOf = ({ kind, metadata }: Json): string => `${String(kind)}/${String((metadata as Json)['name'])}`;
  const path = `${v1}/watch?kinds=Replication,Snapshot&replication=a`;
  const seen: string[] = [];
  let last = '';
  for await (const { id, data } of watch(path)) {
    seen.push(data.type === 'synced' ? 'synced' : `${data.type} ${nameOf(data.object)}`);
    t.notOk('requests' in data.object);
    last = id;
    if (data.type === 'synced') break;
  }
  t.same(seen, ['ADDED Replication/a', 'ADDED Snapshot/sa', 'synced']);
  store.update('Replication', 'b', ({ status }) => (status.lagBytes = 1));
  await call('DELETE', `${v1}/replications/a/snapshots/sa`);
  for await (const { data } of watch(path, last)) {
    if (data.type === 'synced') continue;
    t.equal(`${data.type} ${nameOf(data.object)}`, 'MODIFIED Snapshot/sa');
    break;
  }
  refused(t, await call('GET', `${v1}/watch?kinds=Token`), 422, 'Invalid', /Replication/);
  refused(t, await call('GET', `${v1}/watch`), 422, 'Invalid', /kinds/);
});

t.test('a watch ends with the session or token that it began with', async (t) => {
  const server = await serve(t, { heartbeatMs: 20 });
  const { call, tokens, api } = server;
  await call('POST', `${v1}/users`, { name: 'kim', role: 'user', password: 'Correct-horse-9' });
  const logIn = async (): Promise<string> =>
    String((await call('POST', `${v1}/session`, { user: 'kim', password: 'Correct-horse-9' })).body['token']);
  const open = async (secret: string): Promise<{ ended: Promise<string> }> => {
    const answer = await fetch(`${api.url}${v1}/watch?kinds=Replication`, {
      headers: { authorization: `Bearer ${secret}` },
    });
    t.equal(answer.status, 200);
    return { ended: answer.text() };
  };
  const byToken = await open(tokens.create('ci', 'user')?.secret ?? '');
  const bySession = await open(await logIn());
  await call('DELETE', `${v1}/tokens/ci`);
  await byToken.ended;
  await call('PATCH', `${v1}/users/kim`, { role: 'operator' });
  await bySession.ended;
  const idle = await open(await logIn());
  server.clock.offsetMs += idleMs;
  await idle.ended;
  t.pass('an open watch is no use that keeps a session alive');
});
