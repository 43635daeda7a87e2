/**
 * How an agent that has joined comes to its first connection: by what it loads and compiles for it, and by the clock, less the
 * time that other programs had the processors. `npm run e2e -- start` prints the times.
 */
import t from 'tap';
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync, mkdirSync, chmodSync } from 'node:fs';
import { join } from 'node:path';
import { long, openWorld, type World } from './world.ts';

interface Start {
  /** Modules that were loaded until it was connected, and those of them that V8 had to compile. */
  loaded: string[];
  compiled: string[];
  /** From before its launcher was started to the connection, by the clock. */
  wallMs: number;
  /** Of that: ready to go on, while something else had the processor. A little more at most. */
  waitedMs: number;
  /** Processor time until then, a little more at most. */
  cpuMs: number;
}

async function start(world: World, log: string, env: Record<string, string> = {}): Promise<Start> {
  rmSync(log, { force: true });
  Object.assign(process.env, env);
  const beginMs = Date.now();
  try {
    world.agent.start();
  } finally {
    for (const name of Object.keys(env)) delete process.env[name];
  }
  const line = await world.until('it is connected', async () => {
    return readFileSync(log, 'utf8')
      .split('\n')
      .find((one) => one.includes('"connected to the master"'));
  });
  const stat = readFileSync(`/proc/${world.agent.pid}/stat`, 'utf8')
    .replace(/^.*\) /, '')
    .split(' ');
  // Documentation/scheduler/sched-stats.rst: ns on the processor, ns waiting for it. The launcher becomes the agent.
  const [, waitedNs] = readFileSync(`/proc/${world.agent.pid}/schedstat`, 'utf8').split(' ');
  const before = readFileSync(log, 'utf8').split('"connected to the master"')[0] ?? '';
  const told = (pattern: RegExp) => [...before.matchAll(pattern)].map((match) => match[1] ?? '');
  const loaded = told(/^\[compile cache\] reading cache from .* for (?:CommonJS|ESM) (\S+?)\.\.\./gm);
  return {
    loaded,
    compiled: told(/^\[compile cache\] V8 code cache for (?:CommonJS|ESM) (\S+) was (?!accepted)/gm),
    wallMs: Date.parse((JSON.parse(line) as { time: string }).time) - beginMs,
    waitedMs: Math.round(Number(waitedNs) / 1e6),
    cpuMs: (Number(stat[11]) + Number(stat[12])) * 10,
  };
}

t.test('an agent that has joined loads little before it is connected, and compiles nothing of it anew', async (t) => {
  const world = await openWorld(t);
  const log = join(world.dir, 'agent.log');
  const cache = join(world.dir, 'a/compile-cache');
  await start(world, log);
  t.notOk(existsSync(cache), 'the first start had no data directory to take it from, and makes none itself');
  await world.agent.stop();
  await start(world, log);
  t.equal(await world.agent.stop(), 0);
  const [folder = ''] = readdirSync(cache);
  t.ok(readdirSync(join(cache, folder)).length > 200, 'kept when it ended');

  mkdirSync(join(cache, 'v20.0.0-x64-0-0'));
  const second = await start(world, log, { NODE_DEBUG_NATIVE: 'COMPILE_CACHE' });
  const readme = readFileSync(join(import.meta.dirname, '../../README.md'), 'utf8');
  const shouldLoad = Number(/it loads (\d+) modules/.exec(readme)?.[1]);
  t.ok(
    Math.abs(second.loaded.length - shouldLoad) <= 10,
    `${second.loaded.length} modules, README tells ${shouldLoad}`,
  );
  t.strictSame(
    second.loaded.filter((name) => /@peculiar|tsyringe|ssh2|fastify|kubernetes|replica\/tree/.test(name)),
    [],
    'nothing of joining, nothing of the master, nothing that writes folders',
  );
  t.strictSame(second.compiled, [], 'none compiled anew');
  await world.until('what other runtimes have left is gone', async () => readdirSync(cache).length === 1);
  await world.agent.stop();

  await t.test(
    'the cache costs nothing but time when it is damaged, and is not believed where others may write',
    async (t) => {
      for (const name of readdirSync(join(cache, folder))) writeFileSync(join(cache, folder, name), 'damaged');
      const damaged = await start(world, log, { NODE_DEBUG_NATIVE: 'COMPILE_CACHE' });
      t.equal(damaged.compiled.length, damaged.loaded.length, 'all is compiled anew');
      await world.agent.stop();
      chmodSync(join(world.dir, 'a'), 0o777);
      const open = await start(world, log, { NODE_DEBUG_NATIVE: 'COMPILE_CACHE' });
      chmodSync(join(world.dir, 'a'), 0o700);
      t.strictSame(open.loaded, [], 'no cache is read');
      await world.agent.stop();
    },
  );

  await t.test('under a second by the clock, at two thirds of the processor time', async (t) => {
    const quick: Start[] = [];
    const slow: Start[] = [];
    for (let round = 0; round < (long ? 8 : 3); round++) {
      quick.push(await start(world, log));
      await world.agent.stop();
      slow.push(await start(world, log, { NODE_DISABLE_COMPILE_CACHE: '1' }));
      await world.agent.stop();
    }
    for (const [name, all] of Object.entries({ 'with the cache': quick, without: slow }))
      t.comment(
        `${name}, ms: by the clock ${told(all, 'wallMs')}, of that waiting for a processor ${told(all, 'waitedMs')}; processor ${told(all, 'cpuMs')}`,
      );
    const least = (all: Start[]): number => Math.min(...all.map(({ cpuMs }) => cpuMs));
    t.ok(least(quick) < 0.8 * least(slow), `${least(quick)} ms of processor time, ${least(slow)} without the cache`);
    const alone = Math.min(...quick.map(({ wallMs, waitedMs }) => wallMs - waitedMs));
    t.comment(`${alone} ms at best less the time that other programs had the processors`);
    // Disks too are busy beside other tests.
    if (long) t.ok(alone < 1000, `connected after ${alone} ms`);
  });
});

/** Least, median and most. */
function told(all: Start[], field: 'wallMs' | 'waitedMs' | 'cpuMs'): string {
  const sorted = all.map((one) => one[field]).sort((a, b) => a - b);
  return `${sorted[0]} / ${sorted[sorted.length >> 1]} / ${sorted.at(-1)}`;
}
