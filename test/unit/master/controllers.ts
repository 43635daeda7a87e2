/** A store with one storage class and one replication, and what the controllers of the master want around it. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { openDatabase } from '../../../master/database.ts';
import type { EventInput } from '../../../master/engine.ts';
import { apiVersion, type RecoveryType, type Replication, type Snapshot } from '../../../master/resources.ts';
import { sqliteStore } from '../../../master/store-sqlite.ts';
import { recoveryDraft } from '../../../master/api/recoveries.ts';
import { snapshotKey, type Store } from '../../../master/store.ts';
import type { VolumeMode } from '../../../proto/wire.ts';
import { systemClock, systemRandom } from '../../../proto/system.ts';

interface Test {
  teardown(work: () => Promise<void>): void;
}

export async function world(t: Test) {
  const folder = await mkdtemp(`${tmpdir()}/controllers-`);
  const database = openDatabase(':memory:');
  const store = sqliteStore(database, { clock: systemClock, random: systemRandom });
  const events: EventInput[] = [];
  const stop = new AbortController();
  const runs: Promise<void>[] = [];
  t.teardown(async () => {
    stop.abort();
    await Promise.all(runs);
    store.close();
    if (database.isOpen) database.close();
    await rm(folder, { recursive: true, force: true });
  });
  return {
    folder,
    store,
    events,
    emitter: { emit: (event: EventInput) => void events.push(event) } as never,
    signal: stop.signal,
    run: (work: Promise<void>) => void runs.push(work.catch(() => undefined)),
    stop,
  };
}

export function addClass(store: Store, name: string, path: string): void {
  store.create('StorageClass', name, {
    apiVersion,
    kind: 'StorageClass',
    metadata: { name },
    spec: { driver: 'directory', parameters: { path } },
    status: { capacityBytes: null, usedBytes: null, reflink: null, conditions: [] },
  });
}

export function addReplication(store: Store, name: string, storageClass = 'local', volumeMode: VolumeMode = 'Block') {
  return store.create('Replication', name, {
    apiVersion,
    kind: 'Replication',
    metadata: { name },
    spec: {
      source: { agent: 'node-a', path: '/dev/x', volumeMode, include: [], exclude: [] },
      target: { storageClass },
      trigger: { continuous: true },
      rpoSeconds: 30,
      consistency: null,
      maxFreezeMs: 500,
      snapshotSchedules: [],
      journalSeconds: 3600,
      maxJournalBytes: 64 * 2 ** 30,
      compression: 'auto',
      bandwidthBytesPerSecond: 0,
      readBytesPerSecond: 0,
      paused: false,
    },
    status: { fencingGeneration: '1', state: 'PREPARING', phase: 'Pending', conditions: [] },
    requests: { sync: 0, resync: 0, verify: 0, force: false },
  } as unknown as Replication);
}

export function addSnapshot(store: Store, replication: string, name: string, state: string): string {
  const key = snapshotKey(replication, name);
  store.create('Snapshot', key, {
    apiVersion,
    kind: 'Snapshot',
    metadata: { name },
    spec: { replication, pinned: false, lockedUntil: null },
    status: { state, message: null, point: null, readyTime: null },
  } as unknown as Snapshot);
  return key;
}

export function addRecovery(
  store: Store,
  name: string,
  replication: string,
  path: string,
  type: RecoveryType = 'drill',
) {
  return store.create('Recovery', name, {
    ...recoveryDraft(name, { replication, type, point: 'latest-data', target: { path } }),
  });
}

/** Waits for a condition; names it when it never comes. */
export async function until(what: string, done: () => unknown): Promise<void> {
  for (let left = 500; left > 0; left--) {
    if (await done()) return;
    await systemClock.sleep(20);
  }
  throw new Error(`never: ${what}`);
}
