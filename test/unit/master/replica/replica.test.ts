import { DatabaseSync } from 'node:sqlite';
import { copyFileSync, readdirSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import t from 'tap';
import { BlockIndex } from '../../../../master/replica/blockindex.ts';
import { asReplicationError } from '../../../../proto/errors.ts';
import { granuleBytes, granuleHash, hash } from '../../../../proto/granule.ts';
import { run } from '../../../loop.ts';
import { volumeDigest } from '../../../sim/digest.ts';
import { commitOf, dataOf, folder, imageOf, none, put, recovered, rig, writer } from './blockreplica.ts';

const size = 10 * granuleBytes - 1000;
/** Of one page of the index. */
const hashesPerPage = 256;
const journalPath = (paths: string[]): string => paths.filter((path) => path.includes('/journal/')).at(-1) ?? '';

t.test('a commit survives, and every point of the journal is the volume of its time', async (t) => {
  const r = await rig(t);
  let replica = await r.open();
  const session = await replica.attach(writer);
  await put(replica, session, { 0: 1, 9: 9 }, size);
  await put(replica, session, { 0: 2, 3: 3 }, size);
  await put(replica, session, { 9: 0 }, size);
  await replica.close();
  replica = await r.open();
  t.same(r.doubts, []);
  t.same(
    replica.points.map(({ sequence }) => sequence),
    [1, 2, 3],
  );
  t.ok((await recovered(r, replica, 1)).equals(imageOf({ 0: 1, 9: 9 }, size)));
  t.ok((await recovered(r, replica, 2)).equals(imageOf({ 0: 2, 3: 3, 9: 9 }, size)));
  const last = await recovered(r, replica, 3);
  t.ok(last.equals(imageOf({ 0: 2, 3: 3 }, size)));
  t.ok(replica.head.digest.equals(volumeDigest(last)), 'the digest is that of the bytes, computed another way');
  await replica.close();
});

t.test('what was not committed is forgotten when the session ends', async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  const first = await replica.attach(writer);
  await put(replica, first, { 0: 1 }, size);
  const bytes = replica.journalBytes;
  for (const data of dataOf({ 0: 5, 1: 5 }, size)) await replica.data(first, data);
  await replica.detach(first);
  t.equal(replica.journalBytes, bytes);
  const second = await replica.attach(writer);
  await put(replica, second, { 2: 2 }, size);
  t.ok((await recovered(r, replica, 2)).equals(imageOf({ 0: 1, 2: 2 }, size)));
  await replica.close();
});

t.test('one writer at a time, of the newest generation', async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  const session = await replica.attach(writer);
  await put(replica, session, { 0: 1 }, size);
  await t.rejects(replica.attach({ ...writer, name: 'other' }), { code: 'BackupCollision' });
  const again = await replica.attach(writer);
  const [data] = dataOf({ 0: 7 }, size);
  if (!data) return;
  await t.rejects(replica.data(session, data), { code: 'Fenced' }, 'the older session of the same writer');
  await replica.data(again, data);
  await replica.fence('5');
  await t.rejects(replica.commit(again, commitOf(2, size)), { code: 'Fenced' });
  await t.rejects(replica.attach({ ...writer, generation: '4' }), { code: 'Fenced' });
  t.equal(replica.head.sequence, 1);
  await replica.close();
  const reopened = await r.open();
  t.equal(reopened.generation, '5', 'a restart does not forget who may write');
  await t.rejects(reopened.attach(writer), { code: 'Fenced' });
  t.ok(await reopened.attach({ ...writer, name: 'other', generation: '6' }));
  await reopened.close();
});

