/**
 * Proves what failovers have handed out. A failover's copy is needed at once, so it is handed out by its digest alone; then its point is
 * read whole beside it (replica/proof.ts), and the recovery says what came of that.
 *
 * Guarantees: the copy is not touched, nobody waits for this, nothing is written to storage; what is handed out and not proven is gone on
 * with after a start of the master, also once it is confirmed; a rollback ends it. One point is read at a time.
 * Failure: a replica that cannot be read now is read again later; one that has not got the point any more is told, as not proven.
 */
import type { Clock } from '../../proto/effects.ts';
import { asReplicationError, messageOf } from '../../proto/errors.ts';
import { granuleBytes } from '../../proto/granule.ts';
import type { Events } from '../engine.ts';
import type { Metrics } from '../metrics.ts';
import type { Mirrors } from '../mirrors.ts';
import { replicaUid } from '../mirrorstate.ts';
import { pauseAfter } from '../pacing.ts';
import { damageText } from '../replica/proof.ts';
import type { Recovery, Replication } from '../resources.ts';
import type { Store } from '../store.ts';
import { failbackName } from './failback.ts';
import { messageFor } from './message.ts';
import { awaitsProof, verifiedOf } from './proven.ts';
import { keptPoint } from './volume.ts';

export interface ProofsOptions {
  store: Store;
  clock: Clock;
  events: Events;
  metrics: Pick<Metrics, 'onVerify'>;
  mirrors: Pick<Mirrors, 'replica'>;
}

/** A copy, by the recovery that has handed it out. */
interface Copy {
  name: string;
  uid: string;
  index: number;
}

const lookEveryMs = 1000;
const abortWithinMs = 200;
const tellEveryMs = 5000;
/** After something failed. */
const againMs = 30_000;
/** Different troubles, until nothing waits any more. */
const maxTold = 100;

export async function runProofs(options: ProofsOptions, signal: AbortSignal): Promise<void> {
  const { store, clock } = options;
  const dueMs = new Map<string, number>();
  const told = new Set<string>();
  let known: { revision: number; waiting: Copy[] } | undefined;
  while (!signal.aborted) {
    const startMs = clock.monotonicMs();
    const revision = store.revision('Recovery');
    if (known?.revision !== revision) known = { revision, waiting: waitingIn(store) };
    const lookedMs = clock.monotonicMs() - startMs;
    if (known.waiting.length === 0) [dueMs, told].forEach((one) => one.clear());
    for (const copy of known.waiting) {
      const key = `${copy.uid}/${copy.index}`;
      if (signal.aborted || clock.monotonicMs() < (dueMs.get(key) ?? 0)) continue;
      const again = await prove(options, copy, signal).catch((error: unknown) => {
        const why = messageOf(error);
        if (!signal.aborted && !told.has(`${key} ${why}`) && told.size < maxTold) {
          told.add(`${key} ${why}`);
          tellTrouble(options, copy, `its point cannot be read whole, which is tried again: ${why}`);
        }
        return againMs;
      });
      dueMs.set(key, clock.monotonicMs() + again);
    }
    await clock.sleep(pauseAfter(lookEveryMs, lookedMs), signal).catch(() => undefined);
  }
}

function waitingIn(store: Store): Copy[] {
  return store.list('Recovery').flatMap((recovery) => {
    const { name, uid } = recovery.metadata;
    return recovery.status.tasks.flatMap((_task, index) =>
      awaitsProof(recovery, index) ? [{ name, uid, index }] : [],
    );
  });
}

/** As it is now; undefined: nobody wants to know any more. */
function wanted(store: Store, { name, uid, index }: Copy): Recovery | undefined {
  const recovery = store.get('Recovery', name);
  return recovery?.metadata.uid === uid && awaitsProof(recovery, index) ? recovery : undefined;
}

/** Who has the replica: after a confirmation another one. */
function holderOf(store: Store, volume: string, replica: string | undefined): Replication | undefined {
  return [volume, failbackName(volume)]
    .flatMap((name) => store.get('Replication', name) ?? [])
    .find((one) => replicaUid(one) === replica);
}

