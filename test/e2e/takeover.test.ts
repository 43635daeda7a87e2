/** A master that dies, and another one that takes its data over: started beside it too early, then in its place. */
import t from 'tap';
import {
  copyFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect } from '../../master/cli/client.ts';
import type { Agent, PointView, Recovery, Replication, Snapshot } from '../../master/resources.ts';
import { isReplicaFolder } from '../../master/storage.ts';
import { countIn, random, sameBytes, startWriter, writeNoise } from './content.ts';
import { program, runProgram } from './program.ts';
import { act, reaches, start } from './recovering.ts';
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

t.test('a master on another place goes on from a copy of the state of one that is lost with its disk', async (t) => {
  const other = mkdtempSync(join(tmpdir(), 'elsewhere-'));
  t.teardown(() => rmSync(other, { recursive: true, force: true }));
  const [state, older, path] = [join(other, 'master.state'), join(other, 'older.state'), join(other, 'class')];
  const world = await openWorld(t, { masterFlags: ['--state-copy', state] });
  const { client, masterDir, dir } = world;
  const source = join(world.sources, 'image');
  writeNoise(source, 16 << 20);
  await client.send('POST', '/storageclasses', {
    metadata: { name: 'far' },
    spec: { driver: 'directory', parameters: { path } },
  });
  await world.startAgent();
  await world.replicate('db', source, { storageClass: 'far', journalSeconds: 3600 });
  await world.normal('db');
  await world.snapshot('db', 'before');
  const copiedSince = async (what: string): Promise<void> => {
    const since = Date.now();
    await world.until(`the state is copied ${what}`, async () => statSync(state).mtimeMs > since);
  };
  await copiedSince('with a snapshot');
  copyFileSync(state, older);

  // What the older copy knows nothing of.
  await world.snapshot('db', 'after');
  const failover = await start(world, { replication: 'db', type: 'failover' });
  await reaches(world, failover, 'Completed');
  await act(world, failover, 'rollback');
  await reaches(world, failover, 'RolledBack');
  await world.normal('db', Date.now());
  await copiedSince('with the recovery');
  const before = await world.points('db');
  await world.master.kill();
  const lost = join(dir, 'lost');
  renameSync(masterDir, lost);

  const { grpc } = JSON.parse(readFileSync(join(lost, 'endpoints.json'), 'utf8')) as { grpc: string };
  const token = readFileSync(join(lost, 'admin.token'), 'utf8').trim();
  const master = async (name: string, at: string, ...more: string[]) => {
    const data = join(dir, name);
    const endpoints = join(data, 'endpoints.json');
    rmSync(endpoints, { force: true });
    const one = program('replicator-master', () => ['--data', data, '--http', '127.0.0.1:0', '--grpc', at, ...more], join(dir, `${name}.log`)); // prettier-ignore
    t.teardown(() => one.kill());
    one.start();
    await world.until(`${name} is ready`, async () => {
      if (!one.running) throw new Error(`it ended:\n${one.logEnd()}`);
      return existsSync(endpoints);
    });
    const { http } = JSON.parse(readFileSync(endpoints, 'utf8')) as { http: string };
    const client = connect(http, token);
    const get = () => client.get<Replication>('/replications/db');
    const points = async () => (await client.list<PointView>('/replications/db/points')).items;
    return { one, client, get, points };
  };
  const isLike = (now: PointView[]): void => {
    const digests = new Map(now.map(({ sequence, digest }) => [sequence, digest]));
    const wrong = before.filter(({ sequence, digest }) => digests.get(sequence) !== digest);
    t.same(wrong.map(({ sequence }) => sequence), [], 'every point is there, as it was'); // prettier-ignore
  };

  const second = await master('second', grpc, '--take-over', state);
  await t.test('from the newest copy it goes on by itself', async (t) => {
    const sinceMs = Date.now();
    writeNoise(source, 16 << 20);
    await world.until('mirroring goes on', async () => {
      const { status } = await second.get();
      return status.state === 'NORMAL' && Date.parse(status.lastSyncTime ?? '') >= sinceMs;
    });
    isLike(await second.points());
    const { items } = await second.client.list<Recovery>('/recoveries');
    t.same(items.map(({ status }) => status.state), ['RolledBack'], 'and nothing recovers twice'); // prettier-ignore
  });
  await t.test('the one before it gets nothing of what is its own now', async (t) => {
    const first = await master('lost', '127.0.0.1:0');
    const refused = () =>
      world.until('its replica is refused', async () => {
        const { conditions } = (await first.get()).status;
        const { message } = conditions.find(({ type, status }) => type === 'Degraded' && status === 'True') ?? {};
        return message !== undefined && /in use by|has taken over/.test(message) && message;
      });
    t.match(await refused(), /another process or machine/);
    await second.one.kill();
    await first.one.stop();
    first.one.start();
    await world.until('it is told why', async () => /has taken over/.test(first.one.logEnd()));
    await first.one.kill();
  });

  const third = await master('third', grpc, '--take-over', older);
  await t.test('from an older copy it believes what storage says, and what it cannot know waits for a person', async (t) => {
    const { client } = third;
    await world.until('the source is kept out', async () => (await third.get()).status.phase === 'Demoted');
    isLike(await third.points());
    await world.until('snapshots are those on storage', async () => {
      const { items } = await client.list<Snapshot>('/replications/db/snapshots');
      return items.map(({ metadata, status }) => `${metadata.name} ${status.state}`).join() === 'after Ready,before Ready';
    });
    const { items: events } = await client.list<{ code: string; message: string }>('/events');
    t.ok(events.some(({ code, message }) => code === 'SourceDemoted' && /fenced after the copy/.test(message)));
    const sinceMs = Date.now();
    await client.send('POST', '/replications/db/actions/resync', { force: false });
    await world.until('mirroring goes on', async () => {
      const { status } = await third.get();
      return status.state === 'NORMAL' && Date.parse(status.lastSyncTime ?? '') >= sinceMs;
    });
    const drill = await client.send<Recovery>('POST', '/recoveries', { replication: 'db', type: 'drill' });
    const ended = await world.until('the drill has ended', async () => {
      const recovery = await client.get<Recovery>(`/recoveries/${drill.metadata.name}`);
      return recovery.status.outcome !== null && recovery;
    });
    t.match(ended.status, { outcome: 'success', verified: true });
    t.ok(sameBytes(source, ended.status.tasks[0]?.path ?? ''), 'and the copy is the source');
  }); // prettier-ignore
});

