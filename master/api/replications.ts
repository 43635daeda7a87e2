/**
 * Replications over REST: what is asked for is checked and stored, the controllers do it. Also the recovery points,
 * which are data of the replica and are asked of the engine.
 */
import { isDeepStrictEqual } from 'node:util';
import type { FastifyInstance } from 'fastify';
import type { Static } from 'typebox';
import { isTimeZone } from '../calendar.ts';
import { parseCron } from '../cron.ts';
import { apiVersion } from '../resources.ts';
import { sourceText } from '../resources.ts';
import type { ClaimRef, Replication, ReplicationSpec } from '../resources.ts';
import type { VolumeMode } from '../../proto/wire.ts';
import { ensureGroup, volumesOf } from '../groups.ts';
import { hasEnded } from '../recovery/machine.ts';
import type { Draft } from '../store.ts';
import { check } from './check.ts';
import { listOrWatch, page } from './list.ts';
import { mergePatch } from './patch.ts';
import { ApiProblem, invalid, notFound } from './problem.ts';
import type { FieldError } from './problem.ts';
import { route } from './route.ts';
import type { Context } from './route.ts';
import { mustBeApart, mustHaveGroup } from './scope.ts';
import { ActionInput, ListQuery, MergePatch, PageQuery } from './schema.ts';
import { DeleteReplicationQuery, PointsQuery, ReplicationInput } from './schema/replication.ts';

type Input = Static<typeof ReplicationInput>;
const url = '/api/v1/replications';
const tag = 'replications';

/** Records of replicas whose replication was deleted with keepReplica: by uid, what they were. */
export const keptReplicas = 'kept-replicas';

