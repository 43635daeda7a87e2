import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import t from 'tap';
import { openDatabase } from '../../../master/database.ts';
import type { RecoveryState } from '../../../master/resources.ts';
import { keepStateCopy, restoreStateCopy, writeStateCopy } from '../../../master/statecopy.ts';
import { sqliteStore } from '../../../master/store-sqlite.ts';
import { adopt, folderOwner, takeOver } from '../../../master/takeover.ts';
import { systemClock, systemRandom } from '../../../proto/system.ts';
import { addClass, addRecovery, addReplication, addSnapshot, world } from './controllers.ts';

const states: RecoveryState[] = ['Waiting', 'Running', 'Pausing', 'Paused', 'Cancelling', 'Completed', 'RollingBack', 'Confirming', 'Failed', 'RolledBack']; // prettier-ignore

/** A master's state with a bit of everything, its copy, and a store that goes on from that. */
async function copied(t: Parameters<typeof world>[0]) {
  const { folder, emitter, events } = await world(t);
  for (const dir of ['one', 'two', 'class']) mkdirSync(`${folder}/${dir}`);
  const open = (dir: string) => {
    const database = openDatabase(`${folder}/${dir}/master.db`);
    const store = sqliteStore(database, { clock: systemClock, random: systemRandom });
    t.teardown(async () => store.close());
    return { database, store };
  };
  const first = open('one');
  addClass(first.store, 'far', `${folder}/class`);
  addReplication(first.store, 'db', 'far');
  for (const name of ['kept', 'gone']) addSnapshot(first.store, 'db', name, 'Ready');
  for (const state of states) {
    addRecovery(first.store, state.toLowerCase(), 'db', `/copies/${state}`);
    first.store.update('Recovery', state.toLowerCase(), ({ status }) => (status.state = state));
  }
  addRecovery(first.store, 'again', 'db', '/copies/again', 'failover');
  first.store.update('Recovery', 'again', ({ status }) => {
    status.tasks.push({ volume: 'db' } as (typeof status.tasks)[number]);
  });
  writeFileSync(`${folder}/one/ca.key`, 'secret');
  const path = `${folder}/state`;
  const options = { ...first, dir: `${folder}/one`, path, clock: systemClock, events: emitter };
  await writeStateCopy(options);
  return { folder, path, first, options, open, events, emitter };
}

t.test('what was under way waits for a person, and nothing else is touched', async (t) => {
  const { folder, path, open, emitter, events, first } = await copied(t);
  t.equal(statSync(path).mode & 0o777, 0o600);
  for (let time = 0; time < 2; time++) await restoreStateCopy(path, `${folder}/two`);
  const { store } = open('two');
  const options = { store, clock: systemClock, random: systemRandom, events: emitter };
  takeOver({ ...options, paths: new Map([['far', '/elsewhere']]) });
  t.same(
    states.map((state) => store.get('Recovery', state.toLowerCase())?.status.state),
    ['Cancelled', 'Paused', 'Paused', 'Paused', 'Cancelling', 'Completed', 'RollingBack', 'Confirming', 'Failed', 'RolledBack'],
  ); // prettier-ignore
  t.equal(store.get('Recovery', 'again')?.status.state, 'Paused', 'what it holds is given back by a cancel');
  t.match(store.get('Recovery', 'running')?.status.message, /when this was Running.*then resume or cancel it/);
  t.equal(store.get('StorageClass', 'far')?.spec.parameters.path, '/elsewhere');
  t.match(store.get('Replication', 'db')?.requests.takenOver, /^20/);
  t.equal(store.getRecord('authority', 'ca.key'), 'secret');
  t.equal(events.filter(({ code }) => code === 'MasterTookOver').length, 1);
  t.ok(store.version() > first.store.version(), 'versions go on');
  const after = store.version();
  takeOver({ ...options, paths: new Map() });
  t.equal(store.version(), after, 'once');
  await t.rejects(restoreStateCopy(path, `${folder}/two`), /start without --take-over/);
});

