/**
 * One seed from its start to its end: a time of faults, a time without in which everything must heal by itself, and then
 * every recovery point and snapshot compared with what the source was.
 */
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import type { Point } from '../../master/replica/horizon.ts';
import { Faults, staleWriter } from './faults.ts';
import { realFilesAtOnce } from './realfiles.ts';
import { advanceEveryMs, pointsText, replicaFolder, World, type WorldOptions } from './world.ts';

/** Of virtual time: mirroring must be well again this long after the last fault. */
const healMs = 180_000;

export interface Outcome {
  seed: number;
  violations: string[];
  counts: Record<string, number>;
  virtualSeconds: number;
}

export async function runSeed(seed: number, trace: (line: string) => void = () => undefined): Promise<Outcome> {
  return run(seed, scenario, { trace });
}

/**
 * A volume that cannot be held still and is written to without a pause: every cut is refused. What is sent meanwhile is many times
 * what the replica takes without a commit.
 */
export async function runRestless(seed: number): Promise<Outcome & { pointsMeanwhile: number }> {
  let pointsMeanwhile = 0;
  const outcome = await run(
    seed,
    async (world) => {
      world.assign({ cutIntervalSeconds: 1 });
      await world.prepare();
      world.startMaster();
      world.startAgent();
      await world.clock.runUntil(() => false, 60_000);
      pointsMeanwhile = world.counts.points;
      await converge(world);
      await verifyAll(world);
    },
    {
      given: {
        abilities: { freeze: false, reflink: false, stamp: true, restless: true },
        limits: { maxEpochBytes: 24 << 20 },
        sizeBytes: 40 * 65536,
      },
    },
  );
  return { ...outcome, pointsMeanwhile };
}

/** A verify finds and repairs damage, and its first cuts are refused. */
export async function runVerifyRefused(seed: number): Promise<Outcome> {
  return run(
    seed,
    async (world) => {
      const { clock, device, disk, checks } = world;
      world.assign({ cutIntervalSeconds: 1 });
      await world.prepare();
      world.startMaster();
      world.startAgent();
      await clock.runUntil(() => world.counts.points > 0, 60_000);
      const image = `${replicaFolder}/base/image.raw`;
      const content = (): number => disk.peek(image).findIndex((byte) => byte !== 0);
      await clock.runUntil(() => content() >= 0, 60_000);
      checks.rotten = true;
      disk.flip(image, content());
      world.assign({ verifyRequest: world.nextRequest() });
      await clock.runUntil(() => world.scrubbedBad !== undefined, 60_000);
      device.unrest();
      const refused = world.report?.cutsRefused ?? 0;
      await clock.runUntil(() => (world.report?.cutsRefused ?? 0) > refused, clock.nowMs + 60_000);
      device.stop();
      await clock.runUntil(() => world.assignment.verifyRequest === 0, clock.nowMs + 60_000);
    },
    { given: { abilities: { freeze: false, reflink: false, stamp: true, restless: false }, sizeBytes: 40 * 65536 } },
  );
}

async function run(
  seed: number,
  play: (world: World) => Promise<void>,
  { trace = () => undefined, given }: Partial<Pick<WorldOptions, 'trace' | 'given'>>,
): Promise<Outcome> {
  realFilesAtOnce();
  const indexRoot = mkdtempSync(`${existsSync('/dev/shm') ? '/dev/shm' : tmpdir()}/replica-sim-`);
  const world = new World({ seed, indexRoot, trace, given });
  const unhandled = (reason: unknown): void =>
    world.checks.violated('every failure is heard', reason instanceof Error ? (reason.stack ?? '') : String(reason));
  process.on('unhandledRejection', unhandled);
  try {
    await play(world);
    await world.end();
    await new Promise((resolve) => setImmediate(resolve));
  } catch (error) {
    world.checks.violated(
      'no assertion fails',
      error instanceof Error ? (error.stack ?? error.message) : String(error),
    );
  } finally {
    process.off('unhandledRejection', unhandled);
    rmSync(indexRoot, { recursive: true, force: true });
  }
  return {
    seed,
    violations: world.checks.violations,
    counts: {
      ...world.counts,
      ...world.checks.counts,
      ...world.network.counts,
      ...world.versions.counts,
      ...world.disk.counts,
      ...world.indexes.counts,
      ...world.faults,
    },
    virtualSeconds: world.clock.nowMs / 1000,
  };
}

