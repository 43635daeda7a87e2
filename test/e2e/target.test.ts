import t from 'tap';
import {
  closeSync,
  copyFileSync,
  existsSync,
  fstatSync,
  ftruncateSync,
  openSync,
  readdirSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { isReplicaFolder } from '../../master/storage.ts';
import { loopMount, missingForLoop } from '../loop.ts';
import { noise, random, sameBytes, startWriter, writeNoise } from './content.ts';
import { long, openWorld } from './world.ts';

/** Takes all that is free. */
function fill(path: string): void {
  const file = openSync(path, 'a');
  try {
    for (const piece = noise(1 << 20); ;) writeSync(file, piece);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
  } finally {
    closeSync(file);
  }
}

function shorten(path: string, bytes: number): void {
  const file = openSync(path, 'r+');
  ftruncateSync(file, Math.max(0, fstatSync(file).size - bytes));
  closeSync(file);
}

for (const type of long ? ['ext4', 'xfs'] : ['xfs']) {
  t.test(`a full target (${type}) says so, loses nothing and goes on`, { skip: missingForLoop(type) }, async (t) => {
    const { mountPoint } = await loopMount(t, type, 400);
    const world = await openWorld(t);
    await world.client.send('POST', '/storageclasses', {
      metadata: { name: 'small' },
      spec: { driver: 'directory', parameters: { path: join(mountPoint, 'class') } },
    });
    const source = join(world.sources, 'image');
    writeNoise(source, 32 << 20);
    await world.startAgent();
    await world.replicate('full', source, { storageClass: 'small' });
    await world.normal('full');
    const before = await world.points('full');
    const writer = await startWriter(source, random(7), 300);
    t.teardown(() => writer.stop());
    const filler = join(mountPoint, 'filler');
    const lost = async () => {
      const now = new Map((await world.points('full')).map(({ sequence, digest }) => [sequence, digest]));
      return before.filter(({ sequence, digest }) => now.get(sequence) !== digest);
    };

    // Room for some more commits: the space runs out at different places each time.
    for (const left of [0, 300_000, 1_000_000]) {
      await world.normal('full', Date.now());
      before.splice(0, Infinity, ...(await world.points('full')));
      fill(filler);
      if (left > 0) shorten(filler, left);
      // Before that the forecast may have said so, with the state as it was.
      const { status } = await world.until(`${left} bytes left: mirroring stands still`, async () => {
        const replication = await world.degraded('full', 'SpaceLow');
        return replication.status.state === 'ERROR' && replication;
      });
      t.match(status.conditions.find(({ type }) => type === 'Degraded')?.message, /space/i);
      t.same(await lost(), [], 'no point is lost');
      rmSync(filler);
      await world.normal('full', Date.now());
      t.same(await lost(), [], 'nor afterwards');
    }

    await t.test('also when the master is killed while it is full', async (t) => {
      fill(filler);
      await world.degraded('full', 'SpaceLow');
      before.splice(0, Infinity, ...(await world.points('full')));
      await world.master.kill();
      await world.startMaster();
      await world.until('its replica is open', async () => (await world.points('full')).length > 0);
      t.same(await lost(), [], 'no point is lost while it is still full');
      rmSync(filler);
      await world.normal('full', Date.now());
      t.same(await lost(), [], 'nor afterwards');
    });

    await t.test('also when its index is behind the journal, as a power cut leaves it', async (t) => {
      await world.normal('full', Date.now());
      before.splice(0, Infinity, ...(await world.points('full')));
      await world.master.kill();
      const folder = join(mountPoint, 'class', readdirSync(join(mountPoint, 'class')).find(isReplicaFolder) ?? '');
      for (const suffix of ['', '-wal', '-shm']) {
        rmSync(join(folder, `head.db${suffix}`), { force: true });
        if (existsSync(join(folder, `base/index.db${suffix}`)))
          copyFileSync(join(folder, `base/index.db${suffix}`), join(folder, `head.db${suffix}`));
      }
      fill(filler);
      await world.startMaster();
      await world.degraded('full', 'SpaceLow');
      rmSync(filler);
      await world.normal('full', Date.now());
      t.same(await lost(), [], 'no point is lost');
    });

    await writer.stop();
    await world.normal('full', Date.now());
    const newest = await world.copyOf('full');
    t.ok(sameBytes(source, newest.path), 'the newest point is the source');
    for (const point of [before[0], before.at(-1)]) {
      const { recovery } = await world.copyOf('full', { time: point?.sourceTime ?? '' });
      t.equal(recovery.status.point?.digest, point?.digest, `point ${point?.sequence} is recovered`);
    }
  });
}