export function replicationRoutes(app: FastifyInstance, context: Context): void {
  const { store, engine, events, clock } = context;
  const view = (replication: Replication): Replication => withLag(replication, clock.nowMs());

  route(app, {
    method: 'GET',
    url,
    tag,
    summary: 'List or watch replications',
    query: ListQuery,
    answer: 'ReplicationList',
    handle: ({ query, reply }) => listOrWatch(context, 'Replication', query, reply, view),
  });
  route(app, {
    method: 'POST',
    url,
    tag,
    summary: 'Mirror a volume',
    body: ReplicationInput,
    answer: 'Replication',
    status: 201,
    async handle({ body, caller }) {
      mustHaveGroup(caller, body.spec.group);
      forgetPlace(body.spec);
      mustBeApart(store, caller, body.spec.source);
      await inferMode(context, body.spec);
      const spec = complete(context, body.spec);
      ensureGroup(store, spec.group);
      const replication = store.create('Replication', body.metadata.name, draft(body, spec));
      const message = `${sourceText(spec.source)} is mirrored to ${spec.target.storageClass}`;
      events.emit({ code: 'ReplicationCreated', level: 'INFO', message, object: `Replication/${body.metadata.name}` });
      return view(replication);
    },
  });
  route(app, {
    method: 'GET',
    url: `${url}/:name`,
    tag,
    summary: 'Read a replication',
    answer: 'Replication',
    handle: ({ params }) => view(find(context, params['name'])),
  });
  route(app, {
    method: 'PUT',
    url: `${url}/:name`,
    tag,
    summary: 'Replace the specification of a replication',
    body: ReplicationInput,
    answer: 'Replication',
    handle({ params, body, caller, ifVersion }) {
      mustHaveGroup(caller, body.spec.group);
      return view(replace(context, find(context, params['name']), body, ifVersion ?? body.metadata.resourceVersion));
    },
  });
  route(app, {
    method: 'PATCH',
    url: `${url}/:name`,
    tag,
    summary: 'Change fields of a replication',
    body: MergePatch,
    answer: 'Replication',
    handle({ params, body, caller, ifVersion }) {
      const old = find(context, params['name']);
      const { apiVersion, kind, metadata, spec } = old;
      const merged = check(ReplicationInput, mergePatch({ apiVersion, kind, metadata, spec }, body));
      mustHaveGroup(caller, merged.spec.group);
      return view(replace(context, old, merged, ifVersion ?? merged.metadata.resourceVersion));
    },
  });
  route(app, {
    method: 'DELETE',
    url: `${url}/:name`,
    tag,
    summary: 'End a replication; its replica goes too, unless it is kept',
    query: DeleteReplicationQuery,
    answer: 'Replication',
    handle: ({ params, query, ifVersion }) =>
      view(remove(context, find(context, params['name']), query.keepReplica, ifVersion)),
  });

  function action(name: string, summary: string, change: (replication: Replication) => void): void {
    route(app, {
      method: 'POST',
      url: `${url}/:name/actions/${name}`,
      tag,
      summary,
      body: ActionInput,
      bodyOptional: true,
      answer: 'Replication',
      status: 202,
      handle({ params, ifVersion }) {
        const { metadata } = find(context, params['name']);
        return view(store.update('Replication', metadata.name, change, ifVersion));
      },
    });
  }
  action('pause', 'Stop mirroring until it is resumed', (object) => (object.spec.paused = true));
  action('resume', 'Go on with mirroring', (object) => (object.spec.paused = false));
  action('verify', 'Read source and replica whole and compare them', (object) => {
    needPoint(context, object);
    object.requests.verify += 1;
  });

  route(app, {
    method: 'GET',
    url: `${url}/:name/history`,
    tag,
    summary: 'How old the copy was over the last hour, in quarters of a minute, oldest first',
    query: PageQuery,
    answer: 'AgeSampleList',
    handle({ params, query }) {
      const samples = engine.history?.(find(context, params['name']).metadata.uid) ?? [];
      return page(samples, ({ time }) => time, query, store.version());
    },
  });
  route(app, {
    method: 'GET',
    url: `${url}/:name/points`,
    tag,
    summary: 'List the points that can be recovered, oldest first',
    query: PointsQuery,
    answer: 'PointList',
    handle({ params, query }) {
      const { metadata } = find(context, params['name']);
      const bound = (time: string | undefined): number | undefined =>
        time === undefined ? undefined : Date.parse(time);
      const points = engine.points(metadata.uid, bound(query.from), bound(query.to));
      return page(points, (point) => String(point.sequence).padStart(16, '0'), query, store.version());
    },
  });
}

export function find({ store }: Pick<Context, 'store'>, name = ''): Replication {
  const replication = store.get('Replication', name);
  if (replication === undefined) throw notFound('replication', name);
  return replication;
}

/** @throws ApiProblem NoRecoveryPoint while the first copy is not complete */
export function needPoint({ engine }: Pick<Context, 'engine'>, { metadata, status }: Replication): void {
  if (status.recoveryPoint !== null || engine.points(metadata.uid).length > 0) return;
  const detail = `replication ${metadata.name} has no recovery point yet (${status.state}, ${status.phase}); wait for state NORMAL`;
  throw new ApiProblem('NoRecoveryPoint', detail);
}

export function withLag(replication: Replication, nowMs: number): Replication {
  const { lastSyncTime } = replication.status;
  const lagMs = lastSyncTime === null ? null : Math.max(0, nowMs - Date.parse(lastSyncTime));
  return {
    ...replication,
    status: { ...replication.status, lagSeconds: lagMs === null ? null : Math.round(lagMs) / 1000 },
  };
}

/** The agent is asked what the path is when neither it nor the caller has said. @throws ApiProblem Invalid */
async function inferMode({ engine }: Context, { source }: ReplicationSpec): Promise<void> {
  const given = source.volumeMode as typeof source.volumeMode | undefined;
  if (
    given !== undefined ||
    source.pvc !== undefined ||
    engine.volumes(source.agent).some(({ path }) => path === source.path)
  )
    return;
  const found = await engine.look?.(source.agent, source.path);
  if (found === undefined) return;
  if (!found.eligible) throw invalid([{ path: 'spec.source.path', message: found.reason ?? 'is not eligible' }]);
  source.volumeMode = found.volumeMode;
}

