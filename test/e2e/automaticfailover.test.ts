/**
 * Failover by policy: a node in a network namespace of its own, a witness beside the master. An agent that is killed is no node that
 * is gone; a node whose network is cut is.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { removeInstance } from '../../agent/capture/tracefs.ts';
import { traceInstance } from '../../agent/trackings.ts';
import type { Condition, Recovery } from '../../master/resources.ts';
import { run } from '../loop.ts';
import { sameBytes, writeNoise } from './content.ts';
import { program, type Program } from './program.ts';
import { act, reaches } from './recovering.ts';
import { agentName, openWorld, type World } from './world.ts';

const holdOffSeconds = 10;

const prefix = 'cdmr-failover-';
const linkOf = (pid: string | number): string => `cdmrf${pid}`;

/** What a run that was killed has left. */
function removeLeft(): void {
  const names = spawnSync('ip', ['netns'], { encoding: 'utf8' }).stdout.match(/^cdmr-failover-\d+/gm) ?? [];
  const links = readdirSync('/sys/class/net').filter((name) => /^cdmrf\d+$/.test(name));
  const left = [...names.map((name) => name.slice(prefix.length)), ...links.map((name) => name.slice('cdmrf'.length))];
  for (const pid of left.filter((pid) => !existsSync(`/proc/${pid}`))) {
    spawnSync('ip', ['link', 'del', linkOf(pid)]);
    spawnSync('ip', ['netns', 'del', `${prefix}${pid}`]);
  }
}

/** Host and node of a /30 that nothing on this machine is in. */
function freeAddresses(): [string, string] {
  const taken = spawnSync('ip', ['-o', '-4', 'addr'], { encoding: 'utf8' }).stdout;
  for (let at = process.pid; ; at++) {
    const [third, fourth] = [(at >> 6) & 255, (at & 63) * 4];
    const [host, node] = [`10.231.${third}.${fourth + 1}`, `10.231.${third}.${fourth + 2}`];
    if (!taken.includes(`inet ${host}/`) && !taken.includes(`inet ${node}/`)) return [host, node];
  }
}

interface Node {
  netns: string;
  hostAddress: string;
  cut(): void;
  heal(): void;
}

/** A namespace that is joined to this host by one line. */
function makeNode(t: Test): Node {
  removeLeft();
  const [hostAddress, address] = freeAddresses();
  const netns = `${prefix}${process.pid}`;
  const link = linkOf(process.pid);
  t.teardown(() => {
    // A process that is left in the namespace keeps it, and this end with it.
    spawnSync('ip', ['link', 'del', link]);
    spawnSync('ip', ['netns', 'del', netns]);
  });
  run('ip', 'netns', 'add', netns);
  run('ip', 'link', 'add', link, 'type', 'veth', 'peer', 'name', 'node0', 'netns', netns);
  run('ip', 'addr', 'add', `${hostAddress}/30`, 'dev', link);
  run('ip', 'link', 'set', link, 'up');
  run('ip', '-n', netns, 'addr', 'add', `${address}/30`, 'dev', 'node0');
  run('ip', '-n', netns, 'link', 'set', 'lo', 'up');
  run('ip', '-n', netns, 'link', 'set', 'node0', 'up');
  return {
    netns,
    hostAddress,
    cut: () => void run('ip', '-n', netns, 'link', 'set', 'node0', 'down'),
    heal: () => void run('ip', '-n', netns, 'link', 'set', 'node0', 'up'),
  };
}

function witnessOf(t: Test, world: World): Program {
  const { masterDir } = world;
  const { grpc } = JSON.parse(readFileSync(join(masterDir, 'endpoints.json'), 'utf8')) as { grpc: string };
  const data = join(world.dir, 'node-c');
  const token = ['--join-token-file', join(masterDir, 'join.token'), '--ca-file', join(masterDir, 'ca.pem')];
  const argv = ['--name', 'node-c', '--master', grpc, '--data', data, ...token];
  const witness = program('replicator-agent', () => argv, join(world.dir, 'node-c.log'));
  t.teardown(async () => {
    await witness.kill();
    removeInstance(traceInstance(data));
  });
  return witness;
}

const missing = process.getuid?.() !== 0 ? 'needs root' : spawnSync('ip', ['netns']).status !== 0 && 'needs ip';

