/**
 * One tree of very many small files, ours and peers one after another: the first copy, a start over what is there already, one
 * file that changes. A peer's copy is removed before the next one begins, so that the disk holds two trees. lsyncd takes over the
 * copy that rsync has made: its own first copy is such a run of rsync. syncthing makes its own. With `takeOver` rsync takes over ours, where a first copy by
 * it would take too long.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, globSync, mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { Dice } from '../sim/dice.ts';
import { startLsyncd, type Follower } from './lsyncd.ts';
import { near } from './distance.ts';
import { startOurs } from './ours.ts';
import { peers } from './peers.ts';
import { cpuSeconds, dropCaches, loopbackBytes, measure, type Figures } from './processes.ts';
import { median } from './results.ts';
import { Missing } from './subject.ts';
import { startSyncthing } from './syncthing.ts';
import { makeManyFiles, manyFile, remove, type Volume } from './volumes.ts';

export interface ManyFilesOptions {
  folder: string;
  files: number;
  meanBytes: number;
  /** Changes that are timed. */
  runs: number;
  /** Compare what was copied, which takes long with a million files. */
  check: boolean;
  /** Beside ours, one after another: names of `followers` or of `peers`. */
  peers: readonly string[];
  /** rsync begins with the replica that ours has made instead of a first copy of its own. */
  takeOver?: boolean;
}

export const steps = ['first copy', 'restart', 'one file'] as const;

export interface ManyFilesResult {
  subject: string;
  command: string;
  /** Of 'one file': medians. A step that is not here was not run (yet). */
  figures: Partial<Record<(typeof steps)[number], Figures>>;
  /** Of the agent alone, at most so far; null for peers. */
  agentMiB: number | null;
}

interface Way {
  name: string;
  command: string;
  roots(): number[];
  /** Undefined: it takes over what another one has copied. */
  first: (() => Promise<void>) | undefined;
  /** Before it is timed how it starts again: those whose CPU time would be taken for that of the new ones. */
  halt?(): Promise<void>;
  restart(): Promise<void>;
  follow(change: () => void, path: string): Promise<void>;
  check(): Promise<void>;
  agentMiB(): number | null;
  /** What it has copied goes there; it is of no use any more. */
  leave?(to: string): void;
  stop(): Promise<void>;
}

/** Where rsync has its copy. */
function copyAt(folder: string): string {
  return join(folder, 'rsync', 'rsync', 'tree');
}

const progressEveryMs = 30_000;
const followers: Record<string, (folder: string) => Promise<Follower>> = {
  lsyncd: startLsyncd,
  syncthing: startSyncthing,
};
export const followerNames = Object.keys(followers);
export const manyFilesPeers = ['rsync', ...followerNames];

/** Peers that cannot be had are left out: `say` hears why. `results` has each step as soon as it is done. */
export async function benchManyFiles(
  options: ManyFilesOptions,
  say: (line: string) => void,
  results: ManyFilesResult[] = [],
): Promise<ManyFilesResult[]> {
  const { folder, files, meanBytes } = options;
  const volumes = join(folder, 'volumes');
  mkdirSync(volumes);
  const volume = makeManyFiles(join(volumes, 'tree'), files, meanBytes);
  say(`${files} files, ${(volume.sizeBytes / 2 ** 20).toFixed(0)} MiB`);
  await benchTree(volume, volumes, options, say, results);
  remove(join(folder, 'rsync'));
  return results;
}

async function benchTree(
  volume: Volume,
  volumes: string,
  options: ManyFilesOptions,
  say: (line: string) => void,
  results: ManyFilesResult[],
): Promise<void> {
  const { folder } = options;
  for (const name of ['ours', ...options.peers]) {
    const own = join(folder, name);
    mkdirSync(own, { recursive: true });
    try {
      const way = await start(name, own, volumes, volume);
      try {
        await time(way, volume, options, say, results);
      } finally {
        if (options.takeOver === true) way.leave?.(copyAt(folder));
        await way.stop();
      }
    } catch (error) {
      if (!(error instanceof Missing)) throw error;
      say(`skipped: ${error.message}`);
    }
    if (name !== 'rsync') remove(own);
  }
}

