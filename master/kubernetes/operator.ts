/**
 * What people ask for with kubectl and REST does by calls: objects that were made get their first status, deletion is asked of
 * the same code that REST asks, a new manual tag is one sync, the annotation `<group>/action` is an action.
 *
 * Level-triggered: each turn looks at what is there, whatever brought it about; nothing is remembered that matters. What is
 * refused says why in the resource's status and as an Event, and is looked at again when anything changes, or after 10 s.
 * Actions happen at least once: those of the API may be asked for twice.
 */
import type { Clock } from '../../proto/effects.ts';
import { messageOf } from '../../proto/errors.ts';
import { askManual } from '../api/replications.ts';
import type { EventInput } from '../engine.ts';
import type { Kind, Replication } from '../resources.ts';
import type { Draft } from '../store.ts';
import { accepted, finalizer, type CustomResource } from './codec.ts';
import { allKinds, group } from './kinds.ts';
import type { KubernetesStore } from './store.ts';

export const actionAnnotation = `${group}/action`;
export const keepAnnotation = `${group}/keep-replica`;

export interface OperatorOptions {
  store: KubernetesStore;
  clock: Pick<Clock, 'nowMs' | 'sleep'>;
  /** A call of the REST API from within. */
  call: (
    method: 'POST' | 'PATCH' | 'DELETE',
    path: string,
    body?: object,
  ) => Promise<{ status: number; body: unknown }>;
  /** The object as it is taken on. @throws with the reason when it cannot be (yet) */
  draftOf: (kind: Kind, resource: CustomResource, key: string) => Promise<Draft<Kind>>;
  report: (event: EventInput) => void;
}

const againMs = 10_000;
const collections: { [K in Kind]?: string } = {
  Replication: 'replications',
  StorageClass: 'storageclasses',
  Recovery: 'recoveries',
  Group: 'groups',
  RecoverySchedule: 'recoveryschedules',
};
/** Their specs may be changed by people, and REST checks or does more than the definition can. */
const settled: Kind[] = ['Replication', 'Group', 'RecoverySchedule'];

export async function runOperator(options: OperatorOptions, signal: AbortSignal): Promise<void> {
  const { store, clock } = options;
  /** Newest refusal of each, so that it is told once. */
  const refusals = new Map<string, string>();
  /** Newest generation of each whose spec was looked at. */
  const generations = new Map<string, number>();
  while (!signal.aborted) {
    const moved = store.moved(AbortSignal.any([signal, AbortSignal.timeout(againMs)]));
    const seen = new Set<string>();
    for (const kind of allKinds) {
      for (const { key, raw } of store.resources(kind)) {
        seen.add(raw.metadata.uid);
        if (signal.aborted) return;
        try {
          await turn(options, kind, key, raw, refusals, generations);
        } catch (error) {
          refuse(options, refusals, kind, key, raw, messageOf(error));
        }
      }
    }
    for (const map of [refusals, generations]) for (const uid of map.keys()) if (!seen.has(uid)) map.delete(uid);
    await moved;
    // Not at each of many changes at once.
    await clock.sleep(20, signal).catch(() => undefined);
  }
}

async function turn(
  options: OperatorOptions,
  kind: Kind,
  key: string,
  raw: CustomResource,
  refusals: Map<string, string>,
  generations: Map<string, number>,
): Promise<void> {
  const { store } = options;
  const { deletionTimestamp, finalizers = [], annotations = {} } = raw.metadata;
  const isAccepted = raw.status?.[accepted] === true;
  if (deletionTimestamp !== undefined) {
    if (!finalizers.includes(finalizer)) return;
    if (!isAccepted) return store.strip(kind, key, { finalizer: true });
    return end(options, kind, key, raw);
  }
  if (!isAccepted) {
    // Agents come by joining; one that a person makes is nobody.
    if (kind === 'Agent') return;
    const draft = await options.draftOf(kind, raw, key);
    store.adopt(kind, key, draft);
    refusals.delete(raw.metadata.uid);
    return;
  }
  const { uid, generation = 0 } = raw.metadata;
  if (settled.includes(kind) && generations.get(uid) !== generation) {
    // A patch that changes nothing: all that REST checks of a change, and does after one.
    const answer = await options.call('PATCH', `/api/v1/${collections[kind] ?? ''}/${key}`, {});
    if (answer.status < 500) generations.set(uid, generation);
    need(answer);
    refusals.delete(uid);
  }
  if (kind === 'Replication') {
    const { manual } = store.get('Replication', key)?.spec.trigger ?? {};
    if (manual !== undefined && store.get('Replication', key)?.requests.manual !== manual)
      store.update('Replication', key, (object: Replication) => askManual(object, object.spec.trigger.manual));
  }
  const action = annotations[actionAnnotation];
  if (action !== undefined) await act(options, kind, key, action);
}

