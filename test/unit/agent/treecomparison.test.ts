import t, { type Test } from 'tap';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { compareFolder } from '../../../agent/treecomparison.ts';
import { differs, safePath } from '../../../master/forktext.ts';
import { compareTree, whatDiffers, type TreeDifference } from '../../../master/treedifference.ts';
import type { TreeIndex } from '../../../master/replica/treeindex.ts';
import { ReplicationError } from '../../../proto/errors.ts';
import { goneNode } from '../../../proto/node.ts';
import { streamPair } from '../../../proto/stream.ts';
import { systemClock } from '../../../proto/system.ts';
import { nodeTypes, type MirrorReply, type MirrorRequest, type Node } from '../../../proto/wire.ts';
import { TreeMutator } from '../../conformance/treemutator.ts';
import { noise } from '../../e2e/content.ts';
import { missingRsync, rsyncDifferences } from '../../e2e/treevolume.ts';
import { missingForTmpfs, run, tmpfsMount } from '../../loop.ts';
import { indexOf } from './folderindex.ts';

const never = new AbortController().signal;
const long = process.env['REPLICATOR_LONG'] !== undefined;

function scratch(t: Test): string {
  const isMounted = missingForTmpfs() === false;
  const path = isMounted ? tmpfsMount(t) : fs.mkdtempSync(join(tmpdir(), 'treecomparison-'));
  if (!isMounted) t.teardown(() => fs.rmSync(path, { recursive: true, force: true }));
  for (const name of ['folder', 'indexes']) fs.mkdirSync(join(path, name));
  return path;
}

interface Line {
  /** The agent's replies go through this. */
  replies?: (reply: MirrorReply) => void;
  sourceId?: string;
}

/** Both sides of one call, as agent and master run them. */
async function compare(
  dir: string,
  index: TreeIndex,
  line: Line = {},
  exclude: string[] = [],
): Promise<TreeDifference> {
  const pair = streamPair<MirrorReply, MirrorRequest>();
  const { client, server } = pair;
  const options = { uid: 'u', generation: '1', signal: never, progress: () => undefined };
  if (line.sourceId !== undefined && index.newest) index.newest = { ...index.newest, sourceId: line.sourceId };
  const found = compareTree(server, index, options);
  found.catch((error: unknown) => pair.cut(error instanceof ReplicationError ? error : undefined));
  await client.receive.next();
  const call = {
    ...{
      receive: client.receive,
      sentBytes: 0,
      receivedBytes: 0,
      end: () => client.end(),
      cancel: () => client.cancel(),
    },
    async send(reply: MirrorReply) {
      line.replies?.(reply);
      await client.send(reply);
    },
  };
  const folder = join(dir, 'noted');
  try {
    const about = { restore: { include: [], exclude }, path: join(dir, 'folder'), folder, clock: systemClock };
    await compareFolder(about, call, never);
  } catch (error) {
    pair.cut(error instanceof ReplicationError ? error : undefined);
    await found.catch(() => undefined);
    throw error;
  } finally {
    if (fs.existsSync(folder)) throw new Error('what was noted is left');
  }
  return found;
}

const counted = ({ entries, bytes }: TreeDifference): unknown[] => [
  ...[entries?.changed, entries?.new, entries?.gone],
  bytes,
];

t.test('what rsync would do something about differs, and nothing else', { skip: missingRsync }, async (t) => {
  const dir = scratch(t);
  const [folder, before] = [join(dir, 'folder'), join(dir, 'before')];
  const rounds = long ? 1000 : 60;
  let same = 0;
  for (let round = 0; round < rounds; round++) {
    const mutator = new TreeMutator(folder, round, { maxEntries: 60, maxBytes: 4 << 20 });
    if (round % 20 === 0) await mutator.change(100);
    const index = await indexOf(join(dir, 'indexes'), folder);
    run('rsync', '-aHAXS', '--numeric-ids', '--delete', '--modify-window=-1', '-c', `${folder}/`, `${before}/`);
    await mutator.change(round % 3);
    const lines = rsyncDifferences(folder, before, ['-aHAXSnc', '--numeric-ids', '--modify-window=-1']);
    const expected = lines.filter((line) => !line.startsWith('.d..t......'));
    const found = await compare(dir, index);
    index.close();
    if (expected.length === 0) same++;
    if (differs({ ...found, granules: null, ranges: null, comparedTime: '' }) === expected.length > 0) continue;
    t.fail(`round ${round}: ${JSON.stringify(found)} where rsync says ${expected.join('; ')}`);
    return;
  }
  t.ok(same > rounds / 4 && same < rounds, `${same} of ${rounds} had no difference`);
});