t.test('a replica whose storage is not there is waited for, and not made anew unless somebody says so', async (t) => {
  const world = await openWorld(t);
  const source = join(world.sources, 'image');
  writeNoise(source, 4 << 20);
  await world.startAgent();
  await world.replicate('db', source);
  await world.normal('db');
  const before = await world.points('db');
  const volumes = join(world.masterDir, 'volumes');
  await world.master.kill();
  renameSync(volumes, join(world.dir, 'away'));
  await world.startMaster();
  const { status } = await world.until('it is missed', async () => {
    const replication = await world.get('db');
    const isMissed = replication.status.conditions.some(({ message }) => /Mount its storage there/.test(message));
    return isMissed && replication;
  });
  t.equal(status.recoveryPoint, null);
  const made = existsSync(volumes) ? readdirSync(volumes).filter(isReplicaFolder) : [];
  t.same(made, [], 'nothing is made in its place');
  rmSync(volumes, { recursive: true, force: true });
  renameSync(join(world.dir, 'away'), volumes);
  await world.normal('db', Date.now());
  t.ok(
    (await world.points('db')).some(({ digest }) => digest === before[0]?.digest),
    'with its points',
  );

  await world.master.kill();
  rmSync(volumes, { recursive: true });
  await world.startMaster();
  await world.until('it is missed', async () => (await world.get('db')).status.state !== 'NORMAL');
  await world.client.send('POST', '/replications/db/actions/resync', { force: true });
  await world.normal('db', Date.now());
});
