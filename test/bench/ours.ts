/** Agent and master as in production, mutual TLS and all checks on; a replication is made, or goes on after a pause. */
import type { Recovery } from '../../master/resources.ts';
import { openWorld } from '../e2e/world.ts';
import type { Subject } from './subject.ts';
import type { Volume } from './volumes.ts';

export interface Ours extends Subject {
  /** Agent killed and started again: until there is a new point. */
  restart(volume: Volume): Promise<void>;
  /** Both sides read whole. */
  verify(volume: Volume): Promise<void>;
  /** A copy made and read whole. */
  drill(volume: Volume): Promise<void>;
}

/** @param folder of the volumes; the agent may read it */
export async function startOurs(folder: string): Promise<Ours> {
  const endings: (() => unknown)[] = [];
  const world = await openWorld({ teardown: (end) => void endings.push(end) }, { allow: [folder] });
  await world.startAgent();
  let name = 'none';
  let serial = 0;
  let isMade = false;
  let isPaused = false;
  const act = (action: string) => world.client.send('POST', `/replications/${name}/actions/${action}`, {});

  async function drill(): Promise<Recovery> {
    const recovery = await world.drill(name);
    if (recovery.status.verified !== true) throw new Error(`the copy is not verified: ${recovery.status.message}`);
    return recovery;
  }

  return {
    name: 'ours',
    command: 'replicator-agent and replicator-master, running; POST /replications, then resume after each change',
    hops: 1,
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
    async copy(volume) {
      const sinceMs = Date.now();
      if (isPaused) await act('resume');
      else
        await world.replicate(name, volume.path, {
          volumeMode: volume.kind === 'image' ? 'Block' : 'Filesystem',
          rpoSeconds: 1,
        });
      isMade = true;
      await world.normal(name, sinceMs, 3600);
      await act('pause');
      isPaused = true;
    },
    async check() {
      const recovery = await drill();
      await world.client.send('POST', `/recoveries/${recovery.metadata.name}/actions/rollback`, {});
    },
    async restart() {
      const sinceMs = Date.now();
      await world.agent.kill();
      world.agent.start();
      await world.normal(name, sinceMs, 3600);
    },
    async verify() {
      const before = (await world.get(name)).status.lastVerifiedTime;
      await act('verify');
      await world.until('it is verified', async () => (await world.get(name)).status.lastVerifiedTime !== before, 3600);
    },
    async drill() {
      await drill();
    },
    async stop() {
      for (const end of endings.reverse()) await end();
    },
  };
}
