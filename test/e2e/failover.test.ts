import t from 'tap';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Recovery } from '../../master/resources.ts';
import { noise, random, sameBytes, startWriter, writeNoise } from './content.ts';
import { act, reaches, start } from './recovering.ts';
import { killed, openWorld } from './world.ts';

t.test('a failover takes the newest point and keeps the source out; its rollback mirrors it again', async (t) => {
  const world = await openWorld(t);
  const source = join(world.sources, 'image');
  writeNoise(source, 16 << 20);
  await world.startAgent();
  await world.replicate('db', source);
  await world.normal('db');
  const writer = await startWriter(source, random(1), 50);
  t.teardown(() => writer.stop());
  await world.normal('db', Date.now());

  const failover = await start(world, { replication: 'db', type: 'failover' });
  const { status } = await reaches(world, failover, 'Completed');
  t.equal(status.outcome, null, 'it has no outcome before somebody decides');
  t.match(status.message, /confirm it or roll it back/);
  t.ok(
    (status.rtoSeconds ?? 99) < 60 && (status.rpoSeconds ?? 99) < 60,
    `${status.rtoSeconds} s, ${status.rpoSeconds} s`,
  );
  const promoted = await world.until('it is promoted', async () => {
    const one = await world.get('db');
    return one.status.phase === 'Promoted' && one;
  });
  t.equal(promoted.status.role, 'Primary');
  t.equal(promoted.spec.replicationState, 'secondary');
  t.equal(promoted.status.recoveryPoint?.digest, status.point?.digest, 'nothing came after its point');
  const path = status.tasks[0]?.path ?? '';
  const drill = await world.copyOf('db');
  t.ok(sameBytes(path, drill.path), 'its copy has the bytes of the newest point');

  const refused = await start(world, { replication: 'db', type: 'failover' }).catch((error: unknown) => String(error));
  t.match(refused, /roll it back first/, 'one failover at a time');
  await t.rejects(world.client.send('DELETE', '/replications/db'), /roll it back/);
  await t.rejects(world.client.send('DELETE', `/recoveries/${failover.metadata.name}`), /roll it back or confirm/);

  await t.test('also over a kill of both', async (t) => {
    await killed(world, 'both');
    await world.until('the agent is back', async () => (await world.get('db')).status.fencingGeneration !== '');
    await world.until('it says that it is held', async () => {
      const { items } = await world.client.list<{ status: { state: string } }>('/agents');
      return items[0]?.status.state === 'ACTIVE';
    });
    const points = await world.points('db');
    t.equal(points.at(-1)?.digest, status.point?.digest, 'no point came from the source');
    t.equal((await world.get('db')).status.phase, 'Promoted');
  });

  writeFileSync(path, noise(4096), { flag: 'r+' });
  await act(world, failover, 'rollback');
  const rolledBack = await reaches(world, failover, 'RolledBack');
  t.equal(rolledBack.status.outcome, 'cancelled');
  t.notOk(existsSync(path), 'the copy is gone');
  await world.normal('db', Date.now());
  await writer.stop();
  await world.normal('db', Date.now());
  const after = await world.copyOf('db');
  t.ok(sameBytes(source, after.path), 'what was written meanwhile is mirrored');
  t.ok(BigInt((await world.get('db')).status.fencingGeneration) > BigInt(promoted.status.fencingGeneration));
  t.equal(await world.metric('recoveries_total', 'type="failover",result="cancelled"'), 1);
});

