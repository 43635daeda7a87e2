import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { startGuard, type Guard } from '../../../agent/guard.ts';
import { groupTarget } from '../../../agent/standstill.ts';
import { freezerRoots, group } from '../../cgroup.ts';
import { loopMount, missingForLoop } from '../../loop.ts';

function guardFor(t: Test): Guard {
  const guard = startGuard();
  t.teardown(() => guard.stop());
  return guard;
}

/** Appends to a file until it is killed. */
function writer(t: Test, folder: string, path: string): ChildProcess {
  const child = spawn('sh', ['-c', `echo $$ > ${folder}/cgroup.procs; while :; do echo x >> ${path}; done`]);
  t.teardown(() => void child.kill('SIGKILL'));
  return child;
}

const sizeOf = (path: string): number => (existsSync(path) ? statSync(path).size : 0);

function isStill(folder: string, name: 'v1' | 'v2'): boolean {
  const [file, word] = name === 'v2' ? ['cgroup.events', 'frozen 1'] : ['freezer.state', 'FROZEN'];
  return readFileSync(join(folder, file), 'utf8').includes(word);
}

/** Ends only when the writer writes. */
async function untilWriting(path: string): Promise<void> {
  const before = sizeOf(path);
  for (let left = 1000; sizeOf(path) === before; left--) {
    if (left === 0) throw new Error('the writer stands still');
    await delay(20);
  }
}

const roots = freezerRoots();
if (roots.length === 0) await t.test('control groups', { skip: 'needs root and cgroups with a freezer' }, async () => undefined); // prettier-ignore