/** Why an agent has not said what a path is. */
function unaskedText({ store }: Context, agent: string): string {
  if (store.get('Agent', agent)) return 'the agent is not there to say what the path is';
  const known = store.list('Agent').map(({ metadata }) => metadata.name);
  return `no agent ${agent} has joined yet (those that have: ${known.join(', ') || 'none'})`;
}

/** Of a claim the master finds the place, whatever an object that was exported says. */
export function forgetPlace({ source }: ReplicationSpec): void {
  if (source.pvc !== undefined) Object.assign(source, { agent: '', path: '' });
}

/** Fills in what can be inferred, and checks what a schema cannot. @throws ApiProblem Invalid */
export function complete(context: Context, spec: ReplicationSpec, old?: ReplicationSpec): ReplicationSpec {
  const { store, engine } = context;
  const { source, target, trigger } = spec;
  const errors: FieldError[] = [];
  const wrong = (path: string, message: string): number => errors.push({ path: `spec.${path}`, message });

  if (source.pvc === undefined)
    for (const field of ['agent', 'path'] as const)
      if (source[field] === '') wrong(`source.${field}`, 'is required, unless source.pvc is given');
  const claim = source.pvc && old === undefined ? claimOf(context, source.pvc) : undefined;
  if (typeof claim === 'string') wrong('source.pvc', claim);
  const claimed = typeof claim === 'object' ? claim.volumeMode : undefined;
  if (claimed !== undefined && (source.volumeMode as string | undefined) !== undefined && source.volumeMode !== claimed)
    wrong('source.volumeMode', `must be ${claimed}, as the claim is; leave it out`);
  const reported = (): ReplicationSpec['source']['volumeMode'] | undefined =>
    claimed ??
    engine.volumes(source.agent).find(({ path }) => path === source.path)?.volumeMode ??
    (source.path.startsWith('/dev/') ? 'Block' : undefined);
  // The type has it, as it is there once this function is done.
  const volumeMode =
    (source.volumeMode as typeof source.volumeMode | undefined) ?? old?.source.volumeMode ?? reported();
  if (volumeMode === undefined && source.pvc === undefined)
    wrong('source.volumeMode', `must be given as Block or Filesystem, as ${unaskedText(context, source.agent)}`);
  else if (volumeMode !== undefined) source.volumeMode = volumeMode;

  if (spec.replicationState === 'secondary' && old === undefined)
    wrong('replicationState', 'must be primary for a new replication');
  if (store.get('StorageClass', target.storageClass) === undefined) {
    const known = store.list('StorageClass').map(({ metadata }) => metadata.name);
    wrong('target.storageClass', `must name a storage class that exists: ${known.join(', ') || 'create one first'}`);
  }
  if (volumeMode === 'Block') {
    if (source.include.length > 0) wrong('source.include', 'is for volumeMode Filesystem only; leave it out');
    if (source.exclude.length > 0) wrong('source.exclude', 'is for volumeMode Filesystem only; leave it out');
    if (spec.consistency === 'file') wrong('consistency', 'must be filesystem or crash for volumeMode Block');
  }
  if (trigger.schedule !== undefined) {
    try {
      parseCron(trigger.schedule);
    } catch (error) {
      wrong('trigger.schedule', (error as Error).message);
    }
  }
  for (const { path, message } of failoverProblems(spec)) wrong(path, message);
  const periods = spec.snapshotSchedules.map(({ period }) => period);
  spec.snapshotSchedules.forEach(({ period, timeZone }, index) => {
    if (periods.indexOf(period) !== index)
      wrong(
        `snapshotSchedules[${index}].period`,
        `is there twice; give one schedule of each period, every ${period} once`,
      );
    if (!isTimeZone(timeZone))
      wrong(`snapshotSchedules[${index}].timeZone`, 'must be a time zone of the IANA data base, such as Asia/Seoul');
  });
  // Where it reads from never changes: asking the agent again could only bar changes of other fields.
  if (errors.length === 0 && old === undefined) errors.push(...engine.validateReplication(spec));
  if (errors.length > 0) throw invalid(errors);
  return spec;
}

