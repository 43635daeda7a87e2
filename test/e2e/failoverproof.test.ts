import t from 'tap';
import { closeSync, mkdirSync, openSync, readSync, readdirSync, statSync, utimesSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import type { Recovery } from '../../master/resources.ts';
import { sameBytes, writeNoise } from './content.ts';
import { act, reaches, start } from './recovering.ts';
import { killed, openWorld, verified, type World } from './world.ts';

function flip(path: string, at: number): void {
  const { atime, mtime } = statSync(path);
  const file = openSync(path, 'r+');
  const byte = Buffer.alloc(1);
  readSync(file, byte, 0, 1, at);
  writeSync(
    file,
    byte.map((value) => value ^ 1),
    0,
    1,
    at,
  );
  closeSync(file);
  utimesSync(path, atime, mtime);
}

function stored(folder: string, name: string): string {
  const found = readdirSync(folder, { recursive: true, withFileTypes: true }).find(
    (entry) => entry.name === name && /\/base(\/|$)/.test(entry.parentPath),
  );
  if (!found) throw new Error(`${name} is in no base under ${folder}`);
  return join(found.parentPath, found.name);
}

const proven = (world: World, { metadata }: Recovery, isRight: boolean) =>
  world.until('its point was read whole', async () => {
    const recovery = await world.client.get<Recovery>(`/recoveries/${metadata.name}`);
    return recovery.status.verified === isRight && recovery;
  });

t.test('what a failover hands out is proven afterwards', async (t) => {
  const world = await openWorld(t);
  const image = join(world.sources, 'image');
  const tree = join(world.sources, 'tree');
  const copies = join(world.dir, 'copies');
  writeNoise(image, 32 << 20);
  mkdirSync(tree);
  writeNoise(join(tree, 'large'), 300_000);
  writeNoise(join(tree, 'small'), 3000);
  world.agentFlags.push('--allow', copies);
  await world.startAgent();
  await world.replicate('db', image);
  await world.replicate('files', tree, { volumeMode: 'Filesystem' });
  await world.normal('db');
  await world.normal('files');
  const told = async (code: string) => (await world.events()).filter((event) => event.code === code);

  await t.test('also when it is confirmed at once and the master is killed', async (t) => {
    const path = join(copies, 'db.raw');
    const failover = await start(world, { replication: 'db', type: 'failover', target: { path } });
    await reaches(world, failover, 'Completed');
    await act(world, failover, 'confirm');
    await killed(world, 'master');
    await reaches(world, failover, 'Confirmed');
    const { status } = await proven(world, failover, true);
    t.match(status, { state: 'Confirmed', outcome: 'success', tasks: [{ verified: true, progress: null }] });
    t.match(await told('RecoveredCopyVerified'), [{ level: 'INFO', object: `Recovery/${failover.metadata.name}` }]);
    await world.normal('db-failback', Date.now());
    t.ok(sameBytes(image, path));
  });

  await t.test('and a bit that was flipped in the replica before is told', async (t) => {
    flip(stored(world.masterDir, 'large'), 140_000);
    const failover = await start(world, { replication: 'files', type: 'failover' });
    await reaches(world, failover, 'Completed');
    const { status } = await proven(world, failover, false);
    const place = /files: .* is DAMAGED at point \d+: 1 granules .*: byte 131072 of "large"; roll back, then/;
    t.match(status.tasks[0]?.message, /DAMAGED .* byte 131072 of "large"; roll back/);
    t.match(await told('RecoveredCopyDamaged'), [{ level: 'ERROR', message: place }]);
    await world.degraded('files', 'VerifyMismatch');
    t.equal(await world.metric('verify_mismatched_bytes_total', '"files"'), 65536);
    await act(world, failover, 'rollback');
    await reaches(world, failover, 'RolledBack');
    t.strictSame(readdirSync(join(world.masterDir, 'recoveries')), []);
    await world.degraded('files', 'VerifyMismatch');
    await verified(world, 'files');
    await world.until('it is cured', async () => {
      const { conditions } = (await world.get('files')).status;
      return !conditions.some(({ reason, status }) => reason === 'VerifyMismatch' && status === 'True');
    });
    const drill = await world.drill('files');
    t.equal(drill.status.verified, true, 'what it told to do does it');
  });
});
