import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { tickMs } from '../../../agent/capture/collect.ts';
import { startGuard } from '../../../agent/guard.ts';
import { lsetxattr, mknod, utimensat } from '../../../proto/libc.ts';
import { systemClock } from '../../../proto/system.ts';
import { nodeTypes } from '../../../proto/wire.ts';
import { loopMount, missingForLoop } from '../../loop.ts';
import { attach, captureConformance, sync } from '../../conformance/capture.ts';
import { ModelReplica } from '../../conformance/modelreplica.ts';
import { mmapWrite, TreeMutator } from '../../conformance/treemutator.ts';
import { differing, makePlace, mirrored, missingForFanotify, type Place } from '../../conformance/treeplace.ts';
import { walkReplica } from '../../conformance/treewalk.ts';

t.setTimeout(240_000);
const never = new AbortController().signal;

const noFanotify = await missingForFanotify();

await captureConformance(
  t,
  'tree',
  async () => makePlace(),
  (captured, seed) => {
    const { root } = captured as Place;
    const mutator = new TreeMutator(root, seed);
    return { change: () => mutator.change(25), differences: (replica) => differing(root, replica) };
  },
  [1, 2],
);

for (const hints of ['inotify', 'scan'] as const) {
  t.test(`without fanotify: ${hints}`, async (t) => {
    const place = makePlace();
    const mutator = new TreeMutator(place.root, 5);
    const replica = new ModelReplica('Filesystem');
    const source = place.open({ hints });
    await attach(source, replica);
    for (let round = 0; round < 10; round++) {
      await mutator.change(20);
      t.equal(await sync(source, replica), undefined);
      t.strictSame(await differing(place.root, replica), []);
    }
    t.equal(source.captureMethod, hints);
    await source.close();
    await place.remove();
  });
}

t.test('moving a file or a tree sends no content and one node each', async (t) => {
  const { root, replica, again } = await mirrored(t, (root) => {
    fs.mkdirSync(`${root}/a/b`, { recursive: true });
    for (let at = 0; at < 300; at++) fs.writeFileSync(`${root}/a/b/f${at}`, `content ${at}`);
    fs.writeFileSync(`${root}/large`, Buffer.alloc(3_000_000, 'x'));
  });
  const { sentBytes, sentNodes } = replica;
  fs.renameSync(`${root}/a/b`, `${root}/moved`);
  fs.renameSync(`${root}/large`, `${root}/moved/larger`);
  await again();
  t.equal(replica.sentBytes, sentBytes);
  t.ok(replica.sentNodes - sentNodes <= 4, 'the directory moved, the two it left and came to, the file');
});

t.test('of a large file only what changed crosses, and holes stay holes', async (t) => {
  const { root, replica, again } = await mirrored(t, (root) => {
    fs.writeFileSync(`${root}/large`, Buffer.alloc(10 << 20, 'x'));
    fs.writeFileSync(`${root}/sparse`, '');
    fs.truncateSync(`${root}/sparse`, 200 << 20);
  });
  const { sentBytes } = replica;
  const fd = fs.openSync(`${root}/large`, 'r+');
  fs.writeSync(fd, 'y', 5 << 20);
  fs.closeSync(fd);
  await again();
  t.equal(replica.sentBytes - sentBytes, 65536);
  const [slot] = [...replica.nodes].find(([, node]) => node.sizeBytes === 200 << 20) ?? [-1];
  t.equal(replica.content.get(slot)?.size ?? 0, 0);
});

t.test('paths longer than the kernel takes, and links that lead outside, are mirrored as they are', async (t) => {
  const home = process.cwd();
  const { root, again, replica } = await mirrored(t, (root) => {
    process.chdir(root);
    for (let depth = 0; depth < 40; depth++) {
      fs.mkdirSync('d'.repeat(250));
      process.chdir('d'.repeat(250));
    }
    fs.writeFileSync('deep', 'down');
    fs.symlinkSync('/etc', 'etc');
    process.chdir(home);
    fs.symlinkSync('/etc', `${root}/etc`);
    fs.symlinkSync('.', `${root}/loop`);
  });
  t.equal(Math.max(...[...walkReplica(replica).keys()].map(({ length }) => length)), 40 * 251 + 5);
  process.chdir(root);
  for (let depth = 0; depth < 40; depth++) process.chdir('d'.repeat(250));
  fs.writeFileSync('deep', 'changed');
  fs.linkSync('deep', 'also');
  fs.rmSync('etc');
  process.chdir(home);
  await again();
  fs.renameSync(`${root}/${'d'.repeat(250)}`, `${root}/moved`);
  await again();
});

