import t, { type Test } from 'tap';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { countIn, random, sameBytes, startWriter, writeNoise } from './content.ts';
import { killed, long, openWorld } from './world.ts';
import { chosenSeed } from '../seed.ts';

/** Names a run; REPLICATOR_SEED runs the same one again. */
const seed = chosenSeed();
const rounds = long ? 40 : 4;

for (const openReplicas of [500, 0]) {
  const name = openReplicas === 0 ? ', of a replica that is closed after each use,' : '';
  t.test(`kill -9 of either side or both under load${name} loses nothing acknowledged (seed ${seed})`, (t) =>
    killing(t, openReplicas),
  );
}

async function killing(t: Test, openReplicas: number): Promise<void> {
  const next = random(seed);
  const config = join(t.testdir({ 'c.yaml': `openReplicas: ${openReplicas}\n` }), 'c.yaml');
  const world = await openWorld(t, { masterFlags: ['--config', config] });
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
}
