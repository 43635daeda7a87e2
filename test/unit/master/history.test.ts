import t from 'tap';
import { setTimeout as sleep } from 'node:timers/promises';
import { openDatabase } from '../../../master/database.ts';
import { ageHistory, maxSamples } from '../../../master/history.ts';
import { sqliteStore } from '../../../master/store-sqlite.ts';
import { systemClock, systemRandom } from '../../../proto/system.ts';
import { addReplication } from './controllers.ts';

t.test('a sample is the worst age since the one before; what is deleted is forgotten', async (t) => {
  let nowMs = 1_000_000_000_000;
  const clock = { nowMs: () => nowMs };
  const store = sqliteStore(openDatabase(':memory:'), { clock: systemClock, random: systemRandom });
  const stop = new AbortController();
  const history = ageHistory(store, clock, 5);
  const { uid } = addReplication(store, 'shop').metadata;
  store.update('Replication', 'shop', ({ status }) => (status.lastSyncTime = null));
  const synced = (atMs: number): void =>
    void store.update('Replication', 'shop', ({ status }) => (status.lastSyncTime = new Date(atMs).toISOString()));
  const reached = async (condition: () => boolean): Promise<void> => {
    while (!condition()) await sleep(2);
  };
  const ages = (): (number | null)[] => history.of(uid).map(({ lagSeconds }) => lagSeconds);
  const running = history.run(stop.signal);
  t.teardown(async () => {
    stop.abort();
    await running;
    store.close();
  });
  await reached(() => ages().length > 0);
  t.equal(ages()[0], null, 'nothing was synced yet');
  synced(nowMs - 1000);
  await reached(() => ages().at(-1) === 1);
  nowMs += 8000;
  await reached(() => ages().at(-1) === 9);
  synced(nowMs);
  await reached(() => ages().at(-1) === 0);
  t.ok(ages().every((age) => age === null || age <= 9));
  await reached(() => ages().length === maxSamples);
  store.delete('Replication', 'shop');
  await reached(() => ages().length === 0);
  t.same(history.of('none'), []);
});

t.test('a peak between two samples is in the next one', async (t) => {
  let nowMs = 1_000_000_000_000;
  const store = sqliteStore(openDatabase(':memory:'), { clock: systemClock, random: systemRandom });
  const stop = new AbortController();
  const history = ageHistory(store, { nowMs: () => nowMs }, 500);
  const { uid } = addReplication(store, 'shop').metadata;
  store.update('Replication', 'shop', ({ status }) => (status.lastSyncTime = null));
  const running = history.run(stop.signal);
  t.teardown(async () => {
    stop.abort();
    await running;
    store.close();
  });
  const set = async (atMs: number): Promise<void> => {
    store.update('Replication', 'shop', ({ status }) => (status.lastSyncTime = new Date(atMs).toISOString()));
    await sleep(10); // the watch has it long before the next sample
  };
  await set(nowMs);
  nowMs += 7000;
  await set(nowMs);
  while (!history.of(uid).some(({ lagSeconds }) => lagSeconds === 7)) await sleep(5);
  t.pass();
});