t.test('names of any bytes, empty directories, owners, times to the nanosecond, attributes, devices', async (t) => {
  const isRoot = process.getuid?.() === 0;
  const { root, again } = await mirrored(t, () => undefined);
  const name = (bytes: string): Buffer => Buffer.concat([Buffer.from(`${root}/`), Buffer.from(bytes, 'latin1')]);
  for (let byte = 1; byte < 256; byte++)
    if (byte !== 0x2f) fs.writeFileSync(name(`x${String.fromCharCode(byte)}`), `${byte}`);
  fs.mkdirSync(name('\xff'.repeat(255)));
  fs.writeFileSync(name('\n'), '');
  await utimensat(name('\n'), { seconds: -1, nanoseconds: 999_999_999 });
  await utimensat(name('x\x01'), { seconds: 4_000_000_000, nanoseconds: 1 });
  for (const [at, value] of [Buffer.alloc(0), Buffer.alloc(3000, 1)].entries())
    await lsetxattr(name('x\x02'), `user.v${at}`, value);
  if (isRoot) {
    fs.chownSync(name('x\x03'), 4_000_000_000, 3_999_999_999);
    fs.chmodSync(name('x\x03'), 0o6711);
    // cap_net_bind_service+ep, as setcap writes it: struct vfs_cap_data.
    await lsetxattr(
      name('x\x04'),
      'security.capability',
      Buffer.from('0100000200040000000000000000000000000000', 'hex'),
    );
    await lsetxattr(name('x\x05'), 'trusted.overlay', Buffer.from('y'));
    await mknod(name('character'), 0o020600, 4095, 1_048_575);
    await mknod(name('block'), 0o060600, 7, 3);
  }
  await mknod(name('fifo'), 0o010600);
  await mknod(name('socket'), 0o140600);
  await again();
});

t.test('a sparse file of 100 GiB: what is in it crosses, holes are not read', async (t) => {
  const sizeBytes = 100 * 2 ** 30;
  const islands = [0, 40 * 2 ** 30 + 12_345, sizeBytes - 100];
  const place = makePlace();
  const fd = fs.openSync(`${place.root}/sparse`, 'w');
  fs.ftruncateSync(fd, sizeBytes);
  for (const at of islands) fs.writeSync(fd, Buffer.alloc(100, 'i'), 0, 100, at);
  const source = place.open();
  t.teardown(async () => {
    fs.closeSync(fd);
    await source.close();
    await place.remove();
  });
  const replica = new ModelReplica('Filesystem');
  await attach(source, replica);
  t.equal(await sync(source, replica), undefined);
  const [slot, node] = [...replica.nodes].find(([, { type }]) => type === nodeTypes.file) ?? [-1];
  t.equal(node?.sizeBytes, sizeBytes);
  t.same(
    [...(replica.content.get(slot)?.keys() ?? [])],
    islands.map((at) => Math.floor(at / 65_536)),
  );
  t.ok(source.counters.readBytes < 8 << 20, `${source.counters.readBytes} bytes read`);
  const { sentBytes } = replica;
  fs.writeSync(fd, 'x', 70 * 2 ** 30);
  t.equal(await sync(source, replica), undefined);
  t.equal(replica.sentBytes - sentBytes, 65_536);
});

const noFlags =
  spawnSync('chattr', ['-V']).error !== undefined ? 'no chattr' : process.getuid?.() !== 0 && 'needs root';
t.test('files that are immutable or append-only are mirrored, and it is told', { skip: noFlags }, async (t) => {
  const events: { code: string; message: string }[] = [];
  const { root, again } = await mirrored(t, () => undefined, {
    event: (event) => event.code === 'FlagsLeftOut' && events.push(event),
  });
  t.same(events, []);
  for (const name of ['fixed', 'log', 'plain']) fs.writeFileSync(`${root}/${name}`, name);
  const chattr = (flags: string, name: string): void => {
    const { status, stderr } = spawnSync('chattr', [flags, `${root}/${name}`], { encoding: 'utf8' });
    t.equal(status, 0, stderr);
  };
  chattr('+i', 'fixed');
  chattr('+a', 'log');
  t.teardown(() => ['fixed', 'log'].forEach((name) => spawnSync('chattr', ['-i', '-a', `${root}/${name}`])));
  await again();
  t.same(
    events.map(({ code }) => code),
    ['FlagsLeftOut'],
  );
  t.match(events[0]?.message, /(fixed|log) and 1 more/);
  await again();
  t.equal(events.length, 1, 'once');
  chattr('-i', 'fixed');
  chattr('-a', 'log');
});

