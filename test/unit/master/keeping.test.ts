/** Real controllers, a real replica, an injected clock: no snapshot that anything refers to is ever gone. */
import t from 'tap';
import type { Mirrors } from '../../../master/mirrors.ts';
import { Replica } from '../../../master/replica/replica.ts';
import type { Replication } from '../../../master/resources.ts';
import { runSchedules } from '../../../master/schedules.ts';
import { runSnapshots } from '../../../master/snapshots.ts';
import { snapshotKey } from '../../../master/store.ts';
import { systemClock } from '../../../proto/system.ts';
import { granuleBytes } from '../../../proto/granule.ts';
import { Dice } from '../../sim/dice.ts';
import { addRecovery, addReplication, until, world } from './controllers.ts';
import { none, put, rig, writer } from './replica/blockreplica.ts';

const size = 4 * granuleBytes;
const minuteMs = 60_000;
const only = process.env['SEED'];
const seeds = only === undefined ? Array.from({ length: 12 }, (_, index) => index + 1) : [Number(only)];

for (const seed of seeds) {
  t.test(`seed ${seed} (SEED=${seed} alone)`, async (t) => {
    const dice = new Dice(seed);
    const made = await world(t);
    const own = await rig(t);
    own.nowMs = Date.parse('2026-11-20T00:00:00Z');
    const { store } = made;
    const clock = { nowMs: () => own.nowMs, monotonicMs: () => own.nowMs, sleep: async () => systemClock.sleep(1) };
    addReplication(store, 'one');
    const rules = [
      { period: 'minute' as const, every: 10, retain: 3, startTime: null, timeZone: 'UTC' },
      { period: 'hour' as const, every: 1, retain: 2, startTime: null, timeZone: 'Asia/Seoul' },
      { period: 'day' as const, every: 1, retain: 2, startTime: '2026-11-20T01:30:00.000Z', timeZone: 'Europe/Berlin' },
    ];
    store.update('Replication', 'one', (object: Replication) => {
      object.spec.snapshotSchedules = rules;
      object.status.recoveryPoint = {} as never;
    });

    let replica = await open();
    async function open(): Promise<Replica> {
      return Replica.open({
        effects: { clock, random: new Dice(9), disk: own.disk },
        place: { folder: '/class/r', indexFolder: own.indexFolder },
        mode: 'Block',
      });
    }
    const mirrors = {
      replica: () => replica,
      view: (_uid: string, { sequence }: { sequence: number }) => ({ sequence, snapshot: null }),
    } as unknown as Mirrors;
    let stop = new AbortController();
    let running: Promise<unknown>[] = [];
    const start = (): void => {
      stop = new AbortController();
      const options = { store, clock, trusted: clock, mirrors, events: made.emitter };
      running = [
        runSnapshots({ ...options, metrics: { onSnapshot: () => undefined } }, stop.signal),
        runSchedules(options, stop.signal),
      ];
    };
    const end = async (): Promise<void> => {
      stop.abort();
      await Promise.allSettled(running);
    };
    t.teardown(async () => {
      await end();
      await replica.close();
    });
    const snapshots = () => store.list('Snapshot');
    const settled = (): Promise<void> =>
      until('nothing is being made or removed', () => {
        const busy = snapshots().some(({ status }) => status.state === 'Creating' || status.state === 'Deleting');
        return !busy;
      });
    /** Everything that a person, a lock or a recovery holds now. */
    const held = (): Set<string> => {
      const used = store
        .list('Recovery')
        .filter(({ status }) => status.state === 'Running')
        .map(({ spec }) => (spec.point as { snapshot: string }).snapshot);
      const kept = snapshots().filter(
        ({ spec, status, metadata }) =>
          status.state === 'Ready' &&
          (spec.pinned ||
            used.includes(metadata.name) ||
            (spec.lockedUntil !== null && Date.parse(spec.lockedUntil) > own.nowMs)),
      );
      return new Set(kept.map(({ metadata }) => metadata.name));
    };
    const check = (names: Set<string>, when: string): void => {
      for (const name of names) {
        const state = store.get('Snapshot', snapshotKey('one', name))?.status.state;
        if (state !== 'Ready' || !replica.snapshotPoint(name)) t.fail(`${name} is ${state ?? 'gone'} ${when}`);
      }
      for (const { metadata, status } of snapshots())
        if (status.state === 'Ready' && !replica.snapshotPoint(metadata.name)) t.fail(`${metadata.name} has no data`);
    };

    const session = async () => replica.attach({ ...writer, sizeBytes: size });
    let writing = await session();
    await put(replica, writing, { 0: 1 }, size);
    start();
    for (let step = 0; step < 40; step++) {
      const ready = snapshots().filter(({ status }) => status.state === 'Ready');
      const one = ready.length > 0 ? dice.pick(ready).metadata.name : undefined;
      const key = one === undefined ? '' : snapshotKey('one', one);
      const action = dice.pick(['time', 'time', 'time', 'commit', 'pin', 'unpin', 'lock', 'use', 'release', 'restart']);
      const before = held();
      if (action === 'time') {
        own.nowMs += dice.pick([1, 10, 61, 24 * 60]) * minuteMs;
        await replica.advance(600, none);
      } else if (action === 'commit') await put(replica, writing, { [dice.pick([0, 1, 2, 3])]: step + 2 }, size);
      else if (action === 'restart') {
        await end();
        await replica.close();
        if (dice.pick([true, false]) && one !== undefined && before.has(one)) store.delete('Snapshot', key);
        replica = await open();
        writing = await session();
        start();
        // What the store lost comes back from storage; pins and uses are the store's alone.
        if (one !== undefined)
          await until(`${one} is found again`, () => store.get('Snapshot', key) ?? !before.has(one));
      } else if (one === undefined) continue;
      else if (action === 'pin') store.update('Snapshot', key, ({ spec }) => (spec.pinned = true));
      else if (action === 'unpin') {
        store.update('Snapshot', key, ({ spec }) => (spec.pinned = false));
        before.delete(one);
      } else if (action === 'lock') {
        const untilMs = own.nowMs + dice.pick([30, 3000]) * minuteMs;
        await replica.lockSnapshot(one, untilMs);
        const lock = new Date((await replica.snapshotLock(one)) ?? 0).toISOString();
        store.update('Snapshot', key, ({ spec }) => (spec.lockedUntil = lock));
      } else if (action === 'use') {
        const name = `r-${step}`;
        addRecovery(store, name, 'one', '/x');
        store.update('Recovery', name, (object) => {
          object.spec.point = { snapshot: one };
          object.status.state = 'Running';
        });
      } else {
        const [recovery] = store.list('Recovery').filter(({ status }) => status.state === 'Running');
        if (recovery) store.update('Recovery', recovery.metadata.name, ({ status }) => (status.state = 'Completed'));
      }
      // What time or a person has let go of may go.
      const still = held();
      const must = new Set([...before].filter((name) => still.has(name) || action === 'restart'));
      await systemClock.sleep(5);
      await settled();
      check(must, `after step ${step}, ${action}`);
    }
    // All let go: what schedules have taken shrinks to what they keep.
    for (const { status, metadata } of store.list('Recovery'))
      if (status.state === 'Running')
        store.update('Recovery', metadata.name, (object) => (object.status.state = 'Failed'));
    for (const { metadata } of snapshots())
      store.update('Snapshot', snapshotKey('one', metadata.name), ({ spec }) => (spec.pinned = false));
    own.nowMs += 30 * 24 * 60 * minuteMs;
    const count = (period: string): number =>
      snapshots().filter(({ status }) => status.schedule === period && status.state === 'Ready').length;
    await until('each schedule keeps what it is to keep', () =>
      rules.every(({ period, retain }) => count(period) <= retain),
    );
    await settled();
    check(new Set(), 'at the end');
    t.ok(count('minute') >= 1, 'and not less than one');
  });
}
