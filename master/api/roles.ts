/**
 * promote, demote and resync of replications, with the meaning they have in csi-addons and of mirrored images: demote takes a last cut
 * and ends the source's right to write; promote makes the replica usable, as a failover that recoveries show; resync makes the
 * source the one to follow again. What could lose data is done by force only, and says what would be lost.
 */
import type { FastifyInstance } from 'fastify';
import { ask } from '../recovery/machine.ts';
import { nextGeneration } from '../recovery/generation.ts';
import { demoted, type Replication } from '../resources.ts';
import { ApiProblem } from './problem.ts';
import { groupNow, newName, recoveryDraft } from './recoveries.ts';
import { find, needPoint, withLag } from './replications.ts';
import { route, type Context } from './route.ts';
import { ActionInput } from './schema.ts';

export function roleRoutes(app: FastifyInstance, context: Context): void {
  const verbs = {
    promote: [
      'Make the replica usable and keep the source out; by force also when the source was not demoted',
      promote,
    ],
    demote: [
      'Take a last cut and end the right of the source to write; by force also when it is in use or gone',
      demote,
    ],
    resync: ['Compare all of source and replica and send what differs; by force also after a promotion', resync],
  } as const;
  for (const [verb, [summary, work]] of Object.entries(verbs))
    route(app, {
      method: 'POST',
      url: `/api/v1/replications/:name/actions/${verb}`,
      tag: 'replications',
      summary,
      body: ActionInput,
      bodyOptional: true,
      answer: 'Replication',
      status: 202,
      handle({ params, body, ifVersion }) {
        const { metadata } = find(context, params['name']);
        // Changes nothing: the check alone.
        if (ifVersion !== undefined) context.store.update('Replication', metadata.name, () => undefined, ifVersion);
        work(context, find(context, params['name']), body.force);
        return withLag(find(context, metadata.name), context.clock.nowMs());
      },
    });
}

function refuse(detail: string): never {
  throw new ApiProblem('WrongState', detail);
}

function recoveryOf({ store }: Context, { requests }: Replication) {
  return store.list('Recovery').find(({ metadata }) => metadata.uid === requests.fencedBy);
}

function promote(context: Context, replication: Replication, force: boolean): void {
  const { store } = context;
  const { metadata, requests, spec, status } = replication;
  needPoint(context, replication);
  if (requests.fencedBy !== undefined && requests.fencedBy !== demoted) {
    const recovery = recoveryOf(context, replication);
    const task = recovery?.status.tasks.find(({ volume }) => volume === metadata.name);
    // Of one volume alone: what the others are stays.
    if (recovery && task?.state === 'Failed')
      store.update('Recovery', recovery.metadata.name, (one) => void ask(one, 'retry', false));
    return;
  }
  if (requests.fencedBy === undefined && !force) {
    const isThere = store.get('Agent', spec.source.agent)?.status.state === 'ACTIVE';
    refuse(
      isThere
        ? `the source of ${metadata.name} is primary, and its agent ${spec.source.agent} is there: demote it first, so that nothing is lost, or promote with force: what is not mirrored yet (the copy is of ${status.lastSyncTime}) is left behind`
        : `the source of ${metadata.name} was not demoted, and its agent ${spec.source.agent} is not there to say whether it is written: promote with force if it is lost; the copy is of ${status.lastSyncTime}`,
    );
  }
  const asked = { replication: metadata.name, type: 'failover' as const, point: 'latest-data' as const, target: null };
  const open = store.list('Recovery').find(({ spec: other, status: { state } }) => {
    return other.type === 'failover' && other.replication === metadata.name && state === 'Waiting';
  });
  if (open) return;
  const name = newName(asked, undefined);
  store.create('Recovery', name, recoveryDraft(name, asked, groupNow(store, asked)));
}

function demote({ store, engine }: Context, replication: Replication, force: boolean): void {
  const { metadata, requests, spec } = replication;
  if (requests.fencedBy !== undefined) return;
  const isThere = store.get('Agent', spec.source.agent)?.status.state === 'ACTIVE';
  const volume = engine.volumes(spec.source.agent).find(({ path }) => path === spec.source.path);
  if (!force && !isThere)
    refuse(
      `agent ${spec.source.agent} is not there to take a last cut; demote with force, and what is not mirrored yet is left behind`,
    );
  if (!force && typeof volume?.mountPoint === 'string')
    refuse(
      `SourceInUse: ${spec.source.path} is mounted at ${volume.mountPoint}; stop what uses it and unmount it, or demote with force`,
    );
  store.update('Replication', metadata.name, (object) => {
    if (isThere) {
      if (object.requests.demoteSync !== undefined) return;
      object.spec.paused = false;
      object.requests.sync += 1;
      object.requests.demoteSync = object.requests.sync;
    } else {
      object.requests.fencedBy = demoted;
      object.spec.replicationState = 'secondary';
      object.status.fencingGeneration = nextGeneration(object.status.fencingGeneration);
    }
  });
}

function resync(context: Context, replication: Replication, force: boolean): void {
  const { store } = context;
  const { metadata } = replication;
  const recovery = recoveryOf(context, replication);
  if (recovery) {
    const { name } = recovery.metadata;
    if (!force)
      refuse(
        `${metadata.name} was promoted by recovery ${name}: what was written to its copy is lost when it follows the source again. Roll ${name} back, or resync with force, which does that`,
      );
    if (recovery.spec.group !== undefined)
      refuse(`${metadata.name} was promoted with group ${recovery.spec.group}; roll ${name} back`);
    let refusal: string | undefined;
    store.update('Recovery', name, (one) => void (refusal = ask(one, 'rollback', false)));
    if (refusal !== undefined) refuse(`recovery ${name}: ${refusal}`);
  }
  store.update('Replication', metadata.name, (object) => {
    delete object.requests.demoteSync;
    if (object.requests.fencedBy === demoted) {
      delete object.requests.fencedBy;
      object.spec.replicationState = 'primary';
      object.status.fencingGeneration = nextGeneration(object.status.fencingGeneration);
    }
    object.requests.resync += 1;
    object.requests.force = force;
    // Decided: what the old source has of its own is given up.
    if (force) delete object.requests.fork;
  });
}
