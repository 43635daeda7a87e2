import t from 'tap';
import { chmodSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { loopMount, missingForLoop, mountImage, run } from '../loop.ts';
import { missingPostgres, startCluster } from './postgres.ts';
import { long, openWorld } from './world.ts';

function makeImage(image: string, sizeMiB: number): void {
  writeFileSync(image, '');
  truncateSync(image, sizeMiB * 2 ** 20);
  run('mkfs.ext4', '-q', '-E', 'nodiscard', image);
}

const rounds = long ? 6 : 2;

for (const where of ['xfs', 'ext4'] as const) {
  const way = where === 'xfs' ? 'freeze and reflink' : 'freeze and scan';
  const skip = missingForLoop(where) || missingForLoop('ext4') || missingPostgres();
  t.test(`PostgreSQL under load on ext4 in an image on ${where} (${way})`, { skip }, async (t) => {
    // Room for the copies that the master makes elsewhere is not needed here: only the source lies on it.
    const below = where === 'xfs' ? (await loopMount(t, 'xfs', 2048)).mountPoint : t.testdir();
    const world = await openWorld(t, { allow: [below] });
    const image = join(below, 'volume');
    // The user postgres must get there.
    const mounts = mkdtempSync(join(tmpdir(), 'replicator-mounts-'));
    chmodSync(mounts, 0o755);
    t.teardown(() => rmSync(mounts, { recursive: true, force: true }));
    makeImage(image, where === 'xfs' ? 1024 : 384);
    mountImage(t, image, join(mounts, 'live'));
    const cluster = await startCluster(t, join(mounts, 'live'));
    const load = cluster.load(t);
    await world.startAgent();
    // A scan of this image takes some hundred milliseconds on a slow machine, and all of it is frozen time. A freeze that
    // does not hold ends in a cut of less consistency, which is not what is looked at here.
    await world.replicate('pg', image, { rpoSeconds: 2, maxFreezeMs: where === 'xfs' ? 2000 : 5000 });
    const freezes: number[] = [];

    for (let round = 0; round < rounds; round++) {
      await world.normal('pg', Date.now(), 90);
      await sleep(2000 * Math.random());
      const { lastSyncTime, recoveryPoint } = (await world.get('pg')).status;
      t.equal(recoveryPoint?.consistency, 'filesystem');
      const { path, recovery } = await world.copyOf('pg');
      const { point, rtoSeconds } = recovery.status;
      const asOfMs = Math.max(Date.parse(lastSyncTime ?? ''), Date.parse(point?.sourceTime ?? ''));
      const promised = load.commits.reduce((most, ms, number) => (ms < asOfMs ? number : most), 0);
      t.ok(promised > 0, 'there are promises to keep');

      await t.test(`copy ${round + 1}`, async (t) => {
        mountImage(t, path, join(mounts, `copy-${round}`));
        const copy = await startCluster(t, join(mounts, `copy-${round}`));
        const last = Number(copy.sql('SELECT coalesce(max(number), 0) FROM instant'));
        t.equal(Number(copy.sql('SELECT count(*) FROM instant')), last, 'no committed row is missing between');
        t.ok(
          last >= promised,
          `row ${promised} was committed before ${new Date(asOfMs).toISOString()}; newest: ${last}`,
        );
        t.equal(copy.check(), '', 'pg_amcheck finds nothing');
        const sums = copy.sql(
          'SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history)',
        );
        t.equal(sums.trim(), 't', 'the accounts add up to the history');
        await copy.stop();
      });
      const frozen = (await world.metric('freeze_duration_seconds_sum')) * 1000;
      const count = await world.metric('freeze_duration_seconds_count');
      freezes.push(frozen / count);
      t.comment(
        `${load.commits.length} rows, RTO ${rtoSeconds} s, ${count} freezes of ${(frozen / count).toFixed(1)} ms on average`,
      );
    }
    t.ok((freezes.at(-1) ?? Infinity) < (where === 'xfs' ? 2000 : 5000), 'frozen for less than maxFreezeMs');
    await load.stop();
    await cluster.stop();
  });
}
