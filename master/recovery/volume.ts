/**
 * What a recovery does with one volume: keeps the source from writing, chooses the point, makes the copy, has it checked,
 * and undoes all of it.
 *
 * Guarantees: a copy is handed out only whole, with its point's digest; a drill's only after every byte was read again (a failover's is
 * proven afterwards, see proof.ts).
 * What is removed is what this recovery made, by identity, and nothing else. From `fence` on no byte of the source reaches
 * the replica until `undo`; both are written down before they are in force. Each may be done twice.
 */
import { promises as fs } from 'node:fs';
import { dirname } from 'node:path';
import type { Allow } from '../../proto/allow.ts';
import type { Clock } from '../../proto/effects.ts';
import { asReplicationError, ReplicationError } from '../../proto/errors.ts';
import { runProgram } from '../../proto/program.ts';
import type { Mirrors } from '../mirrors.ts';
import type { Point } from '../replica/horizon.ts';
import { targetOf } from '../groups.ts';
import type { HeldReplica } from '../held.ts';
import { replicaUid } from '../mirrorstate.ts';
import type { FillOptions } from '../receiver/filling.ts';
import type { Copied } from '../replica/copies.ts';
import { demoted } from '../resources.ts';
import type { PointView, Recovery, Replication, StorageClass } from '../resources.ts';
import type { Store } from '../store.ts';
import {
  claimClass,
  claimFor,
  claimOfPath,
  goesToClaim,
  pathOfClaim,
  type ClaimName,
  type RecoveredClaims,
} from './claimtarget.ts';
import { identityOf, mustBeFree, pathInGroup, removeCopy } from './copy.ts';
import { dropFork, keepFork } from '../forks.ts';
import { handOver, type FailbackOptions } from './failback.ts';
import { nextGeneration } from './generation.ts';
import type { Effects } from './loop.ts';
import { choosePoint, commonMoment, type Choosable } from './point.ts';
import { mustBeWritable, removeStaged, stagedIndex, volumeOf, writeBack, type WriteBackOptions } from './writeback.ts';

export interface VolumesOptions extends FailbackOptions, WriteBackOptions {
  store: Store;
  clock: Clock;
  mirrors: Pick<Mirrors, 'replica' | 'view' | 'drilled'>;
  allow: Pick<Allow, 'mayWriteRecovery' | 'mayRun'>;
  /** Absent: the master lives in no cluster. */
  claims?: RecoveredClaims | undefined;
  /** Where copies go that name no path. */
  folder: string;
  /** Where the indexes of promoted points are kept. */
  forks: string;
}

const progressEveryMs = 500;
const againMs = 1000;
const maxOutputBytes = 4096;
/**
 * By `<recovery uid>/<volume>`: `making` while a copy is on its way, then the identity of the finished one, as its path may
 * hold something else by the time that it is rolled back.
 */
const copiesTable = 'recovered-copies';
const making = 'making';

