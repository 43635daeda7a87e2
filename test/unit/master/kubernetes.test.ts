import t from 'tap';
import { readFileSync } from 'node:fs';
import { parse } from 'yaml';
import { decode, encode, encodeStatus, keyOf, nameOf, type CustomResource } from '../../../master/kubernetes/codec.ts';
import { definition, fileOf } from '../../../master/kubernetes/crd.ts';
import { allKinds } from '../../../master/kubernetes/kinds.ts';
import { objectCache } from '../../../master/kubernetes/cache.ts';
import { isStill, onlyFigures, stillAfterMs } from '../../../master/kubernetes/volatile.ts';
import { secretName, secretOf, recordOf } from '../../../master/kubernetes/records.ts';
import { structural } from '../../../master/kubernetes/structural.ts';
import type { Resources } from '../../../master/resources.ts';
import { snapshotDraft } from '../../conformance/store.ts';

t.test('the definitions among the manifests are those of the schemas', async (t) => {
  for (const kind of allKinds) {
    const path = new URL(`../../../master/manifests/${fileOf(kind)}`, import.meta.url);
    t.same(parse(readFileSync(path, 'utf8')), definition(kind), `${fileOf(kind)}; if not: npm run definitions`);
  }
});

t.test("the contract's identifiers are there letter for letter", async (t) => {
  t.match(definition('Replication'), {
    metadata: { name: 'replicationinfoes.replicator.cdm.datacommand.co.kr' },
    spec: {
      group: 'replicator.cdm.datacommand.co.kr',
      scope: 'Namespaced',
      names: { kind: 'ReplicationInfo', plural: 'replicationinfoes' },
      versions: [{ name: 'v1', served: true, storage: true, subresources: { status: {} } }],
    },
  });
  t.equal(fileOf('Replication'), 'replicator.cdm.datacommand.co.kr_replicationinfoes.yaml');
});

t.test('schemas become structural ones', async (t) => {
  t.same(structural({ type: ['string', 'null'], enum: ['a', null], default: null }), {
    type: 'string',
    enum: ['a', null],
    nullable: true,
  });
  t.same(structural({ anyOf: [{ type: 'object', properties: { a: { type: 'integer' } } }, { type: 'null' }] }), {
    type: 'object',
    properties: { a: { type: 'integer', format: 'int64' } },
    nullable: true,
  });
  t.same(structural({ const: true, type: 'boolean' }), { type: 'boolean', enum: [true] });
  t.same(
    structural({
      type: 'object',
      required: ['a', 'b', 'c', 'd'],
      properties: {
        a: { type: 'string' },
        b: { type: 'string', default: 'x' },
        c: { type: ['string', 'null'] },
        d: { type: 'string', 'x-inferred': true },
      },
    }),
    {
      type: 'object',
      properties: {
        a: { type: 'string' },
        b: { type: 'string', default: 'x' },
        c: { type: 'string', nullable: true },
        d: { type: 'string' },
      },
      required: ['a'],
    },
    'what is filled in or may be unknown is not asked for',
  );
  t.throws(() => structural({ type: 'string', pattern: '^(?=x)' }), /look-ahead/);
});

t.test('an object comes back as it was', async (t) => {
  const draft = snapshotDraft('before-upgrade', { tier: 'one' });
  const metadata = {
    ...draft.metadata,
    displayName: 'Before',
    annotations: { note: 'x' },
    namespace: 'dr',
    uid: 'u',
    generation: 2,
    resourceVersion: '7',
    creationTimestamp: '2026-11-20T00:00:00.000Z',
  };
  const object = { ...draft, metadata } as Resources['Snapshot'];
  const written = encode('Snapshot', 'orders/before-upgrade', object);
  t.match(written, { kind: 'ReplicationSnapshot', metadata: { name: 'orders.before-upgrade' } });
  t.same(written.spec, { replication: 'orders', pinned: false }, 'null is not written');
  const { namespace, uid, generation, resourceVersion } = metadata;
  const server = { namespace, uid, generation, resourceVersion, creationTimestamp: '2026-11-20T00:00:00Z' };
  const resource = {
    ...written,
    metadata: { ...written.metadata, ...server },
    status: encodeStatus('Snapshot', object),
  } as CustomResource;
  t.same(decode('Snapshot', resource), object);
  const { status: _, ...fresh } = resource;
  t.equal(decode('Snapshot', fresh), undefined, 'without a status it is not taken on yet');
  t.equal(keyOf('Snapshot', nameOf('orders/a')), 'orders/a');
});