t.test('another source and a shrunk one are refused unless forced', async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  await put(replica, await replica.attach(writer), { 0: 1 }, size);
  await t.rejects(replica.attach({ ...writer, sourceId: 'new' }), { code: 'SourceChanged' });
  await t.rejects(replica.attach({ ...writer, sizeBytes: size - 1 }), { code: 'SourceShrunk' });
  t.ok(await replica.attach({ ...writer, sizeBytes: size + 1 }));
  t.ok(await replica.attach({ ...writer, sourceId: 'new', sizeBytes: 1, force: true }));
  await replica.close();
});

t.test('bad data, gaps and endless epochs are refused, and nothing of them stays', async (t) => {
  const r = await rig(t);
  const replica = await r.open({ maxEpochBytes: 3 * granuleBytes });
  const session = await replica.attach(writer);
  const [data] = dataOf({ 0: 1 }, size);
  if (!data) return;
  await t.rejects(replica.data(session, { ...data, hashes: hash(Buffer.from('x')) }), { code: 'HashMismatch' });
  await t.rejects(replica.commit(session, commitOf(2, size)), { code: 'SequenceGap' });
  await t.rejects(
    (async () => {
      for (let i = 0; i < 10; i++) await replica.data(session, data);
    })(),
    { code: 'EpochTooLarge' },
  );
  await replica.detach(session);
  t.equal(replica.head.sequence, 0);
  t.equal(replica.journalBytes, 0);
  await replica.close();
});

t.test(
  'a full disk ends the session, loses nothing committed, and mirroring goes on when there is space',
  async (t) => {
    const r = await rig(t);
    const replica = await r.open();
    const session = await replica.attach(writer);
    await put(replica, session, { 0: 1 }, size);
    r.sim.fullBytes = r.sim.usedBytes;
    await t.rejects(put(replica, session, { 1: 2, 2: 3 }, size), { code: 'TargetFull' });
    await t.rejects(put(replica, session, {}, size), { code: 'Fenced' }, 'that session is over');
    r.sim.fullBytes = 1 << 30;
    await put(replica, await replica.attach(writer), { 3: 4 }, size);
    t.ok((await recovered(r, replica, 2)).equals(imageOf({ 0: 1, 3: 4 }, size)));
    await replica.close();
    const reopened = await r.open();
    t.same([r.doubts, reopened.head.sequence], [[], 2]);
    await reopened.close();
  },
);

t.test(
  'an index that does not fit on its disk at opening costs no point',
  { skip: process.getuid?.() === 0 ? false : 'needs root, for a small filesystem' },
  async (t) => {
    const r = await rig(t);
    run('mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', r.indexFolder);
    t.teardown(() => void run('umount', '--lazy', r.indexFolder));
    const pages = 40;
    const large = pages * hashesPerPage * granuleBytes;
    const before = await r.open();
    const session = await before.attach({ ...writer, sizeBytes: large });
    for (let page = 0; page < pages; page++) await put(before, session, { [page * hashesPerPage]: page + 1 }, large);
    const points = before.points.map(({ sequence, digest }) => [sequence, digest]);
    await before.close();
    const filler = `${r.indexFolder}/filler`;
    const codes: string[] = [];
    for (const left of [0, 30_000, 60_000, 90_000]) {
      for (const suffix of ['', '-wal', '-shm']) rmSync(`${r.indexFolder}/head.db${suffix}`, { force: true });
      const { bavail, bsize } = statfsSync(r.indexFolder);
      writeFileSync(filler, Buffer.alloc(Math.max(0, bavail * bsize - left), 1));
      const full = await r.open().then((replica) => replica.close(), asReplicationError);
      if (full) codes.push(full.code);
      rmSync(filler);
      const after = await r.open();
      t.same(
        after.points.map(({ sequence, digest }) => [sequence, digest]),
        points,
        'all points are there',
      );
      t.same(r.doubts, [], 'a full disk is no doubt about what is stored: nothing is made anew');
      await after.close();
    }
    t.ok(codes.includes('TargetFull'), `it was full indeed: ${codes.join()}`);
  },
);

