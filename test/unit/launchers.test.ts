import t from 'tap';
import { spawn, spawnSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  chmodSync,
} from 'node:fs';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

const root = resolve(import.meta.dirname, '../..');
const launchers = {
  'replicator-master': 'master/replicator-master',
  'replicator-agent': 'agent/replicator-agent',
  replctl: 'master/replctl',
};
const directory = mkdtempSync(join(tmpdir(), 'launchers-'));
t.teardown(() => rmSync(directory, { recursive: true }));
/** A PATH with a node that must never be the one that runs us. */
const decoy = join(directory, 'bin');
mkdirSync(decoy);
copyFileSync('/bin/false', join(decoy, 'node'));
chmodSync(join(decoy, 'node'), 0o755);
const env = { PATH: `${decoy}:/usr/bin:/bin` };

for (const [name, path] of Object.entries(launchers)) {
  const main = path === 'master/replctl' ? 'master/replctl-main.ts' : `${path.split('/')[0]}/main.ts`;
  const absent = existsSync(join(root, main)) ? false : `${main} is not there`;
  t.test(`${name} runs with the project's own Node, directly and through links`, { skip: absent }, async (t) => {
    const link = join(directory, name);
    symlinkSync(join(root, path), link);
    const outer = join(directory, `${name}-outer`);
    symlinkSync(name, outer);
    for (const program of [join(root, path), link, outer]) {
      const { status, stdout, stderr } = spawnSync(program, ['--version'], { env, cwd: '/', encoding: 'utf8' });
      t.equal(status, 0, `${program}: ${stderr}`);
      t.match(stdout, new RegExp(`^${name} \\d+\\.\\d+\\.\\d+\n$`));
      t.equal(stderr, '', 'no warnings');
    }
  });
  t.test(`${name} says what to do where npm ci was not run`, async (t) => {
    const clone = join(directory, `clone-${name}`);
    mkdirSync(join(clone, path, '..'), { recursive: true });
    copyFileSync(join(root, path), join(clone, path));
    const { status, stderr } = spawnSync(join(clone, path), ['--version'], { env, encoding: 'utf8' });
    t.equal(status, 1);
    t.match(stderr, /npm ci/);
    t.match(stderr, clone, 'and where');
  });
  t.test(`${name} is named by package.json and executable`, async (t) => {
    const { bin } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { bin: Record<string, string> };
    t.equal(bin[name], path);
    t.equal(statSync(join(root, path)).mode & 0o111, 0o111);
  });
}

t.test('the process that was started is the program itself: SIGKILL of its pid ends it', async (t) => {
  const server = createServer().listen(0, '127.0.0.1'); // accepts, and never answers
  await once(server, 'listening');
  const connected = once(server, 'connection');
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const child = spawn(join(root, 'master/replctl'), ['--url', url, 'get', 'agents'], { env, stdio: 'ignore' });
  const [socket] = (await connected) as [Socket];
  const commandLine = readFileSync(`/proc/${child.pid}/cmdline`, 'utf8');
  t.match(commandLine, /replctl-main\.ts/);
  t.notMatch(commandLine, /^\/bin\/sh/);
  const closed = once(socket, 'close');
  socket.on('error', () => undefined).resume();
  child.kill('SIGKILL');
  await Promise.all([closed, once(child, 'exit')]);
  server.close();
  t.pass('its connection went with it');
});
