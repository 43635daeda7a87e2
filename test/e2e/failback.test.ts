import t from 'tap';
import { closeSync, existsSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import type { Snapshot } from '../../master/resources.ts';
import { noise, sameBytes, writeNoise } from './content.ts';
import { act, reaches, start } from './recovering.ts';
import { killed, openWorld } from './world.ts';

t.test('a confirmed failover is mirrored on from where it is, with its points and snapshots', async (t) => {
  const world = await openWorld(t);
  const source = join(world.sources, 'image');
  const sizeBytes = 32 << 20;
  writeNoise(source, sizeBytes);
  await world.startAgent();
  await world.replicate('db', source);
  await world.normal('db');
  await world.snapshot('db', 'before');
  const until = new Date(Date.now() + 3_600_000).toISOString();
  await world.client.send('PATCH', '/replications/db/snapshots/before', { spec: { lockedUntil: until, pinned: true } });
  const [first] = await world.points('db');

  const failover = await start(world, { replication: 'db', type: 'failover' });
  const path = (await reaches(world, failover, 'Completed')).status.tasks[0]?.path ?? '';
  await t.test('not while nobody can mirror the copy', async () => {
    await act(world, failover, 'confirm');
    await world.until('it says what is lacking', async () => {
      const { status } = await reaches(world, failover, 'Confirming');
      return /start one here with --allow/.test(status.message ?? '');
    });
    await killed(world, 'master');
    await reaches(world, failover, 'Confirming');
    await world.until(
      'what was there stays until then',
      async () => (await world.get('db')).status.phase === 'Promoted',
    );
  });
  await world.agent.stop();
  world.agentFlags.push('--allow', path);
  await world.startAgent();
  const confirmed = await reaches(world, failover, 'Confirmed');
  t.equal(confirmed.status.outcome, 'success');
  t.match(confirmed.status.message, /db-failback/);

  // The new side goes on: 1 % of it changes.
  const changed = 5 * 65536;
  const file = openSync(path, 'r+');
  for (let at = 0; at < 5; at++) writeSync(file, noise(65536), 0, 65536, at * (6 << 20));
  closeSync(file);
  await t.rejects(world.get('db'), /there is no replication/, 'the old replication has ended');
  const back = await world.normal('db-failback', Date.now());
  t.match(back.spec, { source: { agent: 'node-a', path }, replicationState: 'primary' });
  const sent = await world.metric('sent_bytes_total', 'replication="db-failback"');
  t.ok(sent > 0 && sent <= 1.2 * (changed + 65536), `${sent} bytes were sent of ${sizeBytes}, ${changed} had changed`);
  const points = await world.points('db-failback');
  t.equal(points[0]?.digest, first?.digest, 'older points can still be recovered');
  const snapshot = await world.client.get<Snapshot>('/replications/db-failback/snapshots/before');
  t.match(snapshot.spec, { lockedUntil: until, pinned: true });
  await t.rejects(world.client.send('DELETE', '/replications/db-failback/snapshots/before'), /locked|pinned/);
  const newest = await world.copyOf('db-failback');
  t.ok(sameBytes(path, newest.path), 'the newest point is the new side');
  const old = await world.copyOf('db-failback', { snapshot: 'before' });
  t.ok(sameBytes(source, old.path), 'the snapshot is the old side');

  await world.client.send('DELETE', `/recoveries/${failover.metadata.name}`);
  const { left } = await world.client.send<{ left: unknown[] }>('POST', '/garbage/actions/cleanup', {
    mode: 'restored',
  });
  t.same(left, []);
  t.ok(existsSync(path), 'a source is no garbage, though its recovery is gone');
  await killed(world, 'both');
  await world.normal('db-failback', Date.now());
});
