/** A tree in a btrfs that others use too, so that it cannot be frozen: points from snapshots, while it is written to. */
import t from 'tap';
import fs from 'node:fs';
import { join } from 'node:path';
import { loopMount, missingForLoop, run } from '../loop.ts';
import { random } from './content.ts';
import { addOddities, missingRsync, rsyncDifferences, startTreeWriter } from './treevolume.ts';
import { killed, long, openWorld } from './world.ts';
import { chosenSeed } from '../seed.ts';

t.setTimeout(900_000);
const seed = chosenSeed();

t.test(
  `points of a subvolume are crash-consistent and what it was (seed ${seed})`,
  { skip: missingRsync || missingForLoop('btrfs') || (!long && 'long: npm run e2e -- treesnapshot') },
  async (t) => {
    const { mountPoint } = await loopMount(t, 'btrfs', 1024);
    const source = join(mountPoint, 'volume');
    run('btrfs', 'subvolume', 'create', source);
    const snapshots = () => fs.readdirSync(join(mountPoint, '.cdm-replicator'));
    const world = await openWorld(t, { allow: [mountPoint] });
    await addOddities(source);
    await world.startAgent();
    await world.replicate('shared', source, { volumeMode: 'Filesystem', rpoSeconds: 2 });
    await world.normal('shared');
    const writer = startTreeWriter(source, random(seed));
    for (let round = 0; round < 5; round++) {
      const { sequence } = (await world.get('shared')).status.recoveryPoint ?? { sequence: 0 };
      await world.until('points under the writer', async () => {
        return ((await world.get('shared')).status.recoveryPoint?.sequence ?? 0) > sequence + 2;
      });
      await killed(world, 'agent');
    }
    await writer.stop();
    await world.normal('shared', Date.now(), 120);
    const { path, recovery } = await world.copyOf('shared');
    t.same(rsyncDifferences(source, path), []);
    t.equal(recovery.status.point?.consistency, 'crash');
    const told = (await world.events()).find(({ code }) => code === 'CutWay');
    t.match(told?.message, /consistency crash: read from btrfs snapshots. No freeze: .*is not the root/);
    await world.client.send('DELETE', '/replications/shared');
    await world.until('no snapshot is left', async () => snapshots().length === 0);
  },
);
