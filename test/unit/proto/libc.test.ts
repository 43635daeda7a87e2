import { spawnSync } from 'node:child_process';
import { constants, readdirSync } from 'node:fs';
import { link, lstat, mkdtemp, open, readdir, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import * as libc from '../../../proto/libc.ts';
import { loopMount, missingForLoop } from '../../loop.ts';

const root = await mkdtemp(join(tmpdir(), 'libc-'));
t.teardown(() => rm(root, { recursive: true }));
/** No UTF-8, and with a byte of each awkward kind. */
const name = Buffer.concat([Buffer.from(`${root}/`), Buffer.from([0xff, 0xfe, 0x0a, 0x20, 0x27, 0xc3])]);
const isRoot = process.getuid?.() === 0;

await t.test('errors look like those of Node', async (t) => {
  const path = join(root, 'none');
  await t.rejects(libc.lgetxattr(path, 'user.x'), {
    code: 'ENOENT',
    errno: -2,
    syscall: 'lgetxattr',
    path,
    message: `ENOENT: no such file or directory, lgetxattr '${path}'`,
  });
  await t.rejects(libc.syncfs(-1), { code: 'EBADF', syscall: 'syncfs' });
  await t.rejects(libc.lgetxattr(`${root}\0/x`, 'user.x'), { code: 'EINVAL' });
});

await t.test('many calls at once each have their own error', async (t) => {
  const codes = await Promise.all(
    Array.from({ length: 1000 }, (_, at) =>
      libc.lgetxattr(at % 2 ? join(root, 'none') : root, at % 2 ? 'user.x' : 'nonsense').then(
        () => 'none',
        (error: NodeJS.ErrnoException) => error.code,
      ),
    ),
  );
  t.same(new Set(codes.filter((_, at) => at % 2)), new Set(['ENOENT']));
  t.notOk(codes.filter((_, at) => at % 2 === 0).includes('ENOENT'));
});

await t.test('attributes of a file whose name is no UTF-8', async (t) => {
  await writeFile(name, 'x');
  const value = Buffer.from([0, 1, 0xff, 0]);
  try {
    await libc.lsetxattr(name, 'user.a', value);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOTSUP') return t.pass('this filesystem has no attributes');
    throw error;
  }
  const odd = Buffer.from('user.\xff\xfe', 'latin1');
  await libc.lsetxattr(name, odd, Buffer.alloc(0));
  await libc.lsetxattr(name, 'user.large', Buffer.alloc(1500, 7));
  t.same(await libc.lgetxattr(name, 'user.a'), value);
  t.same(await libc.lgetxattr(name, odd), Buffer.alloc(0));
  t.same(await libc.lgetxattr(name, 'user.large'), Buffer.alloc(1500, 7));
  t.equal(await libc.lgetxattr(name, 'user.none'), undefined);
  const users = (await libc.llistxattr(name)).filter((one) => one.toString().startsWith('user.'));
  t.same(users, [Buffer.from('user.a'), Buffer.from('user.large'), odd]);
  await using file = await open(name, 'r+');
  t.same(await libc.flistxattr(file.fd), await libc.llistxattr(name));
  t.same(await libc.fgetxattr(file.fd, 'user.a'), value);
  await libc.fsetxattr(file.fd, 'user.a', Buffer.from('new'));
  t.same(await libc.lgetxattr(name, 'user.a'), Buffer.from('new'));
  await libc.lremovexattr(name, 'user.a');
  await libc.lremovexattr(name, 'user.a');
  await libc.fremovexattr(file.fd, odd);
  t.equal(await libc.lgetxattr(name, 'user.a'), undefined);
  t.equal(await libc.fgetxattr(file.fd, odd), undefined);
});

await t.test('attributes of a link are its own', { skip: isRoot ? false : 'needs root' }, async (t) => {
  await symlink('nowhere', join(root, 'link'));
  try {
    await libc.lsetxattr(join(root, 'link'), 'trusted.a', Buffer.from('of the link'));
  } catch (error) {
    return t.match(error, { code: /ENOTSUP|EPERM/ });
  }
  t.same(await libc.lgetxattr(join(root, 'link'), 'trusted.a'), Buffer.from('of the link'));
});

await t.test('times are kept to the nanosecond, before 1970 too, and of links', async (t) => {
  await writeFile(name, 'x');
  const before = await stat(name, { bigint: true });
  await libc.utimensat(name, { seconds: 1_700_000_000, nanoseconds: 123_456_789 });
  const after = await stat(name, { bigint: true });
  t.equal(after.mtimeNs, 1_700_000_000_123_456_789n);
  t.equal(after.atimeNs, before.atimeNs, 'what is not given stays');
  await libc.utimensat(name, undefined, { seconds: 5, nanoseconds: 6 });
  t.equal((await stat(name, { bigint: true })).atimeNs, 5_000_000_006n);
  t.equal((await stat(name, { bigint: true })).mtimeNs, 1_700_000_000_123_456_789n);
  await using file = await open(name, 'r');
  await libc.futimens(file.fd, { seconds: -2, nanoseconds: 999_999_999 });
  t.equal((await stat(name, { bigint: true })).mtimeNs, -1_000_000_001n);
  const pointer = Buffer.concat([name, Buffer.from('-link')]);
  await symlink(name, pointer);
  await libc.utimensat(pointer, { seconds: 9, nanoseconds: 1 });
  t.equal((await lstat(pointer, { bigint: true })).mtimeNs, 9_000_000_001n);
  t.equal((await stat(name, { bigint: true })).mtimeNs, -1_000_000_001n, 'the file behind it is left alone');
});

await t.test('special files', async (t) => {
  const fifo = Buffer.concat([name, Buffer.from('-fifo')]);
  await libc.mknod(fifo, constants.S_IFIFO | 0o600);
  t.ok((await lstat(fifo)).isFIFO());
  await libc.mknod(join(root, 'socket'), constants.S_IFSOCK | 0o600);
  t.ok((await lstat(join(root, 'socket'))).isSocket());
  await t.rejects(libc.mknod(fifo, constants.S_IFIFO | 0o600), { code: 'EEXIST', syscall: 'mknodat' });
  if (!isRoot) return;
  for (const [major, minor] of [
    [1, 3],
    [259, 70_000],
  ] as const) {
    const path = join(root, `device-${major}`);
    await libc.mknod(path, constants.S_IFCHR | 0o600, major, minor);
    const { rdev } = await lstat(path, { bigint: true });
    t.equal(rdev, (BigInt(minor & ~0xff) << 12n) | (BigInt(major) << 8n) | BigInt(minor & 0xff));
  }
});

await t.test('a name below an open directory, by way of /proc/self/fd', async (t) => {
  await using directory = await open(root, constants.O_RDONLY | constants.O_DIRECTORY);
  const below = Buffer.concat([Buffer.from(`/proc/self/fd/${directory.fd}/`), name.subarray(root.length + 1)]);
  await libc.utimensat(below, { seconds: 77, nanoseconds: 7 });
  t.equal((await stat(name, { bigint: true })).mtimeNs, 77_000_000_007n);
  await link(below, Buffer.concat([below, Buffer.from('-second')]));
  t.ok((await readdir(root, { encoding: 'buffer' })).length > 1);
});

await t.test('blocks are shared, zeroed and found on XFS', { skip: missingForLoop('xfs') }, async (t) => {
  const { mountPoint, device } = await loopMount(t, 'xfs', 400, ['-m', 'reflink=1']);
  await writeFile(join(mountPoint, 'a'), Buffer.alloc(1 << 20, 1));
  await using source = await open(join(mountPoint, 'a'), 'r+');
  await using clone = await open(join(mountPoint, 'b'), 'w+');
  await libc.ficlone(clone.fd, source.fd);
  t.equal((await clone.stat()).size, 1 << 20);
  await libc.fallocatePunch(source.fd, 4096, 8192);
  await libc.fallocateZero(source.fd, 65536, 4096);
  t.equal(await libc.seekData(source.fd, 4096), 12288);
  t.equal(await libc.seekHole(source.fd, 0), 4096);
  t.equal(await libc.seekData(source.fd, 1 << 20), undefined);
  t.equal(await libc.seekHole(source.fd, 1 << 20), undefined);
  const zeroed = Buffer.alloc(4096, 9);
  await source.read(zeroed, 0, 4096, 65536);
  t.same(zeroed, Buffer.alloc(4096));
  await libc.ficloneRange(source.fd, clone.fd, 0, 16384, 0);
  t.equal(await libc.seekHole(source.fd, 0), await libc.seekHole(clone.fd, 0), 'cloned back over the hole');
  t.equal(await libc.copyFileRange(clone.fd, 100, source.fd, 2 << 20, 5000), 5000);
  t.equal((await source.stat()).size, (2 << 20) + 5000);
  t.equal(await libc.copyFileRange(clone.fd, 1 << 20, source.fd, 0, 1), 0);
  await libc.syncfs(source.fd);
  await using block = await open(device, 'r');
  t.equal(await libc.blkgetsize64(block.fd), 400 << 20);
  await t.rejects(libc.blkgetsize64(source.fd), { code: 'ENOTTY' });
  await t.rejects(libc.fithaw(source.fd), { code: 'EINVAL' });
  await t.rejects(libc.seekData(block.fd, 0), { code: 'EINVAL' });
  const [first, second] = libc.alignedPool(131072, 65536);
  await using direct = await open(join(mountPoint, 'a'), constants.O_RDONLY | constants.O_DIRECT);
  t.equal((await direct.read(second ?? Buffer.alloc(0), 0, 65536, 0)).bytesRead, 65536);
  t.equal(second?.[0], 1);
  t.equal(first?.[0], 0);
  t.throws(() => libc.alignedPool(1000));
});

t.test('reads and writes of this process give way', async (t) => {
  await stat('/');
  const taken = libc.lowerIoPriority();
  t.ok(taken);
  if (spawnSync('ionice', ['--version']).status !== 0) return;
  for (const thread of readdirSync('/proc/self/task'))
    t.match(spawnSync('ionice', ['-p', thread], { encoding: 'utf8' }).stdout, /best-effort: prio 7/);
});
