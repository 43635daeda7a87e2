import t from 'tap';
import { createHash } from 'node:crypto';
import { readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { freezerRoots } from '../cgroup.ts';
import { loopDevice, missingForLoop } from '../loop.ts';
import { pod, whyNoMoment, writer } from './neverquiet.ts';
import { openWorld, type World } from './world.ts';

const roots = freezerRoots();
const skip = missingForLoop('ext4') || (roots.length === 0 && 'needs cgroups with a freezer');

const digest = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');

for (const version of roots) {
  const { name } = version;
  await t.test(`a raw device that is never quiet, its pod in a group of ${name}`, { skip }, async (t) => {
    const { device } = loopDevice(t, 16);
    const world = await openWorld(t, { allow: [device] });
    const kubelet = join(world.dir, 'kubelet');
    const { path, folder } = pod(t, version, kubelet, device);
    world.agentFlags.push('--kubelet', kubelet);
    writer(t, folder, device);
    await world.startAgent();
    await world.replicate('raw', path, { maxFreezeMs: 5000 });
    await t.test('every point is a moment at which no writer ran', async (t) => {
      await world.normal('raw');
      const from = (await world.points('raw')).length;
      await world.until('some more points', async () => (await world.points('raw')).length >= from + 4);
      t.ok((await world.metric('freeze_duration_seconds_count')) > 0, 'the stops are counted');
      const digests = new Set<string>();
      for (const point of (await world.points('raw')).slice(-4)) {
        t.equal(point.consistency, 'crash');
        const copy = await world.copyOf('raw', { time: point.sourceTime });
        const image = readFileSync(copy.path);
        t.equal(whyNoMoment(image), undefined, `point ${point.sequence}`);
        digests.add(digest(image));
        rmSync(copy.path, { force: true });
      }
      t.ok(digests.size > 1, 'it was written to');
    });

    await t.test('an agent killed while the writers stand: they go on', async (t) => {
      const events = join(folder, name === 'v2' ? 'cgroup.events' : 'freezer.state');
      const isStopped = (): boolean => /frozen 1|FROZEN/.test(readFileSync(events, 'utf8'));
      let seen = false;
      for (let tries = 0; tries < 20_000 && !seen; tries++) {
        seen = isStopped();
        if (!seen) await new Promise((resolve) => setTimeout(resolve, 1));
      }
      t.ok(seen, 'they stood');
      await world.agent.kill();
      await world.until('they run', async () => !isStopped());
      const before = writtenTo(device);
      await world.until('they write', async () => writtenTo(device) > before);
      await world.startAgent();
      await world.normal('raw', Date.now());
    });

    await t.test(
      'without the pod nobody is stopped, and a cut that finds no quiet moment is refused with the reason',
      async (t) => {
        await world.agent.stop();
        rmSync(join(kubelet, 'pods'), { recursive: true });
        await world.client.send('DELETE', '/replications/raw');
        await world.startAgent();
        await world.replicate('alone', device, { maxFreezeMs: 5000 });
        await refusedBecause(
          world,
          'alone',
          /written to while it was read; writers stopped: no pod of this node uses it/,
        );
        t.equal(await world.metric('freeze_duration_seconds_count', 'replication="alone"'), 0, 'nobody was stopped');
        t.ok((await world.metric('cuts_refused_total', 'replication="alone",reason="busy"')) > 0, 'counted');
      },
    );
  });
}

async function refusedBecause(world: World, name: string, why: RegExp): Promise<void> {
  await world.until(`${name} has no cut: ${why.source}`, async () => {
    const { status } = await world.get(name);
    const message = status.conditions.find(({ type, reason }) => type === 'Degraded' && reason === 'NoConsistentCut')?.message ?? ''; // prettier-ignore
    return why.test(message);
  });
}

/** Sectors, by the kernel. */
function writtenTo(device: string): number {
  const fields = readFileSync(`/sys/class/block/${device.replace('/dev/', '')}/stat`, 'utf8')
    .trim()
    .split(/\s+/);
  return Number(fields[6]);
}
