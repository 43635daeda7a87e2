import t from 'tap';
import { join } from 'node:path';
import { random, sameBytes, startWriter, writeNoise } from './content.ts';
import { killed, openWorld } from './world.ts';
import type { Recovery } from '../../master/resources.ts';

t.test('a planned move loses nothing: demote, promote, and back', async (t) => {
  const world = await openWorld(t);
  const source = join(world.sources, 'image');
  writeNoise(source, 8 << 20);
  await world.startAgent();
  await world.replicate('db', source);
  await world.normal('db');
  const act = (verb: string, force = false) => world.client.send('POST', `/replications/db/actions/${verb}`, { force });
  const phase = (wanted: string) =>
    world.until(
      `db is ${wanted}`,
      async () => {
        const one = await world.get('db');
        return one.status.phase === wanted && one;
      },
      60,
    );
  const recovery = async (): Promise<Recovery | undefined> =>
    (await world.client.list<Recovery>('/recoveries')).items.findLast(({ spec }) => spec.type === 'failover');

  await t.rejects(act('promote'), /demote it first, so that nothing is lost, or promote with force/);
  const writer = await startWriter(source, random(3), 300);
  t.teardown(() => writer.stop());
  await world.normal('db', Date.now());
  await writer.stop();
  await act('demote');
  await killed(world, 'master');
  const before = await phase('Demoted');
  t.equal(before.spec.replicationState, 'secondary');
  await act('promote');
  const after = await phase('Promoted');
  t.equal(after.status.role, 'Primary');
  t.ok(BigInt(after.status.fencingGeneration) > BigInt(before.status.fencingGeneration));
  const moved = await world.until('its copy is there', async () => {
    const one = await recovery();
    return one?.status.state === 'Completed' && one;
  });
  t.ok(sameBytes(source, moved.status.tasks[0]?.path ?? ''), 'every byte of the source is there');
  await act('promote');
  t.equal((await recovery())?.metadata.name, moved.metadata.name, 'promoting again changes nothing');

  await t.rejects(act('resync'), /what was written to its copy is lost/);
  await act('resync', true);
  await phase('Mirroring');
  await world.normal('db', Date.now());
  t.equal((await world.get('db')).spec.replicationState, 'primary');

  await t.test('a demoted source goes on after a resync', async () => {
    await act('demote');
    await phase('Demoted');
    await act('resync');
    await world.normal('db', Date.now());
  });

  await t.test('one that is lost is promoted by force', async (t) => {
    await world.agent.kill();
    await world.degraded('db', 'AgentGone', 60);
    await t.rejects(act('demote'), /is not there to take a last cut/);
    await t.rejects(act('promote'), /is not there to say whether it is written/);
    await act('promote', true);
    await phase('Promoted');
  });
});
