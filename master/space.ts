/** Keeps the storage classes' figures: capacity, used space, whether copies share blocks. */
import type { Clock } from '../proto/effects.ts';
import { messageOf } from '../proto/errors.ts';
import type { Events } from './engine.ts';
import type { Mirrors } from './mirrors.ts';
import type { StorageClassStatus } from './resources.ts';
import type { Store } from './store.ts';

const everyMs = 10_000;
/** Figures that move by less are not worth a write. */
const worthBytes = 1 << 20;

export async function runSpace(
  options: { store: Store; clock: Clock; mirrors: Mirrors; events: Events },
  signal: AbortSignal,
): Promise<void> {
  const { store, clock } = options;
  while (!signal.aborted) {
    for (const { metadata } of store.list('StorageClass')) await look(options, metadata.name);
    await clock.sleep(everyMs, signal).catch(() => undefined);
  }
}

async function look({ store, clock, mirrors, events }: Parameters<typeof runSpace>[0], name: string): Promise<void> {
  const before = store.get('StorageClass', name)?.status;
  const driver = mirrors.driver(name);
  if (!before || !driver) return;
  let next: Pick<StorageClassStatus, 'capacityBytes' | 'usedBytes' | 'reflink'> = {
    capacityBytes: null,
    usedBytes: null,
    reflink: null,
  };
  let trouble: string | undefined;
  try {
    const { capacityBytes, freeBytes } = await driver.space();
    next = { capacityBytes, usedBytes: capacityBytes - freeBytes, reflink: await driver.reflink() };
  } catch (error) {
    trouble = `the folder cannot be used: ${messageOf(error)}; mount it or correct the class`;
  }
  const status = trouble === undefined ? 'True' : 'False';
  const old = before.conditions[0];
  const moved = Math.abs((next.usedBytes ?? 0) - (before.usedBytes ?? -worthBytes)) >= worthBytes;
  if (old?.status === status && !moved && next.capacityBytes === before.capacityBytes) return;
  if (old?.status !== status && trouble !== undefined) {
    events.emit({ code: 'StorageTrouble', level: 'ERROR', message: trouble, object: `StorageClass/${name}` });
  }
  const lastTransitionTime = old?.status === status ? old.lastTransitionTime : new Date(clock.nowMs()).toISOString();
  const condition = {
    type: 'Available',
    status,
    reason: trouble === undefined ? 'Usable' : 'NotUsable',
    message: trouble ?? 'the folder can be written',
    lastTransitionTime,
  } as const;
  if (store.get('StorageClass', name)) {
    store.update('StorageClass', name, (object) => Object.assign(object.status, next, { conditions: [condition] }));
  }
}