async function time(
  way: Way,
  volume: Volume,
  { runs, check }: ManyFilesOptions,
  say: (line: string) => void,
  results: ManyFilesResult[],
): Promise<void> {
  say(`${way.name}: ${way.command}`);
  const result: ManyFilesResult = { subject: way.name, command: way.command, figures: {}, agentMiB: null };
  results.push(result);
  const step = async (name: string, work: () => Promise<void>): Promise<Figures> => {
    dropCaches();
    const beganMs = performance.now();
    const before = cpuSeconds(way.roots());
    const timer = setInterval(() => {
      const seconds = Math.round((performance.now() - beganMs) / 1000);
      say(
        `  ${name}: ${seconds} s, CPU ${(cpuSeconds(way.roots()) - before).toFixed(0)} s, agent ${way.agentMiB()} MiB`,
      );
    }, progressEveryMs);
    const figures = await measure(
      () => way.roots(),
      () => loopbackBytes(1),
      work,
    ).finally(() => clearInterval(timer));
    result.agentMiB = Math.max(result.agentMiB ?? 0, way.agentMiB() ?? 0) || null;
    say(`  ${name}: ${JSON.stringify(figures)}, agent ${way.agentMiB()} MiB`);
    return figures;
  };
  if (way.first) result.figures['first copy'] = await step('first copy', way.first);
  await way.halt?.();
  result.figures.restart = await step('restart', () => way.restart());
  // Its own for each: what another one has written there already is no change.
  const dice = new Dice(runs).fork(way.name);
  const changes: Figures[] = [];
  for (let run = 0; run < runs; run++) {
    const path = manyFile(volume.path, dice.below(volume.files));
    const change = (): void => writeFileSync(path, dice.bytes(2000), { flush: true });
    changes.push(await step('one file', () => way.follow(change, path)));
    result.figures['one file'] = medians(changes);
  }
  if (check) await way.check();
}

function medians(all: Figures[]): Figures {
  const of = (key: keyof Figures): number => median(all.map((one) => one[key]));
  return {
    wallSeconds: of('wallSeconds'),
    cpuSeconds: of('cpuSeconds'),
    rssMaxMiB: of('rssMaxMiB'),
    wireBytes: of('wireBytes'),
  };
}

/** @throws Missing */
async function start(name: string, folder: string, volumes: string, volume: Volume): Promise<Way> {
  if (name === 'ours') return ours(volumes, volume);
  const follower = followers[name];
  return follower ? following(await follower(folder), folder, volume) : walking(name, folder, volume);
}

async function ours(volumes: string, volume: Volume): Promise<Way> {
  const subject = await startOurs(volumes, near);
  await subject.reset(volume);
  return {
    name: subject.name,
    command: 'agent and master, running, rpoSeconds 1, mutual TLS; until a point has it',
    roots: () => subject.roots(),
    first: () => subject.begin(volume),
    restart: () => subject.restart(volume),
    follow: (change) => subject.follow(change),
    check: () => subject.check(volume),
    agentMiB: () => subject.agentMiB(),
    leave(to) {
      const [tree] = globSync(join(subject.replicas, '*', 'base', 'tree'));
      if (tree === undefined) throw new Error(`no tree in ${subject.replicas}`);
      mkdirSync(dirname(to), { recursive: true });
      renameSync(tree, to);
    },
    stop: () => subject.stop(),
  };
}

/** It has no memory: whatever it is run for, it walks over everything. */
async function walking(name: string, folder: string, volume: Volume): Promise<Way> {
  const peer = peers[name];
  if (!peer?.kinds.includes('tree')) throw new Error(`${name} copies no trees`);
  const subject = await peer.start({
    folder,
    isChange: false,
    distance: near,
    sizeBytes: volume.sizeBytes,
    syncsOnce: true,
  });
  const hasCopy = existsSync(copyAt(join(folder, '..')));
  if (!hasCopy) await subject.reset(volume);
  return {
    ...subject,
    first: hasCopy ? undefined : () => subject.copy(volume),
    restart: () => subject.copy(volume),
    async follow(change) {
      change();
      await subject.copy(volume);
    },
    check: () => subject.check(volume),
    agentMiB: () => null,
  };
}

/** Takes over what rsync has copied, where nobody else has. */
function following(daemon: Follower, folder: string, volume: Volume): Way {
  const copied = copyAt(join(folder, '..'));
  const hasCopy = existsSync(copied);
  if (hasCopy) {
    remove(daemon.target);
    renameSync(copied, daemon.target);
  }
  return {
    ...daemon,
    first: hasCopy ? undefined : () => daemon.begin(volume),
    restart: () => daemon.begin(volume),
    async check() {
      const { status, stdout } = spawnSync('diff', ['-r', volume.path, daemon.target], { encoding: 'utf8' });
      if (status !== 0) throw new Error(`${daemon.name} copied something else: ${stdout.slice(0, 1000)}`);
    },
    agentMiB: () => null,
  };
}

export function manyFilesTable(results: ManyFilesResult[]): string {
  const rows = results.map(({ subject, figures, agentMiB }) => {
    const cells = steps.map((step) => {
      const one = figures[step];
      return one ? `${one.wallSeconds.toFixed(2)} / ${one.cpuSeconds.toFixed(1)}` : '-';
    });
    const peak = figures['first copy'] ?? figures.restart;
    return `| ${[subject, ...cells, peak ? Math.round(peak.rssMaxMiB) : '-', agentMiB ?? '-'].join(' | ')} |`;
  });
  return [
    `| seconds / CPU s | ${steps.join(' | ')} | MiB, all processes | MiB, agent |`,
    '|---|---|---|---|---|---|',
    ...rows,
  ].join('\n');
}
