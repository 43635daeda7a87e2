import t from 'tap';
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { once } from 'node:events';
import { join } from 'node:path';
import { ApiProblem } from '../../master/cli/client.ts';
import { writeNoise } from './content.ts';
import { runProgram } from './program.ts';
import { openWorld } from './world.ts';

const agentFlags = ['--name', 'node-a', '--master', '127.0.0.1:1', '--data', '/tmp/none/a'];

t.test('wrong command lines end with status 2 and name the flag', async (t) => {
  const dir = t.testdir({ 'broken.yaml': 'http: [', 'unknown.yaml': 'htpp: 127.0.0.1:1', 'type.yaml': 'allow: /srv' });
  const cases: [Parameters<typeof runProgram>[0], string[], RegExp][] = [
    ['replicator-master', [], /--data/],
    ['replicator-master', ['--data', dir, '--htpp', '1'], /--htpp/],
    ['replicator-master', ['--data', dir, '--http', 'nowhere'], /--http/],
    ['replicator-master', ['--data', dir, '--http', '127.0.0.1:70000'], /--http/],
    ['replicator-master', ['--data', dir, '--grpc'], /--grpc/],
    ['replicator-master', ['--data', dir, '--log-level', 'loud'], /--log-level/],
    ['replicator-master', ['--data', dir, 'surplus'], /surplus/],
    ['replicator-master', ['--data', dir, '--config', join(dir, 'absent.yaml')], /--config.*absent\.yaml/],
    ['replicator-master', ['--data', dir, '--config', join(dir, 'broken.yaml')], /broken\.yaml/],
    ['replicator-master', ['--data', dir, '--config', join(dir, 'unknown.yaml')], /unknown\.yaml/],
    ['replicator-master', ['--data', dir, '--config', join(dir, 'type.yaml')], /allow/],
    ['replicator-agent', [], /--name/],
    ['replicator-agent', [...agentFlags, '--name', 'Not A Name'], /--name/],
    ['replicator-agent', [...agentFlags, '--master', 'nowhere'], /--master/],
    ['replicator-agent', [...agentFlags, '--role', 'both'], /--role/],
    ['replicator-agent', [...agentFlags, '--join', 'x'], /--join/],
  ];
  for (const [program, argv, text] of cases) {
    const { status, stderr } = runProgram(program, argv);
    t.equal(status, 2, `${program} ${argv.join(' ')}`);
    t.match(stderr, text);
    t.notMatch(stderr, /\n\s+at /, 'no stack');
  }
});

