/** Tokens and users that are bound to groups, over real HTTP: every route of the server, lists, watches, events, metrics, writes. */
import t from 'tap';
import type { Test } from 'tap';
import { scopeRule } from '../../master/api/scope.ts';
import { roles } from '../../master/api/schema/token.ts';
import { groupNow, recoveryDraft } from '../../master/api/recoveries.ts';
import { point, refused, replication, serve, v1 } from './apiserver.ts';
import type { Answer, Json, Server } from './apiserver.ts';

const agentStatus = {
  ...{ state: 'ACTIVE' as const, message: '', version: null, kernel: null, bootId: null },
  ...{ lastSeenTime: null, clockOffsetSeconds: null, certificateExpiryTime: null },
};

/** The same of two groups, `own` and `foreign`, and a replication `foreign-alone` of none. */
async function twoGroups(t: Test): Promise<Server & { secrets: Record<string, string> }> {
  const server = await serve(t, { heartbeatMs: 20 });
  const { call, store, points, tokens, events } = server;
  points.push(point(1, '2026-11-20T00:00:00.000Z'));
  const made = async (path: string, body: Json): Promise<void> => {
    const answer = await call('POST', `${v1}${path}`, body);
    if (answer.status !== 201) throw new Error(`${path}: ${answer.text}`);
  };
  for (const group of ['own', 'foreign']) {
    const storageClass = `${group}-class`;
    await made('/storageclasses', {
      metadata: { name: storageClass },
      spec: { driver: 'directory', parameters: { path: `/srv/${group}` } },
    });
    store.create('Agent', `${group}-node`, {
      ...{ apiVersion: 'replicator.cdm.datacommand.co.kr/v1', kind: 'Agent', metadata: { name: `${group}-node` } },
      ...{ spec: { role: 'source' }, status: agentStatus, identity: { machineId: '', certificates: [] } },
    });
    const source = { agent: `${group}-node`, path: `/dev/${group}`, volumeMode: 'Block' };
    await made('/replications', replication(`${group}-r`, { source, target: { storageClass }, group }));
    await made(`/replications/${group}-r/snapshots`, { name: `${group}-s` });
    await made('/recoveries', { name: `${group}-d`, replication: `${group}-r`, type: 'drill' });
    await made('/recoveryschedules', {
      metadata: { name: `${group}-plan` },
      spec: { replication: `${group}-r`, type: 'drill', repeat: 'daily', startTime: '2031-01-01T00:00:00Z' },
    });
    await made('/users', { name: `${group}-kim`, role: 'user', password: 'Correct-horse-9', groups: [group] });
    tokens.create(`${group}-ci`, 'user', [group]);
    events.emit({ code: 'FullScan', level: 'INFO', message: `of ${group}`, object: `Replication/${group}-r` });
  }
  await made('/replications', replication('foreign-alone'));
  await made('/sinks', { name: 'foreign-sink', url: 'syslog+udp://127.0.0.1:9', level: 'FATAL' });
  const bound = roles.filter((role) => role !== 'admin');
  const secrets = Object.fromEntries(bound.map((role) => [role, tokens.create(`t-${role}`, role, ['own'])?.secret ?? ''])); // prettier-ignore
  return { ...server, secrets };
}

const names = (answer: Answer): unknown[] =>
  ((answer.body['items'] ?? []) as { metadata: Json }[]).map(({ metadata }) => metadata['name']);

/** All that others have, as it is kept. */
function foreign({ store }: Server): string {
  const kinds = ['Replication', 'Snapshot', 'Recovery', 'RecoverySchedule', 'Group', 'Agent', 'StorageClass'] as const;
  const objects = kinds.flatMap((kind): unknown[] => store.list(kind)).map((object) => JSON.stringify(object));
  const records = ['tokens', 'users', 'sinks'].flatMap((table) => store.listRecords(table));
  return [...objects, ...records.map((record) => JSON.stringify(record))].filter((one) => one.includes('foreign')).join('\n'); // prettier-ignore
}

