/**
 * Re-reads base and journal against their hashes and answers what of the newest commit is not right: what the base has
 * wrong and no later epoch brings anew, what the journal has wrong, and of a block volume what the head says, the base has not and no
 * later epoch brings, although the base is right by itself.
 */
import { granuleCount, hashBytes, unknownHash } from '../../proto/granule.ts';
import { unpack } from '../../proto/payload.ts';
import type { Data, VolumeMode } from '../../proto/wire.ts';
import type { Progress } from './base.ts';
import type { Checkpoint } from './checkpoint.ts';
import type { Journal } from './journal.ts';
import { BlockIndex } from './blockindex.ts';
import type { Timeline } from './timeline.ts';
import type { VolumeIndex } from './volumeindex.ts';

/** As the index keeps them. */
const pageGranules = 256;

export interface Scrubbed {
  readBytes: number;
  bad: { object: number; granule: number }[];
}

/** Up to epoch `through`, the newest that is committed. */
export async function scrubReplica(
  {
    head,
    journal,
    timeline,
    checkpoint,
    mode,
  }: {
    head: VolumeIndex;
    journal: Journal;
    timeline: Timeline;
    checkpoint: Checkpoint;
    mode: VolumeMode;
  },
  through: number,
  signal: AbortSignal,
  progress: Progress,
): Promise<Scrubbed> {
  const pin = timeline.pin(timeline.points[0]?.sequence ?? through);
  try {
    const bad = new Map<string, { object: number; granule: number }>();
    const note = (object: number, granule: number) => bad.set(`${object}/${granule}`, { object, granule });
    const journalBytes = journal.bytes;
    const { readBytes, from, lacking } = await checkpoint.hold(signal, async (base) => {
      const result = await base.verify(signal, (done, total) => progress(done, total + journalBytes));
      result.bad.forEach(({ object, granule }) => note(object, granule));
      pin.sequence = base.index.sequence;
      const lacking = new Set(differing(head, base.index));
      return { readBytes: result.readBytes, from: base.index.sequence, lacking };
    });
    let journalRead = 0;
    for await (const record of journal.read(from, through)) {
      signal.throwIfAborted();
      if ('commit' in record && mode === 'Block') {
        // What a volume that shrank has lost is nobody's loss.
        const count = granuleCount(record.commit.sizeBytes);
        for (const [key, { granule }] of bad) if (granule >= count) bad.delete(key);
        for (const granule of lacking) if (granule >= count) lacking.delete(granule);
      }
      if (!('data' in record)) continue;
      journalRead += record.data.payload.length;
      // What was bad before and is good here is good from here on.
      const right = isRight(record.data);
      eachGranule(record.data, (object, granule, zero) => {
        lacking.delete(granule);
        if (right || zero) bad.delete(`${object}/${granule}`);
        else note(object, granule);
      });
      progress(readBytes + journalRead, readBytes + journalBytes);
    }
    for (const granule of lacking) note(0, granule);
    return { readBytes: readBytes + journalRead, bad: [...bad.values()] };
  } finally {
    timeline.unpin(pin);
  }
}

/** Granules of which the base has other hashes than the head, where that knows any: the journal has to bring them. */
function* differing(head: VolumeIndex, base: VolumeIndex): Generator<number> {
  if (!(head instanceof BlockIndex) || !(base instanceof BlockIndex)) return;
  const count = granuleCount(head.sizeBytes);
  for (let first = 0; first < count; first += pageGranules) {
    const length = Math.min(pageGranules, count - first);
    const [own, other] = [head.hashes(first, length), base.hashes(first, length)];
    if (own.equals(other)) continue;
    for (let i = 0; i < length; i++) {
      const [at, end] = [i * hashBytes, (i + 1) * hashBytes];
      const isSame = own.compare(other, at, end, at, end) === 0;
      if (!isSame && !own.subarray(at, end).equals(unknownHash)) yield first + i;
    }
  }
}

function isRight(data: Data): boolean {
  try {
    unpack(data);
    return true;
  } catch {
    return false;
  }
}

function eachGranule(data: Data, visit: (object: number, granule: number, zero: boolean) => void): void {
  for (const run of data.runs) for (let i = 0; i < run.count; i++) visit(run.object, run.first + i, run.zero);
}
