import t from 'tap';
import { spawn } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  linkSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { noise } from './content.ts';
import { allowedToWrite, act, demoted, movedAway, reaches, start } from './recovering.ts';
import { addOddities, countEntries, missingRsync, rsyncDifferences } from './treevolume.ts';
import { agentName, long, openWorld } from './world.ts';

/** Small files of 32 KiB; at full length 2 GiB of them. */
const smallFiles = long ? 65_536 : 1600;

t.test('a tree goes back into the folder that it came from', { skip: missingRsync }, async (t) => {
  const world = await openWorld(t, { proxied: true, agentFlags: [] });
  const source = join(world.sources, 'tree');
  const small = (root: string, at: number): string => join(root, `d${at % 40}`, `f${at}`);
  for (let at = 0; at < 40; at++) mkdirSync(join(source, `d${at}`), { recursive: true });
  for (let at = 0; at < smallFiles; at++) writeFileSync(small(source, at), noise(32 << 10));
  await addOddities(source);
  world.agentFlags.push('--allow', join(world.dir, 'copies'));
  await world.startAgent();
  await world.replicate('files', source, { volumeMode: 'Filesystem', compression: 'none' });
  await world.normal('files', 0, 600);
  const there = await movedAway(world, 'files', 'tree');
  const target = { agent: agentName, path: source };
  const back = { replication: 'files-failback', type: 'failover', target };

  await t.test('only a folder that its node lets be written, and that nobody is in', async (t) => {
    await allowedToWrite(t, world, back, source);
    const user = spawn('sleep', ['600'], { cwd: join(source, 'd1'), stdio: 'ignore' });
    await t.rejects(start(world, back), new RegExp(`is in use by process ${user.pid}`));
    user.kill('SIGKILL');
    await new Promise((resolve) => user.once('exit', resolve));
  });

  let changed = 65536;
  for (let at = 0; at < smallFiles; at += 100, changed += 32 << 10) writeFileSync(small(there, at), noise(32 << 10));
  const large = openSync(join(there, 'odd/large'), 'r+');
  writeSync(large, noise(65536), 0, 65536, 1 << 20);
  closeSync(large);
  renameSync(join(there, 'd7'), join(there, 'live/moved'));
  rmSync(join(there, 'd8'), { recursive: true });
  chmodSync(small(there, 9), 0o4711);
  linkSync(small(there, 10), join(there, 'one more name'));
  await world.normal('files-failback', Date.now(), 300);
  await demoted(world, 'files-failback');

  const counted = (): number => (world.proxy?.receivedBytes ?? 0) + (world.proxy?.sentBytes ?? 0);
  const before = counted();
  await world.until(
    'what the old source may have of its own is known',
    async () => {
      const found = (await world.get('files-failback')).status.fork?.found;
      return found !== undefined && found !== null && found;
    },
    120,
  );
  const moved = await start(world, back);
  const { status } = await reaches(world, moved, 'Completed');
  const bytes = counted() - before;
  const entries = countEntries(there);
  const bound = 1.2 * changed + 200 * entries;
  t.comment(
    `${bytes} bytes both ways at the socket, ${changed} had changed, ${entries} entries, ${status.rtoSeconds} s`,
  );
  t.ok(bytes <= bound, `${bytes} bytes, at most ${bound}: 1.2 times what has changed, and what each entry is`);
  t.equal(status.verified, true);
  t.strictSame(rsyncDifferences(there, source), [], 'nothing is lost');

  await t.test('an agent killed in the middle', async (t) => {
    await act(world, moved, 'rollback');
    await reaches(world, moved, 'RolledBack');
    for (let at = 0; at < 256; at++) writeFileSync(join(there, `new-${at}`), noise(32 << 10));
    await world.normal('files-failback', Date.now(), 300);
    // 4 s for all of it.
    await world.client.send('PATCH', '/replications/files-failback', { spec: { bandwidthBytesPerSecond: 2 << 20 } });
    const again = await start(world, back);
    await world.until('it is sent', async () => {
      const { tasks, state } = (await reaches(world, again, 'Running', 'Completed')).status;
      if (state === 'Completed') throw new Error('it was over before it could be killed');
      const { step, bytesDone = 0 } = tasks[0]?.progress ?? {};
      return step === 'sending' && bytesDone > 2 << 20;
    });
    await world.agent.kill();
    const marks = join(world.dir, 'a', 'restores');
    const marked = (): string =>
      readdirSync(marks)
        .filter((name) => name.endsWith('.json'))
        .map((name) => readFileSync(join(marks, name), 'utf8'))
        .join();
    t.match(marked(), new RegExp(`"path":"${source}","state":"writing"`), 'half of it is written, and known as such');
    t.not(rsyncDifferences(there, source).length, 0);
    world.agent.start();
    await reaches(world, again, 'Completed');
    t.match(marked(), /"state":"written"/);
    t.strictSame(rsyncDifferences(there, source), [], 'it is whole');
    await act(world, again, 'confirm');
    await reaches(world, again, 'Confirmed');
  });
  await world.normal('files', Date.now(), 300);
  t.strictSame(rsyncDifferences(source, (await world.copyOf('files')).path), [], 'and it is mirrored on');
});
