import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { TreeIndex } from '../../../../master/replica/treeindex.ts';
import { contentRoot, hash, unknownHash, zeroHash } from '../../../../proto/granule.ts';
import { goneNode, nodeHash } from '../../../../proto/node.ts';
import { nodeTypes, type Node } from '../../../../proto/wire.ts';
import { bytes, commitOf, dataOf, randomOf, TreeModel, type Epoch } from './treemodel.ts';

const folder = mkdtempSync(join(tmpdir(), 'treeindex-'));
t.teardown(() => rmSync(folder, { recursive: true }));
let files = 0;
const open = (path = `${folder}/${++files}.db`): TreeIndex => new TreeIndex(path);
const runs = { numRuns: 25 };

function stage(index: TreeIndex, epoch: Epoch): void {
  for (const data of epoch.data) index.stageData(data);
  index.stageNodes({ nodes: epoch.nodes });
}

function apply(index: TreeIndex, epoch: Epoch, slots: number): void {
  stage(index, epoch);
  index.commit(commitOf(index.sequence + 1, slots));
}

/** The digest of an index to which the model's state was sent at once. */
function digestOf(model: TreeModel): Buffer {
  const index = open();
  const data = [...model.content].flatMap(([slot, content]) => dataOf(slot, content, undefined));
  apply(index, { data, nodes: [...model.nodes.values()] }, model.slots);
  const { digest } = index;
  index.close();
  return digest;
}

const directory = (slot: number, parent?: number, name = `d${slot}`): Node => ({
  ...goneNode(slot),
  type: nodeTypes.directory,
  mode: 0o755,
  names: parent === undefined ? [] : [{ parent, name: bytes(name) }],
});
const file = (slot: number, parent: number, content: Buffer = Buffer.alloc(0), name = `f${slot}`): Node => ({
  ...goneNode(slot),
  type: nodeTypes.file,
  names: [{ parent, name: bytes(name) }],
  sizeBytes: content.length,
  contentRoot: contentRoot(content.length > 0 ? hash(content) : Buffer.alloc(0)),
});

t.test('equal state has an equal digest, whatever the history; the manifest is the state', async () => {
  fc.assert(
    fc.property(fc.integer(), fc.array(fc.nat(25), { minLength: 1, maxLength: 8 }), (seed, epochs) => {
      const model = new TreeModel(randomOf(seed));
      const index = open();
      for (const steps of epochs) {
        for (let step = 0; step < steps; step++) model.step();
        stage(index, model.epoch());
        const staged = index.stagedDigest(model.slots);
        index.commit(commitOf(index.sequence + 1, model.slots));
        assert.deepEqual(staged, index.digest);
        assert.equal(index.unknown, 0);
      }
      const manifest = [...index.manifest()];
      assert.equal(manifest.length, model.nodes.size);
      for (const node of manifest) assert.deepEqual(nodeHash(node), nodeHash(model.nodes.get(node.slot) as Node));
      for (const { slot } of manifest) {
        const children = model.children(slot).map(({ name }) => name.toString('hex'));
        assert.deepEqual(
          [...index.children(slot)].map(({ name }) => name.toString('hex')),
          children.sort(),
        );
      }
      assert.deepEqual(index.digest, digestOf(model));
      index.close();
    }),
    runs,
  );
});

t.test('an epoch that is discarded leaves no trace, and reopening keeps what was committed', async () => {
  fc.assert(
    fc.property(fc.integer(), (seed) => {
      const model = new TreeModel(randomOf(seed));
      const path = `${folder}/${++files}.db`;
      let index = open(path);
      for (let step = 0; step < 30; step++) model.step();
      apply(index, model.epoch(), model.slots);
      const { digest } = index;
      for (let step = 0; step < 10; step++) model.step();
      const next = model.epoch();
      stage(index, next);
      index.stagedDigest(model.slots);
      index.discard();
      assert.deepEqual(index.digest, digest);
      index.close();
      index = open(path);
      assert.deepEqual(index.digest, digest);
      assert.equal(index.sequence, 1);
      apply(index, next, model.slots);
      assert.deepEqual(index.digest, digestOf(model));
      index.close();
    }),
    runs,
  );
});

