import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import t, { type Test } from 'tap';
import { type Manifest, openManifest } from '../../../agent/manifest.ts';
import { nodeHash } from '../../../proto/node.ts';
import { nodeTypes, type Node } from '../../../proto/wire.ts';

const directory = nodeTypes.directory;
const key = (ino: number, type: number = nodeTypes.file) => ({ ino: BigInt(ino), birthNs: 7n, type });
const name = (text: string): Buffer => Buffer.from(text);
const digest = Buffer.alloc(16, 1);
const generation = '1';
const signature = { sizeBytes: 5n, mtimeNs: 1n, ctimeNs: 2n };

function folder(t: Test): string {
  const path = fs.mkdtempSync(join(tmpdir(), 'manifest-'));
  t.teardown(() => fs.rmSync(path, { recursive: true, force: true }));
  return path;
}

/** As a killed process leaves it. */
function killed(t: Test, manifest: Manifest, from: string): Manifest {
  const to = folder(t);
  fs.cpSync(from, to, { recursive: true });
  manifest.close();
  const next = openManifest(to);
  t.teardown(() => next.close());
  return next;
}

function sendAll(manifest: Manifest): void {
  for (const row of manifest.dirty(-1, 1000)) {
    manifest.written(row, { signature, root: digest, hash: digest, sent: true, dirty: false });
  }
}

function begun(t: Test): { manifest: Manifest; path: string } {
  const path = folder(t);
  const manifest = openManifest(path);
  t.equal(manifest.settle(0, Buffer.alloc(0), generation), false, 'a blank replica knows nothing of ours');
  manifest.clear();
  manifest.adopted(0, Buffer.alloc(0), '');
  manifest.insert(key(1, directory), 0n, 0);
  return { manifest, path };
}

function add(manifest: Manifest, ino: number, text: string, parent = 0, type: number = nodeTypes.file): number {
  const slot = manifest.insert(key(ino, type), 5n);
  manifest.setName(parent, name(text), slot, type === directory);
  return slot;
}

t.test('what was prepared and not committed is sent again, what was committed is not', async (t) => {
  const { manifest, path } = begun(t);
  add(manifest, 2, 'a');
  sendAll(manifest);
  manifest.prepare(1, generation);
  manifest.committed(1, digest);
  const b = add(manifest, 3, 'b');
  sendAll(manifest);
  manifest.prepare(2, generation);
  const lost = killed(t, manifest, path);
  t.equal(lost.settle(1, digest, generation), true, 'the replica did not get commit 2');
  t.strictSame(
    lost.dirty(-1, 10).map((row) => [row.slot, row.hash]),
    [[b, undefined]],
  );
});

t.test('a commit whose answer was lost counts when the replica has it', async (t) => {
  const { manifest, path } = begun(t);
  add(manifest, 2, 'a');
  sendAll(manifest);
  manifest.prepare(1, generation);
  const next = killed(t, manifest, path);
  t.equal(next.settle(1, digest, generation), true);
  t.equal(next.hasDirty, false);
  t.equal(next.settle(1, Buffer.alloc(16, 9), generation), false, 'from then on by its digest');
  t.equal(next.settle(2, digest, generation), false, 'a replica ahead of us');
  t.equal(next.settle(0, Buffer.alloc(0), generation), false, 'a replica made anew');
});

t.test('a commit of that number under another generation may be of somebody else', async (t) => {
  const { manifest, path } = begun(t);
  add(manifest, 2, 'a');
  sendAll(manifest);
  manifest.prepare(1, generation);
  const other = killed(t, manifest, path);
  t.equal(other.settle(1, digest, '2'), false, 'its answer never came');
  t.equal(other.settle(1, digest, generation), true, 'it is still known whose it is');
  t.equal(other.settle(1, digest, '2'), true, 'what was acknowledged is known by its digest, whoever asks');
  add(other, 3, 'b');
  other.prepare(2, '2');
  t.equal(other.settle(2, Buffer.alloc(16, 9), generation), false);
  t.equal(other.settle(1, Buffer.alloc(0), '2'), false, 'no digest proves nothing');
});

