/**
 * Re-reads base and journal against their hashes and answers what of the newest commit is not right: what the base has
 * wrong and no later epoch brings anew, what the journal has wrong, and of a block volume where base and journal lead to other content
 * than the head says, although each is right by itself.
 * Failure: a journal that ends with another commit than was acknowledged, where no piece says why, is damaged (ReplicaDamaged).
 */
import { ReplicationError } from '../../proto/errors.ts';
import { granuleCount, hashBytes, unknownHash, zeroHash } from '../../proto/granule.ts';
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

/** Up to the newest commit. */
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
  signal: AbortSignal,
  progress: Progress,
): Promise<Scrubbed> {
  const { newest } = head;
  const through = head.sequence;
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
    let endsElsewhere = false;
    for await (const record of journal.read(from, through)) {
      signal.throwIfAborted();
      if ('commit' in record && mode === 'Block') {
        // What a volume that shrank has lost is nobody's loss.
        const count = granuleCount(record.commit.sizeBytes);
        for (const [key, { granule }] of bad) if (granule >= count) bad.delete(key);
        for (const granule of lacking) if (granule >= count) lacking.delete(granule);
      }
      if ('commit' in record && record.commit.sequence === through)
        endsElsewhere = newest !== undefined && !record.commit.digest.equals(newest.digest);
      if (!('data' in record)) continue;
      journalRead += record.data.payload.length;
      // What was bad before and is good here is good from here on.
      const right = isRight(record.data);
      eachGranule(record.data, (object, granule, zero, hash) => {
        if (isOther(head, granule, hash)) lacking.add(granule);
        else lacking.delete(granule);
        if (right || zero) bad.delete(`${object}/${granule}`);
        else note(object, granule);
      });
      progress(readBytes + journalRead, readBytes + journalBytes);
    }
    for (const granule of lacking) note(0, granule);
    if (endsElsewhere && bad.size === 0) {
      journal.damaged = true;
      throw new ReplicationError(
        'ReplicaDamaged',
        `the journal ends with another commit ${through} than was acknowledged`,
      );
    }
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

/** Than the head says, where that knows any. */
function isOther(head: VolumeIndex, granule: number, hash: Buffer): boolean {
  if (!(head instanceof BlockIndex)) return false;
  if (granule >= granuleCount(head.sizeBytes)) return false;
  const own = head.hashes(granule, 1);
  return !own.equals(hash) && !own.equals(unknownHash);
}

function isRight(data: Data): boolean {
  try {
    unpack(data);
    return true;
  } catch {
    return false;
  }
}

function eachGranule(
  { runs, hashes }: Data,
  visit: (object: number, granule: number, zero: boolean, hash: Buffer) => void,
): void {
  let at = 0;
  for (const { object, first, count, zero } of runs) {
    for (let i = 0; i < count; i++) {
      visit(object, first + i, zero, zero ? zeroHash : hashes.subarray(at, at + hashBytes));
      if (!zero) at += hashBytes;
    }
  }
}
