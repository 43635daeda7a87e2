import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { promises as fs, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { removeTree, TreeBase } from '../../../../master/replica/treebase.ts';
import { lgetxattr } from '../../../../proto/libc.ts';
import { contentRoot, granuleHash } from '../../../../proto/granule.ts';
import { goneNode } from '../../../../proto/node.ts';
import { nodeTypes, type Node } from '../../../../proto/wire.ts';
import { bytes, commitOf, dataOf, randomOf, TreeModel, type Epoch } from './treemodel.ts';
import { expected, walk } from './treestate.ts';

const folder = mkdtempSync(join(tmpdir(), 'treebase-'));
t.teardown(() => {
  execFileSync('chmod', ['-R', 'u+rwX', folder]);
  rmSync(folder, { recursive: true });
});
const isRoot = process.geteuid?.() === 0;
const never = new AbortController().signal;
const quiet = () => undefined;
let places = 0;

function place(): { tree: string; index: string } {
  const own = `${folder}/${++places}`;
  mkdirSync(own);
  return { tree: `${own}/tree`, index: `${own}/index.db` };
}

async function write(base: TreeBase, { data, nodes }: Epoch): Promise<void> {
  for (const one of data) await base.write({ data: one });
  await base.write({ nodes: { nodes } });
}

async function apply(base: TreeBase, epoch: Epoch, slots: number, sequence = base.index.sequence + 1): Promise<void> {
  await write(base, epoch);
  await base.settle(commitOf(sequence, slots));
}

async function isSound(base: TreeBase, tree: string, model: TreeModel, hint: string): Promise<void> {
  assert.deepEqual(await walk(tree), expected(model), hint);
  const { bad } = await base.verify(never, quiet);
  assert.deepEqual(bad, [], hint);
  assert.equal(base.index.unknown, 0);
}

async function isAbsent(path: string): Promise<boolean> {
  return fs.lstat(path).then(
    () => false,
    () => true,
  );
}

t.test('after each settle the tree is the source, whatever changed; several epochs at once too', async () => {
  for (let seed = 1; seed <= 12; seed++) {
    const model = new TreeModel(randomOf(seed), isRoot);
    const { tree, index } = place();
    let base = await TreeBase.open(tree, index);
    for (let epoch = 0; epoch < 6; epoch++) {
      for (let part = 0; part <= seed % 3; part++) {
        if (part > 0) await base.endEpoch();
        for (let step = 0; step < 12; step++) model.step();
        await write(base, model.epoch());
      }
      await base.settle(commitOf(base.index.sequence + 1, model.slots));
      await isSound(base, tree, model, `seed ${seed}, epoch ${epoch}`);
      if (epoch % 2) {
        await base.close();
        assert.ok(await isAbsent(`${tree}.staging`));
        base = await TreeBase.open(tree, index);
      }
    }
    await base.close();
  }
});

t.test('a crash at any step of two epochs, opened again and redone, gives the right tree', async (t) => {
  let crashes = 0;
  for (let seed = 1; seed <= 3; seed++) {
    for (let stopAt = 1; ; stopAt += 1 + (stopAt >> 4)) {
      const model = new TreeModel(randomOf(seed), isRoot);
      const { tree, index } = place();
      let steps = 0;
      const step = (): void => {
        if (++steps === stopAt) throw new Error('crash');
      };
      for (let at = 0; at < 25; at++) model.step();
      const before = model.epoch();
      const slots = model.slots;
      for (let at = 0; at < 15; at++) model.step();
      const after = model.epoch();
      const redo = async (base: TreeBase): Promise<void> => {
        if (base.index.sequence < 1) await apply(base, before, slots, 1);
        if (base.index.sequence < 2) await apply(base, after, model.slots, 2);
      };
      let crashed = false;
      let base = await TreeBase.open(tree, index, step);
      try {
        await redo(base);
      } catch (error) {
        if (!(error instanceof Error) || error.message !== 'crash') throw error;
        crashed = true;
        crashes++;
      }
      await base.close();
      base = await TreeBase.open(tree, index);
      await redo(base);
      await isSound(base, tree, model, `seed ${seed}, stopped at step ${stopAt}`);
      await base.close();
      assert.ok(await isAbsent(`${tree}.staging`));
      await removeTree(tree);
      assert.ok(await isAbsent(tree));
      if (!crashed) break;
    }
  }
  t.ok(crashes > 50, `${crashes} crashes`);
});

t.test('a copy is the same tree, shares nothing that can be written, and can be redone further', async (t) => {
  const model = new TreeModel(randomOf(7), isRoot);
  const source = place();
  const base = await TreeBase.open(source.tree, source.index);
  for (let at = 0; at < 60; at++) model.step();
  await apply(base, model.epoch(), model.slots);
  const target = place();
  await fs.mkdir(target.tree); // an empty directory will do
  const copy = await base.cloneTo(target.tree, target.index, never, quiet);
  await isSound(copy, target.tree, model, 'copy');
  t.strictSame(copy.index.digest, base.index.digest);
  const rsync = ['-aHAXSnci', '--delete', `${source.tree}/`, `${target.tree}/`];
  if (spawnSync('rsync', ['--version']).error) t.pass('rsync is not installed: compared by our own walk only');
  else t.equal(execFileSync('rsync', rsync).toString(), '');
  const original = await walk(source.tree);
  for (let at = 0; at < 30; at++) model.step();
  await apply(copy, model.epoch(), model.slots);
  await isSound(copy, target.tree, model, 'copy, further on');
  t.strictSame(await walk(source.tree), original);
  await base.close();
  await copy.close();
});

t.test('a copy with content whose node has not come yet can go on', async () => {
  const model = new TreeModel(randomOf(9), isRoot);
  const source = place();
  const target = place();
  const base = await TreeBase.open(source.tree, source.index);
  await apply(base, model.epoch(), model.slots);
  for (let at = 0; at < 40; at++) model.step();
  const { data, nodes } = model.epoch();
  await apply(base, { data, nodes: [] }, 1);
  const copy = await base.cloneTo(target.tree, target.index, never, quiet);
  for (const [one, tree] of [
    [base, source.tree],
    [copy, target.tree],
  ] as const) {
    await apply(one, { data: [], nodes }, model.slots);
    await isSound(one, tree, model, tree);
    await one.close();
  }
});

t.test('what a crash left of removed files in the staging folder keeps no copy from being made', async () => {
  const model = new TreeModel(randomOf(4), isRoot);
  const { tree, index } = place();
  let base = await TreeBase.open(tree, index);
  for (let step = 0; step < 30; step++) model.step();
  await apply(base, model.epoch(), model.slots);
  await base.close();
  const leave = (): void => {
    mkdirSync(`${tree}.staging/x-1/y`, { recursive: true });
    writeFileSync(`${tree}.staging/x7`, 'gone');
    writeFileSync(`${tree}.staging/n9999`, 'of an epoch that was given up');
  };
  leave();
  base = await TreeBase.open(tree, index);
  const [first, second] = [place(), place()];
  await (await base.cloneTo(first.tree, first.index, never, quiet)).close();
  leave();
  const copy = await base.cloneTo(second.tree, second.index, never, quiet);
  await isSound(copy, second.tree, model, 'the copy');
  await copy.close();
  await base.close();
});

t.test('a copy goes nowhere where something is, and leaves nothing when it is cancelled', async (t) => {
  const model = new TreeModel(randomOf(3), isRoot);
  const source = place();
  const base = await TreeBase.open(source.tree, source.index);
  for (let at = 0; at < 40; at++) model.step();
  model.create(nodeTypes.file, { parent: 0, name: bytes('some content') }, Buffer.alloc(300_000, 1));
  await apply(base, model.epoch(), model.slots);
  const taken = place();
  await fs.mkdir(taken.tree);
  await fs.writeFile(`${taken.tree}/mine`, 'x');
  await t.rejects(base.cloneTo(taken.tree, taken.index, never, quiet), { code: 'TargetRefused' });
  t.equal(await fs.readFile(`${taken.tree}/mine`, 'utf8'), 'x');
  const target = place();
  await fs.symlink(taken.tree, target.tree);
  await t.rejects(base.cloneTo(target.tree, target.index, never, quiet), { code: 'TargetRefused' });
  await fs.unlink(target.tree);
  const abort = new AbortController();
  const whenSome = (done: number): void => {
    if (done > 0) abort.abort();
  };
  await t.rejects(base.cloneTo(target.tree, target.index, abort.signal, whenSome), { name: 'AbortError' });
  t.strictSame(await fs.readdir(join(target.tree, '..')), []);
  await base.close();
});

const directory = (slot: number, parent: number, name: Buffer): Node => ({
  ...goneNode(slot),
  type: nodeTypes.directory,
  mode: 0o755,
  uid: process.getuid?.() ?? 0,
  gid: process.getgid?.() ?? 0,
  names: [{ parent, name }],
});
const rootNode: Node = { ...directory(0, 0, bytes('')), names: [] };

t.test('a link swapped in for a directory leads no write outside', async (t) => {
  const model = new TreeModel(randomOf(1), isRoot);
  const outside = `${folder}/outside`;
  mkdirSync(outside);
  await fs.writeFile(`${outside}/f`, 'precious');
  const { tree, index } = place();
  const base = await TreeBase.open(tree, index);
  const d = model.create(nodeTypes.directory, { parent: 0, name: bytes('d') });
  const f = model.create(nodeTypes.file, { parent: d.slot, name: bytes('f') }, bytes('content'));
  await apply(base, model.epoch(), model.slots);
  await fs.rename(`${tree}/d`, `${folder}/moved-away`);
  await fs.symlink(outside, `${tree}/d`);
  const state = await walk(outside);

  const wrong = await base.verify(never, quiet);
  t.strictSame(
    wrong.bad.map(({ object, granule }) => `${object}/${granule}`).sort(),
    [`0/${d.slot}`, `0/${f.slot}`, `${f.slot}/0`, ...(wrong.bad.length > 3 ? ['0/0'] : [])].sort(),
  );
  const again = new TreeModel(randomOf(1), isRoot);
  again.nodes = model.nodes;
  again.content = model.content;
  again.write(f.slot, bytes('renewed'));
  again.create(nodeTypes.file, { parent: d.slot, name: bytes('g') }, bytes('new'));
  await apply(base, again.epoch(), again.slots);
  t.strictSame(await walk(outside), state);
  await isSound(base, tree, again, 'healed');
  await base.close();
});

t.test('a link swapped in that nobody noticed stops the apply without a write outside', async (t) => {
  const outside = `${folder}/outside2`;
  mkdirSync(outside);
  await fs.writeFile(`${outside}/f`, 'precious');
  const { tree, index } = place();
  const base = await TreeBase.open(tree, index);
  const model = new TreeModel(randomOf(2), isRoot);
  const d = model.create(nodeTypes.directory, { parent: 0, name: bytes('d') });
  const f = model.create(nodeTypes.file, { parent: d.slot, name: bytes('f') }, bytes('content'));
  await apply(base, model.epoch(), model.slots);
  await fs.rm(`${tree}/d`, { recursive: true });
  await fs.symlink(outside, `${tree}/d`);
  const state = await walk(outside);
  model.write(f.slot, bytes('changed'));
  await t.rejects(apply(base, model.epoch(), model.slots), { code: 'ReplicaDamaged' });
  base.index.discard();
  const touched = { ...(model.nodes.get(d.slot) as Node), mode: 0o700 };
  const moved = { ...(model.nodes.get(f.slot) as Node), names: [{ parent: 0, name: bytes('f') }] };
  const file = { ...moved, sizeBytes: 7, contentRoot: base.index.node(f.slot)?.contentRoot ?? Buffer.alloc(16) };
  await t.rejects(apply(base, { data: [], nodes: [touched, file] }, model.slots), { code: 'ReplicaDamaged' });
  t.strictSame(await walk(outside), state);
  await base.close();
});

t.test('damage of any kind is found, and cured by what is sent again', async (t) => {
  const model = new TreeModel(randomOf(21), isRoot);
  const { tree, index } = place();
  const base = await TreeBase.open(tree, index);
  const at = (parent: number, name: string) => ({ parent, name: bytes(name) });
  const file = model.create(nodeTypes.file, at(0, 'file'), Buffer.alloc(200_000, 7));
  const lost = model.create(nodeTypes.file, at(0, 'lost'), bytes('lost'));
  const link = model.create(nodeTypes.symlink, at(0, 'link'));
  const sub = model.create(nodeTypes.directory, at(0, 'sub'));
  await apply(base, model.epoch(), model.slots);
  const { digest } = base.index;
  const handle = await fs.open(`${tree}/file`, 'r+');
  await handle.write(Buffer.from('rot'), 0, 3, 70_000);
  await handle.utimes((await handle.stat()).atime, 1);
  await handle.close();
  await fs.rm(`${tree}/lost`);
  await fs.rm(`${tree}/link`);
  await fs.symlink('/etc', `${tree}/link`);
  await fs.mkdir(`${tree}/sub/foreign/deep`, { recursive: true });
  await fs.chmod(`${tree}/sub`, 0o777);
  const { bad } = await base.verify(never, quiet);
  const names = new Set(bad.map(({ object, granule }) => `${object}/${granule}`));
  const wrong = [
    `0/${file.slot}`,
    `${file.slot}/1`,
    `0/${lost.slot}`,
    `${lost.slot}/0`,
    `0/${link.slot}`,
    `0/${sub.slot}`,
  ];
  for (const one of wrong) t.ok(names.has(one), one);
  t.notOk(names.has(`${file.slot}/0`));
  t.ok(base.index.unknown >= 4);
  const again = new TreeModel(randomOf(1), isRoot);
  again.nodes = model.nodes;
  again.content = model.content;
  await apply(base, again.epoch(), again.slots);
  t.strictSame(base.index.digest, digest);
  await isSound(base, tree, again, 'cured');
  await base.close();
});

t.test('a way deeper than 4096 bytes, moved as one, copied and removed', async (t) => {
  const { tree, index } = place();
  const base = await TreeBase.open(tree, index);
  const nodes = [rootNode];
  const name = Buffer.alloc(250, 'n');
  for (let depth = 1; depth <= 40; depth++) nodes.push(directory(depth, depth - 1, name));
  await apply(base, { data: [], nodes }, 41);
  await apply(base, { data: [], nodes: [directory(1, 0, bytes('moved'))] }, 41);
  t.strictSame((await base.verify(never, quiet)).bad, []);
  t.ok(base.index.path(40).length > 4096 * 2);
  const target = place();
  const copy = await base.cloneTo(target.tree, target.index, never, quiet);
  t.strictSame((await copy.verify(never, quiet)).bad, []);
  await apply(copy, { data: [], nodes: nodes.slice(1).map(({ slot }) => goneNode(slot)) }, 1);
  t.strictSame(await fs.readdir(target.tree), []);
  await copy.close();
  await base.close();
});

t.test('holes stay holes, also in a copy', async (t) => {
  const { tree, index } = place();
  const base = await TreeBase.open(tree, index);
  const model = new TreeModel(randomOf(4), isRoot);
  const content = Buffer.alloc(8 << 20);
  content.fill(1, 0, 100);
  content.fill(2, 6 << 20, (6 << 20) + 100);
  const { slot } = model.create(nodeTypes.file, { parent: 0, name: bytes('sparse') }, content);
  await apply(base, model.epoch(), model.slots);
  const dense = Buffer.from(content).fill(3, 1 << 20, 5 << 20);
  model.write(slot, dense);
  await apply(base, model.epoch(), model.slots);
  model.write(slot, content);
  await apply(base, model.epoch(), model.slots);
  await isSound(base, tree, model, 'sparse');
  const target = place();
  const copy = await base.cloneTo(target.tree, target.index, never, quiet);
  for (const path of [tree, target.tree]) {
    t.ok((await fs.stat(`${path}/sparse`)).blocks * 512 < 1 << 20, 'punched');
  }
  await copy.close();
  await base.close();
});

t.test('POSIX ACLs, capabilities and setuid', { skip: isRoot ? false : 'needs root' }, async (t) => {
  const { tree, index } = place();
  const base = await TreeBase.open(tree, index);
  const model = new TreeModel(randomOf(4));
  const { slot } = model.create(nodeTypes.file, { parent: 0, name: bytes('program') }, bytes('#!'));
  const probe = `${folder}/probe`;
  await fs.writeFile(probe, '');
  if (spawnSync('setfacl', ['-m', 'u:1234:rx', probe]).status !== 0) {
    t.pass('setfacl is not installed or the filesystem has no ACLs');
    return base.close();
  }
  const value = await lgetxattr(probe, bytes('system.posix_acl_access'));
  const mode = ((await fs.stat(probe)).mode & 0o777) | 0o4000;
  const xattrs = [{ name: bytes('system.posix_acl_access'), value: value as Buffer }];
  model.nodes.set(slot, { ...(model.nodes.get(slot) as Node), uid: 12, gid: 34, mode, xattrs });
  await apply(base, model.epoch(), model.slots);
  await isSound(base, tree, model, 'acl');
  model.write(slot, bytes('#! changed')); // a write takes setuid away
  await apply(base, model.epoch(), model.slots);
  await isSound(base, tree, model, 'acl kept');
  t.equal(base.withheld, 0);
  await base.close();
});

t.test(
  'without privilege: what the kernel refuses is withheld and no damage',
  { skip: isRoot ? false : 'needs root' },
  async (t) => {
    const { tree, index } = place();
    await fs.chmod(folder, 0o711);
    await fs.chown(join(tree, '..'), 65534, 65534);
    process.setegid?.(65534);
    process.seteuid?.(65534);
    try {
      const base = await TreeBase.open(tree, index);
      const state = { uid: 65534, gid: 65534, mode: 0o555 };
      const program = {
        ...goneNode(2),
        ...state,
        type: nodeTypes.file,
        uid: 0,
        mode: 0o4755,
        contentRoot: contentRoot(bytes('')),
      };
      const device = { ...goneNode(3), type: nodeTypes.block, deviceMajor: 7, mode: 0o600 };
      const nodes = [
        { ...rootNode, ...state },
        { ...directory(1, 0, bytes('d')), ...state },
        { ...program, names: [{ parent: 1, name: bytes('program') }] },
        { ...device, names: [{ parent: 1, name: bytes('device') }] },
      ];
      await apply(base, { data: [], nodes }, 4);
      t.equal(base.withheld, 2);
      t.strictSame((await base.verify(never, quiet)).bad, []);
      t.equal((await fs.stat(`${tree}/d/program`)).mode & 0o7777, 0o755, 'no setuid for the wrong owner');
      t.strictSame(await fs.readdir(`${tree}/d`), ['program']);
      const copy = await base.cloneTo(`${tree}-copy`, `${index}-copy`, never, quiet);
      t.strictSame((await copy.verify(never, quiet)).bad, []);
      t.equal((await fs.stat(`${tree}-copy/d`)).mode & 0o777, 0o555);
      await copy.close();
      await apply(base, { data: [], nodes: [{ ...directory(1, 0, bytes('moved')), ...state }, goneNode(2)] }, 4);
      t.strictSame((await base.verify(never, quiet)).bad, []);
      t.strictSame(await fs.readdir(`${tree}/moved`), []);
      await removeTree(`${tree}-copy`);
      t.ok(await isAbsent(`${tree}-copy`));
      await base.close();
    } finally {
      process.seteuid?.(0);
      process.setegid?.(0);
    }
  },
);

t.test('content may come in commits before those of its nodes, applied together or one by one', async () => {
  for (let seed = 1; seed <= 8; seed++) {
    const random = randomOf(seed);
    const model = new TreeModel(randomOf(seed + 1000), isRoot);
    const { tree, index } = place();
    let base = await TreeBase.open(tree, index);
    let sequence = 0;
    for (let epoch = 0; epoch < 8; epoch++) {
      for (let step = 0; step < 12; step++) model.step();
      const { data, nodes } = model.epoch();
      for (const one of data) {
        await base.write({ data: one });
        const chance = random(100) / 100;
        if (chance < 0.3) await base.settle(commitOf(++sequence, Math.max(base.index.sizeBytes, model.slots)));
        else if (chance < 0.6) await base.endEpoch();
        if (chance < 0.1) {
          await base.close();
          base = await TreeBase.open(tree, index);
        }
      }
      await base.write({ nodes: { nodes } });
      await base.settle(commitOf(++sequence, model.slots));
      await isSound(base, tree, model, `seed ${seed}, epoch ${epoch}`);
      const copy = place();
      const clone = await base.cloneTo(copy.tree, copy.index, never, quiet);
      await isSound(clone, copy.tree, model, `copy, seed ${seed}, epoch ${epoch}`);
      await clone.close();
    }
    await base.close();
  }
});

/** A root and a file of one granule in slot 1, named as given. */
async function withFile(names: string[]): Promise<{ base: TreeBase; tree: string; node: Node; content: Buffer }> {
  const { tree, index } = place();
  const base = await TreeBase.open(tree, index);
  const content = Buffer.alloc(1000, 'a');
  const node = { ...fileOf(1, content), names: names.map((name) => ({ parent: 0, name: bytes(name) })) };
  await apply(base, { data: dataOf(1, content, undefined), nodes: [rootNode, node] }, 2);
  return { base, tree, node, content };
}

function fileOf(slot: number, content: Buffer): Node {
  const root = contentRoot(granuleHash(content));
  return { ...goneNode(slot), type: nodeTypes.file, mode: 0o644, sizeBytes: content.length, contentRoot: root };
}

t.test('a file that loses a name keeps what was put beyond the size that its node says', async (t) => {
  const { base, tree, node } = await withFile(['a', 'b']);
  const longer = Buffer.alloc(2000, 'b');
  for (const data of dataOf(1, longer, undefined)) await base.write({ data });
  await apply(base, { data: [], nodes: [directory(2, 0, bytes('a'))] }, 3);
  await apply(base, { data: [], nodes: [{ ...fileOf(1, longer), names: node.names.slice(1) }] }, 3);
  t.ok((await fs.readFile(`${tree}/b`)).equals(longer));
  t.strictSame((await base.verify(never, quiet)).bad, []);
  await base.close();
});

t.test('a file that loses its last name to another takes its content along', async (t) => {
  const { base, content } = await withFile(['a']);
  const other = Buffer.alloc(1000, 'b');
  for (const data of dataOf(1, other, undefined)) await base.write({ data });
  await apply(base, { data: [], nodes: [directory(2, 0, bytes('a'))] }, 3);
  t.equal(base.index.unknown, 0);
  for (const bytesOf of [content, other]) {
    const moved = { ...fileOf(1, bytesOf), names: [{ parent: 0, name: bytes('b') }] };
    await base.write({ nodes: { nodes: [moved] } });
    await t.rejects(base.settle(commitOf(3, 3)), { code: 'ContentMismatch' }, 'it must be sent again');
    base.index.discard();
  }
  await base.close();
});

t.test('a file whose content is back to what its node says is no longer than that', async (t) => {
  const { base, tree, content, node } = await withFile(['a']);
  for (const data of dataOf(1, Buffer.alloc(50_000, 'b'), undefined)) await base.write({ data });
  await base.settle(commitOf(2, 2));
  t.equal(base.index.unknown, 1, 'saved before its node has come');
  for (const data of dataOf(1, content, undefined)) await base.write({ data });
  await base.settle(commitOf(3, 2));
  t.equal(base.index.unknown, 0);
  await apply(base, { data: [], nodes: [{ ...node, mtimeSeconds: 5 }] }, 2);
  t.ok((await fs.readFile(`${tree}/a`)).equals(content));
  await base.close();
});