t.test('records have names of their own and come back', async (t) => {
  const secret = secretOf('tokens', 'ä/b', 'value\n', '3');
  t.same(recordOf(secret), { table: 'tokens', key: 'ä/b', value: 'value\n' });
  t.match(secret.metadata.name, /^[a-z0-9-]{1,253}$/);
  t.not(secretName('a', 'bc'), secretName('ab', 'c'));
});

t.test('what only says that nothing has happened is written rarely, news of it at once again', async (t) => {
  const agent = (status: object): Resources['Agent'] => {
    const known = { state: 'ACTIVE', message: '', lastSeenTime: null, clockOffsetSeconds: 0, ...status };
    return { spec: { role: 'source' }, status: known, identity: {} } as Resources['Agent'];
  };
  const replication = (status: object): Resources['Replication'] =>
    ({ status: { conditions: [], recoveryPoint: null, usedBytes: 1, ...status }, requests: {} }) as never;
  const seen = { lastSeenTime: '2026-11-20T00:00:00.000Z' };
  t.ok(isStill('Agent', agent({}), agent(seen)));
  t.notOk(isStill('Agent', agent({}), agent({ ...seen, state: 'UNKNOWN' })));
  const later = { lastSyncTime: '2026-11-20T00:00:00.000Z', lagSeconds: 3 };
  t.ok(isStill('Replication', replication({}), replication(later)));
  const used = replication({ ...later, usedBytes: 2 });
  t.notOk(isStill('Replication', replication({}), used));
  t.ok(onlyFigures('Replication', replication({}), used));
  t.equal(stillAfterMs(1), 600_000);
  t.equal(stillAfterMs(2000), 2_000_000, 'one a second of all of them');

  const cache = objectCache(
    () => undefined,
    () => undefined,
  );
  const resource = {
    ...{ apiVersion: 'x', kind: 'ReplicationAgent', spec: { role: 'source' }, status: { state: 'ACTIVE' } },
    metadata: { name: 'a', uid: 'u', resourceVersion: '1', creationTimestamp: '2026-11-20T00:00:00Z' },
  } as unknown as CustomResource;
  cache.put('Agent', resource);
  cache.written('Agent', resource, 1000);
  const due = (beforeMs: number, stillBeforeMs: number): number => cache.due(beforeMs, stillBeforeMs).length;
  cache.overlay('Agent', 'a', agent(seen), true);
  t.same([cache.waiting, due(2000, 500), due(2000, 2000)], [1, 0, 1]);
  cache.overlay('Agent', 'a', agent({ ...seen, version: '2' }), false);
  cache.overlay('Agent', 'a', agent({ ...seen, version: '2' }), true);
  t.equal(due(2000, 500), 1, 'what came before is still to be written');
  cache.written('Agent', resource, 3000, 3);
  t.same([cache.waiting, due(9000, 9000)], [0, 0]);
  cache.overlay('Agent', 'a', agent(seen), true);
  t.equal(due(9000, 500), 0);
});

t.test('what was written is what is read, also when the watch tells of it before the answer is there', async (t) => {
  const told: unknown[] = [];
  const cache = objectCache(
    ({ object }) => told.push((object as Resources['Agent']).status.state),
    () => undefined,
  );
  const version = (resourceVersion: string, state: string): CustomResource => ({
    ...{ apiVersion: 'x', kind: 'ReplicationAgent', spec: { role: 'source' } },
    metadata: { name: 'a', uid: 'u', resourceVersion, creationTimestamp: '2026-11-20T00:00:00Z' },
    status: { accepted: true, state },
  });
  const overlay = (lastSeenTime: string): void => {
    const object = cache.get('Agent', 'a') as Resources['Agent'];
    object.status.lastSeenTime = lastSeenTime;
    cache.overlay('Agent', 'a', object, true);
  };
  cache.put('Agent', version('1', 'CONN FAILED'));
  overlay('2026-11-20T00:00:00.000Z');
  cache.put('Agent', version('2', 'ACTIVE'));
  cache.written('Agent', version('2', 'ACTIVE'), 1000);
  t.equal(cache.get('Agent', 'a')?.status.state, 'ACTIVE');
  t.equal(cache.waiting, 0);
  t.equal(told.at(-1), 'ACTIVE', 'watches hear of it');
  overlay('2026-11-20T00:00:01.000Z');
  overlay('2026-11-20T00:00:02.000Z');
  cache.written('Agent', version('3', 'ACTIVE'), 2000, 2);
  t.equal(cache.get('Agent', 'a')?.status.lastSeenTime, '2026-11-20T00:00:02.000Z', 'newer figures stay');
  t.equal(cache.waiting, 1);
});