t.test(
  'a write by mmap without a later event is found',
  { skip: !fs.existsSync('/usr/bin/python3') && 'no python3' },
  async (t) => {
    const { root, again } = await mirrored(t, (root) => fs.writeFileSync(`${root}/mapped`, Buffer.alloc(100_000, 'a')));
    for (let round = 0; round < 5; round++) {
      mmapWrite(`${root}/mapped`, 70_000 + round, `round ${round}`);
      await again();
    }
  },
);

t.test(
  'a write to a page that was mapped and written before is found: it moves no time',
  { skip: !fs.existsSync('/usr/bin/python3') && 'no python3' },
  async (t) => {
    const place = makePlace();
    const path = `${place.root}/mapped`;
    fs.writeFileSync(path, Buffer.alloc(100_000, 'a'), { flush: true });
    const program = `import mmap,sys
f=open(sys.argv[1],"r+b")
m=mmap.mmap(f.fileno(),0)
for line in sys.stdin:
  m[70000:70010]=line.strip().rjust(10).encode()
  print("written",flush=True)`;
    const writer = spawn('python3', ['-c', program, path], { stdio: ['pipe', 'pipe', 'inherit'] });
    const write = async (text: string): Promise<void> => {
      writer.stdin.write(`${text}\n`);
      await once(writer.stdout, 'data');
    };
    const source = place.open();
    t.teardown(async () => {
      writer.kill('SIGKILL');
      await source.close();
      await place.remove();
    });
    const replica = new ModelReplica('Filesystem');
    await attach(source, replica);
    for (let round = 0; round < 3; round++) {
      await write(`${round} before`);
      // Else its time is so new that it is read again in any case.
      await sleep(tickMs * 3);
      for await (const piece of source.round(round > 0, () => undefined, never)) replica.take(piece);
      await write(`${round} after`);
      t.equal(await sync(source, replica), undefined);
      t.strictSame(await differing(place.root, replica), []);
      // The same with a cut alone, which flushes few files one by one and many together.
      for (const others of [0, 50]) {
        for (let at = 0; at < others; at++) fs.writeFileSync(`${place.root}/other${at}`, `${round}`);
        await write(`${round} cut`);
        await sleep(tickMs * 3);
        t.equal(await sync(source, replica), undefined);
        await write(`${round} cut ${others}`);
        t.equal(await sync(source, replica), undefined);
        t.strictSame(await differing(place.root, replica), [], `beside ${others}`);
      }
    }
  },
);

t.test('a file that is written all the time is never torn in a point', async (t) => {
  const place = makePlace();
  const file = `${place.root}/counter`;
  const lines = 400;
  const text = (value: number): string => `${value}`.padStart(999) + '\n';
  fs.writeFileSync(file, text(0).repeat(lines));
  // Every write puts one value on all lines, with pauses in which the file stands still.
  const program = `const fs=require('fs');const fd=fs.openSync(process.argv[1],'r+');let v=0;
    setInterval(()=>{v++;const b=Buffer.from((String(v).padStart(999)+'\\n').repeat(${lines}));
    for(let at=0;at<b.length;at+=50000)fs.writeSync(fd,b,at,Math.min(50000,b.length-at),at);},60);`;
  const writer = spawn(process.execPath, ['-e', program, file], { stdio: 'ignore' });
  const source = place.open();
  t.teardown(async () => {
    writer.kill('SIGKILL');
    await source.close();
    await place.remove();
  });
  const replica = new ModelReplica('Filesystem');
  await attach(source, replica);
  let points = 0;
  for (let round = 0; round < 40 || (points < 5 && round < 300); round++) {
    if ((await sync(source, replica)) !== undefined) continue;
    points++;
    const [slot, node] = [...replica.nodes].find(([, one]) => one.type === 8) ?? [];
    if (slot === undefined || !node) throw new Error('no file');
    const values = new Set(replica.bytes(slot, node.sizeBytes).toString().trimEnd().split('\n'));
    t.equal(values.size, 1, 'all lines have one value');
  }
  t.ok(points >= 5, `${points} points`);
});