t.test('what cannot work on this machine ends with status 1 or 2 and the reason', async (t) => {
  const world = await openWorld(t);
  const listener = createServer().listen(0, '127.0.0.1');
  await once(listener, 'listening');
  t.teardown(() => listener.close());
  const taken = `127.0.0.1:${(listener.address() as AddressInfo).port}`;
  const free = '127.0.0.1:0';
  const data = (name: string) => ['--data', join(world.dir, name)];
  const join1 = ['--join-token-file', join(world.masterDir, 'join.token')];
  const ca = ['--ca-file', join(world.masterDir, 'ca.pem')];
  const { grpc } = JSON.parse(await readText(join(world.masterDir, 'endpoints.json'))) as { grpc: string };
  const agent = (name: string, more: string[]) => ['--name', name, '--master', grpc, ...data(`a-${name}`), ...more];
  writeFileSync(join(world.dir, 'bad.token'), 'not a token\n');
  writeFileSync(join(world.dir, 'file'), '');

  const cases: [Parameters<typeof runProgram>[0], string[], RegExp][] = [
    ['replicator-master', [...data('m2'), '--http', taken, '--grpc', free], /address.*in use|EADDRINUSE/i],
    ['replicator-master', [...data('m3'), '--http', free, '--grpc', taken], /in use|EADDRINUSE|bind/i],
    ['replicator-master', [...data('m'), '--http', free, '--grpc', free], /another|in use|locked|running/i],
    ['replicator-master', [...data('file'), '--http', free, '--grpc', free], /file/],
    ['replicator-master', [...data('m4'), '--http', free, '--grpc', free, '--allow', '/etc'], /--allow.*\/etc/],
    ['replicator-agent', agent('c', [...ca]), /--join-token-file/],
    ['replicator-agent', agent('d', [...join1]), /--ca-file/],
    ['replicator-agent', agent('e', ['--join-token-file', '/none/token', ...ca]), /\/none\/token/],
    ['replicator-agent', agent('f', ['--join-token-file', join(world.dir, 'bad.token'), ...ca]), /token/],
    ['replicator-agent', agent('b', [...join1, ...ca, '--allow', '/']), /--allow \//],
    ['replicator-agent', agent('b', [...join1, ...ca, '--allow', '/usr/lib']), /--allow \/usr\/lib/],
    ['replicator-agent', agent('b', [...join1, ...ca, '--allow', 'relative']), /--allow relative/],
  ];
  for (const [program, argv, text] of cases) {
    const { status, stderr } = runProgram(program, argv);
    t.ok(status === 1 || status === 2, `${program} ${argv.join(' ')} ends: ${status}`);
    t.match(stderr, text);
    t.notMatch(stderr, /\n\s+at /, 'no stack');
  }

  await world.startAgent();
  await t.test("data of another node's agent are not taken over", async (t) => {
    await world.agent.stop();
    const argv = ['--name', 'other', '--master', grpc, ...data('a'), ...join1, ...ca];
    const { status, stderr } = runProgram('replicator-agent', argv);
    t.ok(status === 1 || status === 2, `ends: ${status}`);
    t.match(stderr, /node-a/);
    t.match(stderr, /other/);
  });
  await t.test('a name that is taken is not given to another machine', async (t) => {
    const { status, stderr } = runProgram('replicator-agent', agent('node-a', [...join1, ...ca]));
    t.ok(status === 1 || status === 2, `ends: ${status}`);
    t.match(stderr, /node-a/);
  });
});

t.test('paths that may not be read are refused with the cure', async (t) => {
  const world = await openWorld(t);
  await world.startAgent();
  const outside = join(world.dir, 'outside');
  writeNoise(outside, 4096);
  symlinkSync(outside, join(world.sources, 'link'));
  mkdirSync(join(world.sources, 'directory'));
  const refused = async (name: string, path: string, message: RegExp) => {
    const posted = await world.replicate(name, path).then(
      () => undefined,
      (error: unknown) => error,
    );
    // Either at once, when it can be known, or by the agent's own list.
    if (posted instanceof ApiProblem) {
      t.equal(posted.problem.status, 422);
      t.match(posted.problem.errors?.[0]?.message, message);
      return;
    }
    const { status } = await world.degraded(name, 'SourceRefused');
    t.equal(status.state, 'FAILED', path);
    t.match(status.conditions.find(({ type }) => type === 'Degraded')?.message, message);
  };
  await refused('outside', outside, /--allow/);
  await refused('linked', join(world.sources, 'link'), /outside.*--allow/);
  await refused('system', '/etc/passwd', /system directory/);
  await refused('own', join(world.dir, 'a', 'agent.key'), /own data/);
  await refused('directory', join(world.sources, 'directory'), /volumeMode/);
  await t.test('an absent one is waited for', async (t) => {
    const path = join(world.sources, 'later');
    await world.replicate('later', path);
    const { status } = await world.degraded('later', 'SourceGone');
    t.equal(status.state, 'FAILED');
    writeNoise(path, 100_000);
    await world.normal('later');
  });
  t.ok(world.agent.running, 'the agent lives on');
});

async function readText(path: string): Promise<string> {
  const { readFile } = await import('node:fs/promises');
  return readFile(path, 'utf8');
}
