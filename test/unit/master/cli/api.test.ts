/** replctl against the real API on the real store; only the engine behind it is a fixture. */
import t, { type Test } from 'tap';
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { startApi } from '../../../../master/api/server.ts';
import { openDatabase } from '../../../../master/database.ts';
import type { Engine } from '../../../../master/engine.ts';
import { eventLog } from '../../../../master/events.ts';
import { apiVersion, type PointView } from '../../../../master/resources.ts';
import { sqliteStore } from '../../../../master/store-sqlite.ts';
import { openSinks } from '../../../../master/sinks.ts';
import { openUsers } from '../../../../master/users.ts';
import { openTokens } from '../../../../master/tokens.ts';
import { systemClock as clock, systemRandom as random } from '../../../../proto/system.ts';

const directory = mkdtempSync(join(tmpdir(), 'replctl-api-'));
const database = openDatabase(join(directory, 'state.db'));
const store = sqliteStore(database, { clock, random });
const tokens = await openTokens({ store, clock, random, adminFile: join(directory, 'admin.token') });
const point: PointView = {
  sequence: 7, sourceTime: '2026-11-20T09:00:00.000Z', committedTime: '2026-11-20T09:00:01.000Z',
  consistency: 'filesystem', digest: 'ab'.repeat(16), snapshot: null, drilledTime: null,
}; // prettier-ignore
const engine: Engine = {
  points: () => [point],
  groupPoints: (group) => [{ cut: 'c1', sourceTime: point.sourceTime, consistency: 'crash', points: [{ replication: `${group}-db`, point }] }],
  volumes: () => [
    { path: '/srv/orders', kind: 'directory', volumeMode: 'Filesystem', sizeBytes: 2048, filesystem: 'ext4', filesystemId: null, mountPoint: '/srv/orders', csi: null, eligible: true, reason: null },
  ],
  validateReplication: ({ source }) => (source.path === '/etc' ? [{ path: 'spec.source.path', message: 'is a system directory' }] : []),
  revokeAgent: () => undefined,
}; // prettier-ignore
const events = eventLog(database, clock);
const api = await startApi({
  store, engine, users: openUsers({ store, clock, random }), tokens, clock, trusted: clock, events, sinks: openSinks({ store, events, clock }), newJoinToken: () => 'join-secret',
  listen: { host: '127.0.0.1', port: 0 }, metrics: { contentType: 'text/plain', text: async () => '' }, version: '9.8.7',
}); // prettier-ignore
writeFileSync(join(directory, 'endpoints.json'), JSON.stringify({ http: api.url }));
t.teardown(async () => {
  await api.close();
  store.close();
  rmSync(directory, { recursive: true });
});

interface Ended {
  status: number;
  out: string;
  err: string;
}
const program = resolve(import.meta.dirname, '../../../../master/replctl');
function replctl(line: string): Promise<Ended> {
  return new Promise((done) => {
    execFile(program, ['--data', directory, ...line.split(' ')], { cwd: directory }, (error, out, err) => {
      done({ status: error === null ? 0 : Number(error.code), out, err });
    });
  });
}
async function done(t: Test, line: string): Promise<string> {
  const { status, out, err } = await replctl(line);
  t.equal(status, 0, `${line}: ${err}`);
  return out;
}

store.create('StorageClass', 'local', {
  apiVersion, kind: 'StorageClass', metadata: { name: 'local' },
  spec: { driver: 'directory', parameters: { path: '/var/lib/x' } },
  status: { capacityBytes: 2 ** 40, usedBytes: 0, reflink: true, conditions: [] },
}); // prettier-ignore
store.create('Agent', 'node-a', {
  apiVersion, kind: 'Agent', metadata: { name: 'node-a' }, spec: { role: 'source' },
  status: { state: 'ACTIVE', message: '', version: '0.1.0', kernel: '6.1', bootId: null, lastSeenTime: null, clockOffsetSeconds: 0, certificateExpiryTime: null },
  identity: { machineId: 'm', certificates: [] },
}); // prettier-ignore

