/** Trees on a real btrfs, cut by snapshots of their subvolume. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import t, { type Test } from 'tap';
import { snapshotTree } from '../../../agent/capture/btrfs.ts';
import { openTree } from '../../../agent/capture/tree.ts';
import { openTrackings } from '../../../agent/trackings.ts';
import type { TreeSourceOptions } from '../../../agent/treesource.ts';
import { systemClock } from '../../../proto/system.ts';
import { loopMount, missingForLoop, run } from '../../loop.ts';
import { attach, captureConformance, sync } from '../../conformance/capture.ts';
import { ModelReplica } from '../../conformance/modelreplica.ts';
import { TreeMutator } from '../../conformance/treemutator.ts';
import { differing, makePlace, type Place } from '../../conformance/treeplace.ts';

t.setTimeout(240_000);
const missing = missingForLoop('btrfs');
const never = new AbortController().signal;
let made = 0;

if (missing !== false) t.test('trees on btrfs', { skip: missing }, async () => undefined);
else {
  const { mountPoint } = await loopMount(t, 'btrfs', 512);
  const folder = `${mountPoint}/.cdm-replicator`;
  const options = { consistency: 'crash' } as const;

  if (process.env['REPLICATOR_LONG'])
    await captureConformance(
      t,
      'tree on btrfs, by snapshots',
      async () => makePlace(subvolume(mountPoint), options),
      (captured, seed) => {
        const { root } = captured as Place;
        const mutator = new TreeMutator(root, seed);
        return { change: () => mutator.change(25), differences: (replica) => differing(root, replica) };
      },
    );

  t.test('all of a snapshot is of one instant, and nothing is left of it', async (t) => {
    const events: string[] = [];
    const root = `${subvolume(mountPoint)}/below/it`;
    fs.mkdirSync(root, { recursive: true });
    for (let at = 0; at < 300; at++) fs.writeFileSync(`${root}/f${at}`, `${at}`);
    for (const name of ['first', 'second']) fs.writeFileSync(`${root}/${name}`, '0'.padStart(10));
    // One value, durable in the first file before the second has it.
    const program = `const fs=require('fs');const [a,b]=['first','second'].map((n)=>fs.openSync(process.argv[1]+'/'+n,'r+'));
      for(let v=1;;v++){const s=String(v).padStart(10);for(const f of [a,b]){fs.writeSync(f,s,0);fs.fdatasyncSync(f)}}`;
    const event: TreeSourceOptions['event'] = ({ message }) => events.push(message);
    const { source, replica } = await opened(t, root, { consistency: null, event });
    const writer = spawn(process.execPath, ['-e', program, root], { stdio: 'ignore' });
    t.teardown(async () => {
      const exited = once(writer, 'exit');
      writer.kill('SIGKILL');
      await exited;
    });
    let last = -1;
    for (let round = 0; round < 6; round++) {
      const cut = await synced(t, source, replica);
      t.equal(cut.consistency, 'crash');
      const value = (name: string): number => {
        const [slot] = [...replica.nodes].find(([, node]) => node.names.some((one) => String(one.name) === name)) ?? [];
        return slot === undefined ? NaN : Number(replica.bytes(slot, 10).toString());
      };
      const [first, second] = [value('first'), value('second')];
      t.ok(first - second === 0 || first - second === 1, `${first} and ${second}`);
      t.ok(first > last, 'and it moves on');
      last = first;
      t.same(fs.readdirSync(folder), [], 'no snapshot stays');
    }
    t.equal(events.length, 1);
    t.match(events[0], /consistency crash: read from btrfs snapshots. No freeze: this agent freezes nothing/);
  });

  t.test('what a crash in the middle of a cut leaves goes with the next session', async (t) => {
    const root = subvolume(mountPoint);
    for (let at = 0; at < 50; at++) fs.writeFileSync(`${root}/f${at}`, `${at}`);
    const place = makePlace(root, options);
    t.teardown(() => place.remove());
    const source = place.open();
    await attach(source, new ModelReplica('Filesystem'));
    const pieces = (await source.cut(never)).pieces(never)[Symbol.asyncIterator]();
    await pieces.next();
    t.equal(fs.readdirSync(folder).length, 1);
    await place.crash(source);
    await t.test('or with the replication', async (t) => {
      const { dataDir, kept } = await left(t, root);
      t.same(fs.readdirSync(folder).length, 2);
      const log = { info: () => undefined };
      const trackings = openTrackings({ dataDir, clock: systemClock, log });
      await trackings.forgetOthers([]);
      await trackings.close();
      t.same(fs.readdirSync(kept), []);
      t.same(fs.readdirSync(folder).length, 1);
    });
    const replica = new ModelReplica('Filesystem');
    const next = place.open();
    await attach(next, replica);
    t.teardown(() => next.close());
    t.same(fs.readdirSync(folder), []);
    t.equal(await sync(next, replica), undefined);
    t.strictSame(await differing(root, replica), []);
  });

  t.test('a file that gets a second name in a new directory is in the same cut', async (t) => {
    const root = subvolume(mountPoint);
    fs.writeFileSync(`${root}/file`, 'x');
    const { source, replica } = await opened(t, root, options);
    t.equal(await sync(source, replica), undefined);
    fs.mkdirSync(`${root}/new`);
    fs.linkSync(`${root}/file`, `${root}/new/link`);
    t.equal(await sync(source, replica), undefined);
    t.strictSame(await differing(root, replica), []);
  });

  t.test('where a snapshot would be seen, or shows other than the tree, it is said why there is none', async (t) => {
    const events: string[] = [];
    const event: TreeSourceOptions['event'] = ({ message }) => events.push(message);
    const top = await opened(t, mountPoint, { consistency: null, event });
    t.equal((await synced(t, top.source, top.replica)).consistency, 'file');
    t.match(events.pop(), /No snapshot: .* is the top of its btrfs/);

    const root = subvolume(mountPoint);
    run('btrfs', 'subvolume', 'create', `${root}/nested`);
    const nested = await opened(t, root, { consistency: null, event });
    t.equal((await synced(t, nested.source, nested.replica)).consistency, 'file');
    t.match(events.pop(), /No snapshot: 1 subvolumes or other filesystems are mounted in it/);

    const strict = await opened(t, root, {});
    t.match(await sync(strict.source, strict.replica), {
      reason: 'unsupported',
      message: /no crash-consistent cut: 1 subvolumes/,
    });
  });
}

function subvolume(mountPoint: string): string {
  const path = `${mountPoint}/volume${made++}`;
  run('btrfs', 'subvolume', 'create', path);
  return path;
}

/** A snapshot of a replication of an agent that was killed. */
async function left(t: Test, root: string): Promise<{ dataDir: string; kept: string }> {
  const dataDir = fs.mkdtempSync(`${fs.realpathSync(tmpdir())}/agent-`);
  t.teardown(() => fs.rmSync(dataDir, { recursive: true, force: true }));
  const kept = `${dataDir}/replications`;
  fs.mkdirSync(`${kept}/0123456789abcdef`, { recursive: true });
  const tree = await openTree(root);
  const snapshot = await snapshotTree(tree, `${kept}/0123456789abcdef`);
  fs.closeSync(snapshot.fd);
  await tree.close();
  return { dataDir, kept };
}

async function opened(t: Test, root: string, options: Partial<TreeSourceOptions>) {
  const place = makePlace(root, { consistency: 'crash', ...options });
  const source = place.open();
  t.teardown(async () => {
    await source.close();
    await place.remove();
  });
  const replica = new ModelReplica('Filesystem');
  await attach(source, replica);
  return { source, replica };
}

/** As `sync`, and what the cut was. */
async function synced(t: Test, source: ReturnType<Place['open']>, replica: ModelReplica) {
  for await (const piece of source.round(false, () => undefined, never)) replica.take(piece);
  const cut = await source.cut(never);
  for await (const piece of cut.pieces(never)) replica.take(piece);
  t.equal(await cut.broken(), undefined);
  const sequence = replica.sequence + 1;
  await source.prepare(sequence);
  replica.commit(sequence, source.commitSizeBytes(), true);
  await source.committed(sequence, true, replica.welcome().digest);
  return cut;
}
