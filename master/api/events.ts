/** Events over REST: newest first as a list, in order as a watch. */
import type { FastifyInstance } from 'fastify';
import type { EventChange, EventFilter } from '../events.ts';
import { makeToken, map, readToken } from './list.ts';
import { invalid } from './problem.ts';
import { route } from './route.ts';
import type { Context } from './route.ts';
import { scopeOf } from './scope.ts';
import { EventsQuery } from './schema/event.ts';
import type { EventView } from './schema/event.ts';

export function eventRoutes(app: FastifyInstance, { events, store, watches }: Context): void {
  route(app, {
    method: 'GET',
    url: '/api/v1/events',
    tag: 'events',
    summary: 'List (newest first) or watch events of a level and all that are worse',
    query: EventsQuery,
    answer: 'EventList',
    handle({ query, caller, reply }) {
      const filter: EventFilter = {
        ...(caller.groups === undefined ? {} : { sees: scopeOf(store, caller).seesEvent }),
        ...(query.level === undefined ? {} : { level: query.level }),
        ...(query.object === undefined ? {} : { object: query.object }),
        ...(query.since === undefined ? {} : { sinceMs: Date.parse(query.since) }),
      };
      if (!query.watch) {
        const before = query.continue === undefined ? {} : { before: positionOf(query.continue) };
        const { items, next } = events.list({ ...filter, limit: query.limit, ...before });
        const metadata = {
          continue: next === null ? null : makeToken(String(next)),
          resourceVersion: String(events.version()),
        };
        return { items, metadata };
      }
      events.flush();
      const serialize = reply.compileSerializationSchema({ $ref: 'Event#' });
      const source = {
        version: () => events.version(),
        list: () => events.list({ ...filter, limit: Number.MAX_SAFE_INTEGER - 1 }).items.reverse(),
        changes: (since: number, signal: AbortSignal) =>
          map(events.watch({ since, filter, signal }), ({ type, version, object }: EventChange) => {
            return { version, messages: [{ type, object }] };
          }),
      };
      return watches.send<EventView>(reply, source, (event) => serialize({ ...event }));
    },
  });
}

function positionOf(token: string): number {
  const position = Number(readToken(token));
  if (Number.isSafeInteger(position)) return position;
  throw invalid([{ path: 'query.continue', message: 'must be metadata.continue of the page before' }]);
}
