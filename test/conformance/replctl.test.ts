/** The real replctl against a real control API: on a terminal and off it. What it asks of fake servers: unit/master/cli. */
import t from 'tap';
import { spawn, spawnSync } from 'node:child_process';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseAllDocuments } from 'yaml';
import { noPty, onTerminal } from '../pty.ts';
import { point, replication, serve, v1 } from './apiserver.ts';
import type { Json, Server } from './apiserver.ts';

const program = resolve(import.meta.dirname, '../../master/replctl');
const password = 'Correct-horse-9';
interface Ended {
  status: number | null;
  out: string;
  err: string;
}
async function run(argv: string[], env: NodeJS.ProcessEnv, input = ''): Promise<Ended> {
  const child = spawn(argv[0] ?? '', argv.slice(1), { env, stdio: ['pipe', 'pipe', 'pipe'] });
  child.stdin.end(input);
  let [out, err] = ['', ''];
  child.stdout.on('data', (data: Buffer) => (out += data.toString()));
  child.stderr.on('data', (data: Buffer) => (err += data.toString()));
  const status = await new Promise<number | null>((done) => child.once('close', done));
  return { status, out, err };
}
function ctl(server: Server, home: string, withToken = true) {
  const env = {
    PATH: process.env['PATH'],
    HOME: home,
    REPLICATOR_URL: server.api.url,
    ...(withToken ? { REPLICATOR_TOKEN_FILE: join(server.folder, 'admin.token') } : {}),
  };
  return Object.assign((...argv: string[]) => run([program, ...argv], env), { env });
}

