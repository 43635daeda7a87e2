/** What tests ask of recoveries. */
import { join } from 'node:path';
import type { Test } from 'tap';
import type { Recovery, RecoveryState } from '../../master/resources.ts';
import type { World } from './world.ts';

interface Named {
  metadata: { name: string };
}

export async function start(world: World, body: object): Promise<Recovery> {
  return world.client.send<Recovery>('POST', '/recoveries', body);
}

export function act(world: World, { metadata }: Named, action: string, force = false): Promise<Recovery> {
  return world.client.send<Recovery>('POST', `/recoveries/${metadata.name}/actions/${action}`, { force });
}

export function reaches(world: World, { metadata }: Named, ...states: RecoveryState[]): Promise<Recovery> {
  return world.until(
    `${metadata.name} is ${states.join(' or ')}`,
    async () => {
      const recovery = await world.client.get<Recovery>(`/recoveries/${metadata.name}`);
      return states.includes(recovery.status.state) && recovery;
    },
    120,
  );
}

/** Fails `name` over, and answers where the new side is, mirrored by `<name>-failback`. */
export async function movedAway(world: World, name: string, as = `${name}.raw`): Promise<string> {
  const path = join(world.dir, 'copies', as);
  const failover = await start(world, { replication: name, type: 'failover', target: { path } });
  await reaches(world, failover, 'Completed');
  await act(world, failover, 'confirm');
  await reaches(world, failover, 'Confirmed');
  await world.normal(`${name}-failback`, 0, 300);
  return path;
}

/** Refused until the node's own list names the path; the agent starts anew with it. */
export async function allowedToWrite(t: Test, world: World, recovery: object, path: string): Promise<void> {
  await t.rejects(start(world, recovery), /start the agent of its node with --allow-write/);
  await world.agent.stop();
  world.agentFlags.push('--allow-write', path);
  await world.startAgent();
}

export async function demoted(world: World, name: string): Promise<void> {
  await world.client.send('POST', `/replications/${name}/actions/demote`, {});
  await world.until(`${name} is demoted`, async () => (await world.get(name)).status.phase === 'Demoted', 120);
}
