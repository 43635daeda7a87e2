import t from 'tap';
import { OnDemandReplica } from '../../../../master/replica/ondemand.ts';
import { OpenSet } from '../../../../master/replica/openset.ts';
import { defaultLimits } from '../../../../master/replica/limits.ts';
import type { ReplicaSession } from '../../../../master/replica/writer.ts';
import { granuleBytes } from '../../../../proto/granule.ts';
import { Permits } from '../../../../proto/lock.ts';
import { Dice } from '../../../sim/dice.ts';
import { commitOf, dataOf, folder, imageOf, none, rig, writer } from './blockreplica.ts';

const size = 10 * granuleBytes;

/** One that is closed whenever nobody needs it. */
async function resting(t: Parameters<typeof rig>[0]) {
  const own = await rig(t);
  const openSet = new OpenSet<OnDemandReplica>(0);
  const opened = { times: 0 };
  const replica = await OnDemandReplica.open({
    effects: {
      clock: { nowMs: () => own.nowMs, monotonicMs: () => own.nowMs, sleep: async () => undefined },
      random: new Dice(9),
      disk: own.disk,
    },
    place: { folder, indexFolder: own.indexFolder },
    mode: 'Block',
    limits: defaultLimits,
    onDoubt: (why) => own.doubts.push(why),
    openSet,
    opening: new Permits(1),
    onOpened: () => opened.times++,
  });
  t.teardown(() => replica.close());
  const send = async (session: ReplicaSession, values: Record<number, number>): Promise<void> => {
    for (const data of dataOf(values, size)) await replica.data(session, data);
  };
  const put = async (session: ReplicaSession, values: Record<number, number>): Promise<void> => {
    await send(session, values);
    await replica.commit(session, commitOf(replica.head.sequence + 1, size));
  };
  return { own, replica, openSet, opened, send, put };
}

t.test('it rests between calls, a session goes on, and it tells the same as when it was open', async (t) => {
  const { own, replica, opened, send, put } = await resting(t);
  t.notOk(replica.isOpen);
  const session = await replica.attach(writer);
  await send(session, { 0: 1 });
  t.ok(replica.isOpen, 'an epoch is open');
  await replica.commit(session, commitOf(1, size));
  t.notOk(replica.isOpen, 'it is committed');
  await put(session, { 1: 2 });
  t.ok(opened.times >= 2);
  const { head, points } = replica;
  const [older, newer] = points;
  if (!older || !newer) throw new Error('two points were committed');
  t.match(head, { sequence: 2, initialized: true, sizeBytes: size, blank: false, unknown: 0 });
  t.strictSame([older.sequence, newer.sequence], [1, 2]);
  t.strictSame(replica.snapshotNames, []);
  await replica.snapshot('s', older, none, () => undefined);
  t.notOk(replica.isOpen);
  t.equal(replica.snapshotPoint('s')?.sequence, 1);
  await replica.recover(newer, '/copies/2', { verify: true, signal: none, progress: () => undefined });
  t.ok(own.sim.peek('/copies/2').equals(imageOf({ 0: 1, 1: 2 }, size)));
  t.notOk(replica.isOpen);
  t.strictSame(own.doubts, []);
});

t.test('who writes still does after a rest: another one is refused, an older generation too', async (t) => {
  const { replica, put } = await resting(t);
  const session = await replica.attach(writer);
  await put(session, { 0: 1 });
  t.notOk(replica.isOpen);
  await t.rejects(replica.attach({ ...writer, name: 'other' }), { code: 'BackupCollision' });
  await put(session, { 0: 2 });
  await replica.fence('2');
  t.equal(replica.generation, '2');
  t.notOk(replica.isOpen);
  await t.rejects(put(session, { 0: 3 }), { code: 'Fenced' });
  await t.rejects(replica.attach(writer), { code: 'Fenced' });
  const next = await replica.attach({ ...writer, name: 'other', generation: '2' });
  await put(next, { 0: 3 });
  await t.rejects(replica.want(session, 0, 0, Buffer.alloc(16)), { code: 'Fenced' });
});

t.test('what fails ends the session, also over a rest', async (t) => {
  const { replica, send, put } = await resting(t);
  const session = await replica.attach(writer);
  await put(session, { 0: 1 });
  await send(session, { 1: 1 });
  await t.rejects(replica.commit(session, commitOf(7, size)), { code: 'SequenceGap' });
  await t.rejects(send(session, { 2: 2 }), { code: 'Fenced' });
  const again = await replica.attach(writer);
  t.match(replica.head, { sequence: 1 });
  await put(again, { 2: 2 });
});

t.test('a base that need not move leaves it at rest, one that must does not', async (t) => {
  const { own, replica, opened, put } = await resting(t);
  const session = await replica.attach(writer);
  await put(session, { 0: 1 });
  await replica.advance(60, none);
  await put(session, { 0: 2 });
  await replica.detach(session);
  const { times } = opened;
  t.ok(replica.owes);
  await replica.advance(60, none);
  t.equal(opened.times, times, 'nothing is due');
  t.equal(replica.points.length, 2);
  own.nowMs += 61_000;
  await replica.advance(60, none);
  t.equal(opened.times, times + 1);
  t.equal(replica.points.length, 1);
  t.notOk(replica.owes);
});

t.test('one that does not open again says so and is to be opened anew', async (t) => {
  const { own, replica } = await resting(t);
  const session = await replica.attach(writer);
  await replica.detach(session);
  own.sim.eioChance = 1;
  await t.rejects(replica.attach(writer), /EIO/);
  own.sim.eioChance = 0;
  t.match(replica.lost, /EIO/);
  await t.rejects(replica.attach(writer), { code: 'TargetFailed' });
});
