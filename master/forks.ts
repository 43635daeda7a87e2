/**
 * Writes on both sides of a promotion: what the old source holds that its replica's point of departure does not. When the point was
 * copied its index was kept (16 bytes for each 64 KiB, and the state of each entry of a tree); the old source's agent, whenever it is
 * there, answers offers of it.
 *
 * Guarantees: nothing is written on either side; what was found stands in the status until a later comparison, or until a person
 * decides (resync with force gives the old source's writes up; a rollback gives the new side's up), or the volume is written over
 * by a recovery. Failure: an agent that is away is waited for; a comparison that fails is tried again.
 */
import { mkdir, rename } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Clock } from '../proto/effects.ts';
import { asReplicationError, messageOf, ReplicationError } from '../proto/errors.ts';
import { asTheyAre, derived, find } from './derived.ts';
import type { Events } from './engine.ts';
import { differs, figuresOf, forkText, maxRanges } from './forktext.ts';
import { replicaUid } from './mirrorstate.ts';
import { comparePoint, type OfferOptions, type RestoreCall } from './offering.ts';
import { BlockIndex } from './replica/blockindex.ts';
import { removeIndex } from './replica/indexdatabase.ts';
import { TreeIndex } from './replica/treeindex.ts';
import type { ForkFound, Recovery, Replication } from './resources.ts';
import type { Restores } from './restores.ts';
import { pauseAfter } from './pacing.ts';
import type { Store } from './store.ts';
import { compareTree } from './treedifference.ts';

const lookEveryMs = 1000;
/** Reading the volume takes at most a twentieth of the time, once it was read whole. */
const restFactor = 20;
const leastRestMs = 60_000;

/** Of a replica: the index of the point at which its last promotion departed. */
export function forkIndex(folder: string, replication: Pick<Replication, 'metadata' | 'requests'>): string {
  return `${folder}/${replicaUid(replication)}.db`;
}

/** The index of a copy becomes the one of the fork; from now on the old source is compared with it. */
export async function keepFork(
  store: Store,
  folder: string,
  index: string,
  recovery: Recovery,
  replication: Replication,
  sequence: number,
): Promise<void> {
  const kept = forkIndex(folder, replication);
  await mkdir(dirname(kept), { recursive: true, mode: 0o700 });
  await removeIndex(kept);
  await rename(index, kept);
  const { agent, path, include, exclude } = replication.spec.source;
  store.update('Replication', replication.metadata.name, ({ requests }) => {
    const filter = { ...(include.length > 0 && { include }), ...(exclude.length > 0 && { exclude }) };
    requests.fork = { agent, path, sequence, recovery: recovery.metadata.name, ...filter, found: null };
  });
}

export function dropFork(store: Store, name: string): void {
  if (store.get('Replication', name)?.requests.fork !== undefined)
    store.update('Replication', name, ({ requests }) => void delete requests.fork);
}

export interface ForksOptions {
  store: Store;
  clock: Clock;
  events: Events;
  restores: Pick<Restores, 'run'>;
  connected: (agent: string) => boolean;
  folder: string;
}

export async function runForks(options: ForksOptions, signal: AbortSignal): Promise<void> {
  const { store, clock } = options;
  /** By replication and fork: when it is compared next. */
  const dueMs = new Map<string, number>();
  const running = new Set<Promise<void>>();
  const forked = derived(store, (all) => all.filter(({ requests }) => requests.fork !== undefined).map(find));
  while (!signal.aborted) {
    const lookMs = clock.monotonicMs();
    for (const replication of asTheyAre(store, forked())) {
      const { fork } = replication.requests;
      const key = `${replication.metadata.uid}/${fork?.recovery}/${fork?.sequence}`;
      if (!fork || !options.connected(fork.agent) || clock.monotonicMs() < (dueMs.get(key) ?? 0)) continue;
      dueMs.set(key, Infinity);
      const startMs = clock.monotonicMs();
      const work = compare(options, replication, signal)
        .then(
          () => false,
          (error: unknown) => {
            if (asReplicationError(error).code === 'Stopped') return true;
            tell(options, replication, 'WARNING', 'ForkTrouble', messageOf(error), signal);
            return false;
          },
        )
        .then((isBrokenOff) => {
          const tookMs = clock.monotonicMs() - startMs;
          // As long as nothing is known, people wait for it: an agent that has gone and come back is asked at once.
          const isAwaited = isBrokenOff && fork.found === null;
          dueMs.set(key, isAwaited ? 0 : clock.monotonicMs() + Math.max(leastRestMs, restFactor * tookMs));
          running.delete(work);
        });
      running.add(work);
    }
    await clock.sleep(pauseAfter(lookEveryMs, clock.monotonicMs() - lookMs), signal).catch(() => undefined);
  }
  await Promise.all(running);
}