t.test('what the replica was fenced with meanwhile holds, and snapshots are those on storage', async (t) => {
  for (const [generation, isFenced] of [
    ['1', false],
    ['4', true],
  ] as const) {
    const { folder, path, open, emitter } = await copied(t);
    await restoreStateCopy(path, `${folder}/two`);
    const { store } = open('two');
    takeOver({ store, clock: systemClock, random: systemRandom, events: emitter, paths: new Map() });
    const replication = store.get('Replication', 'db');
    const told: string[] = [];
    if (replication)
      adopt(store, { generation, snapshotNames: ['kept', 'new'] }, replication, (code) => told.push(code));
    const { requests, status } = store.get('Replication', 'db') ?? {};
    t.same([requests?.takenOver, status?.fencingGeneration], [undefined, generation]);
    t.same([requests?.fencedBy, told], isFenced ? ['demoted', ['SourceDemoted']] : [undefined, []]);
    t.equal(store.get('Snapshot', 'db/kept')?.status.state, 'Ready');
    t.match(store.get('Snapshot', 'db/gone')?.status, { state: 'Failed', message: /not on storage/ });
  }
});

t.test('a folder of replicas has one life of a master, and others beside it', async (t) => {
  const { folder, path, first, open, emitter } = await copied(t);
  const own = (store: typeof first.store) => folderOwner({ store, random: systemRandom });
  await own(first.store)(`${folder}/class`);
  await writeStateCopy({ ...first, dir: `${folder}/one`, path, clock: systemClock });
  await restoreStateCopy(path, `${folder}/two`);
  const second = open('two');
  takeOver({ ...second, clock: systemClock, random: systemRandom, events: emitter, paths: new Map() });
  await own(second.store)(`${folder}/class`);
  await t.rejects(own(first.store)(`${folder}/class`), { code: 'TargetRefused', message: /has taken over/ });
  await own(second.store)(`${folder}/class`);
  mkdirSync(`${folder}/three`);
  await own(open('three').store)(`${folder}/class`);
});

t.test('what is no copy, and a directory that is in use, are refused and nothing is made of them', async (t) => {
  const { folder, path } = await copied(t);
  await t.rejects(restoreStateCopy(path, `${folder}/one`), /holds a master's state already/);
  await t.rejects(restoreStateCopy(`${folder}/none`, `${folder}/two`), /does not exist/);
  await t.rejects(restoreStateCopy(`${folder}/one/master.db`, `${folder}/two`), /is no copy/);
  const bytes = readFileSync(path);
  for (const wrong of [Buffer.alloc(0), Buffer.from('nonsense'), bytes.subarray(0, bytes.length >> 1)]) {
    writeFileSync(`${folder}/wrong`, wrong);
    await t.rejects(restoreStateCopy(`${folder}/wrong`, `${folder}/two`), /is no copy/);
  }
  t.notOk(existsSync(`${folder}/two/master.db`));
});

t.test('the copy follows the state; a folder that is not there is told once, and made by nobody', async (t) => {
  const { folder, options, first, events } = await copied(t);
  const until = async (done: () => boolean): Promise<void> => {
    while (!done()) await new Promise((resolve) => setImmediate(resolve));
  };
  const stop = new AbortController();
  const clock = { ...systemClock, sleep: async () => new Promise<void>((resolve) => setImmediate(resolve)) };
  const path = `${folder}/mounted/state`;
  const keeping = keepStateCopy({ ...options, clock, path }, stop.signal);
  await until(() => events.some(({ code }) => code === 'StateCopyTrouble'));
  t.notOk(existsSync(`${folder}/mounted`));
  mkdirSync(`${folder}/mounted`);
  await until(() => events.some(({ code }) => code === 'StateCopied'));
  const { mtimeMs } = statSync(path);
  addClass(first.store, 'newer', `${folder}/newer`);
  await until(() => statSync(path).mtimeMs > mtimeMs);
  stop.abort();
  await keeping;
  t.equal(events.filter(({ code }) => code === 'StateCopyTrouble').length, 1);
  await restoreStateCopy(path, `${folder}/two`);
  const database = openDatabase(`${folder}/two/master.db`);
  t.ok(sqliteStore(database, { clock: systemClock, random: systemRandom }).get('StorageClass', 'newer'));
  database.close();
});
