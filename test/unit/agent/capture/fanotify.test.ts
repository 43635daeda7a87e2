import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { attach, sync } from '../../../conformance/capture.ts';
import { ModelReplica } from '../../../conformance/modelreplica.ts';
import { TreeMutator } from '../../../conformance/treemutator.ts';
import { differing, makePlace, mirrored, missingForFanotify } from '../../../conformance/treeplace.ts';
import { walkReplica } from '../../../conformance/treewalk.ts';
import { loopMount, missingForLoop, run } from '../../../loop.ts';

t.setTimeout(240_000);
const skip = await missingForFanotify();
/** No scan but those that are asked for. */
const named = { scanRatio: 0 };

t.test('with fanotify a look at what it names finds all, without a scan', { skip }, async (t) => {
  for (const seed of [1, 2]) {
    const place = makePlace();
    const mutator = new TreeMutator(place.root, seed);
    await mutator.change(200);
    const replica = new ModelReplica('Filesystem');
    const source = place.open({ scanRatio: 0 });
    await attach(source, replica);
    await sync(source, replica);
    const { fullScans } = source.counters;
    for (let round = 0; round < 25; round++) {
      await mutator.change(1 + (round % 30));
      t.equal(await sync(source, replica), undefined);
      t.strictSame(await differing(place.root, replica), [], `seed ${seed}, round ${round}`);
    }
    t.equal(source.counters.fullScans, fullScans, 'no scan');
    t.equal(source.counters.lostEvents, 0);
    await source.close();
    await place.remove();
  }
});

t.test('a tree of many directories that is moved, or whose mode changes, costs one look', { skip }, async (t) => {
  const { root, source, again, replica } = await mirrored(
    t,
    (root) => {
      for (let at = 0; at < 500; at++) fs.mkdirSync(`${root}/a/d${at}/e`, { recursive: true });
      fs.mkdirSync(`${root}/b`);
    },
    named,
  );
  const { sentNodes } = replica;
  fs.renameSync(`${root}/a`, `${root}/b/a`);
  await again();
  fs.chmodSync(`${root}/b/a`, 0o700);
  await again();
  fs.writeFileSync(`${root}/b/a/d250/e/new`, 'within what was moved');
  await again();
  t.ok(replica.sentNodes - sentNodes < 12, `${replica.sentNodes - sentNodes} nodes`);
  t.equal(source.counters.fullScans, 1);
});

/** Calls of this process and its threads while `work` goes on, by name. */
async function systemCalls(work: () => Promise<void>): Promise<Map<string, number>> {
  const out = fs.mkdtempSync(join(tmpdir(), 'strace-'));
  const tracer = spawn('strace', ['-f', '-c', '-U', 'calls,name', '-o', `${out}/counts`, '-p', `${process.pid}`]);
  const ended = once(tracer, 'exit');
  try {
    // One line for each thread; the workers of the pool are there since the first copy.
    await once(tracer.stderr, 'data');
    await work();
  } finally {
    tracer.kill('SIGINT');
    await ended;
  }
  const lines = fs.readFileSync(`${out}/counts`, 'utf8').split('\n');
  fs.rmSync(out, { recursive: true });
  return new Map(lines.map((line) => line.trim().split(/\s+/)).map(([calls, name]) => [name ?? '', Number(calls)]));
}

const noStrace =
  skip ||
  (spawnSync('strace', ['-f', '-c', '-o', '/dev/null', 'true']).status !== 0 && 'needs strace, and leave to trace');
t.test('what a cut costs follows what changed, not the size of the tree', { skip: noStrace }, async (t) => {
  const files = 4000;
  const { root, source, again, replica } = await mirrored(
    t,
    (root) => {
      for (let at = 0; at < files; at++) {
        fs.mkdirSync(`${root}/d${at % 400}`, { recursive: true });
        fs.writeFileSync(`${root}/d${at % 400}/f${at}`, `${at}`);
      }
    },
    named,
  );
  const calls = await systemCalls(async () => {
    for (let at = 0; at < 10; at++) fs.appendFileSync(`${root}/d${at * 7}/f${at * 7}`, 'changed');
    fs.rmSync(`${root}/d3/f3`);
    fs.renameSync(`${root}/d4`, `${root}/d5/d4`);
    t.equal(await sync(source, replica), undefined);
  });
  const looks = [...calls].filter(([name]) => /^(newfstatat|statx|openat2?|fstat|getdents64|readlink)$/.test(name));
  t.comment(looks.map(([name, times]) => `${name} ${times}`).join(', '));
  const count = looks.reduce((sum, [, times]) => sum + times, 0);
  t.ok(count > 10 && count < 600, `${count} looks into a tree of ${files} files`);
  t.equal(source.counters.fullScans, 1);
  await again();
});