function failoverProblems({ failover, group, source }: ReplicationSpec): FieldError[] {
  if (failover?.policy !== 'automatic') return [];
  if (group !== undefined)
    return [{ path: 'failover.policy', message: `must be manual in a group; set spec.failover of group ${group}` }];
  const { agents } = failover.witness;
  const path = 'failover.witness.agents';
  if (agents.length === 0 && source.pvc === undefined)
    return [{ path, message: 'must name an agent of another node: without a second view nothing is failed over' }];
  return agents.includes(source.agent) ? [{ path, message: `must not name the source's own agent` }] : [];
}

/** What the claim is, or why it cannot be mirrored. */
function claimOf({ engine }: Context, pvc: ClaimRef): { volumeMode: VolumeMode } | string {
  return engine.claim?.(pvc) ?? 'needs a master that runs with --kubernetes; name agent and path instead';
}

function editable(metadata: Input['metadata']): Draft<'Replication'>['metadata'] {
  const { name, displayName, namespace, labels, annotations } = metadata;
  return {
    name,
    ...(displayName === undefined ? {} : { displayName }),
    ...(namespace === undefined ? {} : { namespace }),
    ...(labels === undefined ? {} : { labels }),
    ...(annotations === undefined ? {} : { annotations }),
  };
}
export { editable as editableMetadata };

/** Each new tag is one sync. */
export function askManual({ requests }: Replication, manual: string | undefined): void {
  if (manual === undefined || manual === requests.manual) return;
  requests.sync += 1;
  requests.manual = manual;
}

export function draft(body: Pick<Input, 'metadata'>, spec: ReplicationSpec): Draft<'Replication'> {
  return {
    apiVersion,
    kind: 'Replication',
    metadata: editable(body.metadata),
    spec,
    status: {
      state: 'PREPARING',
      phase: 'Pending',
      role: 'Secondary',
      captureMethod: null,
      fencingGeneration: '1',
      progress: null,
      recoveryPoint: null,
      lastSyncTime: null,
      lagSeconds: null,
      lagBytes: null,
      lastSyncDuration: null,
      lastSyncBytes: null,
      lastAttemptTime: null,
      lastVerifiedTime: null,
      lastDrilledTime: null,
      nextSyncTime: null,
      latestImage: null,
      nextSnapshotTime: null,
      usedBytes: null,
      fork: null,
      observedGeneration: 0,
      conditions: [],
    },
    requests: {
      ...(spec.trigger.manual === undefined ? { sync: 0 } : { sync: 1, manual: spec.trigger.manual }),
      ...{ resync: 0, verify: 0, force: false },
    },
  };
}

