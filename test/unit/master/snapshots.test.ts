import t from 'tap';
import type { Mirrors } from '../../../master/mirrors.ts';
import { runSnapshots } from '../../../master/snapshots.ts';
import type { Point } from '../../../master/replica/horizon.ts';
import type { VolumeMode } from '../../../proto/wire.ts';
import { systemClock } from '../../../proto/system.ts';
import { addReplication, addSnapshot, until, world } from './controllers.ts';

const point = { sequence: 3 } as Point;

async function start(t: Parameters<typeof world>[0], replica: object | undefined, mode: VolumeMode = 'Block') {
  const made = await world(t);
  const { store } = made;
  const open = { uid: '' };
  const mirrors = {
    replica: (uid: string) => (uid === open.uid ? replica : undefined),
    view: () => ({ sequence: 3 }),
  } as unknown as Mirrors;
  const metrics = { onSnapshot: () => undefined };
  open.uid = addReplication(store, 'open', 'local', mode).metadata.uid;
  addReplication(store, 'shut');
  const run = (): void =>
    made.run(runSnapshots({ store, clock: systemClock, mirrors, events: made.emitter, metrics }, made.signal));
  return { ...made, run };
}

t.test('a snapshot that is deleted while it is made is deleted once it is made', async (t) => {
  const deleted: string[] = [];
  let finish: (() => void) | undefined;
  const { store, run } = await start(t, {
    newestPoint: point,
    snapshotPoint: () => undefined,
    snapshotBytes: () => 1,
    snapshot: () => new Promise<void>((resolve) => (finish = resolve)),
    deleteSnapshot: async (name: string) => void deleted.push(name),
  });
  const key = addSnapshot(store, 'open', 'one', 'Creating');
  run();
  await until('it is being made', () => finish);
  store.update('Snapshot', key, ({ status }) => (status.state = 'Deleting'));
  finish?.();
  await until('it is gone', () => store.get('Snapshot', key) === undefined);
  t.same(deleted, ['one']);
});

t.test('a snapshot that cannot be deleted says why and is tried again', async (t) => {
  let tries = 0;
  const { store, events, run } = await start(t, {
    deleteSnapshot: async () => {
      if (++tries < 2) throw new Error('EIO: the disk is ill');
    },
  });
  const key = addSnapshot(store, 'open', 'one', 'Deleting');
  run();
  await until('it says why', () => store.get('Snapshot', key)?.status.message?.includes('the disk is ill'));
  await until('it is gone', () => store.get('Snapshot', key) === undefined);
  t.equal(tries, 2);
  t.match(events, [{ code: 'StorageTrouble', object: `Snapshot/${key}` }, { code: 'SnapshotDeleted' }]);
});

t.test('snapshots of a replica that never opens keep nobody else waiting', async (t) => {
  const { store, run } = await start(t, {
    newestPoint: point,
    snapshotPoint: () => point,
    snapshotBytes: () => 1,
  });
  run();
  for (let i = 0; i < 60; i++) addSnapshot(store, 'shut', `stuck-${i}`, 'Creating');
  for (let i = 0; i < 100; i++) addSnapshot(store, 'open', `one-${i}`, 'Creating');
  await until('all of the open one are made', () =>
    store
      .list('Snapshot')
      .filter(({ spec }) => spec.replication === 'open')
      .every(({ status }) => status.state === 'Ready'),
  );
  t.equal(store.list('Snapshot').filter(({ status }) => status.state === 'Creating').length, 60);
});

for (const [mode, sizeBytes] of [
  ['Block', 7],
  ['Filesystem', null],
] as const) {
  t.test(
    `of a ${mode} volume the size of a snapshot is ${sizeBytes === null ? 'not known' : 'its bytes'}`,
    async (t) => {
      const replica = { newestPoint: point, snapshotPoint: () => point, snapshotBytes: () => 7 };
      const { store, run } = await start(t, replica, mode);
      const key = addSnapshot(store, 'open', 'one', 'Creating');
      run();
      await until('it is ready', () => store.get('Snapshot', key)?.status.state === 'Ready');
      t.equal(store.get('Snapshot', key)?.status.sizeBytes, sizeBytes);
    },
  );
}
