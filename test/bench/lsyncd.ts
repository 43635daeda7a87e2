/** lsyncd as its users run it: a daemon that watches by inotify and runs rsync for what it heard of, to an rsync daemon. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { need, rsyncDaemon } from './peers.ts';
import type { Volume } from './volumes.ts';

/** Daemons that hear of changes and copy them. */
export interface Follower {
  name: string;
  command: string;
  roots(): number[];
  halt(): Promise<void>;
  /** Started: until all is there that was there. It goes on. */
  begin(volume: Volume): Promise<void>;
  /** The file's new content is durable at the target. */
  follow(change: () => void, path: string): Promise<void>;
  target: string;
  stop(): Promise<void>;
}

/** Until the copy has what `path` has. */
export async function appears(path: string, copy: string): Promise<void> {
  const wanted = readFileSync(path);
  while (!existsSync(copy) || !readFileSync(copy).equals(wanted)) await sleep(5);
}

/** @throws Missing */
export async function startLsyncd(folder: string): Promise<Follower> {
  need('lsyncd', 'lsyncd');
  need('rsync', 'rsync');
  const target = join(folder, 'lsyncd');
  const { port, daemon } = await rsyncDaemon(target);
  const log = join(folder, 'lsyncd.log');
  let child: ChildProcess | undefined;
  let source = '';
  const kill = async (): Promise<void> => {
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    child.kill('SIGKILL');
    await exited;
  };
  return {
    name: 'lsyncd',
    command: 'lsyncd (delay 1) with rsync --fsync to an rsync daemon, in the clear',
    target,
    halt: kill,
    roots: () => [...(child?.pid === undefined ? [] : [child.pid]), daemon.pid ?? 0],
    async begin({ path }) {
      source = path;
      const config = join(folder, 'lsyncd.lua');
      writeFileSync(
        config,
        `settings { nodaemon = true, logfile = "${log}" }
sync { default.rsync, source = "${path}", target = "rsync://127.0.0.1:${port}/data/", delay = 1,
  rsync = { archive = true, whole_file = true, inplace = true, _extra = { "--fsync" } } }
`,
      );
      writeFileSync(log, '');
      child = spawn('setpriv', ['--pdeathsig', 'KILL', 'lsyncd', config], { stdio: 'ignore' });
      const hasStarted = (): boolean => /Startup of .* finished/.test(readFileSync(log, 'utf8'));
      while (!hasStarted()) {
        if (child.exitCode !== null) throw new Error(`lsyncd ended: ${readFileSync(log, 'utf8').slice(-1000)}`);
        await sleep(10);
      }
    },
    async follow(change, path) {
      change();
      await appears(path, join(target, path.slice(source.length)));
    },
    async stop() {
      await kill();
      daemon.kill('SIGKILL');
    },
  };
}
