/**
 * How old the copy of a database in use is, and what that costs the database: pgbench on PostgreSQL on a mounted ext4, at 60 % of
 * the rate that this machine reaches without mirroring, windows with and without mirroring in turn. Without means that no agent
 * runs and nothing is traced.
 */
import { execFileSync } from 'node:child_process';
import { chmodSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { removeInstance } from '../../agent/capture/tracefs.ts';
import { traceInstance } from '../../agent/trackings.ts';
import { join } from 'node:path';
import { loopMount, missingForLoop } from '../loop.ts';
import { missingPostgres, startCluster, type Cluster } from '../e2e/postgres.ts';
import { openWorld, type World } from '../e2e/world.ts';
import { cpuSeconds, loopbackBytes, measure, type Figures } from './processes.ts';
import { median, medians, type Result } from './results.ts';
import { Missing } from './subject.ts';

export interface AgeOptions {
  /** Pairs of windows. */
  runs: number;
  /** Of the volume. */
  size: number;
  /** Of mirroring at the paced rate, over all windows. */
  seconds: number;
}

export interface AgeFigures {
  rpoSeconds: number;
  captureMethod: string;
  /** Recovery point age by the API, sampled; seconds. */
  age: { p50: number; p99: number; most: number; samples: number };
  /** Upper bounds of the metric's buckets; milliseconds. */
  freezeMs: { p50: number; p99: number; count: number };
  cuts: { made: number; refused: number };
  /** Transactions a second. */
  paced: { rate: number; without: number; mirrored: number };
  full: { without: number; mirrored: number };
  /** Of one processor, percent; with the guard. */
  agentCpu: { paced: number; idle: number };
  masterCpu: { paced: number; idle: number };
  agentMiB: number;
}

const rpoSeconds = 2;
const paceRatio = 0.6;
const sampleMs = 100;
const clients = 4;
const name = 'pg';
/** For the database to write out what it still has in memory, and for what a filesystem does by itself. */
const restSeconds = 8;

export async function ageOfPgbench(options: AgeOptions, say: (line: string) => void): Promise<Result> {
  const missing = missingForLoop('ext4') || missingPostgres();
  if (missing !== false) throw new Missing(missing);
  const endings: (() => unknown)[] = [];
  const t = { teardown: (end: () => unknown) => void endings.push(end) };
  try {
    const settled = ['-E', 'lazy_itable_init=0,lazy_journal_init=0'];
    const volume = await loopMount(t, 'ext4', options.size / 2 ** 20, settled);
    chmodSync(volume.directory, 0o755);
    const scale = Math.max(1, Math.round(options.size / 2 ** 20 / 64));
    // Checkpoints come by time, as they should, and the log has room for that.
    const walMiB = Math.max(32, Math.round(options.size / 2 ** 20 / 6));
    const settings = ['shared_buffers=128MB', `max_wal_size=${walMiB}MB`, 'checkpoint_timeout=60s'];
    const cluster = await startCluster(t, volume.mountPoint, undefined, { scale, settings });
    const world = await openWorld(t, { allow: [volume.device] });
    return await measureAge({ ...options, world, cluster, device: volume.device }, say);
  } finally {
    for (const end of endings.reverse()) await end();
  }
}

interface Bench extends AgeOptions {
  world: World;
  cluster: Cluster;
  device: string;
}

async function measureAge(bench: Bench, say: (line: string) => void): Promise<Result> {
  const { world, cluster, runs, size } = bench;
  const seconds = Math.max(2, Math.round(bench.seconds / runs));
  const fullSeconds = Math.max(2, Math.round(bench.seconds / 10));
  say(`age-pgbench: ${clients} clients, ${runs} windows of ${seconds} s each with and without mirroring`);
  cluster.sql('CHECKPOINT');
  await cluster.bench({ seconds: Math.ceil(fullSeconds / 3), clients });
  const full = { without: await cluster.bench({ seconds: fullSeconds, clients }), mirrored: 0 };
  const rate = full.without * paceRatio;
  say(`  full speed without: ${full.without.toFixed(0)} tps`);
  const paced = { without: [] as number[], mirrored: [] as number[] };
  const ages: number[] = [];
  const figures: Figures[] = [];
  const agentCpu: number[] = [];
  const masterCpu: number[] = [];
  const told = { freezes: new Map<number, number>(), made: 0, refused: 0 };
  let captureMethod = '';
  for (let run = 0; run < runs; run++) {
    paced.without.push(await cluster.bench({ seconds, clients, rate }));
    await mirrored(bench, run === 0);
    captureMethod = (await world.get(name)).status.captureMethod ?? '';
    const before = await countsOf(world);
    const [agentSeconds, masterSeconds] = [world.agent.pid, world.master.pid].map((pid) => cpuSeconds([pid]));
    const sampling = sampleAges(world);
    figures.push(
      await measure(
        () => [world.agent.pid, world.master.pid],
        () => loopbackBytes(1),
        async () => void paced.mirrored.push(await cluster.bench({ seconds, clients, rate })),
      ),
    );
    ages.push(...(await sampling()));
    const wall = figures.at(-1)?.wallSeconds ?? seconds;
    agentCpu.push(((cpuSeconds([world.agent.pid]) - (agentSeconds ?? 0)) / wall) * 100);
    masterCpu.push(((cpuSeconds([world.master.pid]) - (masterSeconds ?? 0)) / wall) * 100);
    const after = await countsOf(world);
    for (const [bound, count] of after.freezes)
      told.freezes.set(bound, (told.freezes.get(bound) ?? 0) + count - (before.freezes.get(bound) ?? 0));
    told.made += after.made - before.made;
    told.refused += after.refused - before.refused;
    if (after.refused > 0) say(`  cuts refused since the start, by reason: ${after.reasons}`);
    say(`  ${rate.toFixed(0)} tps: without ${paced.without.at(-1)}, mirrored ${paced.mirrored.at(-1)}`);
    if (run === runs - 1) {
      full.mirrored = await cluster.bench({ seconds: fullSeconds, clients });
      break;
    }
    await bare(world);
  }
  cluster.sql('CHECKPOINT');
  await sleep(Math.min(restSeconds, seconds) * 1000);
  const idle = await idleCpu(world, Math.max(2, Math.min(60, Math.round(seconds / 2))));
  const of = median;
  const digits = (value: number, places: number): number => Number(value.toFixed(places));
  return {
    case: 'age-pgbench',
    peer: null,
    command: null,
    size,
    content: 'pgbench',
    runs,
    ours: medians(figures),
    theirs: null,
    ratio: null,
    spread: { ours: [seconds, seconds], theirs: null },
    syncs: { ours: null, theirs: null },
    age: {
      rpoSeconds,
      captureMethod,
      age: {
        p50: digits(quantile(ages, 0.5), 2),
        p99: digits(quantile(ages, 0.99), 2),
        most: digits(Math.max(...ages), 2),
        samples: ages.length,
      },
      freezeMs: {
        p50: bucketQuantile(told.freezes, 0.5) * 1000,
        p99: bucketQuantile(told.freezes, 0.99) * 1000,
        count: told.freezes.get(Infinity) ?? 0,
      },
      cuts: { made: told.made, refused: told.refused },
      paced: { rate: digits(rate, 1), without: digits(of(paced.without), 1), mirrored: digits(of(paced.mirrored), 1) },
      full: { without: digits(full.without, 1), mirrored: digits(full.mirrored, 1) },
      agentCpu: { paced: digits(of(agentCpu), 1), idle: digits(idle.agent, 2) },
      masterCpu: { paced: digits(of(masterCpu), 1), idle: digits(idle.master, 2) },
      agentMiB: Math.round(world.agent.rssBytes() / 2 ** 20),
    },
  };
}

/** The agent runs and has caught up. */
async function mirrored({ world, device }: Bench, isFirst: boolean): Promise<void> {
  await world.startAgent();
  if (isFirst) await world.replicate(name, device, { rpoSeconds, consistency: 'filesystem' });
  await world.normal(name, Date.now(), 600);
}

/** No agent runs, and nothing is traced for the next one: it compares the whole volume. */
async function bare(world: World): Promise<void> {
  await world.agent.kill();
  removeInstance(traceInstance(join(world.dir, 'a')));
}

/** Until the answer is called. */
function sampleAges(world: World): () => Promise<number[]> {
  const ages: number[] = [];
  let isOver = false;
  const sampling = (async () => {
    while (!isOver) {
      const { lastSyncTime } = (await world.get(name)).status;
      ages.push((Date.now() - Date.parse(lastSyncTime ?? '')) / 1000);
      await sleep(sampleMs);
    }
  })();
  return async () => {
    isOver = true;
    await sampling;
    return ages;
  };
}

interface Counts {
  freezes: Map<number, number>;
  made: number;
  refused: number;
  /** Of the refused: `late 3, large 1`. */
  reasons: string;
}

async function countsOf(world: World): Promise<Counts> {
  const token = execFileSync('cat', [join(world.masterDir, 'admin.token')], { encoding: 'utf8' }).trim();
  const answer = await fetch(`${world.client.url}/metrics`, { headers: { authorization: `Bearer ${token}` } });
  const text = await answer.text();
  const freezes = new Map<number, number>();
  for (const [, bound, count] of text.matchAll(
    /^replicator_freeze_duration_seconds_bucket\{.*?le="([^"]+)".*?\} (\d+)$/gm,
  ))
    freezes.set(bound === '+Inf' ? Infinity : Number(bound), Number(count));
  const cuts = (result: string): number =>
    Number(new RegExp(`^replicator_cuts_total\\{.*result="${result}".*\\} (\\d+)$`, 'm').exec(text)?.[1] ?? 0);
  const refusals = text.matchAll(/^replicator_cuts_refused_total\{.*reason="([^"]+)".*\} ([1-9]\d*)$/gm);
  const reasons = [...refusals].map(([, reason, count]) => `${reason} ${count}`).join(', ');
  return { freezes, made: cuts('success'), refused: cuts('refused'), reasons };
}