t.test('a source is failed over when its node is gone, and only then', { skip: missing }, async (t) => {
  const node = makeNode(t);
  const world = await openWorld(t, {
    grpc: `${node.hostAddress}:0`,
    tracer: (name) => (name === 'replicator-agent' ? ['ip', 'netns', 'exec', node.netns] : []),
  });
  const witness = witnessOf(t, world);
  const source = join(world.sources, 'image');
  writeNoise(source, 8 << 20);
  await world.startAgent();
  witness.start();
  const automatic = { policy: 'automatic' as const, holdOffSeconds, witness: { agents: ['node-c'], port: 22 } };
  const none = { ...automatic, witness: { agents: [], port: 22 } };
  await t.rejects(world.replicate('db', source, { failover: none }), /must name an agent of another node/);
  const itself = { ...automatic, witness: { agents: [agentName], port: 22 } };
  await t.rejects(world.replicate('db', source, { failover: itself }), /must not name the source's own agent/);
  await world.replicate('db', source, { failover: automatic });
  await world.normal('db');

  const pending = (reason: string): Promise<Condition> =>
    world.until(
      `FailoverPending is ${reason}`,
      async () => {
        const { conditions } = (await world.get('db')).status;
        return conditions.find((one) => one.type === 'FailoverPending' && one.reason === reason);
      },
      120,
    );
  const failovers = async (): Promise<Recovery[]> =>
    (await world.client.list<Recovery>('/recoveries')).items.filter(({ spec }) => spec.type === 'failover');
  /** It stays as it is for twice the hold-off. */
  const staysWithout = async (reason: string, count: number): Promise<void> => {
    const sinceMs = performance.now();
    await world.until(`nothing happens while it is ${reason}`, async () => {
      t.equal((await pending(reason)).status, 'False');
      return performance.now() - sinceMs > 2000 * holdOffSeconds;
    });
    t.equal((await failovers()).length, count, `no failover is made while it is ${reason}`);
  };
  const message = async (code: string): Promise<string[]> =>
    (await world.events()).filter((event) => event.code === code).map((event) => event.message);

  await pending('SourceHeard');
  await t.test('an agent that was killed on a node that lives', async (t) => {
    await world.agent.kill();
    t.match((await pending('WitnessDisagrees')).message, /node-c says that node node-a is there/);
    const gone = await world.degraded('db', 'AgentGone');
    t.match(
      gone.status.conditions.find(({ type }) => type === 'Degraded')?.message,
      /its node answers node-c; start it/,
    );
    await staysWithout('WitnessDisagrees', 0);
    world.agent.start();
    await pending('SourceHeard');
    t.match(await message('FailoverWithheld'), [/node-c says/]);
    t.equal((await message('SourceHeard')).length, 1);
  });

  await t.test('a node whose network is cut', async (t) => {
    await world.normal('db', Date.now());
    node.cut();
    const failover = await world.until('it is failed over', async () => (await failovers())[0], 180);
    t.match(await message('FailoverStarted'), [/nobody has heard of node-a for 10 s, and node-c finds it gone/]);
    // The silence that ends a line is as long as the hold-off here.
    t.equal((await message('FailoverWithheld')).length, 1, 'a witness that is being asked is no missing one');
    const { status } = await reaches(world, failover, 'Completed');
    t.ok(sameBytes(source, status.tasks[0]?.path ?? ''), 'its copy has what was mirrored');
    t.match((await pending('FailoverOpen')).message, /confirm it or roll it back/);
    await world.master.kill();
    await world.startMaster();
    await pending('FailoverOpen');
    await act(world, failover, 'rollback');
    await reaches(world, failover, 'RolledBack');
    await staysWithout('FailoverSpent', 1);
    node.heal();
    await pending('SourceHeard');
    await world.normal('db', Date.now());
  });

  await t.test('not while it is paused, and not without a second view', async (t) => {
    await world.client.send('POST', '/replications/db/actions/pause', {});
    await witness.kill();
    node.cut();
    t.match((await pending('Barred')).message, /db is paused/);
    await world.client.send('POST', '/replications/db/actions/resume', {});
    t.match((await pending('NoWitness')).message, /a person decides/);
    await world.degraded('db', 'ConnectionLost');
    await staysWithout('NoWitness', 1);
    witness.start();
    const failover = await world.until(
      'its witness is back, and it is failed over',
      async () => (await failovers())[1],
    );
    await reaches(world, failover, 'Completed');
  });
});
