import t from 'tap';
import { closeSync, globSync, openSync, readdirSync, statSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { noise, readAt, sameBytes, writeNoise } from './content.ts';
import { openWorld, type World } from './world.ts';

async function verified(world: World, name: string): Promise<void> {
  const before = (await world.get(name)).status.lastVerifiedTime;
  await world.client.send('POST', `/replications/${name}/actions/verify`, {});
  await world.until(
    `${name} is verified`,
    async () => {
      const { lastVerifiedTime } = (await world.get(name)).status;
      return lastVerifiedTime !== before && lastVerifiedTime !== null;
    },
    60,
  );
}

t.test('verify finds what rotted in the replica, tells and repairs it', async (t) => {
  const world = await openWorld(t);
  const source = join(world.sources, 'image');
  const sizeBytes = 24 << 20;
  writeNoise(source, sizeBytes);
  await world.startAgent();
  await world.replicate('rot', source);
  await world.normal('rot');
  // Beside it lies the mark of the master that has the storage.
  const folder = readdirSync(join(world.masterDir, 'volumes')).find((name) => !name.startsWith('.')) ?? '';
  const image = join(world.masterDir, 'volumes', folder, 'base/image.raw');
  await world.until('the first copy is in the image', async () => statSync(image).size === sizeBytes);
  const codes = async () => (await world.events()).map(({ code }) => code);

  await t.test('a whole replica is told to be equal', async (t) => {
    await verified(world, 'rot');
    t.ok((await codes()).includes('VerifyCompleted'));
    t.notOk((await codes()).includes('VerifyMismatch'));
  });

  await t.test('damage in the image', async (t) => {
    const file = openSync(image, 'r+');
    const offsets = [5, 65_536 * 17, 65_536 * 100 + 4096, sizeBytes - 1];
    for (const offset of offsets) writeSync(file, Buffer.from([readAt(image, offset, 1)[0]! ^ 0x55]), 0, 1, offset);
    writeSync(file, noise(3 * 65_536), 0, null, 65_536 * 200);
    closeSync(file);
    const damaged = await world.drill('rot');
    t.equal(damaged.status.outcome, 'failed', 'a drill does not hand out what is damaged');
    t.match(damaged.status.message, /not as they were mirrored/);
    await verified(world, 'rot');
    t.ok((await codes()).includes('ReplicaDamaged'));
    t.ok((await codes()).includes('VerifyMismatch'));
    t.equal(await world.metric('verify_mismatched_bytes_total', '"rot"'), 7 * 65_536);
    const { path } = await world.copyOf('rot');
    t.ok(sameBytes(source, path), 'the newest point is the source again');
    t.equal((await world.get('rot')).status.state, 'NORMAL');
  });

  await t.test('damage in the journal', async (t) => {
    const changed = openSync(source, 'r+');
    writeSync(changed, noise(1 << 20), 0, null, 8 << 20);
    closeSync(changed);
    await world.normal('rot', Date.now());
    const journals = globSync(join(world.masterDir, 'volumes', folder, 'journal/*.log')).sort();
    const newest = journals.at(-1) ?? '';
    const file = openSync(newest, 'r+');
    const at = Math.floor(statSync(newest).size - (1 << 19));
    writeSync(file, noise(1000), 0, null, at);
    closeSync(file);
    await verified(world, 'rot');
    const { path } = await world.copyOf('rot');
    t.ok(sameBytes(source, path), 'the newest point is the source again');
  });

  await t.test('what verify repaired outlives a crash of the master', async (t) => {
    await world.master.kill();
    await world.startMaster();
    await world.normal('rot', Date.now());
    const { path } = await world.copyOf('rot');
    t.ok(sameBytes(source, path));
  });
});
