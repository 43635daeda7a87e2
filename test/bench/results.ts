/** Results as JSON, a table and a plot made from them. */
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import { dirname, join } from 'node:path';
import { ageTable, type AgeFigures } from './age.ts';
import type { Figures } from './processes.ts';
import type { LineOptions } from './slowline.ts';

export interface Result {
  case: string;
  peer: string | null;
  /** Of the peer, as typed. */
  command: string | null;
  size: number;
  content: string;
  runs: number;
  ours: Figures;
  theirs: Figures | null;
  /** Ours by theirs, of the medians. */
  ratio: { wall: number; cpu: number } | null;
  /** Smallest and largest wall time. */
  spread: { ours: [number, number]; theirs: [number, number] | null };
  /** Calls that make data durable, in one further run; null when they could not be counted. */
  syncs: { ours: Record<string, number> | null; theirs: Record<string, number> | null };
  /** Of the cases over a distance. */
  line?: LineOptions;
  /** Of age-pgbench. */
  age?: AgeFigures;
}

export interface Results {
  machine: { cpu: string; cores: number; memoryGiB: number; kernel: string };
  commit: string;
  date: string;
  results: Result[];
}

const root = join(import.meta.dirname, '../..');
export const resultsFolder = join(import.meta.dirname, 'results');

export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1
    ? (sorted[middle] ?? NaN)
    : ((sorted[middle - 1] ?? NaN) + (sorted[middle] ?? NaN)) / 2;
}

export function medians(all: Figures[]): Figures {
  const of = (pick: (one: Figures) => number, digits: number): number => Number(median(all.map(pick)).toFixed(digits));
  return {
    wallSeconds: of((one) => one.wallSeconds, 3),
    cpuSeconds: of((one) => one.cpuSeconds, 2),
    rssMaxMiB: of((one) => one.rssMaxMiB, 0),
    wireBytes: of((one) => one.wireBytes, 0),
  };
}

function git(...args: string[]): string {
  try {
    return execFileSync('git', args, { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  } catch {
    return '';
  }
}

export function emptyResults(): Results {
  const changed = git('status', '--porcelain', '--', 'agent', 'master', 'proto') === '' ? '' : '+';
  return {
    machine: {
      cpu: cpus()[0]?.model.trim() ?? 'unknown',
      cores: cpus().length,
      memoryGiB: Math.round(totalmem() / 2 ** 30),
      kernel: execFileSync('uname', ['-r'], { encoding: 'utf8' }).trim(),
    },
    commit: (git('rev-parse', '--short', 'HEAD') || 'unknown') + changed,
    date: new Date().toISOString(),
    results: [],
  };
}

export function save(path: string, results: Results): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, `${JSON.stringify(results, null, 2)}\n`);
}

/** What is there of the same commit stays, but of the same case and peer. */
export function kept(path: string, results: Results): Results {
  const before = existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as Results).results : [];
  // Of granule-durable each size is one of its own.
  const key = ({ case: name, peer, size }: Result): string =>
    JSON.stringify([name, peer, name === 'granule-durable' ? size : null]);
  const isNew = (result: Result): boolean => !results.results.some((one) => key(one) === key(result));
  return { ...results, results: [...before.filter(isNew), ...results.results] };
}

/** Those of age-pgbench, or the others, as they were measured last. */
function newest(isAge: boolean): Results | undefined {
  if (!existsSync(resultsFolder)) return undefined;
  const paths = readdirSync(resultsFolder)
    .filter((name) => name.endsWith('.json'))
    .map((name) => join(resultsFolder, name));
  return paths
    .sort((a, b) => statSync(a).mtimeMs - statSync(b).mtimeMs)
    .map((path) => JSON.parse(readFileSync(path, 'utf8')) as Results)
    .map((found) => ({ ...found, results: found.results.filter(({ age }) => (age !== undefined) === isAge) }))
    .findLast(({ results }) => results.length > 0);
}

const bytes = (value: number): string =>
  value >= 2 ** 30
    ? `${+(value / 2 ** 30).toFixed(1)} GiB`
    : value >= 2 ** 20
      ? `${Math.round(value / 2 ** 20)} MiB`
      : `${Math.round(value / 1024)} KiB`;

/** Of the case `wan`: which part of the line the volume's bytes have taken. */
function lineShares({ case: name, peer, line, size, ours, theirs }: Result): string[] {
  if (!line || name !== 'wan') return [];
  const share = ({ wallSeconds }: Figures): string =>
    `${((size * 8 * 100) / line.bitsPerSecond / wallSeconds).toFixed(0)} %`;
  const beside = theirs ? `, ${peer} ${share(theirs)}` : '';
  return [`of ${line.bitsPerSecond / 1e6} Mbit/s with ${line.roundTripMs} ms ours used ${share(ours)}${beside}`];
}

