/**
 * The life of a recovery as a pure state machine: what a person may ask in which state, what is to be done next, and what
 * follows from how that went. loop.ts does what `nextStep` says; the store keeps the object after each step, so a restart
 * goes on from there.
 *
 * Guarantees (machine.test.ts has them as properties): every state ends by itself or can be left by one action; what was
 * begun is undone on the way to Cancelled, RolledBack and (as far as it can be) RollbackIgnored; a drill fences nothing and
 * is never confirmed; final states stay.
 */
import type { Recovery, RecoveryState, RecoveryTask, VolumeStage } from '../resources.ts';

export type Action = 'pause' | 'resume' | 'cancel' | 'retry' | 'rollback' | 'confirm';
export const actions: readonly Action[] = ['pause', 'resume', 'cancel', 'retry', 'rollback', 'confirm'];

/** What the machine reads and changes of a recovery. */
export type Job = Pick<Recovery, 'spec' | 'status' | 'job'>;

/** Work on volumes, by their index; all of them at once. */
export type Work = 'fence' | 'choose' | 'copy' | 'check' | 'undo' | 'confirm';
export type Step =
  | { kind: 'rest' }
  /** Its turn has come when nobody else's is. */
  | { kind: 'begin' }
  | { kind: 'work'; work: Work; volumes: number[] }
  /** Nothing is left to do in this state. */
  | { kind: 'settle'; state: RecoveryState };

/** Where each action leads, from where. */
const table: Record<Action, { from: readonly RecoveryState[]; to: RecoveryState; already: readonly RecoveryState[] }> =
  {
    pause: { from: ['Running'], to: 'Pausing', already: ['Pausing', 'Paused'] },
    resume: { from: ['Pausing', 'Paused'], to: 'Running', already: ['Running'] },
    cancel: {
      from: ['Waiting', 'Running', 'Pausing', 'Paused'],
      to: 'Cancelling',
      already: ['Cancelling', 'Cancelled'],
    },
    // It takes its turn again: another one of the group may have begun.
    retry: { from: ['Failed', 'Completed'], to: 'Waiting', already: [] },
    rollback: {
      from: ['Completed', 'Failed'],
      to: 'RollingBack',
      already: ['RollingBack', 'RolledBack', 'RollbackIgnored'],
    },
    confirm: { from: ['Completed'], to: 'Confirming', already: ['Confirming', 'Confirmed', 'ForceConfirmed'] },
  };
/** States in which something runs until it is done; `force` is for when it cannot be. */
const insistent: Partial<Record<Action, RecoveryState>> = {
  cancel: 'Cancelling',
  rollback: 'RollingBack',
  confirm: 'Confirming',
};

/** Changes the recovery as it was asked to be. Answers why not; undefined when it is so now, or was before. */
export function ask(job: Job, action: Action, force: boolean): string | undefined {
  const { from, to, already } = table[action];
  const { status, spec } = job;
  if (action === 'confirm' && spec.type === 'drill') return 'a drill has nothing to confirm; roll it back';
  if (status.state === insistent[action]) {
    job.job.force ||= force;
    return undefined;
  }
  if (already.includes(status.state)) return undefined;
  if (!from.includes(status.state)) return `it is ${status.state}; ${action} is for ${from.join(', ')}`;
  const failed = status.tasks.filter(({ state }) => state === 'Failed');
  const names = failed.map(({ volume }) => volume).join(', ');
  if (action === 'retry') {
    if (status.state === 'Completed' && failed.length === 0) return 'nothing of it has failed';
    status.tasks.forEach((task, index) => {
      const volume = job.job.volumes[index];
      if (task.state !== 'Failed' || !volume) return;
      Object.assign(task, { state: 'Waiting', message: null, endTime: null });
      // Of a failover the point is pinned; that of a drill, which had ended, may be gone: it is chosen again.
      if (volume.stage === 'chosen' && spec.type === 'drill') volume.stage = 'new';
    });
    Object.assign(status, { outcome: null, endTime: null, message: null });
  }
  if (action === 'confirm' && failed.length > 0 && !force)
    return `${names} is not recovered; retry it, or confirm with force: it is mirrored from its source again`;
  if (action in insistent) job.job.force = force;
  status.state = to;
  return undefined;
}

/** Nothing happens to it any more, nothing is held for it: it is a result, and may be deleted. */
export function hasEnded({ spec, status }: Pick<Job, 'spec' | 'status'>): boolean {
  switch (status.state) {
    case 'Cancelled':
    case 'RolledBack':
    case 'RollbackIgnored':
    case 'Confirmed':
    case 'ForceConfirmed':
      return true;
    // Of a failover the sources are held until somebody decides.
    case 'Completed':
    case 'Failed':
      return spec.type === 'drill';
    default:
      return false;
  }
}

export function nextStep(job: Job): Step {
  const { status } = job;
  const indexes = status.tasks.map((_task, index) => index);
  const stageOf = (index: number): VolumeStage => job.job.volumes[index]?.stage ?? 'new';
  const work = (kind: Work, volumes: number[]): Step => ({ kind: 'work', work: kind, volumes });
  switch (status.state) {
    case 'Waiting':
      return { kind: 'begin' };
    case 'Running':
      return recoverNext(job, indexes);
    case 'Pausing':
      return { kind: 'settle', state: 'Paused' };
    case 'Cancelling':
    case 'RollingBack': {
      const left = indexes.filter((index) => stageOf(index) !== 'undone');
      if (left.length > 0) return work('undo', left);
      if (status.state === 'Cancelling') return { kind: 'settle', state: 'Cancelled' };
      return { kind: 'settle', state: job.job.force ? 'RollbackIgnored' : 'RolledBack' };
    }
    case 'Confirming': {
      const failed = indexes.filter((index) => status.tasks[index]?.state === 'Failed' && stageOf(index) !== 'undone');
      if (failed.length > 0) return work('undo', failed);
      const left = indexes.filter((index) => stageOf(index) === 'ready');
      if (left.length > 0) return work('confirm', left);
      return { kind: 'settle', state: job.job.force ? 'ForceConfirmed' : 'Confirmed' };
    }
    default:
      return { kind: 'rest' };
  }
}

