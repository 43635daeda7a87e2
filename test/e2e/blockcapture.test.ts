import t from 'tap';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { openTracefs, removeInstance } from '../../agent/capture/tracefs.ts';
import { traceInstance } from '../../agent/trackings.ts';
import { messageOf } from '../../proto/errors.ts';
import { loopMount, missingForLoop, run, unmountWhole } from '../loop.ts';
import { differingBlocks, noise } from './content.ts';
import { long, openWorld, type World } from './world.ts';

function missing(type: string): string | false {
  const loop = missingForLoop(type);
  if (loop !== false) return loop;
  try {
    openTracefs({ instance: 'cdmr-probe' }).close();
    removeInstance('cdmr-probe');
    return false;
  } catch (error) {
    return messageOf(error);
  }
}

/** Mounted once, so that the log is replayed as a recovery would, then checked. Empty = nothing is wrong. */
function whyNotWhole(type: string, image: string): string {
  const place = `${image}.mounted`;
  mkdirSync(place);
  run('mount', '-o', type === 'xfs' ? 'loop,nouuid' : 'loop', image, place);
  run('umount', place);
  const check = type === 'xfs' ? ['xfs_repair', '-n', image] : ['e2fsck', '-fn', image];
  const { status, stdout, stderr } = spawnSync(check[0] ?? '', check.slice(1), { encoding: 'utf8' });
  return status === 0 ? '' : `${stdout}${stderr}`;
}

async function captureEvents(world: World): Promise<string[]> {
  const events = await world.events();
  return events.filter(({ code }) => code.startsWith('Capture')).map(({ code, message }) => `${code}: ${message}`);
}

/** As many writes in both forms. */
const awaySeconds = long ? 60 : 3;
const awayWrites = 300;

for (const type of long ? ['ext4', 'xfs'] : ['xfs']) {
  await t.test(`a mounted ${type} on a block device is traced`, { skip: missing(type) }, async (t) => {
    const { device, mountPoint } = await loopMount(t, type, 400);
    const world = await openWorld(t, { allow: [device] });
    const write = (name: string, mebibytes: number): void => {
      writeFileSync(join(mountPoint, name), noise(mebibytes << 20));
    };
    const scans = (): Promise<number> => world.metric('full_scans_total');
    await world.startAgent();
    // On a busy machine freezing alone takes longer than the default allows.
    await world.replicate('traced', device, { maxFreezeMs: 10_000 });
    const first = await world.normal('traced');
    t.equal(first.status.captureMethod, 'ftrace');

    await t.test('each change comes at a frozen instant, and nothing else is read', async (t) => {
      const [scansBefore, readBefore] = [await scans(), await world.metric('read_bytes_total')];
      for (let i = 0; i < 4; i++) {
        write(`file ${i}`, 3);
        const { status } = await world.normal('traced', Date.now());
        t.equal(status.recoveryPoint?.consistency, 'filesystem');
      }
      const told = (await world.events()).filter(({ code }) => code === 'CutWay').map(({ message }) => message);
      t.ok(
        told.some((one) => one.startsWith('points have consistency filesystem: freeze and read; freeze and reflink: ')),
        `and why not better: ${told.join('\n')}`,
      );
      t.equal(await scans(), scansBefore, `no scan: ${(await captureEvents(world)).join('; ')}`);
      const read = async (): Promise<number> => (await world.metric('read_bytes_total')) - readBefore;
      await world.until('what was read is told', async () => (await read()) >= 12 << 20);
      t.ok((await read()) < 100 << 20, `${await read()} bytes`);
    });

    for (const how of ['kill', 'stop'] as const) {
      await t.test(`what is written while the agent is down (${how}) is known when it comes again`, async (t) => {
        const [scansBefore, eventsBefore] = [await scans(), (await captureEvents(world)).length];
        await world.agent[how]();
        for (let number = 0; number < awayWrites; number++) {
          writeFileSync(join(mountPoint, `away ${number % 50}`), noise(16 << 10), { flush: true });
          await sleep((awaySeconds * 1000) / awayWrites);
        }
        spawnSync('sync', ['--file-system', mountPoint]);
        await world.startAgent();
        const { status } = await world.normal('traced', Date.now());
        t.equal(status.captureMethod, 'ftrace');
        const path = await world.until('the event that says how it was known', async () =>
          (await captureEvents(world)).slice(0, -eventsBefore).find((one) => one.startsWith('Capture')),
        );
        t.match(path, /CaptureResumed: .* the ring brought/);
        t.equal(await scans(), scansBefore, 'nothing is read whole');
        const copy = await world.copyOf('traced');
        const place = `${copy.path}.compared`;
        mkdirSync(place);
        run('mount', '-o', type === 'xfs' ? 'loop,nouuid' : 'loop', copy.path, place);
        const { stdout } = spawnSync('diff', ['-r', '--exclude=lost+found', mountPoint, place], { encoding: 'utf8' });
        run('umount', place);
        t.equal(stdout, '', 'nothing is missing');
      });
    }

    await t.test('a writer without pause: every point is a filesystem that is whole', async (t) => {
      const writer = spawn('sh', [
        '-c',
        `i=0; while :; do i=$((i+1)); dd if=/dev/urandom of=${mountPoint}/w$((i % 7)) bs=64k count=$((i % 40 + 1)) conv=fsync status=none; sleep 0.1; done`,
      ]);
      t.teardown(() => writer.kill('SIGKILL'));
      const from = (await world.points('traced')).length;
      await world.until('some more points', async () => (await world.points('traced')).length >= from + 4, 120);
      writer.kill('SIGKILL');
      await once(writer, 'exit');
      for (const { sequence, sourceTime } of (await world.points('traced')).slice(-3)) {
        const { path } = await world.copyOf('traced', { time: sourceTime });
        t.equal(whyNotWhole(type, path), '', `point ${sequence}`);
      }
    });

    unmountWhole(mountPoint);
    await world.normal('traced', Date.now());
    const { path } = await world.copyOf('traced');
    // What others have looked at meanwhile may lie in the device's cache as it was before the filesystem wrote it.
    run('blockdev', '--flushbufs', device);
    t.equal(differingBlocks(device, path), '', 'byte for byte');
    t.equal(await world.metric('capture_lost_events_total'), 0);

    await t.test('nothing stays of a replication that is deleted', async (t) => {
      const instance = `/sys/kernel/tracing/instances/${traceInstance(join(world.dir, 'a'))}`;
      t.ok(existsSync(instance));
      await world.client.send('DELETE', '/replications/traced');
      await world.until('tracing ends', async () => !existsSync(instance));
      await world.until('the map is gone', async () => readdirSync(join(world.dir, 'a/replications')).length === 0);
    });
  });
}

await t.test('the clone of an image goes with its replication', { skip: missingForLoop('xfs') }, async (t) => {
  const { mountPoint } = await loopMount(t, 'xfs', 400);
  const image = join(mountPoint, 'image');
  writeFileSync(image, noise(8 << 20));
  const world = await openWorld(t, { allow: [image] });
  const clones = join(mountPoint, '.cdm-replicator');
  await world.startAgent();
  for (const name of ['one', 'other']) {
    await world.replicate(name, image);
    t.equal((await world.normal(name)).status.captureMethod, 'extents');
  }
  t.equal(readdirSync(clones).length, 2);
  await world.client.send('DELETE', '/replications/one');
  await world.until('its clone is gone, and only that', async () => readdirSync(clones).length === 1);
  await world.agent.kill();
  await world.client.send('DELETE', '/replications/other');
  await world.startAgent();
  await world.until('also where the agent was away', async () => !existsSync(clones));
});
