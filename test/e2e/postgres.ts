/** PostgreSQL as the real workload in a replicated volume: a cluster on a mounted filesystem, load, and a look at a copy. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { chownSync, existsSync, mkdirSync, readdirSync, rmSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Test } from 'tap';

const found = existsSync('/usr/lib/postgresql')
  ? readdirSync('/usr/lib/postgresql').sort((a, b) => Number(b) - Number(a))[0]
  : undefined;
const bin = found === undefined ? '' : `/usr/lib/postgresql/${found}/bin`;

/** Why there is no PostgreSQL here, or false. */
export function missingPostgres(): string | false {
  for (const program of ['postgres', 'initdb', 'pgbench', 'pg_amcheck', 'psql'])
    if (!existsSync(join(bin, program))) return `needs PostgreSQL (${program})`;
  if (spawnSync('id', ['-u', 'postgres']).status !== 0) return 'needs the user postgres';
  return spawnSync('sh', ['-c', 'command -v setpriv']).status === 0 ? false : 'needs setpriv';
}

const asPostgres = ['--reuid=postgres', '--regid=postgres', '--init-groups', '--pdeathsig', 'KILL'];

function run(program: string, ...args: string[]): string {
  const { status, stdout, stderr } = spawnSync('setpriv', [...asPostgres, join(bin, program), ...args], {
    encoding: 'utf8',
    cwd: '/',
  });
  if (status !== 0) throw new Error(`${program} ended with ${status}: ${stderr}`);
  return stdout;
}

export interface Cluster {
  sql(text: string): string;
  /** Everything that pg_amcheck finds wrong; empty: nothing. */
  check(): string;
  /** Rate-limited pgbench and a table of instants; `stop` answers the client's clock (ms) at each commit. */
  load(t: Test): { commits: number[]; stop(): Promise<void> };
  /** pgbench to its end, at `rate` transactions a second or as fast as it goes; answers how many a second there were. */
  bench(options: { seconds: number; clients: number; rate?: number }): Promise<number>;
  stop(): Promise<void>;
}

export interface ClusterOptions {
  /** Of pgbench: 100,000 accounts, 15 MB, each. */
  scale?: number;
  /** More of the server's command line. */
  settings?: string[];
}

