/** Objects of several kinds in one stream, for programs that show them together: a browser has few connections to give. */
import type { FastifyInstance } from 'fastify';
import Type from 'typebox';
import type { Kind, Resources } from '../resources.ts';
import { map } from './list.ts';
import { invalid } from './problem.ts';
import { withLag } from './replications.ts';
import { route } from './route.ts';
import type { Context } from './route.ts';
import { changesWithin, scopeOf } from './scope.ts';
import { name } from './schema.ts';
import type { WatchMessage } from './schema.ts';

/** A group is made of its members when it is looked at: it does not change by itself. */
type Shown = Exclude<Kind, 'Group'>;
type Any = Resources[Shown];
/** Every kind, and whether an object of it has to do with a replication; absent: it belongs to none. */
const owners: { [K in Shown]: ((object: Resources[K], replication: string) => boolean) | undefined } = {
  Replication: ({ metadata }, replication) => metadata.name === replication,
  Snapshot: ({ spec }, replication) => spec.replication === replication,
  Recovery: ({ spec, status }, replication) =>
    spec.replication === replication || status.tasks.some(({ volume }) => volume === replication),
  RecoverySchedule: ({ spec }, replication) => spec.replication === replication,
  Agent: undefined,
  StorageClass: undefined,
};
const kinds = Object.keys(owners) as Shown[];

const WatchQuery = Type.Object(
  {
    kinds: Type.String({ maxLength: 255, description: `separated by commas: ${kinds.join(', ')}` }),
    replication: Type.Optional(name('only what belongs to it, of kinds that belong to one')),
    watch: Type.Boolean({ default: true, description: 'as of the lists; always true here' }),
  },
  { additionalProperties: false },
);

export function watchRoutes(app: FastifyInstance, context: Context): void {
  const { store, clock } = context;
  route(app, {
    method: 'GET',
    url: '/api/v1/watch',
    tag: 'watch',
    summary: 'Watch objects of several kinds; a message is as in the watches of lists, the kind is in the object',
    query: WatchQuery,
    answer: 'Stream',
    handle({ query, caller, reply }) {
      const asked = chosen(query.kinds);
      const belongs = (object: Any): boolean => {
        const of = owners[object.kind] as ((object: Any, replication: string) => boolean) | undefined;
        return query.replication === undefined || of === undefined || of(object, query.replication);
      };
      const view = (object: Any): Any => (object.kind === 'Replication' ? withLag(object, clock.nowMs()) : object);
      const serializers = new Map(asked.map((kind) => [kind, reply.compileSerializationSchema({ $ref: `${kind}#` })]));
      const source = {
        version: () => store.version(),
        list() {
          const { sees } = scopeOf(store, caller);
          return asked
            .flatMap((kind): Any[] => store.list(kind))
            .filter((object) => sees(object) && belongs(object))
            .map(view);
        },
        changes: (since: number, signal: AbortSignal) =>
          map(changesWithin(store, caller, asked, since, signal), ({ version, changes }) => {
            const own = (changes as { type: WatchMessage<Any>['type']; object: Any }[]).filter(({ object }) =>
              belongs(object),
            );
            return { version, messages: own.map(({ type, object }) => ({ type, object: view(object) })) };
          }),
      };
      return context.watches.send<Any>(reply, source, (object) => serializers.get(object.kind)?.({ ...object }) ?? '');
    },
  });
}

function chosen(text: string): Shown[] {
  const asked = [...new Set(text.split(','))];
  const wrong = asked.find((kind) => !kinds.includes(kind as Shown));
  if (wrong !== undefined)
    throw invalid([{ path: 'query.kinds', message: `has ${JSON.stringify(wrong)}; known are ${kinds.join(', ')}` }]);
  return asked as Shown[];
}
