import t, { type Test } from 'tap';
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { noise } from './content.ts';
import { long, openWorld, type SpecChange, type World } from './world.ts';

/**
 * What a process may hold beyond what it needs for a volume of 100 MiB. Windows, pools and caches have their limits (the
 * agent's pool is 64 MiB, a window 8 MiB); the rest is the garbage collector's freedom, which grows with the rate.
 */
const growthBytes = 120 * 2 ** 20;
const mostBytes = { agent: 420 * 2 ** 20, master: 420 * 2 ** 20 };

/** Different bytes in every granule, cheaply: one MiB of noise, numbered. */
function writeVolume(path: string, sizeBytes: number): void {
  const file = openSync(path, 'w');
  const piece = noise(2 ** 20);
  ftruncateSync(file, sizeBytes);
  for (let at = 0; at < sizeBytes; at += piece.length) {
    for (let inside = 0; inside < piece.length; inside += 65_536) piece.writeDoubleLE(at + inside, inside);
    writeSync(file, piece, 0, Math.min(piece.length, sizeBytes - at), at);
  }
  closeSync(file);
}

interface Peak {
  agent: number;
  master: number;
}

/** Mirrors a volume, verifies it, drills it; answers the most that each process held meanwhile. */
async function peakOf(world: World, sizeBytes: number, spec: SpecChange = {}): Promise<Peak> {
  const name = `size-${sizeBytes / 2 ** 20}`;
  const path = join(world.sources, name);
  writeVolume(path, sizeBytes);
  const peak = { agent: 0, master: 0 };
  const sample = () => {
    peak.agent = Math.max(peak.agent, world.agent.rssBytes());
    peak.master = Math.max(peak.master, world.master.rssBytes());
  };
  const timer = setInterval(sample, 50);
  try {
    await world.replicate(name, path, { journalSeconds: 0, ...spec });
    await world.normal(name, 0, 1200);
    await world.client.send('POST', `/replications/${name}/actions/verify`, {});
    await world.until('it is verified', async () => (await world.get(name)).status.lastVerifiedTime !== null, 600);
    const { status } = await world.drill(name);
    if (status.verified !== true) throw new Error(`the drill failed: ${status.message}`);
    await world.client.send('POST', `/recoveries/${(await lastRecovery(world)) ?? ''}/actions/rollback`, {});
  } finally {
    clearInterval(timer);
  }
  return peak;
}

async function lastRecovery(world: World): Promise<string | undefined> {
  const { items } = await world.client.list<{ metadata: { name: string } }>('/recoveries');
  return items.at(-1)?.metadata.name;
}

function told({ agent, master }: Peak): string {
  return `agent ${Math.round(agent / 2 ** 20)} MiB, master ${Math.round(master / 2 ** 20)} MiB`;
}

async function fresh(t: Test): Promise<World> {
  const world = await openWorld(t);
  await world.startAgent();
  return world;
}

t.test('memory does not grow with the volume', async (t) => {
  const small = await peakOf(await fresh(t), 100 * 2 ** 20);
  const sizes = long ? [3 * 2 ** 30, 20 * 2 ** 30] : [2 ** 30];
  t.comment(`100 MiB: ${told(small)}`);
  for (const size of sizes) {
    const large = await peakOf(await fresh(t), size);
    t.comment(`${size / 2 ** 20} MiB: ${told(large)}`);
    for (const side of ['agent', 'master'] as const) {
      t.ok(large[side] < small[side] + growthBytes, `${side}: ${size / 2 ** 20} MiB needs no more than 100 MiB`);
      t.ok(large[side] < mostBytes[side], `${side}: within its bound`);
    }
  }
});

t.test('memory does not grow when the line is slower than the source', async (t) => {
  const peak = await peakOf(await fresh(t), 200 * 2 ** 20, { bandwidthBytesPerSecond: 20 << 20 });
  t.comment(`200 MiB at 20 MiB/s: ${told(peak)}`);
  for (const side of ['agent', 'master'] as const) t.ok(peak[side] < mostBytes[side], `${side}: within its bound`);
});
