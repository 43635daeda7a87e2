import t from 'tap';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openDatabase } from '../../../master/database.ts';
import { asTheyAre, derived, find } from '../../../master/derived.ts';
import type { Replication } from '../../../master/resources.ts';
import { sqliteStore } from '../../../master/store-sqlite.ts';
import { StoreConflict } from '../../../master/store.ts';
import type { Change, Draft, Store } from '../../../master/store.ts';

const random = { bytes: (length: number) => randomBytes(length) };
let nowMs = Date.parse('2026-11-20T00:00:00.000Z');
const clock = { nowMs: () => nowMs };

function open(path = ':memory:', maxChanges?: number): Store {
  return sqliteStore(openDatabase(path), { clock, random, ...(maxChanges === undefined ? {} : { maxChanges }) });
}
function draft(name: string, labels?: Record<string, string>): Draft<'StorageClass'> {
  return {
    apiVersion: 'replicator.cdm.datacommand.co.kr/v1',
    kind: 'StorageClass',
    metadata: { name, ...(labels === undefined ? {} : { labels }) },
    spec: { driver: 'directory', parameters: { path: `/data/${name}` } },
    status: { capacityBytes: null, usedBytes: null, reflink: null, conditions: [] },
  };
}
function conflict(reason: StoreConflict['reason'], work: () => unknown): void {
  try {
    work();
    t.fail(`expected StoreConflict ${reason}`);
  } catch (error) {
    t.ok(error instanceof StoreConflict && error.reason === reason, `refused as ${reason}`);
  }
}
async function take(changes: AsyncIterable<Change>, count: number): Promise<Change[]> {
  const taken: Change[] = [];
  for await (const change of changes) {
    taken.push(change);
    if (taken.length === count) break;
  }
  return taken;
}

t.test('an object is created, read, changed and deleted, each with a new version', async (t) => {
  const store = open();
  const made = store.create('StorageClass', 'local', draft('local'));
  t.match(made, { kind: 'StorageClass', metadata: { name: 'local', generation: 1, resourceVersion: '1' } });
  t.match(made.metadata.uid, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  t.equal(made.metadata.creationTimestamp, '2026-11-20T00:00:00.000Z');
  t.same(store.get('StorageClass', 'local'), made);

  const status = store.update('StorageClass', 'local', (object) => (object.status.usedBytes = 5));
  t.match(status.metadata, { generation: 1, resourceVersion: '2' }, 'status leaves generation');
  const spec = store.update('StorageClass', 'local', (object) => (object.spec.parameters.path = '/other'));
  t.match(spec.metadata, { generation: 2, resourceVersion: '3' }, 'spec moves generation');
  const same = store.update('StorageClass', 'local', (object) => (object.status.usedBytes = 5));
  t.equal(same.metadata.resourceVersion, '3', 'no change writes nothing');
  t.equal(store.version(), 3);

  const forged = store.update('StorageClass', 'local', (object) => {
    object.metadata.uid = 'mine';
    object.metadata.generation = 99;
    object.metadata.displayName = 'Local';
  });
  t.match(forged.metadata, { uid: made.metadata.uid, generation: 2, displayName: 'Local' });

  t.equal(store.delete('StorageClass', 'local')?.metadata.resourceVersion, '5');
  t.equal(store.get('StorageClass', 'local'), undefined);
  t.equal(store.delete('StorageClass', 'local'), undefined);
  const again = store.create('StorageClass', 'local', draft('local'));
  t.not(again.metadata.uid, made.metadata.uid, 'a name used again is another object');
  store.close();
});

t.test('conflicts: name taken, absent, another version', async () => {
  const store = open();
  store.create('StorageClass', 'a', draft('a'));
  conflict('exists', () => store.create('StorageClass', 'a', draft('a')));
  conflict('absent', () => store.update('StorageClass', 'b', () => {}));
  conflict('version', () => store.update('StorageClass', 'a', () => {}, '7'));
  conflict('version', () => store.delete('StorageClass', 'a', '7'));
  store.delete('StorageClass', 'a', '1');
  store.close();
});

t.test('a status that has moved on is no conflict, any other change is', async (t) => {
  const store = open(':memory:', 3);
  store.create('StorageClass', 'a', draft('a'));
  store.update('StorageClass', 'a', ({ status }) => (status.usedBytes = 1));
  t.equal(
    store.update('StorageClass', 'a', ({ metadata }) => (metadata.labels = { x: '1' }), '1').metadata.resourceVersion,
    '3',
  );
  conflict('version', () => store.update('StorageClass', 'a', () => {}, '2'));
  for (const usedBytes of [2, 3, 4]) store.update('StorageClass', 'a', ({ status }) => (status.usedBytes = usedBytes));
  conflict('version', () => store.update('StorageClass', 'a', () => {}, '3'));
  store.delete('StorageClass', 'a', '5');
  store.create('StorageClass', 'a', draft('a'));
  conflict('version', () => store.update('StorageClass', 'a', () => {}, '6'));
  store.close();
});

t.test('what is handed out is a copy, and a change that throws changes nothing', async (t) => {
  const store = open();
  store.create('StorageClass', 'a', draft('a'));
  const copy = store.list('StorageClass')[0];
  if (copy !== undefined) copy.spec.parameters.path = '/else';
  t.equal(store.get('StorageClass', 'a')?.spec.parameters.path, '/data/a');
  t.throws(() =>
    store.update('StorageClass', 'a', (object) => {
      object.spec.parameters.path = '/else';
      throw new Error('no');
    }),
  );
  t.equal(store.get('StorageClass', 'a')?.spec.parameters.path, '/data/a');
  t.equal(store.version(), 1);
  store.close();
});

t.test('objects, records, versions and the change log are there after the process ended without closing', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'store-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'master.db');
  const first = open(path);
  first.create('StorageClass', 'a', draft('a'));
  first.putRecord('tokens', 'x', 'one');
  first.putRecord('tokens', 'y', 'two');
  first.putRecord('tokens', 'x', undefined);
  first.update('StorageClass', 'a', (object) => (object.status.usedBytes = 5));
  // No close: another connection sees what a crash would leave.
  const second = open(path);
  t.equal(statSync(path).mode & 0o777, 0o600);
  t.equal(second.get('StorageClass', 'a')?.status.usedBytes, 5);
  t.same(second.listRecords('tokens'), [{ key: 'y', value: 'two' }]);
  t.equal(second.getRecord('tokens', 'y'), 'two');
  t.equal(second.getRecord('tokens', 'x'), undefined);
  t.equal(second.version(), 2);
  second.delete('StorageClass', 'a');
  const changes = await take(second.watch({ since: 0, signal: new AbortController().signal }), 3);
  t.same(
    changes.map(({ type, version }) => [type, version]),
    [
      ['ADDED', 1],
      ['MODIFIED', 2],
      ['DELETED', 3],
    ],
  );
  second.close();
  first.close();
});

