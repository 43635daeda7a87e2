import t from 'tap';
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parse } from 'yaml';
import { degraded, minuteAgo, recovery, replication } from './objects.ts';
import { json, problem, serve } from './server.ts';

const root = resolve(import.meta.dirname, '../../../..');
const directory = mkdtempSync(join(tmpdir(), 'replctl-'));
t.teardown(() => rmSync(directory, { recursive: true }));

interface Ended {
  status: number | null;
  out: string;
  err: string;
}
/** `until` sees standard output grow and may end the program with a signal. */
async function replctl(
  argv: string[],
  env: object = {},
  until?: (out: string) => NodeJS.Signals | undefined,
): Promise<Ended> {
  const child = spawn(join(root, 'master/replctl'), argv, {
    cwd: directory,
    env: { PATH: process.env['PATH'], ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let [out, err] = ['', ''];
  child.stdout.on('data', (data: Buffer) => {
    out += data.toString();
    const signal = until?.(out);
    if (signal !== undefined) child.kill(signal);
  });
  child.stderr.on('data', (data: Buffer) => (err += data.toString()));
  const status = await new Promise<number | null>((done) => child.on('close', done));
  return { status, out, err };
}
const list = (...items: object[]) => ({ items, metadata: { continue: null, resourceVersion: '1' } });

const wrongUsage: [string[], RegExp][] = [
  [[], /VERB is missing/],
  [['gett'], /no verb gett[^]*Did you mean get/],
  [['get'], /KIND is missing/],
  [['get', 'replicatoins'], /no kind replicatoins[^]*Did you mean replications/],
  [['get', 'points'], /REPLICATION is missing/],
  [['get', 'grouppoints'], /GROUP is missing/],
  [['get', 'agents', '../x'], /not a name/],
  [['get', 'agents', '--level', 'ERROR'], /--level is for events only/],
  [['get', 'agents', '-o', 'xml'], /--output xml: is none of table/],
  [['get', 'agents', '--url', 'ftp://x'], /not a URL/],
  [['get', 'agents', '--data', '/nowhere'], /endpoints\.json[^]*start the master/],
  [['get', 'agents', '--token-file', '/nowhere'], /cannot be read/],
  [['replicate', 'node-a:srv', '--name', 'a', '--to', 'local'], /NODE:PATH/],
  [['replicate', 'node-a:/srv', '--name', 'A', '--to', 'local'], /--name A: is not a name/],
  [['replicate', 'node-a:/srv', '--name', 'a'], /--to is missing/],
  [['replicate', 'node-a:/srv', '--name', 'a', '--to', 'b', '--rpo', '5'], /such as 500ms/],
  [['recover', 'orders'], /--type is missing/],
  [['recover', 'orders', '--type', 'drill', '--to', 'relative'], /neither a path/],
  [['recover', 'orders', '--type', 'drill', '--point', '2026-11-20T09:00'], /with Z or an offset/],
  [['delete', 'volumes', 'a'], /cannot be deleted/],
  [['delete', 'snapshot', 'orders'], /NAME is missing/],
  [['token'], /--join or --role/],
  [['completion', 'tcsh'], /bash, zsh or fish/],
];
t.test('wrong usage ends with status 2, names what is wrong and asks nothing of the master', async (t) => {
  for (const [argv, message] of wrongUsage) {
    const { status, out, err } = await replctl(argv, { REPLICATOR_URL: 'http://127.0.0.1:1' });
    t.equal(status, 2, argv.join(' '));
    t.match(err, message);
    t.equal(out, '');
  }
});

t.test('help lists the verbs, and a verb has its own', async (t) => {
  const { out } = await replctl(['--help']);
  const verbs = [...out.matchAll(/^ {2}([a-z]+) {2,}[A-Z]/gm)].map((match) => match[1] ?? '');
  t.ok(verbs.includes('replicate') && verbs.includes('delete') && verbs.length > 12, verbs.join(' '));
  for (const verb of ['replicate', 'recover']) {
    const { status, out } = await replctl([verb, '--help']);
    t.equal(status, 0);
    t.match(out, new RegExp(`^Usage: replctl ${verb} \\[flags\\]`));
  }
});

t.test('a list as a table, as JSON and YAML as the API answers it, and as names', async (t) => {
  const answer = list(
    replication('orders', { progress: { bytesTotal: 200, bytesDone: 100, bytesPerSecond: 1, secondsLeft: 100 } }),
    replication('a', {
      state: 'ERROR',
      phase: 'Disconnected',
      lagSeconds: null,
      conditions: [degraded('AgentGone', 'x')],
    }),
  );
  const server = await serve((_, response) => json(response, answer));
  t.teardown(() => server.close());
  const get = async (form: string) => (await replctl(['get', 'repl', '-o', form, '--url', server.url])).out;
  t.equal(
    (await get('table')).replaceAll(/(\d+m)?\d+s$/gm, '60s'),
    `NAME     STATE    PHASE          DONE   LAG    SOURCE               CLASS   DEGRADED    AGE
orders   NORMAL   Mirroring      50%    0.8s   node-a:/srv/orders   local   -           60s
a        ERROR    Disconnected   -      -      node-a:/srv/orders   local   AgentGone   60s\n`,
  );
  t.match(await get('wide'), /CAPTURE[^]*scan/);
  t.strictSame(JSON.parse(await get('json')), answer);
  t.strictSame(parse(await get('yaml')), answer);
  t.equal(await get('name'), 'replication/orders\nreplication/a\n');
});

t.test('address and token come from flags, else the environment, else the data directory', async (t) => {
  const server = await serve((_, response) => json(response, list()));
  t.teardown(() => server.close());
  const token = join(directory, 'token');
  writeFileSync(token, 'from-file\n');
  const data = mkdtempSync(join(directory, 'data-'));
  writeFileSync(join(data, 'endpoints.json'), JSON.stringify({ http: server.url, grpc: 'x' }));
  writeFileSync(join(data, 'admin.token'), 'from-data\n');
  const wrong = { REPLICATOR_URL: 'http://127.0.0.1:1', REPLICATOR_TOKEN_FILE: token };
  const ask = async (argv: string[], env: object) => {
    const { status, err } = await replctl(['get', 'agents', ...argv], env);
    t.equal(status, 0, err);
    return server.asked.at(-1)?.headers.authorization;
  };
  t.equal(await ask(['--url', server.url, '--token-file', token], {}), 'Bearer from-file');
  t.equal(await ask(['--url', server.url], wrong), 'Bearer from-file', 'flag before environment');
  t.equal(await ask([], { ...wrong, REPLICATOR_URL: server.url }), 'Bearer from-file');
  t.equal(await ask(['--data', data], wrong), 'Bearer from-data', 'a directory that is named before the environment');
  t.equal(await ask(['--url', server.url], {}), undefined, 'no token is sent to an address it is not of');
});

t.test('refused or away: status 1, with the detail and each field', async (t) => {
  const errors = [{ path: 'spec.rpoSeconds', message: 'must be at least 1' }];
  const server = await serve((_, response) => problem(response, 422, 'Fields are wrong', { errors }));
  const refused = await replctl(['replicate', 'a:/x', '--name', 'a', '--to', 'b', '--url', server.url]);
  t.strictSame([refused.status, refused.out], [1, '']);
  t.equal(refused.err, 'replctl: Fields are wrong\n  spec.rpoSeconds: must be at least 1\n');
  server.close();
  const away = await replctl(['get', 'agents', '--url', server.url]);
  t.equal(away.status, 1);
  t.match(away.err, /cannot be reached[^]*--url/);
});

t.test('dangerous verbs are refused where no name can be typed, and done with --yes', async (t) => {
  const server = await serve((_, response) => json(response, replication('orders')));
  t.teardown(() => server.close());
  for (const argv of [
    ['delete', 'replication', 'orders'],
    ['resync', 'orders', '--force'],
    ['rollback', 'drill-1'],
  ]) {
    const { status, err } = await replctl([...argv, '--url', server.url]);
    t.equal(status, 1, argv.join(' '));
    t.match(err, /not a terminal[^]*--yes/);
  }
  t.equal(server.asked.length, 0, 'nothing was asked of the master');
  t.equal((await replctl(['delete', 'replication/orders', '--keep-replica', '--yes', '--url', server.url])).status, 0);
  t.match(server.asked[0], { method: 'DELETE', url: '/api/v1/replications/orders?keepReplica=true' });
});

for (const [outcome, expected] of [
  ['success', 0],
  ['failed', 1],
  ['cancelled', 1],
] as const) {
  t.test(`recover --wait ends with the outcome ${outcome}`, async (t) => {
    const state = outcome === 'success' ? 'Completed' : 'Failed';
    const ended = recovery('drill-1', { state, outcome, message: 'as it went', verified: true, rtoSeconds: 2 }, 3);
    const server = await serve(({ method }, response) => {
      if (method === 'POST') return json(response, recovery('drill-1', {}, 2), 201);
      response.writeHead(200, { 'content-type': 'text/event-stream' });
      response.write(`id: 3\ndata: ${JSON.stringify({ type: 'MODIFIED', object: ended })}\n\n`);
    });
    t.teardown(() => server.close());
    const { status, out, err } = await replctl([
      'recover',
      'orders',
      '--type',
      'drill',
      '--point',
      'monday',
      '--wait',
      '--url',
      server.url,
    ]);
    t.equal(status, expected);
    t.equal(out, 'recovery/drill-1 created\n');
    t.match(err, /as it went/);
    t.strictSame(server.asked[0]?.body, { replication: 'orders', type: 'drill', point: { snapshot: 'monday' } });
    t.equal(server.asked[1]?.headers['last-event-id'], '2', 'from the answer on: nothing is missed');
    const whole = ['recover', 'orders', '--type', 'drill', '--wait', '-o', 'json', '--url', server.url];
    t.match(JSON.parse((await replctl(whole)).out), { status: { state, outcome } }, 'as it is in the end, once');
  });
}

t.test('events are told oldest first, as they go on below', async (t) => {
  const event = (id: number) => ({ id, time: minuteAgo, level: 'INFO', count: 1, code: `Code${id}`, object: null, message: 'm' }); // prettier-ignore
  const items = [event(2), event(1)];
  const server = await serve((_, response) => json(response, { items, metadata: { continue: null } }));
  t.teardown(() => server.close());
  t.match((await replctl(['get', 'events', '--url', server.url])).out, /Code1[^]*Code2/);
});

t.test('cleanup says when nothing is left over', async (t) => {
  const server = await serve((_, response) => json(response, { removed: [], left: [] }));
  t.teardown(() => server.close());
  const { status, out, err } = await replctl(['cleanup', '--url', server.url]);
  t.strictSame([status, out, err], [0, '', 'Nothing is left over.\n']);
});

t.test('--wait with --timeout ends with status 1 and says that it goes on', async (t) => {
  const server = await serve(({ method }, response) => {
    if (method === 'POST') return json(response, recovery('drill-1'), 201);
    response.writeHead(200, { 'content-type': 'text/event-stream' }).write(': heartbeat\n\n');
  });
  t.teardown(() => server.close());
  const { status, err } = await replctl([
    'recover',
    'orders',
    '--type',
    'drill',
    '--wait',
    '--timeout',
    '200ms',
    '--url',
    server.url,
  ]);
  t.equal(status, 1);
  t.match(err, /not done within 0\.2 s/);
});

t.test('watch prints a line for each change and ends well when interrupted', async (t) => {
  const at = (bytesDone: number) => {
    return replication(
      'orders',
      {
        state: 'PREPARING',
        phase: 'InitialSync',
        progress: { bytesTotal: 1024, bytesDone, bytesPerSecond: 512, secondsLeft: 1 },
      },
      2 + bytesDone,
    );
  };
  const server = await serve(({ url }, response) => {
    if (url.includes('limit=1')) return json(response, list());
    if (url.endsWith('/orders')) return json(response, at(0));
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    response.write(`id: 3\ndata: ${JSON.stringify({ type: 'MODIFIED', object: at(512) })}\n\n`);
  });
  t.teardown(() => server.close());
  const half = (out: string) => (out.includes(' 50%') ? ('SIGINT' as const) : undefined);
  const { status, out } = await replctl(['watch', 'orders', '--url', server.url], {}, half);
  t.equal(status, 0);
  t.strictSame(out.split('\n').map((line) => /\[.*\] +\d+%/.exec(line)?.[0]), [`[${'-'.repeat(24)}]   0%`, `[${'#'.repeat(12)}${'-'.repeat(12)}]  50%`, undefined]); // prettier-ignore
  t.match(out, /InitialSync.*512 B of 1\.0 KiB {2}512 B\/s {2}1s left/);
});

t.test('apply reads every document before the first is sent, then creates or changes in order', async (t) => {
  const server = await serve(({ method, url, body }, response) => {
    if (method === 'GET' && url.endsWith('/new')) return problem(response, 404, 'none');
    const old = replication('old', {}, 4);
    if (method === 'GET') return json(response, old);
    json(response, { ...old, ...(body as object), metadata: { ...old.metadata, ...(body as typeof old).metadata } });
  });
  t.teardown(() => server.close());
  const file = join(directory, 'objects.yaml');
  const spec = 'spec: {source: {agent: a, path: /x}, target: {storageClass: local}}';
  const good = `kind: Replication\nmetadata: {name: new}\n${spec}\n---\n{"kind": "Replication", "metadata": {"name": "old"}, "spec": {}}\n`;
  writeFileSync(file, `${good}---\nkind: Volume\nmetadata: {name: x}\n`);
  const bad = await replctl(['apply', '-f', file, '--url', server.url]);
  t.equal(bad.status, 2);
  t.match(bad.err, /document 3: kind is "Volume"[^]*Replication, Snapshot, StorageClass/);
  t.equal(server.asked.length, 0);
  writeFileSync(file, good);
  const { status, out } = await replctl(['apply', '-f', file, '--url', server.url]);
  t.equal(status, 0);
  t.equal(out, 'replication/new created\nreplication/old configured\n');
  t.strictSame(server.asked.map(({ method, url }) => `${method} ${url.slice(7)}`), ['GET /replications/new', 'POST /replications', 'GET /replications/old', 'PUT /replications/old']); // prettier-ignore
});