const isLong = process.env['REPLICATOR_LONG'] === '1';
const many = isLong ? 100_000 : 3000;
t.test(`a tree of ${many} files that is moved sends no content and a handful of nodes`, { skip }, async (t) => {
  const { root, source, replica } = await mirrored(
    t,
    (root) => {
      for (let at = 0; at < many; at++) {
        if (at % 100 === 0) fs.mkdirSync(`${root}/a/b/d${at / 100}`, { recursive: true });
        fs.writeFileSync(`${root}/a/b/d${Math.floor(at / 100)}/f${at}`, `${at}`);
      }
      fs.mkdirSync(`${root}/c`);
    },
    named,
  );
  const { sentBytes, sentNodes } = replica;
  const startMs = performance.now();
  fs.renameSync(`${root}/a/b`, `${root}/c/moved`);
  t.equal(await sync(source, replica), undefined);
  t.comment(`${(performance.now() - startMs).toFixed(0)} ms`);
  t.equal(replica.sentBytes, sentBytes);
  t.ok(replica.sentNodes - sentNodes <= 4, `${replica.sentNodes - sentNodes} nodes`);
  const names = [...walkReplica(replica).keys()];
  t.equal(names.filter((path) => path.startsWith('/c/moved/')).length, many + many / 100);
  t.equal(source.counters.fullScans, 1);
});

t.test('what happens elsewhere on the filesystem is nothing to look at', { skip }, async (t) => {
  const { root, source, again } = await mirrored(t, (root) => fs.writeFileSync(`${root}/f`, '1'), named);
  const outside = `${root}.outside`;
  fs.mkdirSync(outside);
  t.teardown(() => fs.rmSync(outside, { recursive: true }));
  for (let batch = 0; batch < 30; batch++) {
    for (let at = 0; at < 1000; at++) fs.writeFileSync(`${outside}/${batch}-${at}`, '');
    await new Promise((done) => setTimeout(done, 60)); // the queue is emptied meanwhile
  }
  fs.renameSync(`${root}/f`, `${outside}/taken`);
  fs.mkdirSync(`${outside}/tree/below`, { recursive: true });
  fs.writeFileSync(`${outside}/tree/below/f`, 'from outside');
  fs.renameSync(`${outside}/tree`, `${root}/tree`);
  await again();
  t.equal(source.counters.fullScans, 1 + source.counters.lostEvents, 'scans only where the queue overflowed');
});

t.test("an overflow of the kernel's queue is noticed, and a scan finds what was lost", { skip }, async (t) => {
  const { root, source, again } = await mirrored(t, (root) => fs.mkdirSync(`${root}/d`), named);
  // Without a pause in which the queue could be emptied.
  const queue = Number(fs.readFileSync('/proc/sys/fs/fanotify/max_queued_events', 'utf8'));
  for (let at = 0; at < queue + 1000; at++) {
    fs.writeFileSync(`${root}/d/f${at}`, '');
    if (at > 100) fs.rmSync(`${root}/d/f${at}`);
  }
  await again();
  t.ok(source.counters.lostEvents > 0);
  t.ok(source.counters.fullScans > 1);
  t.match(source.counters.fullScanReason, /overflowed/);
  const { fullScans } = source.counters;
  fs.rmSync(`${root}/d/f7`);
  await again();
  t.equal(source.counters.fullScans, fullScans, 'then hints do again');
});

t.test(
  'it keeps nothing from being unmounted, and a filesystem mounted anew is scanned',
  { skip: skip || missingForLoop('ext4') },
  async (t) => {
    const { mountPoint, device } = await loopMount(t, 'ext4', 64);
    fs.mkdirSync(`${mountPoint}/d`);
    const place = makePlace();
    const source = place.open({ path: mountPoint, ...named });
    t.teardown(async () => {
      await source.close();
      await place.remove();
    });
    const replica = new ModelReplica('Filesystem');
    await attach(source, replica);
    t.equal(await sync(source, replica), undefined);
    t.equal(source.captureMethod, 'fanotify');
    fs.writeFileSync(`${mountPoint}/d/a`, 'a');
    t.equal(await sync(source, replica), undefined);
    t.equal(source.counters.fullScans, 1);
    const { status, stderr } = spawnSync('umount', [mountPoint], { encoding: 'utf8' });
    t.equal(status, 0, stderr);
    run('mount', device, mountPoint);
    fs.writeFileSync(`${mountPoint}/d/b`, 'before the agent looks again');
    t.equal(await sync(source, replica), undefined);
    t.strictSame(await differing(mountPoint, replica), []);
    t.match(source.counters.fullScanReason, /mounted anew/);
    fs.writeFileSync(`${mountPoint}/d/c`, 'told by the new mark');
    t.equal(await sync(source, replica), undefined);
    t.strictSame(await differing(mountPoint, replica), []);
    t.equal(source.counters.fullScans, 2);
  },
);

for (const type of ['xfs', 'btrfs']) {
  t.test(`${type}: by handles of its own kind, or not at all`, { skip: skip || missingForLoop(type) }, async (t) => {
    const { mountPoint } = await loopMount(t, type, 400);
    const place = makePlace();
    const mutator = new TreeMutator(mountPoint, 9);
    const source = place.open({ path: mountPoint, ...named });
    t.teardown(async () => {
      await source.close();
      await place.remove();
    });
    const replica = new ModelReplica('Filesystem');
    await attach(source, replica);
    await sync(source, replica);
    t.comment(source.captureReason);
    if (type === 'xfs') t.equal(source.captureMethod, 'fanotify');
    for (let round = 0; source.captureMethod === 'fanotify' && round < 10; round++) {
      await mutator.change(20);
      t.equal(await sync(source, replica), undefined);
      t.strictSame(await differing(mountPoint, replica), []);
    }
  });
}
