import { mkdir, readdir, writeFile } from 'node:fs/promises';
import t from 'tap';
import { cleanUp, listGarbage } from '../../../master/garbage.ts';
import { openStorage } from '../../../master/storage.ts';
import { systemClock, systemEffects } from '../../../proto/system.ts';
import { addClass, addRecovery, addReplication, world } from './controllers.ts';

const uidOf = (digit: string): string => `${digit.repeat(8)}-1111-1111-1111-111111111111`;

async function start(t: Parameters<typeof world>[0]) {
  const { store, folder } = await world(t);
  const copies = `${folder}/recoveries`;
  await mkdir(copies);
  addClass(store, 'local', `${folder}/class`);
  const spec = { driver: 'directory' as const, parameters: { path: `${folder}/class` } };
  const clock = { ...systemClock, offsetMs: 0, nowMs: () => systemClock.nowMs() + clock.offsetMs };
  const driver = openStorage(spec, systemEffects, clock);
  const options = { store, mirrors: { driver: () => driver }, folder: copies };
  const { uid } = addReplication(store, 'shop').metadata;
  store.putRecord('made-replicas', uid, 'shop');
  await driver.provision('shop', uid);
  for (const [digit, name] of [
    ['1', 'kept'],
    ['2', 'locked'],
    ['3', 'foreign'],
  ] as const) {
    const place = await driver.provision(name, uidOf(digit));
    if (digit !== '3') store.putRecord('made-replicas', uidOf(digit), name);
    if (digit !== '2') continue;
    await mkdir(`${place.folder}/snapshots/monday`, { recursive: true });
    const lockedUntil = new Date(systemClock.nowMs() + 3600_000).toISOString();
    await writeFile(`${place.folder}/snapshots/monday/lock.json`, JSON.stringify({ lockedUntil }));
  }
  store.putRecord('kept-replicas', uidOf('1'), '{}');
  addRecovery(store, 'drill', 'shop', `${copies}/drill.raw`);
  await writeFile(`${copies}/drill.raw`, 'used');
  await writeFile(`${copies}/drill2.raw`, 'left');
  await mkdir(`${copies}/old/tree`, { recursive: true });
  return { options, copies, clock, driver, uid };
}

t.test('what belongs to nothing is listed; what an object names, and what others made, is not', async (t) => {
  const { options, copies } = await start(t);
  const found = await listGarbage(options);
  t.same(
    found.map(({ kind, name }) => [kind, name]),
    [
      ['Copy', `${copies}/drill2.raw`],
      ['Copy', `${copies}/old`],
      ['Replica', uidOf('1')],
      ['Replica', uidOf('2')],
    ],
  );
  t.match(found[2], { message: /kept, which was deleted and kept/, lockedUntil: null, storageClass: 'local' });
  t.match(found[3]?.lockedUntil, /^20/);
});

t.test('each mode removes what it says and no more; a locked replica stays until its lock is over', async (t) => {
  const { options, copies, clock, driver, uid } = await start(t);
  t.same((await cleanUp(options, 'none')).removed, []);
  t.same((await readdir(copies)).sort(), ['drill.raw', 'drill2.raw', 'old']);
  const restored = await cleanUp(options, 'restored');
  t.same(
    restored.removed.map(({ kind }) => kind),
    ['Copy', 'Copy'],
  );
  t.same(await readdir(copies), ['drill.raw']);
  t.equal(restored.left.length, 2);
  const all = await cleanUp(options, 'all');
  t.same(
    all.removed.map(({ name }) => name),
    [uidOf('1')],
  );
  t.match(all.left, [{ name: uidOf('2'), message: /not removed.*monday is locked until/ }]);
  clock.offsetMs += 3600_000;
  t.equal((await cleanUp(options, 'all')).removed.length, 1);
  t.same((await driver.list()).sort(), [uid, uidOf('3')].sort());
  t.same(await cleanUp(options, 'all'), { removed: [], left: [] });
});
