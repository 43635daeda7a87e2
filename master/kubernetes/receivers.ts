/**
 * The storage class `kubernetes`: each replica on a claim of its own of any StorageClass, with a receiver in a pod beside it.
 *
 * Level-triggered: opening a replica makes what is missing of claim, certificate and pod, and says what it waits for; it is
 * asked again until the pod can be dialled. Nothing is asked of the API server for a replica that is open and at rest. Scheduling is the
 * cluster's: the pod has the configured label as its node selector and is the consumer of the claim (WaitForFirstConsumer).
 * Guarantees: a claim with data goes only after its receiver has found no lock in it, and has removed the replica. What is
 * named like ours and is not is left alone. Failure: what the API server refuses is TargetFailed with its words.
 */
import { X509Certificate } from 'node:crypto';
import type { Clock } from '../../proto/effects.ts';
import { messageOf, ReplicationError } from '../../proto/errors.ts';
import { connectReceiver, masterClientName } from '../../proto/rpc.ts';
import type { Authority } from '../authority.ts';
import { receiverStorage } from '../receiver/driver.ts';
import type { Line } from '../receiver/remote.ts';
import type { StorageClass } from '../resources.ts';
import type { OpenOptions, StorageDriver } from '../storage.ts';
import { ApiFault, type Api } from './api.ts';
import { group } from './kinds.ts';
import {
  claimBytes,
  claimOf,
  classLabel,
  metadataOf,
  nameOf,
  podOf,
  podTrouble,
  quantityBytes,
  quantityOf,
  receiverPort,
  replicaLabel,
} from './receiverobjects.ts';
import { secretOf, serverNameOf, type Claim, type Pod, type ReceiverSpec } from './receiverobjects.ts';

export interface ReceiversOptions {
  api: Api;
  namespace: string;
  authority: Pick<Authority, 'caPem' | 'pair'>;
  clock: Clock;
  /** By which locks and journals end. */
  trusted: Clock;
  /** Which leader this master is. */
  term: number;
  image: string;
  /** Of the nodes where receivers may run. */
  nodeSelector: Record<string, string>;
}

/** A removal waits so long for the receiver to come up, and for the pod to go. */
const patienceMs = 60_000;
const againMs = 500;
/** A certificate is made anew when less is left of it. */
const renewMs = 120 * 86_400_000;
/** A StorageClass that was there is looked for again after this. */
const classEveryMs = 30 * 60_000;

/** What is known of a replica that is open. */
interface Held {
  line: Line;
  claim: Claim;
  /** Of its receiver's certificate. */
  endMs: number;
}

