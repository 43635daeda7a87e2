/**
 * Makes the recoveries that are planned, takes copies of drills away that were found good, and keeps the newest results.
 *
 * Guarantees: one recovery for each due time at most, over restarts too; of those that were missed while the master was down
 * one is made up for, and a failover that is later than `lateMs` is not made at all: a person decides then. None is made
 * while the one before has not ended.
 */
import type { Clock } from '../../proto/effects.ts';
import { messageOf } from '../../proto/errors.ts';
import { groupNow, mayRecover, recoveryDraft } from '../api/recoveries.ts';
import type { Engine, Events } from '../engine.ts';
import { startOrder } from '../groups.ts';
import type { Recovery, RecoverySchedule, RecoveryScheduleStatus, RecoveryTiming } from '../resources.ts';
import { nameOf } from '../schedule.ts';
import { pauseAfter } from '../pacing.ts';
import type { Store } from '../store.ts';
import { newestDue, nextDue } from './due.ts';
import { ask, hasEnded } from './machine.ts';

export interface RecoverySchedulesOptions {
  store: Store;
  clock: Clock;
  engine: Engine;
  events: Events;
}

/** On a recovery: the schedule that made it. */
export const scheduleLabel = 'replicator.cdm.datacommand.co.kr/recovery-schedule';
const everyMs = 1000;
const lateMs = 10 * 60_000;
/** By uid: the timing that was looked at, and up to when it is done with. */
const table = 'recovery-schedules';

export async function runRecoverySchedules(options: RecoverySchedulesOptions, signal: AbortSignal): Promise<void> {
  const { store, clock } = options;
  while (!signal.aborted) {
    const lookMs = clock.monotonicMs();
    const schedules = store.list('RecoverySchedule');
    const uids = new Set(schedules.map(({ metadata }) => metadata.uid));
    for (const { key } of store.listRecords(table)) if (!uids.has(key)) store.putRecord(table, key, undefined);
    for (const schedule of schedules) await look(options, schedule);
    await clock.sleep(pauseAfter(everyMs, clock.monotonicMs() - lookMs), signal).catch(() => undefined);
  }
}

export function madeBy(store: Pick<Store, 'list'>, { metadata }: RecoverySchedule): Recovery[] {
  return store
    .list('Recovery')
    .filter(({ metadata: { labels } }) => labels?.[scheduleLabel] === metadata.name)
    .toSorted((a, b) => Date.parse(a.metadata.creationTimestamp) - Date.parse(b.metadata.creationTimestamp));
}

async function look(options: RecoverySchedulesOptions, schedule: RecoverySchedule): Promise<void> {
  const { store, clock } = options;
  const { spec, metadata } = schedule;
  const nowMs = clock.nowMs();
  const timing = JSON.stringify(timingOf(spec));
  const done = JSON.parse(store.getRecord(table, metadata.uid) ?? 'null') as { timing: string; ms: number } | null;
  const sinceMs = done?.timing === timing ? done.ms : nowMs;
  const dueMs = newestDue(spec, sinceMs, nowMs);
  if (dueMs !== undefined && !spec.paused) await make(options, schedule, dueMs, nowMs);
  if (done?.timing !== timing || dueMs !== undefined)
    store.putRecord(table, metadata.uid, JSON.stringify({ timing, ms: dueMs ?? sinceMs }));
  const made = madeBy(store, schedule);
  tidy(options, schedule, made);
  const next = spec.paused ? undefined : nextDue(spec, nowMs);
  update(options, schedule, (status) => {
    status.nextTime = next === undefined ? null : new Date(next).toISOString();
    Object.assign(status, stateOf(store, schedule, made.at(-1), status));
  });
}

function timingOf({ repeat, startTime, endTime, timeZone, weekday, week, day }: RecoveryTiming): RecoveryTiming {
  return { repeat, startTime, endTime, timeZone, weekday, week, day };
}

