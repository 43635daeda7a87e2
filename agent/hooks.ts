/**
 * Hooks around a freeze: programs of the node's owner that make an application ready for a cut and let it go on.
 *
 * Guarantees: only what this node's own allow-list names as an executable runs, without a shell. A hook that fails, hangs
 * beyond its time, or may not run makes no point (HookError says why), and nothing stays frozen. `afterThaw` runs whenever
 * `beforeFreeze` was begun: after the thaw, after a failure, and, when the agent was killed in between, at the next start of the
 * replication. It never runs while the filesystem is frozen by us.
 *
 * Hooks get no secrets: an environment of PATH and REPLICATION alone. Their output is told in part when they fail.
 */
import { spawn } from 'node:child_process';
import { promises as fs } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { messageOf, ReplicationError } from '../proto/errors.ts';
import type { Freeze, Guard } from './guard.ts';

const maxOutputBytes = 2000;

/** A cut that a hook prevents: no other way is tried. */
export class HookError extends ReplicationError {
  constructor(message: string, options: { cause?: unknown } = {}) {
    super('NoConsistentCut', message, options);
  }
}

export interface Hooks {
  /** Program and its arguments; empty = none. */
  beforeFreeze: string[];
  afterThaw: string[];
  timeoutSeconds: number;
}

export interface HookOptions extends Hooks {
  replication: string;
  /** @throws with why it may not run; answers the resolved path */
  mayRun(path: string): Promise<string>;
  /** There while `afterThaw` is owed. */
  markerPath: string;
  warn(message: string): void;
}

/** The guard with the hooks around each freeze; the guard itself when there are none. */
export async function withHooks(guard: Guard, options: HookOptions): Promise<Guard> {
  const { beforeFreeze, afterThaw, markerPath } = options;
  if (beforeFreeze.length === 0 && afterThaw.length === 0) return guard;

  async function before(): Promise<void> {
    try {
      await fs.writeFile(markerPath, '', { mode: 0o600 });
      await runHook(beforeFreeze, options);
    } catch (error) {
      await after();
      throw new HookError(`hook beforeFreeze: ${messageOf(error)}`, { cause: error });
    }
  }

  async function after(): Promise<void> {
    try {
      await runHook(afterThaw, options);
      await fs.rm(markerPath, { force: true });
    } catch (error) {
      options.warn(`hook afterThaw: ${messageOf(error)}`);
    }
  }

  // An agent before us was killed in between.
  if (await fs.stat(markerPath).catch(() => undefined)) await after();
  return {
    get pid() {
      return guard.pid;
    },
    thawAll: (mountPoints) => guard.thawAll(mountPoints),
    stop: () => guard.stop(),
    async freeze(mountPoint, maxFreezeMs, signal, ready) {
      await before();
      let freeze: Freeze;
      try {
        freeze = await guard.freeze(mountPoint, maxFreezeMs, signal, ready);
      } catch (error) {
        await after();
        throw error;
      }
      let thawing: Promise<boolean> | undefined;
      return {
        freezeUs: freeze.freezeUs,
        get frozenUs() {
          return freeze.frozenUs;
        },
        thaw: () => (thawing ??= freeze.thaw().finally(after)),
      };
    },
  };
}

/** To its end with status 0. @throws Error with what went wrong */
export async function runHook(
  argv: readonly string[],
  { mayRun, timeoutSeconds, replication }: Pick<HookOptions, 'mayRun' | 'timeoutSeconds' | 'replication'>,
): Promise<void> {
  const [program, ...rest] = argv;
  if (program === undefined) return;
  const path = await mayRun(program);
  // A group of its own: what it has started ends with it.
  const child = spawn(path, rest, {
    cwd: '/',
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', REPLICATION: replication },
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (data: Buffer) => {
      if (output.length < maxOutputBytes) output += data.toString('utf8').slice(0, maxOutputBytes - output.length);
    });
  const timer = new AbortController();
  const ended = new Promise<string>((resolve) => {
    child.once('error', (error) => resolve(error.message));
    child.once('exit', (status, signal) => resolve(status === 0 ? '' : (signal ?? `exit status ${status}`)));
  });
  const late = delay(timeoutSeconds * 1000, undefined, { signal: timer.signal }).then(
    () => `no end within ${timeoutSeconds} s; it was killed`,
    () => '',
  );
  const failure = await Promise.race([ended, late]);
  timer.abort();
  if (failure === '') return;
  if (child.pid !== undefined) {
    try {
      process.kill(-child.pid, 'SIGKILL');
    } catch {
      // It has ended.
    }
  }
  throw new Error(`${program}: ${failure}${output === '' ? '' : `: ${output.trim()}`}`);
}
