import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { randomBytes } from 'node:crypto';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { Replica } from '../../../../master/replica/replica.ts';
import { contentRoot, granuleBytes, granuleHash } from '../../../../proto/granule.ts';
import { systemEffects } from '../../../../proto/system.ts';
import { nodeTypes, type Commit, type Data, type Node } from '../../../../proto/wire.ts';

const never = new AbortController().signal;

function commitOf(sequence: number, point: boolean): Commit {
  const instant = Date.now() * 1000;
  return {
    sequence,
    point,
    sourceUs: instant,
    consistency: point ? 'file' : '',
    sizeBytes: 2,
    verified: false,
    mismatchedGranules: 0,
    startedUs: instant,
    sentBytes: 0,
    groupCut: '',
  };
}

function nodeOf(slot: number, change: Partial<Node>): Node {
  return {
    slot,
    type: nodeTypes.directory,
    mode: 0o755,
    uid: process.getuid?.() ?? 0,
    gid: process.getgid?.() ?? 0,
    mtimeSeconds: 1,
    mtimeNanoseconds: 0,
    sizeBytes: 0,
    target: Buffer.alloc(0),
    deviceMajor: 0,
    deviceMinor: 0,
    xattrs: [],
    names: [],
    contentRoot: Buffer.alloc(0),
    ...change,
  };
}

function hashesOf(content: Buffer): Buffer {
  const hashes: Buffer[] = [];
  for (let at = 0; at < content.length; at += granuleBytes)
    hashes.push(granuleHash(content.subarray(at, at + granuleBytes)));
  return Buffer.concat(hashes);
}

function fileOf(content: Buffer): Node {
  return nodeOf(1, {
    type: nodeTypes.file,
    mode: 0o644,
    sizeBytes: content.length,
    names: [{ parent: 0, name: Buffer.from('log') }],
    contentRoot: contentRoot(hashesOf(content)),
  });
}

function dataOf(content: Buffer, first: number, count: number): Data {
  const payload = content.subarray(first * granuleBytes, Math.min(content.length, (first + count) * granuleBytes));
  return {
    runs: [{ object: 1, first, count, zero: false, tailBytes: payload.length - (count - 1) * granuleBytes }],
    hashes: hashesOf(content).subarray(first * 16, (first + count) * 16),
    compression: 0,
    rawBytes: payload.length,
    payload,
  };
}

t.test('a file that grows over several commits is whole when its node comes', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'growth-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const replica = await Replica.open({
    effects: systemEffects,
    place: { folder: `${folder}/r`, indexFolder: `${folder}/r` },
    mode: 'Filesystem',
  });
  t.teardown(() => replica.close());
  const session = await replica.attach({ name: 'node', generation: '1', sourceId: 's', sizeBytes: 0, force: false });

  const grown = randomBytes(6 * granuleBytes - 77);
  const small = grown.subarray(0, granuleBytes);
  await replica.data(session, dataOf(small, 0, 1));
  await replica.nodes(session, { nodes: [nodeOf(0, {}), fileOf(small)] });
  await replica.commit(session, commitOf(1, true));
  await replica.advance(0, never);

  await replica.data(session, dataOf(grown, 1, 2));
  await replica.commit(session, commitOf(2, false));
  await replica.advance(0, never);
  await t.rejects(replica.commit(session, commitOf(3, true)), { code: 'ReplicaDamaged' }, 'no point without its node');

  await replica.data(session, dataOf(grown, 3, 3));
  await replica.nodes(session, { nodes: [fileOf(grown)] });
  const { digest } = await replica.commit(session, commitOf(3, true));
  await replica.advance(0, never);
  t.same(replica.head.digest, digest);

  const point = replica.newestPoint;
  if (!point) throw new Error('no point');
  const copied = await replica.recover(point, `${folder}/copy`, {
    verify: true,
    signal: never,
    progress: () => undefined,
  });
  t.equal(copied.verified, true);
  t.ok(readFileSync(`${folder}/copy/log`).equals(grown));
});
