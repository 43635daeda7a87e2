/**
 * A program of ours as a child process that tests may kill, freeze in time and start again with the same command line.
 *
 * `kill` is SIGKILL: nothing is tidied, as in a crash. `start` after it goes on with the same data. What is written goes
 * to a log file, whose end belongs into the message of a test that failed.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, openSync, readFileSync } from 'node:fs';
import { resolve } from 'node:path';

const root = resolve(import.meta.dirname, '../..');
/** What a test that was killed itself leaves behind dies with it. */
const tied = spawnSync('setpriv', ['--pdeathsig', 'KILL', 'true'], { stdio: 'ignore' }).status === 0;
const launchers = {
  'replicator-master': 'master/replicator-master',
  'replicator-agent': 'agent/replicator-agent',
  'replicator-receiver': 'master/replicator-receiver',
};
export type ProgramName = keyof typeof launchers;

export function launcherOf(name: ProgramName): string {
  return resolve(root, launchers[name]);
}

export interface Program {
  start(): void;
  /** SIGKILL; resolves when the process is gone. No error when it is not running. */
  kill(): Promise<void>;
  /** SIGTERM; answers the exit status. */
  stop(): Promise<number | null>;
  /** Such as SIGHUP; it goes on. */
  signal(name: NodeJS.Signals): void;
  readonly running: boolean;
  /** 0 when it was never started. */
  readonly pid: number;
  /** Resident memory now, anonymous pages and those of files alike; 0 when not running. */
  rssBytes(): number;
  logEnd(): string;
}

/**
 * @param argv asked for at each start, as ports are known only after the first one
 * @param before put before the command at each start, such as a tracer that runs it as the same process
 */
export function program(
  name: ProgramName,
  argv: () => string[],
  logPath: string,
  user?: number,
  before: () => string[] = () => [],
): Program {
  let child: ChildProcess | undefined;
  const gone = async (running: ChildProcess, signal: NodeJS.Signals): Promise<number | null> => {
    if (running.exitCode === null && running.signalCode === null) {
      const exited = once(running, 'exit');
      running.kill(signal);
      await exited;
    }
    return running.exitCode;
  };
  return {
    start() {
      const log = openSync(logPath, 'a');
      const as = user === undefined ? [] : [`--reuid=${user}`, `--regid=${user}`, '--clear-groups'];
      const setpriv = tied || user !== undefined ? ['setpriv', '--pdeathsig', 'KILL', ...as] : [];
      const command = [...setpriv, ...before(), launcherOf(name), ...argv()];
      child = spawn(command[0] ?? '', command.slice(1), { stdio: ['ignore', log, log] });
      closeSync(log);
    },
    async kill() {
      if (child) await gone(child, 'SIGKILL');
    },
    async stop() {
      return child ? gone(child, 'SIGTERM') : null;
    },
    signal: (name) => void child?.kill(name),
    get running() {
      return child !== undefined && child.exitCode === null && child.signalCode === null;
    },
    get pid() {
      return child?.pid ?? 0;
    },
    rssBytes() {
      try {
        const status = readFileSync(`/proc/${child?.pid}/status`, 'utf8');
        return Number(/VmRSS:\s+(\d+) kB/.exec(status)?.[1] ?? 0) * 1024;
      } catch {
        return 0;
      }
    },
    logEnd: () =>
      existsSync(logPath) ? readFileSync(logPath, 'utf8').trimEnd().split('\n').slice(-12).join('\n') : '',
  };
}

/** One run to its end, for command lines that must be refused. */
export function runProgram(
  name: ProgramName,
  argv: string[],
): { status: number | null; stdout: string; stderr: string } {
  const { status, stdout, stderr } = spawnSync(launcherOf(name), argv, {
    encoding: 'utf8',
    timeout: 120_000,
    killSignal: 'SIGKILL',
  });
  return { status, stdout, stderr };
}