/** Makes the cluster below `mountPoint` when it is not there, its log below `walMount` if that is given. */
export async function startCluster(
  t: Pick<Test, 'teardown'>,
  mountPoint: string,
  walMount?: string,
  { scale = 2, settings = [] }: ClusterOptions = {},
): Promise<Cluster> {
  const data = join(mountPoint, 'pg');
  const wal = walMount && join(walMount, 'wal');
  const fresh = !existsSync(data);
  if (fresh) {
    const ids = ['-u', '-g'].map((flag) => Number(spawnSync('id', [flag, 'postgres']).stdout.toString()));
    for (const path of [data, ...(wal === undefined ? [] : [wal])]) {
      mkdirSync(path, { mode: 0o700 });
      chownSync(path, ids[0] ?? 0, ids[1] ?? 0);
    }
    const waldir = wal === undefined ? [] : ['--waldir', wal];
    run('initdb', '--pgdata', data, ...waldir, '--auth=trust', '--no-sync', '--data-checksums', '--wal-segsize=4');
  }
  // On another machine its pid would be nobody's; here it is the live server's, and PostgreSQL refuses to start.
  else {
    rmSync(join(data, 'postmaster.pid'), { force: true });
    if (wal !== undefined) {
      rmSync(join(data, 'pg_wal'));
      symlinkSync(wal, join(data, 'pg_wal'));
    }
  }
  // Sockets beside the data would be part of the volume; a folder of /tmp is nobody's.
  const socket = spawnSync('setpriv', [...asPostgres, 'mktemp', '-d'], { encoding: 'utf8' }).stdout.trim();
  const server = spawn(
    'setpriv',
    [
      ...[...asPostgres, join(bin, 'postgres'), '-D', data, '-k', socket, '-c', 'listen_addresses='],
      ...['-c', 'min_wal_size=8MB', '-c', 'max_wal_size=32MB', '-c', 'shared_buffers=16MB'],
      ...settings.flatMap((setting) => ['-c', setting]),
    ],
    { stdio: ['ignore', 'ignore', 'pipe'], cwd: '/' },
  );
  let log = '';
  server.stderr.on('data', (text: Buffer) => (log = (log + text.toString()).slice(-4000)));
  const stop = async (): Promise<void> => {
    await ended(server, 'SIGINT');
    spawnSync('rm', ['-rf', socket]);
  };
  t.teardown(stop);
  const target = ['-h', socket, '-d', 'postgres'];
  const sql = (text: string): string =>
    run('psql', ...target, '-X', '-q', '-t', '-A', '-v', 'ON_ERROR_STOP=1', '-c', text);
  for (let endMs = Date.now() + 60_000; ; await sleep(50)) {
    if (spawnSync('setpriv', [...asPostgres, join(bin, 'pg_isready'), ...target]).status === 0) break;
    if (server.exitCode !== null || Date.now() > endMs) throw new Error(`PostgreSQL did not start: ${log}`);
  }
  if (fresh) {
    run('pgbench', '-h', socket, '-i', '-q', '-s', `${scale}`, 'postgres');
    sql('CREATE TABLE instant (number bigint PRIMARY KEY, at timestamptz NOT NULL)');
    sql('CREATE EXTENSION amcheck');
  }
  return {
    sql,
    check() {
      const { status, stdout, stderr } = spawnSync(
        'setpriv',
        [...asPostgres, join(bin, 'pg_amcheck'), ...target, '--heapallindexed', '--parent-check'],
        { encoding: 'utf8', cwd: '/' },
      );
      return status === 0 ? stdout : `status ${status}: ${stdout}${stderr}`;
    },
    async bench({ seconds, clients, rate }) {
      const pace = rate === undefined ? [] : ['-R', rate.toFixed(1)];
      const args = ['-h', socket, '-n', '-c', `${clients}`, '-T', `${seconds}`, ...pace, 'postgres'];
      const child = spawn('setpriv', [...asPostgres, join(bin, 'pgbench'), ...args], {
        stdio: ['ignore', 'pipe', 'pipe'],
        cwd: '/',
      });
      let said = '';
      child.stdout.on('data', (text: Buffer) => (said += text.toString()));
      child.stderr.on('data', (text: Buffer) => (said += text.toString()));
      await once(child, 'close');
      const tps = Number(/^tps = ([\d.]+)/m.exec(said)?.[1]);
      if (child.exitCode !== 0 || !(tps > 0)) throw new Error(`pgbench ended with ${child.exitCode}: ${said}`);
      return tps;
    },
    load(t) {
      const bench = spawn(
        'setpriv',
        [...asPostgres, join(bin, 'pgbench'), '-h', socket, '-n', '-R', '60', '-c', '2', '-T', '86400', 'postgres'],
        { stdio: 'ignore', cwd: '/' },
      );
      const commits: number[] = [];
      const client = spawn(
        'setpriv',
        [...asPostgres, join(bin, 'psql'), ...target, '-X', '-q', '-t', '-A', '-v', 'ON_ERROR_STOP=1'],
        { stdio: ['pipe', 'pipe', 'inherit'], cwd: '/' },
      );
      let stopping = false;
      let number = 0;
      const next = () => {
        if (stopping) return;
        client.stdin.write(`INSERT INTO instant VALUES (${++number}, clock_timestamp()) RETURNING number;\n`);
      };
      client.stdout.on('data', (text: Buffer) => {
        for (const line of text.toString().split('\n')) {
          // psql prints the row after the commit: from here on it is promised.
          if (Number(line) > 0) commits[Number(line)] = Date.now();
        }
        setTimeout(next, 50);
      });
      next();
      const stop = async (): Promise<void> => {
        stopping = true;
        await Promise.all([ended(bench, 'SIGTERM'), ended(client, 'SIGTERM')]);
      };
      t.teardown(stop);
      return { commits, stop };
    },
    stop,
  };
}

async function ended(child: ChildProcess, signal: NodeJS.Signals): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, 'exit');
  child.kill(signal);
  await exited;
}