/** @throws Error with the reason when it cannot end yet */
async function end(options: OperatorOptions, kind: Kind, key: string, raw: CustomResource): Promise<void> {
  const { store, call } = options;
  if (kind === 'Snapshot') {
    const [replication = '', name = ''] = key.split('/');
    if (store.get('Snapshot', key)?.status.state === 'Deleting') return;
    return need(await call('DELETE', `/api/v1/replications/${replication}/snapshots/${name}`));
  }
  const path = `/api/v1/${collections[kind] ?? ''}/${key}`;
  const keep = kind === 'Replication' && raw.metadata.annotations?.[keepAnnotation] === 'true';
  const answer = await call('DELETE', keep ? `${path}?keepReplica=true` : path);
  // Who deletes a recovery that runs wants it to end.
  if (kind === 'Recovery' && answer.status === 409) await call('POST', `${path}/actions/cancel`, {});
  need(answer);
}

async function act(options: OperatorOptions, kind: Kind, key: string, text: string): Promise<void> {
  const { store, call, report } = options;
  const [, action, force] = /^([a-z]{1,32})(!force)?$/.exec(text) ?? [];
  const object = `${kind}/${key}`;
  const tell = (level: EventInput['level'], message: string): void =>
    report({ code: level === 'INFO' ? 'ActionDone' : 'ActionRefused', level, message, object });
  if (action === undefined || (kind !== 'Replication' && kind !== 'Recovery'))
    tell(
      'WARNING',
      `${actionAnnotation}: ${text} is no action of ${kind}; give its name, such as resync or confirm!force`,
    );
  else {
    const path = `/api/v1/${collections[kind] ?? ''}/${key}/actions/${action}`;
    const answer = await call('POST', path, { force: force !== undefined });
    if (answer.status >= 500) need(answer);
    if (answer.status < 300) tell('INFO', `${action} was asked for`);
    else tell('WARNING', `${action}: ${detailOf(answer)}`);
  }
  store.strip(kind, key, { annotation: actionAnnotation });
}

function need(answer: { status: number; body: unknown }): void {
  if (answer.status >= 300 && answer.status !== 404) throw new Error(detailOf(answer));
}
function detailOf({ status, body }: { status: number; body: unknown }): string {
  return (body as { detail?: string } | undefined)?.detail ?? `status ${status}`;
}

function refuse(
  { store, clock, report }: OperatorOptions,
  refusals: Map<string, string>,
  kind: Kind,
  key: string,
  raw: CustomResource,
  message: string,
): void {
  const { uid, deletionTimestamp } = raw.metadata;
  if (refusals.get(uid) === message) return;
  refusals.set(uid, message);
  const object = `${kind}/${key}`;
  if (deletionTimestamp !== undefined)
    return report({ code: 'DeletionWaits', level: 'WARNING', message: `it stays until then: ${message}`, object });
  report({ code: 'NotAccepted', level: 'WARNING', message, object });
  if (raw.status?.[accepted] === true) return;
  const lastTransitionTime = new Date(clock.nowMs()).toISOString();
  const condition = { type: 'Validated', status: 'False', reason: 'NotAccepted', message, lastTransitionTime };
  const state = { Replication: 'PREPARING', Snapshot: 'Creating', Recovery: 'Waiting' }[kind as string];
  try {
    store.refuse(kind, key, { ...(state === undefined ? {} : { state }), message, conditions: [condition] });
  } catch {
    refusals.delete(uid); // the API server is away, or the object: the next turn says it again
  }
}
