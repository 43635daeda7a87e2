import t, { type Test } from 'tap';
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { folderInUse } from '../../../agent/folderuse.ts';
import { receiveTree } from '../../../agent/treerestore.ts';
import { TreeWriter } from '../../../agent/treewriter.ts';
import { sendTree } from '../../../master/treeoffering.ts';
import { Pace } from '../../../proto/pace.ts';
import { streamPair } from '../../../proto/stream.ts';
import { systemClock } from '../../../proto/system.ts';
import type { MirrorReply, MirrorRequest } from '../../../proto/wire.ts';
import { TreeMutator } from '../../conformance/treemutator.ts';
import { noise, random } from '../../e2e/content.ts';
import { addOddities, missingRsync, rsyncDifferences } from '../../e2e/treevolume.ts';
import { missingForTmpfs, run, tmpfsMount, unmountAfter } from '../../loop.ts';
import { indexOf } from './folderindex.ts';

/** @param many rounds, which a disk would make slow: in memory where that can be */
function scratch(t: Test, many = false): string {
  const isMounted = many && missingForTmpfs() === false;
  const path = isMounted ? tmpfsMount(t) : fs.mkdtempSync(join(tmpdir(), 'treewriter-'));
  if (!isMounted) t.teardown(() => fs.rmSync(path, { recursive: true, force: true }));
  for (const name of ['point', 'folder', 'indexes']) fs.mkdirSync(join(path, name));
  return path;
}

const never = new AbortController().signal;
interface Written {
  sentBytes: number;
  /** Messages of nodes and data. */
  data: number;
  digest: Buffer;
}

/** Both sides of one call, as agent and master run them. */
async function write(dir: string, goesOn = false, step?: () => void): Promise<Written> {
  const index = await indexOf(join(dir, 'indexes'), join(dir, 'point'));
  const { client, server } = streamPair<MirrorReply, MirrorRequest>();
  const line = new AbortController();
  const written: Written = { sentBytes: 0, data: 0, digest: Buffer.alloc(0) };
  const point = { sequence: 7, digest: index.digest };
  const options = {
    ...{ uid: 'u', generation: '1', compression: 'none' as const, pace: new Pace(systemClock, 0) },
    ...{ signal: line.signal, progress: () => undefined },
  };
  const sending = sendTree(server, { index, path: join(dir, 'point') }, point, options).then((bytes) => {
    written.sentBytes = bytes;
  });
  sending.catch(() => undefined);
  const hello = await client.receive.next();
  if (hello.done === true || !hello.value.hello) throw new Error('no hello');
  try {
    const folder = await TreeWriter.open({
      ...{ real: join(dir, 'folder'), slots: index.sizeBytes, indexPath: join(dir, 'indexes/own'), goesOn },
      ...{ begin: async () => undefined, ...(step && { step }) },
    });
    const state = { headSequence: 0, initialized: false, digest: Buffer.alloc(0), sourceId: '' };
    await client.send({ welcome: { protocol: 1, ...state, sizeBytes: 0, blank: false, incomplete: true } });
    try {
      const settled = async (_: unknown, digest: Buffer): Promise<void> => void (written.digest = digest);
      await receiveTree(systemClock, folder, client, settled, never);
    } finally {
      await folder.close(written.digest.length > 0);
    }
    await sending;
  } catch (error) {
    line.abort(new Error('broken'));
    client.cancel();
    await sending.catch(() => undefined);
    throw error;
  } finally {
    index.close();
  }
  if (!written.digest.equals(point.digest)) throw new Error('another digest');
  return written;
}

function same(t: Test, dir: string, what: string): void {
  t.strictSame(rsyncDifferences(join(dir, 'point'), join(dir, 'folder')), [], what);
  const { mtimeNs } = fs.statSync(join(dir, 'point'), { bigint: true });
  t.equal(fs.statSync(join(dir, 'folder'), { bigint: true }).mtimeNs, mtimeNs, 'to the nanosecond');
  t.strictSame(
    fs.readdirSync(join(dir, 'folder')).sort(),
    fs.readdirSync(join(dir, 'point')).sort(),
    'nothing of ours',
  );
}

