import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { DatabaseSync } from 'node:sqlite';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { BlockIndex } from '../../../../master/replica/blockindex.ts';
import { granuleBytes, granuleCount, granuleHash, hashBytes, unknownHash } from '../../../../proto/granule.ts';
import { volumeDigest } from '../../../sim/digest.ts';
import { commitOf, dataOf, imageOf } from './blockreplica.ts';

function folder(t: Test): string {
  const path = mkdtempSync(`${tmpdir()}/blockindex-`);
  t.teardown(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

function commit(index: BlockIndex, values: Record<number, number>, sizeBytes: number): void {
  for (const data of dataOf(values, sizeBytes)) index.stageData(data);
  const digest = index.stagedDigest(sizeBytes);
  const facts = { digest, committedUs: 1, sourceId: 's', generation: '1' };
  index.commit({ ...commitOf(index.sequence + 1, sizeBytes), ...facts });
  assert(index.digest.equals(digest), 'the staged digest is the one that comes');
}

t.test('the digest is that of the content, whatever led there', async (t) => {
  const path = folder(t);
  let number = 0;
  const step = fc.record({
    values: fc.dictionary(fc.integer({ min: 0, max: 600 }).map(String), fc.integer({ min: 0, max: 3 }), { maxKeys: 8 }),
    granules: fc.integer({ min: 0, max: 600 }),
    tail: fc.integer({ min: 0, max: granuleBytes - 1 }),
  });
  fc.assert(
    fc.property(fc.array(step, { minLength: 1, maxLength: 6 }), (steps) => {
      const index = new BlockIndex(`${path}/${number++}`);
      let model: Record<number, number> = {};
      let sizeBytes = 0;
      for (const { values, granules, tail } of steps) {
        const before = granuleCount(sizeBytes) - 1;
        sizeBytes = granules * granuleBytes + tail;
        const count = granuleCount(sizeBytes);
        model = Object.fromEntries(Object.entries(model).filter(([granule]) => Number(granule) < count));
        // A granule whose length changes is sent again, as the agent does.
        const borders = [before, count - 1].filter((granule) => granule >= 0 && granule < count);
        const within = Object.fromEntries(Object.entries(values).filter(([granule]) => Number(granule) < count));
        const sent = { ...Object.fromEntries(borders.map((granule) => [granule, model[granule] ?? 0])), ...within };
        commit(index, sent, sizeBytes);
        Object.assign(model, sent);
      }
      const right = index.digest.equals(volumeDigest(imageOf(model, sizeBytes)));
      index.close();
      const again = new BlockIndex(`${path}/${number - 1}`);
      const same = again.digest.equals(index.newest?.digest ?? Buffer.alloc(0));
      again.close();
      return right && same;
    }),
    { numRuns: 20 },
  );
});

t.test('it wants what is lacking or different, the open epoch taken into account', async (t) => {
  const index = new BlockIndex(`${folder(t)}/i`);
  const size = 300 * granuleBytes;
  commit(index, { 0: 1, 255: 2, 256: 3 }, size);
  const ask = (values: number[], first: number): number[] => {
    const hashes = Buffer.concat(values.map((value) => granuleHash(Buffer.alloc(granuleBytes, value))));
    const bitmap = index.want(0, first, hashes);
    return values.map((_, at) => ((bitmap[at >> 3] ?? 0) >> (at & 7)) & 1);
  };
  t.same(ask([2, 3, 0], 255), [0, 0, 0]);
  t.same(ask([9, 9, 9], 255), [1, 1, 1]);
  for (const data of dataOf({ 256: 9 }, size)) index.stageData(data);
  t.same(ask([2, 9], 255), [0, 0]);
  index.discard();
  t.same(ask([2, 9], 255), [0, 1]);
  t.same(ask([7], 5000), [1], 'beyond its end there is nothing');
  t.throws(() => index.want(1, 0, Buffer.alloc(hashBytes)), { code: 'BadMessage' });
  index.close();
});

t.test('what shrank away comes back as zeros', async (t) => {
  const index = new BlockIndex(`${folder(t)}/i`);
  commit(index, { 0: 1, 5: 5, 299: 9 }, 300 * granuleBytes);
  commit(index, {}, 3 * granuleBytes);
  commit(index, {}, 300 * granuleBytes);
  t.ok(index.digest.equals(volumeDigest(imageOf({ 0: 1 }, 300 * granuleBytes))));
  index.close();
});

t.test('unknown pieces are counted until they come again or are no part of the volume any more', async (t) => {
  const path = `${folder(t)}/i`;
  let index = new BlockIndex(path);
  const size = 600 * granuleBytes;
  commit(index, { 1: 1, 300: 2, 599: 3 }, size);
  for (const granule of [1, 300, 599]) index.markUnknown(0, granule);
  index.markUnknown(0, 300);
  index.markUnknown(0, 600);
  t.equal(index.unknown, 3, 'each once, none beyond the end');
  t.equal(index.want(0, 300, unknownHash)[0], 0);
  index.close();
  index = new BlockIndex(path);
  t.equal(index.unknown, 3, 'a restart does not forget');
  for (const data of dataOf({ 300: 2 }, size)) index.stageData(data);
  t.equal(index.stagedUnknown(size), 2);
  index.discard();
  for (const data of dataOf({ 1: 0 }, size)) index.stageData(data);
  t.equal(index.stagedUnknown(400 * granuleBytes), 1, 'the last one is cut off');
  t.equal(index.stagedUnknown(200 * granuleBytes), 0);
  index.discard();
  t.equal(index.stagedUnknown(size), 3);
  index.close();
});

t.test('a page that became another one while the index is open is not told of, and nothing is written on top', (t) => {
  const path = `${folder(t)}/i`;
  const index = new BlockIndex(path);
  const size = 600 * granuleBytes;
  commit(index, { 1: 1, 300: 2 }, size);
  const other = new DatabaseSync(path);
  const flipped = Buffer.from(index.hashes(256, 256));
  flipped[(300 - 256) * hashBytes] = (flipped[(300 - 256) * hashBytes] ?? 0) ^ 1;
  other.prepare('UPDATE page SET hashes = ? WHERE number = 1').run(flipped);
  t.equal(index.want(0, 1, granuleHash(Buffer.alloc(granuleBytes, 1)))[0], 0, 'another page is as it was');
  t.notOk(index.damaged);
  const damage = { code: 'ReplicaDamaged', message: /page 1 / };
  t.throws(() => index.want(0, 300, granuleHash(Buffer.alloc(granuleBytes, 2))), damage);
  t.ok(index.damaged, 'its owner makes it anew');
  t.throws(() => index.hashes(300, 1), damage);
  t.throws(() => dataOf({ 301: 3 }, size).forEach((data) => index.stageData(data)), damage);
  t.throws(() => index.markUnknown(0, 301), damage);
  other.prepare('DELETE FROM page WHERE number = 1').run();
  t.throws(() => index.hashes(300, 1), damage, 'one that is gone is not one of zeros');
  other.close();
  index.close();
  t.end();
});