async function scenario(world: World): Promise<void> {
  const { clock, dice, device } = world;
  world.trace(
    `volume of ${device.volume.sizeBytes} bytes, ${JSON.stringify(device.abilities)}, ` +
      `${JSON.stringify(world.limits)}, journal of ${world.journalSeconds} s`,
  );
  await world.prepare();
  world.startMaster();
  world.startAgent();
  const untilMs = dice.between(30_000, 120_000);
  const faults = new Faults(world);
  faults.begin();
  await clock.runUntil(() => false, untilMs);
  // A seed without a crash of its own proves little.
  if (world.counts.masterStarts === 1) world.crashMaster(true);
  await faults.heal();
  await converge(world);
  // While nothing else goes wrong, the journal is held to its length over it.
  world.setMasterClock(dice.pick([-86_400_000, 86_400_000]));
  await clock.runUntil(() => false, clock.nowMs + 2 * advanceEveryMs);
  await verifyAll(world);
  const { acknowledged, recovered } = world.checks.counts;
  if (acknowledged === 0 || recovered === 0 || world.counts.masterStarts === 1)
    world.checks.violated(
      'every seed commits, crashes and recovers',
      `${acknowledged} commits, ${world.counts.masterStarts} starts, ${recovered} recoveries`,
    );
}

/** Bounded: whatever was broken, a point with the source's present content comes by itself. */
async function converge(world: World): Promise<void> {
  const { clock, checks, device } = world;
  world.trace('healed; the workload stops');
  device.stop();
  // Anything written up to here must be in a point that is newer than it.
  const stoppedMs = clock.nowMs;
  const equal = (): boolean => {
    const replica = world.master?.replica;
    const point = replica?.newestPoint;
    return (
      point !== undefined &&
      world.assignment.resyncRequest === 0 &&
      point.digest.equals(world.presentDigest()) &&
      replica?.head.unknown === 0
    );
  };
  if (!(await clock.runUntil(equal, stoppedMs + healMs))) {
    const { report, master } = world;
    checks.violated(
      'mirroring heals by itself',
      `no point of the present content after ${healMs / 1000} s: phase ${report?.phase}, ` +
        `${JSON.stringify(report?.troubles)}, points ${master?.replica ? pointsText(master.replica) : 'none'}`,
    );
    return;
  }
  world.trace('converged');
  if (checks.rotten) await repair(world);
}

/** What rotted is found and fetched again: afterwards a verify finds nothing. */
async function repair(world: World): Promise<void> {
  const { clock, checks } = world;
  for (let round = 0; ; round++) {
    world.scrubbedBad = undefined;
    world.assign({ verifyRequest: world.nextRequest() });
    if (!(await clock.runUntil(() => world.assignment.verifyRequest === 0, clock.nowMs + healMs))) {
      checks.violated('verify ends', JSON.stringify(world.report?.troubles));
      return;
    }
    world.trace(`verify found ${String(world.scrubbedBad)} bad`);
    if (world.scrubbedBad === 0) return;
    if (round > 1) {
      checks.violated('verify repairs', `${String(world.scrubbedBad)} pieces are bad after ${round} repairs`);
      return;
    }
  }
}

async function verifyAll(world: World): Promise<void> {
  const { checks, clock } = world;
  const replica = world.master?.replica;
  const newest = replica?.newestPoint;
  if (!replica || !newest) return;
  await within(world, 'recovering every point', async () => {
    for (const point of [...replica.points]) {
      const isNewest = point === newest;
      const rotten = checks.rotten;
      if (isNewest) checks.rotten = false;
      await checks.recover(replica, point, { mustWork: isNewest, isStill: () => true });
      checks.rotten = rotten;
    }
    for (const [name, point] of world.snapshots) await checkSnapshot(world, name, point);
  });
  await within(world, 'a stale writer', () => staleWriter(world));
  const final = world.disk.paths().filter((path) => path.startsWith('/recoveries/'));
  if (final.length > 0 && world.counts.masterStarts === 1 && world.disk.counts.eio === 0)
    checks.violated('nothing is left behind', final.join(' '));
  if (world.device.openViews > 1) checks.violated('views are released', `${world.device.openViews} are open`);
  await clock.runUntil(() => false, clock.nowMs + 1);
}

async function checkSnapshot(world: World, name: string, expected: Point): Promise<void> {
  const { checks } = world;
  const replica = world.master?.replica;
  if (!replica) return;
  const point = replica.snapshotPoint(name);
  if (!point?.digest.equals(expected.digest)) {
    if (!checks.rotten) checks.violated('a snapshot survives', `${name} of point ${expected.sequence}`);
    return;
  }
  if (!checks.rotten) checks.compare(expected, world.disk.peek(`${replicaFolder}/snapshots/${name}/image.raw`));
  await checks.recover(replica, point, { mustWork: true, isStill: () => true });
}

/** Runs it to its end in virtual time. */
async function within(world: World, what: string, work: () => Promise<void>): Promise<void> {
  let ended = false;
  const working = work().finally(() => (ended = true));
  if (!(await world.clock.runUntil(() => ended, world.clock.nowMs + 600_000)))
    world.checks.violated('everything ends', what);
  else await working;
}
