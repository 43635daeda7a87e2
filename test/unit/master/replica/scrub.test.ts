import { copyFileSync } from 'node:fs';
import t from 'tap';
import type { CommitRecord } from '../../../../master/replica/frame.ts';
import { Journal } from '../../../../master/replica/journal.ts';
import type { Replica } from '../../../../master/replica/replica.ts';
import { granuleBytes, granuleHash } from '../../../../proto/granule.ts';
import { volumeDigest } from '../../../sim/digest.ts';
import { dataOf, imageOf, none, put, recovered, rig, writer, type Rig } from './blockreplica.ts';

const size = 10 * granuleBytes - 1000;

/** The journal's last epoch is another one of the same number, right by itself. */
async function endElsewhere(r: Rig, replica: Replica, values: Record<number, number>, digest: Buffer): Promise<void> {
  const path = r.sim.paths().findLast((one) => one.includes('/journal/')) ?? '';
  const whole = r.sim.peek(path);
  const { sequence } = replica.head;
  const other = await Journal.open(r.disk, '/copies/other', 1 << 30, () => undefined);
  for (const data of dataOf(values, size)) await other.append(sequence, { data });
  const newest = replica.newestPoint as CommitRecord;
  await other.commit({ ...newest, digest });
  await other.close();
  const epoch = r.sim.peek(`/copies/other/${String(sequence).padStart(16, '0')}.log`);
  const file = await r.disk.open(path, 'write');
  await file.write([epoch], whole.length - epoch.length);
  await file.close();
}

t.test('a journal that ends with other content than was acknowledged is found by a scrub, and healed', async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  const session = await replica.attach(writer);
  await put(replica, session, { 0: 1, 1: 2 }, size);
  await replica.advance(0, none);
  await put(replica, session, { 2: 3, 3: 4 }, size);
  await endElsewhere(r, replica, { 2: 3, 3: 5 }, volumeDigest(imageOf({ 0: 1, 1: 2, 2: 3, 3: 5 }, size)));
  await t.rejects(recovered(r, replica, 2), { code: 'ReplicaDamaged' });
  t.equal((await replica.scrub(session, none, () => undefined)).badGranules, 1);
  const hashes = Buffer.concat([1, 2, 3, 4].map((value) => granuleHash(Buffer.alloc(granuleBytes, value))));
  t.same([...replica.want(session, 0, 0, hashes)], [0b1000], 'the one that differs is asked for');
  await put(replica, session, { 3: 4 }, size);
  t.ok((await recovered(r, replica, 3)).equals(imageOf({ 0: 1, 1: 2, 2: 3, 3: 4 }, size)));
  t.equal((await replica.scrub(session, none, () => undefined)).badGranules, 0);
  await replica.close();
});

t.test('a journal that ends with another commit of the same content is damaged, by the word of a scrub', async (t) => {
  const r = await rig(t);
  let replica = await r.open();
  const session = await replica.attach(writer);
  await put(replica, session, { 0: 1 }, size);
  await replica.advance(0, none);
  await put(replica, session, { 2: 3 }, size);
  await endElsewhere(r, replica, { 2: 3 }, Buffer.alloc(16, 7));
  await t.rejects(
    replica.scrub(session, none, () => undefined),
    {
      code: 'ReplicaDamaged',
      message: /ends with another commit 2 than was acknowledged/,
    },
  );
  t.ok(replica.damaged, 'its owner opens it anew');
  await replica.close();
  replica = await r.open();
  t.ok((await recovered(r, replica, 1)).equals(imageOf({ 0: 1 }, size)), 'which brings it to where it is whole');
  t.equal(replica.head.sequence, 1);
  await replica.close();
});

t.test('what a scrub found wrong is known after a power cut too: what was committed since is over that', async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  const session = await replica.attach(writer);
  await put(replica, session, { 0: 1, 1: 2 }, size);
  await replica.advance(0, none);
  await put(replica, session, { 2: 3 }, size);
  r.sim.flip('/class/r/base/image.raw', granuleBytes + 5);
  t.equal((await replica.scrub(session, none, () => undefined)).badGranules, 1);
  await put(replica, session, { 3: 4 }, size, { point: false });
  // Only what was checkpointed is sure to be on the disk.
  const heads = [`${r.indexFolder}/head.db`, `${r.indexFolder}/head.db.checkpointed`] as const;
  copyFileSync(...heads);
  r.sim.crash(true);
  await replica.close();
  copyFileSync(heads[1], heads[0]);
  r.disk = r.sim.mount();
  const after = await r.open();
  t.same(r.doubts, []);
  t.same(
    after.points.map(({ sequence }) => sequence),
    [1, 2],
  );
  t.match(after.head, { sequence: 3, unknown: 1 });
  await put(after, await after.attach(writer), { 1: 2 }, size);
  t.ok((await recovered(r, after, 4)).equals(imageOf({ 0: 1, 1: 2, 2: 3, 3: 4 }, size)));
  await after.close();
});