t.test('of content what differs is counted, granule by granule', async (t) => {
  const dir = scratch(t);
  const at = (name: string): string => join(dir, 'folder', name);
  const granule = 65536;
  for (const name of ['grown', 'cut', 'emptied', 'punched']) fs.writeFileSync(at(name), noise(5 * granule + 100));
  for (const name of ['filled', 'small']) fs.writeFileSync(at(name), name === 'small' ? noise(200) : '');
  fs.mkdirSync(at('a'));
  for (const name of ['one', 'two']) fs.writeFileSync(at(`a/${name}`), noise(1000));
  const index = await indexOf(join(dir, 'indexes'), join(dir, 'folder'));
  t.teardown(() => index.close());
  t.strictSame(counted(await compare(dir, index)), [0, 0, 0, 0]);
  const bytes = async (change: () => void): Promise<unknown> => {
    const before = (await compare(dir, index)).bytes;
    change();
    return (await compare(dir, index)).bytes - before;
  };
  const zeros = Buffer.alloc(granule);
  t.equal(await bytes(() => fs.appendFileSync(at('grown'), noise(2 * granule))), 2 * granule + 100);
  t.equal(await bytes(() => fs.truncateSync(at('cut'), granule)), 4 * granule + 100);
  t.equal(await bytes(() => fs.truncateSync(at('emptied'), 0)), 5 * granule + 100);
  t.equal(await bytes(() => fs.writeFileSync(at('filled'), noise(3 * granule))), 3 * granule);
  t.equal(await bytes(() => fs.appendFileSync(at('small'), 'more')), 204);
  t.equal(await bytes(() => fs.writeSync(fs.openSync(at('punched'), 'r+'), zeros, 0, granule, granule)), granule);
  t.equal(await bytes(() => fs.renameSync(at('a'), at('b'))), 0, 'what was only moved has no bytes that differ');
  const { entries, paths } = await compare(dir, index);
  t.strictSame(entries, { changed: 8, new: 1, gone: 1 }, 'a directory under a new name, and the files in it');
  t.equal(paths?.length, 8);
  t.ok(paths?.some(({ path, change }) => path === 'b' && change === 'new'));
  t.ok(paths?.some(({ path, change }) => path === 'a' && change === 'gone'));
});

t.test('each part of a state is told by its name', async (t) => {
  const name = { parent: 0, name: Buffer.from('n') };
  const xattr = { name: Buffer.from('user.a'), value: Buffer.from('1') };
  const file = {
    ...goneNode(1),
    type: nodeTypes.file,
    sizeBytes: 3,
    contentRoot: noise(16),
    names: [name],
    xattrs: [xattr],
  };
  const wanted = { ...file, mode: 0o644, uid: 1, gid: 2, mtimeSeconds: 5, mtimeNanoseconds: 6 };
  const differing = (change: Partial<Node>): string => whatDiffers({ ...wanted, ...change }, wanted).join();
  t.equal(differing({ names: [{ ...name }], xattrs: [{ ...xattr }] }), '');
  const changes: [string, Partial<Node>[]][] = [
    ['content', [{ sizeBytes: 4 }, { contentRoot: noise(16) }]],
    ['name', [{ names: [] }, { names: [name, { parent: 7, name: name.name }] }]],
    ['mode', [{ mode: 0o4644 }]],
    ['owner', [{ uid: 2 }, { gid: 1 }]],
    ['time', [{ mtimeSeconds: 6 }, { mtimeNanoseconds: 5 }]],
    ['attributes', [{ xattrs: [] }, { xattrs: [{ ...xattr, value: Buffer.from('2') }] }]],
  ];
  for (const [what, all] of changes) for (const change of all) t.equal(differing(change), what);
  const link = { ...goneNode(1), type: nodeTypes.symlink, target: Buffer.from('a') };
  t.strictSame(whatDiffers({ ...link, target: Buffer.from('b') }, link), ['target']);
  const device = { ...goneNode(1), type: nodeTypes.character, deviceMajor: 1 };
  t.strictSame(whatDiffers({ ...device, deviceMinor: 3 }, device), ['type']);
  const directory = { ...goneNode(1), type: nodeTypes.directory };
  t.strictSame(whatDiffers({ ...directory, mtimeSeconds: 9 }, directory), []);
});

