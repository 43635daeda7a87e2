/** Routes that every kind of object has whose spec people write: list, watch, create, read, change, delete. */
import type { FastifyInstance } from 'fastify';
import type { Static, TObject } from 'typebox';
import { apiVersion } from '../resources.ts';
import type { Kind, Metadata, Resources } from '../resources.ts';
import type { Draft } from '../store.ts';
import type { Caller } from '../tokens.ts';
import { check } from './check.ts';
import { listOrWatch } from './list.ts';
import { mergePatch } from './patch.ts';
import { invalid, notFound } from './problem.ts';
import { editableMetadata } from './replications.ts';
import { route, type Context } from './route.ts';
import { ListQuery, MergePatch } from './schema.ts';

/** Kinds that are keyed by their name and hold nothing that callers do not see. */
type Plain = 'Group' | 'RecoverySchedule';
type Input<K extends Plain> = {
  metadata: Static<TObject> & Pick<Metadata, 'name'> & Partial<Metadata>;
  spec: Resources[K]['spec'];
};

export interface Objects<K extends Plain> {
  kind: K;
  /** Last part of its address; tag of its routes. */
  plural: string;
  /** For people. */
  singular: string;
  input: TObject;
  status: Resources[K]['status'];
  /** As it is shown. */
  view: (object: Resources[K]) => Resources[K];
  /** Checks what a schema cannot, and answers the spec as it is kept. @throws ApiProblem */
  complete: (
    spec: Resources[K]['spec'],
    name: string,
    caller: Caller,
    old?: Resources[K],
  ) => Promise<Resources[K]['spec']>;
  /** Once it is written, or gone. */
  after?: (object: Resources[K], old: Resources[K] | undefined, isDeleted: boolean) => void;
  /** @throws ApiProblem when something refers to it */
  mayDelete: (object: Resources[K]) => void;
}

export function objectRoutes<K extends Plain>(app: FastifyInstance, context: Context, of: Objects<K>): void {
  const { store } = context;
  const { kind, plural, singular, view } = of;
  const url = `/api/v1/${plural}`;
  const tag = plural;
  const answer: string = kind;
  const find = (name = ''): Resources[K] => {
    const found = store.get(kind, name);
    if (found === undefined) throw notFound(singular, name);
    return found;
  };
  route(app, {
    method: 'GET',
    url,
    tag,
    summary: `List or watch ${plural}`,
    query: ListQuery,
    answer: `${answer}List`,
    handle: ({ query, reply }) => listOrWatch(context, kind as Kind, query, reply, (one) => view(one as Resources[K])),
  });
  route(app, {
    method: 'POST',
    url,
    tag,
    summary: `Create a ${singular}`,
    body: of.input,
    answer,
    status: 201,
    async handle({ body, caller }) {
      const { metadata, spec } = body as Input<K>;
      const draft = {
        apiVersion,
        kind,
        metadata: editableMetadata(metadata),
        spec: await of.complete(spec, metadata.name, caller),
        status: structuredClone(of.status),
      } as unknown as Draft<K>;
      const made = store.create(kind, metadata.name, draft);
      of.after?.(made, undefined, false);
      return view(made);
    },
  });
  route(app, {
    method: 'GET',
    url: `${url}/:name`,
    tag,
    summary: `Read a ${singular}`,
    answer,
    handle: ({ params }) => view(find(params['name'])),
  });
  route(app, {
    method: 'PATCH',
    url: `${url}/:name`,
    tag,
    summary: `Change a ${singular}`,
    body: MergePatch,
    answer,
    async handle({ params, body, caller, ifVersion }) {
      const old = find(params['name']);
      const { apiVersion, metadata, spec } = old;
      const written = check(of.input, mergePatch({ apiVersion, kind, metadata, spec }, body)) as Input<K>;
      if (written.metadata.name !== metadata.name)
        throw invalid([{ path: 'metadata.name', message: 'cannot be changed; create another one instead' }]);
      const next = await of.complete(written.spec, metadata.name, caller, old);
      const change = (object: Resources[K]): void => {
        const { uid, generation, resourceVersion, creationTimestamp } = object.metadata;
        const own = editableMetadata(written.metadata) as Metadata;
        object.metadata = { ...own, uid, generation, resourceVersion, creationTimestamp };
        object.spec = next;
      };
      const made = store.update(kind, metadata.name, change, ifVersion ?? written.metadata.resourceVersion);
      of.after?.(made, old, false);
      return view(made);
    },
  });
  route(app, {
    method: 'DELETE',
    url: `${url}/:name`,
    tag,
    summary: `Delete a ${singular}`,
    answer,
    handle({ params, ifVersion }) {
      const old = find(params['name']);
      of.mayDelete(old);
      const gone = store.delete(kind, old.metadata.name, ifVersion);
      of.after?.(old, old, true);
      return gone;
    },
  });
}