export function table({ machine, commit, date, results }: Results): string {
  const timed = results.filter(({ age }) => !age);
  const rows = timed.map(({ case: name, peer, size, runs, ours, theirs, ratio }) =>
    [
      name,
      bytes(size),
      peer ?? '-',
      `${runs}`,
      `${ours.wallSeconds} / ${theirs?.wallSeconds ?? '-'}`,
      ratio ? ratio.wall.toFixed(2) : '-',
      `${ours.cpuSeconds} / ${theirs?.cpuSeconds ?? '-'}`,
      ratio ? ratio.cpu.toFixed(2) : '-',
      `${ours.rssMaxMiB}`,
      `${bytes(ours.wireBytes)} / ${theirs ? bytes(theirs.wireBytes) : '-'}`,
    ].join(' | '),
  );
  const far = timed.flatMap(lineShares);
  const heading = [
    '',
    '| case | size | peer | runs | seconds | ratio | CPU s | ratio | MiB (agent + master) | on the wire |',
    '|---|---|---|---|---|---|---|---|---|---|',
  ];
  return [
    `${machine.cores} cores (${machine.cpu}), ${machine.memoryGiB} GiB, Linux ${machine.kernel}, commit ${commit}, ${date.slice(0, 10)}.${rows.length > 0 ? ' Ours / theirs, medians of alternating runs.' : ''}`,
    ...(rows.length > 0 ? heading : []),
    ...rows.map((row) => `| ${row} |`),
    ...(far.length > 0 ? ['', `wan: ${far.join('; ')}.`] : []),
    ...ageTable(results),
  ].join('\n');
}

/** One bar per case and peer: wall time of ours by theirs, on a logarithmic axis; left of the line we are faster. */
export function plot({ results, commit }: Results): string {
  const bars = results.flatMap(({ case: name, peer, ratio }) =>
    ratio && peer !== null ? [{ label: `${name}, ${peer}`, ratio: ratio.wall }] : [],
  );
  const [left, width, row] = [250, 420, 22];
  const height = bars.length * row + 60;
  const [low, high] = [0.01, 10];
  const x = (value: number): number =>
    left +
    (width * (Math.log10(Math.min(high, Math.max(low, value))) - Math.log10(low))) /
      (Math.log10(high) - Math.log10(low));
  const axis = [0.01, 0.1, 1, 10].map(
    (value) =>
      `<line x1="${x(value)}" x2="${x(value)}" y1="30" y2="${height - 24}" stroke="${value === 1 ? '#c0392b' : '#9994'}"/>` +
      `<text x="${x(value)}" y="${height - 8}" text-anchor="middle">${value}</text>`,
  );
  const lines = bars.map(({ label, ratio }, at) => {
    const y = 36 + at * row;
    const [from, to] = [Math.min(x(1), x(ratio)), Math.max(x(1), x(ratio))];
    return (
      `<text x="${left - 8}" y="${y + 11}" text-anchor="end">${label}</text>` +
      `<rect x="${from}" y="${y}" width="${Math.max(1, to - from)}" height="14" fill="${ratio <= 1 ? '#27ae60' : '#e67e22'}"/>` +
      `<text x="${to + 4}" y="${y + 11}">${ratio.toFixed(2)}</text>`
    );
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${left + width + 60}" height="${height}" font-family="sans-serif" font-size="11" fill="#777">`,
    `<text x="8" y="18">Time of ours by theirs (commit ${commit}); below 1 ours is faster</text>`,
    ...axis,
    ...lines,
    '</svg>',
    '',
  ].join('\n');
}

const marks = ['<!-- bench: made by npm run bench -- --report -->', '<!-- end of bench -->'] as const;

/** README's tables and the plot beside the results, from what is kept; false when that is nothing. */
export function report(): boolean {
  const [timed, age] = [newest(false), newest(true)];
  if (!timed && !age) return false;
  const path = join(root, 'README.md');
  const text = readFileSync(path, 'utf8');
  const [from, to] = marks.map((mark) => text.indexOf(mark)) as [number, number];
  if (from < 0 || to < from) throw new Error(`README.md has no place for it: ${marks.join(' .. ')}`);
  const parts: string[] = [];
  if (timed) {
    writeFileSync(join(resultsFolder, 'ratios.svg'), plot(timed));
    parts.push(table(timed), '![ratios](test/bench/results/ratios.svg)');
  }
  if (age) parts.push(table(age));
  writeFileSync(path, `${text.slice(0, from + marks[0].length)}\n\n${parts.join('\n\n')}\n\n${text.slice(to)}`);
  return true;
}
