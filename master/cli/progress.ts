/**
 * Watching until something has happened: a replication that becomes NORMAL, a recovery that ends. Shows what moves
 * meanwhile. Follows the API's event stream, never polls.
 */
import type { Recovery, Replication, Snapshot } from '../resources.ts';
import { follow } from './client.ts';
import { liveLine, plain, progressBar, size, span, stateColour, type Paint } from './format.ts';
import { printObject } from './get.ts';
import type { Kind } from './kinds.ts';
import type { Session } from './verb.ts';

/** Phase, what is done of the work in hand, how old the copy is, and what is wrong. */
export function replicationLine({ status }: Replication, paint: Paint, sinceSeconds = 0): string {
  const { state, phase, progress, lagSeconds, lagBytes, recoveryPoint } = status;
  const working = progress !== null && (phase !== 'Mirroring' || progress.bytesDone < progress.bytesTotal);
  const wrong = status.conditions.find(({ type, status }) => type === 'Degraded' && status === 'True');
  const parts = [
    paint(state, stateColour(state) ?? 'bold'),
    phase,
    working ? progressBar(progress) : '',
    lagSeconds === null ? '' : `lag ${span(lagSeconds + sinceSeconds)}${lagBytes ? ` (${size(lagBytes)})` : ''}`,
    recoveryPoint === null ? '' : `point ${recoveryPoint.sequence}`,
    wrong === undefined ? '' : paint(`${wrong.reason}: ${plain(wrong.message)}`, 'yellow'),
  ];
  return parts.filter((part) => part !== '').join('  ');
}

export function recoveryLine({ status }: Recovery, paint: Paint): string {
  const task = status.tasks.find(({ state }) => state === 'Running') ?? status.tasks[0];
  const step = task?.progress;
  const parts = [
    paint(status.state, stateColour(status.state) ?? 'bold'),
    step && status.outcome === null ? `${plain(step.step)}  ${progressBar(step)}` : '',
  ];
  return parts.filter((part) => part !== '').join('  ');
}

/**
 * Shows `line` of an object with each change until `ended` answers an exit status, and answers that. The wait begins
 * with `from`, the master's answer to what was asked, so no change after it is missed. Deleted meanwhile: 1.
 */
export async function waitFor<T extends Replication | Recovery | Snapshot>(
  session: Session,
  collection: string,
  from: T,
  line: (object: T) => string,
  ended: (object: T) => number | undefined,
  timeoutSeconds: number | undefined,
): Promise<{ status: number; object: T }> {
  const limit = timeoutSeconds === undefined ? [] : [AbortSignal.timeout(timeoutSeconds * 1000)];
  const signal = AbortSignal.any([session.signal, ...limit]);
  const { name } = from.metadata;
  const live = liveLine(process.stderr);
  let last = from;
  try {
    for await (const object of follow<T>(session.client, collection, name, signal, from)) {
      last = object;
      live.show(line(object));
      const status = ended(object);
      if (status !== undefined) return { status, object };
    }
    live.end();
    session.note(`${name} was deleted meanwhile.`);
  } catch (error) {
    if (!signal.aborted || session.signal.aborted) throw error;
    live.end();
    session.note(`${name} was not done within ${timeoutSeconds} s; what was asked goes on.`);
  } finally {
    live.end();
  }
  return { status: 1, object: last };
}

/**
 * Prints what came of a request: at once - or, where it is waited for and asked for whole (-o json, yaml), as it is in the end, so that
 * what is read is what there is.
 */
export async function printDone<T>(
  session: Session,
  { kind, owner = '', done }: { kind: Kind; owner?: string; done: string },
  made: T,
  wait: (() => Promise<{ status: number; object: T }>) | undefined,
): Promise<number> {
  const isLater = wait !== undefined && (session.output === 'json' || session.output === 'yaml');
  if (!isLater) printObject(session, kind, made, owner, done);
  if (wait === undefined) return 0;
  let last = made;
  try {
    const { status, object } = await wait();
    last = object;
    return status;
  } finally {
    if (isLater) printObject(session, kind, last, owner, done);
  }
}

export function untilNormal({ status }: Replication): number | undefined {
  return status.state === 'NORMAL' ? 0 : status.state === 'FAILED' ? 1 : undefined;
}
/** A failover is there for use when it is complete; what becomes of it is asked for later. */
export function untilEnded({ spec, status }: Recovery): number | undefined {
  const isThere = spec.type === 'failover' && status.state === 'Completed';
  if (isThere) return status.tasks.every(({ state }) => state === 'Completed') ? 0 : 1;
  return status.outcome === null ? undefined : status.outcome === 'success' ? 0 : 1;
}
/** A resync has ended when it was seen to run and mirroring goes on. */
export function untilResynced(): (replication: Replication) => number | undefined {
  let seen = false;
  return ({ status }) => {
    seen ||= status.phase === 'Resyncing' || status.phase === 'InitialSync';
    if (status.state === 'FAILED') return 1;
    return seen && status.phase === 'Mirroring' && status.state === 'NORMAL' ? 0 : undefined;
  };
}
/** A verify has ended when lastVerifiedTime moved on, or when it said what does not match. */
export function untilVerified(before: string | null): (replication: Replication) => number | undefined {
  return ({ status }) => {
    const mismatch = status.conditions.some(({ reason, status }) => reason === 'VerifyMismatch' && status === 'True');
    if (status.lastVerifiedTime !== before) return mismatch ? 1 : 0;
    return status.state === 'FAILED' ? 1 : undefined;
  };
}
