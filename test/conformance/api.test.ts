/** The REST contract over real HTTP: resources, status codes, problem documents, idempotency, OpenAPI. */
import t from 'tap';
import { rights } from '../../master/api/rights.ts';
import type { ReplicationStatus } from '../../master/resources.ts';
import { point, refused, replication, serve, v1 } from './apiserver.ts';
import type { Answer, Json } from './apiserver.ts';

function fields(answer: Answer): string[] {
  return ((answer.body['errors'] ?? []) as { path: string }[]).map(({ path }) => path);
}
const one = `${v1}/replications/a`;

t.test('a replication is created with the defaults of the contract, read, changed, deleted', async (t) => {
  const server = await serve(t);
  const { call } = server;
  const made = await call('POST', `${v1}/replications`, replication('a'));
  t.equal(made.status, 201);
  t.match(made.body, {
    kind: 'Replication',
    metadata: { name: 'a', generation: 1 },
    spec: {
      trigger: { continuous: true },
      rpoSeconds: 30,
      consistency: null,
      maxFreezeMs: 500,
      snapshotSchedules: [],
      journalSeconds: 3600,
      maxJournalBytes: 64 * 2 ** 30,
      compression: 'auto',
      bandwidthBytesPerSecond: 0,
      readBytesPerSecond: 0,
      paused: false,
      source: { include: [], exclude: [] },
    },
    status: { state: 'PREPARING', phase: 'Pending', lagSeconds: null, recoveryPoint: null, conditions: [] },
  });
  t.notOk('requests' in made.body, 'what is inside stays inside');
  const { resourceVersion } = made.body['metadata'] as Json;
  t.equal(made.headers.get('etag'), `"${String(resourceVersion)}"`);

  const patch = await call('PATCH', one, { spec: { rpoSeconds: 5 }, metadata: { labels: { app: 'x', tier: 'y' } } });
  t.match(patch.body, { spec: { rpoSeconds: 5, maxFreezeMs: 500 }, metadata: { generation: 2, labels: { app: 'x' } } });
  const less = await call(
    'PATCH',
    one,
    { spec: { rpoSeconds: null }, metadata: { labels: { app: null } } },
    {
      headers: { 'content-type': 'application/merge-patch+json' },
    },
  );
  t.same([(less.body['spec'] as Json)['rpoSeconds'], (less.body['metadata'] as Json)['labels']], [30, { tier: 'y' }]);
  const put = await call('PUT', one, { ...less.body, spec: { ...(less.body['spec'] as Json), journalSeconds: 0 } });
  t.equal((put.body['spec'] as Json)['journalSeconds'], 0, 'an object as it was read can be sent back');
  refused(t, await call('PUT', one, less.body), 409, 'VersionConflict');

  t.equal((await call('DELETE', one)).status, 200);
  refused(t, await call('GET', one), 404, 'NotFound');
});

