/** A tree on a filesystem that changes where no event of this kernel tells of it: here FUSE over a directory, for want of NFS. */
import t from 'tap';
import { spawnSync } from 'node:child_process';
import { appendFileSync, existsSync, mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openWorld } from './world.ts';

const has = (program: string): boolean => spawnSync('sh', ['-c', `command -v ${program}`]).status === 0;
const missing =
  process.getuid?.() !== 0 || !existsSync('/dev/fuse')
    ? 'needs root and FUSE'
    : !has('bindfs') && 'needs bindfs (apt-get install bindfs)';

t.test('what is changed on the server itself is found by scans alone, which is said', { skip: missing }, async (t) => {
  const world = await openWorld(t);
  const [server, source] = [join(world.dir, 'server'), join(world.sources, 'mounted')];
  for (const path of [server, source]) mkdirSync(path);
  for (let at = 0; at < 300; at++) {
    const folder = join(server, `d${at % 10}`);
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, `f${at}`), `content ${at}`);
  }
  const mounted = spawnSync('bindfs', [server, source], { encoding: 'utf8' });
  t.equal(mounted.status, 0, mounted.stderr);
  t.teardown(() => spawnSync('umount', ['-l', source]));
  await world.startAgent();
  await world.replicate('remote', source, { volumeMode: 'Filesystem', rpoSeconds: 2 });
  const first = await world.normal('remote');
  t.equal(first.status.captureMethod, 'scan');
  const said = await world.until('the reason is told', async () =>
    (await world.events()).find(({ message }) => message.includes('fuse may be changed from elsewhere')),
  );
  t.equal(said.object, 'Replication/remote');

  writeFileSync(join(server, 'd0', 'f0'), 'content X'); // as long as before
  appendFileSync(join(server, 'd1', 'f1'), 'more');
  renameSync(join(server, 'd2'), join(server, 'd3', 'inside'));
  rmSync(join(server, 'd4'), { recursive: true });
  writeFileSync(join(server, 'new'), 'new');
  await world.normal('remote', Date.now());
  const { path } = await world.copyOf('remote');
  const { status, stdout } = spawnSync('rsync', ['-aHAXSnci', '--numeric-ids', '--delete', `${server}/`, `${path}/`], {
    encoding: 'utf8',
  });
  t.equal(status, 0);
  t.equal(stdout, '', 'the copy is what the server has');
});