t.test('a file of version 1 goes on as it is', async (t) => {
  const path = join(t.testdir(), 'master.db');
  const first = openDatabase(path);
  first.exec('ALTER TABLE changes DROP COLUMN group_before');
  first.exec("INSERT INTO changes VALUES (7, 'ADDED', 'Agent', 'a', '{}', NULL)");
  first.exec('PRAGMA user_version = 1');
  first.close();
  for (let again = 0; again < 2; again++) {
    const store = open(path);
    const [change] = await take(store.watch({ since: 6, signal: new AbortController().signal }), 1);
    t.match(change, { version: 7, key: 'a' });
    t.equal(change?.groupBefore, undefined);
    store.close();
  }
});

t.test('a file of a newer version is refused', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'store-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'master.db');
  const database = openDatabase(path);
  database.exec('PRAGMA user_version = 99');
  database.close();
  t.throws(() => openDatabase(path), /newer version/);
});

t.test('a watch delivers each change once, in order, from the call on', async (t) => {
  const store = open();
  const stop = new AbortController();
  store.create('StorageClass', 'before', draft('before'));
  const changes = store.watch({ kinds: ['StorageClass'], signal: stop.signal });
  const count = 300;
  for (let index = 0; index < count / 2; index++) store.create('StorageClass', `a${index}`, draft(`a${index}`));
  const taking = take(changes, count);
  for (let index = count / 2; index < count; index++) {
    if (index % 10 === 0) await new Promise(setImmediate);
    store.create('StorageClass', `a${index}`, draft(`a${index}`));
  }
  t.same(
    (await taking).map((change) => change.version),
    Array.from({ length: count }, (_, index) => index + 2),
  );
  stop.abort();
  store.close();
});

t.test('a watch ends with its signal and with the store', async (t) => {
  const store = open();
  const stop = new AbortController();
  const aborted = take(store.watch({ signal: stop.signal }), 1);
  const closed = take(store.watch({ signal: new AbortController().signal }), 1);
  stop.abort();
  t.same(await aborted, []);
  store.close();
  t.same(await closed, []);
});

