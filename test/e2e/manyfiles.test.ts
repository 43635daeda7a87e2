/**
 * A tree of many files, the real agent and master: what the agent holds in memory, what it asks the kernel for when ten files
 * change, and what crosses the line when all of them move.
 *
 * REPLICATOR_FILES: how many; 1,000,000 with `npm run e2e -- manyfiles`, else 8,000 and no start over. With fewer a scan would be
 * part of every cut.
 */
import t from 'tap';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { join } from 'node:path';
import { makeManyFiles, manyFile } from '../bench/volumes.ts';
import { missingForFanotify } from '../conformance/treeplace.ts';
import { run } from '../loop.ts';
import { missingRsync, rsyncDifferences } from './treevolume.ts';
import { long, openWorld } from './world.ts';

t.setTimeout(7_200_000);
const files = Number(process.env['REPLICATOR_FILES'] ?? (long ? 1_000_000 : 8000));
const mostMiB = 200;
/** For ten changed files. */
const mostLooks = 1500;
const patience = 3600;

/** The most that it was resident with since it was started. */
function peakMiB(pid: number): number {
  const status = fs.readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1] ?? NaN) / 1024;
}

/** Calls of the process and all its threads while `work` goes on, by name. */
async function systemCalls(pid: number, work: () => Promise<void>): Promise<Map<string, number>> {
  const tracer = spawn('strace', ['-f', '-c', '-U', 'calls,name', '-p', `${pid}`]);
  const ended = once(tracer, 'close');
  let said = '';
  tracer.stderr.on('data', (part: Buffer) => (said += part.toString()));
  try {
    while (!said.includes('attached')) await once(tracer.stderr, 'data');
    await work();
  } finally {
    tracer.kill('SIGINT');
    await ended;
  }
  return new Map(
    [...said.matchAll(/^\s*(\d+)\s+(\w+)$/gm)].map(([, calls, name]) => [name ?? '', Number(calls)] as const),
  );
}

const noStrace =
  spawnSync('strace', ['-f', '-c', '-o', '/dev/null', 'true']).status !== 0 && 'needs strace, and leave to trace';
const skip = missingRsync || noStrace || (await missingForFanotify());

t.test(`a tree of ${files} files`, { skip }, async (t) => {
  const world = await openWorld(t, { proxied: true });
  const source = join(world.sources, 'tree');
  makeManyFiles(join(source, 'from'), files, 1024);
  fs.mkdirSync(join(source, 'to'));
  await world.startAgent();
  const startMs = performance.now();
  await world.replicate('many', source, { volumeMode: 'Filesystem', rpoSeconds: 1 });
  await world.normal('many', 0, patience);
  const seconds = ((performance.now() - startMs) / 1000).toFixed(1);
  const newest = async (): Promise<number> => (await world.get('many')).status.recoveryPoint?.sequence ?? 0;
  const newer = async (than: number): Promise<void> => {
    await world.until(`a point newer than ${than}`, async () => (await newest()) > than, patience);
  };
  const mostOfCopy = peakMiB(world.agent.pid);
  t.ok(mostOfCopy < mostMiB, `the agent had ${mostOfCopy.toFixed(0)} MiB at most`);
  t.comment(`first copy: ${seconds} s; agent ${mostOfCopy.toFixed(0)} MiB at most`);

  await t.test('ten changed files are found without a walk', async (t) => {
    // At a pace of its own all is scanned, which may fall into the time that is counted. A time without shows that it need not.
    for (let left = 30; ; left--) {
      const point = await newest();
      const calls = await systemCalls(world.agent.pid, async () => {
        for (let at = 0; at < 10; at++)
          fs.appendFileSync(manyFile(join(source, 'from'), Math.floor((files / 10) * at)), 'changed');
        await newer(point);
      });
      const looks = [...calls].filter(([name]) => /^(newfstatat|statx|l?stat|openat2?|fstat|getdents64)$/.test(name));
      const count = looks.reduce((sum, [, times]) => sum + times, 0);
      t.comment(looks.map((one) => one.join(' ')).join(', '));
      if (count >= mostLooks && left > 0) continue;
      t.ok(count > 10 && count < mostLooks, `${count} looks into a tree of ${files} files`);
      break;
    }
  });

  await t.test('all of them move: no data crosses', async (t) => {
    const point = await newest();
    const before = world.proxy?.sentBytes ?? 0;
    const sent = await world.metric('sent_bytes_total', '"many"');
    const startMs = performance.now();
    fs.renameSync(join(source, 'from'), join(source, 'to', 'moved'));
    await newer(point);
    const bytes = (world.proxy?.sentBytes ?? 0) - before;
    t.comment(`${bytes} bytes on the line, ${((performance.now() - startMs) / 1000).toFixed(1)} s`);
    t.ok(bytes < 64 << 10, `${bytes} bytes`);
    t.equal(await world.metric('sent_bytes_total', '"many"'), sent);
  });

  if (files >= 10_000)
    await t.test('the agent starts again and finds that nothing changed', async (t) => {
      const sent = await world.metric('sent_bytes_total', '"many"');
      const sinceMs = Date.now();
      await world.agent.kill();
      world.agent.start();
      await world.normal('many', sinceMs, patience);
      t.comment(`${((Date.now() - sinceMs) / 1000).toFixed(1)} s; agent ${peakMiB(world.agent.pid).toFixed(0)} MiB`);
      t.equal(await world.metric('sent_bytes_total', '"many"'), sent);
    });

  // Of very many a drill would take longer than all that is measured here.
  if (files < 10_000)
    await t.test('the copy is the source', async (t) => {
      await world.normal('many', 0, patience);
      const { path } = await world.copyOf('many');
      t.same(rsyncDifferences(source, path), []);
    });
  run('rm', '-rf', source);
});
