/**
 * What happened to an object, also as Events of Kubernetes, for `kubectl describe` and `kubectl get events`. The same again is counted
 * into the first one. They are a courtesy: at most 5 a second and 200 waiting, the oldest give way, and a failure to write
 * one is nobody's trouble; the master's own log of events (master/events.ts) has all.
 */
import { createHash } from 'node:crypto';
import type { Clock } from '../../proto/effects.ts';
import type { EventInput } from '../engine.ts';
import type { Kind } from '../resources.ts';
import { ApiFault, type Api } from './api.ts';
import { nameOf } from './codec.ts';
import { allKinds, group, named, version } from './kinds.ts';

const maxWaiting = 200;
const everyMs = 200;
const maxKnown = 2000;

export interface EventWriter {
  add(event: EventInput): void;
  run(signal: AbortSignal): Promise<void>;
}

export function eventWriter(options: {
  api: Api;
  namespace: string;
  clock: Pick<Clock, 'nowMs' | 'sleep'>;
  /** Of the object that the event is about; undefined: it is gone. */
  uidOf: (kind: Kind, key: string) => string | undefined;
}): EventWriter {
  const { api, namespace, clock } = options;
  const base = `/api/v1/namespaces/${namespace}/events`;
  const waiting: { event: EventInput; kind: Kind; key: string; timeMs: number }[] = [];
  const known = new Map<string, { count: number; firstTime: string }>();

  async function write({ event, kind, key, timeMs }: (typeof waiting)[number]): Promise<void> {
    const name = nameOf(key);
    const uid = options.uidOf(kind, key) ?? '';
    const digest = createHash('sha256')
      .update(JSON.stringify([kind, uid, event.code, event.message]))
      .digest('hex');
    const id = `${name}.${digest.slice(0, 16)}`;
    const lastTimestamp = new Date(timeMs).toISOString().replace(/\.\d+Z$/, 'Z');
    const before = known.get(id);
    const { count, firstTime } = { count: (before?.count ?? 0) + 1, firstTime: before?.firstTime ?? lastTimestamp };
    known.delete(id);
    known.set(id, { count, firstTime });
    for (const old of known.keys()) {
      if (known.size <= maxKnown) break;
      known.delete(old);
    }
    const body = {
      apiVersion: 'v1',
      kind: 'Event',
      metadata: { name: id, namespace },
      involvedObject: { apiVersion: `${group}/${version}`, kind: named(kind).kind, name, namespace, uid },
      reason: event.code,
      message: event.message.slice(0, 1000),
      type: event.level === 'INFO' || event.level === 'TRACE' ? 'Normal' : 'Warning',
      source: { component: 'cdm-replicator-master' },
      reportingComponent: `${group}/master`,
      firstTimestamp: firstTime,
      lastTimestamp,
      count,
    };
    try {
      if (before) await api.request('PATCH', `${base}/${id}`, { count, lastTimestamp });
      else await api.request('POST', base, body);
    } catch (error) {
      const status = error instanceof ApiFault ? error.status : 0;
      // Of an earlier master, or its hour is over.
      if (status === 409) await api.request('PATCH', `${base}/${id}`, { lastTimestamp });
      else if (status === 404) await api.request('POST', base, { ...body, count: 1, firstTimestamp: lastTimestamp });
      else throw error;
    }
  }

  return {
    add(event) {
      const [kind = '', ...rest] = event.object?.split('/') ?? [];
      if (!allKinds.includes(kind as Kind)) return;
      waiting.push({ event, kind: kind as Kind, key: rest.join('/'), timeMs: clock.nowMs() });
      if (waiting.length > maxWaiting) waiting.shift();
    },
    async run(signal) {
      while (!signal.aborted) {
        const next = waiting.shift();
        if (next) await write(next).catch(() => undefined);
        await clock.sleep(everyMs, signal).catch(() => undefined);
      }
    },
  };
}
