import t from 'tap';
import { spawnSync } from 'node:child_process';
import { appendFileSync, chmodSync, closeSync, mkdirSync, openSync, renameSync, rmSync } from 'node:fs';
import { writeFileSync, writeSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { ForkFound } from '../../master/resources.ts';
import { run } from '../loop.ts';
import { noise } from './content.ts';
import { act, reaches, start } from './recovering.ts';
import { addOddities, missingRsync, rsyncDifferences } from './treevolume.ts';
import { agentName, killed, openWorld, type World } from './world.ts';

const compared = (world: World, name: string, isForked: boolean, sinceMs = 0): Promise<ForkFound> =>
  world.until(
    `${name} is compared with its old source`,
    async () => {
      const found = (await world.get(name)).status.fork?.found;
      if (!found?.entries || Date.parse(found.comparedTime) < sinceMs) return false;
      const { changed, new: added, gone } = found.entries;
      return changed + added + gone > 0 === isForked && found;
    },
    60,
  );

/** Times, modes and sizes; of files also when they were read last. */
const traces = (folder: string): string =>
  run(
    'sh',
    '-c',
    `find "$1" -type f -printf '%p %A@ %T@ %C@ %m %s\\n' -o -printf '%p %T@ %C@ %m\\n' | sort`,
    'sh',
    folder,
  );

t.test('a tree that was written on both sides of a promotion', { skip: missingRsync }, async (t) => {
  const world = await openWorld(t);
  const source = join(world.sources, 'tree');
  const part = join(world.sources, 'part');
  const path = join(world.dir, 'copies', 'tree');
  for (let at = 0; at < 60; at++) {
    mkdirSync(join(source, `d${at % 6}`), { recursive: true });
    writeFileSync(join(source, `d${at % 6}`, `f${at}`), noise(3000));
  }
  await addOddities(source);
  for (const name of ['kept', 'skipped']) {
    mkdirSync(join(part, name), { recursive: true });
    writeFileSync(join(part, name, 'file'), noise(1000));
  }
  world.agentFlags.push('--allow', join(world.dir, 'copies'), '--allow-write', source);
  await world.startAgent();
  await world.replicate('files', source, { volumeMode: 'Filesystem' });
  const some = { agent: agentName, path: part, volumeMode: 'Filesystem', exclude: ['skipped'] };
  await world.replicate('part', part, { volumeMode: 'Filesystem', ...{ source: some } });
  await world.normal('files');
  await world.normal('part');
  const first = await start(world, { replication: 'files', type: 'failover' });
  const partial = await start(world, { replication: 'part', type: 'failover' });
  await reaches(world, first, 'Completed');
  await reaches(world, partial, 'Completed');
  await compared(world, 'files', false);
  await compared(world, 'part', false);

  // The old side is away, and back.
  const anew = async (write: () => void): Promise<number> => {
    await world.agent.kill();
    write();
    const sinceMs = Date.now();
    await killed(world, 'master');
    world.agent.start();
    return sinceMs;
  };

  await t.test('what mirroring does not keep is no split', async (t) => {
    const sinceMs = await anew(() => {
      run('sh', '-c', 'find "$1" -exec touch -h -a {} +', 'sh', source);
      // What came and went has moved nothing but the time of its directory.
      writeFileSync(join(source, 'd0', 'passing'), 'by');
      rmSync(join(source, 'd0', 'passing'));
      writeFileSync(join(part, 'skipped', 'file'), noise(2000));
      writeFileSync(join(part, 'skipped', 'more'), noise(2000));
    });
    for (const name of ['files', 'part']) {
      const found = await compared(world, name, false, sinceMs);
      t.match(found, { bytes: 0, granules: null, ranges: null, entries: { changed: 0, new: 0, gone: 0 }, paths: [] });
      t.notOk((await world.get(name)).status.conditions.some(({ reason }) => reason === 'SplitBrain'));
    }
  });

  await t.test('each kind of change is found and told, and nothing is written for that', async (t) => {
    let before = '';
    const sinceMs = await anew(() => {
      const large = openSync(join(source, 'odd/large'), 'r+');
      writeSync(large, noise(1000), 0, 1000, (1 << 20) + 70_000);
      closeSync(large);
      run('touch', '-r', join(source, 'd1/f1'), join(world.dir, 'stamp'));
      writeFileSync(join(source, 'd1/f1'), noise(3000));
      run('touch', '-r', join(world.dir, 'stamp'), join(source, 'd1/f1'));
      run('touch', '-r', join(source, 'd1/f7'), join(source, 'd1/f13'));
      renameSync(join(source, 'd2/f2'), join(source, 'd3/moved'));
      rmSync(join(source, 'd4/f4'));
      chmodSync(join(source, 'd5/f5'), 0o4711);
      const odd = Buffer.concat([Buffer.from(`${source}/d0/new\n\x1b[31m\u202e\\é`), Buffer.from([0xff])]);
      writeFileSync(odd, noise(70_000));
      appendFileSync(join(part, 'kept/file'), noise(10));
      before = traces(source);
    });
    const found = await compared(world, 'files', true, sinceMs);
    t.strictSame(found.entries, { changed: 5, new: 1, gone: 1 });
    t.equal(found.bytes, 65536 + 3000 + 70_000, 'of what is large the granule alone');
    const told = (found.paths ?? []).map(({ path, change, what, formerPath }) => [
      path,
      change,
      what.join(),
      formerPath,
    ]);
    t.strictSame(
      told.sort(([a], [b]) => (String(a) < String(b) ? -1 : 1)),
      [
        ['d0/new\\x0a\\x1b[31m\\xe2\\x80\\xae\\x5cé\\xff', 'new', '', null],
        ['d1/f1', 'changed', 'content', null],
        ['d1/f13', 'changed', 'time', null],
        ['d3/moved', 'changed', 'name', 'd2/f2'],
        ['d4/f4', 'gone', '', null],
        ['d5/f5', 'changed', 'mode', null],
        ['odd/large', 'changed', 'content,time', null],
      ],
    );
    t.equal(traces(source), before, 'the old source is as it was, also when it was read last');
    const partly = await compared(world, 'part', true, sinceMs);
    t.match(partly, { bytes: 1010, entries: { changed: 1, new: 0, gone: 0 }, paths: [{ path: 'kept/file' }] });
    await world.degraded('files', 'SplitBrain');
    const events = await world.events();
    const event = events.find(({ code, object }) => code === 'SplitBrain' && object === 'Replication/files');
    t.match(event, { level: 'ERROR', message: /7 entries \(5 changed, 1 new, 1 gone; 138536 bytes of content\)/ });
    t.match(event?.message, /d3\/moved \(name, was d2\/f2\), .*d4\/f4 \(gone\)/);
    const replctl = [
      resolve(import.meta.dirname, '../../master/replctl'),
      'describe',
      'replication',
      'files',
      '--data',
      world.masterDir,
    ];
    const { stdout } = spawnSync(replctl[0] ?? '', replctl.slice(1), { encoding: 'utf8' });
    t.match(stdout, /gone: +1/);
    t.match(stdout, /path: +d3\/moved/);
  });

  await t.test('for the old side: the failover is rolled back', async (t) => {
    for (const [name, recovery] of Object.entries({ files: first, part: partial })) {
      await act(world, recovery, 'rollback');
      await reaches(world, recovery, 'RolledBack');
      await world.until('the fork is gone with it', async () => (await world.get(name)).status.fork === null);
    }
    await world.normal('files', Date.now());
    const { path } = await world.copyOf('files');
    t.strictSame(rsyncDifferences(source, path), [], 'what was written there is mirrored');
  });

  await t.test('for the new side: the old one is written over only after a word', async (t) => {
    const second = await start(world, { replication: 'files', type: 'failover', target: { path } });
    await reaches(world, second, 'Completed');
    await act(world, second, 'confirm');
    await reaches(world, second, 'Confirmed');
    await world.normal('files-failback', Date.now());
    const sinceMs = await anew(() => writeFileSync(join(source, 'd1/f1'), 'written later'));
    await compared(world, 'files-failback', true, sinceMs);
    const back = { replication: 'files-failback', type: 'drill', target: { agent: agentName, path: source } };
    await t.rejects(start(world, back), /1 entries \(1 changed, .* written there after the failover and are nowhere/);
    await t.rejects(start(world, { ...back, type: 'failover' }), /resync files-failback with force/);
    await world.client.send('POST', '/replications/files-failback/actions/resync', { force: true });
    const drill = await start(world, back);
    await reaches(world, drill, 'Completed');
    t.strictSame(rsyncDifferences(path, source), [], 'the new side has won');
    await world.until('nothing is degraded', async () => {
      const { conditions } = (await world.get('files-failback')).status;
      return !conditions.some(({ reason }) => reason === 'SplitBrain');
    });
  });
});
