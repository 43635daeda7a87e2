import t from 'tap';
import { readFileSync } from 'node:fs';
import { parse } from 'yaml';
import { decode, encode, encodeStatus, keyOf, nameOf, type CustomResource } from '../../../master/kubernetes/codec.ts';
import { definition, fileOf } from '../../../master/kubernetes/crd.ts';
import { allKinds } from '../../../master/kubernetes/kinds.ts';
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