/** Answers after how long it is to be looked at again, if it is not done. */
async function prove(options: ProofsOptions, copy: Copy, stop: AbortSignal): Promise<number> {
  const { store, clock, mirrors } = options;
  const recovery = wanted(store, copy);
  const task = recovery?.status.tasks[copy.index];
  if (!recovery || !task) return 0;
  const holder = holderOf(store, task.volume, recovery.job.volumes[copy.index]?.replica);
  if (!holder) {
    conclude(options, copy, undefined, { why: 'its replica was deleted' });
    return 0;
  }
  const { name, uid } = holder.metadata;
  const replica = mirrors.replica(uid);
  if (!replica?.prove) return lookEveryMs;
  const point = keptPoint(replica, task.point);
  if (!point) {
    conclude(options, copy, holder, { why: `point ${task.point?.sequence} is no longer kept` });
    return 0;
  }
  const over = new AbortController();
  const signal = AbortSignal.any([stop, over.signal]);
  // A replica that goes to another replication, or goes, is closed first.
  const isOver = (): boolean => !wanted(store, copy) || store.get('Replication', name)?.metadata.uid !== uid;
  const watching = (async () => {
    while (!signal.aborted) {
      if (isOver()) over.abort(new Error('nobody wants to know any more'));
      await clock.sleep(abortWithinMs, signal).catch(() => undefined);
    }
  })();
  try {
    const proven = await replica.prove(point, { signal, progress: telling(options, copy) });
    const damage = proven.badGranules > 0 ? damageText(proven) : undefined;
    conclude(options, copy, holder, { damage, ...proven });
  } catch (error) {
    if (over.signal.aborted || isOver()) return 0;
    const { code, message } = asReplicationError(error);
    if (code === 'ReplicaDamaged') conclude(options, copy, holder, { damage: message });
    else if (code === 'PointGone') conclude(options, copy, holder, { why: message });
    else throw error;
  } finally {
    over.abort();
    await watching;
  }
  return 0;
}

/** At the beginning, and now and then. */
function telling({ store, clock }: ProofsOptions, copy: Copy): (bytesDone: number, bytesTotal: number) => void {
  let toldMs = -Infinity;
  return (bytesDone, bytesTotal) => {
    if (clock.monotonicMs() - toldMs < tellEveryMs || !wanted(store, copy)) return;
    toldMs = clock.monotonicMs();
    const step = 'handed out; its point is being read whole';
    store.update('Recovery', copy.name, ({ status }) => {
      const task = status.tasks[copy.index];
      if (task) task.progress = { step, bytesDone, bytesTotal };
    });
  };
}

function conclude(
  options: ProofsOptions,
  copy: Copy,
  holder: Replication | undefined,
  {
    why,
    damage,
    readBytes = 0,
    badGranules = 0,
  }: { why?: string; damage?: string | undefined; readBytes?: number; badGranules?: number },
): void {
  const { store, events, metrics } = options;
  const recovery = wanted(store, copy);
  const task = recovery?.status.tasks[copy.index];
  if (!recovery || !task) return;
  const { state } = recovery.status;
  const at = `${task.volume}: the copy at ${task.path ?? ''}`;
  const cure =
    state === 'Completed'
      ? 'roll back, then recover a snapshot or another point; if the source lives, verify fetches these bytes from it again'
      : 'it was confirmed already: look for these bytes in a snapshot or another point';
  const wrong = damage === undefined ? undefined : `DAMAGED at point ${task.point?.sequence}: ${damage}; ${cure}`;
  const text = wrong ?? (why === undefined ? undefined : `not proven, as its point was not read whole: ${why}`);
  // Before it is written that this is done.
  if (wrong !== undefined && holder)
    store.update('Replication', holder.metadata.name, ({ requests }) => {
      requests.damage = { recovery: copy.name, message: `${copy.name}: the copy is ${wrong}` };
    });
  store.update('Recovery', copy.name, (object) => {
    const { status, job } = object;
    const [own, volume] = [status.tasks[copy.index], job.volumes[copy.index]];
    if (!own || !volume) return;
    Object.assign(own, { verified: text === undefined, progress: null });
    volume.verified = text === undefined;
    if (text !== undefined) own.message = own.message === null ? text : `${own.message}; ${text}`;
    status.verified = verifiedOf(object);
    if (status.state === 'Completed') status.message = messageFor(object, 'Completed');
  });
  const object = `Recovery/${copy.name}`;
  if (wrong !== undefined) {
    if (holder) metrics.onVerify(holder.metadata.name, badGranules * granuleBytes);
    events.emit({ code: 'RecoveredCopyDamaged', level: 'ERROR', message: `${at} is ${wrong}`, object });
  } else if (text !== undefined) tellTrouble(options, copy, `the copy is ${text}`);
  else {
    const message = `${at} is proven: point ${task.point?.sequence} was read whole (${readBytes} bytes) and is right`;
    events.emit({ code: 'RecoveredCopyVerified', level: 'INFO', message, object });
  }
}

function tellTrouble({ store, events }: ProofsOptions, { name, index }: Copy, text: string): void {
  const volume = store.get('Recovery', name)?.status.tasks[index]?.volume ?? '';
  events.emit({ code: 'StorageTrouble', level: 'WARNING', message: `${volume}: ${text}`, object: `Recovery/${name}` });
}