t.test('what is wrong with a body is said by field, with the cure', async (t) => {
  const { call } = await serve(t);
  const post = (body: unknown): Promise<Answer> => call('POST', `${v1}/replications`, body);
  const cases: [Json, string][] = [
    [replication('UPPER'), 'metadata.name'],
    [replication('-a'), 'metadata.name'],
    [replication('a'.repeat(64)), 'metadata.name'],
    [replication('a', { rpoSeconds: 0 }), 'spec.rpoSeconds'],
    [replication('a', { rpoSeconds: '5' }), 'spec.rpoSeconds'],
    [replication('a', { journalSeconds: -1 }), 'spec.journalSeconds'],
    [replication('a', { maxFreezeMs: 1.5 }), 'spec.maxFreezeMs'],
    [replication('a', { compression: 'gzip' }), 'spec.compression'],
    [replication('a', { consistency: 'file' }), 'spec.consistency'],
    [replication('a', { hooks: { timeoutSeconds: 0 } }), 'spec.hooks.timeoutSeconds'],
    [replication('a', { hooks: { before: [] } }), 'spec.hooks.before'],
    [replication('a', { target: { storageClass: 'none' } }), 'spec.target.storageClass'],
    [replication('a', { target: { storageClass: 'local', agent: 'b' } }), 'spec.target.agent'],
    [replication('a', { trigger: {} }), 'spec.trigger'],
    [replication('a', { trigger: { continuous: true, manual: 'x' } }), 'spec.trigger'],
    [replication('a', { trigger: { continuous: false } }), 'spec.trigger.continuous'],
    [replication('a', { trigger: { schedule: '61 * * * *' } }), 'spec.trigger.schedule'],
    [replication('a', { source: { agent: 'n', path: 'x', volumeMode: 'Block' } }), 'spec.source.path'],
    [replication('a', { source: { agent: 'n', path: '/a/../b', volumeMode: 'Block' } }), 'spec.source.path'],
    [replication('a', { source: { agent: 'n', path: '/', volumeMode: 'Filesystem' } }), 'spec.source.path'],
    [replication('a', { source: { agent: 'n', path: '/etc/x', volumeMode: 'Filesystem' } }), 'spec.source.path'],
    [replication('a', { source: { agent: 'n', path: '/unknown' } }), 'spec.source.volumeMode'],
    [replication('a', { source: { path: '/x', volumeMode: 'Block' } }), 'spec.source.agent'],
    [
      replication('a', { source: { agent: 'n', path: '/x', volumeMode: 'Block', include: ['*'] } }),
      'spec.source.include',
    ],
    [replication('a', {}, { labels: { app: 'not valid!' } }), 'metadata.labels.app'],
    [{ ...replication('a'), kind: 'Agent' }, 'kind'],
    [{ ...replication('a'), extra: 1 }, 'extra'],
  ];
  for (const [body, path] of cases) {
    const answer = await post(body);
    refused(t, answer, 422, 'Invalid');
    t.ok(fields(answer).includes(path), `names ${path}: ${fields(answer).join(' ')}`);
  }
  const several = await post(replication('A', { rpoSeconds: 0, foo: 1 }));
  t.same(fields(several).sort(), ['metadata.name', 'spec.foo', 'spec.rpoSeconds'], 'all of them at once');
  t.match(several.text, /lower-case letters/);
  refused(t, await post(undefined), 422, 'Invalid');
  refused(t, await post([]), 422, 'Invalid');
  refused(t, await call('POST', `${v1}/replications`, undefined, { text: '{"a":' }), 400, 'BadJson');
  refused(t, await call('POST', `${v1}/replications`, undefined, { text: '{"__proto__":{}}' }), 400, 'BadJson');
  refused(
    t,
    await call('POST', `${v1}/replications`, undefined, { text: '['.repeat(100_000) + ']'.repeat(100_000) }),
    400,
    'BadJson',
  );
  refused(t, await call('POST', `${v1}/replications`, undefined, { text: ' '.repeat((1 << 20) + 1) }), 413, 'TooLarge');
  const form = { headers: { 'content-type': 'text/plain' }, text: '{}' };
  refused(
    t,
    await call('POST', `${v1}/replications`, undefined, form),
    415,
    'UnsupportedMediaType',
    /application\/json/,
  );
  for (const query of [
    'limit=0',
    'limit=x',
    'limit=1&limit=2',
    'watch=maybe',
    'nope=1',
    'labelSelector=a%3D(',
    'continue=%21',
  ])
    refused(t, await call('GET', `${v1}/replications?${query}`), 422, 'Invalid');
  refused(t, await call('GET', '/%zz'), 400, 'BadRequest');
});

