/**
 * An OpenAPI fuzzer (schemathesis) over the whole API of a real master, as each role: no 500, no answer that the document does not
 * have, and nothing done that the role may not. Short here; `npm run e2e -- fuzz` takes long.
 *
 * Watches are left out, as they do not end: conformance/apiwatch.test.ts has them. The master runs as nobody where the
 * tests are root's: what is made up here must not reach the disk.
 */
import t from 'tap';
import { spawn, spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { rights } from '../../master/api/rights.ts';
import { roles } from '../../master/api/schema/token.ts';
import type { Replication } from '../../master/resources.ts';
import { long, openWorld } from './world.ts';

const made = spawnSync(resolve(import.meta.dirname, '../parts/schemathesis'), { encoding: 'utf8' });
const skip = made.status !== 0 && `no schemathesis: ${made.stderr.trim().split('\n').at(-1) ?? ''}`;
const isRoot = process.getuid?.() === 0;
const seconds = long ? 600 : 12;
const tried = /[1-9]\d* passed|No issues found/;

interface Document {
  paths: Record<string, Record<string, { parameters?: { name: string }[] }>>;
}

t.test('the API holds what its document says, for every role', { skip, timeout: 5_400_000 }, async (t) => {
  const config = join(t.testdir({ 'c.yaml': 'requestsPerSecond: 100000\n' }), 'c.yaml');
  const world = await openWorld(t, { masterFlags: ['--config', config], ...(isRoot ? { masterUser: 65_534 } : {}) });
  const { client } = world;
  const { url } = client;
  const document = (await (await fetch(`${url}/openapi.json`)).json()) as Document;
  delete document.paths['/api/v1/watch'];
  for (const operations of Object.values(document.paths))
    for (const operation of Object.values(operations))
      operation.parameters =
        operation.parameters?.filter(({ name }) => name !== 'watch' && name !== 'last-event-id') ?? [];
  const file = join(world.dir, 'openapi.json');
  writeFileSync(file, JSON.stringify(document));
  // Names that the fuzzer tries first, so that it comes further than 404.
  await client.send('POST', '/replications', {
    metadata: { name: '0' },
    spec: {
      source: { agent: 'node-a', path: '/dev/none', volumeMode: 'Block' },
      target: { storageClass: 'local' },
      group: '0',
    },
  });

  await client.send('POST', '/replications', {
    metadata: { name: 'others' },
    spec: { source: { agent: 'node-b', path: '/dev/other', volumeMode: 'Block' }, target: { storageClass: 'local' }, group: 'others' }, // prettier-ignore
  });
  const decided = async (): Promise<unknown> => {
    const { spec, metadata } = await client.get<Replication>('/replications/others');
    return [spec, metadata.generation, metadata.labels];
  };
  // As each role, and as one that is bound to a group: first, while what others have is there whole.
  for (const [role, groups] of [['manager', ['0']] as const, ...roles.map((role) => [role, null] as const)]) {
    const name = `fuzz-${role}${groups === null ? '' : '-bound'}`;
    const { token } = await client.send<{ token: string }>('POST', '/tokens', { name, role, groups });
    const before = groups === null ? undefined : await decided();
    let { status, output } = await fuzz(file, url, token, seconds);
    // On a busy machine all of the time may go by before its first call.
    for (let most = seconds; !tried.test(output) && most < 8 * seconds; most *= 2)
      ({ status, output } = await fuzz(file, url, token, most * 2));
    t.equal(status, 0, `${role}: ${status === 0 ? '' : output.slice(-6000)}`);
    t.match(output, tried, `${role}: something was tried`);
    t.ok(world.master.running);
    if (before !== undefined) t.same(await decided(), before, 'what others have is as it was');
    const { items } = await client.list<{ code: string; level: string; message: string }>(
      '/events?since=2020-01-01T00:00:00Z',
    );
    const done = items
      .map(({ code, level, message }) =>
        code === 'AuditWrite' && level === 'INFO' ? /^(\S+) \(\w+\): (\w+) ([^ ?]+)\S* - 2\d\d$/.exec(message) : null,
      )
      .filter((found) => found !== null)
      .filter(([, who]) => who === name);
    for (const [all, , method = '', path = ''] of done) t.ok(mayWrite(role, method, path), all);
  }
});

/** By the rights table: what an operator and a user may change. */
function mayWrite(role: string, method: string, path: string): boolean {
  if (role === 'admin' || role === 'manager') return true;
  const fits = (url: string) => new RegExp(`^${url.replace(/:\w+/g, '[^/]+')}$`).test(path);
  const right = Object.entries(rights).find(
    ([key]) => key.startsWith(`${method} `) && fits(key.split(' ')[1] ?? ''),
  )?.[1];
  if (right === 'session:write' || right === 'open') return true;
  return role === 'operator' && (right === 'snapshots:write' || right === 'recoveries:write');
}

async function fuzz(
  file: string,
  url: string,
  token: string,
  most: number,
): Promise<{ status: number | null; output: string }> {
  const argv = [
    ...['run', file, '--url', url, '-H', `Authorization: Bearer ${token}`, '--no-color', '--max-time', String(most)],
    // What is refused is often valid by shape and wrong by sense (two schedules of one period): that is not asked here.
    ...['--exclude-checks', 'positive_data_acceptance', '--continue-on-failure', '--warnings', 'off'],
    ...[
      '--max-examples',
      long ? '100' : '4',
      '--phases',
      long ? 'examples,coverage,fuzzing,stateful' : 'coverage,fuzzing',
    ],
    ...(long ? [] : ['--no-shrink', '--generation-deterministic']),
  ];
  const child = spawn('nice', ['-n', '19', made.stdout.trim(), ...argv], {
    stdio: ['ignore', 'pipe', 'pipe'],
    cwd: dirname(file),
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (text: Buffer) => (output += text.toString()));
  const status = await new Promise<number | null>((done) => child.once('close', done));
  return { status, output };
}