t.test('several epochs in one commit end where single commits end', async () => {
  fc.assert(
    fc.property(fc.integer(), (seed) => {
      const model = new TreeModel(randomOf(seed));
      const [single, merged] = [open(), open()];
      for (let epoch = 0; epoch < 4; epoch++) {
        for (let step = 0; step < 15; step++) model.step();
        const sent = model.epoch();
        apply(single, sent, model.slots);
        stage(merged, sent);
        merged.endEpoch();
      }
      merged.commit(commitOf(4, model.slots));
      assert.deepEqual(merged.digest, single.digest);
      single.close();
      merged.close();
    }),
    runs,
  );
});

t.test('the staged epoch counts in what is wanted', async (t) => {
  const index = open();
  const content = bytes('hello');
  const node = file(1, 0, content);
  const offer = Buffer.concat([nodeHash(directory(0)), nodeHash(node), zeroHash]);
  t.strictSame([...index.want(0, 0, offer)], [0b011]);
  index.stageNodes({ nodes: [directory(0), node] });
  t.strictSame([...index.want(0, 0, offer)], [0b000]);
  t.strictSame([...index.want(1, 0, hash(content))], [1]);
  dataOf(1, content, undefined).forEach((data) => index.stageData(data));
  t.strictSame([...index.want(1, 0, hash(content))], [0]);
  index.discard();
  t.strictSame([...index.want(1, 0, hash(content))], [1]);
  index.close();
});

t.test('a name that another slot gets is lost, and with the last one all that hangs on it', async (t) => {
  const index = open();
  const linked = { ...file(4, 0), names: [...file(4, 0).names, { parent: 2, name: bytes('link') }] };
  apply(index, { data: [], nodes: [directory(0), directory(1, 0, 'x'), directory(2, 1), file(3, 2), linked] }, 5);
  apply(index, { data: [], nodes: [file(5, 0, undefined, 'x')] }, 6);
  t.strictSame(
    [...index.nodes()].map(({ slot }) => slot),
    [0, 4, 5],
  );
  t.equal(index.node(4)?.names.length, 1);
  t.equal(index.path(4).toString(), 'f4');
  index.close();
});

t.test('refused at the end of the epoch, with nothing changed after the discard', async (t) => {
  const cases: [string, Node[]][] = [
    ['a parent that is not there', [file(7, 6)]],
    ['a parent that is a file', [file(7, 2)]],
    ['a parent that goes in the same epoch', [goneNode(1), file(7, 1)]],
    ['a directory inside itself', [directory(1, 3), directory(3, 1)]],
    ['two with the same name', [file(7, 0, undefined, 'n'), file(8, 0, undefined, 'n')]],
    ['a slot beyond the size', [file(20, 0)]],
    ['content that does not add up', [file(2, 0, bytes('other'))]],
  ];
  for (const [what, nodes] of cases) {
    const index = open();
    apply(index, { data: [], nodes: [directory(0), directory(1, 0), file(2, 0), directory(3, 0)] }, 4);
    const { digest } = index;
    index.stageNodes({ nodes });
    t.throws(() => index.stagedDigest(10), { code: 'ContentMismatch' }, what);
    t.throws(() => index.commit(commitOf(2, 10)), { code: 'ContentMismatch' }, what);
    index.discard();
    t.strictSame(index.digest, digest);
    apply(index, { data: [], nodes: [file(5, 0)] }, 6);
    index.close();
  }
});

t.test('messages that no tree can hold are refused before they are staged', async (t) => {
  const index = open();
  const twice = { ...file(1, 0), names: [...file(1, 0).names, ...file(1, 0).names] };
  t.throws(() => index.stageNodes({ nodes: [twice] }), { code: 'BadMessage' });
  t.throws(() => index.stageNodes({ nodes: [directory(2 ** 40, 0)] }), { code: 'BadMessage' });
  t.throws(() => index.stageNodes({ nodes: [{ ...file(1, 0), sizeBytes: 2 ** 50 }] }), { code: 'BadMessage' });
  for (const run of [
    { object: 0, first: 0, count: 1 },
    { object: 1, first: 2 ** 35, count: 1 },
  ]) {
    const data = { runs: [{ ...run, zero: true, tailBytes: 1 }], hashes: Buffer.alloc(0), compression: 0, rawBytes: 0 };
    t.throws(() => index.stageData({ ...data, payload: Buffer.alloc(0) }), { code: 'BadMessage' });
  }
  t.notOk(index.isOpen);
  index.close();
});