t.test('what was not prepared is forgotten whole by a crash', async (t) => {
  const { manifest, path } = begun(t);
  add(manifest, 2, 'a');
  sendAll(manifest);
  manifest.prepare(1, generation);
  manifest.committed(1, digest);
  manifest.removeName(0, name('a'));
  manifest.buryOrphans();
  const next = killed(t, manifest, path);
  t.equal(next.settle(1, digest, generation), true);
  t.ok(next.child(0, name('a')));
  t.equal(next.hasDirty, false);
});

t.test('a slot is used again only when its end was acknowledged', async (t) => {
  const { manifest } = begun(t);
  t.teardown(() => manifest.close());
  const a = add(manifest, 2, 'a');
  sendAll(manifest);
  manifest.prepare(1, generation);
  manifest.committed(1, digest);
  manifest.removeName(0, name('a'));
  t.equal(manifest.buryOrphans(), 1);
  t.not(add(manifest, 3, 'b'), a);
  sendAll(manifest);
  t.not(add(manifest, 4, 'c'), a, 'sent is not acknowledged');
  manifest.prepare(2, generation);
  t.not(add(manifest, 5, 'd'), a, 'nor is prepared');
  manifest.committed(2, digest);
  t.equal(add(manifest, 6, 'e'), a);
});

t.test('all below a directory that is gone is gone, but what has another name', async (t) => {
  const { manifest } = begun(t);
  t.teardown(() => manifest.close());
  const d = add(manifest, 2, 'd', 0, directory);
  const inner = add(manifest, 3, 'inner', d, directory);
  const file = add(manifest, 4, 'f', inner);
  const linked = add(manifest, 5, 'l', inner);
  manifest.setName(0, name('other'), linked, false);
  manifest.removeName(0, name('d'));
  t.equal(manifest.buryOrphans(), 3);
  t.strictSame(
    [d, inner, file].map((slot) => manifest.row(slot)?.type),
    [0, 0, 0],
  );
  t.strictSame(manifest.path(linked), [name('other')]);
});

t.test('a directory has one name, a path may not lead into itself', async (t) => {
  const { manifest } = begun(t);
  t.teardown(() => manifest.close());
  const a = add(manifest, 2, 'a', 0, directory);
  const b = add(manifest, 3, 'b', a, directory);
  manifest.setName(0, name('moved'), b, true);
  t.strictSame(manifest.names(b), [{ parent: 0, name: name('moved') }]);
  t.equal(manifest.childCount(a), 0);
  t.equal(manifest.isAbove(a, b), false);
  manifest.setName(a, name('again'), b, true);
  t.equal(manifest.isAbove(a, b), true);
});

t.test("the replica's manifest gives slots by path, and holes between them are free", async (t) => {
  const node = (slot: number, type: number, parent?: number, text?: string): Node => ({
    slot,
    type,
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtimeSeconds: 0,
    mtimeNanoseconds: 0,
    sizeBytes: 0,
    target: Buffer.alloc(0),
    deviceMajor: 0,
    deviceMinor: 0,
    xattrs: [],
    names: text === undefined ? [] : [{ parent: parent ?? 0, name: name(text) }],
    contentRoot: type === nodeTypes.file ? digest : Buffer.alloc(0),
  });
  const manifest = openManifest(folder(t));
  t.teardown(() => manifest.close());
  manifest.clear();
  const file = node(4, nodeTypes.file, 2, 'f');
  for (const one of [node(0, directory), node(2, directory, 0, 'd'), file]) manifest.adopt(one);
  manifest.adopted(9, digest, 'why');
  t.equal(manifest.acked, 9);
  t.equal(manifest.wholeReason, 'why');
  const row = manifest.child(2, name('f'));
  t.ok(row && manifest.isAdopted(row) && row.slot === 4 && row.hash?.equals(nodeHash(file)));
  manifest.claim(4, key(44));
  t.equal(manifest.slotOf(key(44)), 4);
  t.equal(manifest.slotOf(key(44, directory)), undefined, 'a number used for another type is another inode');
  t.strictSame([add(manifest, 50, 'x'), add(manifest, 51, 'y'), add(manifest, 52, 'z')], [1, 3, 5]);
});

