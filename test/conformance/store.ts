/**
 * What every store must do, whatever it stands on: run by store.test.ts over SQLite and over a real Kubernetes API.
 * `open` answers an empty store; versions and times are the store's own, so only their order is looked at.
 */
import type { Test } from 'tap';
import { StoreConflict } from '../../master/store.ts';
import type { Change, Draft, Store } from '../../master/store.ts';
import { apiVersion, type ReplicationSpec } from '../../master/resources.ts';
import { draft } from '../../master/api/replications.ts';

export function snapshotDraft(name: string, labels?: Record<string, string>): Draft<'Snapshot'> {
  return {
    apiVersion,
    kind: 'Snapshot',
    metadata: { name, ...(labels === undefined ? {} : { labels }) },
    spec: { replication: 'orders', lockedUntil: null, pinned: false },
    status: { state: 'Creating', message: null, point: null, sizeBytes: null, readyTime: null, schedule: null },
  };
}
const key = (name: string): string => `orders/${name}`;
const make = (store: Store, name: string, labels?: Record<string, string>) =>
  store.create('Snapshot', key(name), snapshotDraft(name, labels));

export async function take(changes: AsyncIterable<Change>, count: number): Promise<Change[]> {
  const taken: Change[] = [];
  for await (const change of changes) {
    taken.push(change);
    if (taken.length === count) break;
  }
  return taken;
}

