/**
 * Proving a point whose copy was handed out unread: what of the copy was taken over as it lay is read again in the base or
 * snapshot that it came from, which shares its bytes where storage can. What the journal brought had its hash looked at when it was written.
 *
 * Guarantees: nothing is written or noted; what is answered as wrong is wrong in the point. In slices, so that nobody waits long for the base;
 * half of the time is left to others.
 */
import type { Clock } from '../../proto/effects.ts';
import { granuleBytes, granuleCount } from '../../proto/granule.ts';
import { nodeTypes, type VolumeMode } from '../../proto/wire.ts';
import type { Base, Piece, Progress } from './base.ts';
import type { Point } from './horizon.ts';
import type { Journal } from './journal.ts';
import type { Pin, Timeline } from './timeline.ts';
import { TreeIndex } from './treeindex.ts';

export interface Proven {
  readBytes: number;
  /** Granules that are not as they were mirrored. At `maxBad` there may be more, and the rest was not read. */
  badGranules: number;
  /** The first of them, for people. */
  bad: string[];
}

export interface ProveOptions {
  signal: AbortSignal;
  /** Bytes of what is read, holes among them. */
  progress: Progress;
}

const sliceMs = 500;
const maxBad = 65_536;
const maxTold = 8;

export async function provePoint(
  parts: {
    clock: Clock;
    mode: VolumeMode;
    journal: Journal;
    timeline: Timeline;
    /** Runs work on what the point is copied from. */
    before: <T>(work: (from: Base) => Promise<T>) => Promise<T>;
  },
  point: Point,
  { signal, progress }: ProveOptions,
): Promise<Proven> {
  const { clock, mode, journal, timeline, before } = parts;
  const pin = timeline.pin(point.sequence);
  let reading: Reading | undefined;
  try {
    for (;;) {
      const startMs = clock.monotonicMs();
      reading = await before((from) =>
        readOn(reading, from, pin, signal, () => clock.monotonicMs() - startMs >= sliceMs),
      );
      progress(reading.doneBytes, reading.totalBytes);
      const isEnd = reading.next === undefined;
      if (isEnd || reading.bad.size > maxBad) {
        await dropLater(reading.bad, journal, reading.sequence, point.sequence, mode, signal);
        if (isEnd || reading.bad.size > 0) break;
      }
      await clock.sleep(Math.min(2 * sliceMs, clock.monotonicMs() - startMs), signal);
    }
    const { readBytes, bad } = reading;
    return { readBytes, badGranules: bad.size, bad: [...bad.values()].slice(0, maxTold).map(({ name }) => name) };
  } finally {
    timeline.unpin(pin);
  }
}

interface Reading {
  /** What is read, and the commit that it stands at: another one is begun with anew. */
  path: string;
  sequence: number;
  next: Piece | undefined;
  bad: Map<string, Piece & { name: string }>;
  readBytes: number;
  doneBytes: number;
  totalBytes: number;
}

async function readOn(
  before: Reading | undefined,
  from: Base,
  pin: Pin,
  signal: AbortSignal,
  isOver: () => boolean,
): Promise<Reading> {
  const { index, indexPath: path } = from;
  const isSame = before?.path === path && before.sequence === index.sequence;
  const reading = isSame ? before : begin(path, from);
  // It stays where it is until the next slice.
  pin.sequence = index.sequence;
  const slice = await from.prove(reading.next ?? { object: 0, granule: 0 }, signal, isOver);
  for (const piece of slice.bad)
    reading.bad.set(`${piece.object}/${piece.granule}`, { ...piece, name: from.nameOf(piece) });
  reading.next = slice.next;
  reading.readBytes += slice.readBytes;
  reading.doneBytes += slice.doneBytes;
  return reading;
}

function begin(path: string, { index }: Base): Reading {
  const totalBytes = index instanceof TreeIndex ? index.contentBytes : index.sizeBytes;
  const { sequence } = index;
  return { path, sequence, next: undefined, bad: new Map(), readBytes: 0, doneBytes: 0, totalBytes };
}

/** What a later epoch brings anew, or takes away, is not in the point. */
async function dropLater(
  bad: Map<string, Piece>,
  journal: Journal,
  after: number,
  through: number,
  mode: VolumeMode,
  signal: AbortSignal,
): Promise<void> {
  if (bad.size === 0) return;
  const drop = (isGone: (piece: Piece) => boolean): void => {
    for (const [key, piece] of bad) if (isGone(piece)) bad.delete(key);
  };
  for await (const record of journal.read(after, through, () => false)) {
    signal.throwIfAborted();
    if ('data' in record) {
      if (record.placed === true) continue;
      for (const { object, first, count } of record.data.runs)
        if (count > bad.size)
          drop((one) => one.object === object && one.granule >= first && one.granule < first + count);
        else for (let granule = first; granule < first + count; granule++) bad.delete(`${object}/${granule}`);
    } else if ('nodes' in record) {
      for (const { slot, type, sizeBytes } of record.nodes.nodes) {
        const count = type === nodeTypes.file ? granuleCount(sizeBytes) : 0;
        drop(({ object, granule }) => object === slot && granule >= count);
      }
    } else if (mode === 'Block') {
      const count = granuleCount(record.commit.sizeBytes);
      drop(({ granule }) => granule >= count);
    }
    if (bad.size === 0) return;
  }
}

/** What of a volume is wrong, for people. */
export function damageText({ badGranules, bad }: Proven): string {
  const more = badGranules > bad.length ? ', ...' : '';
  return `${badGranules} granules (${badGranules * granuleBytes} bytes at most) are not as they were mirrored: ${bad.join(', ')}${more}`;
}
