/**
 * Master and agent as child processes of the quickstart, started by their launchers.
 *
 * Guarantees: what was started is stopped, politely, then by SIGKILL after `stopSeconds`; it is in a process group of
 * its own, so that Ctrl-C reaches only us and the order of stopping is ours. Where setpriv exists they also end when we
 * are killed. A child that ends by itself is an error that shows the end of its log.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { basename } from 'node:path';

const stopSeconds = 20;
const hasSetpriv = spawnSync('setpriv', ['--pdeathsig', 'TERM', 'true'], { stdio: 'ignore' }).status === 0;

export interface Running {
  stop(): Promise<void>;
}

/** `onFailure` is told when the program ends without having been stopped. */
export function start(launcher: string, argv: string[], logPath: string, onFailure: (error: Error) => void): Running {
  const log = openSync(logPath, 'a');
  const command = hasSetpriv ? ['setpriv', '--pdeathsig', 'TERM', launcher, ...argv] : [launcher, ...argv];
  const child = spawn(command[0] ?? launcher, command.slice(1), { stdio: ['ignore', log, log], detached: true });
  closeSync(log);
  let stopping = false;
  const ended = exitOf(child).then((how) => {
    if (stopping) return;
    const end = readFileSync(logPath, 'utf8').trimEnd().split('\n').slice(-15).join('\n  ');
    onFailure(new Error(`${basename(launcher)} ended by itself (${how}). The end of ${logPath}:\n  ${end}`));
  });
  return {
    async stop() {
      stopping = true;
      child.kill('SIGTERM');
      const timer = setTimeout(() => child.kill('SIGKILL'), stopSeconds * 1000);
      await ended;
      clearTimeout(timer);
    },
  };
}

async function exitOf(child: ChildProcess): Promise<string> {
  try {
    const [code, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null];
    return signal === null ? `exit status ${code}` : signal;
  } catch (error) {
    return (error as Error).message;
  }
}
