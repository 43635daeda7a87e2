import t from 'tap';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { sameBytes, writeNoise } from './content.ts';
import { killed, long, openWorld } from './world.ts';

t.test('a first copy that is cut off by kill -9 goes on where it was', async (t) => {
  const world = await openWorld(t, { proxied: true });
  const sizeBytes = (long ? 4096 : 512) * 2 ** 20;
  const source = join(world.sources, 'image');
  writeNoise(source, sizeBytes);
  await world.startAgent();
  await world.replicate('first', source, { compression: 'none', bandwidthBytesPerSecond: 150 << 20 });
  const copied = (part: number) =>
    world.until(
      `${part} of the first copy is done`,
      async () => {
        const { progress } = (await world.get('first')).status;
        return (progress?.bytesDone ?? 0) > part * sizeBytes;
      },
      120,
    );
  await copied(0.4);
  await killed(world, 'agent');
  await copied(0.7);
  await killed(world, 'master');
  await world.normal('first', 0, 120);
  const ratio = (world.proxy?.sentBytes ?? Infinity) / sizeBytes;
  t.comment(`sent ${ratio.toFixed(3)} times the volume`);
  t.ok(ratio < 1.35, 'only what is missing was sent again');
  const { path, recovery } = await world.copyOf('first');
  t.comment(`drill of ${sizeBytes / 2 ** 20} MiB: RTO ${recovery.status.rtoSeconds} s`);
  t.ok(sameBytes(source, path), 'the copy is the source');
});

t.test('a drill that is cut off by kill -9 of the master is done again and leaves nothing else', async (t) => {
  const world = await openWorld(t);
  const source = join(world.sources, 'image');
  writeNoise(source, 256 << 20);
  await world.startAgent();
  await world.replicate('drilled', source);
  await world.normal('drilled');
  const path = join(world.masterDir, 'recoveries', 'cut-off');
  const drill = world.drill('drilled', 'latest-data', path);
  await world.until('the copy has begun', async () => existsSync(path));
  await world.master.kill();
  await world.startMaster();
  const { status } = await drill;
  t.equal(status.outcome, 'success', String(status.message));
  t.equal(status.verified, true);
  t.ok(sameBytes(source, path));
});
