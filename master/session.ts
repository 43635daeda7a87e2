/**
 * Receive side of one Mirror call: receive -> check -> journal -> commit -> ack, one message after the other.
 *
 * Guarantees: Committed goes out only after the replica made the commit durable (I1); Received means only "taken and
 * checked". Whatever ends the call, the open epoch is dropped and the sender offers or sends it again.
 */
import type { Clock } from '../proto/effects.ts';
import { ReplicationError } from '../proto/errors.ts';
import { nodeBatches } from '../proto/nodebatch.ts';
import type { Stream } from '../proto/stream.ts';
import {
  protocolOldest,
  protocolVersion,
  type MirrorHello,
  type MirrorReply,
  type MirrorRequest,
  type Node,
} from '../proto/wire.ts';
import type { GroupSeat } from './groupcuts.ts';
import type { CommitRecord } from './replica/frame.ts';
import type { Replica } from './replica/replica.ts';
import type { ReplicaHead, ReplicaSession } from './replica/writer.ts';

export type MirrorStream = Stream<MirrorReply, MirrorRequest>;

/** What a session writes into: a replica that is open, or one that is opened on demand. */
export interface WritableReplica extends Pick<Replica, 'attach' | 'detach' | 'data' | 'nodes' | 'commit' | 'scrub'> {
  readonly head: ReplicaHead;
  want(session: ReplicaSession, object: number, first: number, hashes: Buffer): Buffer | Promise<Buffer>;
  manifest(session: ReplicaSession): Iterable<Node> | AsyncIterable<Node>;
}

/** What the session tells the master about. */
export interface SessionEvents {
  onCommit(commit: CommitRecord): void;
  onVerified(result: { readBytes: number; badGranules: number }): void;
  /** Where the replication is a member of a group. */
  group?: GroupSeat;
}

/**
 * Received is sent at least this often, in messages and bytes, so that the sender's window moves on; at once for a message of
 * the largest size, as the sender lends its buffer until then.
 */
const receivedEvery = { messages: 8, bytes: 1 << 20 };
const verifyProgressEveryMs = 500;

/** The first message of a call. @throws BadMessage, VersionMismatch */
export async function readHello(
  stream: MirrorStream,
  ours = { oldest: protocolOldest, newest: protocolVersion },
): Promise<MirrorHello> {
  const first = await stream.receive.next();
  const hello = first.done === true ? undefined : first.value.hello;
  if (!hello) throw new ReplicationError('BadMessage', 'MirrorRequest.hello must be the first message');
  if (hello.protocol < ours.oldest || hello.protocol > ours.newest) {
    throw new ReplicationError(
      'VersionMismatch',
      `the agent speaks protocol ${hello.protocol}, this master ${ours.oldest} to ${ours.newest}; upgrade the older one`,
    );
  }
  return hello;
}

/** Serves the call to its end. */
export async function serveSession(
  replica: WritableReplica,
  agent: string,
  hello: MirrorHello,
  stream: MirrorStream,
  clock: Clock,
  events: SessionEvents,
  signal: AbortSignal,
): Promise<void> {
  const session = await replica.attach({
    name: agent,
    generation: hello.fencingGeneration,
    sourceId: hello.sourceId,
    sizeBytes: hello.sizeBytes,
    force: hello.force,
  });
  try {
    const { sequence, initialized, sizeBytes, digest, sourceId, blank, unknown } = replica.head;
    await stream.send({
      welcome: {
        protocol: hello.protocol,
        headSequence: sequence,
        initialized,
        sizeBytes,
        digest,
        sourceId,
        blank,
        incomplete: unknown > 0,
      },
    });
    const owed = { messages: 0, bytes: 0, workedMs: 0 };
    for await (const message of stream.receive) {
      signal.throwIfAborted();
      const sinceMs = clock.monotonicMs();
      const answered = await take(replica, session, message, stream, clock, events, signal);
      // What is kept of it was copied.
      if (message.data) stream.recycle?.(message);
      owed.messages++;
      owed.bytes += message.data?.payload.length ?? 0;
      owed.workedMs += clock.monotonicMs() - sinceMs;
      if (answered || owed.messages >= receivedEvery.messages || owed.bytes >= receivedEvery.bytes) {
        await stream.send({ received: { number: message.number, workedUs: Math.round(owed.workedMs * 1000) } });
        Object.assign(owed, { messages: 0, bytes: 0, workedMs: 0 });
      }
    }
  } finally {
    await replica.detach(session);
  }
}

/** Answers whether something was sent back. */
async function take(
  replica: WritableReplica,
  session: ReplicaSession,
  message: MirrorRequest,
  stream: MirrorStream,
  clock: Clock,
  events: SessionEvents,
  signal: AbortSignal,
): Promise<boolean> {
  if (message.data) {
    await replica.data(session, message.data);
    return false;
  }
  if (message.nodes) {
    await replica.nodes(session, message.nodes);
    return false;
  }
  if (message.offer) {
    const { object, first, hashes } = message.offer;
    await stream.send({ want: { number: message.number, bitmap: await replica.want(session, object, first, hashes) } });
  } else if (message.commit) {
    const { groupCut, sourceUs } = message.commit;
    if (groupCut !== '' && events.group?.mayCommit(groupCut, sourceUs) !== true)
      throw new ReplicationError(
        'BadMessage',
        `Commit.group_cut ${groupCut} is none that this member was told to commit`,
      );
    const commit = await replica.commit(session, message.commit);
    // Told first: a line that breaks at the ack must not keep the status from moving on.
    events.onCommit(commit);
    await stream.send({ committed: { sequence: commit.sequence, digest: commit.digest } });
  } else if (message.manifest) {
    await sendManifest(replica.manifest(session), stream);
  } else if (message.group) {
    if (!events.group) throw new ReplicationError('BadMessage', 'MirrorRequest.group: this replication is in no group');
    events.group.hear(message.group);
  } else if (message.verify) {
    events.onVerified(await scrub(replica, session, stream, clock, signal));
  } else {
    throw new ReplicationError('BadMessage', 'MirrorRequest.hello came twice');
  }
  return true;
}

async function sendManifest(manifest: Iterable<Node> | AsyncIterable<Node>, stream: MirrorStream): Promise<void> {
  for await (const nodes of nodeBatches(manifest)) await stream.send({ nodes: { nodes } });
  await stream.send({ manifestEnd: {} });
}

async function scrub(
  replica: WritableReplica,
  session: ReplicaSession,
  stream: MirrorStream,
  clock: Clock,
  signal: AbortSignal,
): Promise<{ readBytes: number; badGranules: number }> {
  let lastMs = clock.monotonicMs();
  const result = await replica.scrub(session, signal, (bytesDone, bytesTotal) => {
    const nowMs = clock.monotonicMs();
    if (nowMs - lastMs < verifyProgressEveryMs) return;
    lastMs = nowMs;
    // Progress is for people: one that cannot be sent will be missed by nobody, and the next send tells of the break.
    stream.send({ verifyProgress: { bytesDone, bytesTotal } }).catch(() => undefined);
  });
  await stream.send({ verifyReady: result });
  return result;
}
