import t, { type Test } from 'tap';
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  realpathSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { restoreMarks } from '../../../agent/restoremarks.ts';
import { inUse, openWriter } from '../../../agent/volumewriter.ts';
import { allowList } from '../../../proto/allow.ts';
import { RunningDigest } from '../../../proto/digest.ts';
import { granuleBytes, granuleHash, hashBytes } from '../../../proto/granule.ts';
import type { Data, Restore } from '../../../proto/wire.ts';
import { BlockIndex } from '../../../master/replica/blockindex.ts';
import { noise } from '../../e2e/content.ts';
import { loopDevice, loopMount, missingForLoop } from '../../loop.ts';

function folder(t: Test): string {
  const path = realpathSync(mkdtempSync(join(tmpdir(), 'writer-')));
  t.teardown(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

function dataOf(first: number, ...granules: Buffer[]): Data {
  const payload = Buffer.concat(granules);
  const tailBytes = granules.at(-1)?.length ?? 0;
  return {
    runs: [{ object: 0, first, count: granules.length, zero: false, tailBytes }],
    hashes: Buffer.concat(granules.map((one) => granuleHash(one))),
    compression: 0,
    rawBytes: payload.length,
    payload,
  };
}

const zeros = (first: number, count: number): Data => ({
  runs: [{ object: 0, first, count, zero: true, tailBytes: granuleBytes }],
  ...{ hashes: Buffer.alloc(0), compression: 0, rawBytes: 0, payload: Buffer.alloc(0) },
});

t.test('an image is made of the right length and written where it differs', async (t) => {
  const image = join(folder(t), 'image');
  writeFileSync(image, noise(5 * granuleBytes));
  const sizeBytes = 4 * granuleBytes + 100;
  let begun = 0;
  const volume = await openWriter(image, sizeBytes, async () => void begun++);
  t.equal(begun, 1);
  const [one, tail] = [noise(granuleBytes), noise(100)];
  await volume.write(dataOf(1, one));
  await volume.write(dataOf(4, tail));
  await volume.write(zeros(2, 2));
  await t.rejects(volume.write(dataOf(4, one)), /beyond the end/);
  await t.rejects(volume.write({ ...dataOf(0, one), hashes: granuleHash(tail) }), { code: 'HashMismatch' });
  await volume.sync();
  const content = readFileSync(image);
  t.equal(content.length, sizeBytes);
  t.ok(content.subarray(granuleBytes, 2 * granuleBytes).equals(one));
  t.ok(content.subarray(2 * granuleBytes, 4 * granuleBytes).equals(Buffer.alloc(2 * granuleBytes)));
  t.ok(content.subarray(4 * granuleBytes).equals(tail));
  const hashes = await volume.hashes(0, 5);
  for (let at = 0; at < 5; at++)
    t.ok(
      hashes
        .subarray(at * hashBytes, (at + 1) * hashBytes)
        .equals(granuleHash(content.subarray(at * granuleBytes, (at + 1) * granuleBytes))),
    );
  await volume.close();
});

t.test('the running digest is the one of the index', async (t) => {
  const index = new BlockIndex(':memory:');
  t.teardown(() => index.close());
  const granules = 700;
  const running = new RunningDigest();
  const hashes = Buffer.concat(Array.from({ length: granules }, (_, at) => granuleHash(Buffer.from([at & 255, 1]))));
  index.stageData({
    runs: [{ object: 0, first: 0, count: granules, zero: false, tailBytes: granuleBytes }],
    ...{ hashes, compression: 0, rawBytes: 0, payload: Buffer.alloc(0) },
  });
  for (let at = 0; at < hashes.length; at += 48) running.add(hashes.subarray(at, at + 48));
  t.ok(running.digest(granules * granuleBytes).equals(index.stagedDigest(granules * granuleBytes)));
  t.throws(() => new RunningDigest().digest(1), RangeError);
});

t.test('an image that somebody has open is left alone', async (t) => {
  const image = join(folder(t), 'image');
  writeFileSync(image, noise(granuleBytes));
  t.equal(await inUse(image), undefined);
  const held = openSync(image, 'r');
  const refused = openWriter(image, granuleBytes, async () => void t.fail('nothing may begin'));
  await t.rejects(refused, { code: 'SourceInUse', message: /open elsewhere/ });
  closeSync(held);
  t.equal(await inUse(image), undefined);
});

t.test('an image under a loop device, a mounted image or device', { skip: missingForLoop('ext4') }, async (t) => {
  const { image } = loopDevice(t, 16);
  t.match(await inUse(image), /open elsewhere/);
  const mounted = await loopMount(t, 'ext4', 32);
  t.match(await inUse(mounted.image), new RegExp(`is mounted at ${mounted.mountPoint}`));
  t.match(await inUse(mounted.device), new RegExp(`is mounted at ${mounted.mountPoint}`));
});

t.test('a device is ours alone while it is written', { skip: missingForLoop('ext4') }, async (t) => {
  const { image, device } = loopDevice(t, 16);
  const sizeBytes = 15 * 2 ** 20;
  await t.rejects(
    openWriter(device, 17 * 2 ** 20, async () => undefined),
    /16777216 bytes, what it shall hold 17825792/,
  );
  const volume = await openWriter(device, sizeBytes, async () => undefined);
  t.match(await inUse(device), /in use/, 'nobody else gets it');
  const bytes = noise(granuleBytes);
  await volume.write(dataOf(3, bytes));
  await volume.sync();
  const hashes = await volume.hashes(2, 2);
  t.ok(hashes.subarray(hashBytes).equals(granuleHash(bytes)));
  await volume.write(zeros(3, 1));
  await volume.sync();
  t.ok((await volume.hashes(3, 1)).equals(Buffer.alloc(hashBytes)));
  await volume.close();
  t.equal(await inUse(device), undefined);
  t.ok(readFileSync(image).subarray(0, sizeBytes).equals(Buffer.alloc(sizeBytes)));
});

t.test('marks say what is half written, and keep older generations out', async (t) => {
  const dir = folder(t);
  const marks = restoreMarks(dir);
  const restore = (generation: string, replicaUid = 'r'): Restore => ({
    ...{ uid: `u${generation}`, name: `n${generation}`, replicaUid, fencingGeneration: generation },
    ...{ path: '/v', volumeMode: 'Block', sizeBytes: 1, compare: false, include: [], exclude: [] },
  });
  t.equal(await marks.halfWritten('/v'), undefined);
  await marks.begin('/v', restore('9'));
  t.match(await restoreMarks(dir).halfWritten('/v'), /being written by recovery n9 and is not whole/);
  await t.rejects(marks.begin('/v', restore('8')), { code: 'Fenced' });
  await marks.written('/v', restore('9'), 4, Buffer.from('aa', 'hex'));
  t.equal(await marks.halfWritten('/v'), undefined);
  await t.rejects(marks.begin('/v', restore('8')), { code: 'Fenced' }, 'also of what is whole');
  await marks.begin('/v', restore('1', 'another'));
  await marks.forget('/v');
  t.equal(await marks.of('/v'), undefined);
});

t.test('which volumes may be written', async (t) => {
  const dir = folder(t);
  const image = join(dir, 'image');
  writeFileSync(image, '');
  truncateSync(image, granuleBytes);
  mkdirSync(join(dir, 'sub'));
  const rules = { own: [join(dir, 'own')], recoveries: [] };
  const none = allowList({ ...rules, allow: [dir] });
  await t.rejects(none.mayWriteVolume(image), { code: 'TargetRefused', message: /--allow-write/ }, 'off by default');
  const some = allowList({ ...rules, allow: [], allowWrite: [dir] });
  t.equal(await some.mayWriteVolume(image), image);
  t.equal(await some.mayWriteVolume(join(dir, 'sub')), join(dir, 'sub'), 'a directory too');
  execFileSync('mkfifo', [join(dir, 'fifo')]);
  await t.rejects(some.mayWriteVolume(join(dir, 'fifo')), /neither a block device nor an image/);
  await t.rejects(some.mayWriteVolume(join(dir, 'absent')), /does not exist/);
  await t.rejects(some.mayWriteVolume(join(dir, 'own')), /own data/);
  await t.rejects(some.mayRead(image), { code: 'SourceRefused' }, 'and gives no right to read');
  t.throws(() => allowList({ ...rules, allow: [], allowWrite: ['/etc'] }), /--allow-write \/etc/);
});