async function idleCpu(world: World, seconds: number): Promise<{ agent: number; master: number }> {
  const now = () => ({ agent: cpuSeconds([world.agent.pid]), master: cpuSeconds([world.master.pid]) });
  const before = now();
  await sleep(seconds * 1000);
  const after = now();
  return {
    agent: ((after.agent - before.agent) / seconds) * 100,
    master: ((after.master - before.master) / seconds) * 100,
  };
}

/** Pure; NaN of nothing. */
export function quantile(values: readonly number[], part: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(sorted.length * part) - 1)] ?? NaN;
}

/** The smallest bound that so large a part of the values lies below. Counts are cumulative, as Prometheus has them. Pure. */
export function bucketQuantile(counts: ReadonlyMap<number, number>, part: number): number {
  const total = counts.get(Infinity) ?? 0;
  const bounds = [...counts].sort(([a], [b]) => a - b);
  return bounds.find(([, count]) => count >= total * part)?.[0] ?? NaN;
}

export function ageTable(results: readonly Result[]): string[] {
  const found = results.flatMap(({ age, size, runs, ours }) => (age ? [{ age, size, runs, ours }] : []));
  if (found.length === 0) return [];
  const rows = found.map(({ age, size, runs, ours }) =>
    [
      `${Math.round(size / 2 ** 20)} MiB, ${runs} x ${Math.round(ours.wallSeconds)} s`,
      `${age.age.p50} / ${age.age.p99} / ${age.age.most}`,
      `${age.paced.without} / ${age.paced.mirrored} (${percent(age.paced)})`,
      `${age.full.without} / ${age.full.mirrored} (${percent(age.full)})`,
      `${age.freezeMs.p50} / ${age.freezeMs.p99}`,
      `${age.cuts.made} / ${age.cuts.refused}`,
      `${age.agentCpu.paced} / ${age.agentCpu.idle}`,
      `${age.masterCpu.paced} / ${age.masterCpu.idle}`,
      `${age.agentMiB}`,
    ].join(' | '),
  );
  return [
    '',
    `age-pgbench: PostgreSQL on ext4 on a block device (${found[0]?.age.captureMethod ?? ''}), rpoSeconds ${rpoSeconds}, pgbench at ${paceRatio * 100} % of its full speed, windows with and without mirroring in turn; age by the API every ${sampleMs} ms, freezes by the metric's buckets (upper bounds), CPU of one processor.`,
    '',
    '| volume, windows | age p50 / p99 / most, s | tps without / mirrored | full speed | freeze ms, p50 / p99 at most | cuts made / refused | agent CPU %, paced / idle | master | agent MiB |',
    '|---|---|---|---|---|---|---|---|---|',
    ...rows.map((row) => `| ${row} |`),
  ];
}

function percent({ without, mirrored }: { without: number; mirrored: number }): string {
  return `${((mirrored / without) * 100).toFixed(1)} %`;
}