t.test(
  'whatever route the server has: who is bound to a group neither sees nor changes what others have',
  async (t) => {
    const server = await twoGroups(t);
    const { api, call, secrets } = server;
    const before = foreign(server);
    const foreignNames: Record<string, string> = {
      ...{ replications: 'foreign-r', groups: 'foreign', recoveries: 'foreign-d', recoveryschedules: 'foreign-plan' },
      ...{ agents: 'foreign-node', storageclasses: 'foreign-class', sinks: 'foreign-sink', tokens: 'foreign-ci', users: 'foreign-kim' }, // prettier-ignore
    };
    const bodies: Record<string, Json[]> = {
      [`POST ${v1}/replications`]: [
        replication('new', { group: 'foreign' }),
        replication('new'),
        replication('new', {
          group: 'own',
          source: { agent: 'foreign-node', path: '/dev/foreign', volumeMode: 'Block' },
        }),
      ],
      [`POST ${v1}/groups`]: [
        { metadata: { name: 'mine' }, spec: { members: [] } },
        { metadata: { name: 'foreign' }, spec: { members: [] } },
      ],
      [`POST ${v1}/recoveries`]: [
        { replication: 'foreign-r', type: 'drill' },
        { replication: 'foreign-alone', type: 'drill' },
        { group: 'foreign', type: 'drill' },
      ],
      [`POST ${v1}/recoveryschedules`]: ['replication', 'group'].map((of) => ({
        metadata: { name: 'new' },
        spec: { [of]: of === 'group' ? 'foreign' : 'foreign-r', type: 'drill', repeat: 'daily', startTime: '2031-01-01T00:00:00Z' }, // prettier-ignore
      })),
      [`POST ${v1}/tokens`]: [
        { name: 'new', role: 'user', groups: ['foreign'] },
        { name: 'new', role: 'user', groups: ['own', 'foreign'] },
        { name: 'new', role: 'user', groups: null },
        { kind: 'join' },
      ],
      [`POST ${v1}/users`]: [
        { name: 'new', role: 'user', password: 'Correct-horse-9', groups: null },
        { name: 'new', role: 'user', password: 'Correct-horse-9', groups: ['foreign'] },
      ],
    };
    let tried = 0;
    for (const route of api.routes) {
      const [method = '', url = ''] = route.split(' ');
      const rule = scopeRule(method, url);
      t.ok(rule, route);
      if (!url.startsWith(v1) || rule === 'own' || url === `${v1}/watch`) continue;
      const plural = url.split('/')[3] ?? '';
      const path = url.replace(':name', foreignNames[plural] ?? '').replace(':snapshot', 'foreign-s');
      const given = bodies[route] ?? [method === 'GET' || method === 'DELETE' ? undefined : {}];
      for (const [role, token] of Object.entries(secrets))
        for (const body of given) {
          tried += 1;
          const answer = await call(method, path, body, { token });
          if (url.includes(':'))
            t.ok([403, 404].includes(answer.status), `${role}: ${method} ${path}: ${answer.status}`);
          else if (rule === 'whole') t.equal(answer.status, 403, `${role}: ${route}`);
          else if (method === 'GET') t.equal(answer.status, 200, `${role}: ${route}`);
          else t.ok([403, 422].includes(answer.status), `${role}: ${route} ${JSON.stringify(body)}: ${answer.status}`);
          if (method === 'GET' && !url.includes(':')) t.notMatch(answer.text, 'foreign', `${role}: ${route}`);
        }
    }
    t.ok(tried > 150, `${tried} were tried`);
    t.equal(foreign(server), before, 'nothing of others has changed');
  },
);

