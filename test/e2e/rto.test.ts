/**
 * How long a point takes to become a writable copy: images on XFS with reflinks, fresh and aged by 100,000 random writes
 * (each is a granule of 64 KiB in the base, as the journal applies it), and on ext4, where every byte is copied. In full (`npm run e2e -- rto`) up to 1 TiB, sparse; figures go to standard
 * error. Judged generously: what a busy machine takes says little; that a copy follows extents, not size, says much.
 */
import { closeSync, fsyncSync, openSync, rmSync, writeSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import t, { type Test } from 'tap';
import { Replica } from '../../master/replica/replica.ts';
import { openStorage } from '../../master/storage.ts';
import { granuleBytes } from '../../proto/granule.ts';
import { systemClock, systemEffects } from '../../proto/system.ts';
import { loopMount, missingForLoop } from '../loop.ts';
import { Dice } from '../sim/dice.ts';
import { none, put, writer } from '../unit/master/replica/blockreplica.ts';
import { long } from './world.ts';

const gib = 2 ** 30;
const uid = '11111111-2222-3333-4444-555555555555';
const dataGranules = 256;
const agingWrites = long ? 100_000 : 5000;

async function measure(folder: string, sizeBytes: number): Promise<{ fresh: number; aged: number }> {
  const driver = openStorage(
    { driver: 'directory', parameters: { path: `${folder}/class` } },
    systemEffects,
    systemClock,
  );
  const place = await driver.provision('rto', uid);
  const replica = await Replica.open({ effects: systemEffects, place, mode: 'Block' });
  try {
    const session = await replica.attach({ ...writer, sizeBytes });
    const step = Math.floor(sizeBytes / granuleBytes / dataGranules);
    const values = Object.fromEntries(Array.from({ length: dataGranules }, (_, i) => [i * step, (i % 250) + 1]));
    await put(replica, session, values, sizeBytes);
    await replica.advance(0, none);
    // Some journal behind the base, as in use.
    for (let i = 0; i < 16; i++) await put(replica, session, { [i]: i + 1, [i + 100]: i + 2 }, sizeBytes);
    const point = replica.newestPoint;
    if (!point) throw new Error('no point');
    const copy = async (): Promise<number> => {
      const path = `${folder}/copy`;
      const startMs = performance.now();
      await replica.recover(point, path, { verify: false, signal: none, progress: () => undefined });
      const file = openSync(path, 'r+');
      writeSync(file, 'mine', 0);
      closeSync(file);
      const seconds = (performance.now() - startMs) / 1000;
      rmSync(path);
      return seconds;
    };
    const median = async (): Promise<number> =>
      [await copy(), await copy(), await copy()].sort((a, b) => a - b)[1] ?? NaN;
    const fresh = await median();
    // Straight into the base's bytes: what counts here is how they lie, not what they are.
    const dice = new Dice(sizeBytes / gib);
    const base = openSync(`${place.folder}/base/image.raw`, 'r+');
    const block = Buffer.alloc(granuleBytes, 7);
    const within = Math.min(sizeBytes, 64 * gib) / granuleBytes;
    for (let i = 0; i < agingWrites; i++) writeSync(base, block, 0, block.length, dice.below(within) * granuleBytes);
    fsyncSync(base);
    closeSync(base);
    return { fresh, aged: await median() };
  } finally {
    await replica.close();
    await driver.remove(uid);
  }
}

function told(t: Test, what: string, { fresh, aged }: { fresh: number; aged: number }): void {
  const line = `${what}: fresh ${fresh.toFixed(2)} s, aged by ${agingWrites} writes ${aged.toFixed(2)} s`;
  t.ok(Number.isFinite(fresh) && Number.isFinite(aged), line);
  if (long) process.stderr.write(`rto  ${line}  (${availableParallelism()} cores)\n`);
}

t.test('a copy on reflink storage follows extents, not size', { skip: missingForLoop('xfs') }, async (t) => {
  const { mountPoint } = await loopMount(t, 'xfs', 20 * 1024, ['-m', 'reflink=1']);
  const small = await measure(mountPoint, gib);
  told(t, '1 GiB, XFS', small);
  const large = await measure(mountPoint, 100 * gib);
  told(t, '100 GiB sparse, XFS', large);
  if (long) told(t, '1 TiB sparse, XFS', await measure(mountPoint, 1024 * gib));
  t.ok(large.fresh < small.fresh * 20 + 5, 'a hundred times the size costs nothing like a hundred times the time');
});

t.test('where nothing is shared every byte is copied', { skip: missingForLoop('ext4') }, async (t) => {
  const { mountPoint } = await loopMount(t, 'ext4', long ? 6 * 1024 : 1024);
  told(t, '1 GiB, ext4', await measure(mountPoint, gib));
});
