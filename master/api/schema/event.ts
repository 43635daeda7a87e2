/** Events. See ../schema.ts for how schemas are used. */
import Type from 'typebox';
import type { Static } from 'typebox';
import { apiVersion } from '../../resources.ts';
import { words, nullable, time, ListQuery } from '../schema.ts';

export const levels = ['FATAL', 'ERROR', 'WARNING', 'INFO', 'TRACE'] as const;
export const Event = Type.Object({
  apiVersion: Type.Literal(apiVersion),
  kind: Type.Literal('Event'),
  id: Type.String({ description: 'stays the same while the event is counted up' }),
  time: time('when it happened last'),
  firstTime: time('when it happened first'),
  count: Type.Integer({ description: 'how often: equal events within a minute are counted, not added' }),
  code: Type.String(),
  level: words(...levels),
  service: Type.String(),
  message: Type.String(),
  object: nullable(Type.String({ description: 'such as Replication/orders' })),
});

export const EventsQuery = Type.Object(
  {
    level: Type.Optional(words(...levels)),
    since: Type.Optional(time('events that happened at or after this time')),
    object: Type.Optional(Type.String({ maxLength: 512, description: 'only of this one, such as Replication/orders' })),
    limit: ListQuery.properties.limit,
    continue: ListQuery.properties.continue,
    watch: ListQuery.properties.watch,
  },
  { additionalProperties: false },
);

export type EventView = Static<typeof Event>;
