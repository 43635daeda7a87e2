import { mkdir, rm } from 'node:fs/promises';
import t from 'tap';
import { commitOf } from '../../../agent/treescan.ts';
import { keepFork, forkIndex, runForks } from '../../../master/forks.ts';
import { TreeIndex } from '../../../master/replica/treeindex.ts';
import { restores } from '../../../master/restores.ts';
import { systemClock } from '../../../proto/system.ts';
import { addRecovery, addReplication, until, world } from './controllers.ts';

async function forked(t: Parameters<typeof world>[0]) {
  const made = await world(t);
  const { store, folder, emitter, signal } = made;
  const replication = addReplication(store, 'one', 'local', 'Filesystem');
  store.update('Replication', 'one', ({ spec }) => {
    spec.source.exclude = ['cache'];
  });
  await mkdir(`${folder}/forks`);
  const index = new TreeIndex(`${folder}/forks/made`);
  index.commit(commitOf(7, 0));
  index.close();
  const recovery = addRecovery(store, 'moved', 'one', '/copies/one', 'failover');
  const before = store.get('Replication', 'one') ?? replication;
  await keepFork(store, `${folder}/forks`, `${folder}/forks/made`, recovery, before, 7);
  const all = restores(() => undefined);
  const agent = { isConnected: true };
  const connected = (): boolean => agent.isConnected;
  const options = { store, clock: systemClock, events: emitter, restores: all, connected, folder: `${folder}/forks` };
  return {
    ...made,
    all,
    agent,
    kept: forkIndex(`${folder}/forks`, before),
    run: () => made.run(runForks(options, signal)),
  };
}

t.test('an agent that goes in the middle of the first comparison is asked again when it is back', async (t) => {
  const { all, agent, events, run } = await forked(t);
  run();
  const isAsked = (): boolean => all.restoresFor('node-a').length > 0;
  await until('its agent is asked', isAsked);
  t.match(all.restoresFor('node-a')[0], { compare: true, volumeMode: 'Filesystem', include: [], exclude: ['cache'] });
  agent.isConnected = false;
  await until('it is not waited for', () => !isAsked());
  agent.isConnected = true;
  await until('it is asked again', isAsked);
  t.strictSame(events, [], 'that is no trouble');
});

t.test('an index that is gone is told, and is not taken for one of nothing', async (t) => {
  const { store, kept, all, events, run } = await forked(t);
  await rm(kept);
  run();
  await until('it is told', () => events.some(({ code }) => code === 'ForkTrouble'));
  t.match(events[0]?.message, /the index of point 7 .* is gone/);
  t.equal(store.get('Replication', 'one')?.requests.fork?.found, null);
  t.strictSame(all.restoresFor('node-a'), []);
});
