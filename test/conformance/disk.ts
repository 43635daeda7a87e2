/**
 * What every Disk of proto/effects.ts does, the real one on each filesystem and the simulated one alike.
 *
 * `makeRoot` answers a fresh empty directory on that disk; whatever is made for a root is removed by the caller afterwards.
 * Holes are a matter of the filesystem: the suite asks only that data is never reported as a hole.
 */
import type { Test } from 'tap';
import type { Disk, DiskFile } from '../../proto/effects.ts';

const bytes = (text: string): Buffer => Buffer.from(text);

async function put(disk: Disk, path: string, ...parts: [position: number, content: Buffer][]): Promise<DiskFile> {
  const file = await disk.open(path, 'write');
  for (const [position, content] of parts) await file.write([content], position);
  return file;
}

async function content(disk: Disk, path: string): Promise<Buffer> {
  const file = await disk.open(path, 'read');
  const whole = Buffer.alloc(await file.size());
  const read = await file.read(whole, 0);
  await file.close();
  return whole.subarray(0, read);
}

export function diskConformance(
  t: Test,
  name: string,
  makeDisk: () => Disk | Promise<Disk>,
  makeRoot: (disk: Disk) => string | Promise<string>,
  expectClone?: 'reflink' | 'copy',
): Promise<unknown> {
  return t.test(`disk: ${name}`, async (suite) => {
    const on = (title: string, body: (t: Test, disk: Disk, root: string) => Promise<void>): Promise<unknown> =>
      suite.test(title, async (test) => {
        const disk = await makeDisk();
        await body(test, disk, await makeRoot(disk));
      });

    await on('opening to read needs the file, opening to write makes it and keeps its bytes', async (t, disk, root) => {
      await t.rejects(disk.open(`${root}/a`, 'read'), { code: 'ENOENT' });
      await (await put(disk, `${root}/a`, [0, bytes('abc')])).close();
      await (await disk.open(`${root}/a`, 'write')).close();
      t.same(await content(disk, `${root}/a`), bytes('abc'));
      await t.rejects(disk.open(`${root}/none/a`, 'write'), { code: 'ENOENT' });
    });

    await on('a read fills the buffer and is short only at the end', async (t, disk, root) => {
      const file = await put(disk, `${root}/a`, [0, bytes('0123456789')]);
      const buffer = Buffer.alloc(4, 'x');
      t.equal(await file.read(buffer, 3), 4);
      t.same(buffer, bytes('3456'));
      t.equal(await file.read(buffer, 8), 2);
      t.same(buffer, bytes('8956'), 'the rest of the buffer is left alone');
      t.equal(await file.read(buffer, 10), 0);
      t.equal(await file.read(buffer, 1000), 0);
      t.equal(await file.read(Buffer.alloc(0), 0), 0);
      await file.close();
    });

    await on('many buffers, empty ones too, are written back to back', async (t, disk, root) => {
      const file = await disk.open(`${root}/a`, 'write');
      const parts = Array.from({ length: 3000 }, (_, at) => Buffer.alloc(at % 7, at & 0xff));
      await file.write(parts, 5);
      await file.write([], 5);
      await file.write([Buffer.alloc(0)], 99_999_999);
      await file.close();
      t.same(await content(disk, `${root}/a`), Buffer.concat([Buffer.alloc(5), ...parts]));
    });

    await on('writing beyond the end leaves zeros between', async (t, disk, root) => {
      const file = await put(disk, `${root}/a`, [0, bytes('a')], [200_000, bytes('b')]);
      t.equal(await file.size(), 200_001);
      const between = Buffer.alloc(199_999, 1);
      t.equal(await file.read(between, 1), between.length);
      t.ok(between.every((byte) => byte === 0));
      await file.close();
    });

    await on('truncating shortens, and what comes back by growing is zeros', async (t, disk, root) => {
      const file = await put(disk, `${root}/a`, [0, bytes('0123456789')]);
      await file.truncate(4);
      t.equal(await file.size(), 4);
      await file.truncate(6);
      await file.close();
      t.same(await content(disk, `${root}/a`), bytes('0123\0\0'));
    });

    await on('zeroing takes exactly the range and never makes the file longer', async (t, disk, root) => {
      const ones = Buffer.alloc(3 << 20, 1);
      const file = await put(disk, `${root}/a`, [0, ones]);
      await file.zero(4097, 1_500_000);
      await file.zero(ones.length - 10, 1 << 20);
      await file.zero(ones.length + 10, 1 << 20);
      await file.zero(0, 0);
      await file.close();
      const expected = Buffer.from(ones)
        .fill(0, 4097, 4097 + 1_500_000)
        .fill(0, ones.length - 10);
      t.ok((await content(disk, `${root}/a`)).equals(expected));
    });

    await on('data is found whatever lies between, and the end counts as a hole', async (t, disk, root) => {
      const file = await put(disk, `${root}/a`, [1 << 20, bytes('x')], [3 << 20, bytes('y')]);
      await file.truncate(8 << 20);
      const found: number[] = [];
      for (let at = await file.nextData(0); at !== undefined;) {
        const hole = await file.nextHole(at);
        t.ok(hole > at, 'data has a length');
        for (const wanted of [1 << 20, 3 << 20]) if (at <= wanted && wanted < hole) found.push(wanted);
        at = await file.nextData(hole);
      }
      t.same(found, [1 << 20, 3 << 20]);
      t.equal(await file.nextData(8 << 20), undefined);
      t.equal(await file.nextHole(8 << 20), 8 << 20);
      await file.close();
      const empty = await disk.open(`${root}/empty`, 'write');
      t.equal(await empty.nextData(0), undefined);
      t.equal(await empty.nextHole(0), 0);
      await empty.close();
    });

    await on('a clone has the bytes and then goes its own way', async (t, disk, root) => {
      const file = await put(disk, `${root}/a`, [0, Buffer.alloc(100_000, 1)], [5 << 20, Buffer.alloc(3_000_001, 2)]);
      const size = await file.size();
      const progress: number[] = [];
      const how = await disk.clone(`${root}/a`, `${root}/b`, undefined, (done) => progress.push(done));
      if (expectClone) t.equal(how, expectClone);
      t.equal(progress.at(-1), size, 'progress ends with the size');
      t.same(
        progress,
        progress.toSorted((a, b) => a - b),
      );
      const before = await content(disk, `${root}/b`);
      t.ok(before.equals(await content(disk, `${root}/a`)));
      await file.write([bytes('changed')], 50);
      await file.close();
      t.ok((await content(disk, `${root}/b`)).equals(before), 'a write to the source does not show');
      const copy = await put(disk, `${root}/b`, [50, bytes('other')]);
      await copy.sync();
      await copy.close();
      t.same((await content(disk, `${root}/a`)).subarray(50, 57), bytes('changed'));
    });

    await on('an empty file is cloned too', async (t, disk, root) => {
      await (await disk.open(`${root}/a`, 'write')).close();
      await disk.clone(`${root}/a`, `${root}/b`);
      t.equal(await disk.size(`${root}/b`), 0);
    });

    await on('a clone never replaces, and one that fails leaves nothing', async (t, disk, root) => {
      await (await put(disk, `${root}/a`, [0, bytes('new')])).close();
      await (await put(disk, `${root}/b`, [0, bytes('old')])).close();
      await t.rejects(disk.clone(`${root}/a`, `${root}/b`), { code: 'EEXIST' });
      t.same(await content(disk, `${root}/b`), bytes('old'));
      await t.rejects(disk.clone(`${root}/none`, `${root}/c`), { code: 'ENOENT' });
      const reason = new Error('stopped');
      await t.rejects(disk.clone(`${root}/a`, `${root}/c`, AbortSignal.abort(reason)), reason);
      t.equal(await disk.size(`${root}/c`), undefined);
    });

    await on('directories are made with parents, listed sorted, removed whole', async (t, disk, root) => {
      await disk.mkdir(`${root}/d/e`);
      await disk.mkdir(`${root}/d/e`);
      for (const name of ['b', 'a', 'c']) await (await disk.open(`${root}/d/${name}`, 'write')).close();
      t.same(await disk.list(`${root}/d`), ['a', 'b', 'c', 'e']);
      t.same(await disk.list(`${root}/none`), []);
      await disk.syncDirectory(`${root}/d`);
      await disk.remove(`${root}/d/a`);
      t.same(await disk.list(`${root}/d`), ['b', 'c', 'e']);
      await disk.remove(`${root}/d`);
      await disk.remove(`${root}/d`);
      t.same(await disk.list(root), []);
    });

    await on('a rename replaces in one step', async (t, disk, root) => {
      await (await put(disk, `${root}/a`, [0, bytes('new')])).close();
      await (await put(disk, `${root}/b`, [0, bytes('older')])).close();
      await disk.rename(`${root}/a`, `${root}/b`);
      t.equal(await disk.size(`${root}/a`), undefined);
      t.same(await content(disk, `${root}/b`), bytes('new'));
      await t.rejects(disk.rename(`${root}/a`, `${root}/b`), { code: 'ENOENT' });
    });

    await on('an open file outlives its name', async (t, disk, root) => {
      const file = await put(disk, `${root}/a`, [0, bytes('abc')]);
      await disk.remove(`${root}/a`);
      const buffer = Buffer.alloc(3);
      t.equal(await file.read(buffer, 0), 3);
      t.same(buffer, bytes('abc'));
      await file.close();
    });

    await on('space has a capacity and no more free than that', async (t, disk, root) => {
      const { capacityBytes, freeBytes } = await disk.space(root);
      t.ok(capacityBytes > 0);
      t.ok(freeBytes >= 0 && freeBytes <= capacityBytes);
    });
  });
}