async function compare(options: ForksOptions, replication: Replication, stop: AbortSignal): Promise<void> {
  const { store, clock, restores } = options;
  const { metadata, spec, status, requests } = replication;
  const { fork } = requests;
  if (!fork) return;
  const isSame = (): boolean => {
    const now = store.get('Replication', metadata.name)?.requests.fork;
    return now?.recovery === fork.recovery && now.sequence === fork.sequence;
  };
  // Given up meanwhile: nobody waits for an agent that has gone.
  const over = new AbortController();
  const signal = AbortSignal.any([stop, over.signal]);
  const watching = (async () => {
    while (!signal.aborted) {
      if (!isSame() || !options.connected(fork.agent)) over.abort(new Error('it is not compared any more'));
      await clock.sleep(lookEveryMs, signal).catch(() => undefined);
    }
  })();
  const kept = forkIndex(options.folder, replication);
  const index = spec.source.volumeMode === 'Block' ? new BlockIndex(kept) : new TreeIndex(kept);
  try {
    const { sizeBytes } = index;
    // A new one is made of what is not there.
    if (!index.newest)
      throw new ReplicationError('ReplicaDamaged', `the index of point ${fork.sequence} at ${kept} is gone`);
    const restore = {
      ...{ uid: `fork/${metadata.uid}`, name: fork.recovery, replicaUid: replicaUid(replication) },
      ...{ fencingGeneration: status.fencingGeneration, path: fork.path, volumeMode: spec.source.volumeMode },
      ...{ sizeBytes, compare: true, include: fork.include ?? [], exclude: fork.exclude ?? [] },
    };
    const from = { uid: restore.uid, generation: restore.fencingGeneration, progress: () => undefined };
    const difference = await restores.run(
      fork.agent,
      restore,
      (call, line) => differenceFrom(call, index, { ...from, signal: line }),
      signal,
    );
    if (!isSame()) return;
    const found = { ...difference, comparedTime: new Date(clock.nowMs()).toISOString() };
    store.update('Replication', metadata.name, ({ requests }) => {
      if (requests.fork) requests.fork.found = found;
    });
    const isFork = differs(found);
    const wasFork = fork.found !== null && differs(fork.found);
    if (isFork ? fork.found && figuresOf(found) === figuresOf(fork.found) : !wasFork) return;
    const message = isFork
      ? forkText({ ...fork, found })
      : `${fork.agent}:${fork.path} is as point ${fork.sequence} again`;
    tell(options, replication, isFork ? 'ERROR' : 'INFO', 'SplitBrain', message, stop);
  } finally {
    over.abort();
    await watching;
    index.close();
  }
}

async function differenceFrom(
  call: RestoreCall,
  index: BlockIndex | TreeIndex,
  options: Pick<OfferOptions, 'uid' | 'generation' | 'signal' | 'progress'>,
): Promise<Omit<ForkFound, 'comparedTime'>> {
  if (index instanceof TreeIndex) return { ...(await compareTree(call, index, options)), granules: null, ranges: null };
  const { sizeBytes } = index;
  const content = { sizeBytes, hashes: (first: number, count: number) => index.hashes(first, count) };
  return { ...(await comparePoint(call, content, options, maxRanges)), entries: null, paths: null };
}

function tell(
  { events }: ForksOptions,
  { metadata }: Replication,
  level: 'ERROR' | 'WARNING' | 'INFO',
  code: string,
  message: string,
  signal: AbortSignal,
): void {
  if (!signal.aborted) events.emit({ code, level, message, object: `Replication/${metadata.name}` });
}