t.test('a root that is empty, gone or another one is no mirror of nothing', async (t) => {
  const { root, replica, source, place } = await mirrored(
    t,
    (root) => {
      fs.mkdirSync(`${root}/d`);
      fs.writeFileSync(`${root}/d/f`, 'x');
    },
    { force: false },
  );
  fs.renameSync(`${root}/d`, `${root}.kept`);
  await t.rejects(source.facts(), { code: 'SourceEmptied' });
  await t.rejects(sync(source, replica), { code: 'SourceEmptied' });
  fs.renameSync(root, `${root}.old`);
  await t.rejects(source.facts(), { code: 'SourceGone' });
  await t.rejects(sync(source, replica), { code: 'SourceGone' });
  fs.mkdirSync(root);
  fs.writeFileSync(`${root}/other`, '');
  await t.rejects(sync(source, replica), { code: 'SourceGone' });
  fs.rmSync(root, { recursive: true });
  fs.renameSync(`${root}.old`, root);
  fs.renameSync(`${root}.kept`, `${root}/d`);
  t.equal(await sync(source, replica), undefined);
  t.strictSame(await differing(root, replica), []);
  await source.close();
  fs.rmSync(`${root}/d`, { recursive: true });
  const forced = place.open({ force: true });
  await attach(forced, replica);
  t.equal(await sync(forced, replica), undefined);
  t.equal(replica.nodes.size, 1);
  await forced.close();
});

t.test('a replica that was set back or replaced is compared, not believed', async (t) => {
  const { root, replica, source, place } = await mirrored(t, (root) => fs.writeFileSync(`${root}/f`, 'one'));
  const old = structuredClone({ nodes: replica.nodes, content: replica.content });
  fs.writeFileSync(`${root}/f`, 'two');
  fs.writeFileSync(`${root}/g`, 'more');
  await sync(source, replica);
  await source.close();
  const back = new ModelReplica('Filesystem');
  for (const [slot, node] of old.nodes)
    back.nodes.set(slot, {
      ...node,
      contentRoot: Buffer.from(node.contentRoot),
      target: Buffer.from(node.target),
      names: node.names.map((one) => ({ ...one, name: Buffer.from(one.name) })),
    });
  for (const [slot, granules] of old.content)
    back.content.set(slot, new Map([...granules].map(([at, bytes]) => [at, Buffer.from(bytes)])));
  back.sequence = 1;
  const next = place.open();
  const { whole, reason } = await attach(next, back);
  t.equal(whole, true);
  t.match(reason, /commit 1/);
  t.equal(await sync(next, back, { whole }), undefined);
  t.strictSame(await differing(root, back), []);
  await next.close();
});

t.test('hints find a change between scans', async (t) => {
  const { root, source, replica } = await mirrored(t, (root) => fs.mkdirSync(`${root}/d`), {
    cutIntervalSeconds: 0,
    hints: 'inotify',
  });
  t.equal(source.captureMethod, 'inotify');
  for (let round = 0; round < 5; round++) {
    fs.writeFileSync(`${root}/d/f${round}`, 'x');
    if (round === 2) fs.renameSync(`${root}/d`, `${root}/e`);
    if (round === 2) fs.renameSync(`${root}/e`, `${root}/d`);
    for (let tries = 0; (await differing(root, replica)).length > 0 && tries < 300; tries++)
      await sync(source, replica);
    t.strictSame(await differing(root, replica), []);
  }
});

