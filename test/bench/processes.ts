/**
 * What a group of processes costs: everything that hangs below some of them, from /proc. Linux.
 *
 * CPU counts user and system time of all that lives and of all that was waited for; memory is the sum of each one's own
 * peak since the measuring began. Short-lived processes are seen by looking every 20 ms, so their memory may be missed, their CPU
 * not.
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';

export interface Figures {
  wallSeconds: number;
  cpuSeconds: number;
  rssMaxMiB: number;
  /** Both ways, TLS included. */
  wireBytes: number;
}

const ticksPerSecond = Number(spawnSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }).stdout) || 100;

function text(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

interface Process {
  pid: number;
  parent: number;
  ticks: number;
}

function processes(): Process[] {
  return readdirSync('/proc').flatMap((name) => {
    const stat = /^\d+$/.test(name) ? text(`/proc/${name}/stat`) : '';
    // The name in brackets may hold anything.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    if (stat === '') return [];
    const ticks = [11, 12, 13, 14].reduce((sum, at) => sum + Number(fields[at]), 0);
    return [{ pid: Number(name), parent: Number(fields[1]), ticks }];
  });
}

/** All of `roots` and below. */
function group(roots: number[]): Process[] {
  const all = processes();
  const found = new Set(roots);
  for (let before = -1; before !== found.size;) {
    before = found.size;
    for (const { pid, parent } of all) if (found.has(parent)) found.add(pid);
  }
  return all.filter(({ pid }) => found.has(pid));
}

/** All of this machine's. @param hops how often each byte on its way crosses it */
export function loopbackBytes(hops: number): number {
  return Math.round(Number(text('/sys/class/net/lo/statistics/tx_bytes')) / hops);
}

/** Caches are dropped where this process may; what is dirty is written before. */
export function dropCaches(): void {
  spawnSync('sync');
  try {
    writeFileSync('/proc/sys/vm/drop_caches', '3');
  } catch {
    // Not root: both sides find the caches as they are.
  }
}

/** User and system time so far of these and all below them. */
export function cpuSeconds(roots: number[]): number {
  return group(roots).reduce((sum, one) => sum + one.ticks, 0) / ticksPerSecond;
}

/** @param roots asked for at the beginning and the end: what starts in between hangs below one of them */
export async function measure(roots: () => number[], wire: () => number, work: () => Promise<void>): Promise<Figures> {
  const peaks = new Map<number, number>();
  /** Of those asked for at the beginning, as seen last: what one that is killed has used is in no other's sum. */
  const last = new Map(roots().map((pid) => [pid, 0]));
  const look = (): void => {
    for (const { pid, ticks } of group(roots())) {
      if (last.has(pid)) last.set(pid, ticks);
      const kib = Number(/VmHWM:\s+(\d+)/.exec(text(`/proc/${pid}/status`))?.[1] ?? 0);
      if (kib > 0) peaks.set(pid, kib);
    }
  };
  for (const { pid } of group(roots())) {
    try {
      writeFileSync(`/proc/${pid}/clear_refs`, '5');
    } catch {
      // Its peak is that of its life.
    }
  }
  // One may be killed at once.
  look();
  const before = { seconds: cpuSeconds(roots()), bytes: wire() };
  const startMs = performance.now();
  const timer = setInterval(look, 20);
  try {
    await work();
  } finally {
    clearInterval(timer);
  }
  const wallSeconds = (performance.now() - startMs) / 1000;
  const wireBytes = wire() - before.bytes;
  look();
  const rssMaxMiB = [...peaks.values()].reduce((sum, kib) => sum + kib, 0) / 1024;
  const now = new Set(processes().map(({ pid }) => pid));
  const killed = [...last].reduce((sum, [pid, used]) => sum + (now.has(pid) ? 0 : used), 0) / ticksPerSecond;
  return { wallSeconds, cpuSeconds: cpuSeconds(roots()) + killed - before.seconds, rssMaxMiB, wireBytes };
}

/** Calls that make data durable, and how often: while `work` runs, every process of the group is traced. */
export async function countSyncs(roots: number[], work: () => Promise<void>): Promise<Record<string, number>> {
  const pids = group(roots).flatMap(({ pid }) => ['-p', `${pid}`]);
  const strace = spawn('strace', ['-f', '-c', '-e', 'trace=fsync,fdatasync,syncfs,sync_file_range,msync', ...pids]);
  let said = '';
  const attached = new Promise<void>((resolve) => {
    strace.stderr.on('data', (part: Buffer) => {
      said += part.toString();
      if (said.includes('attached')) resolve();
    });
    strace.on('error', () => resolve());
    strace.on('exit', () => resolve());
  });
  await attached;
  await work();
  const ended = once(strace, 'exit');
  strace.kill('SIGINT');
  await ended;
  return Object.fromEntries(
    [...said.matchAll(/^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$/gm)]
      .filter(([, , name]) => name !== 'total')
      .map(([, count, name]) => [name ?? '', Number(count)]),
  );
}

/**
 * A shell that lives on after its command, so that what the command cost can still be read from it.
 */
export class Shell {
  readonly #child = spawn('sh', ['-c', 'while read -r line; do eval "$line"; echo "exit $?"; done'], {
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  #errors = '';

  constructor() {
    this.#child.stderr.on('data', (part: Buffer) => (this.#errors = (this.#errors + part.toString()).slice(-4000)));
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  /** @throws with what was written to standard error */
  async run(command: string): Promise<void> {
    this.#errors = '';
    this.#child.stdin.write(`${command}\n`);
    for (let said = ''; ;) {
      const [part] = (await once(this.#child.stdout, 'data')) as [Buffer];
      said += part.toString();
      const status = /^exit (\d+)$/m.exec(said)?.[1];
      if (status === undefined) continue;
      if (status !== '0') throw new Error(`${command}: exit status ${status}: ${this.#errors}`);
      return;
    }
  }

  end(): void {
    this.#child.stdin.end();
  }
}
