import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { once } from 'node:events';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { freezable, startGuard, type Guard } from '../../../agent/guard.ts';
import { parseMountinfo, readBlockDevices, readMounts, type BlockDevice } from '../../../agent/mounts.ts';
import { fithaw } from '../../../proto/libc.ts';
import { loopMount, missingForLoop } from '../../loop.ts';

/** Thaws what is frozen, so only to be asked once. */
async function isFrozen(mountPoint: string): Promise<boolean> {
  await using file = await open(mountPoint, 'r');
  return await fithaw(file.fd).then(
    () => true,
    () => false,
  );
}

/** Ends only when the filesystem takes writes. A write to a frozen one would hang in this process, so another one does it. */
async function untilWritable(mountPoint: string): Promise<void> {
  const child = spawn('touch', [join(mountPoint, 'written')]);
  await once(child, 'exit', { signal: AbortSignal.timeout(20_000) });
}

function guardFor(t: Test): Guard {
  const guard = startGuard();
  t.teardown(() => guard.stop());
  return guard;
}

for (const type of ['ext4', 'xfs']) {
  await t.test(`freezing ${type}`, { skip: missingForLoop(type) }, async (t) => {
    const { mountPoint, device } = await loopMount(t, type, 400);

    await t.test('holds writers from freeze to thaw', async (t) => {
      const guard = guardFor(t);
      const freeze = await guard.freeze(mountPoint, 20_000);
      t.ok(freeze.freezeUs > 0);
      const writer = spawn('touch', [join(mountPoint, 'held')]);
      const written = once(writer, 'exit');
      const first = await Promise.race([written.then(() => 'written'), delay(100, 'still frozen')]);
      t.equal(first, 'still frozen');
      t.equal(await freeze.thaw(), true);
      await written;
      t.ok(freeze.frozenUs >= 100_000 && freeze.frozenUs < 20_000_000, `${freeze.frozenUs} us`);
      t.equal(await freeze.thaw(), true, 'the answer stays');
      t.equal(await (await guard.freeze(mountPoint, 20_000)).thaw(), true, 'it can be frozen again');
    });

    await t.test('ends by itself at the limit, and says so', async (t) => {
      const guard = guardFor(t);
      const freeze = await guard.freeze(mountPoint, 500);
      await untilWritable(mountPoint);
      t.equal(await freeze.thaw(), false);
      t.ok(freeze.frozenUs >= 500_000 && freeze.frozenUs < 5_000_000, `${freeze.frozenUs} us`);
    });

    await t.test('did not hold when somebody else has thawed', async (t) => {
      const guard = guardFor(t);
      const freeze = await guard.freeze(mountPoint, 20_000);
      t.equal(await isFrozen(mountPoint), true);
      t.equal(await freeze.thaw(), false);
    });

    await t.test('is refused while somebody else holds it frozen', async (t) => {
      const guard = guardFor(t);
      spawnSync('fsfreeze', ['--freeze', mountPoint]);
      await t.rejects(guard.freeze(mountPoint, 1000), { code: 'NoConsistentCut', message: /somebody else/ });
      t.equal(await isFrozen(mountPoint), true, 'and is not undone');
    });

    await t.test('of what is no freezable filesystem fails with a reason', async (t) => {
      const guard = guardFor(t);
      await t.rejects(guard.freeze('/proc', 1000), { code: 'NoConsistentCut' });
      await t.rejects(guard.freeze('/none', 1000), { code: 'NoConsistentCut', message: /ENOENT/ });
      await t.rejects(guard.freeze('/', 1000), { code: 'NoConsistentCut', message: /root filesystem/ });
    });

    await t.test('that is aborted leaves nothing frozen', async (t) => {
      const guard = guardFor(t);
      const reason = new Error('stopped');
      const stop = new AbortController();
      const freezing = guard.freeze(mountPoint, 60_000, stop.signal);
      stop.abort(reason);
      await t.rejects(freezing, reason);
      await untilWritable(mountPoint);
    });

    await t.test('is undone when the agent is killed', async (t) => {
      const agent = spawn(process.execPath, [join(import.meta.dirname, 'guard-agent.ts'), mountPoint], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      await once(createInterface({ input: agent.stdout }), 'line');
      agent.kill('SIGKILL');
      await untilWritable(mountPoint);
      t.equal(await isFrozen(mountPoint), false);
    });

    await t.test('is undone by a new guard when the guard is killed', async (t) => {
      const guard = guardFor(t);
      const freeze = await guard.freeze(mountPoint, 60_000);
      const { pid } = guard;
      process.kill(pid ?? 0, 'SIGTERM');
      process.kill(pid ?? 0, 'SIGKILL');
      await untilWritable(mountPoint);
      t.equal(await freeze.thaw(), false);
      t.not(guard.pid, pid);
      const again = await guard.freeze(mountPoint, 20_000);
      t.equal(await again.thaw(), true);
    });

    await t.test('leaves the pace of the kernel as it was, also when the guard is killed', async (t) => {
      const pace = (): string => readFileSync('/sys/kernel/rcu_expedited', 'utf8').trim();
      if (!existsSync('/sys/kernel/rcu_expedited') || pace() !== '0') return t.pass('none to be changed');
      // Other freezes of this machine may hurry just now.
      const calm = async (): Promise<void> => {
        for (let left = 500; pace() !== '0' && left > 0; left--) await delay(20);
      };
      const guard = guardFor(t);
      const freeze = await guard.freeze(mountPoint, 20_000);
      await calm();
      t.equal(pace(), '0', 'while it is frozen already');
      writeFileSync('/sys/kernel/rcu_expedited', '1');
      process.kill(guard.pid ?? 0, 'SIGKILL');
      await untilWritable(mountPoint);
      t.equal(await freeze.thaw(), false);
      await calm();
      t.equal(pace(), '0', 'the next guard puts it right');
      writeFileSync('/sys/kernel/rcu_expedited', '0');
      return undefined;
    });

    await t.test('outlives a signal to the whole group and ends with the guard', async (t) => {
      const guard = startGuard();
      const freeze = await guard.freeze(mountPoint, 60_000);
      process.kill(guard.pid ?? 0, 'SIGTERM');
      process.kill(guard.pid ?? 0, 'SIGINT');
      t.equal(await freeze.thaw(), true);
      await guard.freeze(mountPoint, 60_000);
      await guard.stop();
      t.equal(await isFrozen(mountPoint), false);
      await t.rejects(guard.freeze(mountPoint, 1000), { code: 'Stopped' });
    });

    await t.test('left over from a time before is undone at start', async (t) => {
      const guard = guardFor(t);
      t.same(await guard.thawAll([mountPoint, '/none', '/proc']), []);
      spawnSync('fsfreeze', ['--freeze', mountPoint]);
      t.same(await guard.thawAll([mountPoint, '/none', '/proc']), [mountPoint]);
      await untilWritable(mountPoint);
    });

    await t.test('is allowed by the rules, but not what data of ours lie on', async (t) => {
      const [mounts, devices] = [await readMounts(), await readBlockDevices()];
      t.equal(freezable(mountPoint, mounts, devices, ['/var/lib/data']), undefined);
      t.match(freezable(mountPoint, mounts, devices, [join(mountPoint, 'data')]), /holds .*data/);
      t.match(freezable('/', mounts, devices, []), /root filesystem|cannot be frozen/);
      t.ok(devices.some(({ path, loop }) => path === device && loop));
    });
  });
}

await t.test('what may be frozen', async (t) => {
  const mounts = parseMountinfo(
    Buffer.from(
      [
        '1 0 8:1 / / rw - ext4 /dev/sda1 rw',
        '2 1 8:16 / /data rw - ext4 /dev/sdb rw',
        '3 1 7:0 / /mnt/image rw - xfs /dev/loop0 rw',
        '4 1 8:1 /srv /mnt/bind rw - ext4 /dev/sda1 rw',
        '5 1 0:40 / /mnt/nfs rw - nfs4 server:/export rw',
        '6 1 0:50 / /mnt/pool rw - btrfs /dev/sdc rw',
        '7 1 0:51 /sub /mnt/pool/sub rw - btrfs /dev/sdc rw',
        '8 1 8:48 / /free rw - xfs /dev/sdd rw',
        '',
      ].join('\n'),
    ),
  );
  const none: Pick<BlockDevice, 'sizeBytes' | 'holders' | 'slaves' | 'kind'> = {
    sizeBytes: 1,
    holders: [],
    slaves: [],
    kind: 'disk',
  };
  const devices: BlockDevice[] = [
    { ...none, name: 'sdb', path: '/dev/sdb', device: '8:16' },
    { ...none, name: 'sdc', path: '/dev/sdc', device: '8:32' },
    {
      ...none,
      kind: 'loop',
      name: 'loop0',
      path: '/dev/loop0',
      device: '7:0',
      loop: { backingFile: '/data/disk.img', offsetBytes: 0, limitBytes: 0, directIo: false },
    },
  ];
  const why = (mountPoint: string, ...ours: string[]): string | undefined =>
    freezable(mountPoint, mounts, devices, ours);
  t.equal(why('/free'), undefined);
  t.equal(why('/data'), undefined);
  t.equal(why('/mnt/image'), undefined);
  t.match(why('/'), /root filesystem/);
  t.match(why('/free/folder'), /not a mount point/);
  t.match(why('/mnt/bind'), /shows only \/srv/);
  t.match(why('/mnt/nfs'), /nfs4 .* cannot be frozen/);
  t.match(why('/data', '/data/agent'), /holds \/data\/agent/);
  t.match(why('/data', '/mnt/image/agent'), /holds/, 'the image that our data lie in is on it');
  t.match(why('/mnt/pool', '/mnt/pool/sub/agent'), /holds/, 'another subvolume of the same btrfs');
  t.equal(why('/free', '/mnt/image/agent', '/data/agent'), undefined);
});
