/** A point poured into a volume of its own is what the source was, to the byte and the attribute. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { HeldReplica } from '../../../../master/held.ts';
import { openFiller } from '../../../../master/receiver/filler.ts';
import { fillFrom } from '../../../../master/receiver/filling.ts';
import { openBase } from '../../../../master/replica/place.ts';
import type { Point } from '../../../../master/replica/horizon.ts';
import { defaultLimits } from '../../../../master/replica/limits.ts';
import { Replica } from '../../../../master/replica/replica.ts';
import { asReplicationError } from '../../../../proto/errors.ts';
import { granuleBytes } from '../../../../proto/granule.ts';
import { streamPair } from '../../../../proto/stream.ts';
import { systemDisk, systemEffects } from '../../../../proto/system.ts';
import { nodeTypes, type MirrorReply, type MirrorRequest, type VolumeMode } from '../../../../proto/wire.ts';
import { loopDevice, missingForLoop } from '../../../loop.ts';
import { imageOf, none, put, writer } from '../replica/blockreplica.ts';
import { bytes, commitOf, randomOf, TreeModel } from '../replica/treemodel.ts';
import { expected, walk } from '../replica/treestate.ts';

const isRoot = process.geteuid?.() === 0;
const folder = mkdtempSync(join(tmpdir(), 'filler-'));
t.teardown(() => {
  execFileSync('chmod', ['-R', 'u+rwX', folder]);
  rmSync(folder, { recursive: true });
});
let places = 0;
const place = (): string => {
  const own = join(folder, String(++places));
  mkdirSync(own);
  return own;
};
const open = (at: string, mode: VolumeMode, segmentBytes = 1): Promise<Replica> =>
  Replica.open({
    effects: systemEffects,
    place: { folder: at, indexFolder: at },
    mode,
    limits: { ...defaultLimits, segmentBytes },
  });

/** As a master does it, without a line between. */
async function fill(
  replica: Pick<HeldReplica, 'pour' | 'measure'>,
  point: Point,
  volume: string,
  volumeMode: VolumeMode,
  verify = true,
): Promise<string[]> {
  const pair = streamPair<MirrorRequest, MirrorReply>();
  const { client, server } = pair;
  const steps: string[] = [];
  const served = openFiller(volume, place(), systemEffects)
    .fill(server, none)
    .then(
      () => server.end(),
      (error: unknown) => pair.cut(asReplicationError(error)),
    );
  const sizeBytes = await replica.measure(point);
  try {
    const { verified } = await fillFrom({ fill: () => client }, replica, point, {
      ...{ volumeMode, sizeBytes, verify, signal: none },
      progress: (step) => void (steps.includes(step) || steps.push(step)),
    });
    assert.equal(verified, verify);
  } finally {
    await served;
  }
  return steps;
}

async function write(replica: Replica, model: TreeModel, rounds: number): Promise<void> {
  for (let at = 0; at < rounds; at++) model.step();
  const session = await replica.attach(writer);
  const { data, nodes } = model.epoch();
  for (const one of data) await replica.data(session, one);
  await replica.nodes(session, { nodes });
  await replica.commit(session, commitOf(replica.head.sequence + 1, model.slots));
  await replica.detach(session);
}

t.test('trees: each point, from base and journal, from the base alone, from a snapshot', async (t) => {
  for (let seed = 1; seed <= 3; seed++) {
    const model = new TreeModel(randomOf(seed), isRoot);
    const replica = await open(place(), 'Filesystem');
    const states: Map<string, unknown>[] = [];
    for (let epoch = 0; epoch < 4; epoch++) {
      await write(replica, model, 20);
      states.push(expected(model));
      // The first of them stays with the journal.
      if (epoch === 1) await replica.snapshot('kept', replica.points[1] as Point, none, () => undefined);
    }
    const volume = place();
    for (const [at, point] of replica.points.entries()) {
      if (at === 0) mkdirSync(join(volume, 'lost+found'));
      assert.deepEqual(await fill(replica, point, volume, 'Filesystem'), ['copying', 'verifying']);
      assert.deepEqual(await walk(volume), states[at], `seed ${seed}, point ${at}`);
    }
    const snapshot = replica.snapshotPoint('kept') as Point;
    await replica.advance(-1, none);
    assert.equal(replica.points.length, 1);
    for (const [point, state] of [
      [replica.newestPoint as Point, states.at(-1)],
      [snapshot, states[1]],
    ] as const) {
      await fill(replica, point, volume, 'Filesystem');
      assert.deepEqual(await walk(volume), state, `seed ${seed}, point ${point.sequence}`);
    }
    await replica.close();
  }
  t.end();
});