t.test('a recovery goes on from every state when the master is killed', async (t) => {
  const world = await openWorld(t);
  const gate = join(world.dir, 'gate');
  const program = join(world.dir, 'check');
  writeFileSync(
    program,
    `#!/bin/sh\nwhile [ -e ${gate} ]; do sleep 0.1; done\necho "looked at $1"\n[ ! -e ${gate}.bad ]\n`,
    { mode: 0o755 },
  );
  await world.master.stop();
  world.masterFlags.push('--allow', program);
  await world.startMaster();
  const source = join(world.sources, 'image');
  writeNoise(source, 4 << 20);
  await world.startAgent();
  await world.replicate('db', source, { check: { argv: [program, '{path}'], timeoutSeconds: 300 } });
  await world.normal('db');

  for (const type of ['drill', 'failover'] as const) {
    const make = () => start(world, { replication: 'db', type });
    const inCheck = (one: Recovery) =>
      world.until('its check runs', async () => {
        const { status } = await world.client.get<Recovery>(`/recoveries/${one.metadata.name}`);
        return status.tasks[0]?.progress?.step === 'checking';
      });

    writeFileSync(gate, '');
    let one = await make();
    await inCheck(one);
    await killed(world, 'master');
    await inCheck(one);
    await act(world, one, 'pause');
    await killed(world, 'master');
    await reaches(world, one, 'Pausing', 'Paused');
    rmSync(gate);
    const paused = await reaches(world, one, 'Paused');
    await killed(world, 'master');
    await reaches(world, paused, 'Paused');
    await act(world, one, 'resume');
    await killed(world, 'master');
    const done = await reaches(world, one, 'Completed');
    const path = done.status.tasks[0]?.path ?? '';
    t.match(
      done.status.tasks[0]?.check,
      { exitStatus: 0, output: `looked at ${path}` },
      `${type}: the check is in the report`,
    );
    await killed(world, 'master');
    await reaches(world, one, 'Completed');
    t.ok(existsSync(path));

    await act(world, one, 'rollback');
    await killed(world, 'master');
    await reaches(world, one, 'RolledBack');
    t.notOk(existsSync(path), `${type}: rolled back over a kill`);

    writeFileSync(gate, '');
    one = await make();
    await inCheck(one);
    await act(world, one, 'cancel');
    await killed(world, 'master');
    const cancelled = await reaches(world, one, 'Cancelled');
    t.equal(cancelled.status.outcome, 'cancelled');
    t.notOk(existsSync(cancelled.status.tasks[0]?.path ?? ''), `${type}: cancelled over a kill`);
    rmSync(gate);

    writeFileSync(`${gate}.bad`, '');
    one = await make();
    const bad = await reaches(world, one, 'Failed');
    t.match(bad.status.tasks[0], {
      state: 'Failed',
      message: /its check .* failed: exit status 1/,
      check: { exitStatus: 1 },
    });
    t.ok(existsSync(bad.status.tasks[0]?.path ?? ''), 'the copy stays to be looked at');
    await killed(world, 'master');
    rmSync(`${gate}.bad`);
    await act(world, one, 'retry');
    await killed(world, 'master');
    const retried = await reaches(world, one, 'Completed');
    t.equal(retried.status.tasks[0]?.path, bad.status.tasks[0]?.path, 'what was good is taken up');

    // A path that goes through a file can be removed by nobody.
    const copies = join(world.dir, 'copies');
    await act(world, one, 'rollback');
    await reaches(world, one, 'RolledBack');
    mkdirSync(copies, { recursive: true });
    one = await start(world, { replication: 'db', type, target: { path: join(copies, 'deep', 'copy') } });
    await reaches(world, one, 'Completed');
    rmSync(join(copies, 'deep'), { recursive: true });
    writeFileSync(join(copies, 'deep'), '');
    await act(world, one, 'rollback');
    await world.until('it says why', async () => {
      const { status } = await world.client.get<Recovery>(`/recoveries/${one.metadata.name}`);
      return status.message?.includes('tried again');
    });
    await killed(world, 'master');
    await reaches(world, one, 'RollingBack');
    await act(world, one, 'rollback', true);
    const left = await reaches(world, one, 'RollbackIgnored');
    t.equal(left.status.outcome, type === 'drill' ? 'success' : 'cancelled');
    t.equal(readFileSync(join(copies, 'deep'), 'utf8'), '', 'what is not ours is left alone');
    rmSync(join(copies, 'deep'));
    await world.normal('db', Date.now());
  }
});