function recoverNext({ spec, status, job }: Job, indexes: number[]): Step {
  const open = indexes.filter((index) => isOpen(status.tasks[index]));
  const at = (...stages: VolumeStage[]): number[] =>
    open.filter((index) => stages.includes(job.volumes[index]?.stage ?? 'new'));
  // All sources are fenced before the first point is chosen: what they have in common is then known, and stays.
  const unfenced = spec.type === 'failover' ? at('new') : [];
  if (unfenced.length > 0) return { kind: 'work', work: 'fence', volumes: unfenced };
  const unchosen = at('new', 'fenced');
  if (unchosen.length > 0) return { kind: 'work', work: 'choose', volumes: unchosen };
  const order = Math.min(...open.map((index) => job.volumes[index]?.order ?? 1));
  const now = (stage: VolumeStage): number[] => at(stage).filter((index) => (job.volumes[index]?.order ?? 1) === order);
  if (now('chosen').length > 0) return { kind: 'work', work: 'copy', volumes: now('chosen') };
  if (now('copied').length > 0) return { kind: 'work', work: 'check', volumes: now('copied') };
  const good = status.tasks.filter(({ state }) => state === 'Completed').length;
  const all = good === status.tasks.length;
  const isDone = good > 0 && (all || spec.type === 'failover');
  return { kind: 'settle', state: isDone ? 'Completed' : 'Failed' };
}

function isOpen(task: RecoveryTask | undefined): boolean {
  return task?.state === 'Waiting' || task?.state === 'Running';
}

const after: Record<Work, VolumeStage> = {
  fence: 'fenced',
  choose: 'chosen',
  copy: 'copied',
  check: 'ready',
  undo: 'undone',
  confirm: 'confirmed',
};

/** Work on a volume was done. `remark` is for people. */
export function succeeded({ status, job }: Job, index: number, work: Work, time: string, remark?: string): void {
  const [task, volume] = [status.tasks[index], job.volumes[index]];
  if (!task || !volume) return;
  // What is wrong with what is confirmed stays to be read.
  if (remark !== undefined && work === 'confirm' && task.verified === false && task.message !== null)
    task.message = `${remark}; ${task.message}`;
  else if (remark !== undefined) task.message = remark;
  else if ((work === 'undo' || work === 'confirm') && task.state !== 'Failed') task.message = null;
  reach({ status, job }, index, work, time);
}

/** The stage that work leads to, and what the task shows then. */
function reach({ status, job }: Pick<Job, 'status' | 'job'>, index: number, work: Work, time: string): void {
  const [task, volume] = [status.tasks[index], job.volumes[index]];
  if (!task || !volume) return;
  volume.stage = after[work];
  if (work === 'check') Object.assign(task, { state: 'Completed', endTime: time, progress: null });
  if (work === 'undo' && status.state !== 'Confirming') {
    const state = status.state === 'Cancelling' ? 'Cancelled' : 'RolledBack';
    Object.assign(task, { state, endTime: task.endTime ?? time, progress: null });
  }
}

/**
 * Work on a volume failed. A volume that cannot be recovered is Failed; what must be undone or confirmed stays to be done,
 * unless it was said that it may be left. Answers whether it is to be tried again.
 */
export function failed({ status, job }: Job, index: number, work: Work, message: string, time: string): boolean {
  const task = status.tasks[index];
  if (!task) return false;
  task.message = message;
  if (work === 'undo' || work === 'confirm') {
    if (job.force) reach({ status, job }, index, work, time);
    return !job.force;
  }
  // Asked to end meanwhile: that it did not go on is what was wanted.
  if (status.state === 'Running' || status.state === 'Pausing')
    Object.assign(task, { state: 'Failed', endTime: time, progress: null });
  return false;
}

/** Enters the state that `nextStep` said. Answers the outcome when there is one now that was not before. */
export function settle({ spec, status }: Job, state: RecoveryState, time: string): Outcome | undefined {
  const before = status.outcome;
  status.state = state;
  const isDrill = spec.type === 'drill';
  switch (state) {
    case 'Completed':
      if (isDrill) status.outcome = 'success';
      status.endTime = time;
      break;
    case 'Failed':
      Object.assign(status, { outcome: 'failed', endTime: time });
      break;
    case 'Cancelled':
      Object.assign(status, { outcome: 'cancelled', endTime: time });
      break;
    case 'RolledBack':
    case 'RollbackIgnored':
      status.outcome ??= 'cancelled';
      break;
    case 'Confirmed':
    case 'ForceConfirmed':
      status.outcome = 'success';
      break;
    default:
  }
  return status.outcome !== null && status.outcome !== before ? status.outcome : undefined;
}
export type Outcome = NonNullable<Recovery['status']['outcome']>;

/** Takes its group for itself: from its beginning until it has ended, or a drill is only a result that may be removed. */
export function isUnderWay(job: Pick<Job, 'spec' | 'status'>): boolean {
  return job.status.state !== 'Waiting' && !hasEnded(job);
}
