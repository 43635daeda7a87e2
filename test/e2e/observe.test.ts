import t from 'tap';
import { spawnSync } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { writeNoise } from './content.ts';
import { openWorld } from './world.ts';

const root = resolve(import.meta.dirname, '../..');
type Line = Record<string, unknown>;
const linesOf = (path: string): Line[] =>
  readFileSync(path, 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as Line);

t.test('logs that join, a support bundle without secrets, metrics over restarts', async (t) => {
  const world = await openWorld(t, { agentFlags: ['--log-level', 'debug'] });
  const image = join(world.sources, 'image');
  writeNoise(image, 8 << 20);
  await world.startAgent();
  await world.replicate('db', image, {
    hooks: { beforeFreeze: ['/bin/true', '--password=hunter2-hook'], afterThaw: [], timeoutSeconds: 5 },
  });
  await world.normal('db');
  const secrets = ['admin.token', 'join.token'].map((name) => readFileSync(join(world.masterDir, name), 'utf8').trim());
  secrets.push('hunter2-hook');

  await t.test('each line of the logs is an object; calls and requests are found on both sides', async (t) => {
    const answer = await fetch(`${world.client.url}/api/v1/replications/db/actions/verify`, {
      method: 'POST',
      headers: { authorization: `Bearer ${secrets[0]}`, 'content-type': 'application/json' },
      body: '{}',
    });
    t.equal(answer.status, 202);
    const requestId = answer.headers.get('x-request-id');
    const master = await world.until('the request is in the log', async () => {
      const lines = linesOf(join(world.dir, 'master.log'));
      return lines.some((line) => line['requestId'] === requestId) && lines;
    });
    const agent = linesOf(join(world.dir, 'agent.log'));
    for (const line of [...master, ...agent]) {
      if (typeof line['msg'] !== 'string' || typeof line['time'] !== 'string') t.fail(JSON.stringify(line));
      t.match(line['level'], /^(trace|debug|info|warn|error|fatal)$/);
    }
    t.match(
      master.filter((line) => line['requestId'] === requestId),
      [{ level: 'info', caller: 'admin', method: 'POST', status: 202, object: 'Replication/db' }],
    );
    const call = agent.find((line) => line['msg'] === 'a session begins')?.['call'];
    t.match(call, /^[0-9a-f]{16}$/);
    t.match(
      master.filter((line) => line['call'] === call),
      [{ agent: 'node-a', method: 'Mirror', msg: 'a call begins' }],
      'the same call at the master',
    );
    t.ok(
      master.some((line) => line['code'] === 'ReplicationState' && line['object'] === 'Replication/db'),
      'events are lines too',
    );
  });

  await t.test('the support bundle holds what is needed and no secret', async (t) => {
    const file = join(world.dir, 'bundle.tar.gz');
    const replctl = (...argv: string[]) =>
      spawnSync(join(root, 'master/replctl'), ['support-bundle', '--data', world.masterDir, ...argv], {
        encoding: 'utf8',
      });
    const made = replctl('--file', file);
    t.equal(made.status, 0, made.stderr);
    t.equal(made.stdout.trim(), file);
    t.equal(statSync(file).mode & 0o777, 0o600);
    const names = spawnSync('tar', ['-tzf', file], { encoding: 'utf8' }).stdout.trim().split('\n');
    for (const name of [
      'summary.json',
      'agents.json',
      'replications.json',
      'replications/0-points.json',
      'events.json',
    ])
      t.ok(names.includes(name), name);
    t.ok(names.includes('agents/0-volumes.json') && names.includes('metrics.txt'));
    const logOf = (name: string) =>
      spawnSync('tar', ['-xzOf', file, name], { encoding: 'utf8', maxBuffer: 64 << 20 }).stdout;
    for (const line of logOf('agents/0.log').trimEnd().split('\n'))
      t.match(JSON.parse(line), { program: 'replicator-agent' });
    t.match(logOf('agents/0.log'), 'a session begins', "the agent's log, by way of the master");
    t.match(logOf('logs/master.log'), '"msg":"a call begins"');
    const all = spawnSync('tar', ['-xzOf', file], { encoding: 'utf8', maxBuffer: 64 << 20 }).stdout;
    t.match(all, '"name": "db"');
    t.match(all, 'replicator_lag_seconds{replication="db"}');
    for (const secret of secrets) t.notOk(all.includes(secret), 'not in the bundle');
    t.not(replctl('--file', file).status, 0, 'an existing file is not overwritten');
    const logs = ['master.log', 'agent.log'].map((name) => readFileSync(join(world.dir, name), 'utf8')).join('');
    for (const secret of secrets.slice(0, 2)) t.notOk(logs.includes(secret), 'not in the logs');
  });

  await t.test(
    'counters neither fall nor double when the agent is killed, and are right after the master was',
    async (t) => {
      const counters = ['sent_bytes_total', 'read_bytes_total', 'full_scans_total', 'cuts_total'];
      const read = async () => Promise.all(counters.map((name) => world.metric(name, 'replication="db"')));
      // The first copy was of 8 MiB of noise, once.
      const sent = await world.metric('sent_bytes_total', 'replication="db"');
      t.ok(sent >= 8 << 20 && sent < 12 << 20, `${sent} bytes were sent for 8 MiB`);
      const before = await read();
      await world.agent.kill();
      await world.until(
        'the broken session is counted',
        async () => (await world.metric('syncs_total', 'result="failure"')) > 0,
      );
      await world.startAgent();
      await world.normal('db', Date.now(), 120);
      const after = await read();
      counters.forEach((name, index) => t.ok((after[index] ?? 0) >= (before[index] ?? 0), `${name} has not fallen`));
      t.ok((after[0] ?? 0) - (before[0] ?? 0) < 4 << 20, 'nor is the first copy counted again');

      await world.master.kill();
      await world.startMaster();
      await world.normal('db', Date.now(), 120);
      t.ok(
        (await world.metric('sent_bytes_total', 'replication="db"')) < 4 << 20,
        'what the earlier master counted is not new',
      );
      t.equal(await world.metric('initial_sync_ratio'), 1);
      t.equal(await world.metric('state', 'state="NORMAL"'), 1);
      const last = await world.metric('last_sync_timestamp_seconds');
      t.ok(Math.abs(Date.now() / 1000 - last) < 120, 'read from the store at once');
    },
  );
});
