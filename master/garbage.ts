/**
 * What is on storage and belongs to nothing any more: replicas of replications that were deleted (kept on purpose, or not
 * removable then), and copies whose recovery was deleted. Listed, and removed only when somebody asks.
 *
 * Guarantees: only replicas that this master made are ever named - a class's folder may hold those of others; a replica with a
 * locked snapshot stays; what an object names is no garbage, asked again right before it is removed.
 * Failure: what cannot be removed stays in the list, and the answer says why.
 */
import { promises as fs } from 'node:fs';
import { dirname, join } from 'node:path';
import { messageOf } from '../proto/errors.ts';
import type { Mirrors } from './mirrors.ts';
import { filledTable, keptTable, madeTable } from './mirrorstorage.ts';
import { replicaUid } from './mirrorstate.ts';
import { removeTreeBase } from './replica/treebase.ts';
import type { Store } from './store.ts';

export interface Garbage {
  /** Copy: of a recovery that is gone. Replica: of a replication that is gone. */
  kind: 'Copy' | 'Replica';
  /** A copy's path, a replica's uid. */
  name: string;
  storageClass: string | null;
  sizeBytes: number | null;
  /** What it is, for people. */
  message: string;
  lockedUntil: string | null;
}
/** none: only looks. restored: copies. all: replicas too, kept ones with them. */
export type CleanupMode = 'none' | 'restored' | 'all';
export interface Cleanup {
  removed: Garbage[];
  left: Garbage[];
}

export interface GarbageOptions {
  store: Store;
  mirrors: Pick<Mirrors, 'driver'>;
  /** Where recoveries put copies that name no path. */
  folder: string;
}

export async function listGarbage(options: GarbageOptions): Promise<Garbage[]> {
  return [...(await copies(options)), ...(await replicas(options))];
}

export async function cleanUp(options: GarbageOptions, mode: CleanupMode): Promise<Cleanup> {
  const outcome: Cleanup = { removed: [], left: [] };
  for (const one of await listGarbage(options)) {
    if (mode === 'none' || (mode === 'restored' && one.kind === 'Replica')) outcome.left.push(one);
    else {
      try {
        await (one.kind === 'Copy' ? removeCopy(options, one) : removeReplica(options, one));
        outcome.removed.push(one);
      } catch (error) {
        outcome.left.push({ ...one, message: `${one.message}; not removed: ${messageOf(error)}` });
      }
    }
  }
  return outcome;
}

async function copies({ store, folder }: GarbageOptions): Promise<Garbage[]> {
  const found: Garbage[] = [];
  for (const entry of await fs.readdir(folder)) {
    const path = join(folder, entry);
    if (isNamed(store, path)) continue;
    const { size, blocks } = await fs.lstat(path);
    const sizeBytes = Math.min(size, blocks * 512);
    found.push({
      kind: 'Copy',
      name: path,
      storageClass: null,
      sizeBytes,
      message: 'its recovery is gone',
      lockedUntil: null,
    });
  }
  return found;
}

/** By a recovery's task, or by its own name before it has one; with what is staged beside it. */
function isNamed(store: Store, path: string): boolean {
  // Confirmed: it is a source now.
  const isSource = store
    .list('Replication')
    .some(({ spec: { source } }) => source.path === path || source.path.startsWith(`${path}/`));
  if (isSource) return true;
  return store.list('Recovery').some(({ metadata, status }) => {
    const own = [join(dirname(path), metadata.name), ...status.tasks.map((task) => task.path)];
    return own.some((known) => known !== null && (path === known || path.startsWith(`${known}.`)));
  });
}

async function replicas({ store, mirrors }: GarbageOptions): Promise<Garbage[]> {
  const made = new Map(store.listRecords(madeTable).map(({ key, value }) => [key, value]));
  const kept = new Set(store.listRecords(keptTable).map(({ key }) => key));
  const used = new Set(store.list('Replication').map(replicaUid));
  const found: Garbage[] = [];
  for (const { metadata } of store.list('StorageClass')) {
    const driver = mirrors.driver(metadata.name);
    for (const uid of (await driver?.list()) ?? []) {
      if (!driver || used.has(uid) || !(made.has(uid) || kept.has(uid))) continue;
      const usage = await driver.usage(uid);
      const lockedMs = Math.max(0, ...(await driver.locks(uid)).values());
      const of = `replica of ${made.get(uid) ?? 'a replication'}, which was deleted`;
      found.push({
        kind: 'Replica',
        name: uid,
        storageClass: metadata.name,
        sizeBytes: usage ? usage.baseBytes + usage.journalBytes + usage.snapshotBytes : null,
        message: kept.has(uid) ? `${of} and kept` : of,
        lockedUntil: lockedMs === 0 ? null : Number.isFinite(lockedMs) ? new Date(lockedMs).toISOString() : 'unknown',
      });
    }
  }
  return found;
}

async function removeCopy({ store }: GarbageOptions, { name }: Garbage): Promise<void> {
  if (isNamed(store, name)) throw new Error('a recovery names it now');
  if ((await fs.lstat(name)).isDirectory()) await removeTreeBase(name);
  else await fs.rm(name, { force: true });
}

async function removeReplica({ store, mirrors }: GarbageOptions, { name, storageClass }: Garbage): Promise<void> {
  if (store.list('Replication').some((one) => replicaUid(one) === name)) throw new Error('a replication has it');
  await mirrors.driver(storageClass ?? '')?.remove(name);
  store.putRecord(keptTable, name, undefined);
  store.putRecord(madeTable, name, undefined);
  store.putRecord(filledTable, name, undefined);
}