t.test('volumeMode may be left out when the agent has reported the path', async (t) => {
  const server = await serve(t);
  server.volumes.push({
    path: '/srv/shop',
    kind: 'directory',
    volumeMode: 'Filesystem',
    sizeBytes: 1,
    filesystem: 'ext4',
    filesystemId: null,
    mountPoint: '/',
    csi: null,
    eligible: true,
    reason: null,
  });
  const answer = await server.call(
    'POST',
    `${v1}/replications`,
    replication('a', { source: { agent: 'n', path: '/srv/shop' } }),
  );
  t.match(answer.body, { spec: { source: { volumeMode: 'Filesystem' } } });
});

t.test('what a replication mirrors, and where to, cannot be changed', async (t) => {
  const { call } = await serve(t);
  await call('POST', `${v1}/storageclasses`, {
    metadata: { name: 'other' },
    spec: { driver: 'directory', parameters: { path: '/srv/other' } },
  });
  await call('POST', `${v1}/replications`, replication('a'));
  const cases: [Json, string][] = [
    [{ spec: { source: { path: '/dev/b' } } }, 'spec.source.path'],
    [{ spec: { source: { agent: 'b' } } }, 'spec.source.agent'],
    [{ spec: { source: { volumeMode: 'Filesystem' } } }, 'spec.source.volumeMode'],
    [{ spec: { target: { storageClass: 'other' } } }, 'spec.target.storageClass'],
    [{ metadata: { name: 'b' } }, 'metadata.name'],
  ];
  for (const [patch, path] of cases) {
    const answer = await call('PATCH', one, patch);
    refused(t, answer, 422, 'Invalid', /cannot be changed/);
    t.same(fields(answer), [path]);
  }
});

t.test('names taken and versions moved on are 409', async (t) => {
  const { call } = await serve(t);
  const made = await call('POST', `${v1}/replications`, replication('a'));
  refused(t, await call('POST', `${v1}/replications`, replication('a')), 409, 'AlreadyExists');
  const etag = made.headers.get('etag') ?? '';
  t.equal((await call('PATCH', one, { spec: { paused: true } }, { headers: { 'if-match': etag } })).status, 200);
  for (const [method, path, body] of [
    ['PATCH', one, { spec: { paused: false } }],
    ['DELETE', one],
    ['POST', `${one}/actions/pause`],
  ] as const)
    refused(t, await call(method, path, body, { headers: { 'if-match': etag } }), 409, 'VersionConflict');
  refused(t, await call('PATCH', one, {}, { headers: { 'if-match': 'x' } }), 422, 'Invalid');
  t.equal((await call('DELETE', one, undefined, { headers: { 'if-match': '*' } })).status, 200);
});

t.test('actions answer 202 and are counted, so that none is lost or done twice', async (t) => {
  const { call, store, points } = await serve(t);
  await call('POST', `${v1}/replications`, replication('a'));
  refused(t, await call('POST', `${one}/actions/verify`), 409, 'NoRecoveryPoint', /wait for state NORMAL/);
  points.push(point(1, '2026-11-20T00:00:00.000Z'));
  t.match(await call('POST', `${one}/actions/pause`), { status: 202, body: { spec: { paused: true } } });
  t.match(await call('POST', `${one}/actions/resume`, {}), { status: 202, body: { spec: { paused: false } } });
  t.equal((await call('POST', `${one}/actions/resync`, { force: true })).status, 202);
  t.equal(
    (await call('POST', `${one}/actions/verify`, undefined, { headers: { 'content-type': 'application/json' } }))
      .status,
    202,
  );
  t.match(store.get('Replication', 'a')?.requests, { sync: 0, resync: 1, verify: 1, force: true });
  refused(t, await call('POST', `${one}/actions/verify`, { force: 'yes' }), 422, 'Invalid');
  refused(t, await call('POST', `${one}/actions/promote`), 409, 'WrongState', /promote with force/);
  refused(t, await call('POST', `${one}/actions/demote`), 409, 'WrongState', /demote with force/);
  refused(t, await call('POST', `${v1}/replications/none/actions/pause`), 404, 'NotFound');
  await call('PATCH', one, { spec: { trigger: { continuous: null, manual: 'one' } } });
  await call('PATCH', one, { spec: { trigger: { manual: 'one' }, rpoSeconds: 9 } });
  await call('PATCH', one, { spec: { trigger: { manual: 'two' } } });
  t.equal(store.get('Replication', 'a')?.requests.sync, 2, 'each new tag asks for one sync');
});