t.test('everything that a file is comes back, and only what differs', { skip: missingRsync }, async (t) => {
  const dir = scratch(t);
  const [point, folder] = [join(dir, 'point'), join(dir, 'folder')];
  await addOddities(point);
  const first = await write(dir);
  same(t, dir, 'into an empty folder');
  t.ok(first.sentBytes > 5 << 20);
  const sparse = fs.statSync(join(folder, 'odd/sparse'));
  t.ok(sparse.blocks * 512 < 1 << 20, 'holes are holes');

  t.equal((await write(dir)).sentBytes, 0, 'what is there is not sent again');

  const file = fs.openSync(join(point, 'odd/large'), 'r+');
  fs.writeSync(file, noise(65536), 0, 65536, 3 << 20);
  fs.closeSync(file);
  fs.chmodSync(join(point, 'odd/run-me'), 0o711);
  fs.writeFileSync(join(folder, 'odd/foreign'), noise(1 << 20));
  fs.mkdirSync(join(folder, 'odd/foreigners/within'), { recursive: true });
  fs.rmSync(join(folder, 'odd/fifo'));
  fs.mkdirSync(join(folder, 'odd/fifo'));
  fs.rmSync(join(folder, 'odd/two'));
  fs.symlinkSync('/etc/passwd', join(folder, 'odd/two'));
  t.equal((await write(dir)).sentBytes, 65536, 'one granule of a large file');
  same(t, dir, 'brought to what the point is');

  fs.renameSync(join(folder, 'odd/large'), join(folder, 'live/elsewhere'));
  fs.renameSync(join(folder, 'odd/empty'), join(folder, 'live/empty'));
  t.equal((await write(dir)).sentBytes, 0, 'what has another name is not sent again');
  same(t, dir, 'names of files and directories');
});

t.test('random trees, stopped at random steps, and gone on with', { skip: missingRsync }, async (t) => {
  const dir = scratch(t, true);
  const mutators = [new TreeMutator(join(dir, 'point'), 5), new TreeMutator(join(dir, 'folder'), 6)];
  const next = random(11);
  let stopped = 0;
  for (let round = 0; round < 6; round++) {
    for (const mutator of mutators) await mutator.change(40);
    const large = join(dir, 'point/a large one');
    fs.rmSync(large, { recursive: true, force: true });
    fs.writeFileSync(large, noise(1 << 20));
    for (let tries = 0; ; tries++) {
      let left = tries > 5 ? Infinity : Math.floor(next() * 40);
      try {
        await write(dir, tries > 0, () => {
          if (left-- <= 0) throw new Error('stopped here');
        });
        break;
      } catch (error) {
        if (!/stopped here/.test(String(error))) throw error;
        stopped++;
      }
    }
    same(t, dir, `round ${round}`);
  }
  t.ok(stopped > 8, `${stopped} times`);
});

t.test('a crash half-way does not send what had come', async (t) => {
  const dir = scratch(t);
  fs.writeFileSync(join(dir, 'point/new'), noise(8 << 20));
  let steps = 0;
  await t.rejects(
    write(dir, false, () => {
      if (++steps > 5) throw new Error('stopped here');
    }),
    /stopped here/,
  );
  const { sentBytes } = await write(dir, true);
  t.ok(sentBytes > 0 && sentBytes <= 6 << 20, `${sentBytes} of 8 MiB`);
});

