/**
 * A replica as the controllers use it, wherever it lies: in this process (replica/ondemand.ts) or with a receiver
 * (receiver/remote.ts). What it tells of itself is there at once; what it does is awaited.
 */
import type { Clock } from '../proto/effects.ts';
import type { MirrorHello } from '../proto/wire.ts';
import type { Replica } from './replica/replica.ts';
import type { MirrorStream, SessionEvents } from './session.ts';

export type ReplicaFacts = Pick<
  Replica,
  | 'damaged'
  | 'owes'
  | 'writtenBytes'
  | 'points'
  | 'newestPoint'
  | 'drilledUs'
  | 'snapshotNames'
  | 'snapshotPoint'
  | 'snapshotBytes'
>;
export type ReplicaWork = Pick<
  Replica,
  | 'fence'
  | 'advance'
  | 'recover'
  | 'pour'
  | 'measure'
  | 'snapshot'
  | 'snapshotLock'
  | 'lockSnapshot'
  | 'deleteSnapshot'
  | 'noteDrill'
  | 'close'
>;

export interface HeldReplica extends ReplicaFacts, ReplicaWork {
  /** Newest fencing generation that may write; absent where only the receiver knows it. */
  readonly generation?: string;
  /** Absent: all that is copied from it is looked at on its way (receivers). */
  prove?: Replica['prove'];
  /** Why nothing can be asked of it any more, though it is not damaged: it has to be opened anew. */
  readonly lost: string | undefined;
  /** An agent's Mirror call, to its end; see serveSession. */
  serve(
    agent: string,
    hello: MirrorHello,
    stream: MirrorStream,
    clock: Clock,
    events: SessionEvents,
    signal: AbortSignal,
  ): Promise<void>;
}
