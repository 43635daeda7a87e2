/** What tests ask of recoveries. */
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
