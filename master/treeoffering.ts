/**
 * Sending side of one Restore call for a tree: the agent gets the point's nodes, says which files' content its folder lacks, and gets
 * of them what differs; small ones whole. Then it reads all again and answers its digest.
 *
 * Guarantees and failure as of offering.ts. In memory is the slot of each file that is lacking.
 */
import { constants, promises as fs } from 'node:fs';
import { granuleBytes, granuleCount } from '../proto/granule.ts';
import { ReplicationError } from '../proto/errors.ts';
import { nodeBatches } from '../proto/nodebatch.ts';
import type { Node } from '../proto/wire.ts';
import { bitsOf, blankCommit, Outbox, Talk, type Content, type OfferOptions, type RestoreCall } from './offering.ts';
import type { TreeIndex } from './replica/treeindex.ts';
import { Directories, openFile, type Handle } from './replica/treepath.ts';

/** Larger files are offered first: what part of them differs is worth asking. */
const smallGranules = 4;

/** Answers payload bytes that were sent. */
export async function sendTree(
  call: RestoreCall,
  tree: { index: TreeIndex; path: string },
  point: { sequence: number; digest: Buffer },
  options: OfferOptions,
): Promise<number> {
  const { index, path } = tree;
  const { progress, signal } = options;
  const talk = new Talk(call);
  await talk.greet(index.sizeBytes, options, 'Filesystem');
  for await (const nodes of nodeBatches(index.nodes())) {
    signal.throwIfAborted();
    await talk.message({ nodes: { nodes } });
  }
  const slots = await talk.lacking((done, total) => progress('comparing', done, total));
  const total = slots.reduce((sum, slot) => sum + (index.node(slot)?.sizeBytes ?? 0), 0);
  await using root = await fs.open(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW);
  const directories = new Directories(root, root, async (slot) => index.node(slot)?.names[0]);
  const outbox = new Outbox(talk, options);
  try {
    let done = 0;
    for (const slot of slots) {
      signal.throwIfAborted();
      const node = index.node(slot);
      const name = node?.names[0];
      if (!node || !name) throw new ReplicationError('BadMessage', `MirrorReply.nodes: slot ${slot} was not sent`);
      const opened = await directories.with(name.parent, 'read', (directory) =>
        openFile(directory, name.name, constants.O_RDONLY, () => undefined),
      );
      await using file = opened.file;
      const content = contentOf(index, node, file);
      const before = done;
      const own = { ...options, progress: (_: string, part: number) => progress('sending', before + part, total) };
      if (granuleCount(node.sizeBytes) <= smallGranules)
        for (let granule = 0; granule < granuleCount(node.sizeBytes); granule++) await outbox.add(content, granule);
      else {
        for await (const { first, bitmap } of talk.offer(content, own))
          for (const granule of bitsOf(bitmap, first)) {
            await outbox.add(content, granule);
            own.progress('sending', granule * granuleBytes);
          }
      }
      done += node.sizeBytes;
      progress('sending', done, total);
    }
  } finally {
    await directories.close();
  }
  const sentBytes = await outbox.flush();
  await talk.verified(progress);
  await talk.message({ commit: { ...blankCommit, ...point, sizeBytes: index.sizeBytes } });
  const { digest } = await talk.answer('committed');
  if (!digest.equals(point.digest))
    throw new ReplicationError(
      'TargetFailed',
      'the folder is whole, but another one than the point: something else writes it',
    );
  call.end();
  return sentBytes;
}

function contentOf(index: TreeIndex, { slot, sizeBytes }: Node, file: Handle): Content {
  return {
    object: slot,
    sizeBytes,
    hashes: (first, count) => index.content.hashes(slot, first, count),
    async read(buffer, position) {
      const { bytesRead } = await file.read(buffer, 0, buffer.length, position);
      if (bytesRead < buffer.length)
        throw new ReplicationError(
          'ReplicaDamaged',
          `the staged copy of slot ${slot} is short at ${position + bytesRead}`,
        );
    },
  };
}
