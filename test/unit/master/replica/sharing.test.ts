import t from 'tap';
import { SharedLock } from '../../../../proto/lock.ts';
import { granuleBytes } from '../../../../proto/granule.ts';
import { systemClock } from '../../../../proto/system.ts';
import { imageOf, none, put, recovered, rig, writer } from './blockreplica.ts';

const size = 10 * granuleBytes;
const quiet = { verify: true, signal: none, progress: () => undefined };

async function until(what: string, done: () => boolean): Promise<void> {
  for (let left = 500; left > 0; left--) {
    if (done()) return;
    await systemClock.sleep(10);
  }
  throw new Error(`never: ${what}`);
}

/** A replica with two points whose copies hang in the middle until `release`. */
async function slow(t: Parameters<typeof rig>[0]) {
  const own = await rig(t);
  const gate = { inside: 0, open: () => undefined as void };
  const opened = new Promise<void>((resolve) => (gate.open = resolve));
  const { disk } = own;
  own.disk = {
    ...disk,
    async clone(from, to, signal, progress) {
      gate.inside++;
      await opened;
      return disk.clone(from, to, signal, progress);
    },
  };
  const replica = await own.open();
  t.teardown(() => replica.close());
  const session = await replica.attach(writer);
  await put(replica, session, { 0: 1 }, size);
  await put(replica, session, { 1: 2 }, size);
  await replica.advance(3600, none);
  const [oldest] = replica.points;
  if (!oldest) throw new Error('no point');
  const copy = async (path: string): Promise<Buffer> => {
    await replica.recover(oldest, path, quiet);
    return own.sim.peek(path);
  };
  return { own, replica, session, gate, copy };
}

t.test('copies share the base, mirroring and the base do not wait for them, and all are right', async (t) => {
  const { own, replica, session, gate, copy } = await slow(t);
  const copies = Array.from({ length: 10 }, (_, index) => copy(`/copies/${index}`));
  await until('all ten are being copied', () => gate.inside === 10);
  await put(replica, session, { 0: 9, 2: 3 }, size);
  own.nowMs += 7200_000;
  await replica.advance(3600, none);
  t.equal(replica.points.length, 3, 'the base stays for them');
  await put(replica, session, { 0: 10 }, size);
  gate.open();
  for (const bytes of await Promise.all(copies)) t.ok(bytes.equals(imageOf({ 0: 1 }, size)));
  await replica.advance(0, none);
  t.equal(replica.points.length, 1, 'and moves when they are done');
});

t.test('a journal over its limit waits for the copies that there are, not for later ones', async (t) => {
  const { own, replica, session, gate, copy } = await slow(t);
  const first = copy('/copies/first');
  await until('it is being copied', () => gate.inside === 1);
  await put(replica, session, { 0: 9 }, size);
  own.nowMs += 7200_000;
  let moved = false;
  const advanced = replica.advance(3600, none, 1).then(() => (moved = true));
  const newest = replica.newestPoint;
  const late = newest && replica.recover(newest, '/copies/late', quiet);
  await systemClock.sleep(50);
  t.notOk(moved);
  t.equal(gate.inside, 1, 'the later copy has not begun');
  gate.open();
  t.ok((await first).equals(imageOf({ 0: 1 }, size)));
  await advanced;
  await late;
  t.ok(own.sim.peek('/copies/late').equals(imageOf({ 0: 9, 1: 2 }, size)));
});

t.test('what is pinned is asked for when the base is about to move, not before', async (t) => {
  const { own, replica, session, gate, copy } = await slow(t);
  const first = copy('/copies/first');
  await until('it is being copied', () => gate.inside === 1);
  await put(replica, session, { 0: 9 }, size);
  own.nowMs += 7200_000;
  let asked = 0;
  const advanced = replica.advance(0, none, 1, () => {
    asked++;
    return [];
  });
  await systemClock.sleep(20);
  t.equal(asked, 0, 'it waits for the copy');
  gate.open();
  await first;
  await advanced;
  t.equal(asked, 1);
});

t.test('what a copy in the making still takes from the journal stays there, also where the base has it', async (t) => {
  const own = await rig(t);
  const { disk } = own;
  let atRead: (() => Promise<void>) | undefined;
  own.disk = {
    ...disk,
    async open(path, mode) {
      if (path.endsWith('.log') && mode === 'read' && atRead) {
        const meanwhile = atRead;
        atRead = undefined;
        await meanwhile();
      }
      return disk.open(path, mode);
    },
  };
  const replica = await own.open({ segmentBytes: 1 });
  t.teardown(() => replica.close());
  const session = await replica.attach(writer);
  await put(replica, session, { 0: 1 }, size, { point: false });
  // The first point brings nothing anew: the base stays before it, and copies begin there.
  await put(replica, session, {}, size);
  await put(replica, session, { 1: 2 }, size);
  t.equal(replica.baseSequence, 1);
  atRead = async () => {
    await replica.advance(0, none);
    t.equal(replica.baseSequence, 2, 'the base goes to the first point while a copy is on its way from before it');
  };
  t.ok((await recovered(own, replica, 3)).equals(imageOf({ 0: 1, 1: 2 }, size)));
  const { journalBytes } = replica;
  await replica.advance(0, none);
  t.ok(replica.journalBytes < journalBytes, 'and goes when the copy is done');
});

t.test('a shared lock: alone or shared, in order of arrival, and a failure lets the next one in', async (t) => {
  const lock = new SharedLock();
  const order: string[] = [];
  let within = 0;
  const work = (name: string, alone: boolean) => async (): Promise<void> => {
    within++;
    if (alone) t.equal(within, 1, `${name} is alone`);
    order.push(name);
    await systemClock.sleep(5);
    within--;
    if (name === 'bad') throw new Error('bad');
  };
  const all: Promise<void>[] = [lock.share(work('a', false)), lock.share(work('b', false))];
  t.ok(lock.shared);
  all.push(
    lock.run(work('bad', true)).catch(() => undefined),
    lock.share(work('c', false)),
    lock.share(work('d', false)),
    lock.run(work('e', true)),
  );
  await Promise.all(all);
  t.same(order, ['a', 'b', 'bad', 'c', 'd', 'e']);
  t.notOk(lock.shared);
});
