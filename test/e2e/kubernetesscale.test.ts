/**
 * Many ReplicationInfos on a real API server: what the master asks of it for each of them, for a change, after history is gone, and at
 * rest, and what that takes of CPU. Agents are simulated (simulatedagents.ts), all else is real.
 *
 * `npm run e2e -- kubernetesscale` has 2,000 of 200 agents (REPLICATOR_AGENTS: of so many, ten each); scale.md has what a run told.
 */
import t from 'tap';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { group } from '../../master/kubernetes/kinds.ts';
import { cpuSeconds } from '../bench/processes.ts';
import { skipKubernetes, until } from '../kubernetes.ts';
import { account, namespace, openKubernetesWorld, type AnyObject } from './kubernetesworld.ts';
import { simulatedAgents } from './simulatedagents.ts';
import { long } from './world.ts';

t.setTimeout(7_200_000);

const agents = Number(process.env['REPLICATOR_AGENTS'] ?? (long ? 200 : 2));
const perAgent = 10;
const total = agents * perAgent;
const changes = long ? 100 : 5;
const restMs = long ? 180_000 : 6000;
const patienceMs = long ? 3_600_000 : 120_000;
const path = `/apis/${group}/v1/namespaces/${namespace}/replicationinfoes`;
/**
 * What a master that has nothing to do asks for; the time that has passed is noted once a minute, in a Secret. What is free of the
 * disk changes with all that runs here.
 */
const idle = /^(watch |(get|update) coordination|update \/secrets|update .*\/replicationstorageclasses\/status)/;

function counted(requests: string[]): Record<string, number> {
  const counts: Record<string, number> = {};
  // `verb group/resource name`: without the name.
  for (const request of requests) {
    const what = request.split(' ').slice(0, 2).join(' ');
    counts[what] = (counts[what] ?? 0) + 1;
  }
  return counts;
}

t.test(`${total} ReplicationInfos`, { skip: skipKubernetes, timeout: 7_200_000 }, async (t) => {
  const config = join(t.testdir({ 'c.yaml': 'requestsPerSecond: 100000\nopenReplicas: 50\n' }), 'c.yaml');
  const { cluster, world } = await openKubernetesWorld(t, { masterFlags: ['--config', config] });
  const { client, masterDir } = world;
  const { grpc } = JSON.parse(readFileSync(join(masterDir, 'endpoints.json'), 'utf8')) as { grpc: string };
  const token = readFileSync(join(masterDir, 'admin.token'), 'utf8').trim();
  const herd = simulatedAgents({
    ...{ count: agents, url: client.url, token, master: grpc, masterDir, dir: join(world.dir, 'agents') },
    ...{ reportMs: 5000, changeOneOf: 100, changeMs: 15_000 },
  });
  t.teardown(() => herd.end());
  await world.until('all agents are there', async () => herd.connected() === agents, patienceMs / 1000);

  /** Runs `work`, and answers what it took of the master and of the API server. */
  async function cost(
    work: () => Promise<void>,
  ): Promise<{ seconds: number; cpu: number; asked: Record<string, number> }> {
    const [sinceMs, before] = [Date.now(), cpuSeconds([world.master.pid])];
    await work();
    const asked = counted(cluster.requestsSince(namespace, account, sinceMs).filter((one) => !idle.test(one)));
    return { seconds: (Date.now() - sinceMs) / 1000, cpu: cpuSeconds([world.master.pid]) - before, asked };
  }
  const per = (what: string, count: number, { seconds, cpu, asked }: Awaited<ReturnType<typeof cost>>): string => {
    const requests = Object.entries(asked).map(([one, times]) => `${one} ${(times / count).toFixed(2)}`);
    return `${what}: ${seconds.toFixed(0)} s, ${((cpu / count) * 1000).toFixed(1)} ms of CPU each; asked for each: ${requests.join(', ')}`;
  };
  let restarts = 0;
  const all = async (): Promise<AnyObject[]> => {
    if (!world.master.running) {
      // Its lease ran out, as the API server was too busy to answer: a Deployment starts it again.
      restarts++;
      world.master.start();
    }
    const { body } = await cluster.request('GET', path);
    return body['items'] as AnyObject[];
  };
  /** The master has said all that it has to say: for some time it asked for nothing. */
  const rest = async (quietMs: number): Promise<void> => {
    let sinceMs = Date.now();
    await until(() => {
      if (cluster.requestsSince(namespace, account, sinceMs).some((one) => !idle.test(one))) sinceMs = Date.now();
      return Date.now() - sinceMs > quietMs;
    }, patienceMs);
  };

  const made = await cost(async () => {
    let next = 0;
    const make = async (): Promise<void> => {
      while (next < total) {
        const number = next++;
        const { status, body } = await cluster.request('POST', path, {
          apiVersion: `${group}/v1`,
          kind: 'ReplicationInfo',
          metadata: { name: `r-${number}` },
          spec: {
            source: { agent: `node-${Math.floor(number / perAgent)}`, path: `/dev/v${number}`, volumeMode: 'Block' },
            target: { storageClass: 'local' },
            rpoSeconds: 3600,
          },
        });
        if (status !== 201) throw new Error(`r-${number}: ${JSON.stringify(body)}`);
      }
    };
    await Promise.all(Array.from({ length: 8 }, make));
    await until(async () => (await all()).every(({ status }) => status?.['phase'] === 'Mirroring'), patienceMs);
  });
  t.comment(per('made, until each is shown as mirroring', total, made));
  const written = made.asked[`update ${group}/replicationinfoes/status`] ?? 0;
  t.ok(written >= total && written < 12 * total, `${written} times a status was written for ${total}`);

  herd.tell({ reporting: false });
  const settled = await cost(() => rest(restMs / 2));
  t.comment(per('until all is said', total, settled));
  const quiet = await cost(() => sleep(restMs));
  t.comment(per(`at rest, in ${restMs / 1000} s`, 1, quiet));
  t.same(quiet.asked, {}, 'at rest it asks for nothing but leases and watches');

  const patched = await cost(async () => {
    const names = Array.from({ length: changes }, (_, at) => `r-${(at * 37) % total}`);
    for (const name of names) {
      const { status } = await cluster.request('PATCH', `${path}/${name}`, { spec: { rpoSeconds: 1800 } });
      t.equal(status, 200);
    }
    await until(async () => {
      return (await all()).every(({ metadata, status }) => status?.['observedGeneration'] === metadata['generation']);
    }, patienceMs);
    await rest(5000);
  });
  t.comment(per('a change of the spec', changes, patched));
  const asked = Object.values(patched.asked).reduce((sum, times) => sum + times, 0);
  t.ok(asked <= 6 * changes, `${asked} requests for ${changes} changes`);

  const history = await cost(async () => {
    await cluster.compact();
    await cluster.kill();
    await cluster.start();
    await client
      .send('PATCH', '/replications/r-1', { metadata: { annotations: { after: 'it' } } })
      .catch(() => undefined);
    await until(async () => {
      const { status } = await cluster.request('PATCH', `${path}/r-0`, { spec: { rpoSeconds: 900 } });
      return status === 200;
    });
    await until(async () => {
      const found = (await all()).find(({ metadata }) => metadata['name'] === 'r-0');
      return found?.status?.['observedGeneration'] === found?.metadata['generation'];
    }, patienceMs);
    await rest(5000);
  });
  t.comment(`the master was started again ${restarts} times`);
  t.comment(per('the API server started anew, its history gone', 1, history));
  t.ok(
    (history.asked[`update ${group}/replicationinfoes/status`] ?? 0) < 20,
    'what has not changed is not written again',
  );
});
