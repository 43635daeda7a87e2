import t from 'tap';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import type { Test } from 'tap';
import { missingForLoop, run } from '../loop.ts';
import { random, sameBytes, startWriter, writeNoise } from './content.ts';
import { missingRsync, rsyncDifferences } from './treevolume.ts';

t.setTimeout(300_000);
const root = resolve(import.meta.dirname, '../..');
const base = fs.realpathSync(fs.mkdtempSync(join(tmpdir(), 'quickstart-e2e-')));
t.teardown(() => fs.rmSync(base, { recursive: true, force: true }));

interface Result {
  http: string | null;
  replication: string | null;
  recovery: string | null;
  path: string | null;
  verified: boolean;
}

interface Quickstart {
  child: ChildProcess;
  stdout(): string;
  ended: Promise<{ status: number | null; stdout: string; stderr: string; result: Result }>;
}

/** As a user types it, from another folder. */
function quickstart(t: Test, data: string, ...argv: string[]): Quickstart {
  const npm = ['--prefix', root, 'run', '--silent', 'quickstart', '--', '--data', data, ...argv];
  const child = spawn('npm', npm, { cwd: base, stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  t.teardown(() => {
    // What runs still: the group is npm, its shell and the quickstart; master and agent end with that one.
    if (child.exitCode === null && child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
  });
  let [stdout, stderr] = ['', ''];
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  const ended = once(child, 'close').then(([status]) => {
    const last = stdout.trimEnd().split('\n').at(-1) ?? '';
    const result = (last.startsWith('{') ? JSON.parse(last) : {}) as Result;
    return { status: status as number | null, stdout, stderr, result };
  });
  return { child, stdout: () => stdout, ended };
}

/** Processes of which a command line names the folder. */
function processesOf(folder: string): string[] {
  return fs.readdirSync('/proc').flatMap((pid) => {
    if (!/^\d+$/.test(pid)) return [];
    try {
      const line = fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
      return line.includes(folder) ? [`${pid} ${line}`] : [];
    } catch {
      return [];
    }
  });
}

async function completed(t: Test, data: string, ...argv: string[]): Promise<Result & { path: string }> {
  const startMs = performance.now();
  const { status, stdout, stderr, result } = await quickstart(t, data, '--once', ...argv).ended;
  t.comment(`${argv.join(' ') || 'sample'}: ${((performance.now() - startMs) / 1000).toFixed(1)} s`);
  t.equal(status, 0, stderr);
  t.match(
    result,
    { http: /^http:\/\/127\.0\.0\.1:\d+$/, replication: String, recovery: String, verified: true },
    stdout,
  );
  if (result.path === null) throw new Error(`no copy: ${stdout}${stderr}`);
  t.ok(fs.existsSync(result.path), 'the copy is where it says');
  t.same(processesOf(data), [], 'nothing goes on running');
  return { ...result, path: result.path };
}

t.test('without PATH: a sample volume, mirrored, written to meanwhile', async (t) => {
  const data = join(base, 'sample');
  const { path } = await completed(t, data);
  t.ok(fs.readdirSync(join(path, 'documents')).length > 10);
  t.ok(fs.existsSync(join(path, 'application.log')), 'what the writer wrote is in it');
  t.ok(fs.existsSync(join(data, 'sample')), 'the sample volume stays');
});

t.test('a directory, twice with the same data: the second run goes on', { skip: missingRsync }, async (t) => {
  const [data, source] = [join(base, 'tree'), join(base, 'My Files')];
  fs.cpSync(join(root, 'master'), source, { recursive: true });
  const first = await completed(t, data, source);
  t.same(rsyncDifferences(source, first.path), []);
  fs.writeFileSync(join(source, 'new'), 'new');
  const second = await completed(t, data, 'My Files');
  t.equal(second.replication, first.replication, 'the same replication');
  t.not(second.recovery, first.recovery);
  t.same(rsyncDifferences(source, second.path), [], 'with what is new');
});

t.test('a raw image in use', async (t) => {
  const source = join(base, 'disk.img');
  writeNoise(source, (24 << 20) + 512);
  const writer = await startWriter(source, random(1));
  t.teardown(() => writer.stop());
  const { path } = await completed(t, join(base, 'image'), source);
  t.equal(fs.statSync(path).size, fs.statSync(source).size);
});

t.test('a block device', { skip: missingForLoop('ext4') }, async (t) => {
  const image = join(base, 'device.img');
  writeNoise(image, 16 << 20);
  const device = run('losetup', '--find', '--show', image).trim();
  t.teardown(() => void run('losetup', '--detach', device));
  const { path } = await completed(t, join(base, 'device'), device);
  t.ok(sameBytes(image, path));
});

t.test('a PATH that cannot be mirrored: status 2, the reason, the JSON all the same', async (t) => {
  const { status, stderr, result } = await quickstart(t, join(base, 'wrong'), '--once', '/no/such/path').ended;
  t.equal(status, 2);
  t.match(stderr, /\/no\/such\/path does not exist/);
  t.match(result, { path: null, verified: false });
});

t.test('a PATH that no agent may read: status 2 and the reason', async (t) => {
  const { status, stderr, result } = await quickstart(t, join(base, 'refused'), '--once', '/sys/kernel').ended;
  t.equal(status, 2);
  t.match(stderr, /\/sys\/kernel is in the system directory/);
  t.match(result, { verified: false });
  t.same(processesOf(join(base, 'refused')), [], 'nothing goes on running');
});

t.test('it stays up with what to try, and Ctrl-C ends everything with status 0', async (t) => {
  const data = join(base, 'image');
  const up = quickstart(t, data, join(base, 'disk.img'));
  while (!up.stdout().includes('Ctrl-C stops everything')) {
    if (up.child.exitCode !== null) throw new Error(`it ended:\n${JSON.stringify(await up.ended)}`);
    await new Promise((done) => setTimeout(done, 50));
  }
  t.ok(processesOf(join(data, 'agent')).length > 0, 'the agent runs');
  const http = /http:\/\/127\.0\.0\.1:\d+/.exec(up.stdout())?.[0] ?? '';
  t.equal((await fetch(`${http}/readyz`)).status, 200);
  // A terminal sends it to all in its foreground group.
  process.kill(-(up.child.pid ?? 0), 'SIGINT');
  const { status, stdout } = await up.ended;
  t.equal(status, 0);
  t.match(stdout, /Everything is stopped/);
  t.same(processesOf(data), [], 'nothing goes on running');
});
