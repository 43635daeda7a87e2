/**
 * A folder of this node compared with a tree's point, by the code that mirrors it (treesource.ts): what differs is what a resync
 * would send, so what is left out of mirroring is left out here, and what mirroring does not keep is no difference.
 *
 * First come the nodes of the point, then the folder is read whole and the nodes that differ are answered, then offers of the
 * content of files. Guarantees: reads only, without a trace in times where that is permitted; what is noted meanwhile lies in a
 * folder of ours that goes with the call (after a crash: with the next one, or the agent's next start).
 * Failure: SourceGone; SourceEmptied for a folder that has nothing in it, as one has whose filesystem is not mounted yet.
 * A folder that is written to meanwhile is told of as it was read.
 */
import { promises as fs } from 'node:fs';
import { DatabaseSync } from 'node:sqlite';
import { TreeContent } from '../master/replica/treecontent.ts';
import type { Clock } from '../proto/effects.ts';
import { ReplicationError } from '../proto/errors.ts';
import { hashBytes } from '../proto/granule.ts';
import { nodeBatches } from '../proto/nodebatch.ts';
import { checkedNode } from '../proto/node.ts';
import type { Stream } from '../proto/stream.ts';
import { protocolVersion, type MirrorReply, type MirrorRequest, type Node, type Restore } from '../proto/wire.ts';
import { TreeSource } from './treesource.ts';

const progressEveryMs = 500;

export interface TreeComparison {
  restore: Pick<Restore, 'include' | 'exclude'>;
  /** Resolved, and allowed to be read. */
  path: string;
  /** Of ours alone; made, and removed with all that is in it. */
  folder: string;
  clock: Clock;
}

export async function compareFolder(
  options: TreeComparison,
  call: Stream<MirrorReply, MirrorRequest>,
  signal: AbortSignal,
): Promise<void> {
  const { restore, path, folder, clock } = options;
  await fs.rm(folder, { recursive: true, force: true });
  await fs.mkdir(folder, { recursive: true, mode: 0o700 });
  const source = new TreeSource({
    ...{ path, dataDir: folder, clock, agentUs: () => Math.round(clock.nowMs() * 1000) },
    ...{ include: restore.include, exclude: restore.exclude, hints: 'scan', consistency: null, maxFreezeMs: 0 },
    ...{
      cutIntervalSeconds: 1,
      readBytesPerSecond: 0,
      force: false,
      generation: '',
      guard: undefined,
      protectedPaths: [],
    },
  });
  const database = new DatabaseSync(`${folder}/content.db`);
  try {
    // One transaction that is never committed: nothing of it is to last.
    database.exec('PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -4096; BEGIN');
    await answer(source, new TreeContent(database), { call, clock, signal });
  } finally {
    database.close();
    await source.close();
    await fs.rm(folder, { recursive: true, force: true });
  }
}

async function answer(
  source: TreeSource,
  content: TreeContent,
  { call, clock, signal }: { call: Stream<MirrorReply, MirrorRequest>; clock: Clock; signal: AbortSignal },
): Promise<void> {
  const { sizeBytes, sourceId } = await source.facts();
  const point = {
    headSequence: 1,
    initialized: true,
    digest: Buffer.alloc(hashBytes),
    blank: false,
    incomplete: false,
  };
  const welcome = { protocol: protocolVersion, ...point, sizeBytes, sourceId };
  await call.send({ welcome });
  await source.attach(welcome, () => wanted(call));
  const broken = new AbortController();
  const progress = telling(call, clock, broken);
  const reading = AbortSignal.any([signal, broken.signal]);
  for await (const nodes of nodeBatches(differing(source, content, progress.tell, reading)))
    await call.send({ nodes: { nodes } });
  await progress.told();
  await call.send({ manifestEnd: {} });
  for await (const { number, offer } of call.receive) {
    if (!offer) throw new ReplicationError('BadMessage', 'only offers are for a folder that was compared');
    await call.send({ want: { number, bitmap: content.want(offer.object, offer.first, offer.hashes) } });
  }
}

/** The point's, up to the question what differs. */
async function* wanted({ receive }: Stream<MirrorReply, MirrorRequest>): AsyncGenerator<Node> {
  for (;;) {
    const next = await receive.next();
    if (next.done === true) throw new ReplicationError('Disconnected', 'the master ended the call');
    const { nodes, manifest } = next.value;
    if (manifest) return;
    if (!nodes) throw new ReplicationError('BadMessage', 'MirrorRequest.nodes were to come');
    for (const node of nodes.nodes) yield checkedNode(node);
  }
}

/** Hashes of what was read of the files stay here. */
async function* differing(
  source: TreeSource,
  content: TreeContent,
  progress: (bytesDone: number, bytesTotal: number) => void,
  signal: AbortSignal,
): AsyncGenerator<Node> {
  for await (const piece of source.round(false, progress, signal)) {
    if (piece.kind === 'nodes') yield* piece.nodes;
    else if (piece.kind === 'zeros') content.zero(piece.object, piece.first, piece.count);
    else {
      content.put(piece.object, piece.first, piece.hashes);
      piece.release();
    }
  }
}

/** A folder in which nothing differs answers nothing for long: a line that breaks meanwhile is heard of by these. */
function telling(
  call: Stream<MirrorReply, MirrorRequest>,
  clock: Clock,
  broken: AbortController,
): { tell: (bytesDone: number, bytesTotal: number) => void; told: () => Promise<void> } {
  let toldMs = clock.monotonicMs();
  let told = Promise.resolve();
  return {
    tell(bytesDone, bytesTotal) {
      if (clock.monotonicMs() - toldMs < progressEveryMs) return;
      toldMs = clock.monotonicMs();
      told = told
        .then(() => call.send({ verifyProgress: { bytesDone, bytesTotal } }))
        .catch((error: unknown) => broken.abort(error));
    },
    told: () => told,
  };
}