t.test('what belongs to the own groups is seen and done as the role may', async (t) => {
  const server = await twoGroups(t);
  const { call, secrets } = server;
  const by = { token: secrets['manager'] ?? '' };
  const operator = { token: secrets['operator'] ?? '' };
  for (const [path, expected] of [
    ['/replications', ['own-r']],
    ['/replications/own-r/snapshots', ['own-s']],
    ['/recoveries', ['own-d']],
    ['/recoveryschedules', ['own-plan']],
    ['/groups', ['own']],
    ['/agents', ['own-node']],
    ['/storageclasses', ['own-class']],
    ['/users', ['own-kim']],
    ['/tokens', ['own-ci', 't-manager', 't-operator', 't-user']],
  ] as const)
    t.same(names(await call('GET', v1 + path, undefined, by)), expected, path);
  t.match((await call('GET', `${v1}/session`, undefined, by)).body, { spec: { groups: ['own'] } });
  const events = (await call('GET', `${v1}/events`, undefined, by)).body['items'] as Json[];
  t.ok(events.some(({ message }) => message === 'of own'));
  t.ok(events.every(({ object }) => /\/own/.test(String(object))));

  const path = `${v1}/replications/own-r`;
  t.equal((await call('PATCH', path, { spec: { rpoSeconds: 7 } }, by)).status, 200);
  refused(t, await call('PATCH', path, { spec: { group: 'foreign' } }, by), 403, 'Forbidden', /spec.group must be own/);
  refused(t, await call('PATCH', path, { spec: { group: null } }, by), 403, 'Forbidden', /spec.group/);
  t.equal((await call('POST', `${path}/snapshots`, { name: 'more' }, operator)).status, 201);
  t.equal((await call('POST', `${v1}/recoveries`, { replication: 'own-r', type: 'drill' }, operator)).status, 201);
  t.equal((await call('POST', `${v1}/recoveries`, { group: 'own', type: 'drill' }, operator)).status, 201);
  refused(t, await call('POST', `${v1}/recoveries`, { group: 'own', type: 'failover' }, operator), 403, 'Forbidden');
  t.equal((await call('POST', `${v1}/replications`, replication('own-two', { group: 'own' }), by)).status, 201);
  const members = [{ replication: 'own-r' }, { replication: 'foreign-alone' }];
  const taken = await call('PATCH', `${v1}/groups/own`, { spec: { members } }, by);
  refused(t, taken, 422, 'Invalid', /members\[1\].replication must name a replication that exists/);
  t.equal((await call('PATCH', `${v1}/groups/own`, { spec: { members: [members[0]] } }, by)).status, 200);

  const lesser = await call('POST', `${v1}/tokens`, { name: 'lesser', role: 'manager' }, by);
  t.match(lesser, { status: 201, body: { spec: { groups: ['own'] } } });
  const token = String(lesser.body['token']);
  t.same(names(await call('GET', `${v1}/replications`, undefined, { token })), ['own-r', 'own-two']);
  t.equal((await call('DELETE', `${v1}/tokens/lesser`, undefined, by)).status, 200);
  refused(
    t,
    await call('POST', `${v1}/tokens`, { name: 'x', role: 'admin', groups: ['own'] }),
    422,
    'Invalid',
    /groups/,
  );
});

t.test('a user is bound as a token is; another binding ends the sessions', async (t) => {
  const server = await twoGroups(t);
  const { call } = server;
  const logIn = async (): Promise<{ token: string }> => {
    const answer = await call(
      'POST',
      `${v1}/session`,
      { user: 'own-kim', password: 'Correct-horse-9' },
      { token: null },
    );
    t.match(answer.body, { spec: { user: 'own-kim' } });
    return { token: String(answer.body['token']) };
  };
  const first = await logIn();
  t.same(names(await call('GET', `${v1}/replications`, undefined, first)), ['own-r']);
  t.equal((await call('PATCH', `${v1}/users/own-kim`, { groups: ['foreign'] })).status, 200);
  refused(t, await call('GET', `${v1}/replications`, undefined, first), 401, 'Unauthorized');
  t.same(names(await call('GET', `${v1}/replications`, undefined, await logIn())), ['foreign-r']);
  t.equal((await call('PATCH', `${v1}/users/own-kim`, { groups: null })).status, 200);
  t.equal(names(await call('GET', `${v1}/replications`, undefined, await logIn())).length, 3);
  refused(t, await call('PATCH', `${v1}/users/admin`, { groups: ['own'] }), 409, 'BuiltIn');
});

t.test(
  'a watch tells of what joins the groups and leaves them, with all that belongs to it, over a broken line too',
  async (t) => {
    const server = await twoGroups(t);
    const { watch, store, secrets } = server;
    const path = `${v1}/watch?kinds=Replication,Snapshot,Recovery,RecoverySchedule,Agent,StorageClass`;
    const token = secrets['user'] ?? '';
    const seen: string[] = [];
    const nameOf = ({ kind, metadata }: Json): string => `${String(kind)}/${String((metadata as Json)['name'])}`;
    let last = '';
    for await (const { id, data } of watch(path, undefined, token)) {
      last = id;
      if (data.type === 'synced') break;
      seen.push(nameOf(data.object));
    }
    t.same(seen.toSorted(), [
      ...['Agent/own-node', 'Recovery/own-d', 'RecoverySchedule/own-plan', 'Replication/own-r', 'Snapshot/own-s'],
      'StorageClass/own-class',
    ]);
    const move = (group: string): unknown => store.update('Replication', 'foreign-r', ({ spec }) => void (spec.group = group)); // prettier-ignore
    move('own');
    store.update('Replication', 'foreign-r', ({ status }) => (status.lagBytes = 1));
    move('foreign');
    store.update('Replication', 'foreign-r', ({ status }) => (status.lagBytes = 2));
    store.update('Replication', 'own-r', ({ status }) => (status.lagBytes = 3));
    const about = [
      'Agent/foreign-node',
      'RecoverySchedule/foreign-plan',
      'Replication/foreign-r',
      'Snapshot/foreign-s',
    ];
    const after = async (lastId: string): Promise<string[]> => {
      const found: string[] = [];
      for await (const { data } of watch(path, lastId, token)) {
        if (data.type === 'synced' || data.type === 'heartbeat') continue;
        found.push(`${data.type} ${nameOf(data.object)}`);
        if (nameOf(data.object) === 'Replication/own-r') break;
      }
      return found;
    };
    const all = [...about, 'StorageClass/foreign-class'].toSorted();
    const changes = await after(last);
    t.same(changes.slice(0, 5).toSorted(), all.map((one) => `ADDED ${one}`), 'it came with what belongs to it'); // prettier-ignore
    t.equal(changes[5], 'MODIFIED Replication/foreign-r');
    t.same(changes.slice(6, 11).toSorted(), all.map((one) => `DELETED ${one}`), 'and went'); // prettier-ignore
    t.same(changes.slice(11), ['MODIFIED Replication/own-r']);
    const one = `${v1}/replications?watch=true`;
    for await (const { data } of watch(one, undefined, token)) {
      if (data.type === 'synced') break;
      t.equal(nameOf(data.object), 'Replication/own-r', 'the watch of a list holds to it too');
    }
  },
);