t.test('lagSeconds is computed at the read', async (t) => {
  const { call, store, clock } = await serve(t);
  await call('POST', `${v1}/replications`, replication('a'));
  const lastSyncTime = new Date(Date.now()).toISOString();
  store.update('Replication', 'a', ({ status }) => (status.lastSyncTime = lastSyncTime));
  clock.offsetMs = 60_000;
  const lag = async (): Promise<number> =>
    ((await call('GET', one)).body['status'] as ReplicationStatus).lagSeconds ?? -1;
  const first = await lag();
  t.ok(first >= 60 && first < 90, `${first}`);
  clock.offsetMs = -60_000;
  t.equal(await lag(), 0);
});

t.test('points are listed by time and in pages', async (t) => {
  const { call, points } = await serve(t);
  await call('POST', `${v1}/replications`, replication('a'));
  for (let index = 0; index < 5; index++) points.push(point(index + 8, `2026-11-20T00:00:0${index}.000Z`));
  const sequences = (answer: Answer): unknown[] => (answer.body['items'] as Json[]).map(({ sequence }) => sequence);
  t.same(
    sequences(await call('GET', `${one}/points?from=2026-11-20T00:00:01Z&to=2026-11-20T00:00:03.000Z`)),
    [9, 10, 11],
  );
  const first = await call('GET', `${one}/points?limit=3`);
  t.same(sequences(first), [8, 9, 10]);
  const token = (first.body['metadata'] as Json)['continue'] as string;
  t.same(sequences(await call('GET', `${one}/points?limit=3&continue=${token}`)), [11, 12]);
  refused(t, await call('GET', `${one}/points?from=yesterday`), 422, 'Invalid', /RFC 3339/);
});

t.test(
  'snapshots: taken once there is a point, never unlocked early, not deleted while something holds them',
  async (t) => {
    const { call, store, points, clock } = await serve(t);
    await call('POST', `${v1}/replications`, replication('a'));
    refused(t, await call('POST', `${one}/snapshots`, { name: 's1' }), 409, 'NoRecoveryPoint', /wait for state NORMAL/);
    points.push(point(1, '2026-11-20T00:00:00.000Z'));
    const lockedUntil = new Date(Date.now() + 3_600_000).toISOString();
    const longer = new Date(Date.now() + 7_200_000).toISOString();
    const made = await call('POST', `${one}/snapshots`, { name: 's1', lockedUntil });
    t.match(made, {
      status: 201,
      body: { kind: 'Snapshot', spec: { lockedUntil, pinned: false }, status: { state: 'Creating' } },
    });
    t.match((await call('POST', `${one}/snapshots`, {})).body, { metadata: { name: /^s-\d{8}-\d{6}-\d{3}$/ } });
    refused(t, await call('POST', `${one}/snapshots`, { name: 's1' }), 409, 'AlreadyExists');
    refused(
      t,
      await call('POST', `${one}/snapshots`, { name: 's2', lockedUntil: '2020-01-01T00:00:00Z' }),
      422,
      'Invalid',
    );
    refused(t, await call('PATCH', `${one}/snapshots/s1`, { lockedUntil: null }), 409, 'Locked');
    refused(
      t,
      await call('PATCH', `${one}/snapshots/s1`, { spec: { lockedUntil: new Date(Date.now() + 1000).toISOString() } }),
      409,
      'Locked',
    );
    t.match((await call('PATCH', `${one}/snapshots/s1`, { lockedUntil: longer })).body, {
      spec: { lockedUntil: longer },
    });
    refused(t, await call('DELETE', `${one}/snapshots/s1`), 409, 'Locked', /locked until/);
    refused(t, await call('DELETE', one), 409, 'Referenced', /Snapshot\/a\/s1 is locked/);
    clock.offsetMs = 8_000_000;
    t.match((await call('PATCH', `${one}/snapshots/s1`, { spec: { pinned: true } })).body, { spec: { pinned: true } });
    refused(t, await call('DELETE', `${one}/snapshots/s1`), 409, 'Pinned');
    await call('PATCH', `${one}/snapshots/s1`, { pinned: false });
    store.update('Snapshot', 'a/s1', ({ status }) => (status.state = 'Ready'));
    await call('POST', `${v1}/recoveries`, { name: 'r', replication: 'a', type: 'drill', point: { snapshot: 's1' } });
    refused(t, await call('DELETE', `${one}/snapshots/s1`), 409, 'Referenced', /recovery r /);
    store.update('Recovery', 'r', ({ status }) => (status.state = 'Completed'));
    t.match(await call('DELETE', `${one}/snapshots/s1`), { status: 202, body: { status: { state: 'Deleting' } } });
    refused(t, await call('GET', `${one}/snapshots/none`), 404, 'NotFound');
    t.equal(((await call('GET', `${one}/snapshots`)).body['items'] as Json[]).length, 2);
    await call('POST', `${v1}/replications`, replication('b'));
    t.equal(
      ((await call('GET', `${v1}/replications/b/snapshots`)).body['items'] as Json[]).length,
      0,
      'each has its own',
    );
    t.equal((await call('DELETE', `${one}?keepReplica=true`)).status, 200);
    t.equal(store.list('Snapshot').length, 0);
    t.match(store.listRecords('kept-replicas'), [{ value: /"name":"a"/ }], 'who clears replicas is told to keep it');
  },
);

