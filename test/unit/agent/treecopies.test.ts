/** Trees cut by what their storage makes of them at an instant: each point is the copy, whatever its inodes and times say. */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { createInterface } from 'node:readline/promises';
import t, { type Test } from 'tap';
import type { TreeCopies, TreeCopy } from '../../../agent/treecopies.ts';
import { ReplicationError } from '../../../proto/errors.ts';
import { missingForTmpfs, tmpfsMount } from '../../loop.ts';
import { attach, captureConformance, sync } from '../../conformance/capture.ts';
import { ModelReplica } from '../../conformance/modelreplica.ts';
import { TreeMutator } from '../../conformance/treemutator.ts';
import { differing, makePlace, type Place } from '../../conformance/treeplace.ts';

t.setTimeout(240_000);
const never = new AbortController().signal;

/** Made file by file: no inode and no time of a change is what it was. */
function copying(folder: string, root: string): TreeCopies & { left: () => string[] } {
  let made = 0;
  return {
    kind: 'clones',
    left: () => fs.readdirSync(folder),
    async take() {
      const path = `${folder}/${made++}`;
      execFileSync('cp', ['-a', root, path]);
      return {
        path,
        lost: async () => undefined,
        release: async () => fs.rmSync(path, { recursive: true, force: true }),
      };
    },
  };
}

/** With inodes and times as they are, as storage below a filesystem makes them. */
function showing(path: string, more: Partial<TreeCopy> = {}): TreeCopies & { released: number } {
  const copies = {
    kind: 'snapshots' as const,
    released: 0,
    async take() {
      return { path, lost: async () => undefined, release: async () => void copies.released++, ...more };
    },
  };
  return copies;
}

function folderOf(t: Pick<Test, 'teardown'>): string {
  const folder = fs.mkdtempSync(`${fs.realpathSync(tmpdir())}/copies-`);
  t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}

await captureConformance(
  t,
  'tree, by copies',
  async () => {
    const place = makePlace();
    const copies = copying(folderOf(t), place.root);
    return { ...place, open: () => place.open({ copies }) };
  },
  (captured, seed) => {
    const { root } = captured as Place;
    const mutator = new TreeMutator(root, seed);
    return { change: () => mutator.change(25), differences: (replica) => differing(root, replica) };
  },
  [1],
  false,
);

async function opened(t: Test, place: Place, copies: TreeCopies, options: Parameters<Place['open']>[0] = {}) {
  const source = place.open({ copies, ...options });
  t.teardown(async () => {
    await source.close();
    await place.remove();
  });
  const replica = new ModelReplica('Filesystem');
  await attach(source, replica);
  return { source, replica };
}

t.test('of a copy with other inodes only what differs crosses, and none stays', async (t) => {
  const place = makePlace();
  fs.mkdirSync(`${place.root}/a`);
  for (let at = 0; at < 100; at++) fs.writeFileSync(`${place.root}/a/f${at}`, `content ${at}`);
  fs.linkSync(`${place.root}/a/f1`, `${place.root}/also`);
  fs.writeFileSync(`${place.root}/large`, Buffer.alloc(3_000_000, 'x'));
  const copies = copying(folderOf(t), place.root);
  const { source, replica } = await opened(t, place, copies);
  t.equal(await sync(source, replica), undefined);
  t.strictSame(await differing(place.root, replica), []);
  const { sentBytes, sentNodes } = replica;
  t.equal(await sync(source, replica), undefined);
  t.same([replica.sentBytes - sentBytes, replica.sentNodes - sentNodes], [0, 0], 'nothing changed');
  fs.writeFileSync(`${place.root}/a/f7`, 'changed');
  fs.mkdirSync(`${place.root}/new`);
  fs.linkSync(`${place.root}/also`, `${place.root}/new/link`);
  fs.rmSync(`${place.root}/a/f8`);
  t.equal(await sync(source, replica), undefined);
  t.strictSame(await differing(place.root, replica), []);
  t.equal(replica.sentBytes - sentBytes, 'changed'.length);
  t.same(copies.left(), []);
  t.equal(source.captureMethod, 'scan');
  t.equal(await source.unchangedUntil(), undefined, 'nothing proves that nothing changed');
});

