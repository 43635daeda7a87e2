/** A flame graph (SVG) of a CPU profile of V8: width is time, what is called stands above who calls; idle time is left out. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

interface ProfileNode {
  id: number;
  callFrame: { functionName: string; url: string; lineNumber: number };
  children?: number[];
}

export interface Profile {
  nodes: ProfileNode[];
  samples: number[];
  /** Microseconds before each sample. */
  timeDeltas: number[];
}

interface Frame {
  name: string;
  us: number;
  above: Map<string, Frame>;
}

const idle = new Set(['(idle)', '(program)']);
const [width, row, margin] = [1200, 16, 24];
const narrowest = 0.5;
const deepest = 64;

function nameOf({ functionName, url, lineNumber }: ProfileNode['callFrame']): string {
  const file = /(?:[^/]+\/)?[^/]+$/.exec(url)?.[0] ?? '';
  return `${functionName || '(anonymous)'}${file === '' ? '' : ` ${file}:${lineNumber + 1}`}`;
}

/** Calls by the same name from the same place are one frame. Pure. */
export function framesOf({ nodes, samples, timeDeltas }: Profile): Frame {
  const byId = new Map(nodes.map((node) => [node.id, node]));
  const parent = new Map(nodes.flatMap(({ id, children }) => (children ?? []).map((child) => [child, id] as const)));
  const own = new Map<number, number>();
  samples.forEach((id, at) => own.set(id, (own.get(id) ?? 0) + Math.max(0, timeDeltas[at] ?? 0)));
  const root: Frame = { name: 'all', us: 0, above: new Map() };
  for (const [id, us] of own) {
    const path: string[] = [];
    for (let at: number | undefined = id; at !== undefined; at = parent.get(at)) {
      const node = byId.get(at);
      if (node) path.unshift(nameOf(node.callFrame));
    }
    if (idle.has(path.at(-1) ?? '')) continue;
    root.us += us;
    let frame = root;
    for (const name of path.slice(1, deepest)) {
      const next: Frame = frame.above.get(name) ?? { name, us: 0, above: new Map() };
      frame.above.set(name, next);
      next.us += us;
      frame = next;
    }
  }
  return root;
}

const escaped = (text: string): string =>
  text.replace(/[<>&"]/g, (character) => `&#${character.charCodeAt(0)};`); // prettier-ignore

export function flameSvg(profile: Profile, title: string): string {
  const root = framesOf(profile);
  const boxes: string[] = [];
  let levels = 1;
  const draw = (frame: Frame, x: number, level: number): void => {
    const wide = (frame.us / Math.max(1, root.us)) * width;
    if (wide < narrowest) return;
    levels = Math.max(levels, level + 1);
    // The same color for the same file, so that one sees whose time it is.
    const file = frame.name.slice(frame.name.lastIndexOf(' '));
    const hue = [...file].reduce((sum, character) => (sum * 31 + character.charCodeAt(0)) % 60, 7);
    const said = `${frame.name} ${(frame.us / 1000).toFixed(0)} ms, ${((frame.us * 100) / Math.max(1, root.us)).toFixed(1)} %`;
    const label = wide > 30 ? escaped(frame.name.slice(0, Math.floor(wide / 6))) : '';
    boxes.push(
      `<g><title>${escaped(said)}</title><rect x="${x.toFixed(1)}" y="-${(level + 1) * row}" width="${wide.toFixed(1)}" height="${row - 1}" fill="hsl(${hue},80%,65%)"/>` +
        `<text x="${(x + 2).toFixed(1)}" y="-${level * row + 4}">${label}</text></g>`,
    );
    let at = x;
    for (const above of [...frame.above.values()].sort((a, b) => b.us - a.us)) {
      draw(above, at, level + 1);
      at += (above.us / Math.max(1, root.us)) * width;
    }
  };
  draw(root, 0, 0);
  const height = levels * row + margin;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="monospace" font-size="10">`,
    `<text x="4" y="14">${escaped(title)}: ${(root.us / 1e6).toFixed(2)} s at work</text>`,
    `<g transform="translate(0,${height})">`,
    ...boxes,
    '</g></svg>',
    '',
  ].join('\n');
}

/** Beside each `.cpuprofile` of the folder; answers their paths. */
export function drawFlames(folder: string): string[] {
  return readdirSync(folder)
    .filter((name) => name.endsWith('.cpuprofile'))
    .map((name) => {
      const path = join(folder, name.replace(/\.cpuprofile$/, '.svg'));
      writeFileSync(path, flameSvg(JSON.parse(readFileSync(join(folder, name), 'utf8')) as Profile, name));
      return path;
    });
}
