/**
 * From an assignment to a Source on this node: the allow-list decides, then the kind of the volume.
 *
 * Guarantees: nothing is read that this node's own allow-list does not name, whatever the master asks.
 */
import { createHash } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import type { Allow } from '../proto/allow.ts';
import type { Clock } from '../proto/effects.ts';
import { ReplicationError } from '../proto/errors.ts';
import { systemClock } from '../proto/system.ts';
import type { Assignment } from '../proto/wire.ts';
import type { Consistency } from '../proto/wire.ts';
import type { BufferPool } from './blockscan.ts';
import { BlockSource } from './blocksource.ts';
import type { StorageCopies } from './capture/csicbt.ts';
import type { SnapshotOpener, Trackings } from './trackings.ts';
import { systemDevice } from './device-system.ts';
import type { Guard } from './guard.ts';
import { withHooks } from './hooks.ts';
import type { MirrorDependencies } from './mirror.ts';
import type { RestoreMarks } from './restoremarks.ts';
import type { Source } from './source.ts';
import type { TreeCopies } from './treecopies.ts';
import { TreeSource } from './treesource.ts';

export interface OpeningOptions {
  allow: Pick<Allow, 'mayRead' | 'mayRun'>;
  guard: Guard;
  pool: BufferPool;
  clock: Clock;
  dataDir: string;
  /** Resolved paths whose filesystems are never frozen. */
  protectedPaths: string[];
  kubelet: string;
  trackings: Trackings;
  marks: Pick<RestoreMarks, 'halfWritten' | 'forget'>;
  /** Of the cluster that a replication's volume is a claim of. */
  snapshots: (replicationUid: string) => SnapshotOpener;
  /** The same of a file volume. */
  treeCopies: (replicationUid: string, kind: StorageCopies) => Promise<TreeCopies>;
}

/** @throws SourceRefused, SourceGone, SourceHalfWritten */
export function sourceOpener(
  options: OpeningOptions,
): (assignment: Assignment, event: MirrorDependencies['event']) => Promise<Source> {
  const { allow, pool, clock, protectedPaths } = options;
  return async (assignment, event) => {
    const path = await allow.mayRead(assignment.path);
    const half = assignment.force ? undefined : await options.marks.halfWritten(path);
    if (half !== undefined) throw new ReplicationError('SourceHalfWritten', half);
    await options.marks.forget(path);
    const consistency = assignment.consistency === '' ? null : (assignment.consistency as Consistency);
    const { maxFreezeMs, readBytesPerSecond } = assignment;
    const dataDir = folderOf(options.dataDir, assignment.replicationUid);
    await mkdir(dataDir, { recursive: true, mode: 0o700 });
    const guard = await withHooks(options.guard, {
      beforeFreeze: assignment.beforeFreeze,
      afterThaw: assignment.afterThaw,
      timeoutSeconds: assignment.hookTimeoutSeconds,
      replication: assignment.name,
      mayRun: allow.mayRun,
      markerPath: `${dataDir}/after-thaw-owed`,
      warn: (message) => event({ code: 'HookFailed', level: 'WARNING', message }),
    });
    const { replicationUid: uid, snapshots, clones } = assignment;
    const copies = !snapshots ? undefined : clones ? 'clones' : 'snapshots';
    if (assignment.volumeMode === 'Block') {
      // Files' times are of the wall clock.
      const device = systemDevice({ path, clock: systemClock, guard, protectedPaths, kubelet: options.kubelet });
      const tracking = await options.trackings.of(
        uid,
        path,
        device,
        event,
        copies && { kind: copies, open: options.snapshots(uid) },
      );
      return new BlockSource({
        device,
        tracking,
        pool: pool.share(),
        clock,
        consistency,
        maxFreezeMs,
        ...(copies && { copies }),
        readBytesPerSecond,
        generation: assignment.fencingGeneration,
        event,
      });
    }
    return new TreeSource({
      path,
      dataDir,
      clock: systemClock,
      agentUs: () => Math.floor(clock.nowMs() * 1000),
      include: assignment.include,
      exclude: assignment.exclude,
      consistency,
      maxFreezeMs,
      cutIntervalSeconds: assignment.cutIntervalSeconds,
      readBytesPerSecond,
      force: assignment.force,
      generation: assignment.fencingGeneration,
      guard,
      protectedPaths,
      ...(copies && { copies: await options.treeCopies(uid, copies) }),
      event,
    });
  };
}

/** By uid: a replication that is created anew under an old name begins with nothing remembered. */
export function folderOf(dataDir: string, replicationUid: string): string {
  const folder = createHash('sha256').update(replicationUid).digest('hex').slice(0, 32);
  return `${dataDir}/replications/${folder}`;
}