t.test('a file that is no database is replaced, a second process is refused', async (t) => {
  const path = folder(t);
  fs.writeFileSync(`${path}/manifest.db`, 'this is no database at all, is it?'.repeat(100));
  const manifest = openManifest(path);
  t.equal(manifest.slots, 0);
  manifest.insert(key(1, directory), 0n, 0);
  t.throws(() => openManifest(path), /locked/);
  manifest.close();
});

t.test('a name that changes hands within an epoch: no commit until both are sent', async (t) => {
  const { manifest } = begun(t);
  const a = add(manifest, 2, 'a');
  sendAll(manifest);
  t.equal(manifest.isUnsettled, false);
  const b = add(manifest, 3, 'b');
  manifest.setName(0, name('b2'), b, true);
  t.equal(manifest.isUnsettled, false, 'what was never sent has no name to give up');
  manifest.setName(0, name('a'), b, true);
  t.equal(manifest.isUnsettled, true, 'the replica has been told that a is called so');
  manifest.setName(0, name('c'), a, true);
  sendAll(manifest);
  t.equal(manifest.isUnsettled, false);
  manifest.removeName(0, name('c'));
  t.equal(manifest.isUnsettled, true);
  manifest.buryOrphans();
  sendAll(manifest);
  t.equal(manifest.isUnsettled, false, 'its end was told');
  manifest.prepare(1, generation);
  manifest.committed(1, digest);
  manifest.setName(0, name('d'), b, true);
  t.equal(manifest.isUnsettled, false, 'what an earlier commit brought just loses the name');
  manifest.close();
});

t.test(
  'what lost a name with its directory is told of before a commit, when it was sent since the last one',
  async (t) => {
    const { manifest } = begun(t);
    t.teardown(() => manifest.close());
    const d = add(manifest, 2, 'd', 0, directory);
    sendAll(manifest);
    manifest.prepare(1, generation);
    manifest.committed(1, digest);
    const linked = add(manifest, 3, 'l', d);
    manifest.setName(0, name('other'), linked, false);
    const inner = add(manifest, 4, 'f', d);
    sendAll(manifest);
    manifest.removeName(0, name('d'));
    t.equal(manifest.isUnsettled, false, 'where the directory was, something may be');
    t.equal(manifest.buryOrphans(), 2);
    const send = (slot: number): void => {
      const row = manifest.row(slot);
      if (row) manifest.written(row, { signature, root: digest, hash: digest, sent: true, dirty: false });
    };
    send(d);
    t.equal(manifest.isUnsettled, true, 'two names in a directory that is gone');
    send(inner);
    t.equal(manifest.isUnsettled, true);
    send(linked);
    t.equal(manifest.isUnsettled, false);
  },
);

const isLong = process.env['REPLICATOR_LONG'] === '1';
const many = isLong ? 1_000_000 : 20_000;
setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;
/** What is in use by the program, garbage collected. */
function usedMiB(): number {
  collectGarbage();
  const { heapUsed, external } = process.memoryUsage();
  return (heapUsed + external) / 2 ** 20;
}

t.test(`memory in use does not grow with the number of files (${many})`, async (t) => {
  const { manifest } = begun(t);
  const startMs = performance.now();
  const before = usedMiB();
  let parent = 0;
  for (let at = 0; at < many; at++) {
    if (at % 1000 === 0) parent = add(manifest, 10 + at, `directory ${at}`, 0, directory);
    add(manifest, 10_000_000 + at, `file ${at}`, parent);
  }
  for (let after = -1; ;) {
    const rows = manifest.dirty(after, 1000);
    if (rows.length === 0) break;
    for (const row of rows) manifest.written(row, { signature, root: digest, hash: digest, sent: true, dirty: false });
    after = rows.at(-1)?.slot ?? 0;
  }
  manifest.prepare(1, generation);
  manifest.committed(1, digest);
  const rssMiB = process.memoryUsage.rss() / 2 ** 20;
  const grown = usedMiB() - before;
  t.comment(`${grown.toFixed(1)} MiB more, ${rssMiB.toFixed(0)} MiB resident with garbage and SQLite's 32 MiB`);
  t.comment(`${((performance.now() - startMs) / 1000).toFixed(1)} s`);
  t.ok(grown < 8, `${grown} MiB`);
  t.equal(manifest.childCount(parent), 1000);
  manifest.close();
});