async function make(
  options: RecoverySchedulesOptions,
  schedule: RecoverySchedule,
  dueMs: number,
  nowMs: number,
): Promise<void> {
  const { store } = options;
  const { metadata, spec } = schedule;
  const time = new Date(dueMs).toISOString();
  const name = `${metadata.name.slice(0, 40)}-${nameOf('minute', dueMs).slice('minute-'.length)}`;
  // A crash between the object and the record of it: it is there already.
  if (store.get('Recovery', name)?.metadata.labels?.[scheduleLabel] === metadata.name) return;
  const before = madeBy(store, schedule).findLast((one) => !hasEnded(one));
  if (before) return miss(options, schedule, time, `recovery ${before.metadata.name} before it has not ended`);
  if (spec.type === 'failover' && nowMs - dueMs > lateMs)
    return miss(options, schedule, time, 'the master was away then, and it is late now; make the failover by hand');
  const { replication, group, type, target } = spec;
  const asked = { ...(replication && { replication }), ...(group && { group }), type, point: spec.point, target };
  try {
    const point = await mayRecover({ store, engine: options.engine }, asked);
    const draft = recoveryDraft(name, { ...asked, point }, groupNow(store, asked));
    draft.metadata.labels = { [scheduleLabel]: metadata.name };
    store.create('Recovery', name, draft);
  } catch (error) {
    return miss(options, schedule, time, messageOf(error));
  }
  update(options, schedule, (status) => Object.assign(status, { lastTime: time, lastRecovery: name, message: null }));
}

function miss(options: RecoverySchedulesOptions, schedule: RecoverySchedule, time: string, why: string): void {
  const message = `the recovery of ${time} was not made: ${why}`;
  update(options, schedule, (status) => Object.assign(status, { lastTime: time, lastRecovery: null, message }));
  const object = `RecoverySchedule/${schedule.metadata.name}`;
  options.events.emit({ code: 'ScheduleMissed', level: 'ERROR', message, object });
}

/** Copies of good drills go; of results the newest stay, and those that go take their copies with them. */
function tidy({ store }: RecoverySchedulesOptions, { spec }: RecoverySchedule, made: Recovery[]): void {
  const ended = made.filter(hasEnded);
  ended.forEach((one, index) => {
    const { name } = one.metadata;
    const isOld = index < ended.length - spec.retain;
    const hasCopy = one.status.state === 'Completed' || one.status.state === 'Failed';
    const isGood = one.status.state === 'Completed' && spec.rollback;
    if (hasCopy && (isGood || isOld)) store.update('Recovery', name, (object) => void ask(object, 'rollback', false));
    else if (isOld) store.delete('Recovery', name);
  });
}

function stateOf(
  store: Store,
  { spec }: RecoverySchedule,
  newest: Recovery | undefined,
  { message, lastTime, lastRecovery }: RecoveryScheduleStatus,
): Pick<RecoveryScheduleStatus, 'state' | 'message'> {
  if (lastTime !== null && lastRecovery === null) return { state: 'FAILED', message };
  if (newest?.status.outcome === 'failed')
    return { state: 'FAILED', message: `${newest.metadata.name}: ${newest.status.message ?? 'failed'}` };
  const members = startOrder(store, spec);
  const lacking = members.filter(
    ({ replication }) => (store.get('Replication', replication)?.status.recoveryPoint ?? null) === null,
  );
  if (members.length === 0 || lacking.length > 0) {
    const names = lacking.map(({ replication }) => replication).join(', ') || `group ${spec.group ?? ''}`;
    return { state: 'PREPARING', message: `${names} has no recovery point yet` };
  }
  return { state: 'NORMAL', message: null };
}

function update(
  { store }: RecoverySchedulesOptions,
  { metadata }: RecoverySchedule,
  change: (status: RecoveryScheduleStatus) => void,
): void {
  if (store.get('RecoverySchedule', metadata.name)?.metadata.uid === metadata.uid)
    store.update('RecoverySchedule', metadata.name, ({ status }) => change(status));
}