t.test('events and metrics are those of the own replications', async (t) => {
  const server = await twoGroups(t);
  const { call, watch, events, secrets, clock, store } = server;
  const token = secrets['user'] ?? '';
  server.metrics.text = [
    '# HELP replicator_lag_seconds age',
    '# TYPE replicator_lag_seconds gauge',
    'replicator_lag_seconds{replication="own-r"} 1',
    'replicator_lag_seconds{replication="foreign-r"} 2',
    'replicator_lag_seconds{replication="gone"} 3',
    '',
    '# HELP replicator_agents agents',
    '# TYPE replicator_agents gauge',
    'replicator_agents{state="ACTIVE"} 2',
    '# HELP replicator_syncs_total syncs',
    '# TYPE replicator_syncs_total counter',
    'replicator_syncs_total{result="success",replication="own-r"} 4',
    '',
  ].join('\n');
  t.equal(
    (await call('GET', '/metrics', undefined, { token })).text,
    [
      '# HELP replicator_lag_seconds age',
      '# TYPE replicator_lag_seconds gauge',
      'replicator_lag_seconds{replication="own-r"} 1',
      '# HELP replicator_syncs_total syncs',
      '# TYPE replicator_syncs_total counter',
      'replicator_syncs_total{result="success",replication="own-r"} 4',
      '',
    ].join('\n'),
  );
  t.match((await call('GET', '/metrics')).text, 'foreign-r', 'who is bound to none sees all');

  const found: string[] = [];
  for await (const { data } of watch(`${v1}/events?watch=true`, undefined, token)) {
    if (data.type === 'heartbeat') continue;
    if (data.type === 'synced') {
      for (const object of [
        'Replication/foreign-r',
        'Agent/foreign-node',
        null,
        'Snapshot/foreign-r/s',
        'Snapshot/own-r/s',
      ])
        events.emit({ code: 'FullScan', level: 'INFO', message: 'live', object });
      continue;
    }
    found.push(String(data.object['object']));
    if (data.object['message'] === 'live') break;
  }
  t.equal(found.at(-1), 'Snapshot/own-r/s');
  t.notMatch(found.join(' '), 'foreign');

  // Another one by the same name does not bring the first one's history to light.
  await call('POST', `${v1}/recoveries/foreign-d/actions/cancel`);
  store.update('Recovery', 'foreign-d', ({ status }) => void (status.state = 'Cancelled'));
  await call('DELETE', `${v1}/recoveryschedules/foreign-plan`);
  t.equal((await call('DELETE', `${v1}/replications/foreign-r`)).status, 200);
  clock.offsetMs += 1000;
  t.equal((await call('POST', `${v1}/replications`, replication('foreign-r', { group: 'own' }))).status, 201);
  const shown = await call('GET', `${v1}/events?object=Replication/foreign-r`, undefined, { token });
  t.same(
    (shown.body['items'] as Json[]).map(({ code }) => code),
    ['ReplicationCreated'],
  );
  t.same(names(await call('GET', `${v1}/recoveries`, undefined, { token })), ['own-d']);
  const asked = { replication: 'foreign-r' };
  t.equal(recoveryDraft('x', { ...asked, type: 'drill', point: 'latest-data', target: null }, groupNow(store, asked)).job.group, 'own'); // prettier-ignore
});
