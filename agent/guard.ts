/**
 * Freezing filesystems and control groups, from the agent's side: the rules of what may be frozen, and the line to the guard process
 * (agent/guard-main.ts) that does it.
 *
 * Guarantees: no call waits for a hung ioctl longer than its limit; `thaw` answers true only if the filesystem was frozen
 * without a break from the answer to `freeze` until then; a guard that dies is replaced at once by one that thaws what the
 * dead one had frozen. When freezing fails, nothing is or stays frozen, and the error (NoConsistentCut) says why.
 *
 * Not its job: which filesystem belongs to a volume (agent/mounts.ts), and making the freeze short (pre-copy rounds).
 */
import { spawn, type ChildProcessByStdio } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Socket } from 'node:net';
import { createInterface } from 'node:readline';
import type { Readable, Writable } from 'node:stream';
import { messageOf, ReplicationError } from '../proto/errors.ts';
import type { FrozenMounts } from './frozenmounts.ts';
import type { GuardAnswer } from './guard-main.ts';
import { layersUnder, mountOf, type BlockDevice, type Mount } from './mounts.ts';
import { CutRefused } from './refusal.ts';
import { isGroup } from './standstill.ts';

/** Beyond maxFreezeMs, for flushing before the freeze and for the way there and back. */
const answerMs = 30_000;
const restartMs = { first: 10, most: 5000 };
const stopMs = 5000;

export interface Freeze {
  /** How long the freezing call took, in microseconds. */
  readonly freezeUs: number;
  /** How long the filesystem was frozen, flushing included, in microseconds; 0 until thawed. */
  readonly frozenUs: number;
  /** False if it was thawed before: the limit passed, the guard died, somebody else thawed it. Later calls answer the same. */
  thaw(): Promise<boolean>;
}

export interface Guard {
  /**
   * Flushes and freezes a filesystem by its mount point (check `freezable` first), or a control group by its `groupTarget`. After maxFreezeMs from the freezing call on the guard thaws by itself.
   * `ready` is waited for before that, and after all that goes before a freeze.
   * @throws ReplicationError NoConsistentCut; the signal's reason
   */
  freeze(mountPoint: string, maxFreezeMs: number, signal?: AbortSignal, ready?: () => Promise<void>): Promise<Freeze>;
  /** Thaws what is frozen, by whomever; answers which were. For the start of the agent, with the mount points it manages. */
  thawAll(mountPoints: readonly string[]): Promise<string[]>;
  /** Thaws everything and ends the process. */
  stop(): Promise<void>;
  /** Of the process, while there is one. */
  readonly pid: number | undefined;
}

type Child = ChildProcessByStdio<Writable, Readable, null>;
interface Line {
  child: Child;
  exited: Promise<void>;
  pending: Map<number, { resolve: (answer: GuardAnswer) => void; reject: (error: Error) => void }>;
}

