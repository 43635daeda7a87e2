/**
 * Recovery points that agents are to write into volumes of their nodes, or to compare: who is asked, and the calls that come.
 * Kept in memory: whoever wants one asks again after a start of the master (recovery/writeback.ts, forks.ts).
 *
 * Guarantees: one call at a time works on a restore; a newer call of its agent takes the place of one whose line broke; nothing of
 * it goes on when `run` has returned. Failure: what a person must change is thrown; a line that breaks waits for the agent's next
 * call; what fails on either side though the line holds is thrown when it has failed `maxFaults` times.
 */
import { asReplicationError, ReplicationError } from '../proto/errors.ts';
import { Lock } from '../proto/lock.ts';
import { protocolOldest, protocolVersion, type Restore } from '../proto/wire.ts';
import type { RestoreCall } from './offering.ts';

export interface Restores {
  /** Asks the agent for calls until one of them has done the work. @throws what needs a person; the signal's reason */
  run<T>(
    agent: string,
    restore: Restore,
    work: (call: RestoreCall, signal: AbortSignal) => Promise<T>,
    signal: AbortSignal,
  ): Promise<T>;
  restoresFor(agent: string): Restore[];
  /** One Restore call, to its end. */
  serve(agent: string, call: RestoreCall, signal: AbortSignal): Promise<void>;
}

/** The agent calls again with growing pauses: some minutes in all. */
export const maxFaults = 10;

interface Wanted {
  agent: string;
  restore: Restore;
  attempt(call: RestoreCall, signal: AbortSignal): Promise<void>;
}

/** @param notify what agents are told may have changed */
export function restores(notify: () => void): Restores {
  const all = new Map<string, Wanted>();

  return {
    async run(agent, restore, work, signal) {
      const { uid } = restore;
      if (all.has(uid)) throw new ReplicationError('Stopped', `${uid} is being worked on already`);
      const done = Promise.withResolvers<Awaited<ReturnType<typeof work>>>();
      // Nobody may be waiting yet, or any more.
      done.promise.catch(() => undefined);
      const over = new AbortController();
      const lock = new Lock();
      let present: AbortController | undefined;
      let faults = 0;
      const attempt = async (call: RestoreCall, line: AbortSignal): Promise<void> => {
        present?.abort(new ReplicationError('Disconnected', 'the agent has called anew'));
        const own = (present = new AbortController());
        const ending = AbortSignal.any([line, over.signal, own.signal]);
        const cancel = (): void => call.cancel();
        ending.addEventListener('abort', cancel, { once: true });
        try {
          await lock.run(async () => {
            ending.throwIfAborted();
            done.resolve(await work(call, ending));
          });
        } catch (thrown) {
          const error = asReplicationError(thrown);
          if (ending.aborted || error.code === 'Disconnected') throw error;
          faults += 1;
          if (error.retry === 'never') done.reject(error);
          else if (faults >= maxFaults) done.reject(givenUp(error, agent, restore.path));
          throw error;
        } finally {
          ending.removeEventListener('abort', cancel);
        }
      };
      const stop = (): void => done.reject(asReplicationError(signal.reason, 'Stopped'));
      if (signal.aborted) stop();
      signal.addEventListener('abort', stop, { once: true });
      all.set(uid, { agent, restore, attempt });
      notify();
      try {
        return await done.promise;
      } finally {
        signal.removeEventListener('abort', stop);
        all.delete(uid);
        notify();
        over.abort(new ReplicationError('NotAssigned', 'it is over'));
        // Whoever reads the content does so no more when it is taken away.
        await lock.run(async () => undefined);
      }
    },

    restoresFor: (agent) => [...all.values()].filter((one) => one.agent === agent).map(({ restore }) => restore),

    async serve(agent, call, signal) {
      const first = await call.receive.next();
      const hello = first.done === true ? undefined : first.value.restore;
      if (!hello) throw new ReplicationError('BadMessage', 'MirrorReply.restore must be the first message');
      if (hello.protocol < protocolOldest || hello.protocol > protocolVersion)
        throw new ReplicationError(
          'VersionMismatch',
          `the agent speaks protocol ${hello.protocol}; upgrade the older one`,
        );
      const wanted = all.get(hello.uid);
      if (wanted?.agent !== agent) throw new ReplicationError('NotAssigned', `${hello.uid} is not asked of ${agent}`);
      await wanted.attempt(call, signal);
    },
  };
}

function givenUp({ code, message }: ReplicationError, agent: string, path: string): ReplicationError {
  return new ReplicationError(
    code,
    `${message}; tried ${maxFaults} times. See to ${path} on ${agent}, then retry: what the volume has already is not sent again`,
  );
}
