import { mkdtemp, rm } from 'node:fs/promises';
import { existsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { systemDisk } from '../../proto/system.ts';
import { loopMount, missingForLoop } from '../loop.ts';
import { diskConformance } from './disk.ts';

await onDirectory('the temporary directory', tmpdir());
if (existsSync('/dev/shm')) await onDirectory('tmpfs', '/dev/shm');
for (const [type, clone, options] of [
  ['xfs', 'reflink', ['-m', 'reflink=1']],
  ['ext4', 'copy', []],
] as const) {
  const skip = missingForLoop(type);
  await t.test(`on ${type}`, { skip }, async (t) => {
    const mounted = await loopMount(t, type, 400, [...options]);
    await onDirectory(type, mounted.mountPoint, clone, t);
  });
}

async function onDirectory(
  name: string,
  parent: string,
  clone?: 'reflink' | 'copy',
  parentTest: Test = t,
): Promise<void> {
  const base = await mkdtemp(join(parent, 'disk-'));
  await diskConformance(
    parentTest,
    name,
    () => systemDisk,
    () => mkdtemp(join(base, 'r-')),
    clone,
  );
  await rm(base, { recursive: true });
}
