/**
 * Where events are sent besides the log: webhooks and syslog servers, each with a level of its own.
 *
 * Guarantees: an event that is in the log is sent to each sink at least once, in order, over restarts too, and tried again (after 1 s, then
 * twice as long, at most 5 minutes) until it is taken; what the log drops meanwhile is lost for the sink, and an event says so. A sink
 * that fails holds up no other. Equal events within a minute are sent once. Addresses often hold secrets (of chat services), so
 * only their origin is ever shown.
 */
import type { Clock } from '../proto/effects.ts';
import { messageOf } from '../proto/errors.ts';
import type { SinkView } from './api/schema/sink.ts';
import type { EventLevel, EventLog } from './events.ts';
import { apiVersion } from './resources.ts';
import { send } from './sinksend.ts';
import { StoreConflict, type Store } from './store.ts';

const table = 'sinks';
const positions = 'sink-positions';
export const maxSinks = 20;
const saveMs = 1000;
const firstPauseMs = 1000;
const longestPauseMs = 300_000;

interface Entry {
  url: string;
  level: EventLevel;
  secret: string | null;
  creationTimestamp: string;
}
interface Live {
  stop: AbortController;
  trouble: string | null;
  sentTime: string | null;
  done: Promise<void>;
}
export interface Sinks {
  list(): SinkView[];
  get(name: string): SinkView | undefined;
  /** False when the name is taken or there are too many. What happens from now on is sent. */
  create(name: string, sink: Omit<Entry, 'creationTimestamp'>): boolean;
  delete(name: string): boolean;
  run(signal: AbortSignal): Promise<void>;
}

export function openSinks(options: {
  store: Pick<Store, 'getRecord' | 'putRecord' | 'listRecords'>;
  events: EventLog;
  clock: Pick<Clock, 'nowMs' | 'sleep'>;
}): Sinks {
  const { store, events, clock } = options;
  const entries = new Map<string, Entry>();
  const live = new Map<string, Live>();
  let running: AbortSignal | undefined;
  for (const { key, value } of store.listRecords(table)) entries.set(key, JSON.parse(value) as Entry);

  function start(name: string, entry: Entry): void {
    if (running === undefined) return;
    const stop = new AbortController();
    const one: Live = { stop, trouble: null, sentTime: null, done: Promise.resolve() };
    live.set(name, one);
    const signal = AbortSignal.any([running, stop.signal]);
    one.done = deliver(name, entry, one, signal).catch((error: unknown) => {
      if (signal.aborted) return;
      one.trouble = messageOf(error);
      tell(name, 'SinkFailing', 'ERROR', `stopped: ${one.trouble}; restart the master`);
    });
  }
  function tell(name: string, code: 'SinkFailing' | 'SinkRecovered', level: EventLevel, message: string): void {
    events.emit({ code, level, message, object: `Sink/${name}` });
  }
  async function deliver(name: string, entry: Entry, one: Live, signal: AbortSignal): Promise<void> {
    let at = Number(store.getRecord(positions, name) ?? events.version());
    let savedMs = -Infinity;
    const save = (): void => {
      savedMs = clock.nowMs();
      if (entries.get(name) === entry) store.putRecord(positions, name, String(at));
    };
    try {
      while (!signal.aborted) {
        try {
          const watched = events.watch({ since: at, filter: { level: entry.level }, signal });
          for await (const { type, version, object } of watched) {
            const attempt = () => send(entry.url, object, entry.secret, signal);
            if (type === 'ADDED') await insist(name, entry, one, attempt, signal);
            if (signal.aborted) return;
            at = version;
            one.sentTime = new Date(clock.nowMs()).toISOString();
            // A crash sends again what was sent since.
            if (clock.nowMs() - savedMs > saveMs) save();
          }
        } catch (error) {
          if (!(error instanceof StoreConflict)) throw error;
          at = events.version();
          tell(name, 'SinkFailing', 'WARNING', 'too far behind: events that the log has dropped were not sent');
        }
      }
    } finally {
      save();
    }
  }
  /** Until it is taken, or the signal aborts. */
  async function insist(
    name: string,
    { url }: Entry,
    one: Live,
    attempt: () => Promise<void>,
    signal: AbortSignal,
  ): Promise<void> {
    for (let pauseMs = firstPauseMs; !signal.aborted; pauseMs = Math.min(pauseMs * 2, longestPauseMs)) {
      try {
        await attempt();
        if (one.trouble !== null) tell(name, 'SinkRecovered', 'INFO', `${originOf(url)} takes events again`);
        one.trouble = null;
        return;
      } catch (error) {
        if (signal.aborted) return;
        const why = `${originOf(url)}: ${messageOf(error)}`;
        if (one.trouble === null) tell(name, 'SinkFailing', 'WARNING', `${why}; it is tried again until it is taken`);
        one.trouble = why;
        await clock.sleep(pauseMs, signal).catch(() => undefined);
      }
    }
  }
  function view(name: string, { url, level, secret, creationTimestamp }: Entry): SinkView {
    const one = live.get(name);
    return {
      apiVersion,
      kind: 'Sink',
      metadata: { name, creationTimestamp },
      spec: { to: originOf(url), level, signed: secret !== null },
      status: {
        state: one?.trouble ? 'Failing' : 'Ready',
        message: one?.trouble ?? null,
        lastSentTime: one?.sentTime ?? null,
      },
    };
  }

  return {
    list: () =>
      [...entries]
        .map(([name, entry]) => view(name, entry))
        .sort((a, b) => (a.metadata.name < b.metadata.name ? -1 : 1)),
    get(name) {
      const entry = entries.get(name);
      return entry && view(name, entry);
    },
    create(name, sink) {
      if (entries.has(name) || entries.size >= maxSinks) return false;
      const entry = { ...sink, creationTimestamp: new Date(clock.nowMs()).toISOString() };
      store.putRecord(positions, name, String(events.version()));
      store.putRecord(table, name, JSON.stringify(entry));
      entries.set(name, entry);
      start(name, entry);
      return true;
    },
    delete(name) {
      live.get(name)?.stop.abort();
      live.delete(name);
      store.putRecord(table, name, undefined);
      store.putRecord(positions, name, undefined);
      return entries.delete(name);
    },
    async run(signal) {
      running = signal;
      for (const [name, entry] of entries) start(name, entry);
      await new Promise<void>((resolve) => {
        if (signal.aborted) return resolve();
        signal.addEventListener('abort', () => resolve(), { once: true });
      });
      await Promise.all([...live.values()].map(({ done }) => done));
    },
  };
}

/** Without user, path and query: those hold secrets. */
function originOf(url: string): string {
  const { protocol, host } = new URL(url);
  return `${protocol}//${host}`;
}