t.test(
  'recoveries: only of what can be recovered, ended by cancel, undone by rollback, deleted as results',
  async (t) => {
    const { call, store, points } = await serve(t);
    const post = (body: Json): Promise<Answer> =>
      call('POST', `${v1}/recoveries`, { type: 'drill', replication: 'a', ...body });
    refused(t, await post({}), 422, 'Invalid', /replication/);
    await call('POST', `${v1}/replications`, replication('a'));
    refused(t, await post({}), 409, 'NoRecoveryPoint');
    points.push(point(1, '2026-11-20T00:00:00.000Z'));
    refused(t, await post({ point: 'latest-snapshot' }), 409, 'NoRecoveryPoint');
    refused(t, await post({ point: { snapshot: 'none' } }), 422, 'Invalid');
    await call('POST', `${one}/snapshots`, { name: 'bad' });
    store.update('Snapshot', 'a/bad', ({ status }) => (status.state = 'Failed'));
    refused(t, await post({ point: { snapshot: 'bad' } }), 409, 'WrongState', /Failed/);
    refused(t, await post({ point: { time: '2026-11-19T00:00:00Z' } }), 409, 'NoRecoveryPoint', /oldest is 2026-11-20/);
    for (const [body, path] of [
      [{ point: 'newest' }, 'point'],
      [{ point: { time: 'x' } }, 'point'],
      [{ type: 'move' }, 'type'],
      [{ target: { path: 'relative' } }, 'target'],
      [{ target: { path: '/a', more: 1 } }, 'target'],
      [{ group: 'g' }, 'replication'],
      [{ group: 'g', replication: undefined }, 'group'],
    ] as const) {
      const answer = await post(body);
      refused(t, answer, 422, 'Invalid');
      t.same(fields(answer), [path]);
    }
    const made = await post({ point: { time: '2026-11-20T09:00:00+09:00' }, target: { path: '/tmp/x' } });
    t.match(made, {
      status: 201,
      body: {
        kind: 'Recovery',
        spec: { point: { time: '2026-11-20T00:00:00.000Z' }, target: { path: '/tmp/x' } },
        status: { state: 'Waiting' },
      },
    });
    t.notOk('job' in made.body);
    const name = String((made.body['metadata'] as Json)['name']);
    t.match(name, /^a-drill-[0-9a-f]{8}$/);
    const url = `${v1}/recoveries/${name}`;
    refused(t, await call('DELETE', url), 409, 'WrongState');
    refused(t, await call('POST', `${url}/actions/rollback`), 409, 'WrongState');
    refused(t, await call('DELETE', one), 409, 'Referenced', new RegExp(`Recovery/${name}`));
    t.equal((await call('POST', `${url}/actions/cancel`)).status, 202);
    t.equal(store.get('Recovery', name)?.status.state, 'Cancelling');
    store.update('Recovery', name, ({ status }) => (status.state = 'Completed'));
    refused(t, await call('POST', `${url}/actions/cancel`), 409, 'WrongState');
    t.equal((await call('POST', `${url}/actions/rollback`, { force: false })).status, 202);
    t.equal(store.get('Recovery', name)?.status.state, 'RollingBack');
    store.update('Recovery', name, ({ status }) => (status.state = 'RolledBack'));
    t.equal((await call('DELETE', url)).status, 200);
    refused(t, await call('GET', url), 404, 'NotFound');
  },
);