export function volumeEffects(options: VolumesOptions): Effects {
  const { store, clock, mirrors, allow, folder, forks } = options;

  const volumeName = ({ status }: Recovery, index: number): string => status.tasks[index]?.volume ?? '';
  const keyOf = (recovery: Recovery, index: number): string =>
    `${recovery.metadata.uid}/${volumeName(recovery, index)}`;

  function change(recovery: Recovery, how: (object: Recovery) => void): void {
    const { name, uid } = recovery.metadata;
    if (store.get('Recovery', name)?.metadata.uid === uid) store.update('Recovery', name, how);
  }

  /** @throws PointGone */
  function replicationOf(recovery: Recovery, index: number): Replication {
    const name = volumeName(recovery, index);
    const found = store.get('Replication', name);
    if (!found) throw new ReplicationError('PointGone', `replication ${name} was deleted`);
    return found;
  }

  async function openReplica(recovery: Recovery, index: number, signal: AbortSignal): Promise<HeldReplica> {
    for (let waited = false; ; waited = true) {
      const { metadata } = replicationOf(recovery, index);
      const replica = mirrors.replica(metadata.uid);
      if (replica) return replica;
      if (!waited) step(recovery, index, 'waiting for the replica to be opened', 0, 0);
      await clock.sleep(againMs, signal);
    }
  }

  function step(recovery: Recovery, index: number, text: string, bytesDone: number, bytesTotal: number): void {
    change(recovery, ({ status }) => {
      const task = status.tasks[index];
      if (task) task.progress = { step: text, bytesDone, bytesTotal };
    });
  }

  function choosable(recovery: Recovery, index: number, replica: HeldReplica): Choosable {
    const { metadata, status, requests } = replicationOf(recovery, index);
    const ready = store
      .list('Snapshot')
      .filter(({ spec, status }) => spec.replication === metadata.name && status.state === 'Ready');
    const snapshots = ready.flatMap(({ metadata: { name } }): [string, Point][] => {
      const point = replica.snapshotPoint(name);
      return point ? [[name, point]] : [];
    });
    const newest = replica.newestPoint;
    const cutMs = (newest?.sourceUs ?? 0) / 1000;
    const isSame = status.recoveryPoint?.sequence === newest?.sequence && status.lastSyncTime !== null;
    return {
      replication: metadata.name,
      points: replica.points,
      snapshots: new Map(snapshots),
      goodAsOfMs: isSame ? Math.max(cutMs, Date.parse(status.lastSyncTime ?? '')) : cutMs,
      isFinal: requests.fencedBy === demoted || recovery.job.volumes[index]?.wasDemoted === true,
    };
  }

  /** What members of a group have in common: settled by the first of them, for all. */
  async function commonMs(recovery: Recovery, signal: AbortSignal): Promise<number | undefined> {
    const { spec, metadata, status } = recovery;
    if (spec.group === undefined) return undefined;
    const known = store.get('Recovery', metadata.name)?.job.commonMs;
    if (known !== null && known !== undefined) return known;
    const members: Choosable[] = [];
    for (const [index] of status.tasks.entries()) {
      if (!store.get('Replication', volumeName(recovery, index))) continue;
      members.push(choosable(recovery, index, await openReplica(recovery, index, signal)));
    }
    const moment = commonMoment(spec.point, members);
    change(recovery, ({ job }) => (job.commonMs ??= moment ?? null));
    return store.get('Recovery', metadata.name)?.job.commonMs ?? undefined;
  }

  /** @throws TargetRefused */
  async function pathFor({ metadata, spec }: Recovery, replication: Replication): Promise<string> {
    const { group } = spec;
    const target = targetOf(spec, replication.metadata.name);
    if (target?.agent !== undefined) return target.path;
    if (goesToClaim({ target }, classOf(replication)))
      return pathOfClaim(claimFor({ ...spec, target }, metadata.name, replication, inCluster().namespace));
    const suffix = replication.spec.source.volumeMode === 'Block' ? '.raw' : '';
    // Names have no dots: no two recoveries have one path.
    const own = group === undefined ? metadata.name : `${metadata.name}.${replication.metadata.name}`;
    const path = target?.path;
    const chosen = path !== undefined && group !== undefined ? pathInGroup(path, replication) : path;
    return allow.mayWriteRecovery(chosen ?? `${folder}/${own}${suffix}`);
  }

  function classOf({ spec }: Replication): StorageClass | undefined {
    return store.get('StorageClass', spec.target.storageClass);
  }

  function inCluster(): RecoveredClaims {
    if (options.claims) return options.claims;
    throw new ReplicationError('TargetRefused', 'claims are for masters that run with --kubernetes');
  }

  /** Each step at once, its figures now and then. */
  function telling(recovery: Recovery, index: number, onStep: (step: string) => void): FillOptions['progress'] {
    let told = { step: '', ms: -Infinity };
    return (text, bytesDone, bytesTotal) => {
      const ms = clock.monotonicMs();
      onStep(text);
      if (text === told.step && ms - told.ms < progressEveryMs) return;
      told = { step: text, ms };
      step(recovery, index, text, bytesDone, bytesTotal);
    };
  }

  /** Makes the claim and has it filled. What an earlier run of ours had begun, or made, is made anew. */
  async function copyToClaim(
    recovery: Recovery,
    index: number,
    { claim, point, usable, signal }: { claim: ClaimName; point: Point; usable: () => void; signal: AbortSignal },
  ): Promise<Copied> {
    const key = keyOf(recovery, index);
    const { uid: owner, name: ownerName } = recovery.metadata;
    const replication = replicationOf(recovery, index);
    const before = store.getRecord(copiesTable, key);
    if (before !== undefined) await inCluster().remove(claim, { owner, uid: before === making ? undefined : before });
    store.putRecord(copiesTable, key, making);
    try {
      const { uid, ...copied } = await inCluster().fill(
        {
          ...{ claim, owner, ownerName, replication: replication.metadata.name, replicaUid: replicaUid(replication) },
          ...claimClass(recovery.spec, classOf(replication)),
          volumeMode: replication.spec.source.volumeMode,
        },
        // One whose receiver was away is opened anew.
        () => openReplica(recovery, index, signal),
        point,
        {
          verify: recovery.spec.type === 'drill',
          signal,
          progress: telling(recovery, index, (text) => void (text === 'verifying' && usable())),
        },
      );
      store.putRecord(copiesTable, key, uid);
      return copied;
    } catch (error) {
      if (
        (await inCluster()
          .uidOf(claim)
          .catch(() => '')) === undefined
      )
        store.putRecord(copiesTable, key, undefined);
      throw error;
    }
  }

  /** Where the copy is made on this machine: what is handed out, or what is sent to an agent's volume from. */
  function copyPath({ metadata, spec }: Recovery, name: string, path: string): string {
    return volumeOf(spec, name) === undefined ? path : `${folder}/${metadata.name}.${name}.staged`;
  }

  async function removeMade(recovery: Recovery, name: string, path: string): Promise<void> {
    await (volumeOf(recovery.spec, name) === undefined ? removeCopy(path) : removeStaged(path));
  }

  return {
    forget({ uid }) {
      for (const { key } of store.listRecords(copiesTable))
        if (key.startsWith(`${uid}/`)) store.putRecord(copiesTable, key, undefined);
    },

    async fence(recovery, index, signal) {
      const { uid } = recovery.metadata;
      const { metadata, requests, spec: own } = replicationOf(recovery, index);
      const volume = volumeOf(recovery.spec, metadata.name);
      // The source is not stopped for what cannot be done.
      if (volume && requests.fencedBy !== uid)
        await mustBeWritable(options, volume, own.source.volumeMode, signal, () =>
          step(recovery, index, `waiting for agent ${volume.agent}`, 0, 0),
        );
      if (requests.fencedBy === demoted)
        change(recovery, ({ job }) => void Object.assign(job.volumes[index] ?? {}, { wasDemoted: true }));
      const { status } = store.update('Replication', metadata.name, ({ spec, status, requests }) => {
        if (requests.fencedBy === uid) return;
        if (requests.fencedBy !== undefined && requests.fencedBy !== demoted)
          throw new ReplicationError('Fenced', `${metadata.name} was promoted already; roll that back first`);
        requests.fencedBy = uid;
        delete requests.demoteSync;
        spec.replicationState = 'secondary';
        status.fencingGeneration = nextGeneration(status.fencingGeneration);
      });
      const replica = await openReplica(recovery, index, signal);
      await replica.fence(status.fencingGeneration);
      return undefined;
    },

    async choose(recovery, index, signal) {
      const replica = await openReplica(recovery, index, signal);
      const replication = replicationOf(recovery, index);
      const path = await pathFor(recovery, replication);
      const common = await commonMs(recovery, signal);
      // Chosen and pinned in one step: nothing may come between that drops it.
      const from = choosable(recovery, index, replica);
      const point = choosePoint(recovery.spec.point, from, common);
      const view = mirrors.view(replication.metadata.uid, point);
      const isNewest = point.sequence === replica.newestPoint?.sequence;
      change(recovery, ({ spec, status, job }) => {
        Object.assign(status.tasks[index] ?? {}, { point: view, path });
        const goodAsOfMs = isNewest ? from.goodAsOfMs : point.sourceUs / 1000;
        Object.assign(job.volumes[index] ?? {}, { stage: 'chosen', goodAsOfMs });
        if (spec.group === undefined) status.point = view;
      });
      return undefined;
    },

    async copy(recovery, index, signal) {
      const key = keyOf(recovery, index);
      const replica = await openReplica(recovery, index, signal);
      const replication = replicationOf(recovery, index);
      const { spec, metadata } = replication;
      const task = recovery.status.tasks[index];
      const point = keptPoint(replica, task?.point);
      const volume = volumeOf(recovery.spec, metadata.name);
      if (!point || typeof task?.path !== 'string') {
        // Another one is chosen when it is tried again.
        change(recovery, ({ spec, job }) =>
          Object.assign(job.volumes[index] ?? {}, { stage: spec.type === 'failover' ? 'fenced' : 'new' }),
        );
        throw new ReplicationError('PointGone', `point ${task?.point?.sequence} is no longer kept; choose another one`);
      }
      let usableMs: number | undefined;
      const claim = claimOfPath(task.path);
      const isDrill = recovery.spec.type === 'drill';
      const finish = async (verified: boolean, withheld: number): Promise<string | undefined> => {
        const endMs = clock.nowMs();
        // Of a claim all was looked at on its way. What is handed out unread has its point read whole afterwards (proof.ts).
        const isProven = verified || claim !== undefined;
        const isOwed = !isDrill && !isProven && replica.prove !== undefined;
        change(recovery, ({ status, job }) => {
          const volume = job.volumes[index];
          if (!volume) return;
          Object.assign(volume, { usableMs: usableMs ?? endMs, verified: isProven });
          if (isOwed) volume.replica = replicaUid(replication);
          else delete volume.replica;
          Object.assign(status.tasks[index] ?? {}, { verified: isOwed ? null : isProven });
        });
        if (isDrill) {
          await openReplica(recovery, index, signal).then((now) =>
            now.noteDrill(point.sequence, Math.round(endMs * 1000)),
          );
          mirrors.drilled(metadata.uid, endMs);
        }
        if (withheld === 0) return undefined;
        return `${withheld} files lack an owner, attribute or type that the master may not give them`;
      };
      if (claim) {
        const usable = (): void => void (usableMs ??= clock.nowMs());
        const { verified, withheld } = await copyToClaim(recovery, index, { claim, point, usable, signal });
        return finish(verified, withheld);
      }
      // What stands at a path that an earlier run of ours had begun is ours; anything else there was somebody's before.
      const path = copyPath(recovery, metadata.name, task.path);
      const before = store.getRecord(copiesTable, key);
      const isWhole = before !== undefined && before !== making && before === (await identityOf(path));
      // Its index: to send from, and to compare the old source with later.
      const isKept = volume !== undefined || !isDrill;
      // Beside where it stays: a copy may lie on another filesystem.
      const keptAt = volume ? stagedIndex(path) : `${forks}/${recovery.metadata.uid}.${metadata.uid}.index`;
      // Killed after the index became the fork's, it is staged anew: an empty index would empty what it is written to.
      const isStaged = isWhole && volume !== undefined && (await identityOf(keptAt)) !== undefined;
      const progress = telling(recovery, index, (text) => {
        if (text === 'verifying' && !volume) usableMs ??= clock.nowMs();
      });
      if (!isStaged) {
        if (isWhole || before === making) await removeMade(recovery, metadata.name, path);
        await mustBeFree(path, spec.source.volumeMode);
        await fs.mkdir(dirname(path), { recursive: true, mode: 0o700 });
        await fs.mkdir(forks, { recursive: true, mode: 0o700 });
        store.putRecord(copiesTable, key, making);
      }
      try {
        const made = isStaged
          ? { verified: false, withheld: 0 }
          : await replica.recover(point, path, {
              verify: isDrill && !volume,
              ...(isKept && { keepIndexAt: keptAt }),
              signal,
              progress,
            });
        if (volume) {
          store.putRecord(copiesTable, key, await identityOf(path));
          // Written over from here on: nothing of the old source's own is left to be compared.
          const { fork } = replication.requests;
          if (fork?.agent === volume.agent && fork.path === volume.path) dropFork(store, metadata.name);
          await writeBack(options, recovery, replication, point, path, signal, progress);
        }
        store.putRecord(copiesTable, key, await identityOf(path));
        if (!isDrill) await keepFork(store, forks, keptAt, recovery, replication, point.sequence);
        if (volume) await removeMade(recovery, metadata.name, path);
        // Its agent has read it whole.
        return await finish(made.verified || volume !== undefined, made.withheld);
      } catch (error) {
        // Those who make it have removed it.
        if (store.getRecord(copiesTable, key) === making) store.putRecord(copiesTable, key, undefined);
        throw asReplicationError(error);
      }
    },

    async check(recovery, index, signal) {
      const { spec, metadata } = replicationOf(recovery, index);
      const path = recovery.status.tasks[index]?.path ?? '';
      const [program, ...rest] = spec.check?.argv ?? [];
      if (!spec.check || program === undefined) return undefined;
      if (volumeOf(recovery.spec, metadata.name) ?? claimOfPath(path))
        return 'not checked by spec.check: it runs on the machine of the master';
      step(recovery, index, 'checking', 0, 0);
      const startMs = clock.monotonicMs();
      const { exitStatus, failure, output } = await runProgram(
        await allow.mayRun(program),
        rest.map((argument) => (argument === '{path}' ? path : argument)),
        {
          env: { REPLICATION: metadata.name, RECOVERY: recovery.metadata.name, RECOVERY_PATH: path },
          timeoutSeconds: spec.check.timeoutSeconds,
          maxOutputBytes,
          signal,
        },
      );
      const durationSeconds = Math.round(clock.monotonicMs() - startMs) / 1000;
      change(recovery, ({ status }) => {
        const task = status.tasks[index];
        if (task) task.check = { exitStatus, output, durationSeconds };
      });
      if (failure !== '')
        throw new ReplicationError(
          'CheckFailed',
          `the copy is at ${path}, but its check ${program} failed: ${failure}`,
        );
      return undefined;
    },

    async undo(recovery, index) {
      const key = keyOf(recovery, index);
      const path = recovery.status.tasks[index]?.path ?? null;
      const copy = store.getRecord(copiesTable, key);
      const volume = volumeOf(recovery.spec, volumeName(recovery, index));
      let remark: string | undefined;
      // First, so that a copy that cannot be removed keeps no source from being mirrored.
      release(store, recovery.metadata.uid, volumeName(recovery, index));
      if (store.get('Replication', volumeName(recovery, index))?.requests.fork?.recovery === recovery.metadata.name)
        dropFork(store, volumeName(recovery, index));
      if (volume && copy !== undefined) {
        const name = volumeName(recovery, index);
        await removeMade(recovery, name, copyPath(recovery, name, ''));
        const isDone = ['copied', 'ready'].includes(recovery.job.volumes[index]?.stage ?? 'new');
        const state = isDone
          ? 'holds what was recovered'
          : 'may be half written, and its agent mirrors it only by force';
        remark = `${volume.agent}:${volume.path} is left alone: it ${state}`;
        store.putRecord(copiesTable, key, undefined);
      } else if (path !== null && copy !== undefined && claimOfPath(path)) {
        const claim = claimOfPath(path) as ClaimName;
        const owner = { owner: recovery.metadata.uid, uid: copy === making ? undefined : copy };
        if (!(await inCluster().remove(claim, owner)))
          remark = `the copy was gone, and what is called ${path} now is not of this recovery: it is left alone`;
        store.putRecord(copiesTable, key, undefined);
      } else if (path !== null && copy !== undefined) {
        const present = await identityOf(path);
        if (copy === making || present === undefined || present === copy) await removeCopy(path);
        else remark = `the copy was gone, and what stands at ${path} now is not of this recovery: it is left alone`;
        store.putRecord(copiesTable, key, undefined);
      }
      return remark;
    },

    confirm: (recovery, index) => handOver(options, recovery, index),
  };
}

/** The source may write again, under a generation that nobody has had. */
function release(store: Store, recoveryUid: string, name: string): void {
  if (store.get('Replication', name)?.requests.fencedBy !== recoveryUid) return;
  store.update('Replication', name, ({ spec, status, requests }) => {
    delete requests.fencedBy;
    spec.replicationState = 'primary';
    status.fencingGeneration = nextGeneration(status.fencingGeneration);
  });
}

/**
 * What was chosen, if it is still kept. By number and digest: after damage to the journal commits that were lost with it have their
 * numbers again, for other content.
 */
export function keptPoint(
  replica: HeldReplica,
  chosen: Pick<PointView, 'sequence' | 'digest'> | null | undefined,
): Point | undefined {
  const isChosen = (point: Point | undefined): boolean =>
    point?.sequence === chosen?.sequence && point?.digest.toString('hex') === chosen?.digest;
  const snapshots = replica.snapshotNames.map((name) => replica.snapshotPoint(name));
  return replica.points.find(isChosen) ?? snapshots.find(isChosen);
}
