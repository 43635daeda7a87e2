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
import { promises as fs } from 'node:fs';
import { messageOf } from '../proto/errors.ts';
import { runProgram } from '../proto/program.ts';
import type { Freeze, Guard } from './guard.ts';
import { CutRefused } from './refusal.ts';

const maxOutputBytes = 2000;

/** A cut that a hook prevents: no other way is tried. */
export class HookError extends CutRefused {
  constructor(message: string, options: { cause?: unknown } = {}) {
    super('hook', message, options);
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
  const { failure, output } = await runProgram(path, rest, {
    env: { REPLICATION: replication },
    timeoutSeconds,
    maxOutputBytes,
  });
  if (failure !== '') throw new Error(`${program}: ${failure}${output === '' ? '' : `: ${output}`}`);
}
