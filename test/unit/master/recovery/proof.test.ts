import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import type { Mirrors } from '../../../../master/mirrors.ts';
import { runRecoveries } from '../../../../master/recovery/loop.ts';
import { ask, type Action } from '../../../../master/recovery/machine.ts';
import { runProofs } from '../../../../master/recovery/proof.ts';
import { volumeEffects } from '../../../../master/recovery/volume.ts';
import { pinnedPoints } from '../../../../master/references.ts';
import type { Point } from '../../../../master/replica/horizon.ts';
import { Replica } from '../../../../master/replica/replica.ts';
import { pointView } from '../../../../master/status.ts';
import { granuleBytes } from '../../../../proto/granule.ts';
import { systemClock, systemEffects } from '../../../../proto/system.ts';
import { commitOf, dataOf } from '../replica/blockreplica.ts';
import { addRecovery, addReplication, until, world } from '../controllers.ts';

const sizeBytes = 64 * granuleBytes * 16;

/** A replica on a real disk with what is handed out from it; a proof reads 16 MiB and waits until it is let on. */
async function start(t: Parameters<typeof world>[0]) {
  const made = await world(t);
  const { store, folder } = made;
  const replication = addReplication(store, 'one');
  const place = { folder: join(folder, 'replica'), indexFolder: join(folder, 'replica') };
  const copies = join(folder, 'copies');
  mkdirSync(copies);
  const held = Promise.withResolvers<void>();
  const isHeld = { yes: false, waits: 0, now: 0 };
  let nowMs = 0;
  const clock = {
    nowMs: () => Date.now(),
    monotonicMs: () => (nowMs += 1000),
    sleep: async (_ms: number, signal?: AbortSignal): Promise<void> => {
      isHeld.waits++;
      isHeld.now++;
      if (isHeld.yes)
        await Promise.race([
          held.promise,
          new Promise((resolve) => signal?.addEventListener('abort', resolve, { once: true })),
        ]);
      isHeld.now--;
      signal?.throwIfAborted();
    },
  };
  const replica = await Replica.open({ effects: { ...systemEffects, clock }, place, mode: 'Block' });
  t.teardown(() => replica.close());
  const session = await replica.attach({ name: 'a', generation: '1', sourceId: 's', sizeBytes, force: false });
  for (const data of dataOf({ 0: 1, 5: 2, 6: 3, 300: 4, 1000: 5 }, sizeBytes)) await replica.data(session, data);
  await replica.commit(session, commitOf(1, sizeBytes));
  await replica.advance(0, made.signal);
  for (const data of dataOf({ 6: 7 }, sizeBytes)) await replica.data(session, data);
  await replica.commit(session, commitOf(2, sizeBytes));

  const mirrors = {
    replica: () => replica,
    view: (_uid: string, point: Point) => pointView(point, null, undefined),
    drilled: () => undefined,
  } as unknown as Mirrors;
  const mismatched: [string, number][] = [];
  const options = {
    ...{ store, clock: systemClock, events: made.emitter, mirrors },
    metrics: {
      onRecovery: () => undefined,
      onVerify: (name: string, bytes: number) => void mismatched.push([name, bytes]),
    },
  };
  const effects = volumeEffects({
    ...options,
    look: async () => undefined,
    restores: { run: () => Promise.reject(new Error('not asked')) },
    allow: { mayWriteRecovery: async (path: string) => path, mayRun: async (path: string) => path },
    folder: copies,
    forks: join(folder, 'forks'),
  });
  made.run(runRecoveries({ ...options, effects }, made.signal));
  const proving = (): AbortController => {
    const stop = new AbortController();
    made.run(runProofs(options, AbortSignal.any([stop.signal, made.signal])));
    return stop;
  };
  const recovery = () => store.get('Recovery', 'first');
  return {
    ...{ ...made, replica, copies, proving, recovery, mismatched, isHeld, held, uid: replication.metadata.uid },
    path: `${copies}/copy.raw`,
    task: () => recovery()?.status.tasks[0],
    act: (action: Action) => store.update('Recovery', 'first', (one) => void ask(one, action, false)),
    completed: () => until('it is handed out', () => recovery()?.status.state === 'Completed'),
    flip: async (granule: number): Promise<void> => {
      await using file = await open(join(place.folder, 'base', 'image.raw'), 'r+');
      const byte = Buffer.alloc(1);
      await file.read(byte, 0, 1, granule * granuleBytes + 77);
      byte[0] = (byte[0] ?? 0) ^ 16;
      await file.write(byte, 0, 1, granule * granuleBytes + 77);
    },
  };
}