t.test('another or an empty folder is no folder from which all is gone', async (t) => {
  const dir = scratch(t);
  fs.writeFileSync(join(dir, 'folder/file'), 'content');
  const index = await indexOf(join(dir, 'indexes'), join(dir, 'folder'));
  t.teardown(() => index.close());
  await t.rejects(compare(dir, index, { sourceId: 'ext4:another' }), { code: 'SourceGone' });
  if (index.newest) index.newest = { ...index.newest, sourceId: '' };
  fs.rmSync(join(dir, 'folder/file'));
  await t.rejects(compare(dir, index), { code: 'SourceEmptied' });
  fs.rmdirSync(join(dir, 'folder'));
  await t.rejects(compare(dir, index), { code: 'SourceGone' });
});

t.test('a line that breaks ends the reading, and nothing is left of it', async (t) => {
  const dir = scratch(t);
  fs.writeFileSync(join(dir, 'folder/file'), 'content');
  const index = await indexOf(join(dir, 'indexes'), join(dir, 'folder'));
  t.teardown(() => index.close());
  fs.writeFileSync(join(dir, 'folder/file'), 'other');
  const broken = new ReplicationError('Disconnected', 'the line broke');
  await t.rejects(
    compare(dir, index, {
      replies: ({ nodes }) => {
        if (nodes) throw broken;
      },
    }),
    broken,
  );
  t.strictSame(counted(await compare(dir, index)), [1, 0, 0, 7], 'and the next call does it');
});

t.test('what an agent makes up ends soon and is counted as what it is', async (t) => {
  const dir = scratch(t);
  fs.mkdirSync(join(dir, 'folder/d'));
  const index = await indexOf(join(dir, 'indexes'), join(dir, 'folder'));
  t.teardown(() => index.close());
  const answering = async (...nodes: Node[]): Promise<TreeDifference> => {
    const { client, server } = streamPair<MirrorReply, MirrorRequest>();
    const options = { uid: 'u', generation: '1', signal: never, progress: () => undefined };
    const found = compareTree(server, index, options);
    found.catch(() => undefined);
    const state = { headSequence: 0, initialized: false, digest: Buffer.alloc(0), sourceId: '' };
    await client.send({ welcome: { protocol: 1, ...state, sizeBytes: 0, blank: false, incomplete: true } });
    for (;;) {
      const next = await client.receive.next();
      if (next.done === true || next.value.manifest) break;
    }
    await client.send({ nodes: { nodes } });
    await client.send({ manifestEnd: {} });
    return found;
  };
  const circle = (slot: number, parent: number): Node => ({
    ...goneNode(slot),
    ...{ type: nodeTypes.directory, names: [{ parent, name: Buffer.from('n') }] },
  });
  const { entries, paths } = await answering(circle(1000, 1001), circle(1001, 1000), goneNode(77), goneNode(1001));
  t.strictSame(entries, { changed: 0, new: 1, gone: 0 }, 'the last word counts, and what nobody has cannot go');
  t.ok((paths?.[0]?.path.length ?? 0) < 500);
  const made = await answering(circle(1000, 1001), circle(1001, 1000));
  t.ok(made.paths?.every(({ path }) => path.length < 500));
  await t.rejects(answering({ ...circle(1, 0), slot: 2 ** 40 }), { code: 'BadMessage' });
});

t.test('paths of any bytes are text that shows them', async (t) => {
  const shown = (...parts: (string | number[])[]): string =>
    safePath(Buffer.concat(parts.map((part) => Buffer.from(part as string))));
  t.equal(shown('a/ü 漢 😀'), 'a/ü 漢 😀');
  t.equal(shown('\u202e\u0085\u2028\t\\'), '\\xe2\\x80\\xae\\xc2\\x85\\xe2\\x80\\xa8\\x09\\x5c');
  t.equal(shown('a', [0xff, 0xc3], 'b', [0xf0, 0x9f], [0xe4, 0xb8]), 'a\\xff\\xc3b\\xf0\\x9f\\xe4\\xb8');
  t.equal(shown([0xc0, 0xaf], [0xed, 0xa0, 0x80]), '\\xc0\\xaf\\xed\\xa0\\x80', 'not what pretends to be characters');
  t.equal(shown('x'.repeat(4000), '/end').length, 303);
  t.match(shown('x'.repeat(4000), '/end'), /^\.\.\.x+\/end$/);
});
