import t from 'tap';
import { spawn, spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { join, resolve } from 'node:path';
import { dashboards } from '../../dashboards/dashboards.ts';
import { pages } from '../../dashboards/panels.ts';
import type { StorageClass } from '../../master/resources.ts';
import { writeNoise } from './content.ts';
import { openWorld } from './world.ts';

const folder = resolve(import.meta.dirname, '../../dashboards');
const skip = ['prometheus', 'promtool'].every((name) => spawnSync(name, ['--version']).status === 0)
  ? false
  : 'needs prometheus and promtool';

t.test('the JSON files are those that their sources make', async (t) => {
  for (const [name, text] of dashboards())
    t.strictSame(JSON.parse(readFileSync(join(folder, name), 'utf8')), JSON.parse(text), `${name}: npm run dashboards`);
});

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

t.test('each panel is answered by a Prometheus that reads a running master', { skip }, async (t) => {
  const world = await openWorld(t);
  const image = join(world.sources, 'image');
  writeNoise(image, 4 << 20);
  await world.startAgent();
  await world.replicate('db', image);
  await world.normal('db');
  await world.copyOf('db');

  const exposition = await (await fetch(`${world.client.url}/metrics`)).text();
  const linted = spawnSync('promtool', ['check', 'metrics'], { input: exposition, encoding: 'utf8' });
  const ours = linted.stderr.split('\n').filter((line) => line.startsWith('replicator_'));
  t.strictSame(ours, [], "Prometheus' linter is content with our metrics");

  const port = await freePort();
  const config = join(world.dir, 'prometheus.yaml');
  const target = world.client.url.replace('http://', '');
  writeFileSync(
    config,
    `global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [${join(folder, 'records.yaml')}, ${join(folder, 'alerts.yaml')}]
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
  const ask = async (expr: string): Promise<{ metric: Record<string, string>; value: [number, string] }[]> => {
    const query = expr.replaceAll('$replication', 'db').replaceAll('$__rate_interval', '10s');
    const answer = await fetch(`http://127.0.0.1:${port}/api/v1/query?query=${encodeURIComponent(query)}`);
    const { status, error, data } = (await answer.json()) as {
      status: string;
      error?: string;
      data: { result: never[] };
    };
    if (status !== 'success') throw new Error(`${query}: ${error}`);
    return data.result;
  };
  await world.until('Prometheus has read the master for a while', async () => {
    const rows = await ask('count_over_time(up{job="replicator-master"}[1m])').catch(() => []);
    return Number(rows[0]?.value[1] ?? 0) > 3;
  });
  for (const { title: page, panels } of pages) {
    for (const { title, queries, mayBeEmpty } of panels) {
      for (const expr of Object.values(queries)) {
        const rows = await ask(expr);
        t.ok(mayBeEmpty === true || rows.length > 0, `${page}, ${title}: ${expr}`);
      }
    }
  }
  /** What a panel shows: values by the label that its legend names, or by the legend. */
  async function shown(title: string): Promise<Record<string, number>> {
    const panel = pages.flatMap(({ panels }) => panels).find((one) => one.title === title);
    const rows: [string, number][] = [];
    for (const [legend, expr] of Object.entries(panel?.queries ?? {}))
      for (const { metric, value } of await ask(expr))
        rows.push([legend.replace(/{{(\w+)}}/g, (_, label: string) => metric[label] ?? ''), Number(value[1])]);
    return Object.fromEntries(rows);
  }
  t.match(await shown('Replications by state'), { NORMAL: 1, PREPARING: 0, FAILED: 0, ERROR: 0 });
  t.match(await shown('Agents by state'), { ACTIVE: 1, 'CONN FAILED': 0 });
  t.strictSame(await shown('State'), { NORMAL: 1 });
  t.strictSame(await shown('First copy'), { done: 1 });
  t.match(await shown('Snapshots'), { Ready: 0, Failed: 0 });
  t.strictSame(await shown('Can be recovered'), { volumes: 1 });
  t.strictSame(await shown('Never drilled'), { volumes: 0 });
  t.match(await shown('Recoveries'), { 'drill success': 1 });
  t.match(await shown('Read whole, and events lost, in a day'), { 'events lost': 0 });
  const { target: rpo, age } = await shown('Age of the copy');
  t.equal(rpo, 2, 'rpoSeconds');
  const lag = (await world.get('db')).status.lagSeconds ?? Infinity;
  t.ok(age !== undefined && age >= 0 && Math.abs(age - lag) < 60, `${age} s, the API says ${lag} s`);
  const since = (await shown('Since the last drill'))['db'] ?? -1;
  t.ok(since >= 0 && since < 600, `${since} s since the drill`);
  const used = (await shown('Storage used'))['local'] ?? -1;
  const classes = await world.client.list<StorageClass>('/storageclasses');
  const { usedBytes, capacityBytes } = classes.items[0]?.status ?? { usedBytes: null, capacityBytes: null };
  t.ok(Math.abs(used - (usedBytes ?? NaN) / (capacityBytes ?? NaN)) < 0.05, `${used} of the class is used`);
  const value = async (expr: string) => Number((await ask(expr))[0]?.value[1]);
  t.equal(await value('sum(replicator_state{state="NORMAL"})'), 1);
  t.equal(await value('replicator_initial_sync_ratio{replication="db"}'), 1);
  t.equal(await value('sum(replicator_agents{state="ACTIVE"})'), 1);
  t.equal(await value('replicator_recoveries_total{type="drill",result="success"}'), 1);
  t.ok((await value('replicator_agent_certificate_expiry_timestamp_seconds - time()')) > 86_400);

  await world.agent.kill();
  await world.until(
    'the alert of an agent that is gone is pending',
    async () => {
      return (await ask('ALERTS{alertname="ReplicatorAgentGone"}')).length === 1;
    },
    60,
  );
  await world.startAgent();
  await world.until(
    'and is over when it is back',
    async () => (await ask('ALERTS{alertname="ReplicatorAgentGone"}')).length === 0,
    60,
  );
});
