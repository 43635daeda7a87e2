/**
 * A tree that the master writes into a folder of this node: the receiving side of Restore for file volumes. First come the nodes
 * of the point, then `manifest` asks which of its files' content the folder lacks, then that is offered or comes at once.
 */
import type { Clock } from '../proto/effects.ts';
import { ReplicationError } from '../proto/errors.ts';
import { nodeBatches } from '../proto/nodebatch.ts';
import type { Stream } from '../proto/stream.ts';
import type { Commit, MirrorReply, MirrorRequest } from '../proto/wire.ts';
import type { TreeWriter } from './treewriter.ts';

const progressEveryMs = 500;

/** @param settled called with what the folder holds by now, before the master hears of it */
export async function receiveTree(
  clock: Clock,
  folder: TreeWriter,
  call: Stream<MirrorReply, MirrorRequest>,
  settled: (commit: Commit, digest: Buffer) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  let toldMs = clock.monotonicMs();
  const progress = async (bytesDone: number, bytesTotal: number): Promise<void> => {
    if (clock.monotonicMs() - toldMs < progressEveryMs) return;
    toldMs = clock.monotonicMs();
    await call.send({ verifyProgress: { bytesDone, bytesTotal } });
  };
  let digest: Buffer | undefined;
  for await (const { number, nodes, manifest, offer, data, verify, commit } of call.receive) {
    signal.throwIfAborted();
    if (nodes) folder.nodes(nodes);
    else if (manifest) await tellLacking(folder, call, progress, signal);
    else if (offer) await call.send({ want: { number, bitmap: folder.want(offer) } });
    else if (data) {
      digest = undefined;
      await folder.write(data);
    } else if (verify) {
      const read = await folder.settle(progress, signal);
      digest = read.digest;
      await call.send({ verifyReady: { readBytes: read.readBytes, badGranules: 0 } });
    } else if (commit) {
      if (!digest) throw new ReplicationError('BadMessage', 'Commit: the folder was not read since its last write');
      await settled(commit, digest);
      await call.send({ committed: { sequence: commit.sequence, digest } });
    } else throw new ReplicationError('BadMessage', 'this message is not for a folder that is written');
  }
}

async function tellLacking(
  folder: TreeWriter,
  call: Stream<MirrorReply, MirrorRequest>,
  progress: (bytesDone: number, bytesTotal: number) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  for await (const nodes of nodeBatches(folder.compare(progress, signal))) await call.send({ nodes: { nodes } });
  await call.send({ manifestEnd: {} });
}
