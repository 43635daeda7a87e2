import t, { type Test } from 'tap';
import { closeSync, existsSync, openSync, readFileSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { ApiProblem } from '../../master/cli/client.ts';
import type { Recovery, Snapshot } from '../../master/resources.ts';
import { copyKeeping, noise, sameBytes, writeNoise } from './content.ts';
import { openWorld } from './world.ts';

function change(path: string): void {
  const file = openSync(path, 'r+');
  writeSync(file, noise(300_000), 0, null, 1 << 20);
  closeSync(file);
}

async function problem(t: Test, call: Promise<unknown>, status: number, code: string): Promise<void> {
  const error: unknown = await call.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (!(error instanceof ApiProblem)) return void t.fail(`${code} was to be answered, not ${String(error)}`);
  t.match(error.problem, { status, code });
}

t.test('snapshots, points in time and the ends of drills', async (t) => {
  const world = await openWorld(t);
  const { client } = world;
  const source = join(world.sources, 'image');
  const old = join(world.dir, 'old');
  writeNoise(source, 16 << 20);
  copyKeeping(source, old);
  await world.startAgent();
  await problem(t, client.get('/replications/orders/snapshots'), 404, 'NotFound');
  await world.replicate('orders', source);
  await world.normal('orders', Date.now());
  const snapshots = '/replications/orders/snapshots';

  const kept = await world.snapshot('orders', 'kept');
  t.equal(kept.status.state, 'Ready');
  const oldTime = (await world.get('orders')).status.lastSyncTime ?? '';
  change(source);
  const { status } = await world.normal('orders', Date.now());

  await t.test('a drill of a snapshot, of the latest one, of a time, of the newest data', async (t) => {
    for (const point of [{ snapshot: 'kept' }, 'latest-snapshot' as const, { time: oldTime }]) {
      const { path } = await world.copyOf('orders', point);
      t.ok(sameBytes(old, path), `${JSON.stringify(point)} is what it was then`);
    }
    const { path, recovery } = await world.copyOf('orders');
    t.ok(sameBytes(source, path), 'the newest data');
    t.equal(recovery.status.point?.sequence, status.recoveryPoint?.sequence);
    t.equal((await world.points('orders')).at(0)?.snapshot, 'kept', 'the point names its snapshot');
    await problem(t, world.drill('orders', { time: '2020-01-01T00:00:00.000Z' }), 409, 'NoRecoveryPoint');
    await problem(t, world.drill('orders', { snapshot: 'none' }), 422, 'Invalid');
  });

  await t.test('a locked snapshot is not deleted and its lock not shortened', async (t) => {
    const lockedUntil = new Date(Date.now() + 3_600_000).toISOString();
    await client.send('PATCH', `${snapshots}/kept`, { lockedUntil });
    await problem(t, client.send('DELETE', `${snapshots}/kept`), 409, 'Locked');
    const sooner = new Date(Date.now() + 60_000).toISOString();
    await problem(t, client.send('PATCH', `${snapshots}/kept`, { lockedUntil: sooner }), 409, 'Locked');
    const { path } = await world.copyOf('orders', { snapshot: 'kept' });
    t.ok(sameBytes(old, path));
  });

  await t.test('snapshots outlive a crash of the master, deleted ones are gone', async (t) => {
    await world.snapshot('orders', 'passing');
    await client.send('DELETE', `${snapshots}/passing`);
    await world.until('the snapshot is gone', async () => {
      const { items } = await client.list<Snapshot>(snapshots);
      return items.every(({ metadata }) => metadata.name !== 'passing');
    });
    await world.master.kill();
    await world.startMaster();
    await world.normal('orders', Date.now());
    const { items } = await client.list<Snapshot>(snapshots);
    t.same(
      items.map(({ metadata, status }) => [metadata.name, status.state]),
      [['kept', 'Ready']],
    );
    const { path } = await world.copyOf('orders', { snapshot: 'kept' });
    t.ok(sameBytes(old, path));
  });

  await t.test('rollback removes the copy, only that', async (t) => {
    const { path, recovery } = await world.copyOf('orders');
    const beside = `${path}.mine`;
    writeFileSync(beside, 'mine');
    await client.send('POST', `/recoveries/${recovery.metadata.name}/actions/rollback`, {});
    await world.until('it is rolled back', async () => {
      const { state } = (await client.get<Recovery>(`/recoveries/${recovery.metadata.name}`)).status;
      return state === 'RolledBack';
    });
    t.notOk(existsSync(path));
    t.equal(readFileSync(beside, 'utf8'), 'mine');
  });

  await t.test('what stands at the path of a drill is not touched', async (t) => {
    const path = join(world.masterDir, 'recoveries/there');
    writeFileSync(path, 'mine');
    await t.rejects(world.drill('orders', 'latest-data', path), /target\.path .*exists already/);
    t.equal(readFileSync(path, 'utf8'), 'mine');
    await t.rejects(world.drill('orders', 'latest-data', join(world.dir, 'not-allowed')), /target\.path .*--allow/);
    t.notOk(existsSync(join(world.dir, 'not-allowed')));
  });

  await t.test('a cancelled drill leaves nothing', async (t) => {
    const large = join(world.sources, 'large');
    writeNoise(large, 384 << 20);
    await world.replicate('large', large);
    await world.normal('large', 0, 120);
    const path = join(world.masterDir, 'recoveries/cancelled');
    const drill = world.drill('large', 'latest-data', path);
    await world.until('it runs', async () => existsSync(path));
    const { items } = await client.list<Recovery>('/recoveries');
    const running = items.find(({ spec }) => spec.replication === 'large');
    await client.send('POST', `/recoveries/${running?.metadata.name}/actions/cancel`, {});
    const { status } = await drill;
    t.equal(status.outcome, 'cancelled');
    t.equal(status.state, 'Cancelled');
    t.notOk(existsSync(path));
    await problem(
      t,
      client.send('POST', `/recoveries/${running?.metadata.name}/actions/rollback`, {}),
      409,
      'WrongState',
    );
  });
});
