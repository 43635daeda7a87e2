import t from 'tap';
import { mkdirSync, renameSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { spawnSync } from 'node:child_process';
import { loopDevice, missingForLoop, run } from '../loop.ts';
import { copyKeeping, differingBlocks, sameBytes, writeNoise } from './content.ts';
import { openWorld } from './world.ts';

const mkfs = spawnSync('sh', ['-c', 'command -v mkfs.ext4']).status === 0;

t.test('a source that goes wrong stops with a reason and harms no copy', async (t) => {
  const world = await openWorld(t);
  const source = join(world.sources, 'image');
  const aside = join(world.sources, 'aside');
  const kept = join(world.dir, 'kept');
  writeNoise(source, 8 << 20);
  await world.startAgent();
  await world.replicate('source', source);
  await world.normal('source');
  copyKeeping(source, kept);
  const messageOf = async () =>
    (await world.get('source')).status.conditions.find(({ type }) => type === 'Degraded')?.message ?? '';
  const keptStill = async () => sameBytes(kept, (await world.copyOf('source')).path);

  await t.test('vanished: SourceGone, and on by itself when it is back', async (t) => {
    renameSync(source, aside);
    const { status } = await world.degraded('source', 'SourceGone');
    t.equal(status.state, 'ERROR');
    t.match(await messageOf(), /image does not exist/);
    t.ok(await keptStill(), 'the copy is as it was');
    renameSync(aside, source);
    await world.normal('source', Date.now());
    t.ok(await keptStill());
  });

  await t.test('grown: mirrored as it is', async (t) => {
    truncateSync(source, (9 << 20) + 777);
    writeFileSync(source, 'grown', { flag: 'a' });
    await world.normal('source', Date.now());
    const { path } = await world.copyOf('source');
    t.ok(sameBytes(source, path), 'the new size and bytes');
    copyKeeping(source, kept);
  });

  await t.test('shrunk: SourceShrunk until it has its size again', async (t) => {
    truncateSync(source, 1 << 20);
    const { status } = await world.degraded('source', 'SourceShrunk');
    t.equal(status.state, 'ERROR');
    t.match(await messageOf(), /resync with force/);
    t.ok(await keptStill(), 'the loss is not mirrored');
    copyKeeping(kept, aside);
    run('dd', `if=${aside}`, `of=${source}`, 'bs=1M', 'conv=notrunc', 'status=none');
    await world.normal('source', Date.now());
    t.ok(await keptStill());
  });

  await t.test('shrunk for good: resync with force makes the copy as small', async (t) => {
    truncateSync(source, (1 << 20) + 5);
    await world.degraded('source', 'SourceShrunk');
    await world.client.send('POST', '/replications/source/actions/resync', {});
    await world.degraded('source', 'SourceShrunk');
    const before = await world.points('source');
    await world.client.send('POST', '/replications/source/actions/resync', { force: true });
    await world.normal('source', Date.now());
    const { path } = await world.copyOf('source');
    t.ok(sameBytes(source, path), 'the newest point is the small source');
    const old = before.at(-1);
    if (!old) throw new Error('there was a point');
    const older = await world.copyOf('source', { time: old.sourceTime });
    t.ok(sameBytes(kept, older.path), 'and the points before are still what they were');
    copyKeeping(source, kept);
  });

  await t.test('replaced by another file: SourceChanged, back again: goes on', async (t) => {
    renameSync(source, aside);
    writeNoise(source, 8 << 20);
    const { status } = await world.degraded('source', 'SourceChanged');
    t.equal(status.state, 'ERROR');
    t.match(await messageOf(), /resync with force/);
    t.ok(await keptStill(), 'the replacement is not mirrored');
    renameSync(aside, source);
    await world.normal('source', Date.now());
    t.ok(await keptStill());
  });

  await t.test('formatted: SourceChanged until resync with force', { skip: !mkfs && 'needs mkfs.ext4' }, async (t) => {
    truncateSync(source, 8 << 20);
    await world.normal('source', Date.now());
    run('mkfs.ext4', '-q', '-F', source);
    await world.degraded('source', 'SourceChanged');
    await world.client.send('POST', '/replications/source/actions/resync', { force: true });
    await world.normal('source', Date.now());
    const { path } = await world.copyOf('source');
    t.ok(sameBytes(source, path));
  });

  await t.test('a directory in its place: told, not mirrored', async (t) => {
    renameSync(source, aside);
    mkdirSync(source);
    const { status } = await world.degraded('source', 'SourceRefused');
    t.equal(status.state, 'ERROR');
    t.match(await messageOf(), /neither a file nor a block device/);
  });
});

t.test('a block device that grows is followed, one that shrinks stops', { skip: missingForLoop('ext4') }, async (t) => {
  const { device, image } = loopDevice(t, 16);
  const resize = (mebibytes: number): void => {
    truncateSync(image, mebibytes << 20);
    run('losetup', '--set-capacity', device);
  };
  const writeAt = (mebibyte: number): void =>
    void run('dd', 'if=/dev/urandom', `of=${device}`, 'bs=1M', 'count=1', `seek=${mebibyte}`, 'oflag=direct', 'status=none'); // prettier-ignore
  const world = await openWorld(t, { allow: [device] });
  const copied = async (): Promise<void> => {
    await world.normal('device', Date.now());
    run('blockdev', '--flushbufs', device);
    t.equal(differingBlocks(device, (await world.copyOf('device')).path), '', 'byte for byte');
  };
  writeAt(3);
  await world.startAgent();
  await world.replicate('device', device);
  const { status } = await world.normal('device');
  // The agent tells of it a moment after the commit.
  const scans = await world.until(
    'the first copy is counted',
    async () => (await world.metric('full_scans_total')) || false,
  );
  resize(24);
  writeAt(20);
  await copied();
  if (status.captureMethod === 'ftrace') t.equal(await world.metric('full_scans_total'), scans, 'not read whole');
  resize(12);
  await world.degraded('device', 'SourceShrunk');
  resize(24);
  await copied();
});