t.test('content before its node makes the slot unknown until the node comes', async (t) => {
  const index = open();
  const content = bytes('hello');
  apply(index, { data: dataOf(1, content, undefined), nodes: [directory(0)] }, 1);
  t.equal(index.unknown, 1);
  apply(index, { data: [], nodes: [file(1, 0, content)] }, 2);
  t.equal(index.unknown, 0);
  // and content that is ahead of a node that is there
  apply(index, { data: dataOf(1, bytes('world'), content), nodes: [] }, 2);
  t.equal(index.unknown, 1);
  t.strictSame([...index.want(0, 1, nodeHash(file(1, 0, content)))], [1], 'it is offered again');
  t.strictSame([...index.manifest()][1]?.contentRoot, unknownHash);
  apply(index, { data: [], nodes: [file(1, 0, bytes('world'))] }, 2);
  t.equal(index.unknown, 0);
  index.close();
});

t.test('what was found damaged is wanted until it is sent again', async (t) => {
  const index = open();
  const content = bytes('hello');
  const node = file(1, 0, content);
  const data = dataOf(1, content, undefined);
  apply(index, { data, nodes: [directory(0), node, directory(2, 0)] }, 3);
  const { digest } = index;
  index.markUnknown(1, 0);
  index.markUnknown(0, 2);
  t.equal(index.unknown, 2);
  t.notSame(index.digest, digest, 'it spoils the digest');
  t.strictSame([...index.want(1, 0, hash(content))], [1]);
  t.strictSame([...index.want(0, 1, Buffer.concat([nodeHash(node), nodeHash(directory(2, 0))]))], [0b11]);
  apply(index, { data, nodes: [] }, 3);
  t.equal(index.unknown, 1, 'content alone cures content');
  apply(index, { data: [], nodes: [directory(2, 0)] }, 3);
  t.equal(index.unknown, 0);
  t.strictSame(index.digest, digest);
  // a mark outlives the epoch that was open
  index.stageNodes({ nodes: [file(1, 0, content, 'renamed')] });
  index.markUnknown(0, 2);
  index.discard();
  t.equal(index.unknown, 1);
  index.close();
});

t.test('rotten content in the journal makes the file unknown instead of ending the replay', async (t) => {
  const index = open();
  const content = bytes('hello');
  const [data] = dataOf(1, content, undefined);
  if (!data) return;
  const rotten = { ...data, hashes: unknownHash };
  apply(index, { data: [rotten], nodes: [directory(0), file(1, 0, content)] }, 2);
  t.equal(index.unknown, 1);
  apply(index, { data: [data], nodes: [] }, 2);
  t.equal(index.unknown, 0);
  index.close();
});

t.test('a large file: content root over pages, holes and a changed size', async (t) => {
  const index = open();
  const sum = (at: number): Buffer => hash(bytes(`granule ${at}`));
  const count = 1000;
  const hashes = Buffer.concat(Array.from({ length: count }, (_, at) => (at % 300 < 20 ? sum(at) : zeroHash)));
  const runsOf = (zero: boolean, first: number, length: number) => [
    { object: 1, first, count: length, zero, tailBytes: 1 },
  ];
  const none = { compression: 0, rawBytes: 0, payload: Buffer.alloc(0) };
  const sized = (granules: number): Node => ({
    ...file(1, 0),
    sizeBytes: granules * 65536,
    contentRoot: contentRoot(hashes.subarray(0, granules * 16)),
  });
  for (const first of [0, 300, 600, 900]) {
    const part = hashes.subarray(first * 16, (first + 20) * 16);
    index.stageData({ runs: runsOf(false, first, 20), hashes: part, ...none });
  }
  apply(index, { data: [], nodes: [directory(0), sized(count)] }, 2);
  t.strictSame([...index.want(1, 0, hashes)], Array<number>(125).fill(0));
  apply(index, { data: [], nodes: [sized(310)] }, 2);
  apply(index, { data: [], nodes: [sized(256)] }, 2);
  const grown = contentRoot(Buffer.concat([hashes.subarray(0, 256 * 16), Buffer.alloc(744 * 16)]));
  apply(index, { data: [], nodes: [{ ...sized(count), contentRoot: grown }] }, 2);
  index.stageData({ runs: runsOf(true, 5, 700), hashes: Buffer.alloc(0), ...none });
  const cut = contentRoot(Buffer.concat([hashes.subarray(0, 5 * 16), Buffer.alloc(995 * 16)]));
  apply(index, { data: [], nodes: [{ ...sized(count), contentRoot: cut }] }, 2);
  t.equal(index.unknown, 0);
  index.close();
});
