import t from 'tap';
import { closeSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { noise, sameBytes, writeNoise } from './content.ts';
import { act, reaches, start } from './recovering.ts';
import { agentName, killed, openWorld, type World } from './world.ts';

const granule = 65536;

function writeGranules(path: string, ...at: number[]): void {
  const file = openSync(path, 'r+');
  for (const one of at) writeSync(file, noise(granule), 0, granule, one * granule);
  closeSync(file);
}

const compared = (world: World, name: string, isForked: boolean) =>
  world.until(
    `${name} is compared with its old source`,
    async () => {
      const { fork } = (await world.get(name)).status;
      return (
        fork?.found !== undefined && fork.found !== null && (fork.found.granules ?? 0) > 0 === isForked && fork.found
      );
    },
    60,
  );

t.test('writes on both sides of a promotion are found, shown, and settled by a choice', async (t) => {
  const world = await openWorld(t);
  const source = join(world.sources, 'image');
  const path = join(world.dir, 'copies', 'db.raw');
  writeNoise(source, 16 << 20);
  world.agentFlags.push('--allow', join(world.dir, 'copies'), '--allow-write', source);
  await world.startAgent();
  await world.replicate('db', source);
  await world.normal('db');

  const first = await start(world, { replication: 'db', type: 'failover' });
  await reaches(world, first, 'Completed');
  await compared(world, 'db', false);
  await t.test('what is not written on both sides is no split', async (t) => {
    const { conditions } = (await world.get('db')).status;
    t.notOk(conditions.some(({ reason }) => reason === 'SplitBrain'));
  });

  // The old side goes on where nobody sees it, and comes back.
  await world.agent.kill();
  writeGranules(source, 3, 4, 100);
  await killed(world, 'master');
  world.agent.start();
  const found = await compared(world, 'db', true);
  t.match(found, {
    granules: 3,
    bytes: 3 * granule,
    ranges: [
      { offset: 3 * granule, length: 2 * granule },
      { offset: 100 * granule, length: granule },
    ],
  });
  await world.degraded('db', 'SplitBrain');
  const events = await world.events();
  t.ok(
    events.some(({ code, level, message }) => code === 'SplitBrain' && level === 'ERROR' && /3 granules/.test(message)),
  );

  await t.test('for the new side: the old one is written over only after a word', async (t) => {
    await act(world, first, 'rollback');
    await reaches(world, first, 'RolledBack');
    await world.until('the fork is gone with it', async () => (await world.get('db')).status.fork === null);
    await world.normal('db', Date.now());
    const second = await start(world, { replication: 'db', type: 'failover', target: { path } });
    await reaches(world, second, 'Completed');
    await act(world, second, 'confirm');
    await reaches(world, second, 'Confirmed');
    await world.agent.kill();
    writeGranules(source, 7);
    world.agent.start();
    await world.normal('db-failback', Date.now());
    await compared(world, 'db-failback', true);
    const target = { agent: agentName, path: source };
    const back = { replication: 'db-failback', type: 'drill', target };
    await t.rejects(start(world, back), /1 granules .* written there after the failover and are nowhere else/);
    await t.rejects(start(world, { ...back, type: 'failover' }), /resync db-failback with force/);
    t.notOk(sameBytes(source, path));
    await world.client.send('POST', '/replications/db-failback/actions/resync', { force: true });
    const drill = await start(world, back);
    await reaches(world, drill, 'Completed');
    t.ok(sameBytes(source, path), 'the new side has won');
    await world.until('nothing is degraded', async () => {
      const { conditions } = (await world.get('db-failback')).status;
      return !conditions.some(({ reason }) => reason === 'SplitBrain');
    });
  });
});
