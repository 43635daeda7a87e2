import t from 'tap';
import type { Engine } from '../../../../master/engine.ts';
import { snapshotReferences } from '../../../../master/references.ts';
import { settle } from '../../../../master/recovery/machine.ts';
import { runRecoverySchedules } from '../../../../master/recovery/schedules.ts';
import { apiVersion, type RecoveryScheduleSpec } from '../../../../master/resources.ts';
import { systemClock } from '../../../../proto/system.ts';
import { addReplication, addSnapshot, until, world } from '../controllers.ts';

const hourMs = 3_600_000;
const startMs = Date.parse('2026-11-20T00:00:00.000Z');

async function start(t: Parameters<typeof world>[0], given: Partial<RecoveryScheduleSpec> = {}) {
  const made = await world(t);
  const { store } = made;
  let nowMs = startMs;
  const clock = {
    ...systemClock,
    nowMs: () => nowMs,
    sleep: (_ms: number, signal?: AbortSignal) => systemClock.sleep(5, signal),
  };
  addReplication(store, 'one');
  store.update('Replication', 'one', ({ status }) => void (status.recoveryPoint = { sequence: 1 } as never));
  store.create('RecoverySchedule', 'nightly', {
    apiVersion,
    kind: 'RecoverySchedule',
    metadata: { name: 'nightly' },
    spec: {
      ...{ replication: 'one', type: 'drill', point: 'latest-data', target: null, repeat: 'hourly' },
      ...{ startTime: new Date(startMs + hourMs).toISOString(), endTime: null, timeZone: 'UTC' },
      ...{ weekday: null, week: null, day: null, rollback: true, retain: 2, paused: false },
      ...given,
    },
    status: { state: 'PREPARING', message: null, nextTime: null, lastTime: null, lastRecovery: null },
  });
  let stop = new AbortController();
  const engine = { points: () => [] } as unknown as Engine;
  const run = (): void => {
    stop = new AbortController();
    made.signal.addEventListener('abort', () => stop.abort());
    made.run(runRecoverySchedules({ store, clock, engine, events: made.emitter }, stop.signal));
  };
  run();
  const names = () => store.list('Recovery').map(({ metadata }) => metadata.name);
  const state = () => store.get('RecoverySchedule', 'nightly')?.status;
  await until('it was looked at', () => state()?.nextTime);
  return {
    ...made,
    names,
    state,
    at: (ms: number) => (nowMs = startMs + ms),
    away: () => stop.abort(),
    run,
    end: (name: string, how: 'Completed' | 'Failed') =>
      store.update('Recovery', name, (one) => void settle(one, how, new Date(nowMs).toISOString())),
  };
}

t.test('one at each due time, copies that are good go, the newest results stay', async (t) => {
  const { at, names, store, end, state } = await start(t);
  t.match(state(), { state: 'NORMAL', nextTime: '2026-11-20T01:00:00.000Z' });
  at(hourMs);
  await until('the first is made', () => names().length === 1);
  t.same(names(), ['nightly-20261120-0100']);
  end('nightly-20261120-0100', 'Completed');
  const first = () => store.get('Recovery', 'nightly-20261120-0100')?.status.state;
  await until('its copy goes', () => first() === 'RollingBack');
  store.update('Recovery', 'nightly-20261120-0100', ({ status }) => (status.state = 'RolledBack'));
  at(2 * hourMs + 1);
  await until('the second is made', () => names().length === 2);
  end('nightly-20261120-0200', 'Failed');
  await until('it says so', () => state()?.state === 'FAILED');
  at(3 * hourMs);
  await until('the third is made', () => names().includes('nightly-20261120-0300'));
  t.equal(store.get('Recovery', 'nightly-20261120-0200')?.status.state, 'Failed', 'what failed stays to be looked at');
  at(4 * hourMs);
  await until('the fourth is missed', () => /0300 before it has not ended/.test(state()?.message ?? ''));
  end('nightly-20261120-0300', 'Completed');
  await until('the oldest result is gone', () => !names().includes('nightly-20261120-0100'));
});

t.test('what was missed while the master was away is made up for once', async (t) => {
  const { at, names, away, run, state } = await start(t);
  away();
  at(5.5 * hourMs);
  run();
  await until('one is made', () => names().length > 0);
  await until('it knows what comes next', () => state()?.nextTime === '2026-11-20T06:00:00.000Z');
  t.same(names(), ['nightly-20261120-0500']);
});

t.test('a failover that is late is left to a person', async (t) => {
  const { at, names, away, run, state, events } = await start(t, { repeat: 'once', type: 'failover' });
  away();
  at(2 * hourMs);
  run();
  await until('it says so', () => state()?.state === 'FAILED');
  t.match(state()?.message, /late now/);
  t.same(names(), []);
  t.match(events, [{ code: 'ScheduleMissed' }]);
  t.equal(state()?.nextTime, null);
});

t.test('a snapshot that a planned recovery needs is kept until it was made', async (t) => {
  const { at, names, store, end, state } = await start(t, { repeat: 'once', point: { snapshot: 's' } });
  addSnapshot(store, 'one', 's', 'Ready');
  t.match(snapshotReferences(store).get('one/s'), [/recovery schedule nightly uses it/]);
  at(hourMs);
  await until('it is made', () => names().length === 1);
  t.match(snapshotReferences(store).get('one/s'), [/recovery nightly-/]);
  end(names()[0] ?? '', 'Completed');
  await until('nothing comes any more', () => state()?.nextTime === null);
  store.update('Recovery', names()[0] ?? '', ({ status }) => (status.state = 'RolledBack'));
  t.equal(snapshotReferences(store).get('one/s'), undefined);
});
