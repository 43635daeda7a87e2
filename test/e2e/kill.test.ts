import t from 'tap';
import { existsSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { countIn, random, sameBytes, startWriter, writeNoise } from './content.ts';
import { long, openWorld, type World } from './world.ts';

/** Names a run; REPLICATOR_SEED runs the same one again. */
const seed = Number(process.env['REPLICATOR_SEED'] ?? Math.floor(Math.random() * 2 ** 31));
const rounds = long ? 40 : 8;

async function killed(world: World, who: 'agent' | 'master' | 'both'): Promise<void> {
  if (who !== 'agent') await world.master.kill();
  if (who !== 'master') await world.agent.kill();
  if (who !== 'agent') await world.startMaster();
  if (who !== 'master') world.agent.start();
}

t.test(`kill -9 of either side or both under load loses nothing acknowledged (seed ${seed})`, async (t) => {
  const next = random(seed);
  const world = await openWorld(t);
  const source = join(world.sources, 'image');
  writeNoise(source, 48 << 20);
  await world.startAgent();
  await world.replicate('killed', source, { rpoSeconds: 2 });
  await world.normal('killed');
  const writer = await startWriter(source, next);
  t.teardown(() => writer.stop());
  const reported = new Map<number, string>();

  for (let round = 1; round <= rounds; round++) {
    for (let endMs = Date.now() + 1500 * next(); Date.now() < endMs;) {
      for (const { sequence, digest } of await world.points('killed')) reported.set(sequence, digest);
      await sleep(10);
    }
    const who = (['agent', 'master', 'both'] as const)[Math.floor(next() * 3)] ?? 'both';
    await killed(world, who);
    const backMs = Date.now();
    const { status } = await world.normal('killed', backMs);
    const points = new Map((await world.points('killed')).map(({ sequence, digest }) => [sequence, digest]));
    const lost = [...reported].filter(([sequence, digest]) => points.get(sequence) !== digest);
    t.same(lost, [], `round ${round}, ${who} killed: every point reported before is there, as it was`);
    t.ok((status.recoveryPoint?.sequence ?? 0) > Math.max(...reported.keys()), 'and a newer one');
    const sequences = [...points.keys()];
    const chosen = sequences[Math.floor(next() * sequences.length)];
    const point = (await world.points('killed')).find(({ sequence }) => sequence === chosen);
    if (!point) throw new Error('a point went away within its journal time');
    const { path, recovery } = await world.copyOf('killed', { time: point.sourceTime });
    t.equal(recovery.status.point?.digest, point.digest, `point ${chosen} is recovered and verified`);
    const held = countIn(path);
    const written = writer.countBefore(Date.parse(point.sourceTime));
    if (held < written) t.fail(`the copy holds write ${held}, but ${written} was before ${point.sourceTime}`);
    rmSync(path);
  }

  await writer.stop();
  await world.normal('killed', Date.now());
  const { path } = await world.copyOf('killed');
  t.ok(sameBytes(source, path), `after ${writer.writes} writes the copy of the resting source is the source`);
});

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
