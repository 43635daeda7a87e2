/**
 * An agent's Mirror call handed on to the receiver that keeps the replica, message by message.
 *
 * Guarantees: the order of messages stays; nothing is acknowledged here, so what the agent hears of durability is the receiver's word.
 * Cuts of groups are this master's: it hears them, and lets no commit of one pass that it did not ask for. What waits here is
 * bounded by the two calls, as a slow side holds up the other. Whichever call ends first ends the other with its reason.
 */
import type { Clock } from '../../proto/effects.ts';
import { ReplicationError } from '../../proto/errors.ts';
import type { Stream } from '../../proto/stream.ts';
import type { Commit, MirrorHello, MirrorReply, MirrorRequest } from '../../proto/wire.ts';
import type { MirrorStream, SessionEvents } from '../session.ts';

export interface Relayed {
  hello: MirrorHello;
  agent: MirrorStream;
  receiver: Stream<MirrorRequest, MirrorReply>;
  clock: Clock;
  events: SessionEvents;
  /** Resolves when this side knows of the commit. */
  known: (sequence: number) => Promise<void>;
}

export async function relay(relayed: Relayed): Promise<void> {
  /** Handed on and not yet answered. */
  const commits: Commit[] = [];
  const broken = Promise.withResolvers<never>();
  handOn(relayed, commits).catch(broken.reject);
  try {
    await Promise.race([answer(relayed, commits), broken.promise]);
  } finally {
    relayed.receiver.cancel();
  }
}

async function handOn({ hello, agent, receiver, events }: Relayed, commits: Commit[]): Promise<void> {
  await receiver.send({ number: 1, hello });
  for await (const message of agent.receive) {
    const { commit, group } = message;
    if (group) {
      if (!events.group)
        throw new ReplicationError('BadMessage', 'MirrorRequest.group: this replication is in no group');
      events.group.hear(group);
    }
    if (commit) {
      const { groupCut, sourceUs } = commit;
      if (groupCut !== '' && events.group?.mayCommit(groupCut, sourceUs) !== true)
        throw new ReplicationError(
          'BadMessage',
          `Commit.group_cut ${groupCut} is none that this member was told to commit`,
        );
      commits.push(commit);
    }
    await receiver.send(message);
  }
  receiver.end();
}

async function answer({ hello, agent, receiver, clock, events, known }: Relayed, commits: Commit[]): Promise<void> {
  for await (const reply of receiver.receive) {
    const { committed, verifyReady } = reply;
    if (committed) {
      const commit = commits.shift();
      if (commit?.sequence !== committed.sequence)
        throw new ReplicationError('BadMessage', `Committed.sequence ${committed.sequence} was not asked for`);
      await known(committed.sequence);
      events.onCommit({
        ...commit,
        digest: committed.digest,
        committedUs: Math.round(clock.nowMs() * 1000),
        sourceId: hello.sourceId,
        generation: hello.fencingGeneration,
      });
    }
    if (verifyReady) events.onVerified(verifyReady);
    await agent.send(reply);
  }
}