t.test('nothing outside the folder is reached', async (t) => {
  const dir = scratch(t, true);
  const [point, folder, outside] = [join(dir, 'point'), join(dir, 'folder'), join(dir, 'outside')];
  fs.mkdirSync(outside);
  fs.writeFileSync(join(outside, 'file'), 'theirs');
  fs.writeFileSync(join(outside, 'linked'), 'theirs as well');
  fs.mkdirSync(join(point, 'sub'));
  fs.writeFileSync(join(point, 'sub/file'), 'the point');
  fs.writeFileSync(join(point, 'linked'), 'of the point');
  fs.symlinkSync(outside, join(folder, 'sub'));
  fs.linkSync(join(outside, 'linked'), join(folder, 'linked'));
  await write(dir);
  t.equal(fs.readFileSync(join(folder, 'sub/file'), 'utf8'), 'the point');
  t.equal(fs.readFileSync(join(folder, 'linked'), 'utf8'), 'of the point');
  t.equal(fs.readFileSync(join(outside, 'file'), 'utf8'), 'theirs', 'no link is followed');
  t.equal(fs.readFileSync(join(outside, 'linked'), 'utf8'), 'theirs as well', 'nor a name outside written through');

  await t.test('also when links are put in while it is written', async (t) => {
    for (let round = 0; round < 12; round++) {
      fs.rmSync(join(folder, 'sub'), { recursive: true, force: true });
      fs.mkdirSync(join(folder, 'sub'));
      fs.writeFileSync(join(folder, 'sub/file'), noise(100 + round));
      let steps = 0;
      await write(dir, false, () => {
        if (steps++ !== round) return;
        fs.rmSync(join(folder, 'sub'), { recursive: true, force: true });
        fs.symlinkSync(outside, join(folder, 'sub'));
      }).catch(() => undefined);
    }
    t.strictSame(fs.readdirSync(outside).sort(), ['file', 'linked']);
    t.equal(fs.readFileSync(join(outside, 'file'), 'utf8'), 'theirs');
    await write(dir);
    t.equal(fs.readFileSync(join(folder, 'sub/file'), 'utf8'), 'the point', 'and the next attempt is right');
  });
  fs.rmSync(join(dir, 'indexes'), { recursive: true });
  fs.mkdirSync(join(dir, 'indexes'));
  fs.symlinkSync(outside, join(folder, '.cdm-replicator.restoring'));
  await t.rejects(write(dir), { code: 'ENOTDIR' }, 'nor by the name of the staging folder');
});

t.test('what is written meanwhile is noticed', async (t) => {
  const dir = scratch(t);
  fs.writeFileSync(join(dir, 'point/file'), noise(1000));
  let steps = 0;
  const count = async (): Promise<void> => {
    fs.rmSync(join(dir, 'folder/file'), { force: true });
    await write(dir, false, () => void steps++);
  };
  await count();
  const last = steps;
  steps = 0;
  fs.rmSync(join(dir, 'folder/file'));
  const late = write(dir, false, () => {
    if (++steps === last) fs.writeFileSync(join(dir, 'folder/file'), noise(1000));
  });
  await t.rejects(late, { code: 'TargetFailed', message: /something else writes it/ });
});

t.test('a folder in use', async (t) => {
  const dir = scratch(t);
  const folder = join(dir, 'folder');
  t.equal(await folderInUse(folder), undefined);
  const users: [string, string[], string][] = [
    ['its directory', ['sleep', '60'], folder],
    ['an open file', ['sh', '-c', `exec sleep 60 > '${folder}/log'`], dir],
  ];
  for (const [what, [program = '', ...rest], cwd] of users) {
    const user = spawn(program, rest, { cwd, stdio: 'ignore' });
    while ((await folderInUse(folder)) === undefined) if (user.exitCode !== null) throw new Error('it has ended');
    t.match(await folderInUse(folder), new RegExp(`in use by process ${user.pid}`), what);
    await t.rejects(write(dir), { code: 'SourceInUse' });
    user.kill('SIGKILL');
    await new Promise((resolve) => user.once('exit', resolve));
    t.equal(await folderInUse(folder), undefined);
  }
});

t.test('a folder with a filesystem in it, or as another mount shows it', { skip: missingForTmpfs() }, async (t) => {
  const mounted = tmpfsMount(t);
  const above = dirname(mounted);
  t.match(await folderInUse(above), / is mounted in it; unmount that/);
  const shown = join(scratch(t), 'folder');
  run('mount', '--bind', mounted, shown);
  unmountAfter(t, shown);
  const user = spawn('sleep', ['60'], { cwd: shown, stdio: 'ignore' });
  while ((await folderInUse(mounted)) === undefined) if (user.exitCode !== null) throw new Error('it has ended');
  t.match(await folderInUse(mounted), new RegExp(`in use by process ${user.pid}`), 'by whatever path it is there');
  user.kill('SIGKILL');
  await new Promise((resolve) => user.once('exit', resolve));
});
