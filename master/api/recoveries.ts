/**
 * Recoveries over REST. A POST is checked against what can be recovered now and stored in state Waiting; actions are
 * checked by the state machine and change the state at once; the controllers do the work. Ended ones are the results; deleting a result leaves the recovered copy where it is.
 */
import { createHash } from 'node:crypto';
import type { FastifyInstance } from 'fastify';
import { apiVersion, demoted } from '../resources.ts';
import { differs, foundText } from '../forktext.ts';
import { startOrder, targetOf, volumesOf, type Member } from '../groups.ts';
import { actions, ask, hasEnded, type Action } from '../recovery/machine.ts';
import { goesToClaim } from '../recovery/claimtarget.ts';
import { otherMode } from '../recovery/writeback.ts';
import { pathInGroup } from '../recovery/copy.ts';
import type { Fork, Recovery, RecoverySpec, RecoveryType, Replication, Snapshot } from '../resources.ts';
import { snapshotKey, type Draft, type Store } from '../store.ts';
import type { Caller } from '../tokens.ts';
import { listOrWatch } from './list.ts';
import { ApiProblem, invalid, notFound } from './problem.ts';
import { needPoint } from './replications.ts';
import { route } from './route.ts';
import type { Context } from './route.ts';
import { scopeOf } from './scope.ts';
import { ActionInput, ListQuery } from './schema.ts';
import { RecoveryCreate } from './schema/recovery.ts';

const url = '/api/v1/recoveries';
const tag = 'recoveries';

export function recoveryRoutes(app: FastifyInstance, context: Context): void {
  const { store } = context;
  route(app, {
    method: 'GET',
    url,
    tag,
    summary: 'List or watch recoveries and their results',
    query: ListQuery,
    answer: 'RecoveryList',
    handle: ({ query, reply }) => listOrWatch(context, 'Recovery', query, reply, (recovery) => recovery),
  });
  route(app, {
    method: 'POST',
    url,
    tag,
    summary: 'Recover a point into a new copy',
    body: RecoveryCreate,
    answer: 'Recovery',
    status: 201,
    async handle({ body, caller, idempotencyKey }) {
      const { name: given, ...asked } = body;
      mayCreate(caller, asked.type);
      mayTouch(store, caller, asked);
      const point = await mayRecover(context, asked);
      const name = given ?? newName(asked, idempotencyKey === undefined ? undefined : [caller.name, idempotencyKey]);
      return store.create('Recovery', name, recoveryDraft(name, { ...asked, point }, groupNow(store, asked)));
    },
  });
  route(app, {
    method: 'GET',
    url: `${url}/:name`,
    tag,
    summary: 'Read a recovery',
    answer: 'Recovery',
    handle: ({ params }) => find(context, params['name']),
  });
  route(app, {
    method: 'DELETE',
    url: `${url}/:name`,
    tag,
    summary: 'Delete the result of an ended recovery',
    answer: 'Recovery',
    handle({ params, ifVersion }) {
      const recovery = find(context, params['name']);
      const { name } = recovery.metadata;
      if (!hasEnded(recovery)) {
        const isHeld = ['Completed', 'Failed'].includes(recovery.status.state);
        const cure = isHeld ? 'roll it back or confirm it' : 'wait for its end or cancel it';
        throw new ApiProblem('WrongState', `recovery ${name} is ${recovery.status.state}; ${cure}`);
      }
      return store.delete('Recovery', name, ifVersion);
    },
  });

  for (const action of actions)
    route(app, {
      method: 'POST',
      url: `${url}/:name/actions/${action}`,
      tag,
      summary: summaries[action],
      body: ActionInput,
      bodyOptional: true,
      answer: 'Recovery',
      status: 202,
      handle({ params, body, ifVersion }) {
        const { metadata } = find(context, params['name']);
        const change = (recovery: Recovery): void => {
          const refusal = ask(recovery, action, body.force);
          if (refusal !== undefined) throw new ApiProblem('WrongState', `recovery ${metadata.name}: ${refusal}`);
        };
        return store.update('Recovery', metadata.name, change, ifVersion);
      },
    });
}