t.test('an index that cannot follow a durable commit does so before the next one', async (t) => {
  const r = await rig(t);
  let replica = await r.open();
  const session = await replica.attach(writer);
  await put(replica, session, { 0: 1 }, size);
  const blocker = new DatabaseSync(`${r.indexFolder}/head.db`);
  blocker.exec('BEGIN IMMEDIATE');
  await t.rejects(put(replica, session, { 1: 2 }, size), { code: 'TargetFailed' });
  await t.rejects(replica.attach(writer), { code: 'TargetFailed' }, 'nobody writes meanwhile');
  blocker.exec('ROLLBACK');
  blocker.close();
  const next = await replica.attach(writer);
  t.equal(replica.head.sequence, 2, 'the commit was durable');
  await put(replica, next, { 2: 3 }, size);
  await replica.close();
  replica = await r.open();
  t.same([r.doubts, replica.head.sequence], [[], 3]);
  t.ok((await recovered(r, replica, 3)).equals(imageOf({ 0: 1, 1: 2, 2: 3 }, size)));
  await replica.close();
});

t.test('the base follows the journal, and a trimmed journal still recovers what is listed', async (t) => {
  const r = await rig(t);
  const replica = await r.open({ segmentBytes: granuleBytes });
  const session = await replica.attach(writer);
  for (let i = 1; i <= 8; i++) {
    r.nowMs += 1000;
    await put(replica, session, { [i]: i }, size);
  }
  const whole = replica.journalBytes;
  await replica.advance(3, none);
  t.same(
    replica.points.map(({ sequence }) => sequence),
    [5, 6, 7, 8],
  );
  t.ok(replica.journalBytes < whole, 'segments went');
  t.ok((await recovered(r, replica, 5)).equals(imageOf({ 1: 1, 2: 2, 3: 3, 4: 4, 5: 5 }, size)));
  r.sim.crash(true);
  r.disk = r.sim.mount();
  const after = await r.open({ segmentBytes: granuleBytes });
  t.same(r.doubts, []);
  t.ok((await recovered(r, after, 8)).equals(imageOf({ 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 7, 8: 8 }, size)));
  await after.close();
});

t.test('a power cut that takes the indexes back to their last checkpoint loses nothing', async (t) => {
  const r = await rig(t);
  const replica = await r.open({ segmentBytes: granuleBytes });
  const session = await replica.attach(writer);
  for (let i = 1; i <= 6; i++) {
    r.nowMs += 1000;
    await put(replica, session, { [i]: i }, size);
    await replica.advance(0, none);
  }
  // Only what was checkpointed is sure to be on the disk.
  for (const name of ['head.db', 'base/index.db'])
    copyFileSync(`${r.indexFolder}/${name}`, `${r.indexFolder}/${name}.checkpointed`);
  r.sim.crash(true);
  await replica.close();
  for (const name of ['head.db', 'base/index.db'])
    copyFileSync(`${r.indexFolder}/${name}.checkpointed`, `${r.indexFolder}/${name}`);
  r.disk = r.sim.mount();
  const after = await r.open({ segmentBytes: granuleBytes });
  t.equal(after.head.sequence, 6);
  t.notMatch(r.doubts.join(), /dropped/);
  t.ok((await recovered(r, after, 6)).equals(imageOf({ 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6 }, size)));
  await after.close();
});

t.test('a volume that shrank and grew again reads as zeros where it was gone', async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  const session = await replica.attach(writer);
  await put(replica, session, { 0: 1, 5: 5, 9: 9 }, size);
  await replica.advance(0, none);
  await put(replica, session, { 3: 3 }, 4 * granuleBytes);
  await put(replica, session, {}, size);
  t.ok((await recovered(r, replica, 3)).equals(imageOf({ 0: 1, 3: 3 }, size)));
  r.nowMs += 1000;
  await replica.advance(0, none);
  t.ok((await recovered(r, replica, 3)).equals(imageOf({ 0: 1, 3: 3 }, size)), 'from the base too');
  await replica.close();
});

