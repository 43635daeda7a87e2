/**
 * Recovering into a volume of an agent's node: a staged copy of the point here, and what of it the volume lacks sent there.
 *
 * Guarantees: asked before anything is fenced whether the volume may be written now (of an agent that is away for up to half
 * a minute: after a start of the master they all are); done only when the agent has read the
 * volume whole and it has the point's digest. A start of the master goes on with the staged copy where it is whole; what the
 * volume has already is not sent again. Failure: an agent that is away is waited for; what it refuses fails the volume.
 */
import { promises as fs } from 'node:fs';
import type { Clock } from '../../proto/effects.ts';
import { ReplicationError } from '../../proto/errors.ts';
import { Pace } from '../../proto/pace.ts';
import { sendPoint, type Content } from '../offering.ts';
import { BlockIndex } from '../replica/blockindex.ts';
import type { Point } from '../replica/horizon.ts';
import { removeIndex } from '../replica/indexdatabase.ts';
import { TreeIndex } from '../replica/treeindex.ts';
import type { VolumeMode } from '../../proto/wire.ts';
import { sendTree } from '../treeoffering.ts';
import { removeCopy } from './copy.ts';
import type { AgentVolume, Recovery, Replication } from '../resources.ts';
import type { Restores } from '../restores.ts';
import { targetOf } from '../groups.ts';
import { replicaUid } from '../mirrorstate.ts';

export interface WriteBackOptions {
  clock: Clock;
  restores: Pick<Restores, 'run'>;
  look: (agent: string, path: string, write?: boolean) => Promise<AgentVolume | undefined>;
}

/** Where the volume is that a recovery writes; undefined: it makes a new copy on this machine. */
export function volumeOf(spec: Recovery['spec'], member: string): { agent: string; path: string } | undefined {
  const target = targetOf(spec, member);
  return target?.agent === undefined ? undefined : { agent: target.agent, path: target.path };
}

const answerMs = 30_000;
const askAgainMs = 500;

export const stagedIndex = (staged: string): string => `${staged}.index`;

export async function removeStaged(staged: string): Promise<void> {
  await removeCopy(staged);
  await removeIndex(stagedIndex(staged));
}

/** @throws TargetRefused, also when the agent has not answered in `answerMs` */
export async function mustBeWritable(
  { clock, look }: Pick<WriteBackOptions, 'clock' | 'look'>,
  { agent, path }: { agent: string; path: string },
  volumeMode: VolumeMode,
  signal: AbortSignal,
  waiting: () => void,
): Promise<void> {
  const untilMs = clock.monotonicMs() + answerMs;
  let volume = await look(agent, path, true);
  if (!volume) waiting();
  while (!volume && clock.monotonicMs() < untilMs) {
    await clock.sleep(askAgainMs, signal);
    volume = await look(agent, path, true);
  }
  if (!volume)
    throw new ReplicationError(
      'TargetRefused',
      `agent ${agent} does not say whether ${path} may be written: start it, upgrade it if it is older than this master, and try again`,
    );
  if (!volume.eligible)
    throw new ReplicationError('TargetRefused', `${agent}: ${volume.reason ?? `${path} is refused`}`);
  if (volume.volumeMode !== volumeMode) throw new ReplicationError('TargetRefused', otherMode(agent, path, volumeMode));
}

export function otherMode(agent: string, path: string, volumeMode: VolumeMode): string {
  return `${agent}:${path} is ${volumeMode === 'Block' ? 'a directory, and the volume is a block volume' : 'no directory, and the volume is a file volume'}`;
}

/** From the staged copy into the volume. */
export async function writeBack(
  { clock, restores }: Pick<WriteBackOptions, 'clock' | 'restores'>,
  recovery: Recovery,
  replication: Replication,
  point: Point,
  staged: string,
  signal: AbortSignal,
  progress: (step: string, done: number, total: number) => void,
): Promise<void> {
  const { spec, metadata, status } = replication;
  const volume = volumeOf(recovery.spec, metadata.name);
  if (!volume) return;
  const index =
    spec.source.volumeMode === 'Block' ? new BlockIndex(stagedIndex(staged)) : new TreeIndex(stagedIndex(staged));
  const { sizeBytes, newest } = index;
  if (!newest) {
    // A blank one was made in its place: with that nothing would be sent, and everything there removed.
    index.close();
    await removeIndex(stagedIndex(staged));
    throw new ReplicationError('ReplicaDamaged', `${stagedIndex(staged)} is gone; retry`);
  }
  const restore = {
    uid: `${recovery.metadata.uid}/${metadata.name}`,
    name: recovery.metadata.name,
    replicaUid: replicaUid(replication),
    fencingGeneration: status.fencingGeneration,
    path: volume.path,
    volumeMode: spec.source.volumeMode,
    sizeBytes,
    ...{ compare: false, include: [], exclude: [] },
  };
  const pace = new Pace(clock, spec.bandwidthBytesPerSecond);
  const { uid, fencingGeneration: generation } = restore;
  const options = { uid, generation, compression: spec.compression, pace, progress };
  progress(`waiting for agent ${volume.agent}`, 0, index instanceof TreeIndex ? index.contentBytes : sizeBytes);
  try {
    if (index instanceof TreeIndex) {
      const tree = { index, path: staged };
      return await restores.run(
        volume.agent,
        restore,
        async (call, line) => void (await sendTree(call, tree, point, { ...options, signal: line })),
        signal,
      );
    }
    await using image = await fs.open(staged, 'r');
    const content: Content = {
      sizeBytes,
      hashes: (first, count) => index.hashes(first, count),
      async read(buffer, position) {
        const { bytesRead } = await image.read(buffer, 0, buffer.length, position);
        if (bytesRead < buffer.length)
          throw new ReplicationError('ReplicaDamaged', `${staged} is short at ${position + bytesRead}`);
      },
    };
    // Awaited here: else the image is closed under it.
    return await restores.run(
      volume.agent,
      restore,
      async (call, line) => void (await sendPoint(call, content, point, { ...options, signal: line })),
      signal,
    );
  } finally {
    index.close();
  }
}