const noGroup = 'must name a group that has members: replications whose spec.group it is';
const summaries: Record<Action, string> = {
  pause: 'Stop after the work in hand',
  resume: 'Go on with a recovery that was paused',
  cancel: 'End a recovery that is not complete, and undo it; with force also what cannot be undone',
  retry: 'Recover the volumes again that have failed',
  rollback: 'Remove what a recovery has made and mirror the sources again; with force also what cannot be removed',
  confirm: 'Make what a failover has recovered the source; with force also when volumes have failed',
};

/** A failover is for managers. @throws ApiProblem Forbidden */
export function mayCreate({ role }: Caller, type: RecoveryType): void {
  if (type === 'failover' && !['admin', 'manager'].includes(role))
    throw new ApiProblem('Forbidden', `a failover is created by an admin or a manager; the role here is ${role}`);
}

/** What is beyond the caller's groups is not there for it. @throws ApiProblem Invalid */
export function mayTouch(
  store: Pick<Store, 'get' | 'list'>,
  caller: Caller,
  { replication, group }: Pick<RecoverySpec, 'replication' | 'group'>,
): void {
  const scope = scopeOf(store, caller);
  const found = replication === undefined ? undefined : store.get('Replication', replication);
  if (found && !scope.sees(found))
    throw invalid([{ path: 'replication', message: 'must name a replication that exists' }]);
  if (group !== undefined && !scope.hasGroup(group)) throw invalid([{ path: 'group', message: noGroup }]);
}

/** Of a recovery that is made now. */
export function groupNow(
  store: Pick<Store, 'get'>,
  { replication, group }: Pick<RecoverySpec, 'replication' | 'group'>,
): string | undefined {
  return group ?? (replication === undefined ? undefined : store.get('Replication', replication)?.spec.group);
}

export function recoveryDraft(name: string, spec: RecoverySpec, group?: string): Draft<'Recovery'> {
  return {
    apiVersion,
    kind: 'Recovery',
    metadata: { name },
    spec,
    status: {
      state: 'Waiting',
      outcome: null,
      message: null,
      point: null,
      verified: null,
      rtoSeconds: null,
      rpoSeconds: null,
      startTime: null,
      endTime: null,
      tasks: [],
    },
    job: { force: false, commonMs: null, volumes: [], ...(group === undefined ? {} : { group }) },
  };
}

/** Whether it can be done now, as far as is known. Answers the choice as it is kept. @throws ApiProblem */
export async function mayRecover(
  context: Pick<Context, 'store' | 'engine'>,
  spec: RecoverySpec,
): Promise<RecoverySpec['point']> {
  const { store, engine } = context;
  const { replication, group } = spec;
  if ((replication === undefined) === (group === undefined))
    throw invalid([{ path: 'replication', message: 'must be given, or group; one of them' }]);
  if (replication !== undefined && store.get('Replication', replication) === undefined)
    throw invalid([{ path: 'replication', message: 'must name a replication that exists' }]);
  const members = startOrder(store, spec);
  if (members.length === 0) throw invalid([{ path: 'group', message: noGroup }]);
  mustName(spec, members);
  let { point } = spec;
  for (const member of members) {
    const found = store.get('Replication', member.replication);
    if (!found) throw new ApiProblem('WrongState', `${member.replication} of group ${group} does not exist`);
    needPoint(context, found);
    const own = { ...spec, target: targetOf(spec, member.replication) };
    mustFit(context, own, found);
    point = chosenPoint(context, found, spec.point);
    const mode = found.spec.source.volumeMode;
    if (own.target?.agent !== undefined) {
      await mayWriteVolume(context, own, found, own.target.agent);
      continue;
    }
    const storageClass = store.get('StorageClass', found.spec.target.storageClass);
    if (goesToClaim(own, storageClass)) {
      const problems = (await engine.validateRecoveredClaim?.(own, found)) ?? [
        { path: 'target.pvc', message: 'is for masters that run with --kubernetes; name target.path' },
      ];
      if (problems.length > 0) throw invalid(problems);
      continue;
    }
    const named = own.target?.path;
    const path = named !== undefined && group !== undefined ? pathInGroup(named, found) : named;
    const problems = path === undefined ? [] : ((await engine.validateRecovery?.(path, mode)) ?? []);
    if (problems.length > 0) throw invalid(problems);
  }
  if (spec.type === 'failover') noOther(context, members);
  return point;
}

