/**
 * One leader among several masters, by a Lease of coordination.k8s.io, by the rules of client-go: a lease whose holder has not renewed
 * it for its duration, by the watcher's own steady clock, may be taken; a taken one is renewed every 2 s.
 *
 * Guarantees: at most one master may write at any time, as long as no clock runs more than a third faster than another: a leader
 * that could not renew for `renewSeconds` writes nothing more, and ends before others may take over. `mayWrite` says so also to a process
 * that was stopped and goes on later, before it does anything. Before a leader ends it tries once more: an answer may have been lost, or have
 * come while this process was kept from running, and a lease that can be renewed was nobody else's meanwhile. The lease's transitions
 * count the leaders.
 */
import type { Clock } from '../../proto/effects.ts';
import { messageOf, ReplicationError } from '../../proto/errors.ts';
import { ApiFault, type Api } from './api.ts';

export const leaseSeconds = 15;
const renewSeconds = 10;
const retryMs = 2000;
/** The last renewal that is tried has its answer by then, so that this process has ended when others may take over. */
const lastMs = 13_000;
/** Of a process that was kept from running beyond that. */
const tryMs = 1000;

interface LeaseSpec {
  holderIdentity?: string;
  leaseDurationSeconds?: number;
  acquireTime?: string;
  renewTime?: string;
  leaseTransitions?: number;
}
interface Lease {
  metadata: { name: string; namespace: string; resourceVersion?: string };
  spec: LeaseSpec;
}

export interface Leadership {
  /** How many leaders there were before, from 0. */
  readonly transitions: number;
  /** @throws ReplicationError Fenced when this process does not lead any more */
  mayWrite(): void;
  /** Resolves with the reason when it is lost; never while it is held. */
  readonly lost: Promise<string>;
  /** Lets go of it, so that another one need not wait. */
  release(): Promise<void>;
}

export interface LeaseOptions {
  api: Api;
  clock: Pick<Clock, 'nowMs' | 'monotonicMs' | 'sleep'>;
  namespace: string;
  name: string;
  /** Of this process, unique among the masters. */
  identity: string;
  /** Who leads now, each time that it is another one, and troubles. */
  onWait: (message: string, isReached: boolean) => void;
}

/** Resolves once this process leads. @throws when the signal aborts */
export async function lead(options: LeaseOptions, signal: AbortSignal): Promise<Leadership> {
  const { api, clock, namespace, name, identity, onWait } = options;
  const base = `/apis/coordination.k8s.io/v1/namespaces/${namespace}/leases`;
  let seen = { text: '', ms: -Infinity };
  let told = '';
  const tell = (message: string, isReached: boolean): void => {
    if (message !== told) onWait(message, isReached);
    told = message;
  };
  const micro = (): string => new Date(clock.nowMs()).toISOString().replace('Z', '000Z');

  async function get(signal?: AbortSignal): Promise<Lease | undefined> {
    try {
      return (await api.request('GET', `${base}/${name}`, undefined, signal)) as Lease;
    } catch (error) {
      if (error instanceof ApiFault && error.status === 404) return undefined;
      throw error;
    }
  }
  /** undefined: somebody else holds it, or took it first. */
  async function tryTake(): Promise<Lease | undefined> {
    const found = await get();
    const spec = found?.spec ?? {};
    const text = JSON.stringify([spec.holderIdentity, spec.renewTime, spec.leaseTransitions]);
    if (text !== seen.text) seen = { text, ms: clock.monotonicMs() };
    const holder = spec.holderIdentity ?? '';
    const isOver = clock.monotonicMs() - seen.ms > (spec.leaseDurationSeconds ?? leaseSeconds) * 1000;
    if (holder !== '' && holder !== identity && !isOver) {
      tell(`waiting: ${holder} leads`, true);
      return undefined;
    }
    const now = micro();
    const next: Lease = {
      metadata: { ...(found?.metadata ?? {}), name, namespace },
      spec: {
        holderIdentity: identity,
        leaseDurationSeconds: leaseSeconds,
        acquireTime: now,
        renewTime: now,
        leaseTransitions: found === undefined ? 0 : (spec.leaseTransitions ?? 0) + 1,
      },
    };
    const body = { apiVersion: 'coordination.k8s.io/v1', kind: 'Lease', ...next };
    const answer = found ? await api.request('PUT', `${base}/${name}`, body) : await api.request('POST', base, body);
    return answer as Lease;
  }

  let held: Lease | undefined;
  let startedMs = 0;
  while (!held) {
    signal.throwIfAborted();
    startedMs = clock.monotonicMs();
    try {
      held = await tryTake();
    } catch (error) {
      const isRace = error instanceof ApiFault && error.status === 409;
      if (!isRace) tell(`waiting: the lease cannot be had: ${messageOf(error)}`, false);
    }
    if (!held) await clock.sleep(retryMs, signal);
  }
  let lease = held;
  /** Steady time before the newest renewal was asked for: what it is good from. */
  let renewedMs = startedMs;
  const lost = Promise.withResolvers<string>();
  const stopping = new AbortController();
  const sinceMs = (): number => clock.monotonicMs() - renewedMs;
  const over = (): boolean => sinceMs() > renewSeconds * 1000;

  /** An answer that comes too late is of no use: the others may have taken over meanwhile. */
  const soon = (): AbortSignal => {
    const limitMs = Math.min(renewSeconds * 500, Math.max(tryMs, Math.floor(lastMs - sinceMs())));
    return AbortSignal.any([stopping.signal, AbortSignal.timeout(limitMs)]);
  };

  /** Undefined: renewed. */
  async function tryRenewal(): Promise<unknown> {
    const askedMs = clock.monotonicMs();
    try {
      const body = { ...lease, spec: { ...lease.spec, renewTime: micro() } };
      lease = (await api.request('PUT', `${base}/${name}`, body, soon())) as Lease;
      renewedMs = askedMs;
      return undefined;
    } catch (error) {
      return error;
    }
  }
  async function renew(): Promise<void> {
    for (let again = false; ;) {
      if (!again) await clock.sleep(retryMs, stopping.signal);
      const isLast = over();
      const error = await tryRenewal();
      if (stopping.signal.aborted) return;
      if (error === undefined) {
        again = false;
        continue;
      }
      const isConflict = error instanceof ApiFault && error.status === 409;
      const now = isConflict ? await get(soon()).catch(() => undefined) : undefined;
      if (now && now.spec.holderIdentity !== identity)
        return lost.resolve(`${now.spec.holderIdentity ?? 'nobody'} leads now`);
      // A renewal of ours whose answer did not come: from there on.
      const isNewer = now !== undefined && now.metadata.resourceVersion !== lease.metadata.resourceVersion;
      if (now) lease = now;
      if (isLast && !isNewer)
        return lost.resolve(`the lease could not be renewed for ${renewSeconds} s: ${messageOf(error)}`);
      again = isNewer || over();
    }
  }
  renew().catch(() => undefined); // stopped

  return {
    transitions: lease.spec.leaseTransitions ?? 0,
    lost: lost.promise,
    mayWrite() {
      if (over()) throw new ReplicationError('Fenced', 'this master does not lead any more; another one may');
    },
    async release() {
      stopping.abort();
      const body = { ...lease, spec: { ...lease.spec, holderIdentity: '', renewTime: micro() } };
      await api.request('PUT', `${base}/${name}`, body).catch(() => undefined);
    },
  };
}
