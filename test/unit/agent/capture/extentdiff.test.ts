import t from 'tap';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { compareExtents, type Extent } from '../../../../agent/capture/extentdiff.ts';

const blockBytes = 4096;

/** Runs of blocks, each at a place, a hole, reserved, or uncertain. */
const run = fc.record({
  blocks: fc.integer({ min: 1, max: 5 }),
  place: fc.oneof(
    fc.constant('hole' as const),
    fc.constant('reserved' as const),
    fc.constant('inline' as const),
    fc.nat(6),
  ),
});
const file = fc.array(run, { maxLength: 12 });
type Run = { blocks: number; place: number | 'hole' | 'reserved' | 'inline' };

function extentsOf(runs: Run[]): Extent[] {
  let block = 0;
  return runs.flatMap(({ blocks, place }) => {
    const logical = block * blockBytes;
    block += blocks;
    if (place === 'hole') return [];
    const flags = place === 'reserved' ? 0x800 : place === 'inline' ? 0x200 : 0;
    const physical = typeof place === 'number' ? (place * 100 + block) * blockBytes : 0;
    return [{ logical, length: blocks * blockBytes, physical, flags }];
  });
}

/** What each block is, by another way: one at a time. */
function blocksOf(runs: Run[]): (string | number)[] {
  return extentsOf(runs).reduce<(string | number)[]>((blocks, { logical, length, physical, flags }) => {
    for (let at = 0; at < length; at += blockBytes)
      blocks[(logical + at) / blockBytes] = flags & 0x800 ? 'zeros' : flags ? 'uncertain' : physical + at;
    return blocks;
  }, []);
}

async function* each(extents: Extent[]): AsyncGenerator<Extent> {
  yield* extents;
}

t.test('exactly the blocks that lie elsewhere, and those of which nobody knows', async () => {
  await fc.assert(
    fc.asyncProperty(file, file, fc.boolean(), async (before, other, alike) => {
      const after = alike ? [...before.slice(0, 3), ...other.slice(3)] : other;
      const changed = new Set<number>();
      let end = 0;
      await compareExtents(each(extentsOf(before)), each(extentsOf(after)), (offset, length) => {
        assert(offset >= end && length > 0);
        end = offset + length;
        for (let at = offset; at < end; at += blockBytes) changed.add(at / blockBytes);
      });
      const [one, two] = [blocksOf(before), blocksOf(after)];
      for (let block = 0; block < Math.max(one.length, two.length); block++) {
        const [a, b] = [one[block] ?? 'zeros', two[block] ?? 'zeros'];
        assert.equal(changed.has(block), a !== b || a === 'uncertain', `block ${block}: ${a} and ${b}`);
      }
    }),
    { numRuns: 500 },
  );
});
