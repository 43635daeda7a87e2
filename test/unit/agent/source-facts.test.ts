import { randomBytes } from 'node:crypto';
import {
  mkdirSync,
  mkdtempSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { spawnSync } from 'node:child_process';
import t from 'tap';
import { sourceFacts } from '../../../agent/source-facts.ts';
import { loopMount, missingForLoop, run } from '../../loop.ts';

const root = realpathSync(mkdtempSync(join(tmpdir(), 'facts-')));
t.teardown(() => rmSync(root, { recursive: true }));
const at = (name: string): string => join(root, name);
const missing = spawnSync('sh', ['-c', 'command -v mkfs.ext4']).status === 0 ? false : 'needs mkfs.ext4';

await t.test('what is absent says so', async (t) => {
  t.match(await sourceFacts(at('none'), 'Block'), { exists: false, sourceId: '', sizeBytes: 0 });
  t.match(await sourceFacts(at('none/deeper'), 'Filesystem'), { exists: false });
});

await t.test(
  'the place of a CSI volume is no source before it is mounted',
  { skip: missingForLoop('ext4') },
  async (t) => {
    const { mountPoint } = await loopMount(t, 'ext4', 16);
    const place = at('pods/4b0c/volumes/kubernetes.io~csi/pv-1/mount');
    mkdirSync(place, { recursive: true });
    t.match(await sourceFacts(place, 'Filesystem'), { exists: false, sourceId: '' });
    run('mount', '--bind', mountPoint, place);
    t.teardown(() => run('umount', place));
    t.match(await sourceFacts(place, 'Filesystem'), { exists: true, sourceId: /^ext4:/ });
  },
);

await t.test('the wrong mode is refused with the right one', async (t) => {
  writeFileSync(at('file'), 'x');
  await t.rejects(sourceFacts(root, 'Block'), { code: 'SourceRefused', message: /volumeMode Filesystem/ });
  await t.rejects(sourceFacts(at('file'), 'Filesystem'), { code: 'SourceRefused', message: /volumeMode Block/ });
  await t.rejects(sourceFacts('/dev/null', 'Block'), { code: 'SourceRefused' });
});

await t.test('an image keeps its identity while written to and grown, and loses it when replaced', async (t) => {
  writeFileSync(at('image'), randomBytes(100_001));
  const first = await sourceFacts(at('image'), 'Block');
  t.match(first, { exists: true, kind: 'image', sizeBytes: 100_001, path: at('image'), filesystem: '' });
  truncateSync(at('image'), 200_000);
  renameSync(at('image'), at('moved'));
  symlinkSync('moved', at('link'));
  const later = await sourceFacts(at('link'), 'Block');
  t.match(later, { sourceId: first.sourceId, sizeBytes: 200_000, path: at('moved') });
  writeFileSync(at('other'), randomBytes(100_001));
  t.not((await sourceFacts(at('other'), 'Block')).sourceId, first.sourceId);
});

await t.test('an image with a filesystem is that filesystem', { skip: missing }, async (t) => {
  writeFileSync(at('fs'), '');
  truncateSync(at('fs'), 32 << 20);
  const blank = await sourceFacts(at('fs'), 'Block');
  run('mkfs.ext4', '-q', '-U', '6d8f5e2a-0000-4000-8000-0123456789ab', at('fs'));
  const made = await sourceFacts(at('fs'), 'Block');
  t.match(made, { sourceId: 'ext4:6d8f5e2a-0000-4000-8000-0123456789ab', filesystem: 'ext4' });
  t.not(made.sourceId, blank.sourceId);
  run('cp', '--sparse=always', at('fs'), at('fs-restored'));
  t.equal((await sourceFacts(at('fs-restored'), 'Block')).sourceId, made.sourceId);
  run('mkfs.ext4', '-q', '-F', at('fs'));
  t.not((await sourceFacts(at('fs'), 'Block')).sourceId, made.sourceId);
});

await t.test('a directory keeps its identity while it is used, and loses it when made anew', async (t) => {
  mkdirSync(at('tree'));
  const first = await sourceFacts(at('tree'), 'Filesystem');
  t.match(first, { exists: true, kind: 'directory', path: at('tree') });
  writeFileSync(at('tree/file'), 'x');
  t.equal((await sourceFacts(at('tree'), 'Filesystem')).sourceId, first.sourceId);
  renameSync(at('tree'), at('tree-before')); // kept, as a filesystem without birth times may give its inode again
  mkdirSync(at('tree'));
  t.not((await sourceFacts(at('tree'), 'Filesystem')).sourceId, first.sourceId);
});

await t.test('a loop device and its mount', { skip: missingForLoop('xfs') }, async (t) => {
  const { device, image, mountPoint } = await loopMount(t, 'xfs', 320);
  const [block, file, tree] = [
    await sourceFacts(device, 'Block'),
    await sourceFacts(image, 'Block'),
    await sourceFacts(mountPoint, 'Filesystem'),
  ];
  t.match(block, { kind: 'device', sizeBytes: 320 << 20, filesystem: 'xfs', sourceId: file.sourceId });
  t.match(tree, { kind: 'directory', filesystem: 'xfs', filesystemId: block.filesystemId });
  t.match(tree.sourceId, `xfs:${block.filesystemId}/`);
  t.ok(tree.sizeBytes > 0 && tree.sizeBytes < 320 << 20);
  run('umount', mountPoint);
  t.not((await sourceFacts(mountPoint, 'Filesystem')).sourceId, tree.sourceId, 'the empty folder below is another');
  run('mount', device, mountPoint);
  t.equal((await sourceFacts(mountPoint, 'Filesystem')).sourceId, tree.sourceId);
});

await t.test('a loop device without a filesystem is its file', { skip: missingForLoop('ext4') }, async (t) => {
  writeFileSync(at('raw'), '');
  truncateSync(at('raw'), 1 << 20);
  const device = run('losetup', '--find', '--show', at('raw')).trim();
  const { sourceId } = await sourceFacts(device, 'Block');
  run('losetup', '--detach', device);
  const again = run('losetup', '--find', '--show', at('raw')).trim();
  t.teardown(() => void spawnSync('losetup', ['--detach', again]));
  t.equal((await sourceFacts(again, 'Block')).sourceId, sourceId);
});
