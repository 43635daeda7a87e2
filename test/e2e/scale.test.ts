/**
 * Many replications and agents on one master: agents are simulated (simulatedagent.ts), all else is real. Asked meanwhile: lists, watches, metrics. The short form holds to counts: each change comes to each
 * watch once. `npm run e2e -- scale` has 5,000 replications of 500 agents (REPLICATOR_AGENTS: of so many) and prints its figures.
 */
import t from 'tap';
import { readdirSync, readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { serverSentEvents } from '../../master/cli/client.ts';
import type { Agent, Replication } from '../../master/resources.ts';
import { simulatedAgent, type SimulatedAgent } from './simulatedagent.ts';
import { long, openWorld } from './world.ts';

t.setTimeout(3_600_000);

const agents = Number(process.env['REPLICATOR_AGENTS'] ?? (long ? 500 : 20));
const perAgent = 10;
const total = agents * perAgent;
const openReplicas = long ? 500 : 20;
const watchers = long ? 20 : 3;
const rounds = long ? 100 : 10;
const reportMs = long ? 5000 : 500;
const changeMs = long ? 15_000 : 1000;
const restMs = long ? 30_000 : 1000;

const at = (times: number[], part: number): number =>
  times.toSorted((a, b) => a - b)[Math.min(times.length - 1, Math.floor(times.length * part))] ?? 0;
const figures = (times: number[]): string =>
  `median ${at(times, 0.5).toFixed(0)} ms, p99 ${at(times, 0.99).toFixed(0)} ms (${times.length})`;

/** Seconds of CPU so far and bytes resident. */
function usage(pid: number): { cpuSeconds: number; rssBytes: number } {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return { cpuSeconds: (Number(fields[11]) + Number(fields[12])) / 100, rssBytes: Number(fields[21]) * 4096 };
}

t.test(`${total} replications of ${agents} agents`, { timeout: 3_600_000 }, async (t) => {
  const config = join(t.testdir({ 'c.yaml': `requestsPerSecond: 100000\nopenReplicas: ${openReplicas}\n` }), 'c.yaml');
  const world = await openWorld(t, { masterFlags: ['--config', config] });
  const { client } = world;
  const { grpc } = JSON.parse(readFileSync(join(world.masterDir, 'endpoints.json'), 'utf8')) as { grpc: string };
  const empty = usage(world.master.pid);
  const stop = new AbortController();
  let reports = true;
  const simulated: SimulatedAgent[] = [];
  t.teardown(async () => {
    stop.abort();
    await Promise.all(simulated.map(({ ended }) => ended));
  });
  const inLanes = async (count: number, work: (number: number) => Promise<unknown>): Promise<void> => {
    let next = 0;
    await Promise.all(Array.from({ length: 8 }, async () => { while (next < count) await work(next++); })); // prettier-ignore
  };
  const { masterDir } = world;
  const dir = join(world.dir, 'agents');
  await inLanes(agents, async (number) => {
    const name = `node-${number}`;
    simulated[number] = await simulatedAgent({ client, name, master: grpc, masterDir, dir, signal: stop.signal });
  });
  await world.until('all agents are there', async () => simulated.every((agent) => agent.connected()), 600);
  const reporting = (async () => {
    while (!stop.signal.aborted) {
      if (reports) for (const agent of simulated) agent.report();
      await sleep(reportMs, undefined, { signal: stop.signal }).catch(() => undefined);
    }
  })();

  const makeMs: number[] = [];
  await inLanes(total, async (number) => {
    const startMs = performance.now();
    await client.send('POST', '/replications', {
      metadata: { name: `r-${number}`, labels: { half: number % 2 === 0 ? 'even' : 'odd' } },
      spec: {
        source: { agent: `node-${Math.floor(number / perAgent)}`, path: `/dev/v${number}`, volumeMode: 'Block' },
        target: { storageClass: 'local' },
        rpoSeconds: 3600,
      },
    });
    makeMs.push(performance.now() - startMs);
  });
  await world.until(
    'each has its first point',
    async () => simulated.reduce((sum, { mirrored }) => sum + mirrored.size, 0) === total,
    1800,
  );
  await world.until(
    'what agents report is shown',
    async () => {
      const { items } = await client.list<Replication>('/replications');
      return items.length === total && items.every(({ status }) => status.phase === 'Mirroring');
    },
    900,
  );
  const { items: there } = await client.list<Agent>('/agents');
  t.equal(there.filter(({ status }) => status.state === 'ACTIVE').length, agents);

  /** Part of a core that the master takes by itself: nobody asks. */
  async function cpuPart(): Promise<number> {
    const before = usage(world.master.pid);
    const startMs = performance.now();
    await sleep(restMs);
    return (usage(world.master.pid).cpuSeconds - before.cpuSeconds) / ((performance.now() - startMs) / 1000);
  }
  const atWork = await cpuPart();
  const { rssBytes } = usage(world.master.pid);
  const files = readdirSync(`/proc/${world.master.pid}/fd`).length;
  // Two connections of each agent.
  t.ok(files < openReplicas * 8 + agents * 3 + 200, `${files} files are open`);
  reports = false;
  // The replicas' sizes are looked at in turn, and are figures of their status once.
  await world.until(
    'all sizes are known',
    async () => {
      const { items } = await client.list<Replication>('/replications');
      return items.every(({ status }) => status.usedBytes !== null);
    },
    900,
  );
  const atRest = await cpuPart();
  reports = true;
  // One of each hundred changes, all of them at the pace of a target of 30 s.
  const changed: number[] = [];
  const changing = new AbortController();
  const changers = simulated.flatMap((agent) => [...agent.mirrored].map((uid) => ({ agent, uid })));
  const chosen = changers.filter((_, index) => index % 100 === 0);
  const making = chosen.map(async ({ agent, uid }, index) => {
    await sleep((changeMs * index) / chosen.length);
    while (!changing.signal.aborted) {
      changed.push(await agent.change(uid));
      await sleep(changeMs, undefined, { signal: changing.signal }).catch(() => undefined);
    }
  });
  const whileChanging = await cpuPart();
  const { rssBytes: changingBytes } = usage(world.master.pid);

  const token = readFileSync(join(world.masterDir, 'admin.token'), 'utf8').trim();
  const headers = { authorization: `Bearer ${token}` };
  const delays: number[] = [];
  const seen = Array.from({ length: watchers }, () => 0);
  /** Of each watch, how often a version came. */
  const versions = Array.from({ length: watchers }, () => new Map<string, number>());
  const made: string[] = [];
  let metricsBytes = 0;
  const told = new Set<string>();
  const watching = Array.from({ length: watchers }, async (_, which) => {
    const answer = await fetch(`${client.url}/api/v1/replications?watch=true`, { headers, signal: stop.signal });
    for await (const { data } of serverSentEvents(answer.body)) {
      if (data === '') continue;
      seen[which] = (seen[which] ?? 0) + 1;
      const { metadata } = (JSON.parse(data) as { object: Replication }).object;
      const counts = versions[which];
      counts?.set(metadata.resourceVersion, (counts.get(metadata.resourceVersion) ?? 0) + 1);
      const sent = Number(metadata.annotations?.['sent'] ?? Infinity);
      // Later changes of the same object carry it too.
      if (Number.isFinite(sent) && !told.has(`${which} ${sent}`)) {
        told.add(`${which} ${sent}`);
        delays.push(Date.now() - sent);
      }
    }
  });
  for (const one of watching) one.catch(() => undefined);
  await world.until('watches have all', async () => seen.every((count) => count >= total), 600);

  const times: Record<string, number[]> = { 'first page of 100': [], 'all, in pages of 1000': [], 'one by label': [], one: [], metrics: [] }; // prettier-ignore
  const timed = async (what: string, work: () => Promise<unknown>): Promise<void> => {
    const startMs = performance.now();
    await work();
    times[what]?.push(performance.now() - startMs);
  };
  for (let round = 0; round < rounds; round++) {
    const name = `r-${(round * 37) % total}`;
    await timed('first page of 100', () => client.get('/replications?limit=100'));
    await timed('one', () => client.get(`/replications/${name}`));
    await timed('one by label', () => client.get('/replications?limit=100&labelSelector=half%3Dodd'));
    if (round % 10 === 0) {
      await timed('all, in pages of 1000', async () => {
        const { items } = await client.list<Replication>('/replications');
        t.equal(items.length, total);
      });
      await timed('metrics', async () => {
        const text = await client.metrics();
        metricsBytes = text.length;
        t.equal(text.match(/^replicator_rpo_target_seconds\{/gm)?.length, total);
      });
    }
    const changed = await client.send<Replication>('PATCH', `/replications/${name}`, {
      metadata: { annotations: { sent: String(Date.now() + round / 1000) } },
    });
    made.push(changed.metadata.resourceVersion);
  }
  await world.until('each change came to each watch', async () => delays.length >= rounds * watchers, 300);
  for (const counts of versions) {
    t.same(new Set(made.map((version) => counts.get(version))), new Set([1]), 'each change comes to each watch once');
    t.same(new Set(counts.values()), new Set([1]), 'and so does all else');
  }

  const percent = (part: number): string => `${(part * 100).toFixed(0)} % of a core, ${((part / total) * 1e6).toFixed(0)} us a second and replication`; // prettier-ignore
  const kib = (rssBytes - empty.rssBytes) / total / 1024;
  t.comment(`${cpus().length} cores; a report of each replication every ${reportMs / 1000} s when at work`);
  t.comment(`resident ${(rssBytes / 2 ** 20).toFixed(0)} MiB, empty ${(empty.rssBytes / 2 ** 20).toFixed(0)} MiB: ${kib.toFixed(0)} KiB a replication; ${files} open files`); // prettier-ignore
  t.comment(`1 % changing: ${percent(whileChanging)}, resident ${(changingBytes / 2 ** 20).toFixed(0)} MiB; a commit is acknowledged after ${figures(changed)}`); // prettier-ignore
  t.comment(`CPU at work ${percent(atWork)}; at rest ${percent(atRest)}`);
  t.comment(`POST ${figures(makeMs)}`);
  for (const [what, found] of Object.entries(times)) t.comment(`${what}: ${figures(found)}`);
  t.comment(`metrics are ${(metricsBytes / 2 ** 20).toFixed(1)} MiB`);
  t.comment(`${watchers} watches: a change is there after ${figures(delays)}`);
  changing.abort();
  stop.abort();
  await Promise.allSettled([...watching, ...making, reporting]);
});