/**
 * A target is one path or one claim; of a replica on a claim it is a claim, as no whole copy would fit on the master's machine.
 * @throws ApiProblem
 */
function mustFit(
  { store }: Pick<Context, 'store'>,
  { target }: Pick<RecoverySpec, 'target'>,
  { metadata, spec }: Replication,
): void {
  const given = target as Partial<Record<'path' | 'agent' | 'pvc', unknown>> | null;
  if (given && (given.path === undefined) === (given.pvc === undefined))
    throw invalid([{ path: 'target', message: 'must have path or pvc, one of them' }]);
  if (given?.agent !== undefined && given.pvc !== undefined)
    throw invalid([{ path: 'target.agent', message: 'is for target.path; leave it out' }]);
  const { storageClass } = spec.target;
  if (target?.path === undefined || store.get('StorageClass', storageClass)?.spec.driver !== 'kubernetes') return;
  const text = `${metadata.name} lies in storage class ${storageClass} of driver kubernetes: its copies are claims`;
  throw invalid([{ path: 'target.path', message: `${text}; name target.pvc, or leave target out` }]);
}

/** Of a group each volume that is written over is named by its member. @throws ApiProblem */
function mustName({ group, target }: RecoverySpec, members: Member[]): void {
  const wrong = (path: string, message: string): Error => invalid([{ path, message }]);
  if (group !== undefined && target?.agent !== undefined)
    throw wrong('target.agent', 'is for one replication; name target.volumes, by member');
  if (target?.volumes === undefined) return;
  if (group === undefined) throw wrong('target.volumes', 'is for groups; name target.agent and target.path');
  if (target.path !== undefined || target.pvc !== undefined)
    throw wrong('target.volumes', 'must stand alone; the members that it does not name get new copies');
  const seen = new Map<string, string>();
  for (const [name, { agent, path }] of Object.entries(target.volumes)) {
    if (!members.some(({ replication }) => replication === name))
      throw wrong(`target.volumes.${name}`, `is no member of group ${group}`);
    const other = seen.get(`${agent}:${path}`);
    if (other !== undefined) throw wrong(`target.volumes.${name}`, `is the volume of ${other} too; name another one`);
    seen.set(`${agent}:${path}`, name);
  }
}

/** Whether a volume of an agent's node may be written over. @throws ApiProblem */
async function mayWriteVolume(
  { store, engine }: Pick<Context, 'store' | 'engine'>,
  { target }: RecoverySpec,
  { metadata, spec, requests }: Replication,
  agent: string,
): Promise<void> {
  const path = target?.path ?? '';
  const { volumeMode, include, exclude } = spec.source;
  if ([...(include ?? []), ...(exclude ?? [])].length > 0) {
    const message = `would remove what spec.source.include and exclude of ${metadata.name} leave out; recover to a new path`;
    throw invalid([{ path: 'target.agent', message }]);
  }
  if (store.get('Agent', agent) === undefined)
    throw invalid([{ path: 'target.agent', message: 'must name an agent that has joined' }]);
  const source = store.list('Replication').find(({ spec }) => spec.source.agent === agent && spec.source.path === path);
  if (source)
    throw invalid([
      { path: 'target.path', message: `is the source of replication ${source.metadata.name}; name another volume` },
    ]);
  const volume = await engine.look?.(agent, path, true);
  if (volume?.eligible === true && volume.volumeMode !== volumeMode)
    throw invalid([{ path: 'target.path', message: otherMode(agent, path, volumeMode) }]);
  if (volume?.eligible === true) return notForked(metadata.name, requests.fork, agent, path);
  const silent = `agent ${agent} does not answer; start it, or upgrade it if it is older than this master`;
  throw invalid([{ path: 'target.path', message: volume ? (volume.reason ?? 'may not be written') : silent }]);
}

