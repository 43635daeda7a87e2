/** Agent and master as in production, mutual TLS and all checks on; a replication is made, or goes on after a pause. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Recovery } from '../../master/resources.ts';
import { openWorld } from '../e2e/world.ts';
import type { Distance } from './distance.ts';
import type { Subject } from './subject.ts';
import type { Volume } from './volumes.ts';

const patience = 7200;

export interface Ours extends Subject {
  /** As `copy` does it for the first time, and it goes on. */
  begin(volume: Volume): Promise<void>;
  /** While it goes on: until there is a point with what the change did. The source must be at rest. */
  follow(change: () => void): Promise<void>;
  /** Of the agent's process, at most since it was started. */
  agentMiB(): number;
  /** The folder in which its replicas lie. */
  replicas: string;
  /** Mirrors from now on, not only for a copy. */
  goOn(): Promise<void>;
  /** Agent killed and started again: until there is a new point. */
  restart(volume: Volume): Promise<void>;
  /** Both sides read whole. */
  verify(volume: Volume): Promise<void>;
  /** A copy made and read whole. */
  drill(volume: Volume): Promise<void>;
}

/** @param folder of the volumes; the agent may read it */
export async function startOurs(folder: string, distance: Distance): Promise<Ours> {
  const endings: (() => unknown)[] = [];
  const world = await openWorld({ teardown: (end) => void endings.push(end) }, { allow: [folder], far: distance.far });
  await world.startAgent();
  let name = 'none';
  let serial = 0;
  let isMade = false;
  let isPaused = false;
  const act = (action: string) => world.client.send('POST', `/replications/${name}/actions/${action}`, {});

  async function begin(volume: Volume): Promise<void> {
    const volumeMode = volume.kind === 'image' ? 'Block' : 'Filesystem';
    await world.replicate(name, volume.path, { volumeMode, rpoSeconds: 1 });
    isMade = true;
    await world.normal(name, 0, patience);
  }

  async function goOn(): Promise<void> {
    const sinceMs = Date.now();
    await act('resume');
    isPaused = false;
    await world.normal(name, sinceMs, patience);
  }

  async function drill(): Promise<Recovery> {
    const recovery = await world.drill(name, 'latest-data', undefined, patience);
    if (recovery.status.verified !== true) throw new Error(`the copy is not verified: ${recovery.status.message}`);
    return recovery;
  }

  return {
    name: 'ours',
    command: 'replicator-agent and replicator-master, running; POST /replications, then resume after each change',
    wireBytes: () => distance.wireBytes(1),
    replicas: join(world.masterDir, 'volumes'),
    roots: () => [world.agent.pid, world.master.pid],
    async reset() {
      if (isMade) {
        await world.client.send('DELETE', `/replications/${name}`);
        const gone = name;
        await world.until('the replica is gone', async () => {
          const { items } = await world.client.list<{ metadata: { name: string } }>('/replications');
          return !items.some(({ metadata }) => metadata.name === gone);
        });
      }
      name = `bench-${++serial}`;
      [isMade, isPaused] = [false, false];
    },
    begin,
    async follow(change) {
      const newest = async (): Promise<number> => (await world.get(name)).status.recoveryPoint?.sequence ?? 0;
      const before = await newest();
      change();
      await world.until('a point with the change', async () => (await newest()) > before, patience);
    },
    agentMiB() {
      const status = readFileSync(`/proc/${world.agent.pid}/status`, 'utf8');
      return Math.round(Number(/VmHWM:\s+(\d+)/.exec(status)?.[1] ?? NaN) / 1024);
    },
    goOn,
    async copy(volume) {
      await (isPaused ? goOn() : begin(volume));
      await act('pause');
      isPaused = true;
    },
    async check() {
      const recovery = await drill();
      const path = `/recoveries/${recovery.metadata.name}`;
      await world.client.send('POST', `${path}/actions/rollback`, {});
      // Until then it refers to the replication, which could not be deleted.
      await world.until('the copy is gone', async () => {
        const { status } = await world.client.get<Recovery>(path);
        return status.state === 'RolledBack';
      });
    },
    async restart() {
      const sinceMs = Date.now();
      await world.agent.kill();
      world.agent.start();
      await world.normal(name, sinceMs, patience);
    },
    async verify() {
      const before = (await world.get(name)).status.lastVerifiedTime;
      await act('verify');
      await world.until(
        'it is verified',
        async () => (await world.get(name)).status.lastVerifiedTime !== before,
        patience,
      );
    },
    async drill() {
      await drill();
    },
    async stop() {
      // Not killed: a profile is written at the end (`--profile`).
      await world.agent.stop();
      await world.master.stop();
      for (const end of endings.reverse()) await end();
    },
  };
}
