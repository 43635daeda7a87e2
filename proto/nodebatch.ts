/** Nodes of a tree in messages that are as large as is quick, and never larger than a message may be for what one node takes. */
import type { Node } from './wire.ts';

const batchBytes = 256 << 10;
const batchNodes = 1000;

/** Encoded, at most. */
export function nodeBytes({ target, names, xattrs }: Node): number {
  let bytes = 120 + target.length;
  for (const { name } of names) bytes += name.length + 20;
  for (const { name, value } of xattrs) bytes += name.length + value.length + 16;
  return bytes;
}

export async function* nodeBatches(nodes: Iterable<Node> | AsyncIterable<Node>): AsyncGenerator<Node[]> {
  let batch: Node[] = [];
  let bytes = 0;
  for await (const node of nodes) {
    batch.push(node);
    bytes += nodeBytes(node);
    if (bytes < batchBytes && batch.length < batchNodes) continue;
    yield batch;
    [batch, bytes] = [[], 0];
  }
  if (batch.length > 0) yield batch;
}
