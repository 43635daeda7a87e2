import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import t from 'tap';
import { redo } from '../../../../master/replica/base.ts';
import { Journal } from '../../../../master/replica/journal.ts';
import { TreeBase } from '../../../../master/replica/treebase.ts';
import type { Disk } from '../../../../proto/effects.ts';
import { granuleBytes } from '../../../../proto/granule.ts';
import { nodeTypes } from '../../../../proto/wire.ts';
import { Dice } from '../../../sim/dice.ts';
import { imageOf, none, put, quietDisk, recovered, rig, writer } from './blockreplica.ts';
import { bytes, commitOf, randomOf, TreeModel } from './treemodel.ts';
import { expected, walk } from './treestate.ts';

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

t.test('a tree whose redo was broken off some commits later is redone from where its index stands', async (t) => {
  const folder = mkdtempSync(`${tmpdir()}/redo-`);
  t.teardown(() => rmSync(folder, { recursive: true }));
  const journal = await Journal.open(quietDisk().mount(), '/j', 1 << 30, () => undefined);
  const model = new TreeModel(randomOf(1), process.geteuid?.() === 0);
  const content = (...values: number[]): Buffer =>
    Buffer.concat(values.map((value) => Buffer.alloc(granuleBytes, value)));
  const { slot } = model.create(nodeTypes.file, { parent: 0, name: bytes('a') }, content(1, 2));
  // One granule after the other: what a later commit put there does not add up to the node of an earlier one.
  for (const [at, next] of [content(1, 2), content(3, 2), content(3, 4), content(5, 4)].entries()) {
    model.write(slot, next);
    const { data, nodes } = model.epoch();
    for (const one of data) await journal.append(at + 1, { data: one });
    await journal.append(at + 1, { nodes: { nodes } });
    await journal.commit(commitOf(at + 1, model.slots));
  }
  const base = await TreeBase.open(`${folder}/tree`, `${folder}/index.db`);
  await redo(base, journal, 1, none);
  const stop = new AbortController();
  let granules = 0;
  const atLast = (): void => {
    if (++granules === 3) stop.abort(new Error('stopped'));
  };
  await t.rejects(redo(base, journal, 4, stop.signal, atLast), { message: 'stopped' });
  t.equal(base.index.sequence, 1);
  await redo(base, journal, 4, none);
  t.equal(base.index.sequence, 4);
  assert.deepEqual(await walk(`${folder}/tree`), expected(model));
  t.same((await base.verify(none, () => undefined)).bad, []);
  await base.close();
  await journal.close();
});
