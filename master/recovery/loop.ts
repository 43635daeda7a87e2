/**
 * Carries recoveries out: asks the state machine (machine.ts) what is next, does it (volume.ts), writes down how it went,
 * again, until nothing is left to do. One loop for each recovery that has work.
 *
 * Guarantees: a master that was killed goes on from the last step that was written down; a step that was cut off is done
 * again; what cannot be undone is told and tried again until it can, or until somebody says that it may be left.
 * Failure: of one volume fails that volume, the others go on.
 */
import type { Clock } from '../../proto/effects.ts';
import { asReplicationError, ReplicationError } from '../../proto/errors.ts';
import type { Events } from '../engine.ts';
import { follow } from '../follow.ts';
import { groupOf, startOrder } from '../groups.ts';
import type { Metrics } from '../metrics.ts';
import type { Recovery, RecoveryState } from '../resources.ts';
import type { Store } from '../store.ts';
import { failed, nextStep, settle, succeeded, type Work } from './machine.ts';
import { messageFor } from './message.ts';
import { verifiedOf } from './proven.ts';
import { blockedBy } from './turn.ts';

/**
 * Work on one volume of a recovery, by its index; done twice it does no harm. The recovery is as the step found it. Answers
 * what a person should know of it, if anything.
 */
export type Effect = (recovery: Recovery, index: number, signal: AbortSignal) => Promise<string | undefined>;
export type Effects = Record<Work, Effect> & {
  /** The recovery is gone: what was remembered for it may go. */
  forget(recovery: { uid: string }): void;
};

export interface RecoveriesOptions {
  store: Store;
  clock: Clock;
  events: Events;
  metrics: Pick<Metrics, 'onRecovery'>;
  effects: Effects;
}

const againMs = 1000;
/** Volumes of one group that are worked on at once. */
const atOnce = 4;

export async function runRecoveries(options: RecoveriesOptions, signal: AbortSignal): Promise<void> {
  const { store } = options;
  const working = new Map<string, AbortController>();
  const jobs = new Set<Promise<void>>();

  const look = (recovery: Recovery): void => {
    const { name } = recovery.metadata;
    const running = working.get(name);
    if (running) {
      if (recovery.status.state === 'Cancelling')
        running.abort(new ReplicationError('Stopped', 'the recovery was cancelled'));
      return;
    }
    if (nextStep(recovery).kind === 'rest' || signal.aborted) return;
    const cancel = new AbortController();
    working.set(name, cancel);
    const job = carryOut(options, name, cancel.signal, signal)
      .catch((error: unknown) => rest(options, name, asReplicationError(error).message, signal))
      .catch(() => undefined) // stopped: the next start goes on from the object's state
      .then(() => {
        working.delete(name);
        jobs.delete(job);
        const now = store.get('Recovery', name);
        if (now && (now.status.state !== 'Waiting' || !rivalOf(options, now))) look(now);
      });
    jobs.add(job);
  };

  for await (const { key, uid, deleted } of follow(store, 'Recovery', signal)) {
    if (deleted) options.effects.forget({ uid });
    const changed = store.get('Recovery', key);
    if (changed) look(changed);
    // It may be somebody's turn now.
    if (changed?.status.state !== 'Running')
      for (const one of store.list('Recovery')) if (one.status.state === 'Waiting') look(one);
  }
  await Promise.all(jobs);
}

function rivalOf({ store }: RecoveriesOptions, one: Recovery): Recovery | undefined {
  return blockedBy(one, store.list('Recovery'), groupOf(store));
}

/** Until nothing is left to do for it now. */
async function carryOut(
  options: RecoveriesOptions,
  name: string,
  cancel: AbortSignal,
  stop: AbortSignal,
): Promise<void> {
  for (;;) {
    stop.throwIfAborted();
    const recovery = options.store.get('Recovery', name);
    if (!recovery) return;
    const step = nextStep(recovery);
    switch (step.kind) {
      case 'rest':
        return;
      case 'begin':
        if (!begin(options, recovery)) return;
        break;
      case 'settle':
        enter(options, recovery, step.state);
        break;
      case 'work':
        await workOn(options, recovery, step.work, step.volumes.slice(0, atOnce), cancel, stop);
    }
  }
}

/** Answers whether it has begun. */
function begin(options: RecoveriesOptions, recovery: Recovery): boolean {
  const { store, clock, events } = options;
  const { name } = recovery.metadata;
  const rival = rivalOf(options, recovery);
  if (rival) {
    const cure = isStillGoing(rival) ? 'cancel it to go on at once' : 'confirm it or roll it back';
    const message = `waits for recovery ${rival.metadata.name} (${rival.status.state}): one at a time; ${cure}`;
    if (recovery.status.message !== message) change(options, name, ({ status }) => void (status.message = message));
    return false;
  }
  const members = startOrder(store, recovery.spec);
  change(options, name, (object) => {
    const { status, job } = object;
    if (status.state !== 'Waiting') return;
    Object.assign(status, { state: 'Running', message: null });
    status.startTime ??= new Date(clock.nowMs()).toISOString();
    if (status.tasks.length > 0) return;
    for (const { replication, order } of members) {
      status.tasks.push({
        volume: replication,
        state: 'Waiting',
        path: null,
        point: null,
        message: null,
        startTime: null,
        endTime: null,
        progress: null,
        check: null,
        verified: null,
      });
      job.volumes.push({ stage: 'new', order, usableMs: null, goodAsOfMs: null, verified: false });
    }
  });
  const { type, point } = recovery.spec;
  const message = `${type} of ${members.map(({ replication }) => replication).join(', ')} at ${JSON.stringify(point)}`;
  events.emit({ code: 'RecoveryStarted', level: 'INFO', message, object: `Recovery/${name}` });
  return true;
}