t.test('agents are read and revoked, storage classes in use are kept', async (t) => {
  const { call, store, revoked } = await serve(t);
  store.create('Agent', 'node-a', {
    apiVersion: 'replicator.cdm.datacommand.co.kr/v1',
    kind: 'Agent',
    metadata: { name: 'node-a' },
    spec: { role: 'source' },
    status: {
      state: 'ACTIVE',
      message: '',
      version: null,
      kernel: null,
      bootId: null,
      lastSeenTime: null,
      clockOffsetSeconds: null,
      certificateExpiryTime: null,
    },
    identity: { machineId: 'secret-id', certificates: [] },
  });
  const agents = await call('GET', `${v1}/agents`);
  t.match(agents.body, { items: [{ metadata: { name: 'node-a' }, status: { state: 'ACTIVE' } }] });
  t.notMatch(agents.text + (await call('GET', `${v1}/agents/node-a`)).text, /identity|secret-id/);
  t.match((await call('GET', `${v1}/agents/node-a/volumes`)).body, { items: [] });
  t.equal((await call('DELETE', `${v1}/agents/node-a`)).status, 200);
  t.same(revoked, ['node-a']);
  refused(t, await call('DELETE', `${v1}/agents/node-a`), 404, 'NotFound');
  refused(t, await call('GET', `${v1}/agents/node-a/volumes`), 404, 'NotFound');

  await call('POST', `${v1}/replications`, replication('a'));
  const local = `${v1}/storageclasses/local`;
  refused(t, await call('DELETE', local), 409, 'Referenced', /Replication\/a/);
  refused(t, await call('PATCH', local, { spec: { parameters: { path: '/srv/x' } } }), 422, 'Invalid');
  refused(
    t,
    await call('POST', `${v1}/storageclasses`, {
      metadata: { name: 'b' },
      spec: { driver: 'directory', parameters: { path: '/etc' } },
    }),
    422,
    'Invalid',
  );
  refused(
    t,
    await call('POST', `${v1}/storageclasses`, { metadata: { name: 'b' }, spec: { driver: 's3', parameters: {} } }),
    422,
    'Invalid',
    /directory/,
  );
  t.match((await call('PATCH', local, { metadata: { displayName: 'Lokal' } })).body, {
    metadata: { displayName: 'Lokal' },
  });
  await call('DELETE', one);
  t.equal((await call('DELETE', local)).status, 200);
});