t.test('a point that is pinned stays while the journal moves on, and goes when it is not any more', async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  const session = await replica.attach(writer);
  const points = [];
  for (let at = 1; at <= 4; at++) {
    points.push(await put(replica, session, { [at]: at }, size));
    r.nowMs += 10_000;
  }
  const sequences = (): number[] => replica.points.map(({ sequence }) => sequence);
  const pinned = points[1]?.sequence ?? 0;
  // One that the journal has not (a snapshot's) holds nothing back.
  await replica.advance(1, none, undefined, () => [pinned, 999]);
  t.same(sequences(), [2, 3, 4]);
  t.ok((await recovered(r, replica, pinned)).equals(imageOf({ 1: 1, 2: 2 }, size)));
  await replica.advance(1, none, undefined, () => [1]);
  t.same(sequences(), [4], 'nor one that is gone');
  await replica.close();
});

t.test('a recovery never touches what exists, whatever it fails of', async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  const session = await replica.attach(writer);
  const gone = await put(replica, session, { 0: 1 }, size);
  r.nowMs += 10_000;
  const kept = await put(replica, session, { 0: 2 }, size);
  await replica.advance(0, none);
  const file = await r.disk.open('/copies/mine', 'write');
  await file.write([Buffer.from('mine')], 0);
  const options = { verify: true, signal: none, progress: () => undefined };
  await t.rejects(replica.recover(kept, '/copies/mine', options), { code: 'TargetRefused' });
  await t.rejects(replica.recover(gone, '/copies/mine', options), { code: 'PointGone' });
  t.same(r.sim.peek('/copies/mine'), Buffer.from('mine'));
  const stopped = { ...options, signal: AbortSignal.abort(new Error('stopped')) };
  await t.rejects(replica.recover(kept, '/copies/new', stopped));
  t.notOk(r.sim.paths().includes('/copies/new'), 'and leaves nothing of its own');
  t.same(
    readdirSync(r.indexFolder).filter((name) => name.startsWith('copy-')),
    [],
  );
  await replica.close();
});

t.test('rot is never served, scrub names it, and what is sent again heals it', async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  const session = await replica.attach(writer);
  await put(replica, session, { 0: 1, 1: 2 }, size);
  await replica.advance(0, none);
  await put(replica, session, { 2: 3, 3: 4 }, size);
  r.sim.flip(`${folder}/base/image.raw`, granuleBytes + 5);
  r.sim.flip(journalPath(r.sim.paths()), r.sim.peek(journalPath(r.sim.paths())).length - 5000);
  const options = { verify: true, signal: none, progress: () => undefined };
  for (const point of replica.points)
    await t.rejects(replica.recover(point, '/copies/x', options), { code: 'ReplicaDamaged' });
  t.equal((await replica.scrub(session, none, () => undefined)).badGranules, 2);
  await t.rejects(
    replica.commit(session, commitOf(3, size)),
    { code: 'ReplicaDamaged' },
    'no point over what is unknown',
  );
  const hashes = Buffer.concat([1, 2, 3, 4].map((value) => granuleHash(Buffer.alloc(granuleBytes, value))));
  const wanted = replica.want(session, 0, 0, hashes)[0] ?? 0;
  t.equal(wanted & 0b11, 0b10);
  t.ok([0b0100, 0b1000].includes(wanted & 0b1100), 'one of the two of the journal');
  await put(replica, session, { 1: 2, 2: 3, 3: 4 }, size);
  t.ok((await recovered(r, replica, 3)).equals(imageOf({ 0: 1, 1: 2, 2: 3, 3: 4 }, size)));
  t.equal((await replica.scrub(session, none, () => undefined)).badGranules, 0, 'and is not found again');
  await replica.close();
});

