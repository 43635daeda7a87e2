/** A master that dies, and another one that takes its data over: started beside it too early, then in its place. */
import t from 'tap';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { connect } from '../../master/cli/client.ts';
import type { Agent, PointView, Recovery, Replication } from '../../master/resources.ts';
import { countIn, random, sameBytes, startWriter, writeNoise } from './content.ts';
import { program, runProgram } from './program.ts';
import { start } from './recovering.ts';
import { agentName, openWorld } from './world.ts';

t.test('a second master on the data of one that was killed: nothing twice, nothing lost', async (t) => {
  const world = await openWorld(t);
  const { masterDir, dir } = world;
  const source = join(world.sources, 'image');
  writeNoise(source, 64 << 20);
  await world.startAgent();
  await world.replicate('db', source);
  await world.normal('db');
  const writer = await startWriter(source, random(7));
  t.teardown(() => writer.stop());
  const { http, grpc } = JSON.parse(readFileSync(join(masterDir, 'endpoints.json'), 'utf8')) as Record<string, string>;
  const argv = ['--data', masterDir, '--http', '127.0.0.1:0', '--grpc', grpc ?? '', '--allow', join(dir, 'copies')];

  const early = runProgram('replicator-master', argv);
  t.equal(early.status, 1, 'while the first one lives the data is refused');
  t.match(early.stderr + early.stdout, /is in use by another running process/);
  t.equal((await world.get('db')).status.state, 'NORMAL', 'and the first one goes on');

  const path = join(dir, 'copies', 'drill.raw');
  const drill = await start(world, { replication: 'db', type: 'drill', target: { path } });
  const ofDrill = () => world.client.get<Recovery>(`/recoveries/${drill.metadata.name}`);
  await world.until('the drill is at work', async () => (await ofDrill()).status.state === 'Running');
  const before = await world.points('db');
  await world.master.kill();
  const wasRunning = !existsSync(path);

  const second = program('replicator-master', () => argv, join(dir, 'second.log'));
  t.teardown(() => second.kill());
  second.start();
  const url = await world.until('the second one is ready', async () => {
    if (!second.running) throw new Error(`it ended:\n${second.logEnd()}`);
    const now = (JSON.parse(readFileSync(join(masterDir, 'endpoints.json'), 'utf8')) as { http: string }).http;
    return now !== http && now;
  });
  const client = connect(url, readFileSync(join(masterDir, 'admin.token'), 'utf8').trim());
  await world.until('the agent is back', async () => {
    const agent = await client.get<Agent>(`/agents/${agentName}`);
    return agent.status.state === 'ACTIVE';
  });
  const ended = await world.until('the drill has ended', async () => {
    const recovery = await client.get<Recovery>(`/recoveries/${drill.metadata.name}`);
    return recovery.status.outcome !== null && recovery;
  });
  t.match(ended.status, { outcome: 'success', verified: true, state: 'Completed' });
  t.comment(wasRunning ? 'killed before the copy had its name' : 'killed when the copy had its name');
  t.equal((await client.list<Recovery>('/recoveries')).items.length, 1, 'it was made once');
  t.same(
    readdirSync(join(dir, 'copies')).filter((name) => name.includes('drill')),
    ['drill.raw'],
    'one copy, and nothing of the one that was broken off',
  );
  const { items: events } = await client.list<{ code: string; object: string }>('/events');
  const told = events.filter(
    ({ code, object }) => code === 'RecoveryCompleted' && object.endsWith(drill.metadata.name),
  );
  t.equal(told.length, 1, 'its end is told once');
  t.ok(countIn(path) >= writer.countBefore(Date.parse(ended.status.point?.sourceTime ?? '')), 'no write is lacking');

  await writer.stop();
  const sinceMs = Date.now();
  await world.until('mirroring goes on', async () => {
    const { status } = await client.get<Replication>('/replications/db');
    return status.state === 'NORMAL' && Date.parse(status.lastSyncTime ?? '') >= sinceMs;
  });
  const after = new Map(
    (await client.list<PointView>('/replications/db/points')).items.map(({ sequence, digest }) => [sequence, digest]),
  );
  t.same(
    before.filter(({ sequence, digest }) => after.get(sequence) !== digest).map(({ sequence }) => sequence),
    [],
    'every point that the first one had is there, as it was',
  );
  const last = await client.send<Recovery>('POST', '/recoveries', {
    ...{ replication: 'db', type: 'drill', target: { path: join(dir, 'copies', 'last.raw') } },
  });
  await world.until('the last drill has ended', async () => {
    const { status } = await client.get<Recovery>(`/recoveries/${last.metadata.name}`);
    return status.outcome !== null;
  });
  t.ok(sameBytes(source, join(dir, 'copies', 'last.raw')), 'and the copy is the source');
});