t.test('a failover is handed out at once, and then proven by reading its point', async (t) => {
  const { store, path, completed, recovery, task, proving, events, isHeld, held, mismatched } = await start(t);
  isHeld.yes = true;
  proving();
  addRecovery(store, 'first', 'one', path, 'failover');
  await completed();
  t.equal(readFileSync(path)[6 * granuleBytes], 7, 'the copy is there');
  t.match(recovery()?.status, { verified: null, message: /copy\.raw; its point is being read whole; confirm it or/ });
  await until('it tells how far it is', () => (task()?.progress?.bytesDone ?? 0) > 0);
  t.match(task()?.progress, {
    step: /handed out; its point is being read whole/,
    bytesDone: 16 << 20,
    bytesTotal: sizeBytes,
  });
  t.strictSame(pinnedPoints(store, 'one'), [2], 'and stays until then');
  isHeld.yes = false;
  held.resolve();
  await until('it is proven', () => recovery()?.status.verified);
  t.match(task(), { verified: true, message: null, progress: null, state: 'Completed' });
  t.match(recovery()?.status, { state: 'Completed', message: /its point was read whole and is right; confirm it or/ });
  const said = events.filter(({ code }) => code.startsWith('RecoveredCopy'));
  t.match(said, [{ code: 'RecoveredCopyVerified', level: 'INFO', message: /^one: .*copy\.raw is proven: point 2 / }]);
  t.equal(said.length, 1);
  t.strictSame([pinnedPoints(store, 'one'), mismatched], [[], []]);
});

t.test('a bit that was flipped in the base is told, with its place and what to do', async (t) => {
  const { store, path, completed, recovery, task, proving, events, mismatched, flip, act, copies } = await start(t);
  // Of granule 6 the journal has what is in the point.
  for (const granule of [5, 6]) await flip(granule);
  proving();
  addRecovery(store, 'first', 'one', path, 'failover');
  await completed();
  await until('it is told', () => task()?.verified === false);
  const place = new RegExp(
    `DAMAGED at point 2: 1 granules .*: byte ${5 * granuleBytes}; roll back, then recover a snapshot`,
  );
  t.match(recovery()?.status, { state: 'Completed', verified: false, message: place });
  t.match(task(), { message: place, progress: null });
  t.match(
    events.filter(({ code }) => code.startsWith('RecoveredCopy')),
    [{ code: 'RecoveredCopyDamaged', level: 'ERROR', message: place, object: 'Recovery/first' }],
  );
  t.strictSame(mismatched, [['one', granuleBytes]]);
  t.match(store.get('Replication', 'one')?.requests.damage, { recovery: 'first', message: place });
  act('rollback');
  await until('it is rolled back', () => recovery()?.status.state === 'RolledBack');
  t.strictSame(readdirSync(copies), []);
});

t.test('a rollback ends it at once, and nothing is left', async (t) => {
  const { store, path, completed, recovery, proving, events, isHeld, act, copies, replica } = await start(t);
  isHeld.yes = true;
  proving();
  addRecovery(store, 'first', 'one', path, 'failover');
  await completed();
  await until('it is being read', () => isHeld.waits > 0);
  act('rollback');
  await until('it is rolled back', () => recovery()?.status.state === 'RolledBack');
  t.strictSame(readdirSync(copies), []);
  t.strictSame(pinnedPoints(store, 'one'), []);
  // Nobody has let it on.
  await until('the reading has ended', () => isHeld.now === 0);
  await replica.deleteSnapshot('none');
  t.match(recovery()?.status.tasks[0], { verified: null, progress: null });
  t.notOk(events.some(({ code }) => code.startsWith('RecoveredCopy') || code === 'StorageTrouble'));
});

t.test('whoever starts after a kill goes on with it', async (t) => {
  const { store, path, completed, recovery, proving, isHeld, held, events } = await start(t);
  isHeld.yes = true;
  const first = proving();
  addRecovery(store, 'first', 'one', path, 'failover');
  await completed();
  await until('it is being read', () => isHeld.waits > 0);
  first.abort();
  isHeld.yes = false;
  held.resolve();
  proving();
  await until('it is proven', () => recovery()?.status.verified);
  t.equal(events.filter(({ code }) => code === 'RecoveredCopyVerified').length, 1);
});
