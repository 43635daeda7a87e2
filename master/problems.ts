/** What a schema cannot say of what is asked for: paths of this machine, and of the agents as far as they have told. */
import { type Allow, refusedBySystem } from '../proto/allow.ts';
import { messageOf } from '../proto/errors.ts';
import type { VolumeMode } from '../proto/wire.ts';
import type { Engine } from './engine.ts';
import { mustBeFree } from './recovery/copy.ts';
import { claimClass, claimFor, type RecoveredClaims } from './recovery/claimtarget.ts';
import type { RecoverySpec, Replication, ReplicationSpec, StorageClassSpec } from './resources.ts';
import type { Store } from './store.ts';

/** A folder may be anywhere but in what the system or this program keeps; `volumes` below our own folder is meant for it. */
export function classProblems(
  { driver, parameters }: StorageClassSpec,
  dir: string,
  inCluster: boolean,
): { path: string; message: string }[] {
  const { path, storageClassName, accessMode } = parameters;
  const problem = (field: string, message: string) => [{ path: `spec.${field}`, message }];
  if (driver === 'kubernetes') {
    if (!inCluster) return problem('driver', 'kubernetes is for masters that run with --kubernetes; use directory');
    if (path !== undefined) return problem('parameters.path', 'is for driver directory; leave it out');
    return storageClassName === undefined
      ? problem('parameters.storageClassName', 'must name a StorageClass of the cluster')
      : [];
  }
  if (storageClassName !== undefined || accessMode !== undefined) {
    const field = storageClassName === undefined ? 'accessMode' : 'storageClassName';
    return problem(`parameters.${field}`, 'is for driver kubernetes; leave it out');
  }
  if (path === undefined) return problem('parameters.path', 'must be the folder where replicas lie');
  const refusal =
    refusedBySystem(path, false) ??
    (ownRefusal(path, dir) ? `is this master's own data; use ${dir}/volumes or another folder` : undefined);
  return refusal === undefined ? [] : problem('parameters.path', refusal);
}

export async function targetProblems(
  { mayWriteRecovery }: Pick<Allow, 'mayWriteRecovery'>,
  path: string,
  mode: VolumeMode,
): Promise<{ path: string; message: string }[]> {
  try {
    await mustBeFree(await mayWriteRecovery(path), mode);
    return [];
  } catch (error) {
    return [{ path: 'target.path', message: messageOf(error) }];
  }
}

export async function claimProblems(
  claims: RecoveredClaims,
  store: Pick<Store, 'get'>,
  spec: RecoverySpec,
  replication: Replication,
): Promise<{ path: string; message: string }[]> {
  const storageClass = store.get('StorageClass', replication.spec.target.storageClass);
  // A name that is yet to be made is of nobody.
  if (!spec.target?.pvc) return [];
  const { storageClassName } = claimClass(spec, storageClass);
  const problem = await claims.problem(claimFor(spec, '', replication, claims.namespace), storageClassName);
  return problem === undefined ? [] : [{ path: 'target.pvc', message: problem }];
}

function ownRefusal(path: string, dir: string): boolean {
  const volumes = `${dir}/volumes`;
  if (path === volumes || path.startsWith(`${volumes}/`)) return false;
  return path === dir || path.startsWith(`${dir}/`) || dir.startsWith(`${path}/`);
}

/** An address that means "all of them" names nobody. */
export function problemsOf(
  spec: ReplicationSpec,
  volumes: ReturnType<Engine['volumes']>,
): { path: string; message: string }[] {
  const problems: { path: string; message: string }[] = [];
  const { consistency, source } = spec;
  if (consistency === 'file' && source.volumeMode === 'Block') {
    problems.push({
      path: 'spec.consistency',
      message: '"file" is for volumeMode Filesystem; use filesystem or crash',
    });
  }
  const { copyMethod } = spec;
  if (copyMethod === 'Snapshot' || copyMethod === 'Clone') {
    const why =
      source.pvc === undefined
        ? `${copyMethod} needs source.pvc: its cluster takes the ${copyMethod === 'Snapshot' ? 'VolumeSnapshots' : 'clones'}`
        : consistency === 'filesystem' || consistency === 'file'
          ? `${copyMethod} makes crash-consistent points: leave consistency out, or use Direct`
          : undefined;
    if (why !== undefined) problems.push({ path: 'spec.copyMethod', message: why });
  }
  if (source.volumeSnapshotClassName !== undefined && copyMethod !== 'Snapshot')
    problems.push({
      path: 'spec.source.volumeSnapshotClassName',
      message: 'is of VolumeSnapshots: use copyMethod Snapshot',
    });
  if (source.storageClassName !== undefined && copyMethod === 'Direct')
    problems.push({
      path: 'spec.source.storageClassName',
      message: 'is of what shows snapshots and clones: use copyMethod Snapshot or Clone',
    });
  const volume = volumes.find(({ path }) => path === source.path);
  if (volume && !volume.eligible)
    problems.push({ path: 'spec.source.path', message: volume.reason ?? 'is not eligible' });
  return problems;
}
