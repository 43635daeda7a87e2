import t from 'tap';
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Test } from 'tap';
import { removeInstance } from '../../agent/capture/tracefs.ts';
import { traceInstance } from '../../agent/trackings.ts';
import type { GroupPointView, Replication } from '../../master/resources.ts';
import { loopMount, missingForLoop, run, unmountAfter } from '../loop.ts';
import { missingPostgres, startCluster } from './postgres.ts';
import { program, type Program } from './program.ts';
import { reaches, start } from './recovering.ts';
import { long, openWorld, type World } from './world.ts';

const skip = missingForLoop('ext4') || missingPostgres();

/** One more agent of this machine, with a name and a folder of its own. */
async function oneMore(t: Test, world: World, name: string, allow: string): Promise<Program> {
  const { masterDir } = world;
  const { grpc } = JSON.parse(spawnSync('cat', [join(masterDir, 'endpoints.json')]).stdout.toString()) as {
    grpc: string;
  };
  const data = join(world.dir, name);
  const token = ['--join-token-file', join(masterDir, 'join.token'), '--ca-file', join(masterDir, 'ca.pem')];
  const agent = program(
    'replicator-agent',
    () => ['--name', name, '--master', grpc, '--data', data, ...token, '--allow', allow],
    join(world.dir, `${name}.log`),
  );
  t.teardown(async () => {
    await agent.kill();
    removeInstance(traceInstance(data));
  });
  agent.start();
  await world.until(`${name} is active`, async () => {
    const { items } = await world.client.list<{ metadata: { name: string }; status: { state: string } }>('/agents');
    return items.some(({ metadata, status }) => metadata.name === name && status.state === 'ACTIVE');
  });
  return agent;
}

function mount(t: Test, image: string, mountPoint: string): void {
  mkdirSync(mountPoint, { recursive: true });
  run('mount', '-o', 'loop', image, mountPoint);
  unmountAfter(t, mountPoint);
}

/** What a round was waiting for, in seconds. */
function stopwatch(): { start(): void; lap(name: string): void; said(): string } {
  let atMs = performance.now();
  let laps: string[] = [];
  return {
    start: () => void (atMs = performance.now()),
    lap(name) {
      const nowMs = performance.now();
      laps.push(`${name} ${((nowMs - atMs) / 1000).toFixed(1)}`);
      atMs = nowMs;
    },
    said() {
      const said = laps.join(', ');
      laps = [];
      return `seconds: ${said}`;
    },
  };
}

