import t from 'tap';
import { statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { missingForLoop, run } from '../loop.ts';
import { readAt, sameBytes, writeNoise, writeSparse } from './content.ts';
import { openWorld } from './world.ts';

t.test('images of any size are copied byte for byte', async (t) => {
  const world = await openWorld(t);
  await world.startAgent();
  const sizes = [0, 1, 511, 65_535, 65_536, 65_537, 1_048_577, 16 * 1_048_576 + 4097];
  for (const size of sizes) {
    const path = join(world.sources, `image-${size}`);
    writeNoise(path, size);
    await world.replicate(`size-${size}`, path);
  }
  for (const size of sizes) {
    await world.normal(`size-${size}`);
    const { path } = await world.copyOf(`size-${size}`);
    t.equal(statSync(path).size, size, `${size} bytes: the copy has the size`);
    t.ok(sameBytes(join(world.sources, `image-${size}`), path), `${size} bytes: and the bytes`);
  }
});

t.test('a sparse image of 1 TiB takes seconds', async (t) => {
  const world = await openWorld(t);
  await world.startAgent();
  const size = 2 ** 40 - 12_345;
  const offsets = [0, 7 * 65_536, 2 ** 39 + 4096, size - 65_000];
  const source = join(world.sources, 'sparse');
  writeSparse(source, size, offsets);
  const startMs = performance.now();
  await world.replicate('sparse', source);
  await world.normal('sparse');
  const copiedMs = performance.now() - startMs;
  const { path, recovery } = await world.copyOf('sparse');
  const drilledMs = performance.now() - startMs - copiedMs;
  t.comment(
    `first copy ${Math.round(copiedMs)} ms, drill ${Math.round(drilledMs)} ms, RTO ${recovery.status.rtoSeconds} s`,
  );
  t.ok(copiedMs < 20_000, 'first copy');
  t.ok(drilledMs < 20_000, 'drill, verified');
  const { size: copied, blocks } = statSync(path);
  t.equal(copied, size);
  t.ok(blocks * 512 < 8 << 20, 'the copy is as sparse');
  for (const offset of offsets) t.same(readAt(path, offset, 65_536), readAt(source, offset, 65_536), `at ${offset}`);
  t.ok((await world.metric('sent_bytes_total', '"sparse"')) < 1 << 20, 'holes are not sent');
});

t.test('a block device is read past its page cache', { skip: missingForLoop('ext4') }, async (t) => {
  const directory = t.testdir();
  const image = join(directory, 'backing');
  writeNoise(image, 24 * 1_048_576 + 512 * 7);
  const device = run('losetup', '--find', '--show', image).trim();
  t.teardown(() => run('losetup', '--detach', device));
  const world = await openWorld(t, { allow: [device] });
  await world.startAgent();
  await world.replicate('device', device);
  await world.normal('device');
  const first = await world.copyOf('device');
  t.ok(sameBytes(device, first.path), 'first copy');
  writeFileSync(device, 'changed', { flag: 'r+', flush: true });
  const changedMs = Date.now();
  await world.normal('device', changedMs);
  const second = await world.copyOf('device');
  t.ok(sameBytes(device, second.path), 'and after a change');
  t.equal(second.recovery.status.point?.consistency, 'crash');
});
