/**
 * Snapshots of a replication over REST. A POST makes the object in state Creating and a DELETE marks it Deleting; the
 * controllers make and remove the data. A lock is never shortened, by anybody.
 */
import type { FastifyInstance } from 'fastify';
import type { Static } from 'typebox';
import { apiVersion } from '../resources.ts';
import type { Snapshot } from '../resources.ts';
import { snapshotReferences } from '../references.ts';
import { snapshotKey } from '../store.ts';
import { check } from './check.ts';
import { listOrWatch } from './list.ts';
import { mergePatch } from './patch.ts';
import { ApiProblem, invalid, notFound } from './problem.ts';
import { editableMetadata, find, needPoint } from './replications.ts';
import { route } from './route.ts';
import type { Context } from './route.ts';
import { ListQuery, MergePatch } from './schema.ts';
import { SnapshotCreate, SnapshotInput } from './schema/snapshot.ts';

const url = '/api/v1/replications/:name/snapshots';
const tag = 'snapshots';

export function snapshotRoutes(app: FastifyInstance, context: Context): void {
  const { store, engine, clock, trusted } = context;
  route(app, {
    method: 'GET',
    url,
    tag,
    summary: 'List or watch the snapshots of a replication',
    query: ListQuery,
    answer: 'SnapshotList',
    handle({ params, query, reply }) {
      const { name } = find(context, params['name']).metadata;
      const same = (snapshot: Snapshot): Snapshot => snapshot;
      return listOrWatch(context, 'Snapshot', query, reply, same, ({ spec }) => spec.replication === name);
    },
  });
  route(app, {
    method: 'POST',
    url,
    tag,
    summary: 'Take a snapshot of the newest recovery point',
    body: SnapshotCreate,
    bodyOptional: true,
    answer: 'Snapshot',
    status: 201,
    handle({ params, body }) {
      const replication = find(context, params['name']);
      needPoint(context, replication);
      const lockedUntil = utc(body.lockedUntil);
      if (lockedUntil !== null && Date.parse(lockedUntil) <= trusted.nowMs())
        throw invalid([{ path: 'lockedUntil', message: 'must lie in the future' }]);
      const name = body.name ?? nameAt(clock.nowMs());
      return store.create('Snapshot', snapshotKey(replication.metadata.name, name), {
        apiVersion,
        kind: 'Snapshot',
        metadata: { name },
        spec: { replication: replication.metadata.name, lockedUntil, pinned: body.pinned },
        status: { state: 'Creating', message: null, point: null, sizeBytes: null, readyTime: null, schedule: null },
      });
    },
  });
  route(app, {
    method: 'GET',
    url: `${url}/:snapshot`,
    tag,
    summary: 'Read a snapshot',
    answer: 'Snapshot',
    handle: ({ params }) => findSnapshot(context, params),
  });
  route(app, {
    method: 'PATCH',
    url: `${url}/:snapshot`,
    tag,
    summary: 'Pin or lock a snapshot: {"pinned": true, "lockedUntil": TIME}, there or under spec',
    body: MergePatch,
    answer: 'Snapshot',
    async handle({ params, body, ifVersion }) {
      const old = findSnapshot(context, params);
      const { apiVersion, kind, metadata, spec } = old;
      const input = check(SnapshotInput, mergePatch({ apiVersion, kind, metadata, spec }, underSpec(body)));
      if (input.metadata.name !== metadata.name || input.spec.replication !== spec.replication)
        throw invalid([{ path: 'metadata.name', message: 'and spec.replication cannot be changed' }]);
      if (old.status.state === 'Deleting')
        throw new ApiProblem('WrongState', `snapshot ${metadata.name} is being deleted; take another one`);
      const key = snapshotKey(spec.replication, metadata.name);
      const written = store.update(
        'Snapshot',
        key,
        (snapshot) => {
          setLock(snapshot, input.spec, trusted.nowMs());
          const { uid, generation, resourceVersion, creationTimestamp } = snapshot.metadata;
          const written = editableMetadata(input.metadata) as Snapshot['metadata'];
          snapshot.metadata = { ...written, uid, generation, resourceVersion, creationTimestamp };
        },
        ifVersion ?? input.metadata.resourceVersion,
      );
      // Said only when storage has it too. Where that fails the object has the longer lock, and storage gets it later.
      const { lockedUntil } = written.spec;
      const { uid } = find(context, params['name']).metadata;
      if (lockedUntil !== null) await engine.lockSnapshot?.(uid, metadata.name, Date.parse(lockedUntil));
      return store.get('Snapshot', key) ?? written;
    },
  });
  route(app, {
    method: 'DELETE',
    url: `${url}/:snapshot`,
    tag,
    summary: 'Remove a snapshot; refused while it is locked, pinned or used by a recovery',
    answer: 'Snapshot',
    status: 202,
    handle({ params, ifVersion }) {
      const { metadata, spec } = findSnapshot(context, params);
      const { name } = metadata;
      if (spec.lockedUntil !== null && Date.parse(spec.lockedUntil) > trusted.nowMs())
        throw new ApiProblem('Locked', `snapshot ${name} is locked until ${spec.lockedUntil}; it can be deleted then`);
      if (spec.pinned)
        throw new ApiProblem('Pinned', `snapshot ${name} is pinned; unpin it first (PATCH {"pinned": false})`);
      const key = snapshotKey(spec.replication, name);
      const users = snapshotReferences(store).get(key);
      if (users !== undefined) throw new ApiProblem('Referenced', `snapshot ${name} is needed: ${users.join('; ')}`);
      return store.update('Snapshot', key, (snapshot) => (snapshot.status.state = 'Deleting'), ifVersion);
    },
  });
}