t.test('a watch from beyond the history is expired, at the start and when a reader falls behind', async (t) => {
  const store = open(':memory:', 100);
  const signal = new AbortController().signal;
  conflict('expired', () => store.watch({ since: 5, signal }));
  store.create('StorageClass', 'a', draft('a'));
  const slow = store.watch({ since: 0, signal })[Symbol.asyncIterator]();
  await slow.next();
  for (let index = 0; index < 200; index++)
    store.update('StorageClass', 'a', (object) => (object.status.usedBytes = index));
  conflict('expired', () => store.watch({ since: 100, signal }));
  t.equal((await take(store.watch({ since: 101, signal }), 100)).at(-1)?.version, 201, 'the bound itself is whole');
  await t.rejects(slow.next(), /not known here/);
  store.close();
});

t.test('a change tells the labels before, when they moved', async (t) => {
  const store = open();
  store.create('StorageClass', 'a', draft('a', { tier: 'one' }));
  store.update('StorageClass', 'a', (object) => (object.metadata.labels = { tier: 'two' }));
  store.update('StorageClass', 'a', (object) => (object.status.usedBytes = 1));
  const changes = await take(store.watch({ since: 0, signal: new AbortController().signal }), 3);
  t.same(
    changes.map((change) => change.labelsBefore),
    [undefined, { tier: 'one' }, undefined],
  );
  nowMs += 1;
  store.close();
});

t.test('what one agent or group has is found without looking at what the others have', (t) => {
  const store = open();
  const others = 1000;
  const source = (number: number) => ({ agent: `node-${number % 100}`, path: `/dev/v${number}`, volumeMode: 'Block' });
  store.batch(() => {
    for (let number = 0; number < others; number++) {
      const spec = {
        source: source(number),
        group: `group-${number % 100}`,
        hooks: { beforeFreeze: ['x'.repeat(4000)] },
      };
      const one = { ...draft(`r-${number}`), kind: 'Replication', spec } as unknown as Draft<'Replication'>;
      store.create('Replication', `r-${number}`, one);
    }
  });
  const took = (work: () => unknown): number => {
    const startMs = performance.now();
    work();
    return performance.now() - startMs;
  };
  const names = (list: { metadata: { name: string } }[]): string[] => list.map(({ metadata }) => metadata.name);
  t.same(names(store.replicationsOf('node-7')).length, others / 100);
  t.same(names(store.replicationsIn('group-7')), names(store.replicationsOf('node-7')));
  // A hundredth of all: ten times that is far less than all, unless each look reads all. The quickest of several, as others use the machine.
  const least = (work: () => unknown): number => Math.min(...Array.from({ length: 7 }, () => took(work)));
  const all = least(() => store.list('Replication'));
  for (const look of [() => store.replicationsOf('node-7'), () => store.replicationsIn('group-7')])
    t.ok(least(() => { for (let round = 0; round < 5; round++) look(); }) < all, 'five looks take less than reading all'); // prettier-ignore
  store.close();
  t.end();
});

t.test('what loops look for is made anew when somebody has decided something, not when a status moves on', (t) => {
  const store = open();
  const make = (name: string, exclude: string[] = []): Replication => {
    const spec = { source: { agent: 'a', path: `/${name}`, exclude } };
    const one = { ...draft(name), kind: 'Replication', spec, requests: { sync: 0 } } as unknown as Draft<'Replication'>;
    return store.create('Replication', name, one);
  };
  let asked = 0;
  const excluding = derived(store, (all) => {
    asked += 1;
    return all.filter(({ spec }) => spec.source.exclude.length > 0).map(find);
  });
  const names = (): string[] => asTheyAre(store, excluding()).map(({ metadata }) => metadata.name);
  make('a', ['x']);
  make('b');
  t.same(names(), ['a']);
  const update = (name: string, change: (object: Replication) => void) => store.update('Replication', name, change);
  update('a', ({ status }) => (status.usedBytes = 7));
  t.same(asTheyAre(store, excluding())[0]?.status.usedBytes, 7, 'with the status of now');
  t.equal(asked, 1);
  update('b', ({ spec }) => (spec.source.exclude = ['y']));
  t.same(names(), ['a', 'b']);
  update('b', ({ requests }) => (requests.sync = 1));
  update('b', ({ metadata }) => (metadata.labels = { app: 'shop' }));
  names();
  t.equal(asked, 3, 'requests and labels count, two at once as one');
  const before = excluding();
  store.delete('Replication', 'a');
  make('a', ['z']);
  t.same(asTheyAre(store, before).map(({ metadata }) => metadata.name), ['b'], 'another one of the name is not it'); // prettier-ignore
  t.same(names(), ['a', 'b']);
  store.close();
  t.end();
});