/** The old source is not written over while it may have what nobody else has. @throws ApiProblem WrongState */
function notForked(name: string, fork: Fork | undefined, agent: string, path: string): void {
  if (fork?.agent !== agent || fork.path !== path || (fork.found && !differs(fork.found))) return;
  const what = fork.found
    ? `${foundText(fork.found)} that were written there after the failover and are nowhere else`
    : 'is being compared with the point that was promoted: wait for status.fork.found';
  throw new ApiProblem(
    'WrongState',
    `${agent}:${path} ${fork.found ? 'has ' : ''}${what}; resync ${name} with force gives up what it has`,
  );
}

/** @throws ApiProblem WrongState */
function noOther({ store }: Pick<Context, 'store'>, members: Member[]): void {
  for (const other of store.list('Recovery')) {
    if (other.spec.type !== 'failover' || hasEnded(other)) continue;
    const both = volumesOf(store, other).filter((name) => members.some(({ replication }) => replication === name));
    if (both.length > 0)
      throw new ApiProblem(
        'WrongState',
        `failover ${other.metadata.name} of ${both.join(', ')} is ${other.status.state}; confirm it, cancel it or roll it back first`,
      );
  }
  for (const { replication } of members)
    if (![undefined, demoted].includes(store.get('Replication', replication)?.requests.fencedBy))
      throw new ApiProblem('WrongState', `${replication} was promoted already`);
}

function find({ store }: Context, name = ''): Recovery {
  const recovery = store.get('Recovery', name);
  if (recovery === undefined) throw notFound('recovery', name);
  return recovery;
}

/** The choice as it is kept, when there is something to choose. @throws ApiProblem */
function chosenPoint(
  { store, engine }: Pick<Context, 'store' | 'engine'>,
  { metadata }: Replication,
  point: RecoverySpec['point'],
): Recovery['spec']['point'] {
  const { name, uid } = metadata;
  if (point === 'latest-data') return point;
  if (point === 'latest-snapshot') {
    const ready = store
      .list('Snapshot')
      .some(({ spec, status }) => spec.replication === name && status.state === 'Ready');
    if (ready) return point;
    throw new ApiProblem('NoRecoveryPoint', `replication ${name} has no snapshot that is Ready; choose latest-data`);
  }
  if ('snapshot' in point) {
    const snapshot = store.get('Snapshot', snapshotKey(name, point.snapshot));
    if (snapshot === undefined)
      throw invalid([{ path: 'point.snapshot', message: `must name a snapshot of replication ${name}` }]);
    if (snapshot.status.state === 'Ready') return point;
    const detail = `snapshot ${point.snapshot} is ${snapshot.status.state}; choose one that is Ready`;
    throw new ApiProblem('WrongState', detail);
  }
  const time = new Date(point.time).toISOString();
  const isOld = ({ spec, status }: Snapshot): boolean =>
    spec.replication === name &&
    status.state === 'Ready' &&
    Date.parse(status.point?.sourceTime ?? '') <= Date.parse(time);
  if (engine.points(uid, undefined, Date.parse(time)).length > 0 || store.list('Snapshot').some(isOld)) return { time };
  const oldest = engine.points(uid)[0]?.sourceTime ?? 'none';
  throw new ApiProblem(
    'NoRecoveryPoint',
    `replication ${name} has no point at or before ${time}; its oldest is ${oldest}`,
  );
}

/** From the Idempotency-Key where there is one, so that a retry finds the name taken even when the answer was lost. */
export function newName({ replication, group, type }: RecoverySpec, key: string[] | undefined): string {
  const of = replication ?? group ?? '';
  const salt = key ?? [crypto.randomUUID()];
  const suffix = createHash('sha256')
    .update(JSON.stringify([of, ...salt]))
    .digest('hex')
    .slice(0, 8);
  return `${of.slice(0, 63 - 2 - type.length - suffix.length)}-${type}-${suffix}`;
}
