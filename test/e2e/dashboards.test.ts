import t from 'tap';
import { X509Certificate } from 'node:crypto';
import { spawn, spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { dashboards, variableQuery } from '../../dashboards/dashboards.ts';
import { pages, type Panel } from '../../dashboards/panels.ts';
import type { Agent, Replication, StorageClass } from '../../master/resources.ts';
import { programVersion } from '../../proto/cli.ts';
import { refusalReasons } from '../../proto/refusal.ts';
import { loopMount, missingForLoop } from '../loop.ts';
import { freePort } from '../ports.ts';
import { writeNoise } from './content.ts';
import { openWorld } from './world.ts';

const folder = resolve(import.meta.dirname, '../../dashboards');
const skip = ['prometheus', 'promtool'].every((name) => spawnSync(name, ['--version']).status === 0)
  ? missingForLoop('ext4')
  : 'needs prometheus and promtool';
/** Of a master whose API is plain HTTP. */
const masterCertificates = { ca: 'ca.pem', grpc: 'server.pem' };
const agentStates = ['ACTIVE', 'CONN FAILED', 'WARNING', 'NO CONN INFO', 'NOT INSTALLED', 'UNKNOWN'];

t.test('the JSON files are those that their sources make', async (t) => {
  for (const [name, text] of dashboards())
    t.strictSame(JSON.parse(readFileSync(join(folder, name), 'utf8')), JSON.parse(text), `${name}: npm run dashboards`);
});

/** Alerts of the situations that the test makes. */
const situated = [
  ...['ReplicatorAgentGone', 'ReplicatorMasterDown', 'ReplicationStuck', 'ReplicationLate', 'ReplicationVeryLate'],
  'ReplicationNeverSynced',
];

/** What may be shown by a legend: from, to. */
type Shown = Record<string, [number, number]>;
const exactly = (value: number): [number, number] => [value, value];
/** What a counter has by now; Prometheus reads it a little earlier, and extrapolates to the borders of what it looks at. */
const about = (value: number): [number, number] => [value * 0.5, value * 1.5 + 1];

t.test('every panel shows what is so, in a system that runs and when its agent has gone', { skip }, async (t) => {
  const world = await openWorld(t);
  const { image, mountPoint } = await loopMount(t, 'ext4', 64);
  world.agentFlags.push('--allow', image);
  writeNoise(join(mountPoint, 'data'), 4 << 20);

  const port = await freePort();
  const config = join(world.dir, 'prometheus.yaml');
  const rules = ['records.yaml', 'alerts.yaml'].map((name) => {
    const text = readFileSync(join(folder, name), 'utf8');
    writeFileSync(
      join(world.dir, name),
      text.replace(/for: \w+/g, 'for: 1s').replace(/interval: \w+/g, 'interval: 1s'),
    );
    return join(world.dir, name);
  });
  const target = world.client.url.replace('http://', '');
  writeFileSync(
    config,
    `global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [${rules.join()}]
scrape_configs: [{job_name: replicator-master, static_configs: [{targets: ['${target}']}]}]
`,
  );
  const prometheus = spawn(
    'prometheus',
    [
      `--config.file=${config}`,
      `--storage.tsdb.path=${join(world.dir, 'tsdb')}`,
      `--web.listen-address=127.0.0.1:${port}`,
    ],
    { stdio: 'ignore' },
  );
  t.teardown(() => prometheus.kill('SIGKILL'));
  async function asked<T>(path: string): Promise<T> {
    const answer = await fetch(`http://127.0.0.1:${port}/api/v1/${path}`);
    const { status, error, data } = (await answer.json()) as { status: string; error?: string; data: T };
    if (status !== 'success') throw new Error(`${path}: ${error}`);
    return data;
  }
  // Rates over all that the test takes, so that what comes to rest does not leave them.
  const rateSeconds = 1800;
  async function ask(expr: string): Promise<{ metric: Record<string, string>; value: [number, string] }[]> {
    const query = expr.replaceAll('$replication', 'db').replaceAll('$__rate_interval', `${rateSeconds}s`);
    return (await asked<{ result: never[] }>(`query?query=${encodeURIComponent(query)}`)).result;
  }
  await world.until('Prometheus has read the master', async () => {
    const rows = await ask('count_over_time(up{job="replicator-master"}[1m])').catch(() => []);
    return Number(rows[0]?.value[1] ?? 0) >= 2;
  });

  await world.startAgent();
  const allReplications = () => world.client.list<Replication>('/replications').then(({ items }) => items);
  // One that is as it should be, and had everything done to it; one that cannot be.
  // The agent stands still until their counters are known: what a series begins with is no increase.
  world.agent.signal('SIGSTOP');
  await world.replicate('db', image, { volumeMode: 'Block', consistency: 'filesystem', maxFreezeMs: 10_000 });
  await world.replicate('gone', join(world.sources, 'none'), { volumeMode: 'Filesystem' });
  await world.until('Prometheus knows both', async () => (await ask('replicator_syncs_total')).length === 4);
  world.agent.signal('SIGCONT');
  await world.normal('db', 0, 120);
  const drill = (await world.copyOf('db')).recovery;
  t.equal((await world.snapshot('db', 's1')).status.state, 'Ready');
  await world.client.send('POST', '/replications/db/actions/verify', {});
  await world.until('it is verified', async () => (await world.get('db')).status.lastVerifiedTime !== null, 120);
  await world.degraded('gone', 'SourceGone');

  const exposition = async () => (await fetch(`${world.client.url}/metrics`)).text();
  const linted = spawnSync('promtool', ['check', 'metrics'], { input: await exposition(), encoding: 'utf8' });
  const ours = linted.stderr.split('\n').filter((line) => line.startsWith('replicator_'));
  t.strictSame(ours, [], "Prometheus' linter is content with our metrics");
  for (const [name, file] of Object.entries(masterCertificates)) {
    const { validTo } = new X509Certificate(readFileSync(join(world.masterDir, file)));
    const told = await world.metric('master_certificate_expiry_timestamp_seconds', `certificate="${name}"`);
    t.equal(told, Date.parse(validTo) / 1000, `when the certificate ${name} ends`);
  }
  t.notMatch(await exposition(), 'certificate="http"', 'plain HTTP has none');

  /** What a panel shows: values by legend; what is no number is not drawn. */
  async function shown({ queries }: Panel): Promise<Record<string, number>> {
    const rows: [string, number][] = [];
    for (const [legend, expr] of Object.entries(queries))
      for (const { metric, value } of await ask(expr))
        rows.push([legend.replace(/{{(\w+)}}/g, (_, label: string) => metric[label] ?? ''), Number(value[1])]);
    return Object.fromEntries(rows.filter(([, value]) => !Number.isNaN(value)));
  }
  const counted = (name: string, labels = 'replication="db"') => world.metric(name, labels);
  const rate = async (name: string, labels?: string) =>
    about((await counted(name, labels)) / rateSeconds).map((value, index) => (index === 1 ? value - 1 : value)) as [
      number,
      number,
    ];
  const agentsBy = (state: string): Shown =>
    Object.fromEntries(agentStates.map((one) => [one, exactly(Number(one === state))]));
  const ages = async () =>
    Object.fromEntries(
      (await allReplications()).map(({ metadata, status, spec }) => {
        return [metadata.name, { lag: status.lagSeconds, target: spec.rpoSeconds }];
      }),
    );
  const since = (time: string | null): [number, number] => {
    const seconds = (Date.now() - Date.parse(time ?? '')) / 1000;
    return [seconds - 15, seconds + 15];
  };
  /** Bounds of the buckets of a histogram that hold something. */
  async function buckets(name: string, label: string): Promise<[number, number]> {
    const text = await exposition();
    const found = [...text.matchAll(new RegExp(`^replicator_${name}_bucket{le="([^"]+)",${label}} (\\d+)$`, 'gm'))];
    const bounds = found.map(([, le = '', count]) => ({
      le: le === '+Inf' ? Infinity : Number(le),
      count: Number(count),
    }));
    const total = Math.max(...bounds.map(({ count }) => count));
    return [
      Math.max(0, ...bounds.filter(({ count }) => count === 0).map(({ le }) => le)),
      Math.min(...bounds.filter(({ count }) => count === total).map(({ le }) => le)),
    ];
  }
  const { creationTimestamp } = drill.metadata;
  const drillSeconds = (Date.parse(drill.status.endTime ?? '') - Date.parse(creationTimestamp)) / 1000;

  /** For every panel, by page and title. */
  const running: Record<string, () => Promise<Shown> | Shown> = {
    'cdmr-overview: Replications by state': () => ({
      ...{ NORMAL: exactly(1), FAILED: exactly(1), ERROR: exactly(0), PREPARING: exactly(0) },
    }),
    'cdmr-overview: Agents by state': () => agentsBy('ACTIVE'),
    'cdmr-overview: Older than their target': () => ({ late: [0, 1] }),
    'cdmr-overview: Age of the copies, as a part of the target': async () => {
      const { lag, target } = (await ages())['db'] ?? {};
      return { db: [Math.max(0, (lag ?? NaN) - 10) / (target ?? NaN), ((lag ?? NaN) + 10) / (target ?? NaN)] };
    },
    'cdmr-overview: Sent': async () => ({ db: await rate('sent_bytes_total'), gone: exactly(0) }),
    'cdmr-overview: Storage used': async () => {
      const classes = await world.client.list<StorageClass>('/storageclasses');
      const { usedBytes, capacityBytes } = classes.items[0]?.status ?? { usedBytes: null, capacityBytes: null };
      const used = (usedBytes ?? NaN) / (capacityBytes ?? NaN);
      return { local: [used - 0.05, used + 0.05] };
    },
    'cdmr-overview: Degraded': () => ({ 'gone: SourceGone': exactly(1) }),
    'cdmr-overview: Alerts': async () => {
      const { alerts } = await asked<{ alerts: { state: string; labels: Record<string, string> }[] }>('alerts');
      const firing = alerts.filter(({ state }) => state === 'firing').map(({ labels }) => labels);
      const shown: Shown = {};
      for (const { severity, alertname } of firing)
        shown[`${severity}: ${alertname}`] = exactly(firing.filter((one) => one['alertname'] === alertname).length);
      return shown;
    },
    'cdmr-replication: State': () => ({ NORMAL: exactly(1) }),
    'cdmr-replication: Phase': async () => ({ [(await world.get('db')).status.phase]: exactly(1) }),
    'cdmr-replication: First copy': () => ({ done: exactly(1) }),
    'cdmr-replication: Age of the copy': async () => {
      const { lag, target } = (await ages())['db'] ?? {};
      return { age: [Math.max(0, (lag ?? NaN) - 10), (lag ?? NaN) + 10], target: exactly(target ?? NaN) };
    },
    'cdmr-replication: Not yet durable': async () => {
      const { lagBytes } = (await world.get('db')).status;
      return lagBytes === null ? {} : { bytes: [lagBytes, lagBytes] };
    },
    'cdmr-replication: Bytes': async () => ({
      read: await rate('read_bytes_total'),
      sent: await rate('sent_bytes_total'),
      written: await rate('written_bytes_total'),
    }),
    'cdmr-replication: Cuts': async () => ({
      success: [1, (await counted('cuts_total', 'replication="db",result="success"')) * 1.5],
      refused: [0, (await counted('cuts_total', 'replication="db",result="refused"')) * 1.5],
    }),
    'cdmr-replication: Refused cuts, by reason': async () => {
      const most = 1.5 * (await counted('cuts_refused_total', 'replication="db"'));
      return Object.fromEntries(refusalReasons.map((reason) => [reason, [0, most]]));
    },
    'cdmr-replication: Frozen (99th percentile)': async () => ({
      frozen: await buckets('freeze_duration_seconds', 'replication="db"'),
    }),
    'cdmr-replication: Snapshots': () => ({
      ...{ Ready: exactly(1), Creating: exactly(0), Failed: exactly(0), Deleting: exactly(0) },
    }),
    'cdmr-replication: Read whole, and events lost, in a day': async () => {
      const scans = await world.metric('full_scans_total', 'replication="db"');
      return { 'read whole': [Math.max(1, scans * 0.9), scans * 1.5], 'events lost': exactly(0) };
    },
    'cdmr-agents: Agents by state': () => agentsBy('ACTIVE'),
    'cdmr-agents: Agents by version': () => ({ [programVersion()]: exactly(1) }),
    'cdmr-agents: Not connected': () => ({}),
    'cdmr-agents: Certificates end in': async () => {
      const { items } = await world.client.list<Agent>('/agents');
      const seconds = (Date.parse(items[0]?.status.certificateExpiryTime ?? '') - Date.now()) / 1000;
      return { 'node-a': [seconds - 15, seconds + 15] };
    },
    "cdmr-agents: Master's certificates end in": () =>
      Object.fromEntries(
        Object.entries(masterCertificates).map(([name, file]) => {
          const { validTo } = new X509Certificate(readFileSync(join(world.masterDir, file)));
          const seconds = (Date.parse(validTo) - Date.now()) / 1000;
          return [name, [seconds - 15, seconds + 15]];
        }),
      ),
    'cdmr-agents: gRPC calls begun': async () => ({
      Control: [0.5, 3],
      Mirror: [0.5, 1.5 * (await world.metric('grpc_server_started_total', 'method="Mirror"'))],
    }),
    'cdmr-agents: gRPC calls ended': async () => ({
      'Control OK': exactly(0),
      'Mirror OK': [0, 1.5 * (await world.metric('grpc_server_handled_total', 'method="Mirror",code="OK"'))],
    }),
    "cdmr-agents: Master's memory": () =>
      about(world.master.rssBytes()).reduce<Shown>(
        (all, bound, index) => ({ resident: index === 0 ? [bound, bound] : [all['resident']?.[0] ?? 0, bound] }),
        {},
      ),
    "cdmr-agents: Master's processors": async () => {
      const seconds = Number(/^process_cpu_seconds_total (\S+)/m.exec(await exposition())?.[1]);
      return { used: [seconds / rateSeconds / 10, (seconds / rateSeconds) * 1.5] };
    },
    'cdmr-readiness: Can be recovered': () => ({ volumes: exactly(1) }),
    'cdmr-readiness: Never drilled': () => ({ volumes: exactly(1) }),
    'cdmr-readiness: Since the last drill': async () => ({ db: since((await world.get('db')).status.lastDrilledTime) }),
    'cdmr-readiness: Since the last verification': async () => ({
      db: since((await world.get('db')).status.lastVerifiedTime),
    }),
    'cdmr-readiness: Recoveries in 30 days': () => ({
      ...{ 'drill success': exactly(1), 'drill failed': exactly(0), 'drill cancelled': exactly(0) },
      ...{ 'failover success': exactly(0), 'failover failed': exactly(0), 'failover cancelled': exactly(0) },
    }),
    'cdmr-readiness: Time a recovery took (median, 95th percentile)': async () => {
      const [from, to] = await buckets('recovery_duration_seconds', 'type="drill"');
      const isRight = drillSeconds >= from * 0.9 && drillSeconds <= to * 1.1;
      return isRight ? { 'median drill': [from, to], '95 % drill': [from, to] } : { [`${drillSeconds} s`]: [from, to] };
    },
  };
  /** When the agent has gone, what is otherwise. */
  const gone: typeof running = {
    'cdmr-overview: Agents by state': () => agentsBy('CONN FAILED'),
    'cdmr-overview: Older than their target': () => ({ late: exactly(1) }),
    'cdmr-overview: Replications by state': () => ({
      ...{ NORMAL: exactly(0), FAILED: exactly(1), ERROR: exactly(1), PREPARING: exactly(0) },
    }),
    'cdmr-overview: Degraded': () => ({ 'db: AgentGone': exactly(1), 'gone: AgentGone': exactly(1) }),
    'cdmr-replication: State': () => ({ ERROR: exactly(1) }),
    'cdmr-replication: Phase': () => ({ Disconnected: exactly(1) }),
    'cdmr-agents: Agents by state': () => agentsBy('CONN FAILED'),
    'cdmr-agents: Not connected': () => ({ 'node-a': exactly(0) }),
    'cdmr-readiness: Can be recovered': () => ({ volumes: exactly(1) }),
  };
  const panels = pages.flatMap(({ uid, panels: all }) =>
    all.map((panel) => [`${uid}: ${panel.title}`, panel] as const),
  );
  t.strictSame(Object.keys(running).sort(), panels.map(([key]) => key).sort(), 'no panel is left out');

  async function hold(table: typeof running): Promise<void> {
    for (const [key, panel] of panels) {
      const expect = table[key];
      if (expect === undefined) continue;
      let last = '';
      const isSo = async (): Promise<boolean> => {
        const [is, may] = [await shown(panel), await expect()];
        last = JSON.stringify({ is, may });
        const keys = (of: object): string => Object.keys(of).sort().join();
        return keys(is) === keys(may) && Object.entries(may).every(([name, [from, to]]) => within(is[name], from, to));
      };
      await world.until(key, isSo, 60).then(
        () => t.pass(`${key}: ${last}`),
        () => t.fail(`${key}: ${last}`),
      );
    }
  }
  await hold(running);
  t.strictSame(
    await asked(`label/${/, (\w+)\)/.exec(variableQuery)?.[1]}/values?match[]=${/\((\w+),/.exec(variableQuery)?.[1]}`),
    ['db', 'gone'],
    'the variable',
  );
  await world.agent.kill();
  await hold(gone);
  await firing('its agent has gone', {
    ReplicatorAgentGone: ['node-a'],
    ReplicationStuck: ['db', 'gone'],
    ReplicationLate: ['db'],
    ReplicationVeryLate: ['db'],
    ReplicationNeverSynced: ['gone'],
  });
  await world.master.kill();
  await firing('the master has gone too', { ReplicatorMasterDown: [''] });
  await world.startMaster();
  await world.startAgent();
  const [drills] = await ask('round(increase(replicator_recoveries_total{type="drill",result="success"}[30d]))');
  t.equal(drills?.value[1], '1', "another master's counters begin at zero, and what was is still shown");
  // The volume that cannot be mirrored is as before.
  await firing('both are back', { ReplicationStuck: ['gone'], ReplicationNeverSynced: ['gone'] });

  /** By alert: the replications or agents that it names. What has nothing to do with the situation may fire beside. */
  async function firing(situation: string, expected: Record<string, string[]>): Promise<void> {
    let found: Record<string, string[]> = {};
    const isSo = async (): Promise<boolean> => {
      found = {};
      for (const { metric } of await ask('ALERTS{alertstate="firing"}').catch(() => []))
        (found[metric['alertname'] ?? ''] ??= []).push(metric['replication'] ?? metric['agent'] ?? '');
      return situated.every((name) => JSON.stringify(found[name]?.sort()) === JSON.stringify(expected[name]));
    };
    await world.until(`the alerts while ${situation}`, isSo, 120).catch(() => undefined);
    for (const name of situated) t.strictSame(found[name], expected[name], `${name} while ${situation}`);
  }
});

function within(value: number | undefined, from: number, to: number): boolean {
  return value !== undefined && value >= from && value <= to;
}