t.test('what moved keeps its content where inodes are kept', { skip: missingForTmpfs() }, async (t) => {
  const place = makePlace(tmpfsMount(t));
  fs.mkdirSync(`${place.root}/a`);
  fs.writeFileSync(`${place.root}/a/large`, Buffer.alloc(3_000_000, 'x'));
  const { source, replica } = await opened(t, place, showing(place.root));
  t.equal(await sync(source, replica), undefined);
  const { sentBytes } = replica;
  fs.renameSync(`${place.root}/a`, `${place.root}/b`);
  t.equal(await sync(source, replica), undefined);
  t.strictSame(await differing(place.root, replica), []);
  t.equal(replica.sentBytes, sentBytes);
});

const python = spawnSync('python3', ['-V']).status === 0 ? false : 'needs python3';
const unseen = { skip: missingForTmpfs() || python };
t.test('new content with the old times is read', unseen, async (t) => {
  // There only the first write through a mapping moves a time.
  const place = makePlace(tmpfsMount(t));
  const file = `${place.root}/file`;
  fs.writeFileSync(file, Buffer.alloc(100_000, 'x'));
  const program = `import mmap,sys
f = open(sys.argv[1], 'r+b')
m = mmap.mmap(f.fileno(), 0)
for line in sys.stdin:
  m[50000] = int(line)
  print(flush=True)`;
  const writer = spawn('python3', ['-c', program, file], { stdio: ['pipe', 'pipe', 'inherit'] });
  t.teardown(() => writer.kill('SIGKILL'));
  const answers = createInterface(writer.stdout)[Symbol.asyncIterator]();
  const write = async (value: number): Promise<void> => {
    writer.stdin.write(`${value}\n`);
    t.notOk((await answers.next()).done, 'it is written');
  };
  await write(1);
  const { source, replica } = await opened(t, place, showing(place.root));
  const { ctimeNs } = fs.statSync(file, { bigint: true });
  for (const value of [2, 3]) {
    t.equal(await sync(source, replica), undefined);
    await write(value);
    t.equal(fs.statSync(file, { bigint: true }).ctimeNs, ctimeNs, 'as if nothing had been');
    t.equal(await sync(source, replica), undefined);
    t.strictSame(await differing(place.root, replica), []);
  }
});

t.test('there is no point of what is no whole copy, and it is said why', async (t) => {
  const place = makePlace();
  fs.writeFileSync(`${place.root}/file`, 'x');
  let copies: TreeCopies = showing(place.root, { lost: async () => 'it was taken away' });
  const { source, replica } = await opened(t, place, { kind: 'snapshots', take: async () => copies.take() });
  const refused = async (message: RegExp): Promise<void> => {
    const before = replica.sequence;
    t.match(await sync(source, replica), { message });
    t.equal(replica.sequence, before);
  };
  await refused(/it was taken away/);
  const failing = async (): Promise<never> => {
    throw new ReplicationError('SnapshotFailed', 'the pool is full');
  };
  copies = showing(place.root, { lost: failing });
  await refused(/the pool is full/);
  const empty = showing(folderOf(t));
  copies = empty;
  await refused(/^snapshot of the storage: it is empty, and the volume is not/);
  t.equal(empty.released, 1);
  const unmounted = `${folderOf(t)}/pods/uid/volumes/kubernetes.io~csi/pv/mount`;
  fs.mkdirSync(unmounted, { recursive: true });
  fs.writeFileSync(`${unmounted}/of the node`, '');
  copies = showing(unmounted);
  await refused(/is not mounted where this agent sees it/);
  copies = showing(`${place.root}/gone`);
  await refused(/gone is not mounted where/);
  copies = { kind: 'snapshots', take: failing };
  await refused(/^snapshot of the storage: the pool is full/);
  const cut = await source.cut(never, { prepared: async () => undefined, frozen: async () => undefined });
  for await (const piece of cut.pieces(never)) t.fail(piece.kind);
  t.match(await cut.broken(), { message: /spec.copyMethod Snapshot .* no instant in common/ });
  copies = showing(place.root);
  t.equal(await sync(source, replica), undefined);
  t.strictSame(await differing(place.root, replica), []);
});
