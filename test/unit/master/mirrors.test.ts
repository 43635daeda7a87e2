import { mkdir, readdir, writeFile } from 'node:fs/promises';
import t from 'tap';
import { mirrors } from '../../../master/mirrors.ts';
import type { Disk } from '../../../proto/effects.ts';
import { systemClock, systemDisk, systemEffects } from '../../../proto/system.ts';
import { addClass, addReplication, until, world } from './controllers.ts';

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