/** @param managed where a mount point is noted before it is frozen, for an agent after us to thaw */
export function startGuard(managed?: Pick<FrozenMounts, 'note'>): Guard {
  let line: Line | undefined;
  let lastId = 0;
  let failures = 0;
  let stopped = false;
  /** The node had ordinary RCU grace periods when we came: see guard-main.ts. */
  const isCalm = expedited() === '0';
  let replacing: Promise<void> = Promise.resolve();
  /** Mount points that are frozen, or perhaps are: what a new guard thaws first. */
  const frozen = new Set<string>();

  function connect(): Line {
    if (line) return line;
    // stderr is not inherited: it may be a file on the frozen filesystem. One thread per call that may hang.
    const child = spawn(
      process.execPath,
      ['--max-old-space-size=64', fileURLToPath(new URL('./guard-main.ts', import.meta.url))],
      {
        stdio: ['pipe', 'pipe', 'ignore'],
        cwd: '/',
        env: { UV_THREADPOOL_SIZE: '64', ...(isCalm && frozen.size > 0 ? { RCU_CALM: '1' } : {}) },
      },
    );
    const pending: Line['pending'] = new Map();
    let ended = false;
    const exited = new Promise<void>((resolve) => {
      const gone = (why: string): void => {
        if (ended) return;
        ended = true;
        if (line === started) line = undefined;
        for (const { reject } of pending.values()) reject(new Error(`the freeze guard died: ${why}`));
        pending.clear();
        resolve();
        if (!stopped) replace();
      };
      child.once('error', (error) => gone(error.message));
      child.once('exit', (status, signal) => gone(signal ?? `exit status ${status}`));
    });
    const started: Line = { child, exited, pending };
    child.stdin.on('error', () => undefined); // exit tells
    createInterface({ input: child.stdout }).on('line', (text) => {
      const answer = JSON.parse(text) as GuardAnswer;
      failures = 0;
      pending.get(answer.id)?.resolve(answer);
    });
    child.unref(); // only what is asked and not answered keeps the agent alive
    (child.stdout as Socket).unref();
    line = started;
    return started;
  }

  /** A guard died with something frozen: the next one thaws it now. Without anything frozen it can wait for the next use. */
  function replace(): void {
    const left = [...frozen];
    if (left.length === 0) return;
    const waitMs = Math.min(restartMs.most, restartMs.first * 2 ** failures++);
    replacing = delay(waitMs)
      .then(() => settleThaw(left, { thawAll: left }))
      .then(ignore, ignore);
  }

  /** However long the answer takes: until then these mount points count as perhaps frozen. Dead guards are replaced in turn. */
  async function settleThaw(mountPoints: string[], request: object): Promise<GuardAnswer> {
    const answer = await ask(request).answer;
    for (const mountPoint of mountPoints) frozen.delete(mountPoint);
    return answer;
  }

  /** Without a limit it waits as long as the guard lives. */
  function ask(request: object, limitMs?: number, signal?: AbortSignal): { id: number; answer: Promise<GuardAnswer> } {
    const id = ++lastId;
    const { child, pending } = connect();
    const { promise, resolve, reject } = Promise.withResolvers<GuardAnswer>();
    const aborted = (): void => reject(signal?.reason);
    const timer = limitMs && setTimeout(() => reject(new Error(`no answer within ${limitMs} ms`)), limitMs);
    signal?.addEventListener('abort', aborted, { once: true });
    pending.set(id, { resolve, reject });
    (child.stdout as Socket).ref();
    child.stdin.write(`${JSON.stringify({ id, ...request })}\n`);
    const answer = promise.finally(() => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', aborted);
      pending.delete(id);
      if (pending.size === 0) (child.stdout as Socket).unref();
    });
    return { id, answer };
  }

  async function thawAll(mountPoints: readonly string[]): Promise<string[]> {
    if (mountPoints.length === 0) return [];
    const { thawed } = await ask({ thawAll: mountPoints }, answerMs).answer;
    return thawed ?? [];
  }

  async function freeze(
    mountPoint: string,
    maxFreezeMs: number,
    signal?: AbortSignal,
    ready?: () => Promise<void>,
  ): Promise<Freeze> {
    await ready?.();
    signal?.throwIfAborted();
    if (stopped) throw new ReplicationError('Stopped', 'the freeze guard is stopped');
    await atMost(answerMs, replacing);
    await managed?.note(mountPoint);
    signal?.throwIfAborted();
    if (frozen.has(mountPoint)) throw new CutRefused('freeze', `${mountPoint} is being frozen already`);
    frozen.add(mountPoint);
    let asked: ReturnType<typeof ask> | undefined;
    try {
      asked = ask({ freeze: mountPoint, maxFreezeMs }, answerMs + maxFreezeMs, signal);
      const { freezeUs, error } = await asked.answer;
      if (error) {
        frozen.delete(mountPoint);
        throw new Error(`${mountPoint} cannot be frozen: ${error.message}${cureOf(error.code, mountPoint)}`);
      }
      return held(asked.id, freezeUs ?? 0);
    } catch (error) {
      // Perhaps it comes to be frozen all the same: asked to thaw, the guard does so as soon as the call returns.
      if (!asked) frozen.delete(mountPoint);
      else if (line && frozen.has(mountPoint)) settleThaw([mountPoint], { thaw: asked.id }).catch(ignore);
      signal?.throwIfAborted();
      throw error instanceof ReplicationError ? error : new CutRefused('freeze', messageOf(error), { cause: error });
    }

    function held(id: number, freezeUs: number): Freeze {
      let thawing: Promise<boolean> | undefined;
      const one = {
        freezeUs,
        frozenUs: 0,
        thaw(): Promise<boolean> {
          return (thawing ??= finish());
        },
      };
      const of = line;
      async function finish(): Promise<boolean> {
        const ours = of !== undefined && of === line;
        const answer =
          ours &&
          (await atMost(
            answerMs,
            settleThaw([mountPoint], { thaw: id }).catch(() => undefined),
          ));
        if (!answer) return atMost(answerMs, replacing).then(() => false); // that guard is dead; its successor thaws
        one.frozenUs = answer.freezeUs ?? 0;
        return answer.held ?? false;
      }
      return one;
    }
  }

  connect(); // now, not while something is frozen that starting it would need
  return {
    freeze,
    thawAll,
    async stop() {
      stopped = true;
      line?.child.stdin.end();
      await atMost(stopMs, line?.exited); // left to itself it thaws all the same once a hung call returns
    },
    get pid() {
      return line?.child.pid;
    },
  };
}

