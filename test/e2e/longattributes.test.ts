/** A tree whose attributes are many times as large as a message may be: mirrored, and told to an agent that lost its data. */
import t from 'tap';
import fs from 'node:fs';
import { join } from 'node:path';
import { loopMount, missingForLoop, run } from '../loop.ts';
import { openWorld, verified } from './world.ts';

const files = 150;
const attributeBytes = 60_000;

t.test('long attributes', { skip: missingForLoop('xfs') }, async (t) => {
  const { mountPoint } = await loopMount(t, 'xfs', 512);
  const tree = join(mountPoint, 'tree');
  fs.mkdirSync(tree);
  for (let n = 0; n < files; n++) {
    fs.writeFileSync(join(tree, `file-${n}`), `file ${n}`);
    run('setfattr', '-n', 'user.long', '-v', `${n}-`.padEnd(attributeBytes, 'x'), join(tree, `file-${n}`));
  }
  const world = await openWorld(t, { allow: [mountPoint] });
  await world.client.send('POST', '/storageclasses', {
    metadata: { name: 'big' },
    spec: { driver: 'directory', parameters: { path: join(mountPoint, 'class') } },
  });
  await world.startAgent();
  await world.replicate('tree', tree, { volumeMode: 'Filesystem', storageClass: 'big', rpoSeconds: 2 });
  await world.normal('tree', Date.now());
  await world.agent.kill();
  fs.rmSync(join(world.dir, 'a'), { recursive: true });
  await world.client.send('DELETE', '/agents/node-a');
  const before = await world.metric('sent_bytes_total', '"tree"');
  await world.startAgent();
  await world.normal('tree', Date.now());
  const sent = (await world.metric('sent_bytes_total', '"tree"')) - before;
  t.ok(sent < attributeBytes, `${sent} bytes: it was told all that the replica has`);
  run('setfattr', '-n', 'user.long', '-v', 'changed', join(tree, 'file-7'));
  await world.normal('tree', Date.now());
  await verified(world, 'tree');
  t.equal(await world.metric('verify_mismatched_bytes_total', '"tree"'), 0);
});
