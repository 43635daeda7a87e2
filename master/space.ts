/**
 * Keeps the storage classes' figures - capacity, used space, whether copies share blocks - and what each replica holds,
 * and says ahead of time when a class is going to be too small (spacerule.ts).
 */
import type { Clock } from '../proto/effects.ts';
import { messageOf } from '../proto/errors.ts';
import type { Events } from './engine.ts';
import type { Mirrors } from './mirrors.ts';
import { replicaUid } from './mirrorstate.ts';
import type { Replication, StorageClassStatus } from './resources.ts';
import { needOf, shortage } from './spacerule.ts';
import type { StorageDriver, Usage } from './storage.ts';
import type { Store } from './store.ts';

const everyMs = 10_000;
/** What a replica holds is counted file by file: at most this part of the time goes into it, and never more often than that. */
const usagePart = 0.02;
const usageEveryMs = 60_000;
/** Figures that move by less are not worth a write. */
const worthBytes = 1 << 20;

export interface SpaceOptions {
  store: Store;
  clock: Clock;
  mirrors: Mirrors;
  events: Events;
  /** How large a source is, as far as its agent has told. */
  sourceBytes?: (source: Replication['spec']['source']) => Promise<number | undefined>;
}

export async function runSpace(options: SpaceOptions, signal: AbortSignal): Promise<void> {
  const { store, clock } = options;
  const known = new Map<string, Known>();
  while (!signal.aborted) {
    await lookAtReplicas(options, known, signal);
    for (const { metadata } of store.list('StorageClass')) await look(options, metadata.name);
    await clock.sleep(everyMs, signal).catch(() => undefined);
  }
}

interface Known {
  usage: Usage;
  againMs: number;
  /** Had a point: what is written before it is no change of the source. */
  initialized: boolean;
  /** What it had written when it was seen first after that. */
  written: { atMs: number; bytes: number };
}

async function lookAtReplicas(options: SpaceOptions, known: Map<string, Known>, signal: AbortSignal): Promise<void> {
  const { store, clock, mirrors } = options;
  const replications = store.list('Replication');
  const uids = new Set(replications.map(({ metadata }) => metadata.uid));
  for (const uid of known.keys()) if (!uids.has(uid)) known.delete(uid);
  for (const replication of replications) {
    const { metadata, spec } = replication;
    signal.throwIfAborted();
    const replica = mirrors.replica(metadata.uid);
    const startMs = clock.monotonicMs();
    const before = known.get(metadata.uid);
    if (!replica || (before && startMs < before.againMs)) continue;
    const driver = mirrors.driver(spec.target.storageClass);
    // Storage that cannot be read says so where it is used.
    const usage = await driver?.usage(replicaUid(replication)).catch(() => undefined);
    await tend(options, replication, driver);
    const endMs = clock.monotonicMs();
    if (!usage) continue;
    const againMs = endMs + Math.max(usageEveryMs, (endMs - startMs) / usagePart);
    const written = before?.initialized === true ? before.written : { atMs: startMs, bytes: replica.writtenBytes };
    known.set(metadata.uid, { usage, againMs, written, initialized: replica.newestPoint !== undefined });
  }
  const snapshots = Map.groupBy(store.list('Snapshot'), ({ spec }) => spec.replication);
  for (const [name, group] of Map.groupBy(replications, ({ spec }) => spec.target.storageClass)) {
    const status = store.get('StorageClass', name)?.status;
    if (!status) continue;
    let [need, held] = [0, 0];
    for (const { metadata, spec } of group) {
      const one = known.get(metadata.uid);
      const replica = mirrors.replica(metadata.uid);
      if (!one || !replica) continue;
      const own = (snapshots.get(metadata.name) ?? []).filter(({ status }) => status.state === 'Ready');
      const seconds = Math.max(60, (clock.monotonicMs() - one.written.atMs) / 1000);
      need += needOf({
        ...one.usage,
        ...spec,
        changedBytesPerSecond: Math.max(0, replica.writtenBytes - one.written.bytes) / 2 / seconds,
        schedules: spec.snapshotSchedules,
        snapshots: own.length,
        scheduledSnapshots: own.filter(({ status }) => status.schedule !== null).length,
        reflink: status.reflink === true,
      });
      const { baseBytes, journalBytes, snapshotBytes } = one.usage;
      held += baseBytes + journalBytes + (status.reflink === true ? 0 : snapshotBytes);
    }
    const freeBytes = (status.capacityBytes ?? Infinity) - (status.usedBytes ?? 0);
    const message = shortage(name, need, held, freeBytes);
    for (const { metadata } of group) {
      const { usage } = known.get(metadata.uid) ?? {};
      const used = usage && usage.baseBytes + usage.journalBytes + usage.snapshotBytes;
      mirrors.space(
        metadata.uid,
        used,
        message === undefined ? undefined : { reason: 'SpaceLow', message, stops: false },
      );
    }
  }
}

async function tend(
  { sourceBytes, events }: SpaceOptions,
  replication: Replication,
  driver: StorageDriver | undefined,
): Promise<void> {
  const { spec, metadata } = replication;
  if (!driver?.tend) return;
  try {
    await driver.tend(replicaUid(replication), await sourceBytes?.(spec.source));
  } catch (error) {
    const message = `its place cannot follow the source: ${messageOf(error)}`;
    events.emit({ code: 'StorageTrouble', level: 'WARNING', message, object: `Replication/${metadata.name}` });
  }
}

async function look({ store, clock, mirrors, events }: SpaceOptions, name: string): Promise<void> {
  const before = store.get('StorageClass', name)?.status;
  const driver = mirrors.driver(name);
  if (!before || !driver) return;
  let next: Pick<StorageClassStatus, 'capacityBytes' | 'usedBytes' | 'reflink'> = {
    capacityBytes: null,
    usedBytes: null,
    reflink: null,
  };
  let trouble: string | undefined;
  let remark: string | undefined;
  try {
    const { capacityBytes, freeBytes, remark: found } = await driver.space();
    const isTold = capacityBytes !== undefined && freeBytes !== undefined;
    const told = isTold ? { capacityBytes, usedBytes: capacityBytes - freeBytes } : {};
    next = { ...next, ...told, reflink: (await driver.reflink()) ?? null };
    remark = found;
  } catch (error) {
    trouble = `the storage cannot be used: ${messageOf(error)}; mount it or correct the class`;
  }
  const status = trouble === undefined ? 'True' : 'False';
  const old = before.conditions[0];
  const moved = next.usedBytes !== null && Math.abs(next.usedBytes - (before.usedBytes ?? -worthBytes)) >= worthBytes;
  const message = trouble ?? remark ?? 'it can be written';
  const isSame = old?.status === status && old.message === message;
  if (isSame && !moved && next.capacityBytes === before.capacityBytes) return;
  if (old?.status !== status && trouble !== undefined) {
    events.emit({ code: 'StorageTrouble', level: 'ERROR', message: trouble, object: `StorageClass/${name}` });
  }
  if (remark !== undefined && old?.message !== remark)
    events.emit({ code: 'StorageTrouble', level: 'WARNING', message: remark, object: `StorageClass/${name}` });
  const lastTransitionTime = old?.status === status ? old.lastTransitionTime : new Date(clock.nowMs()).toISOString();
  const condition = {
    type: 'Available',
    status,
    reason: trouble === undefined ? 'Usable' : 'NotUsable',
    message,
    lastTransitionTime,
  } as const;
  if (store.get('StorageClass', name)) {
    store.update('StorageClass', name, (object) => Object.assign(object.status, next, { conditions: [condition] }));
  }
}
