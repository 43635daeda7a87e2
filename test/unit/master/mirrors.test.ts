import { mkdir, readdir, writeFile } from 'node:fs/promises';
import t from 'tap';
import { mirrors } from '../../../master/mirrors.ts';
import type { Disk } from '../../../proto/effects.ts';
import { systemClock, systemDisk, systemEffects } from '../../../proto/system.ts';
import { addClass, addReplication, addSnapshot, until, world } from './controllers.ts';

const foreign = 'shop-data-pvc-0d5c7f7e-9a57-4c1c-8a53-3f1f3f9f3a11';

async function start(t: Parameters<typeof world>[0], disk: Disk = systemDisk) {
  const made = await world(t);
  const running = mirrors({
    store: made.store,
    // Ten times as fast, where only differences count: what takes 10 s takes one.
    effects: { ...systemEffects, disk, clock: { ...systemClock, monotonicMs: () => systemClock.monotonicMs() * 10 } },
    events: made.emitter,
    metrics: {
      onReport: () => undefined,
      onSync: () => undefined,
      onVerify: () => undefined,
      onWritten: () => undefined,
    },
    notify: () => undefined,
    connected: () => false,
  });
  return { ...made, running };
}

t.test('only replicas that this master made are removed from a folder', async (t) => {
  const { store, folder, running, run, signal } = await start(t);
  const path = `${folder}/class`;
  await mkdir(`${path}/${foreign}`, { recursive: true });
  await writeFile(`${path}/${foreign}/precious`, 'x');
  addClass(store, 'local', path);
  run(running.run(signal));
  const { uid } = addReplication(store, 'one').metadata;
  await until('its replica is open', () => running.replica(uid));
  t.strictSame((await readdir(path)).sort(), [`one-${uid}`, foreign].sort());
  store.delete('Replication', 'one');
  await until('its replica is removed', async () => !(await readdir(path)).includes(`one-${uid}`));
  t.strictSame(await readdir(`${path}/${foreign}`), ['precious']);
});

t.test('a replica whose replication was deleted just before a stop is removed at the next start', async (t) => {
  const { store, folder, running, run, signal } = await start(t);
  const uid = '7d1e2a34-55aa-4d2b-9d7e-0123456789ab';
  await mkdir(`${folder}/class/one-${uid}`, { recursive: true });
  addClass(store, 'local', `${folder}/class`);
  store.putRecord('made-replicas', uid, 'one');
  run(running.run(signal));
  await until('it is removed', async () => (await readdir(`${folder}/class`)).length === 0);
});

t.test('storage that hangs keeps no other replication waiting', async (t) => {
  let release = (): void => undefined;
  const hung = new Promise<void>((resolve) => (release = resolve));
  const disk: Disk = {
    ...systemDisk,
    mkdir: async (path) => {
      if (path.includes('/hung/')) await hung;
      await systemDisk.mkdir(path);
    },
  };
  const { store, folder, running, run, signal } = await start(t, disk);
  t.teardown(() => release());
  addClass(store, 'hung', `${folder}/hung`);
  addClass(store, 'local', `${folder}/class`);
  addReplication(store, 'stuck', 'hung');
  addReplication(store, 'one');
  run(running.run(signal));
  const state = (): unknown => store.get('Replication', 'one')?.status.phase;
  await until('the other is open', () => running.replica(store.get('Replication', 'one')?.metadata.uid ?? ''));
  store.update('Replication', 'one', ({ spec }) => (spec.paused = true));
  await until('its status moves on', () => state() === 'Paused');
  await until('it is looked at every second', () => {
    const degraded = store.get('Replication', 'one')?.status.conditions.find(({ type }) => type === 'Degraded');
    return degraded?.reason === 'AgentGone'; // by the clock alone
  });
  release();
});

t.test('force is for the resync that it was given with', async (t) => {
  const { store, folder, running, run, signal } = await start(t);
  addClass(store, 'local', `${folder}/class`);
  const { uid } = addReplication(store, 'one').metadata;
  run(running.run(signal));
  await until('its replica is open', () => running.replica(uid));
  store.update('Replication', 'one', ({ requests }) => Object.assign(requests, { resync: 1, force: true }));
  t.match(running.assignmentsFor('node-a'), [{ resyncRequest: 1, force: true }]);
  store.putRecord('requests-done', uid, JSON.stringify({ sync: 0, resync: 1, verify: 0 }));
  t.match(running.assignmentsFor('node-a'), [{ resyncRequest: 0, force: false }]);
});

t.test('at rest a second passes without a look into the store, however many replications there are', async (t) => {
  const { store, folder, emitter, run, signal } = await world(t);
  let reads = 0;
  const counted: typeof store = {
    ...store,
    get: (kind, key) => (reads++, store.get(kind, key)),
    list: (kind) => (reads++, store.list(kind)),
    snapshotsOf: (name) => (reads++, store.snapshotsOf(name)),
    getRecord: (table, key) => (reads++, store.getRecord(table, key)),
  };
  let seconds = 0;
  let nowMs = 1e6;
  const clock = {
    ...systemClock,
    nowMs: () => systemClock.nowMs() + nowMs,
    monotonicMs: () => nowMs,
    async sleep(ms: number, aborted?: AbortSignal) {
      // Time passes when what runs has nothing left to do.
      await systemClock.sleep(20, aborted);
      seconds += ms / 1000;
      nowMs += ms;
    },
  };
  const count = 100;
  addClass(store, 'local', `${folder}/class`);
  for (let i = 0; i < count; i++) addReplication(store, `r-${i}`);
  const running = mirrors({
    store: counted,
    effects: { ...systemEffects, clock },
    events: emitter,
    metrics: {
      onReport: () => undefined,
      onSync: () => undefined,
      onVerify: () => undefined,
      onWritten: () => undefined,
    },
    notify: () => undefined,
    connected: () => true,
  });
  run(running.run(signal));
  await until('all are open and settled', () => {
    const all = store.list('Replication');
    return all.every(({ metadata, status }) => running.replica(metadata.uid) && status.conditions.length > 0);
  });
  // All are looked at in one moment, and so each is a minute later.
  for (const { metadata } of store.list('Replication'))
    store.update('Replication', metadata.name, ({ spec }) => (spec.rpoSeconds += 1));
  /** Reads in 20 s. */
  const readsIn20 = async (): Promise<number> => {
    const [from, before] = [seconds, reads];
    await until('20 s have passed', () => seconds - from >= 20);
    return reads - before;
  };
  // Beside them each is looked at once a minute.
  let quiet = Infinity;
  await until('it is quiet', async () => (quiet = await readsIn20()) === 0);
  t.equal(quiet, 0);

  addSnapshot(store, 'r-7', 's', 'Ready');
  await until('a snapshot is seen', () => store.get('Replication', 'r-7')?.status.latestImage === 's');
  const before = reads;
  store.update('Replication', 'r-8', ({ spec }) => (spec.paused = true));
  await until('a change is seen', () => store.get('Replication', 'r-8')?.status.phase === 'Paused');
  t.ok(reads - before < count, `one change costs ${reads - before} reads`);
});