t.test(
  'a filesystem of its own is frozen: all files are of one instant',
  { skip: missingForLoop('ext4') },
  async (t) => {
    const { mountPoint } = await loopMount(t, 'ext4', 64);
    const place = makePlace();
    for (let at = 0; at < 500; at++) fs.writeFileSync(`${mountPoint}/f${at}`, `${at}`);
    fs.writeFileSync(`${mountPoint}/first`, '0'.padStart(10));
    fs.writeFileSync(`${mountPoint}/second`, '0'.padStart(10));
    // One value, always written to the first file before the second.
    const program = `const fs=require('fs');const [a,b]=['first','second'].map((n)=>fs.openSync(process.argv[1]+'/'+n,'r+'));
    for(let v=1;;v++){const s=String(v).padStart(10);fs.writeSync(a,s,0);fs.writeSync(b,s,0);
    if(v%50===0)Atomics.wait(new Int32Array(new SharedArrayBuffer(4)),0,0,1);}`;
    const guard = startGuard();
    const source = place.open({ path: mountPoint, guard, consistency: 'filesystem', maxFreezeMs: 3000 });
    const writer = spawn(process.execPath, ['-e', program, mountPoint], { stdio: 'ignore' });
    t.teardown(async () => {
      const exited = new Promise((resolve) => writer.once('exit', resolve));
      writer.kill('SIGKILL');
      await exited;
      await source.close();
      await guard.stop();
      await place.remove();
    });
    const replica = new ModelReplica('Filesystem');
    await attach(source, replica);
    let last = -1;
    for (let round = 0; round < 8; round++) {
      t.equal(await sync(source, replica), undefined);
      const value = (name: string): number => {
        const [slot] =
          [...replica.nodes].find(([, node]) => node.names.some((one) => one.name.toString() === name)) ?? [];
        return slot === undefined ? NaN : Number(replica.bytes(slot, 10).toString());
      };
      const [first, second] = [value('first'), value('second')];
      t.ok(first - second === 0 || first - second === 1, `${first} and ${second}`);
      t.ok(first > last, 'and it moves on');
      last = first;
    }
    const cut = await source.cut(new AbortController().signal);
    let isDivisible = true;
    for await (const piece of cut.pieces(new AbortController().signal)) {
      replica.take(piece);
      isDivisible = !source.isIndivisible;
    }
    t.notOk(isDivisible, 'no commit parts what was read in the freeze');
    t.notOk(source.isIndivisible, 'and one may come after it');
    t.equal(cut.consistency, 'filesystem');
    t.ok(cut.freezeUs > 0 && cut.freezeUs < 3_000_000);
  },
);

for (const scanRatio of [0.05, 0]) {
  const how = scanRatio > 0 ? 'scans' : 'fanotify alone';
  t.test(
    `files that are moved without pause are in every point (${how})`,
    { skip: scanRatio === 0 && noFanotify },
    (t) => movedWithoutPause(t, scanRatio),
  );
}

async function movedWithoutPause(t: Test, scanRatio: number): Promise<void> {
  const folders = 200;
  const movers = 20;
  const { root, replica, source } = await mirrored(
    t,
    (root) => {
      for (let at = 0; at < folders; at++) {
        fs.mkdirSync(`${root}/d${at}/e/f`, { recursive: true });
        for (let file = 0; file < 5; file++) fs.writeFileSync(`${root}/d${at}/e/f/still${file}`, `${at} ${file}`);
      }
      for (let at = 0; at < movers; at++) fs.writeFileSync(`${root}/d0/moving${at}`, `content of ${at}`);
    },
    { scanRatio },
  );
  const script = `const fs = require('node:fs'); const root = process.argv[1];
    const at = Array(${movers}).fill('d0'); let seed = 7;
    const next = (n) => (seed = (seed * 1103515245 + 12345) % 2147483648) % n;
    for (;;) {
      const one = next(${movers});
      const to = 'd' + next(${folders}) + ['', '/e', '/e/f'][next(3)];
      fs.renameSync(root + '/' + at[one] + '/moving' + one, root + '/' + to + '/moving' + one);
      at[one] = to;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
    }`;
  const mover = spawn(process.execPath, ['-e', script, root], { stdio: ['ignore', 'ignore', 'inherit'] });
  t.teardown(() => mover.kill('SIGKILL'));
  const missing = new Map<number, string[]>();
  let points = 0;
  for (let cut = 1; cut <= 15; cut++) {
    if ((await sync(source, replica)) !== undefined) continue;
    points++;
    const held = [...walkReplica(replica).keys()].map((path) => /moving\d+$/.exec(path)?.[0]);
    const lost = Array.from({ length: movers }, (_, at) => `moving${at}`).filter((name) => !held.includes(name));
    if (lost.length > 0) missing.set(cut, lost);
  }
  t.same([...missing], [], 'no file is missing from a point');
  t.ok(points > 5, `${points} of 15 cuts made a point`);
}

t.test('what changed of the root before the instant that a point claims is in it', async (t) => {
  let before = (): void => undefined;
  const agentUs = (): number => {
    before();
    before = () => undefined;
    return Math.floor(systemClock.nowMs() * 1000);
  };
  const { root, again } = await mirrored(t, (root) => fs.writeFileSync(`${root}/file`, 'x'), {
    hints: 'scan',
    agentUs,
  });
  before = () => fs.chmodSync(root, 0o711);
  await again();
});
