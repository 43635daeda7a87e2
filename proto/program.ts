/**
 * Runs a program to its end, without a shell: hooks on nodes, checks of recovered copies.
 *
 * Guarantees: what it has started ends with it when it hangs; the environment is PATH and what the caller gives, no secrets.
 */
import { spawn } from 'node:child_process';
import { setTimeout as delay } from 'node:timers/promises';

export interface Ran {
  /** null: it did not end by itself (`failure` says why). */
  exitStatus: number | null;
  /** Empty: it ended with status 0. */
  failure: string;
  /** Beginning of standard output and error together, at most maxOutputBytes. */
  output: string;
}

const lastWordsMs = 500;

/** @param path of the executable, checked by the caller */
export async function runProgram(
  path: string,
  argv: readonly string[],
  options: { env: Record<string, string>; timeoutSeconds: number; maxOutputBytes: number; signal?: AbortSignal },
): Promise<Ran> {
  const { timeoutSeconds, maxOutputBytes } = options;
  // A group of its own: what it has started ends with it.
  const child = spawn(path, argv, {
    cwd: '/',
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', ...options.env },
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (data: Buffer) => {
      if (output.length < maxOutputBytes) output += data.toString('utf8').slice(0, maxOutputBytes - output.length);
    });
  const timer = new AbortController();
  const over = AbortSignal.any([timer.signal, ...(options.signal ? [options.signal] : [])]);
  let exitStatus: number | null = null;
  const ended = new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once('exit', (status, signal) => {
      exitStatus = status;
      const how = status === 0 ? '' : (signal ?? `exit status ${status}`);
      // What it left running may keep the output open: its last words are waited for, those of others are not.
      child.once('close', () => resolve(how));
      setTimeout(() => resolve(how), lastWordsMs).unref();
    });
  });
  const late = delay(timeoutSeconds * 1000, undefined, { signal: over }).then(
    () => `no end within ${timeoutSeconds} s; it was killed`,
    () => 'it was stopped',
  );
  const failure = await Promise.race([ended, late]);
  timer.abort();
  if (failure !== '' && child.pid !== undefined) {
    try {
      process.kill(-child.pid, 'SIGKILL');
    } catch {
      // It has ended.
    }
  }
  options.signal?.throwIfAborted();
  return { exitStatus, failure, output: output.trim() };
}
