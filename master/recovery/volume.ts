/**
 * What a recovery does with one volume: keeps the source from writing, chooses the point, makes the copy, has it checked,
 * and undoes all of it.
 *
 * Guarantees: a copy is handed out only whole, with its point's digest; a drill's only after every byte was read again.
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
import type { Replica } from '../replica/replica.ts';
import { demoted } from '../resources.ts';
import type { Recovery, Replication } from '../resources.ts';
import type { Store } from '../store.ts';
import { identityOf, mustBeFree, pathInGroup, removeCopy } from './copy.ts';
import { handOver, type FailbackOptions } from './failback.ts';
import { nextGeneration } from './generation.ts';
import type { Effects } from './loop.ts';
import { choosePoint, commonMoment, type Choosable } from './point.ts';

export interface VolumesOptions extends FailbackOptions {
  store: Store;
  clock: Clock;
  mirrors: Pick<Mirrors, 'replica' | 'view' | 'drilled'>;
  allow: Pick<Allow, 'mayWriteRecovery' | 'mayRun'>;
  /** Where copies go that name no path. */
  folder: string;
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
  const { store, clock, mirrors, allow, folder } = options;

  const volumeOf = ({ status }: Recovery, index: number): string => status.tasks[index]?.volume ?? '';
  const keyOf = (recovery: Recovery, index: number): string => `${recovery.metadata.uid}/${volumeOf(recovery, index)}`;

  function change(recovery: Recovery, how: (object: Recovery) => void): void {
    const { name, uid } = recovery.metadata;
    if (store.get('Recovery', name)?.metadata.uid === uid) store.update('Recovery', name, how);
  }

  /** @throws PointGone */
  function replicationOf(recovery: Recovery, index: number): Replication {
    const name = volumeOf(recovery, index);
    const found = store.get('Replication', name);
    if (!found) throw new ReplicationError('PointGone', `replication ${name} was deleted`);
    return found;
  }

  async function openReplica(recovery: Recovery, index: number, signal: AbortSignal): Promise<Replica> {
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

  function choosable({ metadata, status }: Replication, replica: Replica): Choosable {
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
      const replication = store.get('Replication', volumeOf(recovery, index));
      if (replication) members.push(choosable(replication, await openReplica(recovery, index, signal)));
    }
    const moment = commonMoment(spec.point, members);
    change(recovery, ({ job }) => (job.commonMs ??= moment ?? null));
    return store.get('Recovery', metadata.name)?.job.commonMs ?? undefined;
  }

  /** @throws TargetRefused */
  async function pathFor({ metadata, spec }: Recovery, replication: Replication): Promise<string> {
    const { group, target } = spec;
    const suffix = replication.spec.source.volumeMode === 'Block' ? '.raw' : '';
    // Names have no dots: no two recoveries have one path.
    const own = group === undefined ? metadata.name : `${metadata.name}.${replication.metadata.name}`;
    const chosen = target && (group === undefined ? target.path : pathInGroup(target.path, replication));
    return allow.mayWriteRecovery(chosen ?? `${folder}/${own}${suffix}`);
  }

  return {
    forget({ uid }) {
      for (const { key } of store.listRecords(copiesTable))
        if (key.startsWith(`${uid}/`)) store.putRecord(copiesTable, key, undefined);
    },

    async fence(recovery, index, signal) {
      const { uid } = recovery.metadata;
      const { metadata } = replicationOf(recovery, index);
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
      const from = choosable(replication, replica);
      const point = choosePoint(recovery.spec.point, from, await commonMs(recovery, signal));
      const path = await pathFor(recovery, replication);
      const view = mirrors.view(replication.metadata.uid, point);
      const isNewest = point.sequence === replica.newestPoint?.sequence;
      change(recovery, ({ spec, status, job }) => {
        Object.assign(status.tasks[index] ?? {}, { point: view, path });
        Object.assign(job.volumes[index] ?? {}, { goodAsOfMs: isNewest ? from.goodAsOfMs : point.sourceUs / 1000 });
        if (spec.group === undefined) status.point = view;
      });
      return undefined;
    },

    async copy(recovery, index, signal) {
      const key = keyOf(recovery, index);
      const replica = await openReplica(recovery, index, signal);
      const { spec, metadata } = replicationOf(recovery, index);
      const task = recovery.status.tasks[index];
      const point = pointBySequence(replica, task?.point?.sequence);
      const path = task?.path;
      if (!point || typeof path !== 'string')
        throw new ReplicationError('PointGone', `point ${task?.point?.sequence} is no longer kept; choose another one`);
      // What stands at a path that an earlier run of ours had begun is ours; anything else there was somebody's before.
      const before = store.getRecord(copiesTable, key);
      if (before !== undefined && (before === making || before === (await identityOf(path)))) await removeCopy(path);
      await mustBeFree(path, spec.source.volumeMode);
      await fs.mkdir(dirname(path), { recursive: true, mode: 0o700 });
      store.putRecord(copiesTable, key, making);
      let usableMs: number | undefined;
      let toldMs = -Infinity;
      const isDrill = recovery.spec.type === 'drill';
      try {
        const { verified, withheld } = await replica.recover(point, path, {
          verify: isDrill,
          signal,
          progress(text, bytesDone, bytesTotal) {
            const nowMs = clock.monotonicMs();
            if (text === 'verifying') usableMs ??= clock.nowMs();
            if (nowMs - toldMs < progressEveryMs) return;
            toldMs = nowMs;
            step(recovery, index, text, bytesDone, bytesTotal);
          },
        });
        const endMs = clock.nowMs();
        store.putRecord(copiesTable, key, await identityOf(path));
        change(recovery, ({ job }) =>
          Object.assign(job.volumes[index] ?? {}, { usableMs: usableMs ?? endMs, verified }),
        );
        if (isDrill) {
          await replica.noteDrill(point.sequence, Math.round(endMs * 1000));
          mirrors.drilled(metadata.uid, endMs);
        }
        if (withheld === 0) return undefined;
        return `${withheld} files lack an owner, attribute or type that the master may not give them`;
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
      let remark: string | undefined;
      // First, so that a copy that cannot be removed keeps no source from being mirrored.
      release(store, recovery.metadata.uid, volumeOf(recovery, index));
      if (path !== null && copy !== undefined) {
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

function pointBySequence(replica: Replica, sequence: number | undefined): Point | undefined {
  const inJournal = replica.points.find((point) => point.sequence === sequence);
  if (inJournal) return inJournal;
  const snapshots = replica.snapshotNames.map((name) => replica.snapshotPoint(name));
  return snapshots.find((point) => point?.sequence === sequence);
}
