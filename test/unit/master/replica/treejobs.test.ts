import t, { type Test } from 'tap';
import { spawnSync } from 'node:child_process';
import { constants, promises as fs } from 'node:fs';
import { join } from 'node:path';
import { placeFiles, removeNames, writeFiles } from '../../../../master/replica/treebatches.ts';
import { lsetxattr } from '../../../../proto/libc.ts';
import type { PlacedFile } from '../../../../master/replica/treejobs.ts';

async function arena(t: Test) {
  const dir = t.testdir({ outside: 'keep me', staging: {}, tree: {} });
  const flags = constants.O_RDONLY | constants.O_DIRECTORY;
  const [staging, tree] = [await fs.open(join(dir, 'staging'), flags), await fs.open(join(dir, 'tree'), flags)];
  t.teardown(() => Promise.all([staging.close(), tree.close()]));
  return { dir, staging, tree, path: (...parts: string[]) => join(dir, ...parts) };
}

const file = (staged: string, name: string, sizeBytes: number): PlacedFile => ({
  ...{ staged, name, sizeBytes, mode: 0o640, uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0 },
  ...{ mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 123_456_789 },
});

t.test('files are written, get their state and their place; an empty one is made', async (t) => {
  const { staging, tree, path } = await arena(t);
  const received = Buffer.from('..one-two..');
  const before = await writeFiles(staging, [
    { name: 'n1', position: 0, bytes: received.subarray(2, 5) },
    { name: 'n2', position: 65_536, bytes: received.subarray(6, 9) },
    { name: 'n1', position: 3, bytes: received.subarray(5, 6) },
  ]);
  t.same(before, [0, 0, 3]);
  const name = Buffer.from('b\xff\n', 'latin1');
  const files = [file('n1', 'a', 4), file('n2', name.toString('latin1'), 65_539), file('n3', 'empty', 0)];
  t.same(await placeFiles(staging, tree, files), [true, true, true]);
  t.equal(await fs.readFile(path('tree', 'a'), 'utf8'), 'one-');
  const second = Buffer.concat([Buffer.from(`${path('tree')}/`), name]);
  t.same((await fs.readFile(second)).subarray(65_536), Buffer.from('two'));
  const stat = await fs.stat(path('tree', 'empty'), { bigint: true });
  t.equal(stat.mtimeNs, 1_700_000_000_123_456_789n);
  t.equal(stat.mode & 0o7777n, 0o640n);
  t.same(await fs.readdir(path('staging')), []);
});

t.test('a link that somebody puts in the way is not followed, and what is not as it should be stays', async (t) => {
  const { staging, tree, path } = await arena(t);
  await fs.symlink(path('outside'), path('staging', 'n1'));
  await t.rejects(writeFiles(staging, [{ name: 'n1', position: 0, bytes: Buffer.from('x') }]), { code: 'ELOOP' });
  spawnSync('mkfifo', [path('staging', 'n2')]);
  await t.rejects(writeFiles(staging, [{ name: 'n2', position: 0, bytes: Buffer.from('x') }]), { code: 'ENOENT' });
  await fs.writeFile(path('staging', 'n3'), 'longer');
  await fs.writeFile(path('staging', 'n4'), 'two names');
  await fs.link(path('staging', 'n4'), path('staging', 'n5'));
  await fs.writeFile(path('staging', 'n6'), 'taken');
  await fs.mkdir(path('tree', 'taken'));
  const files = [
    file('n1', 'a', 7),
    file('n2', 'b', 0),
    file('n3', 'c', 3),
    file('n4', 'd', 9),
    file('n6', 'taken', 5),
  ];
  t.same(await placeFiles(staging, tree, [...files, file('n7', 'e', 1)]), Array(6).fill(false));
  t.same(await fs.readdir(path('tree')), ['taken']);
  const outside = await fs.stat(path('outside'));
  t.equal(await fs.readFile(path('outside'), 'utf8'), 'keep me');
  t.not(outside.mode & 0o777, 0o640);
});

t.test('a file with attributes that nobody asked for is left to who can remove them', async (t) => {
  const { staging, tree, path } = await arena(t);
  await fs.writeFile(path('staging', 'n1'), 'a');
  await lsetxattr(path('staging', 'n1'), 'user.a', Buffer.from('b'));
  t.same(await placeFiles(staging, tree, [file('n1', 'a', 1)]), [false]);
  t.same(await fs.readdir(path('tree')), []);
});

t.test('names are removed, links themselves; absent is gone; a directory is not', async (t) => {
  const { tree, path } = await arena(t);
  await fs.symlink(path('outside'), path('tree', 'link'));
  await fs.mkdir(path('tree', 'directory'));
  t.same(await removeNames(tree, ['link', 'absent', 'directory']), [true, true, false]);
  t.equal(await fs.readFile(path('outside'), 'utf8'), 'keep me');
  t.same(await fs.readdir(path('tree')), ['directory']);
});
