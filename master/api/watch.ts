/**
 * Watches as server-sent events. A message's `data` is {"type", "object"}, its `id` is what a client gives back as
 * Last-Event-ID to go on without gap or repeat. A watch without Last-Event-ID begins with all objects as ADDED; these
 * carry no id, one bare `id:` after the last of them does - so a line cut in the middle begins anew instead of skipping.
 * A client that reads slowly makes the reader wait, not memory grow; one that falls behind the history is cut off and told
 * 410 when it comes back. A watch ends within a heartbeat after the token or the session that it began with.
 */
import { PassThrough } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setImmediate } from 'node:timers/promises';
import type { FastifyReply } from 'fastify';
import { StoreConflict } from '../store.ts';
import { ApiProblem, invalid } from './problem.ts';
import type { WatchMessage } from './schema.ts';

interface Moved<T> {
  version: number;
  messages: WatchMessage<T>[];
}
export interface WatchSource<T> {
  /** Version of the state that `list` gives. */
  version(): number;
  list(): Iterable<T>;
  /** No messages: nothing for this watcher, but the position moves. */
  changes(since: number, signal: AbortSignal): AsyncIterable<Moved<T>>;
}

/** All watches of a server: bounded in number, ended with it. */
export interface Watches {
  send<T>(reply: FastifyReply, source: WatchSource<T>, serialize: (object: T) => string): FastifyReply;
  close(): void;
}

/** About so many characters of a first list go out in one piece. */
const chunkLength = 1 << 16;
export const maxWatches = 1000;
/** So that nobody takes all of them. */
export const maxWatchesOfCaller = 200;

export function watches(heartbeatMs = 15_000): Watches {
  const closing = new AbortController();
  let open = 0;
  const ofCallers = new Map<string, number>();
  return {
    send(reply, source, serialize) {
      const caller = reply.request.caller?.name ?? '';
      const own = ofCallers.get(caller) ?? 0;
      if (own >= maxWatchesOfCaller)
        throw new ApiProblem('TooManyRequests', `${caller} has ${own} watches open already; end one of them`);
      if (open >= maxWatches) throw new ApiProblem('Unavailable', `${maxWatches} watches are open; end one of them`);
      const since = position(reply);
      const gone = new AbortController();
      const signal = AbortSignal.any([gone.signal, closing.signal]);
      const first = since === undefined ? [...source.list()] : [];
      const from = since ?? source.version();
      // Throws Expired here, before anything is answered.
      const changes = source.changes(from, signal);
      open += 1;
      ofCallers.set(caller, own + 1);
      const body = new PassThrough();
      let at = from;
      // Each chunk is whole messages, so a heartbeat may come between any two; its id covers what was filtered out.
      const heartbeat = setInterval(() => {
        // Who comes back is told why.
        if (!reply.request.isStillGood()) return gone.abort();
        if (body.writableLength === 0) body.write(`: heartbeat\nid: ${at}\n\n`);
      }, heartbeatMs);
      const end = (): void => {
        clearInterval(heartbeat);
        gone.abort();
      };
      reply.raw.once('close', end);
      pipeline(
        messages(first, from, changes, serialize, (version) => (at = version)),
        body,
      )
        .catch(() => undefined) // the client is gone, or is told by the broken line
        .finally(() => {
          open -= 1;
          const left = (ofCallers.get(caller) ?? 1) - 1;
          if (left > 0) ofCallers.set(caller, left);
          else ofCallers.delete(caller);
          end();
        });
      return reply
        .header('content-type', 'text/event-stream')
        .header('cache-control', 'no-store')
        .header('x-accel-buffering', 'no')
        .send(body);
    },
    close: () => closing.abort(),
  };
}

function position(reply: FastifyReply): number | undefined {
  const id = reply.request.headers['last-event-id'];
  if (id === undefined || id === '') return undefined;
  if (typeof id === 'string' && /^\d{1,15}$/.test(id)) return Number(id);
  throw invalid([{ path: 'Last-Event-ID', message: 'must be the id of the last event received' }]);
}

function data(object: string, type: string): string {
  return `data: {"type":"${type}","object":${object}}\n\n`;
}

async function* messages<T>(
  first: T[],
  from: number,
  changes: AsyncIterable<Moved<T>>,
  serialize: (object: T) => string,
  moved: (version: number) => void,
): AsyncGenerator<string> {
  let texts: string[] = [];
  let length = 0;
  for (const object of first) {
    const text = data(serialize(object), 'ADDED');
    texts.push(text);
    length += text.length;
    if (length < chunkLength) continue;
    yield texts.join('');
    [texts, length] = [[], 0];
    // Thousands of objects for a dozen watches would keep agents waiting until they hang up.
    await setImmediate();
  }
  if (texts.length > 0) yield texts.join('');
  yield `id: ${from}\n\n`;
  try {
    for await (const { version, messages } of changes) {
      // The id goes with the last: a line that is cut between two brings all of them again.
      const texts = messages.map(({ type, object }) => data(serialize(object), type));
      if (texts.length > 0) yield [...texts.slice(0, -1), `id: ${version}\n${texts.at(-1) ?? ''}`].join('');
      moved(version);
    }
  } catch (error) {
    // Too far behind: the end of the answer makes the client come back, and then it is told.
    if (!(error instanceof StoreConflict)) throw error;
  }
}