t.test('the same Idempotency-Key does the same write once, for 24 hours', async (t) => {
  const { call, store, clock, points } = await serve(t);
  await call('POST', `${v1}/replications`, replication('a'));
  points.push(point(1, '2026-11-20T00:00:00.000Z'));
  const drill = { type: 'drill', replication: 'a' };
  const given = { headers: { 'idempotency-key': 'key-1' } };
  const first = await call('POST', `${v1}/recoveries`, drill, given);
  const again = await call('POST', `${v1}/recoveries`, drill, given);
  t.same([again.status, again.text], [201, first.text]);
  t.equal(again.headers.get('idempotency-replayed'), 'true');
  t.equal(store.list('Recovery').length, 1);
  refused(t, await call('POST', `${v1}/recoveries`, { ...drill, name: 'x' }, given), 422, 'KeyReused');
  const other = { headers: { ...given.headers, 'if-match': '' } };
  refused(t, await call('POST', `${v1}/recoveries`, drill, other), 422, 'KeyReused');
  refused(
    t,
    await call('POST', `${v1}/recoveries`, drill, { headers: { 'idempotency-key': 'x'.repeat(300) } }),
    422,
    'Invalid',
  );
  t.equal((await call('POST', `${one}/actions/resync`, {}, { headers: { 'idempotency-key': 'key-2' } })).status, 202);
  t.equal((await call('POST', `${one}/actions/resync`, {}, { headers: { 'idempotency-key': 'key-2' } })).status, 202);
  t.equal(store.get('Replication', 'a')?.requests.resync, 1);
  const wrong = { headers: { 'idempotency-key': 'key-3' } };
  refused(t, await call('POST', `${v1}/recoveries`, { ...drill, replication: 'none' }, wrong), 422, 'Invalid');
  t.equal((await call('POST', `${v1}/recoveries`, drill, wrong)).status, 201, 'a refused write may be corrected');
  // Its answer lost in a crash: the key still makes the same name.
  for (const { key } of store.listRecords('idempotency')) store.putRecord('idempotency', key, undefined);
  refused(t, await call('POST', `${v1}/recoveries`, drill, given), 409, 'AlreadyExists');
  clock.offsetMs = 25 * 3_600_000;
  await call('POST', `${v1}/recoveries`, drill, { headers: { 'idempotency-key': 'key-4' } });
  t.equal(store.listRecords('idempotency').length, 1, 'old answers are forgotten');
  await call('POST', `${v1}/tokens`, { kind: 'join' }, { headers: { 'idempotency-key': 'key-5' } });
  t.equal(store.listRecords('idempotency').length, 1, 'secrets are not kept');
});

t.test('OpenAPI 3.1 has every route, and everything that it refers to', async (t) => {
  const { call } = await serve(t);
  const document = (await call('GET', '/openapi.json')).body;
  t.match(document, {
    openapi: /^3\.1\./,
    info: { version: '1.2.3' },
    components: { securitySchemes: { token: { scheme: 'bearer' } } },
  });
  const paths = document['paths'] as Record<string, Record<string, Json>>;
  const ids = new Set<string>();
  for (const [key] of Object.entries(rights).filter(([key]) => key.includes(v1))) {
    const [method = '', url = ''] = key.split(' ');
    const operation = paths[url.replace(/:(\w+)/g, '{$1}')]?.[method.toLowerCase()];
    t.ok(operation, key);
    const {
      operationId,
      responses,
      parameters = [],
    } = operation as { operationId: string; responses: Json; parameters?: Json[] };
    t.notOk(ids.has(operationId), operationId);
    ids.add(operationId);
    t.ok('4XX' in responses && Object.keys(responses).length === 2);
    const named = parameters.filter((parameter) => parameter['in'] === 'path').map((parameter) => parameter['name']);
    t.same(
      named,
      [...url.matchAll(/:(\w+)/g)].map((match) => match[1]),
    );
  }
  const references = [...JSON.stringify(document).matchAll(/"\$ref":"([^"]+)"/g)].map((match) => match[1] ?? '');
  t.ok(references.length > 40);
  for (const reference of new Set(references)) {
    const found = reference
      .split('/')
      .slice(1)
      .reduce<unknown>((at, part) => (at as Json | undefined)?.[part], document);
    t.ok(found, reference);
  }
});