export function receiverClass(options: ReceiversOptions, { metadata, spec }: StorageClass): StorageDriver {
  const { api, namespace, authority, clock, trusted, term } = options;
  const { storageClassName = '', accessMode = 'ReadWriteOnce' } = spec.parameters;
  const base = `/api/v1/namespaces/${namespace}`;
  const claims = `${base}/persistentvolumeclaims`;
  const pathsOf = (uid: string) => ({
    claim: `${claims}/${nameOf(uid)}`,
    pod: `${base}/pods/${nameOf(uid)}`,
    secret: `${base}/secrets/${nameOf(uid)}`,
  });
  const specOf = (uid: string, replication: string): ReceiverSpec => ({
    ...{ uid, replication, storageClassName, accessMode, storageClass: metadata.name },
    ...{ image: options.image, nodeSelector: options.nodeSelector },
  });

  const held = new Map<string, Held>();
  let classSeen: { againMs: number; remark: string | undefined } | undefined;

  async function get<T>(path: string): Promise<T | undefined> {
    return absent(() => api.request('GET', path)) as Promise<T | undefined>;
  }

  async function remove(path: string): Promise<void> {
    await absent(() => api.request('DELETE', path));
  }

  /** @throws TargetFailed */
  async function ensureClaim(wanted: ReceiverSpec, sourceBytes: OpenOptions['sourceBytes']): Promise<Claim> {
    const { claim: path } = pathsOf(wanted.uid);
    const found = await get<Claim>(path);
    if (found) {
      if (found.metadata.labels?.[replicaLabel] !== wanted.uid)
        throw new ReplicationError('TargetFailed', `the claim ${nameOf(wanted.uid)} is not of this master; remove it`);
      return found;
    }
    const bytes = await sourceBytes?.();
    if (bytes === undefined)
      throw new ReplicationError('TargetFailed', 'its claim waits until the agent has told how large the source is');
    return (await api.request('POST', claims, claimOf(wanted, bytes))) as Claim;
  }

  /** A receiver that runs reads a renewed one by itself. Answers when it ends. */
  async function ensureSecret(wanted: ReceiverSpec, claim: Claim): Promise<number> {
    const { secret: path } = pathsOf(wanted.uid);
    const found = await get<{ metadata: object; data?: Record<string, string> }>(path);
    const text = (key: string): string => Buffer.from(found?.data?.[key] ?? '', 'base64').toString();
    const endMs = endOf(text('tls.crt'));
    if (found && text('ca.crt') === authority.caPem && endMs - clock.nowMs() > renewMs) return endMs;
    const pair = await authority.pair('server', serverNameOf(wanted.uid));
    const secret = secretOf(metadataOf(wanted), claim.metadata, { caPem: authority.caPem, ...pair });
    await api.request(found ? 'PUT' : 'POST', found ? path : `${base}/secrets`, secret);
    return endOf(pair.certificatePem);
  }

  /** Answers its address. @throws ReceiverPending */
  async function ensurePod(wanted: ReceiverSpec, claim: Claim): Promise<string> {
    const { pod: path } = pathsOf(wanted.uid);
    const found = await get<Pod>(path);
    const pending = (why: string): never => {
      throw new ReplicationError('ReceiverPending', why);
    };
    if (!found) {
      await api.request('POST', `${base}/pods`, podOf(wanted));
      return pending(`pod ${nameOf(wanted.uid)} was made`);
    }
    const isOver = ['Failed', 'Succeeded'].includes(found.status?.phase ?? '');
    const isOld = found.spec.containers[0]?.image !== wanted.image;
    if (found.metadata.deletionTimestamp !== undefined) return pending(`pod ${nameOf(wanted.uid)} is ending`);
    if (isOver || isOld) {
      await remove(path);
      return pending(`pod ${nameOf(wanted.uid)} is replaced: ${isOver ? 'it has ended' : 'it runs another image'}`);
    }
    const trouble = podTrouble(found, claim);
    return trouble === undefined ? (found.status?.podIP ?? '') : pending(trouble);
  }

  async function dial(uid: string, host: string): Promise<Line> {
    const pair = await authority.pair('client', masterClientName);
    const client = connectReceiver({ host, port: receiverPort }, serverNameOf(uid), {
      caPem: authority.caPem,
      ...pair,
    });
    return { client, term, clock, trusted, release: () => client.close() };
  }

  /** All that a replica needs, and a line to its receiver. */
  async function reach(uid: string, replication: string, sourceBytes: OpenOptions['sourceBytes']): Promise<Held> {
    try {
      const wanted = specOf(uid, replication);
      const claim = await ensureClaim(wanted, sourceBytes);
      if (claim.metadata.deletionTimestamp !== undefined)
        throw new ReplicationError('TargetFailed', `the claim ${nameOf(uid)} is being deleted`);
      const endMs = await ensureSecret(wanted, claim);
      return { claim, endMs, line: await dial(uid, await ensurePod(wanted, claim)) };
    } catch (error) {
      if (error instanceof ReplicationError) throw error;
      throw new ReplicationError('TargetFailed', messageOf(error), { cause: error });
    }
  }

  /** One question to the receiver of a replica. */
  async function asked<T>(uid: string, question: (driver: StorageDriver) => Promise<T>): Promise<T> {
    const open = held.get(uid);
    try {
      if (open) return await question(receiverStorage(open.line));
    } catch (error) {
      if (!(error instanceof ReplicationError) || error.code !== 'Disconnected') throw error;
    }
    const { line } = await reach(uid, '', undefined);
    try {
      return await question(receiverStorage(line));
    } finally {
      line.release?.();
    }
  }

  async function patiently<T>(work: () => Promise<T | undefined>): Promise<T> {
    const endMs = clock.monotonicMs() + patienceMs;
    for (;;) {
      try {
        const done = await work();
        if (done !== undefined) return done;
        if (clock.monotonicMs() > endMs) throw new ReplicationError('TargetFailed', 'its pod does not end');
      } catch (error) {
        const isPassing = error instanceof ReplicationError && ['ReceiverPending', 'Disconnected'].includes(error.code);
        if (!isPassing || clock.monotonicMs() > endMs) throw error;
      }
      await clock.sleep(againMs);
    }
  }

  return {
    async open(options) {
      const { uid } = options;
      const reached = await reach(uid, options.name, options.sourceBytes);
      const release = (): void => {
        if (held.get(uid)?.line === line) held.delete(uid);
        reached.line.release?.();
      };
      const line: Line = { ...reached.line, release };
      held.set(uid, { ...reached, line });
      return receiverStorage(line).open(options);
    },

    async remove(uid) {
      const paths = pathsOf(uid);
      const claim = await get<Claim>(paths.claim);
      if (claim && claim.metadata.labels?.[replicaLabel] !== uid) return;
      // What is not bound has never held anything.
      if (claim?.status?.phase === 'Bound')
        await patiently(() => asked(uid, async (driver) => (await driver.remove(uid), true)));
      await remove(paths.pod);
      await patiently(async () => ((await get(paths.pod)) === undefined ? true : undefined));
      if (claim) {
        const annotations = { [`${group}/removable`]: 'true' };
        await absent(() => api.request('PATCH', paths.claim, { metadata: { annotations } }));
        await remove(paths.claim);
      }
      await remove(paths.secret);
    },

    async list() {
      const selector = encodeURIComponent(`${replicaLabel},${classLabel}=${metadata.name}`);
      const { items } = (await api.request('GET', `${claims}?labelSelector=${selector}`)) as { items: Claim[] };
      return items.flatMap(({ metadata }) => metadata.labels?.[replicaLabel] ?? []);
    },
    locks: (uid) => asked(uid, (driver) => driver.locks(uid)),
    usage: (uid) => asked(uid, (driver) => driver.usage(uid)),

    async tend(uid, sourceBytes) {
      const open = held.get(uid);
      const wanted = sourceBytes === undefined ? 0 : claimBytes(sourceBytes);
      const isSmall = ({ spec }: Claim): boolean => quantityBytes(spec.resources.requests.storage) < wanted;
      if (open && open.endMs - clock.nowMs() > renewMs && !isSmall(open.claim)) return;
      const claim = await get<Claim>(pathsOf(uid).claim);
      if (!claim) return;
      const endMs = await ensureSecret(specOf(uid, claim.metadata.annotations?.[`${group}/replication`] ?? ''), claim);
      const change = { spec: { resources: { requests: { storage: quantityOf(wanted) } } } };
      const now = isSmall(claim) ? ((await api.request('PATCH', pathsOf(uid).claim, change)) as Claim) : claim;
      if (open) Object.assign(open, { claim: now, endMs });
    },

    /** Of the whole class nobody can tell; that it is there can be told. */
    async space() {
      if (classSeen && clock.monotonicMs() < classSeen.againMs) return { remark: classSeen.remark };
      const path = `/apis/storage.k8s.io/v1/storageclasses/${storageClassName}`;
      const found = await get<{ reclaimPolicy?: string }>(path);
      if (!found) throw new Error(`there is no StorageClass ${storageClassName} in the cluster; make it`);
      const remark =
        found.reclaimPolicy === 'Retain'
          ? undefined
          : `reclaimPolicy of StorageClass ${storageClassName} is ${found.reclaimPolicy ?? 'Delete'}: who deletes a claim deletes the replica; Retain is safer`;
      classSeen = { againMs: clock.monotonicMs() + classEveryMs, remark };
      return { remark };
    },
    reflink: () => Promise.resolve(undefined),
  };
}

/** undefined: 404. */
export async function absent<T>(work: () => Promise<T>): Promise<T | undefined> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof ApiFault && error.status === 404) return undefined;
    throw error;
  }
}

function endOf(certificatePem: string): number {
  try {
    return Date.parse(new X509Certificate(certificatePem).validTo);
  } catch {
    return 0;
  }
}