t.test('what a base tells makes the same, however often it commits on the way', async (t) => {
  const model = new TreeModel(randomOf(3), isRoot);
  const at = place();
  const replica = await open(at, 'Filesystem');
  // Each lies in one of a higher slot.
  const nested = Array.from({ length: 12 }, (_, at) =>
    model.create(nodeTypes.directory, { parent: 0, name: bytes(`inside-${at}`) }),
  );
  for (const [at, node] of nested.entries())
    model.nodes.set(node.slot, { ...node, names: [{ parent: nested[at + 1]?.slot ?? 0, name: bytes('deep') }] });
  let parent = 0;
  for (let made = 0; made < 40; made++) {
    const name = bytes(`made-${made}`);
    if (made % 8 === 0) parent = model.create(nodeTypes.directory, { parent, name }).slot;
    else model.create(nodeTypes.file, { parent, name }, Buffer.alloc(made * 5000, made % 3));
  }
  await write(replica, model, 60);
  await replica.advance(-1, none);
  await replica.close();
  const inside = (root: string) => ({ folder: join(root, 'base'), indexFolder: join(root, 'base') });
  const base = await openBase(systemDisk, inside(at), 'Filesystem');
  const other = place();
  mkdirSync(join(other, 'base'));
  const copy = await openBase(systemDisk, inside(other), 'Filesystem');
  let commits = 0;
  for await (const record of base.records(none, { nodes: 3, commitBytes: 70_000, commitNodes: 7 })) {
    if ('commit' in record) await copy.settle(record.commit);
    else await copy.write(record);
    commits += Number('commit' in record);
  }
  t.ok(commits > 5, `${commits} commits`);
  t.same(copy.index.digest, base.index.digest);
  assert.deepEqual(await walk(join(other, 'base', 'tree')), expected(model));
  await copy.close();
  await base.close();
});

t.test(
  'block volumes: each point on a device that held something else',
  { skip: missingForLoop('ext4') },
  async (t) => {
    const { device } = loopDevice(t, 2);
    writeFileSync(device, Buffer.alloc(2 << 20, 0x55));
    // It shrinks and grows; its last granule is never a whole one.
    const sizes = [20 * granuleBytes + 512, 5 * granuleBytes + 1024, 30 * granuleBytes + 512];
    const replica = await open(place(), 'Block');
    const session = await replica.attach({ ...writer, sizeBytes: sizes[0] as number });
    const images: Buffer[] = [];
    const values: Record<number, number>[] = [
      { 0: 1, 3: 2, 19: 3, 20: 4 },
      { 1: 5, 5: 6 },
      { 0: 0, 29: 7, 30: 8 },
    ];
    const now: Record<number, number>[] = [
      { 0: 1, 3: 2, 19: 3, 20: 4 },
      { 0: 1, 1: 5, 3: 2, 5: 6 },
      { 1: 5, 3: 2, 5: 0, 29: 7, 30: 8 },
    ];
    for (const [at, sizeBytes] of sizes.entries()) {
      // The granule that was the last one, shorter, is sent anew.
      const change = at === 2 ? { ...values[at], 5: 0 } : (values[at] as Record<number, number>);
      await put(replica, session, change, sizeBytes);
      images.push(imageOf(now[at] as Record<number, number>, sizeBytes));
    }
    for (const [at, point] of replica.points.entries()) {
      await fill(replica, point, device, 'Block');
      const found = readFileSync(device);
      t.ok(found.subarray(0, sizes[at]).equals(images[at] as Buffer), `point ${at}`);
      t.ok(
        found.subarray(sizes[at]).every((byte) => byte === 0),
        'zeros behind it',
      );
    }
    const small = loopDevice(t, 1);
    await t.rejects(fill(replica, replica.newestPoint as Point, small.device, 'Block'), { code: 'TargetFull' });
    await t.rejects(fill(replica, replica.newestPoint as Point, place(), 'Block'), { code: 'TargetRefused' });
    await replica.close();
  },
);

t.test('what has rotted is never handed out', async (t) => {
  const at = place();
  const model = new TreeModel(randomOf(5), isRoot);
  const replica = await open(at, 'Filesystem');
  model.create(nodeTypes.file, { parent: 0, name: bytes('big') }, Buffer.alloc(100_000, 1));
  await write(replica, model, 0);
  await replica.advance(-1, none);
  const file = `${at}/base/tree/big`;
  const content = readFileSync(file);
  content[500] = (content[500] ?? 0) ^ 1;
  writeFileSync(file, content);
  const volume = place();
  for (const verify of [true, false]) {
    const filled = fill(replica, replica.newestPoint as Point, volume, 'Filesystem', verify);
    await t.rejects(filled, { code: 'ReplicaDamaged', message: /does not have its digest any more/ });
  }
  t.ok(
    readdirSync(volume).every((name) => name.startsWith('.cdm-recovery-')),
    'nothing of it has its name',
  );
  await replica.close();
});

t.test('a call that breaks off leaves no volume that looks whole; the next one fills it', async (t) => {
  const replica = await open(place(), 'Filesystem');
  const model = new TreeModel(randomOf(8), isRoot);
  await write(replica, model, 60);
  const volume = place();
  const broken: Pick<HeldReplica, 'pour' | 'measure'> = {
    measure: (point) => replica.measure(point),
    async pour(point, sink, signal) {
      let parts = 0;
      await replica.pour(
        point,
        (part) => (++parts > 2 ? Promise.reject(new Error('the line is cut')) : sink(part)),
        signal,
      );
    },
  };
  await t.rejects(fill(broken, replica.newestPoint as Point, volume, 'Filesystem'));
  t.ok(readdirSync(volume).every((name) => name.startsWith('.cdm-recovery-')));
  await fill(replica, replica.newestPoint as Point, volume, 'Filesystem');
  assert.deepEqual(await walk(volume), expected(model));
  await replica.close();
});