t.test('a base that is right by itself and not what was acknowledged is found by a scrub, and healed', async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  await put(replica, await replica.attach(writer), { 0: 1, 1: 2 }, size);
  await replica.advance(0, none);
  await replica.close();
  // As if the base had never heard of the granule.
  const index = new BlockIndex(`${r.indexFolder}/base/index.db`);
  for (const data of dataOf({ 1: 0 }, size)) index.stageData(data);
  if (index.newest) index.commit(index.newest);
  index.close();
  const image = await r.sim.mount().open(`${folder}/base/image.raw`, 'write');
  await image.zero(granuleBytes, granuleBytes);
  await image.sync();
  await image.close();

  const again = await r.open();
  await t.rejects(recovered(r, again, 1), { code: 'ReplicaDamaged' });
  const session = await again.attach(writer);
  t.equal((await again.scrub(session, none, () => undefined)).badGranules, 1);
  await put(again, session, { 1: 2, 5: 3 }, size);
  t.ok((await recovered(r, again, 2)).equals(imageOf({ 0: 1, 1: 2, 5: 3 }, size)));
  t.equal((await again.scrub(session, none, () => undefined)).badGranules, 0);
  await again.close();
});

t.test(
  'a snapshot of a commit that was lost with the journal is no beginning for one that has its number now',
  async (t) => {
    const r = await rig(t);
    const replica = await r.open({ segmentBytes: 1 });
    const session = await replica.attach(writer);
    await put(replica, session, { 0: 1 }, size);
    await put(replica, session, { 1: 2 }, size);
    const lost = await put(replica, session, { 2: 3 }, size);
    await replica.snapshot('lost', lost, none, () => undefined);
    await replica.close();
    const [newest = ''] = r.sim.paths().filter((path) => path.endsWith('0000000000000003.log'));
    r.sim.flip(newest, 16);
    const again = await r.open({ segmentBytes: 1 });
    t.equal(again.head.sequence, 2);
    const anew = await again.attach(writer);
    await put(again, anew, { 3: 4 }, size);
    await put(again, anew, { 4: 5 }, size);
    t.ok((await recovered(r, again, 3)).equals(imageOf({ 0: 1, 1: 2, 3: 4 }, size)));
    t.ok((await recovered(r, again, 4)).equals(imageOf({ 0: 1, 1: 2, 3: 4, 4: 5 }, size)));
    const point = again.snapshotPoint('lost');
    if (point) await again.recover(point, '/copies/lost', { verify: true, signal: none, progress: () => undefined });
    t.ok(r.sim.peek('/copies/lost').equals(imageOf({ 0: 1, 1: 2, 2: 3 }, size)), 'it is what it was');
    await again.close();
  },
);

t.test("rot in what a volume that shrank has lost is nobody's loss", async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  const session = await replica.attach({ ...writer, force: true });
  await put(replica, session, { 0: 1 }, size);
  await put(replica, session, { 8: 1 }, size);
  r.sim.flip(journalPath(r.sim.paths()), 5000);
  t.equal((await replica.scrub(session, none, () => undefined)).badGranules, 1);
  await put(replica, session, {}, 2 * granuleBytes);
  t.equal((await replica.scrub(session, none, () => undefined)).badGranules, 0);
  await replica.close();
});

t.test(
  'a granule that is cut by a smaller size does not pass for what it was when the volume grows again',
  async (t) => {
    const r = await rig(t);
    const replica = await r.open();
    const session = await replica.attach({ ...writer, force: true });
    await put(replica, session, { 0: 1, 4: 4 }, size);
    const cut = 5 * granuleBytes - 1000;
    await put(replica, session, { 0: 2 }, cut, { point: false });
    t.equal(replica.head.unknown, 1);
    await t.rejects(replica.commit(session, commitOf(3, size)), { code: 'ReplicaDamaged' });
    await put(replica, session, { 4: 4 }, size);
    await put(replica, session, { 4: 5 }, cut);
    t.equal(replica.head.unknown, 0, 'sent at its new length it is known');
    t.ok((await recovered(r, replica, 3)).equals(imageOf({ 0: 2, 4: 4 }, size)));
    t.ok((await recovered(r, replica, 4)).equals(imageOf({ 0: 2, 4: 5 }, cut)));
    await replica.close();
  },
);