function isStillGoing({ status }: Recovery): boolean {
  return status.state !== 'Completed' && status.state !== 'Failed';
}

async function workOn(
  options: RecoveriesOptions,
  recovery: Recovery,
  work: Work,
  volumes: number[],
  cancel: AbortSignal,
  stop: AbortSignal,
): Promise<void> {
  const { clock, effects } = options;
  const { name } = recovery.metadata;
  const isForward = work !== 'undo' && work !== 'confirm';
  const signal = isForward ? AbortSignal.any([cancel, stop]) : stop;
  const now = (): string => new Date(clock.nowMs()).toISOString();
  const one = async (index: number): Promise<string | undefined> => {
    if (isForward)
      change(options, name, ({ status }) => {
        const task = status.tasks[index];
        if (task) Object.assign(task, { state: 'Running', startTime: task.startTime ?? now() });
      });
    try {
      const remark = await effects[work](recovery, index, signal);
      change(options, name, (object) => succeeded(object, index, work, now(), remark));
      return undefined;
    } catch (thrown) {
      if (stop.aborted) throw thrown;
      const { message } = asReplicationError(thrown);
      let again = false;
      change(options, name, (object) => (again = failed(object, index, work, message, now())));
      return again ? `${recovery.status.tasks[index]?.volume ?? name}: ${message}` : undefined;
    }
  };
  const results = await Promise.allSettled(volumes.map(one));
  for (const result of results) if (result.status === 'rejected') throw result.reason;
  const troubles = results.flatMap((result) => (result.status === 'fulfilled' && result.value ? [result.value] : []));
  if (troubles.length > 0) await rest(options, name, troubles.join('; '), stop);
}

/** What could not be done, or not be written down, is told once and tried again after a while. */
async function rest(options: RecoveriesOptions, name: string, why: string, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  const before = options.store.get('Recovery', name)?.status.message;
  const text = `${why}; tried again (force leaves it as it is)`;
  if (before !== text) {
    change(options, name, ({ status }) => void (status.message = text));
    options.events.emit({ code: 'StorageTrouble', level: 'WARNING', message: text, object: `Recovery/${name}` });
  }
  await options.clock.sleep(againMs, signal);
}

function enter(options: RecoveriesOptions, recovery: Recovery, state: RecoveryState): void {
  const { clock, events, metrics } = options;
  const { name, creationTimestamp } = recovery.metadata;
  const createdMs = Date.parse(creationTimestamp);
  const message = messageFor(recovery, state);
  let isEntered = false;
  change(options, name, (object) => {
    // Asked for something else meanwhile.
    const step = nextStep(object);
    if (step.kind !== 'settle' || step.state !== state) return;
    isEntered = true;
    const outcome = settle(object, state, new Date(clock.nowMs()).toISOString());
    object.status.message = message;
    if (state === 'Completed' || state === 'Failed') achieved(object, createdMs);
    if (outcome) metrics.onRecovery(recovery.spec.type, outcome, (clock.nowMs() - createdMs) / 1000);
  });
  const event = eventOf[state];
  if (isEntered && event)
    events.emit({ code: event, level: state === 'Failed' ? 'ERROR' : 'INFO', message, object: `Recovery/${name}` });
}

const eventOf: Partial<Record<RecoveryState, string>> = {
  Completed: 'RecoveryCompleted',
  Failed: 'RecoveryFailed',
  Cancelled: 'RecoveryCancelled',
  RolledBack: 'RecoveryRolledBack',
  RollbackIgnored: 'RecoveryRolledBack',
  Confirmed: 'RecoveryConfirmed',
  ForceConfirmed: 'RecoveryConfirmed',
};

/** What was reached: the slowest copy, the oldest data. */
function achieved({ status, job }: Recovery, createdMs: number): void {
  const good = job.volumes.filter((_volume, index) => status.tasks[index]?.state === 'Completed');
  if (good.length === 0) return;
  status.verified = verifiedOf({ status, job });
  status.rtoSeconds = seconds(Math.max(...good.map(({ usableMs }) => usableMs ?? createdMs)) - createdMs);
  status.rpoSeconds = seconds(createdMs - Math.min(...good.map(({ goodAsOfMs }) => goodAsOfMs ?? createdMs)));
}

/** Times come from clocks of different resolution: milliseconds are what both have. */
function seconds(ms: number): number {
  return Math.max(0, Math.round(ms)) / 1000;
}

function change({ store }: RecoveriesOptions, name: string, how: (object: Recovery) => void): void {
  if (store.get('Recovery', name)) store.update('Recovery', name, how);
}
