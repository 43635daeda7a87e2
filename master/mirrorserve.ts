/**
 * Mirror calls of agents: who may write which replica, and what a session's commits tell of it.
 *
 * Guarantees: only the agent that the replication names, with its generation, gets a session (I4).
 */
import type { Clock } from '../proto/effects.ts';
import { ReplicationError } from '../proto/errors.ts';
import { granuleBytes } from '../proto/granule.ts';
import type { MirrorHello } from '../proto/wire.ts';
import type { EventInput } from './engine.ts';
import type { GroupCuts } from './groupcuts.ts';
import type { HeldReplica } from './held.ts';
import type { Metrics } from './metrics.ts';
import { advanceEveryMs } from './mirrordue.ts';
import type { Mirror } from './mirrorstate.ts';
import type { CommitRecord } from './replica/frame.ts';
import type { Replication } from './resources.ts';
import { readHello, type MirrorStream } from './session.ts';
import type { Store } from './store.ts';

export interface MirrorServerOptions {
  store: Store;
  clock: Clock;
  metrics: Pick<Metrics, 'onSync' | 'onVerify'>;
  /** By uid. */
  all: ReadonlyMap<string, Mirror>;
  cuts: GroupCuts;
  tell: (mirror: Mirror, code: string, level: EventInput['level'], message: string) => void;
  settle: (mirror: Mirror) => Promise<void>;
}

/** One Mirror call, to its end. */
export function mirrorServer(
  options: MirrorServerOptions,
): (agent: string, stream: MirrorStream, signal: AbortSignal) => Promise<void> {
  const { store, clock, metrics, all, cuts, tell } = options;

  function onCommit(mirror: Mirror, commit: CommitRecord): void {
    // Before the first point the journal is only a buffer: it is applied as it comes.
    if (!mirror.replica?.newestPoint || commit.point)
      mirror.advancedMs = Math.min(mirror.advancedMs, clock.monotonicMs() - advanceEveryMs);
    if (commit.point) {
      const durationSeconds = Math.max(0, commit.committedUs - commit.startedUs) / 1e6;
      mirror.lastSync = { durationSeconds, bytes: commit.sentBytes };
      mirror.lastAttemptMs = commit.startedUs / 1000;
      metrics.onSync(mirror.name, 'success', durationSeconds);
      if (commit.verified) onCompared(mirror, commit);
    }
    void options.settle(mirror);
  }

  function onCompared(mirror: Mirror, { sequence, committedUs, mismatchedGranules }: CommitRecord): void {
    mirror.lastVerified = { ms: committedUs / 1000, mismatchedGranules };
    // What was found wrong in the replica has been read again, and fetched again.
    if (store.get('Replication', mirror.name)?.requests.damage)
      store.update('Replication', mirror.name, ({ requests }) => void delete requests.damage);
    metrics.onVerify(mirror.name, mismatchedGranules * granuleBytes);
    if (mismatchedGranules > 0) {
      tell(
        mirror,
        'VerifyMismatch',
        'ERROR',
        `${mismatchedGranules} pieces differed from the source and were sent again`,
      );
    } else {
      tell(mirror, 'VerifyCompleted', 'INFO', `source and replica are equal at point ${sequence}`);
    }
  }

  /** @throws NotAssigned, TargetFailed, Fenced */
  function admit(
    agent: string,
    hello: MirrorHello,
  ): { mirror: Mirror; replication: Replication; replica: HeldReplica } {
    const mirror = all.get(hello.replicationUid);
    const replication = mirror && store.get('Replication', mirror.name);
    if (!replication || replication.spec.source.agent !== agent) {
      throw new ReplicationError('NotAssigned', `replication ${hello.replicationUid} is not assigned to ${agent}`);
    }
    const { replica } = mirror;
    if (!replica) {
      throw new ReplicationError('TargetFailed', mirror.openFailure?.trouble.message ?? 'the replica is being opened');
    }
    if (replication.requests.fencedBy !== undefined)
      throw new ReplicationError('Fenced', 'the replica was promoted; its source may not write it any more');
    if (hello.fencingGeneration !== replication.status.fencingGeneration) {
      throw new ReplicationError('Fenced', `generation ${hello.fencingGeneration} may not write this replica any more`);
    }
    return { mirror, replication, replica };
  }

  return async (agent, stream, signal) => {
    const hello = await readHello(stream);
    const { mirror, replication, replica } = admit(agent, hello);
    mirror.lastAttemptMs = clock.nowMs();
    const { group } = replication.spec;
    // A line that breaks here ends the call, and that is seen by its reader.
    const seat =
      group === undefined
        ? undefined
        : cuts.join(group, mirror.uid, (ask) => void stream.send({ group: ask }).catch(() => undefined));
    const sessionEvents = {
      onCommit: (commit: CommitRecord) => onCommit(mirror, commit),
      onVerified({ badGranules }: { badGranules: number }) {
        const message = `${badGranules} stored pieces were damaged; they are fetched again`;
        if (badGranules > 0) tell(mirror, 'ReplicaDamaged', 'ERROR', message);
      },
      ...(seat && { group: seat }),
    };
    const closing = mirror.closing.signal;
    const cancel = (): void => stream.cancel();
    closing.addEventListener('abort', cancel, { once: true });
    try {
      const ending = AbortSignal.any([signal, closing]);
      await replica.serve(agent, hello, stream, clock, sessionEvents, ending);
    } catch (error) {
      if (!closing.aborted) metrics.onSync(mirror.name, 'failure', 0);
      throw error;
    } finally {
      seat?.leave();
      closing.removeEventListener('abort', cancel);
    }
  };
}