export function storeSuite(t: Test, what: string, open: () => Promise<Store>): void {
  const conflict = (t: Test, reason: StoreConflict['reason'], work: () => unknown): void => {
    try {
      work();
      t.fail(`expected StoreConflict ${reason}`);
    } catch (error) {
      t.ok(error instanceof StoreConflict && error.reason === reason, `refused as ${reason}: ${String(error)}`);
    }
  };

  void t.test(`${what}: an object is created, read, changed and deleted, each with a new version`, async (t) => {
    const store = await open();
    const made = make(store, 'a');
    t.match(made, { kind: 'Snapshot', metadata: { name: 'a', generation: 1 } });
    t.match(made.metadata.uid, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
    t.match(made.metadata.creationTimestamp, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
    t.same(store.get('Snapshot', key('a')), made);
    t.same(made.status, snapshotDraft('a').status, 'null is null again');

    const versions = [made.metadata.resourceVersion];
    const status = store.update('Snapshot', key('a'), (object) => (object.status.sizeBytes = 5));
    t.match(status, { metadata: { generation: 1 }, status: { sizeBytes: 5 } }, 'status leaves generation');
    versions.push(status.metadata.resourceVersion);
    const spec = store.update('Snapshot', key('a'), (object) => (object.spec.pinned = true));
    t.match(spec, { metadata: { generation: 2 }, spec: { pinned: true }, status: { sizeBytes: 5 } });
    versions.push(spec.metadata.resourceVersion);
    const same = store.update('Snapshot', key('a'), (object) => (object.status.sizeBytes = 5));
    t.equal(same.metadata.resourceVersion, spec.metadata.resourceVersion, 'no change writes nothing');
    const both = store.update('Snapshot', key('a'), (object) => {
      object.spec.pinned = false;
      object.status.state = 'Ready';
    });
    t.match(both, { metadata: { generation: 3 }, spec: { pinned: false }, status: { state: 'Ready', sizeBytes: 5 } });
    versions.push(both.metadata.resourceVersion);
    t.equal(new Set(versions).size, versions.length, 'each write has a version of its own');

    const forged = store.update('Snapshot', key('a'), (object) => {
      object.metadata.uid = 'mine';
      object.metadata.generation = 99;
      object.metadata.displayName = 'First';
      object.metadata.annotations = { note: 'one' };
    });
    t.match(forged.metadata, { uid: made.metadata.uid, generation: 3, displayName: 'First' });
    t.same(forged.metadata.annotations, { note: 'one' });
    const cleared = store.update('Snapshot', key('a'), ({ metadata }) => {
      delete metadata.displayName;
      delete metadata.annotations;
    });
    t.notOk('displayName' in cleared.metadata || 'annotations' in cleared.metadata, 'what is taken away is gone');

    t.equal(store.delete('Snapshot', key('a'))?.metadata.uid, made.metadata.uid);
    t.equal(store.get('Snapshot', key('a')), undefined);
    t.equal(store.delete('Snapshot', key('a')), undefined);
    t.not(make(store, 'a').metadata.uid, made.metadata.uid, 'a name used again is another object');
    t.same(
      store.list('Snapshot').map(({ metadata }) => metadata.name),
      ['a'],
    );
    store.close();
  });

  void t.test(`${what}: conflicts: name taken, absent, another version`, async (t) => {
    const store = await open();
    const { resourceVersion } = make(store, 'a').metadata;
    conflict(t, 'exists', () => make(store, 'a'));
    conflict(t, 'absent', () => store.update('Snapshot', key('b'), () => {}));
    conflict(t, 'version', () => store.update('Snapshot', key('a'), () => {}, '7777'));
    conflict(t, 'version', () => store.delete('Snapshot', key('a'), '7777'));
    store.delete('Snapshot', key('a'), resourceVersion);
    t.equal(store.get('Snapshot', key('a')), undefined);
    store.close();
  });

  void t.test(`${what}: a status that has moved on is no conflict, any other change is`, async (t) => {
    const store = await open();
    const first = make(store, 'a').metadata.resourceVersion;
    const second = store.update('Snapshot', key('a'), ({ status }) => (status.sizeBytes = 1)).metadata.resourceVersion;
    store.update('Snapshot', key('a'), ({ metadata }) => (metadata.labels = { x: '1' }), first);
    t.same(store.get('Snapshot', key('a'))?.metadata.labels, { x: '1' });
    conflict(t, 'version', () => store.update('Snapshot', key('a'), () => {}, second));
    const now = store.get('Snapshot', key('a'))?.metadata.resourceVersion ?? '';
    store.delete('Snapshot', key('a'), now);
    make(store, 'a');
    conflict(t, 'version', () => store.update('Snapshot', key('a'), () => {}, now));
    store.close();
  });

  void t.test(`${what}: what is handed out is a copy, and a change that throws changes nothing`, async (t) => {
    const store = await open();
    const { resourceVersion } = make(store, 'a').metadata;
    const copy = store.list('Snapshot')[0];
    if (copy !== undefined) copy.spec.pinned = true;
    t.equal(store.get('Snapshot', key('a'))?.spec.pinned, false);
    t.throws(() =>
      store.update('Snapshot', key('a'), (object) => {
        object.spec.pinned = true;
        throw new Error('no');
      }),
    );
    t.match(store.get('Snapshot', key('a')), { spec: { pinned: false }, metadata: { resourceVersion } });
    store.close();
  });

  void t.test(`${what}: records are kept by table and key`, async (t) => {
    const store = await open();
    store.putRecord('tokens', 'x', 'one');
    store.putRecord('tokens', 'y', 'two');
    store.putRecord('others', 'x', 'else');
    store.putRecord('tokens', 'x', 'ä/new\n');
    t.equal(store.getRecord('tokens', 'x'), 'ä/new\n');
    t.equal(store.getRecord('tokens', 'z'), undefined);
    t.same(store.listRecords('tokens'), [
      { key: 'x', value: 'ä/new\n' },
      { key: 'y', value: 'two' },
    ]);
    store.putRecord('tokens', 'x', undefined);
    store.putRecord('tokens', 'x', undefined);
    t.same(store.listRecords('tokens'), [{ key: 'y', value: 'two' }]);
    t.same(store.listRecords('others'), [{ key: 'x', value: 'else' }]);
    store.putRecord('tokens', 'x', 'again');
    t.equal(store.getRecord('tokens', 'x'), 'again');
    store.close();
  });

  void t.test(`${what}: a watch delivers each change once, in order, from the call on`, async (t) => {
    const store = await open();
    const stop = new AbortController();
    make(store, 'before');
    const since = store.version();
    const changes = store.watch({ kinds: ['Snapshot'], signal: stop.signal });
    for (let index = 0; index < 10; index++) make(store, `a${index}`);
    const taking = take(changes, 20);
    for (let index = 10; index < 20; index++) {
      if (index % 5 === 0) await new Promise(setImmediate);
      make(store, `a${index}`);
    }
    const taken = await taking;
    t.same(
      taken.map((change) => [change.type, change.key]),
      Array.from({ length: 20 }, (_, index) => ['ADDED', key(`a${index}`)]),
    );
    const versions = taken.map((change) => change.version);
    t.ok(
      versions.every((version, index) => version > (versions[index - 1] ?? since)),
      'versions grow',
    );
    const again = await take(store.watch({ since: versions[9] ?? 0, signal: stop.signal }), 10);
    t.same(
      again.map((change) => change.version),
      versions.slice(10),
      'and it can be resumed anywhere',
    );
    stop.abort();
    store.close();
  });

  void t.test(`${what}: a watch ends with its signal and with the store`, async (t) => {
    const store = await open();
    const stop = new AbortController();
    const aborted = take(store.watch({ signal: stop.signal }), 1);
    const closed = take(store.watch({ signal: new AbortController().signal }), 1);
    stop.abort();
    t.same(await aborted, []);
    store.close();
    t.same(await closed, []);
  });

  void t.test(`${what}: a watch from another life of the store is expired`, async (t) => {
    const store = await open();
    const signal = new AbortController().signal;
    conflict(t, 'expired', () => store.watch({ since: store.version() + 5, signal }));
    store.close();
  });

  void t.test(`${what}: a change tells its type, and the labels before when they moved`, async (t) => {
    const store = await open();
    const since = store.version();
    make(store, 'a', { tier: 'one' });
    store.update('Snapshot', key('a'), (object) => (object.metadata.labels = { tier: 'two' }));
    store.update('Snapshot', key('a'), (object) => (object.status.sizeBytes = 1));
    store.delete('Snapshot', key('a'));
    const changes = await take(store.watch({ since, signal: new AbortController().signal }), 4);
    t.same(
      changes.map((change) => [change.type, change.labelsBefore]),
      [
        ['ADDED', undefined],
        ['MODIFIED', { tier: 'one' }],
        ['MODIFIED', undefined],
        ['DELETED', undefined],
      ],
    );
    store.close();
  });

  void t.test(`${what}: a change tells the group of a replication before, when it moved`, async (t) => {
    const store = await open();
    const since = store.version();
    const spec: ReplicationSpec = {
      source: { agent: 'a', path: '/dev/a', volumeMode: 'Block', include: [], exclude: [] },
      ...{ target: { storageClass: 'local' }, replicationState: 'primary', trigger: { continuous: true } },
      ...{ copyMethod: 'Direct', rpoSeconds: 30, consistency: null, maxFreezeMs: 500, snapshotSchedules: [] },
      ...{ journalSeconds: 3600, maxJournalBytes: 2 ** 36, compression: 'auto', paused: false },
      ...{ bandwidthBytesPerSecond: 0, readBytesPerSecond: 0 },
    };
    store.create('Replication', 'moves', draft({ metadata: { name: 'moves' } }, spec));
    for (const group of ['one', 'two', 'two', undefined])
      store.update('Replication', 'moves', (object) => {
        if (group === undefined) delete object.spec.group;
        else object.spec.group = group;
        object.spec.rpoSeconds += 1;
      });
    const changes = await take(store.watch({ kinds: ['Replication'], since, signal: new AbortController().signal }), 5);
    t.same(
      changes.map((change) => change.groupBefore),
      [undefined, null, 'one', undefined, 'two'],
    );
    const names = (found: Iterable<{ metadata: { name: string } }>) => [...found].map(({ metadata }) => metadata.name);
    t.same(names(store.replicationsOf('a')), ['moves'], 'those of an agent');
    t.same(names(store.replicationsOf('b')), []);
    store.update('Replication', 'moves', ({ spec }) => void (spec.group = 'three'));
    t.same(
      [names(store.replicationsIn('three')), names(store.replicationsIn('two'))],
      [['moves'], []],
      'those of a group',
    );
    const revision = store.revision('Replication');
    for (const replication of ['moves', 'moves-not'])
      store.create('Snapshot', `${replication}/s`, {
        ...snapshotDraft('s'),
        spec: { replication, lockedUntil: null, pinned: false },
      });
    t.same(names(store.snapshotsOf('moves')), ['s'], 'snapshots of a replication');
    t.same(store.snapshotsOf('move'), []);
    t.equal(store.revision('Replication'), revision, 'other kinds have revisions of their own');
    store.batch(() => {
      for (const seconds of [7, 8])
        store.update('Replication', 'moves', ({ spec }) => void (spec.rpoSeconds = seconds));
    });
    t.not(store.revision('Replication'), revision);
    t.equal(store.get('Replication', 'moves')?.spec.rpoSeconds, 8);
    t.same([names(store.each('Replication', 'm')), names(store.each('Replication', 'moves'))], [['moves'], []]);
    store.close();
  });
}