t.test('a frame that rotted in the middle is found, and opening anew goes on from there', async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  let session = await replica.attach(writer);
  await put(replica, session, { 0: 1 }, size);
  const second = replica.journalBytes;
  await put(replica, session, { 1: 2 }, size);
  await put(replica, session, { 2: 3 }, size);
  r.sim.flip(journalPath(r.sim.paths()), second + 30);
  t.equal(replica.damaged, false);
  await t.rejects(
    replica.scrub(session, none, () => undefined),
    { code: 'ReplicaDamaged' },
  );
  t.equal(replica.damaged, true);
  await replica.close();
  const after = await r.open();
  t.same([after.head.sequence, after.damaged], [1, false]);
  session = await after.attach(writer);
  await put(after, session, { 1: 2, 2: 3 }, size);
  t.ok((await recovered(r, after, 2)).equals(imageOf({ 0: 1, 1: 2, 2: 3 }, size)));
  await after.close();
});

t.test('a journal that rotted away below the base starts anew', async (t) => {
  const r = await rig(t);
  let replica = await r.open();
  await put(replica, await replica.attach(writer), { 0: 1 }, size);
  const one = replica.journalBytes;
  await put(replica, await replica.attach(writer), { 1: 2 }, size);
  r.nowMs += 1000;
  await replica.advance(0, none);
  await replica.close();
  r.sim.flip(journalPath(r.sim.paths()), one + 30);
  replica = await r.open();
  await put(replica, await replica.attach(writer), { 2: 3 }, size);
  await replica.close();
  replica = await r.open();
  t.equal(replica.head.sequence, 3, 'what came after it is there');
  t.ok((await recovered(r, replica, 3)).equals(imageOf({ 0: 1, 1: 2, 2: 3 }, size)));
  await replica.close();
});

t.test('a head index that is lost, or no database, is built anew', async (t) => {
  const r = await rig(t);
  let replica = await r.open();
  const session = await replica.attach(writer);
  await put(replica, session, { 0: 1 }, size);
  await replica.advance(0, none);
  const { digest } = await put(replica, session, { 1: 2 }, size);
  await replica.close();
  writeFileSync(`${r.indexFolder}/head.db`, Buffer.alloc(8192, 0x5a));
  replica = await r.open();
  t.match(r.doubts.join(), /cannot be read/);
  t.ok(replica.head.digest.equals(digest));
  await replica.close();
});

t.test(
  'a snapshot outlives its point and the source of its blocks, and a crash leaves it whole or absent',
  async (t) => {
    const r = await rig(t);
    let replica = await r.open({ segmentBytes: 1 });
    const point = await put(replica, await replica.attach(writer), { 0: 1 }, size);
    await replica.snapshot('s', point, none, () => undefined);
    r.nowMs += 10_000;
    await put(replica, await replica.attach(writer), { 0: 2 }, size);
    await replica.advance(0, none);
    t.notOk(replica.points.includes(point));
    await replica.close();
    r.sim.crash(true);
    r.disk = r.sim.mount();
    replica = await r.open({ segmentBytes: 1 });
    const kept = replica.snapshotPoint('s');
    t.ok(kept);
    if (!kept) return;
    await replica.recover(kept, '/copies/s', { verify: true, signal: none, progress: () => undefined });
    t.ok(r.sim.peek('/copies/s').equals(imageOf({ 0: 1 }, size)));
    await replica.deleteSnapshot('s');
    t.equal(replica.snapshotPoint('s'), undefined);
    t.same(
      r.sim.paths().filter((path) => path.includes('/snapshots/')),
      [],
    );
    await replica.close();
  },
);
