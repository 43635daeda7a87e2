import t from 'tap';
import { existsSync, mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Group, RecoverySchedule } from '../../master/resources.ts';
import { writeNoise } from './content.ts';
import { act, reaches, start } from './recovering.ts';
import { openWorld } from './world.ts';

t.test('a group is recovered together, in order, one recovery at a time, and what failed is tried again', async (t) => {
  const world = await openWorld(t);
  const gate = join(world.dir, 'gate');
  const program = join(world.dir, 'check');
  writeFileSync(program, `#!/bin/sh\nwhile [ -e ${gate} ]; do sleep 0.1; done\nls ${world.dir}/copies/all\n`, {
    mode: 0o755,
  });
  await world.master.stop();
  world.masterFlags.push('--allow', program);
  await world.startMaster();
  await world.startAgent();
  const check = { argv: [program], timeoutSeconds: 300 };
  for (const name of ['app', 'db']) writeNoise(join(world.sources, name), 2 << 20);
  const tree = join(world.sources, 'files');
  mkdirSync(tree);
  writeFileSync(join(tree, 'one'), 'one');
  // Volumes that cannot stand still together: each has points of its own.
  await world.replicate('app', join(world.sources, 'app'), { check });
  await world.replicate('db', join(world.sources, 'db'), { check });
  await world.replicate('files', tree, { volumeMode: 'Filesystem' });
  const body = {
    metadata: { name: 'shop' },
    spec: {
      members: [
        { replication: 'db', startOrder: 1 },
        { replication: 'app', startOrder: 2 },
        { replication: 'files', startOrder: 2 },
      ],
      rpoSeconds: 600,
    },
  };
  await world.client.send<Group>('POST', '/groups', body);
  for (const name of ['app', 'db', 'files']) t.equal((await world.get(name)).spec.group, 'shop');
  for (const name of ['app', 'db', 'files']) await world.normal(name);
  const group = await world.until('the group is NORMAL', async () => {
    const one = await world.client.get<Group>('/groups/shop');
    return one.status.state === 'NORMAL' && one;
  });
  t.same(
    group.status.members.map(({ replication }) => replication),
    ['db', 'app', 'files'],
  );
  t.type(group.status.recoverableTime, 'string');

  const target = { path: join(world.dir, 'copies/all') };
  writeFileSync(gate, '');
  const drill = await start(world, { group: 'shop', type: 'drill', target });
  await world.until('the first in order is checked', async () => existsSync(join(target.path, 'db.raw')));
  const next = await start(world, { group: 'shop', type: 'failover' });
  const member = await start(world, { replication: 'app', type: 'drill' });
  await world.until('the next ones wait', async () => {
    const messages = await Promise.all(
      [next, member].map(async (one) => (await reaches(world, one, 'Waiting')).status.message),
    );
    return messages.every((message) => message?.includes('waits for recovery'));
  });
  t.notOk(existsSync(join(target.path, 'app.raw')), 'the second in order has not begun');
  rmSync(gate);
  const done = await reaches(world, drill, 'Completed');
  t.equal(done.status.verified, true);
  t.same(readdirSync(target.path).sort(), ['app.raw', 'db.raw', 'files']);
  t.match(done.status.tasks[0], { volume: 'db', state: 'Completed', check: { exitStatus: 0, output: 'db.raw' } });

  const failover = await reaches(world, next, 'Completed');
  t.equal(failover.status.tasks.length, 3);
  for (const name of ['app', 'db', 'files'])
    await world.until(`${name} is promoted`, async () => (await world.get(name)).status.phase === 'Promoted');
  await reaches(world, member, 'Waiting');
  await t.rejects(world.client.send('DELETE', '/groups/shop'), /cannot be deleted yet/);
  await act(world, next, 'rollback');
  await reaches(world, next, 'RolledBack');
  await reaches(world, member, 'Completed');
  // Each by itself would have points again; as a group these cannot stand still together.
  for (const name of ['app', 'db', 'files'])
    await world.until(`${name} is mirrored again`, async () => (await world.get(name)).status.phase === 'Mirroring');

  await t.test('what failed of a failover is recovered again, alone', async (t) => {
    await act(world, drill, 'rollback');
    await reaches(world, drill, 'RolledBack');
    mkdirSync(target.path, { recursive: true });
    const again = await start(world, { group: 'shop', type: 'failover', target });
    // In the way of one of them, since the request was checked.
    writeFileSync(join(target.path, 'app.raw'), 'somebody else');
    const part = await reaches(world, again, 'Completed');
    const states = part.status.tasks.map(({ volume, state }) => `${volume} ${state}`);
    if (states.includes('app Failed')) {
      t.same(states, ['db Completed', 'app Failed', 'files Completed']);
      await t.rejects(act(world, again, 'confirm'), /app is not recovered; retry it/);
      rmSync(join(target.path, 'app.raw'));
      await act(world, again, 'retry');
      await world.until('all are recovered', async () => {
        const { status } = await reaches(world, again, 'Completed', 'Running', 'Waiting');
        return status.tasks.every(({ state }) => state === 'Completed');
      });
    } else t.pass('it was faster than we');
    await act(world, again, 'cancel').catch(() => undefined);
    await act(world, again, 'rollback');
    await reaches(world, again, 'RolledBack');
  });

  await t.test('by schedule', async (t) => {
    const startTime = new Date(Date.now() + 3000).toISOString();
    await world.client.send('POST', '/recoveryschedules', {
      metadata: { name: 'weekly' },
      spec: { group: 'shop', type: 'drill', repeat: 'weekly', startTime },
    });
    await t.rejects(
      world.client.send('POST', '/recoveryschedules', {
        metadata: { name: 'x' },
        spec: { group: 'shop', type: 'failover', repeat: 'daily', startTime },
      }),
      /must be once for a failover/,
    );
    const schedule = await world.until('its drill was made', async () => {
      const one = await world.client.get<RecoverySchedule>('/recoveryschedules/weekly');
      return one.status.lastRecovery !== null && one;
    });
    const made = { metadata: { name: schedule.status.lastRecovery ?? '' } };
    const result = await reaches(world, made, 'RolledBack');
    t.equal(result.status.outcome, 'success', 'its copies are gone, its report stays');
    t.match(schedule.status.nextTime, /Z$/);
    await world.client.send('DELETE', '/recoveryschedules/weekly');
  });
});
