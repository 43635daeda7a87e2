import t from 'tap';
import type { Disk } from '../../../../proto/effects.ts';
import { granuleBytes } from '../../../../proto/granule.ts';
import { Dice } from '../../../sim/dice.ts';
import { imageOf, put, recovered, rig, writer } from './blockreplica.ts';

const size = 40 * granuleBytes;

/** Bytes read from files of the journal. */
function counting(disk: Disk): { disk: Disk; readBytes: () => number } {
  let bytes = 0;
  return {
    readBytes: () => bytes,
    disk: {
      ...disk,
      async open(path, mode) {
        const file = await disk.open(path, mode);
        if (!path.endsWith('.log')) return file;
        return {
          ...file,
          async read(buffer, position) {
            const got = await file.read(buffer, position);
            bytes += got;
            return got;
          },
        };
      },
    },
  };
}

t.test('a copy takes from the journal what the point has, not all that was written on the way', async (t) => {
  const own = await rig(t);
  const counted = counting(own.disk);
  own.disk = counted.disk;
  const replica = await own.open();
  const session = await replica.attach({ ...writer, sizeBytes: size });
  for (let round = 1; round <= 60; round++) await put(replica, session, { 0: round, 1: round, 2: round }, size);
  const before = counted.readBytes();
  const image = await recovered(own, replica, 60);
  t.ok(image.equals(imageOf({ 0: 60, 1: 60, 2: 60 }, size)));
  const granules = (counted.readBytes() - before) / granuleBytes;
  t.ok(granules < 60, `${granules.toFixed(1)} granules were read of 180 in the journal`);
  await replica.close();
});

t.test('whatever was written, zeroed, cut off and grown again on the way, the copy is the point', async (t) => {
  for (let seed = 1; seed <= 20; seed++) {
    const dice = new Dice(seed);
    const own = await rig(t);
    const replica = await own.open();
    let session = await replica.attach({ ...writer, sizeBytes: size });
    const images: Buffer[] = [];
    let bytes = size;
    const values: Record<number, number> = {};
    for (let round = 1; round <= 25; round++) {
      const changed: Record<number, number> = {};
      if (dice.chance(0.15)) {
        // As a source does: the last granule of before is another one when it grows or is cut.
        changed[Math.ceil(bytes / granuleBytes) - 1] = dice.below(4);
        bytes = (5 + dice.below(35)) * granuleBytes + dice.below(2) * 1000;
        for (const key of Object.keys(values)) if (Number(key) * granuleBytes >= bytes) delete values[Number(key)];
        session = await replica.attach({ ...writer, sizeBytes: bytes, force: true });
      }
      const granules = Math.ceil(bytes / granuleBytes);
      for (let left = 1 + dice.below(6); left > 0; left--) changed[dice.below(granules)] = dice.below(4);
      changed[granules - 1] = dice.below(4);
      for (const key of Object.keys(changed)) if (Number(key) >= granules) delete changed[Number(key)];
      Object.assign(values, changed);
      await put(replica, session, changed, bytes);
      images[round] = imageOf(values, bytes);
    }
    for (const sequence of [25, 1 + dice.below(25), 1 + dice.below(25)]) {
      const image = await recovered(own, replica, sequence);
      t.ok(image.equals(images[sequence] ?? Buffer.alloc(0)), `seed ${seed}, point ${sequence}`);
    }
    await replica.close();
  }
});
