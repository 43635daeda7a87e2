import t from 'tap';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type RequestListener } from 'node:http';
import { type AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { freePort } from '../ports.ts';
import { situations } from '../unit/dashboards/situations.ts';

const folder = resolve(import.meta.dirname, '../../dashboards');
const missing = ['prometheus', 'prometheus-alertmanager'].find((name) => spawnSync(name, ['--version']).status !== 0);

type Phase = 'good' | 'bad' | 'cured';
const day = 86_400;
const nowSeconds = (): number => Date.now() / 1000;

/** What Prometheus reads in each phase; counters and what moves go by `tick`, the number of the scrape. */
function exposition(phase: Phase, tick: number, ticksBad: number): string {
  const bad = phase === 'bad';
  const db = (name: string): string => `{replication="${name}"}`;
  const lines: [string, number][] = [
    [`replicator_rpo_target_seconds${db('late')}`, 60],
    [`replicator_lag_seconds${db('late')}`, bad ? 150 : 20],
    [`replicator_rpo_target_seconds${db('very')}`, 60],
    [`replicator_lag_seconds${db('very')}`, bad ? 600 : 20],
    [`replicator_last_sync_timestamp_seconds${db('never')}`, bad ? 0 : nowSeconds()],
    ['replicator_phase{replication="never",phase="Paused"}', 0],
    ['replicator_state{replication="stuck",state="ERROR"}', bad ? 1 : 0],
    ['replicator_phase{replication="first",phase="InitialSync"}', 1],
    [`replicator_initial_sync_ratio${db('first')}`, bad ? 0.5 : (tick % 1000) / 1000],
    ['replicator_agent_up{agent="node-a"}', bad ? 0 : 1],
    [`replicator_verify_mismatched_bytes_total${db('rot')}`, ticksBad * 65_536],
    [`replicator_capture_lost_events_total${db('loses')}`, ticksBad],
    ['replicator_full_scans_total{replication="loses",reason="EventsLost"}', ticksBad],
    ['replicator_cuts_total{replication="cuts",result="refused"}', ticksBad],
    ['replicator_cuts_total{replication="cuts",result="success"}', tick - ticksBad],
    ['replicator_storage_capacity_bytes{storage_class="filling"}', 1000],
    ['replicator_storage_used_bytes{storage_class="filling"}', bad ? 700 + ticksBad : 300],
    ['replicator_storage_capacity_bytes{storage_class="full"}', 1000],
    ['replicator_storage_used_bytes{storage_class="full"}', bad ? 980 : 500],
    ['replicator_snapshots{replication="snaps",state="Failed"}', bad ? 1 : 0],
    [`replicator_last_sync_timestamp_seconds${db('drills')}`, nowSeconds()],
    [`replicator_last_drill_timestamp_seconds${db('drills')}`, nowSeconds() - (bad ? 31 : 1) * day],
    ['replicator_agent_certificate_expiry_timestamp_seconds{agent="node-a"}', nowSeconds() + (bad ? 6 : 60) * day],
    [
      'replicator_master_certificate_expiry_timestamp_seconds{certificate="http"}',
      nowSeconds() + (bad ? 13 : 90) * day,
    ],
    ...(bad ? [['replicator_degraded{replication="split",reason="SplitBrain"}', 1] as [string, number]] : []),
  ];
  return lines.map(([name, value]) => `${name} ${value}\n`).join('');
}

t.test(
  'each alert reaches a receiver by Prometheus and Alertmanager, and is resolved by the cure',
  { skip: missing !== undefined && `needs ${missing}` },
  async (t) => {
    const dir = mkdtempSync(join(tmpdir(), 'alerts-'));
    t.teardown(() => rmSync(dir, { recursive: true, force: true }));
    async function listen(handler: RequestListener): Promise<number> {
      const server = createServer(handler).listen(0, '127.0.0.1');
      await once(server, 'listening');
      t.teardown(() => {
        server.closeAllConnections();
        server.close();
      });
      return (server.address() as AddressInfo).port;
    }
    let phase = 'good' as Phase;
    let tick = 0;
    let ticksBad = 0;
    const series = await listen((_request, response) => {
      tick++;
      if (phase === 'bad') ticksBad++;
      response.setHeader('content-type', 'text/plain; version=0.0.4').end(exposition(phase, tick, ticksBad));
    });
    const master = await listen((_request, response) => {
      response.statusCode = phase === 'bad' ? 503 : 200;
      response.setHeader('content-type', 'text/plain; version=0.0.4').end('replicator_up 1\n');
    });
    /** By alert and labels: what the receiver was told last. */
    const told = new Map<string, { name: string; status: string }>();
    const receiver = await listen((request, response) => {
      let body = '';
      request.on('data', (data: Buffer) => (body += data.toString()));
      request.on('end', () => {
        const { alerts } = JSON.parse(body) as {
          alerts: {
            fingerprint: string;
            status: string;
            labels: { alertname: string };
            annotations: Record<string, string>;
          }[];
        };
        for (const { fingerprint, status, labels, annotations } of alerts) {
          told.set(fingerprint, { name: labels.alertname, status });
          if (/<no value>|{{|<error/.test(JSON.stringify(annotations))) t.fail(JSON.stringify({ labels, annotations }));
        }
        response.end();
      });
    });

    // The same rules with an hour as ten seconds: what they look back on, and how long they wait.
    const hurried = (name: string): string => {
      const path = join(dir, name);
      const text = readFileSync(join(folder, name), 'utf8');
      const rules = text.replace(/\[\d+[mhd]\]/g, '[10s]').replace(/for: \w+/g, 'for: 1s');
      writeFileSync(path, rules.replace(/interval: \w+/g, 'interval: 1s'));
      return path;
    };
    const ports = { alertmanager: await freePort(), prometheus: await freePort() };
    writeFileSync(
      join(dir, 'alertmanager.yaml'),
      `route: {receiver: test, group_by: [alertname], group_wait: 1s, group_interval: 1s, repeat_interval: 1h}
receivers: [{name: test, webhook_configs: [{url: 'http://127.0.0.1:${receiver}/', send_resolved: true}]}]
`,
    );
    writeFileSync(
      join(dir, 'prometheus.yaml'),
      `global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [${hurried('records.yaml')}, ${hurried('alerts.yaml')}]
alerting: {alertmanagers: [{static_configs: [{targets: ['127.0.0.1:${ports.alertmanager}']}]}]}
scrape_configs:
  - {job_name: situations, static_configs: [{targets: ['127.0.0.1:${series}']}]}
  - {job_name: replicator-master, static_configs: [{targets: ['127.0.0.1:${master}']}]}
`,
    );
    const start = (name: string, ...argv: string[]): void => {
      const child = spawn(name, argv, { cwd: dir, stdio: 'ignore' });
      t.teardown(async () => {
        child.kill('SIGKILL');
        if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
      });
    };
    start(
      'prometheus-alertmanager',
      ...[`--config.file=${dir}/alertmanager.yaml`, `--storage.path=${dir}/am`, '--cluster.listen-address='],
      `--web.listen-address=127.0.0.1:${ports.alertmanager}`,
    );
    start(
      'prometheus',
      ...[`--config.file=${dir}/prometheus.yaml`, `--storage.tsdb.path=${dir}/tsdb`],
      `--web.listen-address=127.0.0.1:${ports.prometheus}`,
    );
    const names = situations.map(({ alert }) => alert).sort();
    async function until(what: string, done: () => boolean, seconds = 180): Promise<void> {
      const endMs = performance.now() + seconds * 1000;
      while (!done()) {
        if (performance.now() > endMs) throw new Error(`not reached in ${seconds} s: ${what}`);
        await sleep(100);
      }
    }
    const seen = (): string[] => [...new Set([...told.values()].map(({ name }) => name))].sort();
    const firing = (): string[] =>
      names.filter((alert) => [...told.values()].some(({ name, status }) => name === alert && status === 'firing'));

    await until('Prometheus has read for a while', () => tick > 12);
    t.strictSame(seen(), [], 'all is well: nothing is said');
    phase = 'bad';
    await until('every alert is fired', () => firing().length === names.length).catch((error: unknown) =>
      t.fail(String(error)),
    );
    t.strictSame(firing(), names);
    phase = 'cured';
    await until('every alert is resolved', () => firing().length === 0).catch((error: unknown) =>
      t.fail(String(error)),
    );
    t.strictSame(firing(), []);
    t.strictSame(seen(), names);
  },
);