t.test('a replication from creation to deletion', async (t) => {
  t.equal(
    await done(t, 'replicate node-a:/srv/orders --name orders --to local --rpo 5s'),
    'replication/orders created\n',
  );
  t.match(await done(t, 'get repl'), /^orders +PREPARING +Pending +- +- +node-a:\/srv\/orders +local/m);
  t.equal(store.get('Replication', 'orders')?.spec.rpoSeconds, 5);
  t.equal(store.get('Replication', 'orders')?.spec.source.volumeMode, 'Filesystem', 'as the agent reported');

  const file = join(directory, 'orders.yaml');
  writeFileSync(file, await done(t, 'get replication orders -o yaml'));
  store.update('Replication', 'orders', ({ status }) => void (status.phase = 'Mirroring')); // the version moves on
  t.equal(await done(t, `apply -f ${file}`), 'replication/orders unchanged\n');
  writeFileSync(file, (await done(t, 'get replication orders -o yaml')).replace('rpoSeconds: 5', 'rpoSeconds: 60'));
  t.equal(await done(t, `apply -f ${file}`), 'replication/orders configured\n');
  t.equal(store.get('Replication', 'orders')?.spec.rpoSeconds, 60);

  t.equal(await done(t, 'pause orders'), 'replication/orders pausing\n');
  t.equal(store.get('Replication', 'orders')?.spec.paused, true);
  await done(t, 'resume orders');
  t.equal(store.get('Replication', 'orders')?.spec.paused, false);
  await done(t, 'resync orders --force --yes');
  await done(t, 'verify orders');
  t.match(store.get('Replication', 'orders')?.requests, { resync: 1, verify: 1, force: true });

  t.equal(await done(t, 'snapshot orders --name monday'), 'snapshot/orders/monday created\n');
  t.match(await done(t, 'get snapshots'), /^orders +monday +Creating/m);
  t.equal(await done(t, 'get snapshot orders/monday -o name'), 'snapshot/orders/monday\n');
  t.match(await done(t, 'get points orders'), /^7 +2026-11-20T09:00:00.000Z .* filesystem/m);
  store.update('Replication', 'orders', ({ spec }) => void (spec.group = 'shop'));
  t.match(await done(t, 'get grouppoints shop'), /^2026-11-20T09:00:00.000Z +crash +shop-db\/7$/m);
  t.match(JSON.parse(await done(t, 'get gpt shop -o json')), { items: [{ cut: 'c1' }] });
  t.match(await done(t, 'get gpt shop --from 2026-11-21T00:00:00Z -o name'), /^$/);
  store.update('Replication', 'orders', ({ spec }) => void delete spec.group);
  t.match(await done(t, 'describe replication orders'), /rpoSeconds: +60[^]*events:[^]*ReplicationCreated/);

  t.match(await done(t, 'recover orders --type drill --name drill-1 --to /tmp/x'), 'recovery/drill-1 created');
  t.match(store.get('Recovery', 'drill-1')?.spec, { point: 'latest-data', target: { path: '/tmp/x' } });
  t.match(await done(t, 'get recoveries'), /^drill-1 +orders +drill +Waiting/m);
  const refused = await replctl('delete replication orders --yes');
  t.equal(refused.status, 1, 'a recovery of it runs');
  t.match(refused.err, /Recovery\/drill-1/);
  t.equal(await done(t, 'cancel drill-1'), 'recovery/drill-1 cancelling\n');
  store.delete('Recovery', 'drill-1');
  t.equal(await done(t, 'delete replication orders --yes'), 'replication/orders deleted\n');
  t.equal(store.list('Replication').length, 0);
});

t.test('the rest of what can be listed, and tokens', async (t) => {
  t.match(await done(t, 'get agents'), /^node-a +ACTIVE +source +0\.1\.0/m);
  t.match(await done(t, 'get volumes'), /^node-a +\/srv\/orders +directory +Filesystem +2\.0 KiB +ext4 +yes/m);
  t.match(await done(t, 'get sc'), /^local +directory +0 B +1\.0 TiB +yes/m);
  t.match(await done(t, 'get events --level INFO'), /ReplicationCreated +Replication\/orders/);
  t.equal(await done(t, 'token --join'), 'join-secret\n');
  t.match(await done(t, 'token --role user --name grafana'), /^\S{32,}\n$/);
  t.match(await done(t, 'get tokens'), /^grafana +user/m);
  t.equal(await done(t, 'delete token grafana --yes'), 'token/grafana deleted\n');
  t.equal(await done(t, 'version'), `replctl 0.1.0\nmaster 9.8.7 at ${api.url}\n`);
});

t.test('what the API refuses: status 1, the detail once, and what to do', async (t) => {
  const refusals: [string, RegExp][] = [
    ['get replication nothing', /no replication "nothing"/],
    [
      'replicate node-a:/etc --name etc --to local --mode Filesystem',
      /^replctl: spec\.source\.path is a system directory\n$/,
    ],
    ['replicate node-a:/srv/orders --name a --to nowhere', /spec\.target\.storageClass.*local/],
    ['recover nothing --type drill', /must name a replication that exists/],
    [`get agents --token-file ${join(directory, 'endpoints.json')}`, /--token-file/],
  ];
  for (const [line, message] of refusals) {
    const { status, out, err } = await replctl(line);
    t.equal(status, 1, line);
    t.equal(out, '');
    t.match(err, message);
  }
});

t.test('watching a list shows what happens, as it happens', async (t) => {
  const child = execFile(program, ['--data', directory, 'get', 'agents', '-w', '-o', 'name']);
  const lines: string[] = [];
  await new Promise<void>((ended) => {
    child.stdout?.on('data', (data: string) => {
      lines.push(...data.trim().split('\n'));
      if (lines.length === 1) store.update('Agent', 'node-a', ({ status }) => void (status.message = 'changed'));
      if (lines.length === 2) child.kill('SIGINT');
    });
    child.on('close', () => ended());
  });
  t.strictSame(lines, ['agent/node-a', 'agent/node-a']);
});
