/** A group fails over, lives on the new side, and goes back into the volumes that it came from, all members to one moment. */
import t from 'tap';
import { spawnSync } from 'node:child_process';
import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import type { Group } from '../../master/resources.ts';
import { noise, sameBytes, writeNoise } from './content.ts';
import { act, demoted, reaches, start } from './recovering.ts';
import { agentName, killed, openWorld } from './world.ts';

t.test('a group goes back into the volumes that it came from', async (t) => {
  const world = await openWorld(t);
  const copies = join(world.dir, 'copies');
  const images = ['app', 'db'].map((name) => join(world.sources, name));
  const [app = '', db = ''] = images;
  for (const path of images) writeNoise(path, 4 << 20);
  world.agentFlags.push('--allow', copies, ...images.flatMap((path) => ['--allow-write', path]));
  await world.startAgent();
  const names = ['app', 'db'];
  for (const name of names) await world.replicate(name, join(world.sources, name), { group: 'shop' });
  for (const name of names) await world.normal(name, 0, 300);

  const away = await start(world, { group: 'shop', type: 'failover', target: { path: join(copies, 'new') } });
  await reaches(world, away, 'Completed');
  await act(world, away, 'confirm');
  await reaches(world, away, 'Confirmed');
  for (const name of names) await world.normal(`${name}-failback`, 0, 300);
  const now = (name: string): string => join(copies, 'new', name);
  const file = openSync(now('db.raw'), 'r+');
  writeSync(file, noise(65_536), 0, 65_536, 3 * 65_536);
  closeSync(file);
  for (const name of names) await world.normal(`${name}-failback`, Date.now(), 300);

  const to = (path: string) => ({ agent: agentName, path });
  const volumes = { 'app-failback': to(app), 'db-failback': to(db) };
  await t.test('what cannot be meant is refused by field', async (t) => {
    const asked = (target: object, of: object = { group: 'shop' }) => start(world, { ...of, type: 'drill', target });
    await t.rejects(asked({ ...to(db) }), /target.agent.*name target.volumes/s);
    await t.rejects(asked({ volumes: { other: to(db) } }), /target.volumes.other.*is no member of group shop/s);
    await t.rejects(asked({ volumes: { 'app-failback': to(db), 'db-failback': to(db) } }), /is the volume of app-failback too/);
    await t.rejects(asked({ volumes, path: copies }), /must stand alone/);
    await t.rejects(asked({ volumes }, { replication: 'db-failback' }), /is for groups/);
    await t.rejects(asked({ volumes: { 'db-failback': to('/etc/passwd') } }), /target.path/);
  }); // prettier-ignore

  await t.test('a drill: those that are named are written over, the others get copies', async (t) => {
    const drill = await start(world, { group: 'shop', type: 'drill', target: { volumes: { 'db-failback': to(db) } } });
    const { status } = await reaches(world, drill, 'Completed');
    t.match(status, { outcome: 'success', verified: true });
    const paths = new Map(status.tasks.map(({ volume, path }) => [volume, path]));
    t.equal(paths.get('db-failback'), db);
    t.ok(sameBytes(now('db.raw'), db));
    t.ok(sameBytes(now('app.raw'), paths.get('app-failback') ?? ''));
    await act(world, drill, 'rollback');
    await reaches(world, drill, 'RolledBack');
  });

  for (const name of names) await demoted(world, `${name}-failback`);
  const flags = names.map((name) => ['--volume', `${name}-failback=${agentName}:${join(world.sources, name)}`]).flat();
  const asked = spawnSync(
    join(import.meta.dirname, '../../master/replctl'),
    [
      ...['recover', '--data', world.masterDir, '--group', 'shop', '--type', 'failover', '--yes', '-o', 'name'],
      ...flags,
    ],
    { encoding: 'utf8' },
  );
  t.equal(asked.status, 0, asked.stderr);
  const back = { metadata: { name: asked.stdout.trim().replace(/^.*\//, '') } };
  // The master may be gone at any moment of it.
  await killed(world, 'master');
  const { status: came } = await reaches(world, back, 'Completed', 'Failed');
  t.same(came.tasks.map(({ state, message }) => message ?? state), ['Completed', 'Completed']); // prettier-ignore
  for (const name of names) t.ok(sameBytes(now(`${name}.raw`), join(world.sources, name)));
  await act(world, back, 'confirm');
  await reaches(world, back, 'Confirmed');
  for (const name of names) {
    const { spec } = await world.normal(name, Date.now(), 300);
    t.match(spec, { source: { agent: agentName, path: join(world.sources, name) }, group: 'shop' });
  }
  const { status } = await world.client.get<Group>('/groups/shop');
  t.same(status.members.map(({ replication }) => replication), names); // prettier-ignore
});