t.test('PostgreSQL with data and log on two nodes', { skip }, async (t) => {
  const data = await loopMount(t, 'ext4', 300);
  const wal = await loopMount(t, 'ext4', 200);
  // The user postgres must get there.
  for (const { directory } of [data, wal]) chmodSync(directory, 0o755);
  const world = await openWorld(t, { allow: [data.device] });
  const cluster = await startCluster(t, data.mountPoint, wal.mountPoint);
  const load = cluster.load(t);
  await world.startAgent();
  const second = await oneMore(t, world, 'node-b', wal.device);
  const spec = { target: { storageClass: 'local' }, rpoSeconds: 2, maxFreezeMs: 5000, group: 'pg' };
  for (const [name, agent, path] of [
    ['data', 'node-a', data.device],
    ['wal', 'node-b', wal.device],
  ]) {
    await world.client.send<Replication>('POST', '/replications', {
      metadata: { name },
      spec: { ...spec, source: { agent, path, volumeMode: 'Block' } },
    });
  }
  const points = async (): Promise<GroupPointView[]> =>
    (await world.client.list<GroupPointView>('/groups/pg/points')).items;
  const newest = (from: number): Promise<GroupPointView> =>
    world.until(
      `a point of the group that is newer than ${new Date(from).toISOString()}`,
      async () => (await points()).findLast(({ sourceTime }) => Date.parse(sourceTime) >= from),
      120,
    );

  const mounts = mkdtempSync(join(tmpdir(), 'replicator-mounts-'));
  chmodSync(mounts, 0o755);
  t.teardown(() => rmSync(mounts, { recursive: true, force: true }));

  const rounds = Number(process.env['REPLICATOR_ROUNDS'] ?? (long ? 50 : 2));
  const took = stopwatch();
  for (let round = 0; round < rounds; round++) {
    took.start();
    await newest(Date.now());
    took.lap('new point');
    // As if both nodes were lost at this moment: what is there now is all that there is.
    await sleep(2000 * Math.random());
    const point = (await points()).at(-1) as GroupPointView;
    took.start();
    await t.test(`recovery ${round + 1}: the database of ${point.sourceTime} starts`, async (t) => {
      t.equal(point.consistency, 'filesystem');
      t.same(new Set(point.points.map((one) => one.point.sourceTime)), new Set([point.sourceTime]));
      const places: Record<string, string> = {};
      const choice = { group: 'pg', type: 'drill', point: { time: point.sourceTime } };
      const recovery = await reaches(world, await start(world, choice), 'Completed', 'Failed');
      took.lap('copies');
      for (const { volume, path, point: chosen } of recovery.status.tasks) {
        const member = point.points.find(({ replication }) => replication === volume);
        t.equal(chosen?.sequence, member?.point.sequence, 'its point is that of the group');
        places[volume] = join(mounts, `${volume}-${round}`);
        mount(t, path ?? '', places[volume]);
      }
      const asOfMs = Date.parse(point.sourceTime);
      const promised = load.commits.reduce((most, ms, number) => (ms < asOfMs ? number : most), 0);
      const copy = await startCluster(t, places['data'] ?? '', places['wal']);
      took.lap('database starts');
      const last = Number(copy.sql('SELECT coalesce(max(number), 0) FROM instant'));
      t.equal(Number(copy.sql('SELECT count(*) FROM instant')), last, 'no committed row is missing between');
      t.ok(promised > 0 && last >= promised, `row ${promised} was committed before; newest: ${last}`);
      t.equal(copy.check(), '', 'pg_amcheck finds nothing');
      const sums = 'SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)';
      t.equal(copy.sql(sums).trim(), 't', 'the accounts add up to the history');
      took.lap('looked at');
      await copy.stop();
      // The copies of fifty rounds need not all be there at once.
      for (const place of Object.values(places)) run('umount', place);
      for (const { metadata } of (await world.client.list<Replication>('/recoveries')).items)
        await world.client.send('POST', `/recoveries/${metadata.name}/actions/rollback`).catch(() => undefined);
      t.comment(took.said());
    });
  }

  await t.test('a member that is gone: no point for anybody, the reason, and on again', async (t) => {
    await second.kill();
    await world.degraded('wal', 'AgentGone', 60);
    const { status } = await world.degraded('data', 'NoConsistentCut', 60);
    const why = status.conditions.find(({ type }) => type === 'Degraded')?.message ?? '';
    t.match(why, /group pg has no common cut: .*wal/);
    const before = (await points()).at(-1)?.cut;
    const { recoveryPoint } = (await world.get('data')).status;
    await sleep(2500);
    t.equal((await points()).at(-1)?.cut, before);
    t.equal((await world.get('data')).status.recoveryPoint?.sequence, recoveryPoint?.sequence, 'nor one of its own');
    second.start();
    const back = await newest(Date.now());
    t.not(back.cut, before);
  });

  await t.test('one that does not hold still spoils the cut of all, and the others go on working', async (t) => {
    await world.client.send('PATCH', '/replications/wal', { spec: { maxFreezeMs: 1 } });
    await world.degraded('data', 'NoConsistentCut', 60);
    const probe = join(data.mountPoint, 'probe');
    writeFileSync(probe, 'x');
    t.ok(existsSync(probe));
    await world.client.send('PATCH', '/replications/wal', { spec: { maxFreezeMs: 5000 } });
    await newest(Date.now());
  });
  await load.stop();
  await cluster.stop();
});
