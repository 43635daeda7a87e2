/**
 * What every storage class must do, whatever it lies on: places, points, copies, snapshots, locks, removal, space. Run by
 * storage.test.ts for each driver on each kind of filesystem.
 */
import { spawnSync } from 'node:child_process';
import { readFileSync, rmSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { basename } from 'node:path';
import type { Test } from 'tap';
import type { Clock, Disk } from '../../proto/effects.ts';
import { granuleBytes } from '../../proto/granule.ts';
import { systemClock, systemEffects } from '../../proto/system.ts';
import { runBytes, unpack } from '../../proto/payload.ts';
import type { HeldReplica } from '../../master/held.ts';
import type { Part } from '../../master/replica/records.ts';
import { readHello } from '../../master/session.ts';
import type { StorageDriver } from '../../master/storage.ts';
import { streamPair } from '../../proto/stream.ts';
import type { MirrorReply, MirrorRequest } from '../../proto/wire.ts';
import { commitOf, dataOf, imageOf, none } from '../unit/master/replica/blockreplica.ts';

export interface StorageKind {
  /** A new driver on the same storage, as another process would open it; locks end by this clock. */
  open(clock: Clock): StorageDriver;
  /** Where replicas lie, as this machine sees it. */
  folder: string;
  disk: Disk;
  /** A folder on the same storage for copies. */
  copies: string;
  reflink: boolean;
  /** Files can be made immutable. */
  immutable: boolean;
}

export const uid = '11111111-2222-3333-4444-555555555555';
export const size = 10 * granuleBytes;
const hourMs = 3600_000;

interface Lab {
  clock: Clock & { offsetMs: number };
  driver: StorageDriver;
  folder: string;
  replica: HeldReplica;
  reopen(): Promise<void>;
  close(): Promise<void>;
}

async function lab(t: Test, kind: StorageKind): Promise<Lab> {
  const clock = { ...systemClock, offsetMs: 0, nowMs: () => Date.now() + clock.offsetMs };
  const driver = kind.open(clock);
  const open = (name = 'shop'): Promise<HeldReplica> =>
    driver.open({ name, uid, mode: 'Block', onDoubt: () => undefined, onChange: () => undefined });
  let closed = false;
  const made: Lab = {
    clock,
    driver,
    folder: `${kind.folder}/shop-${uid}`,
    replica: await open(),
    async reopen() {
      await made.close();
      made.replica = await open('renamed');
      closed = false;
    },
    async close() {
      if (!closed) await made.replica.close();
      closed = true;
    },
  };
  t.teardown(async () => {
    await made.close();
    spawnSync('chattr', ['-R', '-i', made.folder]);
    await rm(made.folder, { recursive: true, force: true });
  });
  await mirrored(made.replica, { 0: 1, 1: 2 }, { 1: 3 }, { 9: 4 });
  await made.replica.advance(3600, none);
  return made;
}

/** What each point of a lab is. */
function pointImages(): Buffer[] {
  return [
    { 0: 1, 1: 2 },
    { 0: 1, 1: 3 },
    { 0: 1, 1: 3, 9: 4 },
  ].map((values) => imageOf(values, size));
}

/** What an agent does: each of the epochs becomes a point. Answers the newest sequence. */
export async function mirrored(replica: HeldReplica, ...epochs: Record<number, number>[]): Promise<number> {
  const { client, server } = streamPair<MirrorRequest, MirrorReply>();
  let number = 0;
  const send = (message: Omit<MirrorRequest, 'number'>): Promise<void> => client.send({ number: ++number, ...message });
  const facts = { volumeMode: 'Block', sizeBytes: size, sourceId: 'id', force: false };
  await send({ hello: { protocol: 1, replicationUid: uid, fencingGeneration: '1', ...facts } });
  const hello = await readHello(server);
  const events = { onCommit: () => undefined, onVerified: () => undefined };
  const served = replica.serve('agent', hello, server, systemClock, events, none).then(
    () => server.end(),
    (error: unknown) => {
      server.cancel();
      throw error;
    },
  );
  /** Until the next one of that kind. */
  const heard = async <K extends keyof MirrorReply>(kind: K): Promise<NonNullable<MirrorReply[K]>> => {
    for (;;) {
      const reply = await client.receive.next();
      if (reply.done === true) throw new Error(`the call ended before ${kind}`);
      const found = reply.value[kind];
      if (found !== undefined) return found;
    }
  };
  const conversation = async (): Promise<number> => {
    let { headSequence } = await heard('welcome');
    for (const values of epochs) {
      for (const data of dataOf(values, size)) await send({ data });
      await send({ commit: commitOf(headSequence + 1, size) });
      headSequence = (await heard('committed')).sequence;
    }
    client.end();
    return headSequence;
  };
  const [sequence] = await Promise.all([conversation(), served]);
  return sequence;
}

async function snapshot(replica: HeldReplica, name: string, lockedUntilMs?: number): Promise<void> {
  const point = replica.newestPoint;
  if (!point) throw new Error('no point');
  await replica.snapshot(name, point, none, () => undefined, lockedUntilMs);
}

export async function storageSuite(t: Test, kind: StorageKind): Promise<void> {
  await t.test('a place is the same each time, listed, and gone when removed', async (t) => {
    const made = await lab(t, kind);
    const { driver, folder } = made;
    t.same(await driver.list(), [uid]);
    await made.reopen();
    const folders = (await systemEffects.disk.list(kind.folder)).filter((name) => name.endsWith(uid));
    t.same(folders, [basename(folder)], 'the uid counts, not the name');
    t.equal(made.replica.points.length, 3);
    await made.close();
    await driver.remove(uid);
    t.same(await driver.list(), []);
    await driver.remove(uid);
  });

  await t.test('space, use and sharing of blocks are told as they are', async (t) => {
    const { driver } = await lab(t, kind);
    t.equal(await driver.reflink(), kind.reflink);
    const { capacityBytes = 0, freeBytes = 0 } = await driver.space();
    t.ok(freeBytes > 0 && freeBytes <= capacityBytes);
    const usage = await driver.usage(uid);
    // The first one went straight into the image.
    t.ok(usage && usage.journalBytes >= 2 * granuleBytes, JSON.stringify(usage));
    t.equal(await driver.usage(uid.replace('1', '9')), undefined);
  });

  await t.test('every point in the journal is recovered to the byte, ten at once', async (t) => {
    const { replica } = await lab(t, kind);
    const images = pointImages();
    const copies = Array.from({ length: 10 }, async (_, index) => {
      const point = replica.points[index % 3];
      const path = `${kind.copies}/copy-${index}`;
      t.teardown(() => rmSync(path, { force: true }));
      if (!point) throw new Error('no point');
      await replica.recover(point, path, { verify: true, signal: none, progress: () => undefined });
      return readFileSync(path).equals(images[index % 3] ?? Buffer.alloc(0));
    });
    t.same(await Promise.all(copies), new Array(10).fill(true));
  });

  await t.test('every point is poured as parts that make it, the last of which has its digest', async (t) => {
    const { replica } = await lab(t, kind);
    const images = pointImages();
    for (const [index, point] of replica.points.entries()) {
      t.equal(await replica.measure(point), size);
      const image = Buffer.alloc(size, 0xee);
      let digest: Buffer | undefined;
      const sink = async (part: Part): Promise<void> => {
        t.notOk(digest?.length, 'nothing comes after it');
        if ('commit' in part) ({ digest } = part.commit);
        if (!('data' in part)) return;
        const raw = unpack(part.data);
        let at = 0;
        for (const run of part.data.runs) {
          const from = run.first * granuleBytes;
          if (run.zero) image.fill(0, from, from + run.count * granuleBytes);
          else at += raw.copy(image, from, at, at + runBytes(run));
        }
      };
      await replica.pour(point, sink, none);
      t.ok(image.equals(images[index] ?? Buffer.alloc(0)), `point ${index}`);
      t.same(digest, point.digest);
      const full = new Error('no room');
      await t.rejects(
        replica.pour(point, () => Promise.reject(full), none),
        { message: /no room/ },
      );
    }
  });

  await t.test('a snapshot outlives the journal, restarts, and is whole', async (t) => {
    const made = await lab(t, kind);
    await snapshot(made.replica, 'one');
    await mirrored(made.replica, { 5: 5 });
    made.clock.offsetMs += hourMs;
    await made.replica.advance(0, none);
    await made.reopen();
    t.equal(made.replica.points.length, 1);
    const point = made.replica.snapshotPoint('one');
    if (!point) return t.fail('the snapshot is gone');
    const path = `${kind.copies}/of-snapshot`;
    t.teardown(() => rmSync(path, { force: true }));
    await made.replica.recover(point, path, { verify: true, signal: none, progress: () => undefined });
    t.ok(readFileSync(path).equals(imageOf({ 0: 1, 1: 3, 9: 4 }, size)));
    await made.replica.deleteSnapshot('one');
    t.equal(made.replica.snapshotPoint('one'), undefined);
    t.same(await systemEffects.disk.list(`${made.folder}/snapshots`), []);
  });

  await t.test('a lock holds against the replica, the driver and a driver that knows nothing else', async (t) => {
    const made = await lab(t, kind);
    const untilMs = Math.ceil(made.clock.nowMs()) + hourMs;
    await snapshot(made.replica, 'one', untilMs);
    await snapshot(made.replica, 'free');
    const locked = { code: 'SnapshotLocked', message: /one is locked until 2/ };
    const holds = async (why: string): Promise<void> => {
      await t.rejects(made.replica.deleteSnapshot('one'), locked, `the replica: ${why}`);
      await t.rejects(made.driver.remove(uid), locked, `the driver: ${why}`);
      await t.rejects(kind.open(made.clock).remove(uid), locked, `another driver: ${why}`);
      t.same([...(await kind.open(made.clock).locks(uid))], [['one', untilMs]], why);
      t.ok(made.replica.snapshotPoint('one'));
    };
    await holds('at once');
    t.equal(await made.replica.lockSnapshot('one', untilMs - 1000), untilMs, 'it is not made shorter');
    await made.reopen();
    await holds('after a restart');
    t.ok(made.replica.snapshotPoint('free'), 'nothing else was removed by what was refused');
    const path = `${made.folder}/snapshots/one/image.raw`;
    const removed = spawnSync('rm', ['-f', path]).status === 0;
    if (process.getuid?.() === 0) t.equal(removed, !kind.immutable, 'rm by hand');
    made.clock.offsetMs += hourMs - 5000;
    if (kind.immutable) await holds('shortly before the end');
    made.clock.offsetMs += 6000;
    await made.replica.deleteSnapshot('one');
    t.same(await systemEffects.disk.list(`${made.folder}/snapshots`), ['free'], 'over, and gone');
  });

  await t.test('a snapshot that is there can be locked, and longer, and counts for the whole replica', async (t) => {
    const made = await lab(t, kind);
    await snapshot(made.replica, 'one');
    const untilMs = Math.ceil(made.clock.nowMs()) + hourMs;
    t.equal(await made.replica.lockSnapshot('one', untilMs), untilMs);
    t.equal(await made.replica.lockSnapshot('one', untilMs + hourMs), untilMs + hourMs);
    made.clock.offsetMs += hourMs + 5000;
    await t.rejects(made.replica.deleteSnapshot('one'), { code: 'SnapshotLocked' });
    made.clock.offsetMs += hourMs;
    await made.close();
    await made.driver.remove(uid);
    t.same(await made.driver.list(), []);
  });

  await t.test('a lock that cannot be read holds for ever, and says where', async (t) => {
    const made = await lab(t, kind);
    await snapshot(made.replica, 'one', made.clock.nowMs() + hourMs);
    const note = `${made.folder}/snapshots/one/lock.json`;
    await kind.disk.immutable?.(note, false);
    const file = await systemEffects.disk.open(note, 'write');
    await file.truncate(3);
    await file.close();
    made.clock.offsetMs += 2 * hourMs;
    await t.rejects(made.replica.deleteSnapshot('one'), {
      code: 'SnapshotLocked',
      message: /lock.json cannot be read/,
    });
    await t.rejects(made.driver.remove(uid), { code: 'SnapshotLocked' });
  });

  await t.test('what is damaged on storage is never handed out', async (t) => {
    const made = await lab(t, kind);
    await snapshot(made.replica, 'one');
    const point = made.replica.snapshotPoint('one');
    const file = await systemEffects.disk.open(`${made.folder}/base/image.raw`, 'write');
    await file.write([Buffer.from('rot')], 0);
    await file.close();
    const newest = await mirrored(made.replica, { 7: 7 });
    const recover = { verify: true, signal: none, progress: () => undefined };
    t.teardown(() => rmSync(`${kind.copies}/good`, { force: true }));
    if (point) await made.replica.recover(point, `${kind.copies}/good`, recover);
    t.ok(readFileSync(`${kind.copies}/good`).equals(imageOf({ 0: 1, 1: 3, 9: 4 }, size)), 'the snapshot is whole');
    const oldest = made.replica.points[0];
    if (oldest)
      await t.rejects(made.replica.recover(oldest, `${kind.copies}/bad`, recover), { code: 'ReplicaDamaged' });
    t.equal(newest, 4);
    t.notOk(await systemEffects.disk.size(`${kind.copies}/bad`), 'nothing stays behind');
  });
}