function replace(context: Context, old: Replication, body: Input, ifVersion: string | undefined): Replication {
  keepPlace(body.spec, old.spec);
  const spec = complete(context, body.spec, old.spec);
  const errors: FieldError[] = [];
  const fixed = (path: string, before: unknown, after: unknown): void => {
    const message = 'cannot be changed; create another replication instead';
    if (!isDeepStrictEqual(before, after)) errors.push({ path, message });
  };
  fixed('metadata.name', old.metadata.name, body.metadata.name);
  fixed('metadata.namespace', old.metadata.namespace, body.metadata.namespace ?? old.metadata.namespace);
  for (const field of ['agent', 'path', 'pvc', 'volumeMode'] as const)
    fixed(`spec.source.${field}`, old.spec.source[field], spec.source[field]);
  if (spec.replicationState !== old.spec.replicationState)
    errors.push({
      path: 'spec.replicationState',
      message: 'is changed by the actions promote and demote, or a failover',
    });
  fixed('spec.target.storageClass', old.spec.target.storageClass, spec.target.storageClass);
  if (errors.length > 0) throw invalid(errors);

  ensureGroup(context.store, spec.group);
  const change = (object: Replication): void => {
    const { manual } = spec.trigger;
    askManual(object, manual);
    const { uid, generation, resourceVersion, creationTimestamp, namespace } = object.metadata;
    object.metadata = {
      ...(namespace === undefined ? {} : { namespace }),
      ...(editable(body.metadata) as Replication['metadata']),
      ...{ uid, generation, resourceVersion, creationTimestamp },
    };
    // It may have moved meanwhile.
    keepPlace(spec, object.spec);
    object.spec = spec;
  };
  return context.store.update('Replication', old.metadata.name, change, ifVersion);
}

/** Who changes something else need not say where the claim is now. */
function keepPlace({ source }: ReplicationSpec, { source: { pvc, agent, path } }: ReplicationSpec): void {
  if (pvc !== undefined) Object.assign(source, { agent, path });
}

/**
 * Snapshots go first, so that a crash in between leaves none behind for the next replication of this name. What is to be
 * kept is recorded before anything is gone: whoever clears replicas that no object names spares those.
 */
function remove(context: Context, old: Replication, keepReplica: boolean, ifVersion: string | undefined): Replication {
  const { store, events, clock, trusted } = context;
  const { name, uid } = old.metadata;
  if (ifVersion !== undefined) store.update('Replication', name, () => undefined, ifVersion); // changes nothing: the check alone
  const snapshots = store.list('Snapshot').filter(({ spec }) => spec.replication === name);
  const nowMs = clock.nowMs();
  const errors: FieldError[] = [];
  for (const recovery of store.list('Recovery').filter((one) => volumesOf(store, one).includes(name)))
    if (!hasEnded(recovery))
      errors.push({
        path: `Recovery/${recovery.metadata.name}`,
        message: `is ${recovery.status.state}; cancel it, or roll it back, first`,
      });
  for (const { metadata, spec } of snapshots) {
    const path = `Snapshot/${name}/${metadata.name}`;
    if (spec.lockedUntil !== null && Date.parse(spec.lockedUntil) > trusted.nowMs())
      errors.push({ path, message: `is locked until ${spec.lockedUntil}` });
    else if (spec.pinned) errors.push({ path, message: 'is pinned; unpin it first' });
  }
  for (const { metadata, spec } of store.list('RecoverySchedule'))
    if (spec.replication === name)
      errors.push({ path: `RecoverySchedule/${metadata.name}`, message: 'recovers it; delete it first' });
  if (errors.length > 0) {
    const why = errors.map(({ path, message }) => `${path} ${message}`).join('; ');
    throw new ApiProblem('Referenced', `replication ${name} cannot be deleted yet: ${why}`, errors);
  }
  const time = new Date(nowMs).toISOString();
  if (keepReplica)
    store.putRecord(
      keptReplicas,
      old.requests.replica ?? uid,
      JSON.stringify({ name, storageClass: old.spec.target.storageClass, time }),
    );
  for (const { metadata } of snapshots) store.delete('Snapshot', `${name}/${metadata.name}`);
  const deleted = store.delete('Replication', name) ?? old;
  for (const group of store.list('Group'))
    store.update('Group', group.metadata.name, ({ spec }) => {
      spec.members = spec.members.filter((member) => member.replication !== name);
    });
  const message = keepReplica ? `deleted; its replica ${uid} is kept` : 'deleted with its replica';
  events.emit({ code: 'ReplicationDeleted', level: 'INFO', message, object: `Replication/${name}` });
  return deleted;
}
