/**
 * The first copy straight into the image, cut off anywhere: a writer that knows nothing offers its whole volume in each
 * session, as an agent does; the volume goes on changing, content comes and goes, sizes change.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import t, { type Test } from 'tap';
import { Replica } from '../../../../master/replica/replica.ts';
import type { ReplicaSession } from '../../../../master/replica/writer.ts';
import { asReplicationError } from '../../../../proto/errors.ts';
import { granuleBytes, granuleCount, granuleHash, granuleLength, isZero } from '../../../../proto/granule.ts';
import { SimClock } from '../../../sim/clock.ts';
import { Dice } from '../../../sim/dice.ts';
import { volumeDigest } from '../../../sim/digest.ts';
import { SimDisk } from '../../../sim/disk.ts';
import { Indexes } from '../../../sim/indexes.ts';
import { commitOf, dataOf, folder, imageOf, none, put, recovered, rig, writer } from './blockreplica.ts';

const size = 10 * granuleBytes - 1000;
const windowBytes = 64 << 20;
const nothing = Buffer.alloc(0);

t.test('content goes into the image once, and the journal tells of it', async (t) => {
  const r = await rig(t);
  let replica = await r.open();
  const session = await replica.attach(writer);
  await put(replica, session, { 0: 1, 9: 9 }, size, { point: false });
  t.ok(replica.journalBytes < 1000, `the journal has ${replica.journalBytes} bytes`);
  await put(replica, session, { 3: 3 }, size);
  t.ok(replica.journalBytes < 2000);
  t.ok(r.sim.peek(`${folder}/base/image.raw`).equals(imageOf({ 0: 1, 3: 3, 9: 9 }, size)));
  await put(replica, session, { 4: 4 }, size);
  t.ok(replica.journalBytes > granuleBytes, 'from the first point on the image stays as it is');
  t.ok(r.sim.peek(`${folder}/base/image.raw`).equals(imageOf({ 0: 1, 3: 3, 9: 9 }, size)));
  await replica.close();
  replica = await r.open();
  t.same([r.doubts, replica.points.map(({ sequence }) => sequence)], [[], [2, 3]]);
  t.ok((await recovered(r, replica, 2)).equals(imageOf({ 0: 1, 3: 3, 9: 9 }, size)));
  t.ok((await recovered(r, replica, 3)).equals(imageOf({ 0: 1, 3: 3, 4: 4, 9: 9 }, size)));
  t.equal((await replica.scrub(await replica.attach(writer), none, () => undefined)).badGranules, 0);
  await replica.close();
});

t.test('what an epoch left behind is asked for again, also where the volume is zero or as it was before', async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  let session = await replica.attach(writer);
  await put(replica, session, { 0: 1, 1: 1 }, size, { point: false });
  for (const data of dataOf({ 0: 7, 5: 7 }, size)) await replica.data(session, data);
  session = await replica.attach(writer);
  t.equal(replica.head.unknown, 2);
  await t.rejects(replica.commit(session, commitOf(2, size)), { code: 'ReplicaDamaged' }, 'no point on unknown bytes');
  const hashes = Buffer.alloc(10 * 16);
  granuleHash(Buffer.alloc(granuleBytes, 1)).copy(hashes, 0);
  granuleHash(Buffer.alloc(granuleBytes, 1)).copy(hashes, 16);
  const [wanted = 0] = replica.want(session, 0, 0, hashes);
  t.equal(wanted, 0b100001);
  await put(replica, session, { 0: 1, 5: 0 }, size);
  t.ok((await recovered(r, replica, 2)).equals(imageOf({ 0: 1, 1: 1 }, size)));
  await replica.close();
});

t.test('what the very first epoch left behind is gone: a blank replica is zeros', async (t) => {
  const r = await rig(t);
  const before = await r.open();
  const cut = await before.attach(writer);
  for (const data of dataOf({ 5: 7 }, size)) await before.data(cut, data);
  r.sim.crash(false);
  r.disk = r.sim.mount();
  const replica = await r.open();
  t.equal(replica.head.blank, true);
  await put(replica, await replica.attach(writer), { 0: 1 }, size);
  t.ok((await recovered(r, replica, 1)).equals(imageOf({ 0: 1 }, size)));
  await replica.close();
});

t.test('a first point is in the journal when its bytes are durable in the image', async (t) => {
  const values = Object.fromEntries([...Array(10).keys()].map((at) => [at, at + 1]));
  for (let loss = 0; loss < 5; loss++) {
    const r = await rig(t, loss);
    const plain = r.disk;
    let syncs = Infinity;
    r.disk = {
      ...plain,
      async open(path, mode) {
        const file = await plain.open(path, mode);
        if (!path.endsWith('.log')) return file;
        return {
          ...file,
          async sync() {
            await file.sync();
            if (--syncs > 0) return;
            r.sim.crash(true);
            throw Object.assign(new Error('EIO'), { code: 'EIO' });
          },
        };
      },
    };
    const before = await r.open();
    const session = await before.attach({ ...writer, sizeBytes: size });
    for (const data of dataOf(values, size)) await before.data(session, data);
    // The record of the commit is durable with the second one, and nobody has heard of it.
    syncs = 2;
    await t.rejects(before.commit(session, commitOf(1, size)));
    await before.close().catch(() => undefined);
    r.disk = r.sim.mount();
    const replica = await r.open();
    t.equal(replica.points.length, 1);
    t.equal(replica.head.unknown, 0);
    t.ok((await recovered(r, replica, 1)).equals(imageOf(values, size)));
    await replica.close();
  }
});

t.test('a stretch over many windows is journaled, and what comes after it in its epoch', async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  const large = 40 * windowBytes;
  const session = await replica.attach({ ...writer, sizeBytes: large });
  await put(replica, session, { 1: 1 }, large, { point: false });
  const zeros = { object: 0, first: 0, count: granuleCount(large), zero: true, tailBytes: granuleBytes };
  await replica.data(session, { runs: [zeros], hashes: nothing, compression: 0, rawBytes: 0, payload: nothing });
  await put(replica, session, { 1: 2 }, large, { point: false });
  t.ok(replica.journalBytes > granuleBytes);
  await replica.advance(0, none);
  const { journalBytes } = replica;
  await put(replica, session, { 2: 3 }, large);
  t.ok(replica.journalBytes - journalBytes < granuleBytes, 'placed again once the base has followed');
  const [point] = replica.points;
  if (!point) throw new Error('no point');
  const copy = await replica.recover(point, '/copies/large', { verify: true, signal: none, progress: () => undefined });
  t.ok(copy.verified);
  await replica.close();
});

interface Counts {
  sessions: number;
  crashes: number;
  unknown: number;
  points: number;
}

/** One volume from nothing to some points, with everything in between going wrong. */
async function cutOff(seed: number, counts: Counts): Promise<string | undefined> {
  const dice = new Dice(seed);
  const root = mkdtempSync(`${tmpdir()}/placing-`);
  let calls = Infinity;
  let power = false;
  const sim = new SimDisk({
    clock: new SimClock(),
    dice: dice.fork('disk'),
    reflink: dice.chance(0.5),
    capacityBytes: 1 << 30,
    onCall: () => {
      if (--calls > 0) return;
      calls = Infinity;
      counts.crashes++;
      sim.crash(power);
      indexes.crash(power, []);
    },
  });
  sim.slowChance = 0;
  const indexes = new Indexes(root, dice.fork('indexes'));
  const values: Record<number, number> = {};
  let sizeBytes = size;
  const expected = new Map<string, Buffer>();
  const expect = (): void => {
    const image = imageOf(values, sizeBytes);
    expected.set(volumeDigest(image).toString('hex'), image);
  };
  const change = (): void => {
    for (let i = dice.below(4); i > 0; i--) values[dice.below(granuleCount(sizeBytes))] = dice.pick([0, 0, 1, 2, 3]);
    if (dice.chance(0.1)) sizeBytes += granuleBytes;
    if (!dice.chance(0.05) || sizeBytes < 4 * granuleBytes) return;
    sizeBytes -= granuleBytes;
    // What a volume loses it has not got back when it grows again.
    for (const key of Object.keys(values)) if (Number(key) >= granuleCount(sizeBytes)) delete values[Number(key)];
  };
  const prepare = sim.mount();
  await prepare.mkdir('/class');
  await prepare.mkdir('/copies');
  await prepare.syncDirectory('/');
  change();
  let known: Set<number>;
  const send = async (replica: Replica, session: ReplicaSession, granules: number[]): Promise<void> => {
    const content = Object.fromEntries(granules.map((granule) => [granule, values[granule] ?? 0]));
    for (const data of dataOf(content, sizeBytes)) await replica.data(session, data);
    granules.forEach((granule) => known.add(granule));
  };
  const serve = async (replica: Replica): Promise<void> => {
    const session = await replica.attach({ ...writer, sizeBytes, force: true });
    counts.sessions++;
    known = new Set(replica.head.blank ? [...Array(granuleCount(sizeBytes)).keys()].filter((i) => !values[i]) : []);
    for (let step = dice.between(2, 12); step > 0; step--) {
      const [before, sizeBefore] = [{ ...values }, sizeBytes];
      change();
      // What was last, or is now, has another length.
      if (sizeBytes !== sizeBefore) for (const end of [sizeBefore, sizeBytes]) known.delete(granuleCount(end) - 1);
      for (const key of Object.keys(values))
        if ((values[Number(key)] ?? 0) !== (before[Number(key)] ?? 0)) known.delete(Number(key));
      const all = [...Array(granuleCount(sizeBytes)).keys()];
      const some = all.filter((granule) => !known.has(granule) && dice.chance(0.5));
      for (const granule of some) {
        const bytes = Buffer.alloc(granuleLength(granule, sizeBytes), values[granule] ?? 0);
        const hash = isZero(bytes) ? Buffer.alloc(16) : granuleHash(bytes);
        const lacks = ((replica.want(session, 0, granule, hash)[0] ?? 0) & 1) === 1;
        if (lacks) await send(replica, session, [granule]);
        known.add(granule);
      }
      const whole = all.every((granule) => known.has(granule));
      if (!whole && dice.chance(0.5)) continue;
      const point = whole && dice.chance(0.5);
      // A commit may be durable and not be heard of.
      if (point) expect();
      await replica.commit(session, commitOf(replica.head.sequence + 1, sizeBytes, { point }));
      counts.unknown += replica.head.unknown;
      counts.points += Number(point);
      if (dice.chance(0.3)) await replica.advance(dice.pick([0, 1000]), none);
    }
    if (dice.chance(0.5)) await replica.detach(session);
  };
  try {
    for (let life = 0; life < 6; life++) {
      calls = dice.chance(0.8) ? 1 + dice.below(dice.pick([20, 120])) : Infinity;
      power = dice.chance(0.5);
      const { folder: indexFolder } = indexes;
      const effects = {
        clock: { nowMs: () => 1e6, monotonicMs: () => 1e6, sleep: async () => undefined },
        random: dice.fork(`random ${life}`),
        disk: sim.mount(),
      };
      let replica: Replica | undefined;
      try {
        replica = await Replica.open({ effects, place: { folder, indexFolder }, mode: 'Block' });
        for (let n = dice.below(4); n >= 0; n--) await serve(replica);
      } catch (error) {
        const { code } = asReplicationError(error);
        if (calls !== Infinity || !['TargetFailed', 'Internal'].includes(code)) throw error;
      } finally {
        calls = Infinity;
        await replica?.close().catch(() => undefined);
      }
    }
    const replica = await Replica.open({
      effects: {
        clock: { nowMs: () => 1e6, monotonicMs: () => 1e6, sleep: async () => undefined },
        random: dice.fork('last'),
        disk: sim.mount(),
      },
      place: { folder, indexFolder: indexes.folder },
      mode: 'Block',
    });
    const session = await replica.attach({ ...writer, sizeBytes, force: true });
    known = new Set();
    for (let granule = 0; granule < granuleCount(sizeBytes); granule++) {
      const bytes = Buffer.alloc(granuleLength(granule, sizeBytes), values[granule] ?? 0);
      const hash = isZero(bytes) ? Buffer.alloc(16) : granuleHash(bytes);
      if (((replica.want(session, 0, granule, hash)[0] ?? 0) & 1) === 1) await send(replica, session, [granule]);
    }
    expect();
    await replica.commit(session, commitOf(replica.head.sequence + 1, sizeBytes));
    for (const point of replica.points) {
      await replica.recover(point, '/copies/one', { verify: true, signal: none, progress: () => undefined });
      if (!expected.get(point.digest.toString('hex'))?.equals(sim.peek('/copies/one')))
        return `point ${point.sequence}`;
      sim.unlink('/copies/one');
    }
    const { badGranules } = await replica.scrub(session, none, () => undefined);
    await replica.close();
    return badGranules === 0 ? undefined : `${badGranules} bad`;
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}

t.test('cut off anywhere, and content that comes and goes: every point is the volume of its time', async (t: Test) => {
  const counts: Counts = { sessions: 0, crashes: 0, unknown: 0, points: 0 };
  const first = Number(process.env['REPLICATOR_SEED'] ?? 1);
  const seeds = process.env['REPLICATOR_LONG'] ? 400 : 25;
  for (let seed = first; seed < first + seeds; seed++) {
    const wrong = await cutOff(seed, counts).catch((error: unknown) => (error as Error).stack);
    if (wrong !== undefined) t.fail(`seed ${seed}: ${wrong}`);
  }
  t.comment(JSON.stringify(counts));
  t.ok(counts.crashes > seeds && counts.unknown > 0 && counts.points > seeds, JSON.stringify(counts));
});