for (const { name, root } of roots) {
  await t.test(`freezing a control group, ${name}`, async (t) => {
    const folder = group(t, root);
    const path = join(t.testdir(), 'written');
    const target = groupTarget(folder);
    writer(t, folder, path);
    await untilWriting(path);

    await t.test('stops its processes from freeze to thaw', async (t) => {
      const guard = guardFor(t);
      const freeze = await guard.freeze(target, 20_000);
      const size = sizeOf(path);
      await delay(100);
      t.equal(sizeOf(path), size, 'nothing is written');
      t.equal(await freeze.thaw(), true);
      t.ok(freeze.frozenUs >= 100_000 && freeze.frozenUs < 20_000_000, `${freeze.frozenUs} us`);
      await untilWriting(path);
    });

    await t.test('ends by itself at the limit, and says so', async (t) => {
      const guard = guardFor(t);
      const freeze = await guard.freeze(target, 300);
      await untilWriting(path);
      t.equal(await freeze.thaw(), false);
    });

    await t.test('is refused while somebody else holds it, and is not undone', async (t) => {
      const guard = guardFor(t);
      const [control, on, off] = name === 'v2' ? ['cgroup.freeze', '1', '0'] : ['freezer.state', 'FROZEN', 'THAWED'];
      writeFileSync(join(folder, control), on);
      await t.rejects(guard.freeze(target, 1000), { code: 'NoConsistentCut', message: /somebody else/ });
      t.equal(readFileSync(join(folder, control), 'utf8').trim(), on);
      writeFileSync(join(folder, control), off);
      await untilWriting(path);
    });

    await t.test('did not hold when somebody else has thawed', async (t) => {
      const guard = guardFor(t);
      const freeze = await guard.freeze(target, 20_000);
      writeFileSync(join(folder, name === 'v2' ? 'cgroup.freeze' : 'freezer.state'), name === 'v2' ? '0' : 'THAWED');
      t.equal(await freeze.thaw(), false);
      await untilWriting(path);
    });

    await t.test('is undone when the agent is killed', async (t) => {
      const agent = spawn(process.execPath, [join(import.meta.dirname, 'guard-agent.ts'), target], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      await once(createInterface({ input: agent.stdout }), 'line');
      agent.kill('SIGKILL');
      await untilWriting(path);
      t.pass('the workload goes on');
    });

    await t.test('is undone by a new guard when the guard is killed, and left over by the next agent', async (t) => {
      const guard = guardFor(t);
      const freeze = await guard.freeze(target, 60_000);
      process.kill(guard.pid ?? 0, 'SIGKILL');
      await untilWriting(path);
      t.equal(await freeze.thaw(), false);
      writeFileSync(join(folder, name === 'v2' ? 'cgroup.freeze' : 'freezer.state'), name === 'v2' ? '1' : 'FROZEN');
      for (let left = 1000; !isStill(folder, name) && left > 0; left--) await delay(10);
      t.same(await guard.thawAll([target, groupTarget(`${folder}/none`)]), [target]);
      await untilWriting(path);
    });

    await t.test('from a container its processes are seen, or that there may be some', (t) => {
      const module = new URL('../../../agent/standstill.ts', import.meta.url).href;
      const look = (...before: string[]): unknown => {
        const script = `
          import { mayHide, processesOf } from '${module}';
          console.log(JSON.stringify([(await processesOf('${folder}')).length > 0, await mayHide('${folder}')]));`;
        const [program = '', ...argv] = [...before, process.execPath, '--input-type=module', '--eval', script];
        return JSON.parse(spawnSync(program, argv, { encoding: 'utf8' }).stdout);
      };
      t.same(look(), [true, false]);
      const seen = name === 'v2';
      t.same(look('unshare', '--pid', '--fork', '--mount-proc'), [seen, !seen]);
      t.end();
    });

    await t.test('is refused when we run in it ourselves', async (t) => {
      const guard = guardFor(t);
      const own = group(t, root);
      const before = name === 'v2' ? '0::' : ':freezer:';
      const line = readFileSync('/proc/self/cgroup', 'utf8').split('\n').find((one) => one.includes(before)) ?? ''; // prettier-ignore
      writeFileSync(join(own, 'cgroup.procs'), String(process.pid));
      try {
        await t.rejects(guard.freeze(groupTarget(own), 1000), { message: /holds this program itself/ });
      } finally {
        writeFileSync(join(root, line.slice(line.lastIndexOf(':') + 1), 'cgroup.procs'), String(process.pid));
      }
    });
  });
}

/** A process in the group that no freezer can stop: it waits for a device whose backing lies on a frozen filesystem. */
for (const { name, root } of roots) {
  await t.test(`a group that does not come to rest, ${name}`, { skip: missingForLoop('ext4') }, async (t) => {
    const { mountPoint } = await loopMount(t, 'ext4', 64);
    const backing = join(mountPoint, 'backing');
    spawnSync('truncate', ['-s', '8M', backing]);
    const device = spawnSync('losetup', ['--find', '--show', backing], { encoding: 'utf8' }).stdout.trim();
    t.teardown(() => void spawnSync('losetup', ['--detach', device]));
    const folder = group(t, root);
    const path = join(t.testdir(), 'written');
    writer(t, folder, path);
    await untilWriting(path);
    spawnSync('fsfreeze', ['--freeze', mountPoint]);
    t.teardown(() => void spawnSync('fsfreeze', ['--unfreeze', mountPoint]));
    const hung = spawn('sh', ['-c', `echo $$ > ${folder}/cgroup.procs; exec dd if=/dev/zero of=${device} bs=4k count=1 oflag=direct`]); // prettier-ignore
    const ended = once(hung, 'exit');
    for (let left = 1000; !/^\d+ \(dd\) D /.test(readFileSync(`/proc/${hung.pid}/stat`, 'utf8')); left--) {
      if (left === 0) throw new Error('dd does not wait');
      await delay(10);
    }
    const guard = guardFor(t);
    await t.rejects(guard.freeze(groupTarget(folder), 300), {
      code: 'NoConsistentCut',
      message: /longer than allowed/,
    });
    await untilWriting(path);
    spawnSync('fsfreeze', ['--unfreeze', mountPoint]);
    await ended;
    const freeze = await guard.freeze(groupTarget(folder), 20_000);
    t.equal(await freeze.thaw(), true, 'it can be frozen when that is over');
  });
}
