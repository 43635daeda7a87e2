/**
 * Recoveries over REST. A POST is checked against what can be recovered now and stored in state Waiting; the controllers
 * run it. Ended ones are the results; deleting a result leaves the recovered copy where it is.
 */
import { createHash } from 'node:crypto';
import type { FastifyInstance } from 'fastify';
import type { Static } from 'typebox';
import { apiVersion } from '../resources.ts';
import type { Recovery, RecoveryState, Replication } from '../resources.ts';
import { snapshotKey } from '../store.ts';
import { listOrWatch } from './list.ts';
import { ApiProblem, invalid, notFound } from './problem.ts';
import { ended, needPoint } from './replications.ts';
import { route } from './route.ts';
import type { Context } from './route.ts';
import { ActionInput, ListQuery } from './schema.ts';
import { RecoveryCreate } from './schema/recovery.ts';

const url = '/api/v1/recoveries';
const tag = 'recoveries';

export function recoveryRoutes(app: FastifyInstance, context: Context): void {
  const { store, engine } = context;
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
      const replication = store.get('Replication', body.replication);
      if (replication === undefined)
        throw invalid([{ path: 'replication', message: 'must name a replication that exists' }]);
      needPoint(context, replication);
      const point = chosenPoint(context, replication, body.point);
      const mode = replication.spec.source.volumeMode;
      const problems = body.target ? ((await engine.validateRecovery?.(body.target.path, mode)) ?? []) : [];
      if (problems.length > 0) throw invalid(problems);
      const name = body.name ?? newName(body, idempotencyKey === undefined ? undefined : [caller.name, idempotencyKey]);
      return store.create('Recovery', name, {
        apiVersion,
        kind: 'Recovery',
        metadata: { name },
        spec: { replication: body.replication, type: body.type, point, target: body.target },
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
        requests: { cancel: false, rollback: false },
      });
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
      if (!ended(recovery))
        throw new ApiProblem(
          'WrongState',
          `recovery ${name} is ${recovery.status.state}; wait for its end or cancel it`,
        );
      return store.delete('Recovery', name, ifVersion);
    },
  });

  /** `already`: asked for before; asking again changes nothing. */
  function action(
    verb: 'cancel' | 'rollback',
    summary: string,
    allowed: readonly RecoveryState[],
    already: readonly RecoveryState[],
  ): void {
    route(app, {
      method: 'POST',
      url: `${url}/:name/actions/${verb}`,
      tag,
      summary,
      body: ActionInput,
      bodyOptional: true,
      answer: 'Recovery',
      status: 202,
      handle({ params, ifVersion }) {
        const { metadata } = find(context, params['name']);
        const change = ({ status, requests }: Recovery): void => {
          if (already.includes(status.state)) return;
          if (!allowed.includes(status.state)) {
            const detail = `recovery ${metadata.name} is ${status.state}; ${verb} is for ${allowed.join(', ')}`;
            throw new ApiProblem('WrongState', detail);
          }
          requests[verb] = true;
        };
        return store.update('Recovery', metadata.name, change, ifVersion);
      },
    });
  }
  action('cancel', 'End a recovery that is not complete', ['Waiting', 'Running'], ['Cancelling', 'Cancelled']);
  action('rollback', 'Remove what a recovery has made', ['Completed', 'Failed'], ['RollingBack', 'RolledBack']);
}

function find({ store }: Context, name = ''): Recovery {
  const recovery = store.get('Recovery', name);
  if (recovery === undefined) throw notFound('recovery', name);
  return recovery;
}

/** The choice as it is kept, when there is something to choose. @throws ApiProblem */
function chosenPoint(
  { store, engine }: Context,
  { metadata }: Replication,
  point: Static<typeof RecoveryCreate>['point'],
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
  if (engine.points(uid, undefined, Date.parse(time)).length > 0) return { time };
  const oldest = engine.points(uid)[0]?.sourceTime ?? 'none';
  throw new ApiProblem(
    'NoRecoveryPoint',
    `replication ${name} has no point at or before ${time}; its oldest is ${oldest}`,
  );
}

/** From the Idempotency-Key where there is one, so that a retry finds the name taken even when the answer was lost. */
function newName({ replication, type }: { replication: string; type: string }, key: string[] | undefined): string {
  const salt = key ?? [crypto.randomUUID()];
  const suffix = createHash('sha256')
    .update(JSON.stringify([replication, ...salt]))
    .digest('hex')
    .slice(0, 8);
  return `${replication.slice(0, 63 - 2 - type.length - suffix.length)}-${type}-${suffix}`;
}
