/** Lists: sorted by key, filtered by labels, in pages; and the same as a watch. */
import type { FastifyReply } from 'fastify';
import type { Static } from 'typebox';
import type { Kind, Resources } from '../resources.ts';
import { invalid } from './problem.ts';
import type { Context } from './route.ts';
import { changesWithin, scopeOf, type SeenChange } from './scope.ts';
import type { ListQuery, ListView, WatchMessage } from './schema.ts';
import { parseSelector } from './selector.ts';

/** Answers the items after the position that `continue` names; positions are keys, so what comes and goes moves nothing. */
export function page<T>(
  items: T[],
  keyOf: (item: T) => string,
  query: { limit: number; continue?: string },
  version: number,
): ListView<T> {
  const after = query.continue === undefined ? undefined : readToken(query.continue);
  const rest = after === undefined ? items : items.filter((item) => keyOf(item) > after);
  const shown = rest.slice(0, query.limit);
  const last = shown.at(-1);
  return {
    items: shown,
    metadata: {
      continue: rest.length > shown.length && last !== undefined ? makeToken(keyOf(last)) : null,
      resourceVersion: String(version),
    },
  };
}

/** Of objects whose key is their name only those of the page are read; snapshots are few in each collection. */
function pageOf<K extends Kind>(
  { store }: Context,
  kind: K,
  query: { limit: number; continue?: string },
  chosen: (after?: string) => Iterable<Resources[K]>,
): ListView<Resources[K]> {
  const nameOf = ({ metadata }: Resources[K]): string => metadata.name;
  if (kind === 'Snapshot') return page([...chosen()], nameOf, query, store.version());
  const items: Resources[K][] = [];
  for (const object of chosen(query.continue === undefined ? '' : readToken(query.continue))) {
    items.push(object);
    if (items.length > query.limit) break;
  }
  return page(items, nameOf, { limit: query.limit }, store.version());
}

export function makeToken(position: string): string {
  return Buffer.from(position).toString('base64url');
}
export function readToken(token: string): string {
  const position = Buffer.from(token, 'base64url').toString();
  if (position !== '' && makeToken(position) === token) return position;
  throw invalid([{ path: 'query.continue', message: 'must be metadata.continue of the page before' }]);
}

/** Answer of GET on a collection. `view` is what goes out of an object; `belongs` narrows the collection. */
export function listOrWatch<K extends Kind>(
  context: Context,
  kind: K,
  query: Static<typeof ListQuery>,
  reply: FastifyReply,
  view: (object: Resources[K]) => Resources[K],
  belongs: (object: Resources[K]) => boolean = () => true,
): unknown {
  const { store } = context;
  const selects = parseSelector(query.labelSelector);
  const caller = reply.request.caller ?? {};
  function* chosen(after?: string): Generator<Resources[K]> {
    const { sees } = scopeOf(store, caller);
    const all: Resources[K][] | Iterable<Resources[K]> =
      after === undefined ? store.list(kind) : store.each(kind, after);
    for (const object of all) if (sees(object) && belongs(object) && selects(object.metadata.labels)) yield object;
  }
  if (!query.watch) {
    const listed = pageOf(context, kind, query, chosen);
    return { ...listed, items: listed.items.map(view) };
  }
  const serialize = reply.compileSerializationSchema({ $ref: `${kind}#` });
  const source = {
    version: () => store.version(),
    list: () => [...chosen()].map(view),
    changes(since: number, signal: AbortSignal) {
      return map(changesWithin(store, caller, [kind], since, signal), ({ version, changes }) => {
        return { version, messages: changes.flatMap((change) => messageOf(change) ?? []) };
      });
    },
  };
  function messageOf(change: SeenChange['changes'][number]): WatchMessage<Resources[K]> | undefined {
    const object = change.object as Resources[K];
    if (!belongs(object)) return undefined;
    const now = selects(object.metadata.labels);
    const before = change.labelsBefore === undefined ? now : selects(change.labelsBefore);
    // What leaves the selection is gone for this watcher, what comes into it is new.
    if (now && before) return { type: change.type, object: view(object) };
    if (!now && !before) return undefined;
    return { type: now ? 'ADDED' : 'DELETED', object: view(object) };
  }
  return context.watches.send<Resources[K]>(reply, source, (object) => serialize({ ...object }));
}

export async function* map<T, U>(items: AsyncIterable<T>, change: (item: T) => U): AsyncGenerator<U> {
  for await (const item of items) yield change(item);
}
