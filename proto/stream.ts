/**
 * An open call as both ends see it, whatever carries it: gRPC (proto/rpc.ts) or memory (streamPair, for tests and the
 * simulator).
 *
 * Guarantees: messages arrive in order, each once or not at all; what was received before a failure is still delivered
 * before the failure is thrown. After a failure every send and the iteration throw the same ReplicationError:
 * the other side's own one where it named a code, else Disconnected.
 */
import { ReplicationError } from './errors.ts';

export interface Stream<Out, In> {
  /**
   * Takes the message and resolves once there is room for the next one: a slow receiver slows the sender. Messages of
   * concurrent sends go out in the order of the calls. Buffers in the message must not be changed before it was acknowledged.
   */
  send(message: Out): Promise<void>;
  /**
   * One iterator, to be taken once; `next()` may be called by hand. Ends when the other side ended the call well.
   * Leaving it early cancels the call at the client; at the server the call ends with the handler, so that its error
   * still travels.
   */
  readonly receive: AsyncIterableIterator<In>;
  /** Of the newest message received: nobody looks at its buffers any more, others may come in them. Absent: they are its own. */
  recycle?(message: In): void;
  /** Nothing more will be sent; receiving goes on (client) or the call ends well (server). */
  end(): void;
  /** Ends both directions at once. */
  cancel(): void;
  /** Encoded messages so far. */
  readonly sentBytes: number;
  readonly receivedBytes: number;
}

/** Promise that every call of `wake` since resolves: for loops that look again at their state. */
export function bell(): { rung: () => Promise<void>; ring: () => void } {
  let waiters: (() => void)[] = [];
  return {
    rung: () => new Promise((resolve) => waiters.push(resolve)),
    ring: () => {
      const woken = waiters;
      waiters = [];
      for (const wake of woken) wake();
    },
  };
}

export interface Pair<A, B> {
  client: Stream<A, B>;
  server: Stream<B, A>;
  /** The line breaks: both sides see Disconnected, or the given error. Messages under way are lost. */
  cut(error?: ReplicationError): void;
}

/** Both ends of a call within this process. `window` messages may be under way in each direction. Byte counts stay 0. */
export function streamPair<A, B>(window = 16): Pair<A, B> {
  const { rung, ring } = bell();
  const up = { queue: [] as A[], ended: false };
  const down = { queue: [] as B[], ended: false };
  let failure: ReplicationError | undefined;

  const cut = (error = new ReplicationError('Disconnected', 'the line was cut')): void => {
    failure ??= error;
    up.queue.length = 0;
    down.queue.length = 0;
    ring();
  };

  function side<Out, In>(
    out: { queue: Out[]; ended: boolean },
    into: { queue: In[]; ended: boolean },
    leaveCancels: boolean,
  ): Stream<Out, In> {
    const cancel = (): void => cut(new ReplicationError('Disconnected', 'the call was cancelled'));
    async function* receive(): AsyncGenerator<In> {
      let over = false;
      try {
        for (;;) {
          const message = into.queue.shift();
          if (message !== undefined) {
            ring();
            yield message;
            continue;
          }
          over = failure !== undefined || into.ended;
          if (failure !== undefined) throw failure;
          if (into.ended) return;
          await rung();
        }
      } finally {
        if (!over && leaveCancels) cancel();
      }
    }
    return {
      async send(message) {
        if (failure !== undefined) throw failure;
        // A call is over when its server has ended; a client that has ended may still receive.
        const over = (): boolean => out.ended || (leaveCancels && into.ended);
        if (over()) throw new ReplicationError('Disconnected', 'the call has ended');
        out.queue.push(message);
        ring();
        while (out.queue.length >= window && failure === undefined && !over()) await rung();
        if (failure !== undefined) throw failure as ReplicationError;
      },
      receive: receive(),
      end() {
        out.ended = true;
        ring();
      },
      cancel,
      sentBytes: 0,
      receivedBytes: 0,
    };
  }
  return { client: side(up, down, true), server: side(down, up, false), cut };
}
