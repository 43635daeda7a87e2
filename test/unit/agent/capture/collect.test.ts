/** What no commit may part, with everything that a busy tree and a broken line can do at the worst moment. */
import fs from 'node:fs';
import t from 'tap';
import type { TreeSource } from '../../../../agent/treesource.ts';
import { systemClock } from '../../../../proto/system.ts';
import { attach, commit, sync } from '../../../conformance/capture.ts';
import type { ModelReplica } from '../../../conformance/modelreplica.ts';
import { walkReplica } from '../../../conformance/treewalk.ts';
import { differing, mirrored, missingForFanotify } from '../../../conformance/treeplace.ts';

const noFanotify = await missingForFanotify();
const never = new AbortController().signal;

t.test(
  'a directory that moves on between the look and its reading is not buried by what has its name now',
  async (t) => {
    let between = (): void => undefined;
    // A cut waits for the kernel's clock after its look and before it reads; by this clock it always has to.
    const clock = {
      ...systemClock,
      nowMs: () => systemClock.nowMs() - 60_000,
      async sleep(ms: number, signal?: AbortSignal) {
        between();
        between = () => undefined;
        return systemClock.sleep(ms, signal);
      },
    };
    const { root, source, replica } = await mirrored(
      t,
      (root) => {
        fs.mkdirSync(`${root}/a/deep`, { recursive: true });
        for (let at = 0; at < 20; at++) fs.writeFileSync(`${root}/a/deep/f${at}`, `${at}`);
      },
      { clock },
    );
    const { sentBytes } = replica;
    fs.renameSync(`${root}/a`, `${root}/b`);
    fs.mkdirSync(`${root}/a`);
    fs.writeFileSync(`${root}/a/new`, 'new');
    let isMoved = false;
    between = () => {
      fs.renameSync(`${root}/b`, `${root}/c`);
      isMoved = true;
    };
    t.equal(await sync(source, replica, { commitEvery: 1 }), undefined);
    t.equal(isMoved, true);
    t.strictSame(await differing(root, replica), []);
    t.equal(replica.sentBytes - sentBytes, 3, 'and nothing of it crosses again');
  },
);

for (const hints of ['fanotify', 'inotify', 'scan'] as const) {
  const skip = hints === 'fanotify' && noFanotify;
  t.test(`what is replaced by a rename before it is read is in the cut, old or new (${hints})`, { skip }, async (t) => {
    let between = (): void => undefined;
    const clock = {
      ...systemClock,
      nowMs: () => systemClock.nowMs() - 60_000,
      async sleep(ms: number, signal?: AbortSignal) {
        between();
        between = () => undefined;
        return systemClock.sleep(ms, signal);
      },
    };
    const { root, source, replica } = await mirrored(
      t,
      (root) => {
        for (const name of ['changed', 'still']) fs.writeFileSync(`${root}/${name}`, 'old');
        fs.mkdirSync(`${root}/folder`);
        fs.writeFileSync(`${root}/folder/within`, 'old');
      },
      { clock, hints },
    );
    fs.appendFileSync(`${root}/changed`, 'er');
    between = () => {
      for (const name of ['changed', 'still']) {
        fs.linkSync(`${root}/${name}`, `${root}/${name}.old`);
        fs.writeFileSync(`${root}/${name}.new`, 'new');
        fs.renameSync(`${root}/${name}.new`, `${root}/${name}`);
        fs.unlinkSync(`${root}/${name}.old`);
      }
      fs.mkdirSync(`${root}/folder.new`);
      fs.writeFileSync(`${root}/folder.new/within`, 'new');
      fs.renameSync(`${root}/folder`, `${root}/folder.old`);
      fs.renameSync(`${root}/folder.new`, `${root}/folder`);
    };
    t.equal(await sync(source, replica), undefined);
    const there = walkReplica(replica);
    for (const name of ['changed', 'still', 'folder', 'folder/within']) t.ok(there.has(`/${name}`), name);
    t.equal(await sync(source, replica), undefined);
    t.strictSame(await differing(root, replica), []);
  });
}

t.test('nodes that are offered in several pieces all count as sent, or none', async (t) => {
  const { root, source, replica } = await mirrored(t, (root) => {
    for (let at = 0; at < 12; at++) fs.writeFileSync(`${root}/f${at}`, `${at}`);
  });
  for (let broken = 1; ; broken++) {
    // Every second one is as it was, so that they go in pieces of one.
    for (let at = 0; at < 12; at += 2) fs.chmodSync(`${root}/f${at}`, 0o600 + (broken % 64));
    await attach(source, replica);
    const taken = await takeAndCommit(source, replica, broken);
    await attach(source, replica);
    t.equal(await sync(source, replica), undefined);
    t.strictSame(await differing(root, replica), [], `the line broke after ${taken} pieces`);
    if (taken < broken) {
      t.ok(taken > 6, `${taken} pieces`);
      break;
    }
  }
});

/** A round over everything, a commit wherever one may be, until the line breaks after so many pieces. Answers how many. */
async function takeAndCommit(source: TreeSource, replica: ModelReplica, pieces: number): Promise<number> {
  let taken = 0;
  for await (const piece of source.round(true, () => undefined, never)) {
    replica.take(piece);
    if (!source.isIndivisible) await commit(source, replica, false);
    if (++taken === pieces) break;
  }
  return taken;
}

t.test('content of small files is in no commit before its node, and there is a commit all the same', async (t) => {
  const { root, source, replica } = await mirrored(t, () => undefined);
  for (let at = 0; at < 1200; at++) fs.writeFileSync(`${root}/f${at}`, `content ${at}`);
  const open = new Set<number>();
  let commits = 0;
  let parted = 0;
  const cut = await source.cut(never);
  for await (const piece of cut.pieces(never)) {
    replica.take(piece);
    if (piece.kind === 'content') open.add(piece.object);
    if (piece.kind === 'nodes') for (const { slot } of piece.nodes) open.delete(slot);
    if (source.isIndivisible) continue;
    parted += open.size;
    await commit(source, replica, false);
    commits++;
  }
  t.equal(await cut.broken(), undefined);
  t.equal(parted, 0);
  t.ok(commits >= 3, `${commits} commits on the way`);
  await commit(source, replica, true);
  t.strictSame(await differing(root, replica), []);
});
