/** One case against one peer. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { cases } from './cases.ts';
import { distance, near, type Distance } from './distance.ts';
import { startOurs } from './ours.ts';
import { peers } from './peers.ts';
import { countSyncs, dropCaches, measure, type Figures } from './processes.ts';
import { medians, type Result } from './results.ts';
import type { LineOptions } from './slowline.ts';
import { Missing, type Subject } from './subject.ts';
import { makeImage, makeTree, type Content, type Volume } from './volumes.ts';

export interface BenchOptions {
  folder: string;
  runs: number;
  size: number;
  content: Content;
  /** Of the cases over a distance. */
  line: LineOptions;
}

/** Undefined when the peer has nothing to do with this case, or cannot be had: `say` hears why. */
export async function bench(
  name: string,
  peerName: string,
  { folder, runs, size, line, ...options }: BenchOptions,
  say: (line: string) => void,
): Promise<Result | undefined> {
  const one = cases[name];
  const other = peers[peerName];
  if (!one || !other) throw new Error(`no such case or peer: ${name}, ${peerName}`);
  const { theirs } = one;
  const content = one.content ?? options.content;
  const between = (): Distance => (one.isFar ? distance(line) : near);
  const distances = [between(), between()] as const;
  if (theirs && !other.kinds.includes(one.kind)) return undefined;
  const peer =
    theirs &&
    (await other
      .start({ folder, isChange: one.isChange, distance: distances[1], sizeBytes: size })
      .catch((error: unknown) => {
        if (!(error instanceof Missing)) throw error;
        say(`${name}, ${peerName}: skipped, ${error.message}`);
        return undefined;
      }));
  if (theirs && !peer) return undefined;
  const volumes = peer?.volumes ?? join(folder, 'volumes');
  mkdirSync(volumes, { recursive: true });
  const volume = make(volumes, one.kind, size, content);
  const ours = await startOurs(volumes, distances[0]);
  const sides: Side[] = [
    { subject: ours, work: () => one.ours(ours, volume), figures: [] },
    ...(peer && theirs ? [{ subject: peer, work: () => theirs(peer, volume), figures: [] }] : []),
  ];
  say(`${name}: ${one.about}; ${sides.map(({ subject }) => `${subject.name}: ${subject.command}`).join('; ')}`);
  try {
    for (const { subject } of sides) {
      await subject.reset(volume);
      if (one.isChange) await subject.copy(volume);
    }
    if (one.goesOn) await ours.goOn();
    const turn = async (at: number, how: (side: Side) => Promise<void>): Promise<void> => {
      one.prepare?.(volume, at);
      for (const side of sides) {
        if (!one.isChange) await side.subject.reset(volume);
        dropCaches();
        await how(side);
      }
    };
    for (let run = 0; run < runs; run++) {
      await turn(run, async ({ subject, work, figures }) => {
        figures.push(
          await measure(
            () => subject.roots(),
            () => subject.wireBytes(),
            work,
          ),
        );
        say(`  ${subject.name}: ${JSON.stringify(figures.at(-1))}`);
      });
    }
    for (const { subject } of sides) await subject.check(volume);
    await turn(runs, async (side) => {
      side.syncs = await countSyncs(side.subject.roots(), side.work);
    });
    return resultOf(name, peer?.name ?? null, sides, {
      size: volume.sizeBytes,
      content,
      runs,
      command: peer?.command ?? null,
      ...(one.isFar ? { line } : {}),
    });
  } finally {
    await ours.stop();
    await peer?.stop();
    for (const one of distances) await one.close();
  }
}

interface Side {
  subject: Subject;
  work: () => Promise<void>;
  figures: Figures[];
  syncs?: Record<string, number>;
}

function make(folder: string, kind: Volume['kind'], size: number, content: Content): Volume {
  return kind === 'image'
    ? makeImage(join(folder, 'image'), size, content)
    : makeTree(join(folder, 'tree'), Math.round(size / 3));
}

function resultOf(
  name: string,
  peer: string | null,
  [ours, theirs]: Side[],
  facts: Pick<Result, 'size' | 'content' | 'runs' | 'command' | 'line'>,
): Result {
  const of = (side: Side | undefined): Figures | null => (side ? medians(side.figures) : null);
  const spread = (side: Side): [number, number] => {
    const walls = side.figures.map(({ wallSeconds }) => Number(wallSeconds.toFixed(3)));
    return [Math.min(...walls), Math.max(...walls)];
  };
  const [mine, others] = [of(ours), of(theirs)];
  if (!ours || !mine) throw new Error('nothing was measured');
  const ratio = (a: number, b: number): number => Number((a / Math.max(b, 0.001)).toFixed(3));
  return {
    case: name,
    peer,
    ...facts,
    ours: mine,
    theirs: others,
    ratio: others && {
      wall: ratio(mine.wallSeconds, others.wallSeconds),
      cpu: ratio(mine.cpuSeconds, others.cpuSeconds),
    },
    spread: { ours: spread(ours), theirs: theirs ? spread(theirs) : null },
    syncs: { ours: ours.syncs ?? null, theirs: theirs?.syncs ?? null },
  };
}