t.test('what only a terminal gets: colours, questions, lines that move; and log-in', { skip: noPty }, async (t) => {
  const server = await serve(t);
  const { call, store } = server;
  for (const name of ['orders', 'shop']) await call('POST', `${v1}/replications`, replication(name, { group: name }));
  const home = t.testdir();
  const replctl = ctl(server, home);
  const terminal = (argv: string[], answers: [string, string][] = [], env: NodeJS.ProcessEnv = {}) =>
    onTerminal([program, ...argv], answers, { ...replctl.env, ...env });

  t.match((await terminal(['get', 'replications'])).out, /\u001b\[33mPREPARING\u001b\[0m/);
  t.notMatch((await terminal(['get', 'replications'], [], { NO_COLOR: '1' })).out, '\u001b');
  t.notMatch((await replctl('get', 'replications')).out, '\u001b');

  const wrong = await terminal(['delete', 'replication', 'orders'], [['go on: ', 'shop\r']]);
  t.match(wrong, { status: 1, out: /That is not the name: nothing was done/ });
  t.ok(store.get('Replication', 'orders'));

  const progress = { bytesTotal: 200, bytesDone: 50, bytesPerSecond: 10, secondsLeft: 15 };
  let isMoved = false;
  const live = await onTerminal([program, 'watch', 'orders'], [], replctl.env, (out) => {
    if (isMoved || !out.includes('PREPARING')) return;
    isMoved = true;
    store.update('Replication', 'orders', ({ status }) => Object.assign(status, { phase: 'InitialSync', progress }));
    store.delete('Replication', 'orders');
  });
  t.match(live, { status: 0, out: /\r\u001b\[K[^\n]*\[######-+\] +25% +50 B of 200 B +10 B\/s +15s left/ });
  t.match(live.out, /replication\/orders was deleted/);

  let isChanged = false;
  const rows = await onTerminal(
    [program, 'get', 'replications', '-w'],
    [['replication/moves deleted', '\u0003']],
    replctl.env,
    (out) => {
      if (isChanged || !out.includes('shop')) return;
      isChanged = true;
      void call('POST', `${v1}/replications`, replication('moves')).then(
        () => {
          store.update('Replication', 'moves', ({ status }) => void (status.state = 'ERROR'));
          store.delete('Replication', 'moves');
        },
        (error: unknown) => t.fail(String(error)),
      );
    },
  );
  t.match(rows.out, /moves[^\n]*\u001b\[31mERROR\u001b\[0m/, 'a row for each change, in colour');
  t.match(rows.out, /\^C/, 'until it is interrupted');

  await call('POST', `${v1}/users`, { name: 'kim', role: 'operator', password, groups: ['shop'] });
  const mine = { ...replctl.env, REPLICATOR_TOKEN_FILE: '' };
  const login = await onTerminal([program, 'login', '-u', 'kim'], [['Password: ', `Wrong\b\u0015${password}\r`]], mine);
  t.match(login, { status: 0, out: /logged in at .* as kim \(operator, bound to shop\)/ });
  t.notMatch(login.out, 'horse', 'the password is not shown');
  const kept = join(home, '.config/replctl/session.json');
  t.equal(statSync(kept).mode & 0o777, 0o600);
  t.notMatch(readFileSync(kept, 'utf8'), 'horse');
  const { REPLICATOR_URL: _, ...bare } = mine;
  t.equal((await run([program, 'get', 'replications', '-o', 'name'], bare)).out, 'replication/shop\n', 'as kim, there');
  t.match(await run([program, 'get', 'users', '--url', 'http://localhost:1'], mine), {
    status: 1,
    err: /cannot be reached/,
  });
  t.match(await run([program, 'logout'], mine), { status: 0 });
  t.match(await run([program, 'get', 'users'], mine), { status: 1, err: /replctl login/ });
  t.equal((await call('GET', `${v1}/users/kim`)).body['status'] && ((await call('GET', `${v1}/users/kim`)).body['status'] as Json)['sessions'], 0); // prettier-ignore
});

t.test('users, sinks and recoveries as REST has them; no secret is an argument or printed', async (t) => {
  const server = await serve(t);
  const { call, store, points } = server;
  points.push(point(1, '2026-11-20T00:00:00.000Z'));
  await call('POST', `${v1}/replications`, replication('shop', { group: 'shop' }));
  await call('POST', `${v1}/recoveries`, { name: 'try', replication: 'shop', type: 'drill' });
  const home = t.testdir({ password, url: 'https://chat.example.com/hook/s3cret\n', sign: 'signs-the-body' });
  const replctl = ctl(server, home);
  const file = (name: string) => join(home, name);
  const all: Ended[] = [];
  const does = async (argv: string[], expected: object): Promise<void> => {
    const ended = await replctl(...argv);
    all.push(ended);
    t.match(ended, expected, argv.join(' '));
  };
  await does(['user', 'kim'], { status: 2, err: /--role/ });
  await does(['user', 'kim', '--role', 'operator', '--group', 'shop', '--password-file', file('password')], {
    status: 0,
    out: 'user/kim created\n',
  });
  await does(['user', 'kim', '--role', 'user', '--all-groups', '--end-sessions'], { status: 0 });
  await does(['get', 'users'], { out: /kim +user +all/ });
  await does(['user', 'lee', '--role', 'user'], { status: 2, err: /not a terminal/ });
  await does(['sink', 'chat', '--to-file', file('url'), '--secret-file', file('sign'), '--level', 'FATAL'], {
    status: 0,
  });
  await does(['get', 'sinks', '-o', 'json'], { out: /"to": "https:\/\/chat.example.com"/ });
  await does(['delete', 'sink', 'chat', '--yes'], { status: 0 });
  t.equal(store.listRecords('sinks').length, 0);
  store.update('Recovery', 'try', ({ status }) => void (status.state = 'Running'));
  await does(['pause', 'recovery/try'], { status: 0, out: 'recovery/try pausing\n' });
  t.match(store.get('Recovery', 'try')?.status.state, /Paus/);
  await does(['get', 'replication', 'shpo'], { status: 1, err: /no replication "shpo". Did you mean shop\?/ });
  await does(['snapshot', 'shopp'], { status: 1, err: /Did you mean shop\?/ });
  await does(['explain', 'replication.spec.snapshotSchedules'], {
    status: 0,
    out: /period +minute\|hour\|day\|week\|month/,
  });
  await does(['explain', 'replication.spec.rpo'], { status: 2, err: /has no field rpo[^]*rpoSeconds/ });
  await does(['explain', 'events'], { status: 2, err: /not written by people/ });
  t.notMatch(JSON.stringify(all), /horse|s3cret|signs-the/);
});

t.test(
  'export and import carry what people decided to another master, in the order in which it is needed',
  async (t) => {
    const [from, to] = [await serve(t), await serve(t)];
    await from.call('POST', `${v1}/storageclasses`, {
      metadata: { name: 'zzz' },
      spec: { driver: 'directory', parameters: { path: '/srv/zzz' } },
    });
    await from.call('POST', `${v1}/replications`, replication('a', { group: 'g', target: { storageClass: 'zzz' } }, { labels: { app: 'x' } })); // prettier-ignore
    await from.call('PATCH', `${v1}/groups/g`, {
      spec: { members: [{ replication: 'a', startOrder: 3 }], rpoSeconds: 9 },
    });
    await from.call('POST', `${v1}/recoveryschedules`, {
      metadata: { name: 'nightly' },
      spec: { group: 'g', type: 'drill', repeat: 'daily', startTime: '2031-01-01T00:00:00Z' },
    });
    const home = t.testdir();
    const exported = await ctl(from, home)('export');
    t.equal(exported.status, 0);
    const kinds = parseAllDocuments(exported.out).map((one) => (one.toJS() as { kind: string }).kind);
    t.same(kinds, ['StorageClass', 'StorageClass', 'Replication', 'Group', 'RecoverySchedule']);
    t.notMatch(exported.out, /status:|uid:|resourceVersion/);
    const file = join(home, 'dr.yaml');
    writeFileSync(file, exported.out.split('---\n').filter(Boolean).reverse().join('---\n'));
    const imported = await ctl(to, home)('import', '-f', file, '--paused');
    t.match(imported, {
      status: 0,
      out: /storageclass\/zzz created[^]*replication\/a created[^]*recoveryschedule\/nightly created/,
    });
    t.match(to.store.get('Replication', 'a')?.spec, { paused: true, rpoSeconds: 30, group: 'g' });
    t.match(to.store.get('Group', 'g')?.spec, { rpoSeconds: 9, members: [{ startOrder: 3 }] });
    await ctl(to, home)('import', '-f', file);
    const again = await ctl(to, home)('export');
    t.equal(again.out, exported.out, 'the same there');
    writeFileSync(
      file,
      exported.out.replace('storageClass: zzz', 'storageClass: none').replace('name: a\n', 'name: b\n'),
    );
    const refused = await ctl(to, home)('import', '-f', file);
    t.match(refused, { status: 1, err: /replication\/b: spec.target.storageClass must name[^]*1 of 5 were refused/ });
    t.match(refused.out, /recoveryschedule\/nightly unchanged/, 'the rest went on');
  },
);

/** A server with something of each kind to complete. */
async function furnished(t: Parameters<typeof serve>[0]): Promise<Server> {
  const server = await serve(t);
  const { call, points } = server;
  points.push(point(1, '2026-11-20T00:00:00.000Z'));
  for (const name of ['orders', 'shop']) await call('POST', `${v1}/replications`, replication(name, { group: 'both' }));
  await call('POST', `${v1}/replications/shop/snapshots`, { name: 'monday' });
  await call('POST', `${v1}/recoveries`, { name: 'try', replication: 'shop', type: 'drill' });
  return server;
}

const noFish = spawnSync('fish', ['--version']).status === 0 ? false : 'fish is not installed';
t.test('fish completes verbs, flags, words and names', { skip: noFish }, async (t) => {
  const replctl = ctl(await furnished(t), t.testdir());
  const cases: [string, string][] = [
    ['pau', 'pause'],
    ['get --lev', '--level'],
    ['get events --level ', 'ERROR FATAL INFO TRACE WARNING'],
    ['get replications ', 'orders shop'],
    ['describe snapshots ', 'shop/monday'],
    ['delete groups ', 'both'],
    ['get points ', 'orders shop'],
    ['promote o', 'orders'],
    ['rollback ', 'try'],
    ['recover --type ', 'drill failover'],
    ['replicate --to ', 'local'],
    ['completion ', 'bash fish zsh'],
  ];
  const script = `set -x PATH ${resolve(program, '..')} $PATH; replctl completion fish | source
while read -l line
  set -l typed (string sub -e -1 -- $line)
  echo (complete -C "replctl $typed" | string replace -r '\\t.*' '')
end`;
  // A space at the end of a line would be lost.
  const asked = cases.map(([line]) => `${line}|\n`).join('');
  const env = { ...replctl.env, PATH: process.env['PATH'] };
  const { out, err } = await run(['fish', '-c', script], env, asked);
  t.equal(err, '');
  t.strictSame(
    out.trimEnd().split('\n'),
    cases.map(([, expected]) => expected),
  );
});

t.test('bash completes verbs, flags, words and names of every kind', async (t) => {
  const replctl = ctl(await furnished(t), t.testdir());
  const cases: [string, RegExp | string][] = [
    ['', /\bget\b.*\blogin\b.*\bexport\b.*\bexplain\b/],
    ['get ', /agents.*replications.*recoveryschedules.*users.*sinks/],
    ['get --lev', '--level'],
    ['get events --level ', 'FATAL ERROR WARNING INFO TRACE'],
    ['get replications ', 'orders shop'],
    ['describe snapshots ', 'shop/monday'],
    ['delete groups ', 'both'],
    ['get points ', 'orders shop'],
    ['promote o', 'orders'],
    ['rollback ', 'try'],
    ['confirm ', 'try'],
    ['recover --type ', 'drill failover'],
    ['recover --group ', 'both'],
    ['replicate --to ', 'local'],
    ['explain ', /replications/],
    ['completion ', 'bash zsh fish'],
  ];
  const script = `PATH=${resolve(program, '..')}:$PATH; source <(replctl completion bash)
while IFS= read -r line; do
  COMP_WORDS=(replctl $line); case $line in *' '|'') COMP_WORDS+=("") ;; esac
  COMP_CWORD=$((\${#COMP_WORDS[@]} - 1)); COMPREPLY=(); _replctl; echo "\${COMPREPLY[*]}"
done`;
  const asked = cases.map(([line]) => `${line}\n`).join('');
  const { out, err } = await run(['bash', '-c', script], { ...replctl.env, PATH: process.env['PATH'] }, asked);
  t.equal(err, '');
  out.trimEnd().split('\n').forEach((line, i) => {
    const [typed = '', expected = ''] = cases[i] ?? [];
    if (typeof expected === 'string') t.equal(line, expected, typed);
    else t.match(line, expected, typed);
  }); // prettier-ignore
});
