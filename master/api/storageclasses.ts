/** Storage classes over REST. Driver and path are fixed once given: replicas lie there. */
import { isDeepStrictEqual } from 'node:util';
import type { FastifyInstance } from 'fastify';
import { apiVersion } from '../resources.ts';
import type { StorageClass } from '../resources.ts';
import { check } from './check.ts';
import { listOrWatch } from './list.ts';
import { mergePatch } from './patch.ts';
import { ApiProblem, invalid, notFound } from './problem.ts';
import { editableMetadata } from './replications.ts';
import { route } from './route.ts';
import type { Context } from './route.ts';
import { ListQuery, MergePatch } from './schema.ts';
import { StorageClassInput } from './schema/storageclass.ts';

const url = '/api/v1/storageclasses';
const tag = 'storageclasses';

export function storageClassRoutes(app: FastifyInstance, context: Context): void {
  const { store, engine } = context;
  function find(name = ''): StorageClass {
    const found = store.get('StorageClass', name);
    if (found === undefined) throw notFound('storage class', name);
    return found;
  }
  route(app, {
    method: 'GET',
    url,
    tag,
    summary: 'List or watch storage classes',
    query: ListQuery,
    answer: 'StorageClassList',
    handle: ({ query, reply }) => listOrWatch(context, 'StorageClass', query, reply, (found) => found),
  });
  route(app, {
    method: 'POST',
    url,
    tag,
    summary: 'Create a storage class',
    body: StorageClassInput,
    answer: 'StorageClass',
    status: 201,
    handle({ body }) {
      const errors = engine.validateStorageClass?.(body.spec) ?? [];
      if (errors.length > 0) throw invalid(errors);
      return store.create('StorageClass', body.metadata.name, {
        apiVersion,
        kind: 'StorageClass',
        metadata: editableMetadata(body.metadata),
        spec: body.spec,
        status: { capacityBytes: null, usedBytes: null, reflink: null, conditions: [] },
      });
    },
  });
  route(app, {
    method: 'GET',
    url: `${url}/:name`,
    tag,
    summary: 'Read a storage class',
    answer: 'StorageClass',
    handle: ({ params }) => find(params['name']),
  });
  route(app, {
    method: 'PATCH',
    url: `${url}/:name`,
    tag,
    summary: 'Change labels, annotations or the display name of a storage class',
    body: MergePatch,
    answer: 'StorageClass',
    handle({ params, body, ifVersion }) {
      const { apiVersion, kind, metadata, spec } = find(params['name']);
      const input = check(StorageClassInput, mergePatch({ apiVersion, kind, metadata, spec }, body));
      const fixed = 'cannot be changed, as replicas lie there; create another storage class';
      if (input.metadata.name !== metadata.name) throw invalid([{ path: 'metadata.name', message: fixed }]);
      if (!isDeepStrictEqual(input.spec, spec)) throw invalid([{ path: 'spec', message: fixed }]);
      const change = (object: StorageClass): void => {
        const { uid, generation, resourceVersion, creationTimestamp } = object.metadata;
        const written = editableMetadata(input.metadata) as StorageClass['metadata'];
        object.metadata = { ...written, uid, generation, resourceVersion, creationTimestamp };
      };
      return store.update('StorageClass', metadata.name, change, ifVersion ?? input.metadata.resourceVersion);
    },
  });
  route(app, {
    method: 'DELETE',
    url: `${url}/:name`,
    tag,
    summary: 'Delete a storage class that no replication uses; its folder stays',
    answer: 'StorageClass',
    handle({ params, ifVersion }) {
      const { name } = find(params['name']).metadata;
      const users = store.list('Replication').filter(({ spec }) => spec.target.storageClass === name);
      if (users.length > 0) {
        const errors = users.map(({ metadata }) => {
          return { path: `Replication/${metadata.name}`, message: 'uses this storage class; delete it first' };
        });
        const names = errors.map(({ path }) => path).join(', ');
        throw new ApiProblem('Referenced', `storage class ${name} is used by ${names}; delete those first`, errors);
      }
      return store.delete('StorageClass', name, ifVersion);
    },
  });
}