function findSnapshot(context: Context, params: Record<string, string>): Snapshot {
  const { name } = find(context, params['name']).metadata;
  const snapshot = context.store.get('Snapshot', snapshotKey(name, params['snapshot'] ?? ''));
  if (snapshot === undefined) throw notFound('snapshot', params['snapshot'] ?? '');
  return snapshot;
}

/** The fields of POST may be given as there, beside the form of the whole object. */
function underSpec(patch: Record<string, unknown>): Record<string, unknown> {
  const { lockedUntil, pinned, ...rest } = patch;
  const flat = { ...(lockedUntil === undefined ? {} : { lockedUntil }), ...(pinned === undefined ? {} : { pinned }) };
  if (Object.keys(flat).length === 0) return patch;
  return { ...rest, spec: { ...(rest['spec'] as Record<string, unknown> | undefined), ...flat } };
}

function setLock(snapshot: Snapshot, wanted: Static<typeof SnapshotInput>['spec'], nowMs: number): void {
  const { name } = snapshot.metadata;
  const old = snapshot.spec.lockedUntil;
  const lockedUntil = utc(wanted.lockedUntil);
  const locked = old !== null && Date.parse(old) > nowMs;
  if (locked && (lockedUntil === null || Date.parse(lockedUntil) < Date.parse(old)))
    throw new ApiProblem('Locked', `snapshot ${name} is locked until ${old}; a lock can be made longer, never shorter`);
  if (lockedUntil !== null && lockedUntil !== old && Date.parse(lockedUntil) <= nowMs)
    throw invalid([{ path: 'spec.lockedUntil', message: 'must lie in the future' }]);
  snapshot.spec.lockedUntil = lockedUntil;
  snapshot.spec.pinned = wanted.pinned;
}

function utc(time: string | null): string | null {
  return time === null ? null : new Date(time).toISOString();
}

/** s-20261120-091500-123 */
function nameAt(nowMs: number): string {
  const digits = new Date(nowMs).toISOString().replace(/\D/g, '');
  return `s-${digits.slice(0, 8)}-${digits.slice(8, 14)}-${digits.slice(14)}`;
}
