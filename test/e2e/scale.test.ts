/**
 * Many replications and agents on one master: agents are simulated (simulatedagents.ts), all else is real. Asked meanwhile: lists, watches, metrics. The short form holds to counts: each change comes to each
 * watch once. `npm run e2e -- scale` has 5,000 replications of 500 agents (REPLICATOR_AGENTS: of so many) and prints its figures,
 * those of scale.md.
 */
import t from 'tap';
import { readdirSync, readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { serverSentEvents } from '../../master/cli/client.ts';
import type { Agent, Replication } from '../../master/resources.ts';
import { simulatedAgents } from './simulatedagents.ts';
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
const pauseMs = long ? 1000 : 100;

const at = (times: number[], part: number): number =>
  times.toSorted((a, b) => a - b)[Math.min(times.length - 1, Math.floor(times.length * part))] ?? 0;
const figures = (times: readonly number[]): string =>
  `median ${at([...times], 0.5).toFixed(0)} ms, p99 ${at([...times], 0.99).toFixed(0)} ms (${times.length})`;
const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(0)} MiB`;

/** Seconds of CPU so far and bytes resident. */
function usage(pid: number): { cpuSeconds: number; rssBytes: number } {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return { cpuSeconds: (Number(fields[11]) + Number(fields[12])) / 100, rssBytes: Number(fields[21]) * 4096 };
}

t.test(`${total} replications of ${agents} agents`, { timeout: 3_600_000 }, async (t) => {
  const config = join(t.testdir({ 'c.yaml': `requestsPerSecond: 100000\nopenReplicas: ${openReplicas}\n` }), 'c.yaml');
  const world = await openWorld(t, { masterFlags: ['--config', config] });
  const { client, masterDir } = world;
  const { grpc } = JSON.parse(readFileSync(join(masterDir, 'endpoints.json'), 'utf8')) as { grpc: string };
  const token = readFileSync(join(masterDir, 'admin.token'), 'utf8').trim();
  const empty = usage(world.master.pid);
  const beganMs = performance.now();
  const say = (text: string): void => {
    const { cpuSeconds, rssBytes } = usage(world.master.pid);
    const seconds = ((performance.now() - beganMs) / 1000).toFixed(0);
    t.comment(
      `${seconds} s: ${text}; the master has taken ${cpuSeconds.toFixed(0)} s of CPU, ${mib(rssBytes)} resident`,
    );
  };
  const stop = new AbortController();
  const herd = simulatedAgents({
    ...{ count: agents, url: client.url, token, master: grpc, masterDir, dir: join(world.dir, 'agents') },
    ...{ reportMs, changeOneOf: 100, changeMs },
  });
  t.teardown(async () => {
    stop.abort();
    await herd.end();
  });
  /** Asks again after four times as long as the answer took, and says each ten seconds how far it is. */
  async function reached(what: string, count: () => number | Promise<number>, goal: number, seconds: number) {
    const endMs = performance.now() + seconds * 1000;
    for (let saidMs = performance.now(); ;) {
      const startMs = performance.now();
      const is = await count();
      const nowMs = performance.now();
      if (is >= goal) return say(`${what}: ${is}`);
      if (nowMs > endMs) throw new Error(`not reached in ${seconds} s: ${what}: ${is} of ${goal}`);
      if (nowMs - saidMs > 10_000) {
        say(`${what}: ${is} of ${goal}`);
        saidMs = nowMs;
      }
      await sleep(Math.max(pauseMs, (nowMs - startMs) * 4));
    }
  }
  const having = (isIt: (one: Replication) => boolean) => async (): Promise<number> =>
    (await client.list<Replication>('/replications')).items.filter(isIt).length;
  await reached('agents that are there', () => herd.connected(), agents, 600);

  const makeMs: number[] = [];
  let next = 0;
  const make = async (): Promise<void> => {
    while (next < total) {
      const number = next++;
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
    }
  };
  const made = Promise.all(Array.from({ length: 8 }, make));
  await Promise.race([reached('replications made', () => makeMs.length, total, 1800), made.then(() => new Promise(() => undefined))]); // prettier-ignore
  await reached('replications with a point', () => herd.mirrored(), total, 1200);
  await reached(
    'shown as mirroring',
    having(({ status }) => status.phase === 'Mirroring'),
    total,
    600,
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
  say('at work');
  const files = readdirSync(`/proc/${world.master.pid}/fd`).length;
  // Two connections of each agent.
  t.ok(files < openReplicas * 8 + agents * 3 + 200, `${files} files are open`);
  herd.tell({ reporting: false });
  // The replicas' sizes are looked at in turn, and are figures of their status once.
  await reached(
    'sizes known',
    having(({ status }) => status.usedBytes !== null),
    total,
    600,
  );
  const atRest = await cpuPart();
  say('at rest');
  // One of each hundred changes, all of them at the pace of a target of 30 s.
  herd.tell({ reporting: true, changing: true });
  const whileChanging = await cpuPart();
  const { rssBytes: changingBytes } = usage(world.master.pid);
  say('one of a hundred changes');

  const headers = { authorization: `Bearer ${token}` };
  const delays: number[] = [];
  const seen = Array.from({ length: watchers }, () => 0);
  /** Of each watch, how often a version came. */
  const versions = Array.from({ length: watchers }, () => new Map<string, number>());
  const changes: string[] = [];
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
    if (!stop.signal.aborted) throw new Error(`watch ${which} was cut off: it fell behind`);
  });
  const cut = Promise.all(watching).then(() => undefined);
  cut.catch(() => undefined);
  const unlessCut = <T>(work: Promise<T>): Promise<T> => Promise.race([work, cut.then(() => work)]);
  await unlessCut(reached('watches that have all', () => seen.filter((count) => count >= total).length, watchers, 300));

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
      say(`asked ${round + 1} of ${rounds} times`);
    }
    const changed = await client.send<Replication>('PATCH', `/replications/${name}`, {
      metadata: { annotations: { sent: String(Date.now() + round / 1000) } },
    });
    changes.push(changed.metadata.resourceVersion);
  }
  await unlessCut(reached('changes that came to watches', () => delays.length, rounds * watchers, 120));
  for (const counts of versions) {
    t.same(
      new Set(changes.map((version) => counts.get(version))),
      new Set([1]),
      'each change comes to each watch once',
    );
    t.same(new Set(counts.values()), new Set([1]), 'and so does all else');
  }

  const percent = (part: number): string => `${(part * 100).toFixed(0)} % of a core, ${((part / total) * 1e6).toFixed(0)} us a second and replication`; // prettier-ignore
  const kib = (rssBytes - empty.rssBytes) / total / 1024;
  t.comment(`${cpus().length} cores; a report of each replication every ${reportMs / 1000} s when at work`);
  t.comment(`resident ${mib(rssBytes)}, empty ${mib(empty.rssBytes)}: ${kib.toFixed(0)} KiB a replication; ${files} open files`); // prettier-ignore
  t.comment(`1 % changing: ${percent(whileChanging)}, resident ${mib(changingBytes)}; a commit is acknowledged after ${figures(herd.changed)}`); // prettier-ignore
  t.comment(`CPU at work ${percent(atWork)}; at rest ${percent(atRest)}`);
  t.comment(`POST ${figures(makeMs)}`);
  for (const [what, found] of Object.entries(times)) t.comment(`${what}: ${figures(found)}`);
  t.comment(`metrics are ${(metricsBytes / 2 ** 20).toFixed(1)} MiB`);
  t.comment(`${watchers} watches: a change is there after ${figures(delays)}`);
  stop.abort();
  await Promise.allSettled(watching);
});