async function atMost<T>(ms: number, promise: Promise<T> | undefined): Promise<T | undefined> {
  const timer = new AbortController();
  const late = delay(ms, undefined, { signal: timer.signal }).catch(ignore);
  return Promise.race([promise, late]).then((value) => {
    timer.abort();
    return value ?? undefined;
  });
}

function expedited(): string | undefined {
  try {
    return readFileSync('/sys/kernel/rcu_expedited', 'utf8').trim();
  } catch {
    return undefined;
  }
}

function ignore(): void {
  // A guard that dies is replaced, which thaws.
}

function cureOf(code: string, target: string): string {
  if (code === 'EBUSY')
    return `: somebody else has frozen it${isGroup(target) ? '' : ' (fsfreeze --unfreeze ends that)'}`;
  if (code === 'EPERM') return ': the agent needs CAP_SYS_ADMIN';
  if (code === 'ENOTSUP') return ': this kind of filesystem cannot be';
  return '';
}

/** Kinds that FIFREEZE makes consistent. */
const freezableTypes: ReadonlySet<string> = new Set(['ext2', 'ext3', 'ext4', 'xfs', 'btrfs', 'f2fs', 'jfs', 'nilfs2']);

/** What no node goes on without, beside what the caller protects (data of the program, the program, kubelet's folder). */
const nodePaths = [
  '/',
  '/boot',
  '/dev',
  '/etc',
  '/proc',
  '/run',
  '/sys',
  '/tmp',
  '/usr',
  '/var',
  '/var/lib',
  '/var/log',
];

/**
 * Undefined if the filesystem mounted here may be frozen, else why not. Pure.
 * @param protectedPaths resolved absolute paths that the agent or the node writes to; all that their filesystems lie on counts
 */
export function freezable(
  mountPoint: string,
  mounts: readonly Mount[],
  devices: readonly BlockDevice[],
  protectedPaths: readonly string[],
): string | undefined {
  const mount = mounts.findLast((one) => one.mountPoint === mountPoint);
  if (!mount) return `${mountPoint} is not a mount point`;
  if (!freezableTypes.has(mount.type)) return `${mount.type} on ${mountPoint} cannot be frozen`;
  if (mount.root !== '/')
    return `${mountPoint} shows only ${mount.root} of its filesystem, which is not the volume's alone`;
  const mine = namesOf(mount);
  for (const path of [...nodePaths, ...protectedPaths]) {
    const holder = mountOf(path, mounts);
    if (!holder) continue;
    const { filesystems, sources } = allUnder(holder);
    if ([...mine].some((name) => filesystems.has(name) || sources.has(name))) {
      return path === '/'
        ? `${mountPoint} is the root filesystem`
        : `${mountPoint} is on the filesystem that holds ${path}, which the node or this program writes to`;
    }
  }
  return undefined;

  function allUnder(holder: Mount): { filesystems: Set<string>; sources: Set<string> } {
    const { filesystems } = layersUnder(holder, mounts, devices);
    const sources = mounts.filter(({ device }) => filesystems.has(device)).flatMap((one) => [...namesOf(one)]);
    return { filesystems, sources: new Set(sources) };
  }
}

/** btrfs shows another number in each subvolume: there the device's name tells the same filesystem. */
function namesOf(mount: Mount): Set<string> {
  return new Set(mount.type === 'btrfs' ? [mount.device, mount.source] : [mount.device]);
}
