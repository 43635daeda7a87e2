import t from 'tap';
import { nodeBatches, nodeBytes } from '../../../proto/nodebatch.ts';
import { encode, maxMessageBytes, nodeTypes, type Node } from '../../../proto/wire.ts';

function node(slot: number, attributeBytes: number, links = 1): Node {
  return {
    ...{ slot, type: nodeTypes.file, mode: 0o644, uid: 0xffffffff, gid: 0xffffffff, sizeBytes: 2 ** 50 },
    ...{ mtimeSeconds: 2 ** 40, mtimeNanoseconds: 999_999_999, deviceMajor: 0xffff, deviceMinor: 0xffff },
    target: Buffer.alloc(0),
    xattrs: attributeBytes === 0 ? [] : [{ name: Buffer.from('user.long'), value: Buffer.alloc(attributeBytes, 1) }],
    names: Array.from({ length: links }, (_, n) => ({ parent: 2 ** 40 + n, name: Buffer.alloc(255, 'n') })),
    contentRoot: Buffer.alloc(16, 1),
  };
}

t.test('no message of nodes is too large, whatever they carry; all of them come, in order', async (t) => {
  const nodes = Array.from({ length: 500 }, (_, slot) => node(slot + 1, slot % 3 === 0 ? 65_536 : 0, 1 + (slot % 50)));
  const seen: number[] = [];
  for await (const batch of nodeBatches(nodes)) {
    t.ok(encode('Nodes', { nodes: batch }).length < maxMessageBytes / 8);
    seen.push(...batch.map(({ slot }) => slot));
  }
  t.same(
    seen,
    nodes.map(({ slot }) => slot),
  );
  for (const one of nodes.slice(0, 60)) t.ok(encode('Nodes', { nodes: [one] }).length <= nodeBytes(one));
  let batches = 0;
  for await (const batch of nodeBatches(
    Array.from({ length: 2500 }, (_, slot) => ({ ...node(slot + 1, 0), names: [] })),
  ))
    batches += Number(batch.length > 0);
  t.equal(batches, 3, 'small ones by number');
});
