/** What programs hold while they live: sampled from /proc, judged (what only grows is a leak), drawn. */
import { readdirSync, readFileSync } from 'node:fs';

export const held = ['agentMiB', 'masterMiB', 'agentFiles', 'masterFiles'] as const;

/** Seconds since the beginning; resident memory and open descriptors. */
export type Sample = Record<'seconds' | (typeof held)[number], number>;

export interface Pids {
  agent: number;
  master: number;
}

/** Undefined while one of them is not there. */
export function sample(seconds: number, { agent, master }: Pids): Sample | undefined {
  try {
    return {
      seconds,
      agentMiB: residentMiB(agent),
      masterMiB: residentMiB(master),
      agentFiles: readdirSync(`/proc/${agent}/fd`).length,
      masterFiles: readdirSync(`/proc/${master}/fd`).length,
    };
  } catch {
    return undefined;
  }
}

function residentMiB(pid: number): number {
  const kib = /^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
  if (kib === undefined) throw new Error(`${pid} is ending`);
  return Number(kib) / 1024;
}

/** A heap breathes; what is beyond that between the second and the last quarter, by the median of each, is growth. */
const slack = { MiB: { ratio: 1.2, more: 10 }, Files: { ratio: 1.1, more: 5 } } as const;

/** What has grown, in words. */
export function grown(samples: readonly Sample[]): string[] {
  const quarter = (number: number): Sample[] =>
    samples.slice(Math.floor((samples.length * number) / 4), Math.floor((samples.length * (number + 1)) / 4));
  return held.flatMap((what) => {
    const [before, after] = [quarter(1), quarter(3)].map((some) => median(some.map((one) => one[what])));
    if (before === undefined || after === undefined) return [];
    const { ratio, more } = slack[what.endsWith('MiB') ? 'MiB' : 'Files'];
    return after > before * ratio + more ? [`${what} from ${before.toFixed(0)} to ${after.toFixed(0)}`] : [];
  });
}

function median(values: number[]): number | undefined {
  return values.toSorted((a, b) => a - b)[values.length >> 1];
}

const [width, rowHeight, left] = [720, 110, 90];

/** A row for each of what is held, over time. */
export function drawn(samples: readonly Sample[]): string {
  const endSeconds = samples.at(-1)?.seconds ?? 1;
  const rows = held.map((what, row) => {
    const most = Math.max(1, ...samples.map((one) => one[what]));
    const bottom = row * rowHeight + rowHeight - 15;
    const points = samples.map((one) => {
      const x = left + ((width - left - 10) * one.seconds) / endSeconds;
      return `${x.toFixed(1)},${(bottom - ((rowHeight - 30) * one[what]) / most).toFixed(1)}`;
    });
    return (
      `<text x="8" y="${bottom}">0</text><text x="8" y="${bottom - rowHeight + 38}">${what} ${most.toFixed(0)}</text>` +
      `<line x1="${left}" x2="${width - 10}" y1="${bottom}" y2="${bottom}" stroke="#9994"/>` +
      `<polyline points="${points.join(' ')}" fill="none" stroke="#2980b9"/>`
    );
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${held.length * rowHeight + 10}" font-family="sans-serif" font-size="11" fill="#777">`,
    ...rows,
    `<text x="${width - 10}" y="${held.length * rowHeight + 4}" text-anchor="end">${(endSeconds / 60).toFixed(0)} min</text>`,
    '</svg>',
    '',
  ].join('\n');
}
