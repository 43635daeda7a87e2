/**
 * Where two files differ, by where their bytes lie: two clones of one image that share a block have the same content there.
 *
 * Pure. Holds as long as both files exist and neither is written to: then no shared block is used for anything else. What has
 * no certain place (not yet allocated, inline, compressed, unknown) counts as different; reserved and never written
 * reads as zeros, as a hole does.
 */

/** A run of a file's bytes; between runs are holes. Ascending. */
export interface Extent {
  logical: number;
  length: number;
  physical: number;
  /** FIEMAP_EXTENT_* of linux/fiemap.h. */
  flags: number;
}

const unwritten = 0x800;
/** UNKNOWN, DELALLOC, ENCODED, DATA_ENCRYPTED, NOT_ALIGNED, DATA_INLINE, DATA_TAIL */
const uncertain = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400;

/** Calls `changed` with the bytes that differ or may do so, ascending. */
export async function compareExtents(
  before: AsyncIterable<Extent>,
  after: AsyncIterable<Extent>,
  changed: (offset: number, length: number) => void,
): Promise<void> {
  const [one, other] = [written(before), written(after)];
  let a = await next(one);
  let b = await next(other);
  for (let at = 0; a || b;) {
    if (a && end(a) <= at) {
      a = await next(one);
      continue;
    }
    if (b && end(b) <= at) {
      b = await next(other);
      continue;
    }
    const [placeA, untilA] = placeAt(a, at);
    const [placeB, untilB] = placeAt(b, at);
    const until = Math.min(untilA, untilB);
    if (placeA !== placeB || placeA === 'uncertain') changed(at, until - at);
    at = until;
  }
}

function end(extent: Extent): number {
  return extent.logical + extent.length;
}

/** Where the byte at `at` lies, and up to where that goes on in one piece. */
function placeAt(extent: Extent | undefined, at: number): [place: number | 'hole' | 'uncertain', until: number] {
  if (!extent) return ['hole', Infinity];
  if (at < extent.logical) return ['hole', extent.logical];
  if (extent.flags & uncertain) return ['uncertain', end(extent)];
  return [extent.physical + (at - extent.logical), end(extent)];
}

async function* written(extents: AsyncIterable<Extent>): AsyncGenerator<Extent> {
  for await (const extent of extents) if (!(extent.flags & unwritten) && extent.length > 0) yield extent;
}

async function next(extents: AsyncGenerator<Extent>): Promise<Extent | undefined> {
  const result = await extents.next();
  return result.done ? undefined : result.value;
}
