import { mkdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import t from 'tap';
import { recoveryDraft } from '../../../../master/api/recoveries.ts';
import type { Mirrors } from '../../../../master/mirrors.ts';
import { runRecoveries } from '../../../../master/recovery/loop.ts';
import { ask } from '../../../../master/recovery/machine.ts';
import { volumeEffects } from '../../../../master/recovery/volume.ts';
import { systemClock } from '../../../../proto/system.ts';
import { TreeIndex } from '../../../../master/replica/treeindex.ts';
import { commitOf } from '../../../../agent/treescan.ts';
import type { Recovery } from '../../../../master/resources.ts';
import { addRecovery, addReplication, until, world } from '../controllers.ts';

async function start(t: Parameters<typeof world>[0]) {
  const made = await world(t);
  const { store, folder } = made;
  const { uid } = addReplication(store, 'one').metadata;
  const point = { sequence: 1, sourceUs: 1, committedUs: 1, digest: Buffer.alloc(16, 0xab) };
  const replica = {
    newestPoint: point,
    points: [point],
    snapshotNames: [],
    recover: async (_point: unknown, path: string) => {
      await writeFile(path, 'the copy', { flag: 'wx' });
      return { verified: true, readBytes: 8 };
    },
    noteDrill: async () => undefined,
  };
  const mirrors = {
    replica: () => replica,
    view: () => ({ sequence: 1, digest: 'ab'.repeat(16) }),
    drilled: () => undefined,
  };
  const allow = { mayWriteRecovery: async (path: string) => path, mayRun: async (path: string) => path };
  const options = {
    store,
    clock: systemClock,
    events: made.emitter,
    metrics: { onRecovery: () => undefined },
    effects: volumeEffects({
      store,
      clock: systemClock,
      mirrors: mirrors as unknown as Mirrors,
      events: made.emitter,
      look: async () => undefined,
      restores: { run: () => Promise.reject(new Error('not asked')) },
      allow,
      folder,
      forks: folder,
    }),
  };
  const state = (name: string): string | undefined => store.get('Recovery', name)?.status.state;
  made.run(runRecoveries(options, made.signal));
  return { ...made, uid, state, path: `${folder}/copy.raw` };
}

t.test('a rollback removes its own copy', async (t) => {
  const { store, state, path } = await start(t);
  addRecovery(store, 'first', 'one', path);
  await until('it is complete', () => state('first') === 'Completed');
  store.update('Recovery', 'first', (one) => void ask(one, 'rollback', false));
  await until('it is rolled back', () => state('first') === 'RolledBack');
  await t.rejects(stat(path), { code: 'ENOENT' });
});

t.test('a rollback leaves alone what somebody else has put in the place of its copy', async (t) => {
  const { store, state, path } = await start(t);
  addRecovery(store, 'first', 'one', path);
  await until('it is complete', () => state('first') === 'Completed');
  await rm(path);
  addRecovery(store, 'second', 'one', path);
  await until('the second is complete', () => state('second') === 'Completed');
  store.update('Recovery', 'first', (one) => void ask(one, 'rollback', false));
  await until('the first is rolled back', () => state('first') === 'RolledBack');
  t.equal(await readFile(path, 'utf8'), 'the copy');
  t.match(store.get('Recovery', 'first')?.status.message, /left alone/);
  store.update('Recovery', 'second', (one) => void ask(one, 'rollback', false));
  await until('the second is rolled back', () => state('second') === 'RolledBack');
  await t.rejects(stat(path), { code: 'ENOENT' });
});

t.test('a copy that cannot be removed is told once, and tried again at leisure', async (t) => {
  const { store, events, folder, state } = await start(t);
  addRecovery(store, 'first', 'one', `${folder}/inner/copy.raw`);
  await until('it is complete', () => state('first') === 'Completed');
  // A path that goes through a file can be removed by nobody.
  await rm(`${folder}/inner`, { recursive: true });
  await writeFile(`${folder}/inner`, '');
  const before = store.version();
  store.update('Recovery', 'first', (one) => void ask(one, 'rollback', false));
  await until('it says why', () => store.get('Recovery', 'first')?.status.message?.includes('tried again'));
  t.equal(state('first'), 'RollingBack');
  await rm(`${folder}/inner`);
  await until('it is rolled back', () => state('first') === 'RolledBack');
  t.ok(store.version() - before < 10, 'not again and again without a pause');
  t.equal(events.filter(({ code }) => code === 'StorageTrouble').length, 1);
});

t.test('a master killed when the index had become the one of the fork stages the copy anew', async (t) => {
  const { store, folder, emitter, signal } = await world(t);
  addReplication(store, 'one', 'local', 'Filesystem');
  const point = { sequence: 1, sourceUs: 1, committedUs: 1, digest: Buffer.alloc(16, 0xab) };
  let staged = 0;
  const replica = {
    newestPoint: point,
    points: [point],
    snapshotNames: [],
    recover: async (_point: unknown, path: string, { keepIndexAt = '' }) => {
      await mkdir(path);
      const index = new TreeIndex(keepIndexAt);
      index.commit(commitOf(1, 0));
      index.close();
      staged++;
      return { verified: false, withheld: 0 };
    },
  };
  const effects = volumeEffects({
    ...{ store, clock: systemClock, events: emitter, folder, forks: `${folder}/forks` },
    mirrors: { replica: () => replica } as unknown as Mirrors,
    look: async () => undefined,
    restores: { run: () => Promise.resolve(undefined as never) },
    allow: { mayWriteRecovery: async (path: string) => path, mayRun: async (path: string) => path },
  });
  const body = { replication: 'one', type: 'failover' as const, point: 'latest-data' as const };
  const { metadata } = store.create('Recovery', 'back', {
    ...recoveryDraft('back', { ...body, target: { agent: 'node-b', path: '/srv' } }),
  });
  const now = (digest = 'ab'.repeat(16)): Recovery =>
    store.update('Recovery', 'back', ({ status, job }) => {
      job.volumes = [{ stage: 'chosen' } as never];
      status.tasks = [{ ...status.tasks[0], volume: 'one', path: '/srv', point: { sequence: 1, digest } } as never];
    });
  await effects.copy(now(), 0, signal);
  t.equal(store.get('Replication', 'one')?.requests.fork?.sequence, 1);
  await mkdir(`${folder}/back.one.staged`);
  const { ino, birthtimeNs } = await stat(`${folder}/back.one.staged`, { bigint: true });
  store.putRecord('recovered-copies', `${metadata.uid}/one`, `${ino}:${birthtimeNs}`);
  await effects.copy(now(), 0, signal);
  t.equal(staged, 2, 'nothing is sent from an index that is not there');

  const gone = { code: 'PointGone', message: /point 1 is no longer kept/ };
  await t.rejects(Promise.resolve(effects.copy(now('cd'.repeat(16)), 0, signal)), gone, 'another one has its number');
  t.equal(store.get('Recovery', 'back')?.job.volumes[0]?.stage, 'fenced', 'tried again, it chooses anew');
  t.equal(staged, 2);
});
