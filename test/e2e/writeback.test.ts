import t from 'tap';
import { closeSync, openSync, readdirSync, readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { ApiProblem } from '../../master/cli/client.ts';
import { noise, random, sameBytes, startWriter, writeNoise, writeSparse } from './content.ts';
import { allowedToWrite, act, demoted, movedAway, reaches, start } from './recovering.ts';
import { agentName, killed, long, openWorld } from './world.ts';

/** 64 MiB of noise; at full length 10 GiB, a tenth of it noise. */
const sizeBytes = long ? 10 * 2 ** 30 : 64 << 20;
const granule = 65536;
const granules = sizeBytes / granule;

function makeVolume(path: string): void {
  if (!long) return writeNoise(path, sizeBytes);
  const offsets = Array.from({ length: 1024 }, (_, at) => at * 10 * 2 ** 20);
  writeSparse(path, sizeBytes, offsets, 1 << 20);
}

/** Changes 1 % of its granules, seeded. Answers how many bytes that were. */
function change(path: string, seed: number): number {
  const next = random(seed);
  const chosen = new Set<number>();
  while (chosen.size < Math.ceil(granules / 100)) chosen.add(Math.floor(next() * granules));
  const file = openSync(path, 'r+');
  for (const at of chosen) writeSync(file, noise(granule), 0, granule, at * granule);
  closeSync(file);
  return chosen.size * granule;
}

t.test('a failover, writes on the new side, and back into the volume of the old one', async (t) => {
  const world = await openWorld(t, { proxied: true, agentFlags: [] });
  const source = join(world.sources, 'image');
  makeVolume(source);
  world.agentFlags.push('--allow', join(world.dir, 'copies'));
  await world.startAgent();
  await world.replicate('db', source);
  await world.normal('db', 0, 600);
  const [first] = await world.points('db');
  const there = await movedAway(world, 'db');
  const target = { agent: agentName, path: source };
  const back = { replication: 'db-failback', type: 'failover', target };

  await t.test('only a volume that its node lets be written', async (t) => {
    await allowedToWrite(t, world, back, source);
    const held = openSync(source, 'r+');
    await t.rejects(start(world, back), /is open elsewhere on this node/);
    closeSync(held);
    await t.rejects(
      start(world, { ...back, target: { agent: agentName, path: there } }),
      /is the source of replication db-failback/,
    );
  });

  const writer = await startWriter(there, random(7), 20);
  await writer.stop();
  await world.normal('db-failback', Date.now());
  // What differs so far crosses now; the rest is counted.
  const rehearsal = await world.until('what both sides have is compared, and a drill is accepted', () =>
    start(world, { ...back, type: 'drill' }).catch((error: unknown) => {
      if (!(error instanceof ApiProblem) || error.problem.code !== 'WrongState') throw error;
      return undefined;
    }),
  );
  await reaches(world, rehearsal, 'Completed');
  t.equal((await world.get('db-failback')).status.role, 'Secondary', 'a drill promotes nothing');
  t.ok(sameBytes(source, there), 'a drill has written it');
  const changed = change(there, 1);
  await world.normal('db-failback', Date.now(), 300);
  await demoted(world, 'db-failback');

  const before = world.proxy?.receivedBytes ?? 0;
  const beforeUp = world.proxy?.sentBytes ?? 0;
  const moved = await start(world, back);
  const { status } = await reaches(world, moved, 'Completed');
  const bytes = (world.proxy?.receivedBytes ?? 0) - before + (world.proxy?.sentBytes ?? 0) - beforeUp;
  t.ok(bytes <= 1.2 * changed, `${bytes} bytes both ways at the socket for ${changed} that had changed`);
  t.comment(`${(bytes / changed).toFixed(3)} times the change, ${status.rtoSeconds} s`);
  t.equal(status.verified, true);
  t.ok(sameBytes(source, there), 'nothing is lost');
  await act(world, moved, 'confirm');
  await reaches(world, moved, 'Confirmed');
  const again = await world.normal('db', Date.now(), 300);
  t.match(again.spec, { source: { agent: agentName, path: source }, replicationState: 'primary' });
  t.equal((await world.points('db'))[0]?.digest, first?.digest, 'the points of before can still be recovered');
  await t.rejects(world.get('db-failback'), /there is no replication/);
  const onward = await startWriter(source, random(9), 20);
  await onward.stop();
  await world.normal('db', Date.now());
  t.ok(sameBytes(source, (await world.copyOf('db')).path), 'and it is mirrored on');
});

t.test('killed in the middle: what is half written is known as such, and is finished', async (t) => {
  const world = await openWorld(t);
  const source = join(world.sources, 'image');
  writeNoise(source, 16 << 20);
  world.agentFlags.push('--allow', join(world.dir, 'copies'), '--allow-write', world.sources);
  await world.startAgent();
  await world.replicate('db', source, { compression: 'none' });
  await world.normal('db');
  const there = await movedAway(world, 'db');
  writeNoise(there, 16 << 20);
  await world.normal('db-failback', Date.now());
  await demoted(world, 'db-failback');
  // 8 s for all of it.
  await world.client.send('PATCH', '/replications/db-failback', { spec: { bandwidthBytesPerSecond: 2 << 20 } });
  const target = { agent: agentName, path: source };
  const moved = await start(world, { replication: 'db-failback', type: 'failover', target });
  const marks = join(world.dir, 'a', 'restores');
  const marked = (): string =>
    readdirSync(marks)
      .map((name) => readFileSync(join(marks, name), 'utf8'))
      .join();
  const sending = (): Promise<unknown> =>
    world.until('it is sent', async () => {
      const { tasks, state } = (await reaches(world, moved, 'Running', 'Completed')).status;
      if (state === 'Completed') throw new Error('it was over before it could be killed');
      return /sending/.test(tasks[0]?.progress?.step ?? '') && tasks[0];
    });
  for (const who of ['agent', 'master', 'both'] as const) {
    await sending();
    if (who === 'agent') {
      await world.agent.kill();
      t.notOk(sameBytes(source, there), 'half of it is written');
      t.match(marked(), new RegExp(`"path":"${source}","state":"writing"`), 'and known as such');
      world.agent.start();
    } else await killed(world, who);
  }
  await reaches(world, moved, 'Completed');
  t.ok(sameBytes(source, there), 'it is whole');
  t.match(marked(), /"state":"written"/);

  await t.test('rolled back half-way it is mirrored by force only', async (t) => {
    await act(world, moved, 'rollback');
    await reaches(world, moved, 'RolledBack');
    writeNoise(there, 16 << 20);
    await world.normal('db-failback', Date.now());
    const second = await start(world, { replication: 'db-failback', type: 'failover', target });
    await world.until('it is sent', async () => {
      const [task] = (await reaches(world, second, 'Running')).status.tasks;
      return /sending/.test(task?.progress?.step ?? '');
    });
    await act(world, second, 'cancel');
    const { status } = await reaches(world, second, 'Cancelled');
    t.match(status.message, /may be half written/);
    await world.normal('db-failback', Date.now());
    await world.replicate('old', source);
    await world.degraded('old', 'SourceHalfWritten', 60);
    await world.client.send('POST', '/replications/old/actions/resync', { force: true });
    await world.normal('old');
  });
});
