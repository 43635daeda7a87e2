/**
 * Three masters, one cluster, one volume that all reach: whatever is killed, and whoever writes meanwhile, one leads within
 * the time of the lease and everything ends right. Rounds are seeded: REPLICATOR_SEED runs the same ones again.
 */
import t from 'tap';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { leaseSeconds } from '../../master/kubernetes/lease.ts';
import { skipKubernetes, startKubernetes } from '../kubernetes.ts';
import { random, sameBytes, startWriter, writeNoise } from './content.ts';
import { program } from './program.ts';
import { long, openWorld } from './world.ts';
import { chosenSeed } from '../seed.ts';

const seed = chosenSeed();
const rounds = long ? 200 : 5;
const faults = ['leader', 'leader', 'apiserver', 'compaction', 'agent', 'leader and apiserver'] as const;

t.test(`three masters under faults (seed ${seed})`, { skip: skipKubernetes }, async (t) => {
  const next = random(seed);
  const cluster = await startKubernetes();
  t.teardown(() => cluster.close());
  await cluster.install();
  const world = await openWorld(t, { masterFlags: ['--kubernetes', 'default', '--kubeconfig', cluster.kubeconfig] });
  const { http, grpc } = JSON.parse(readFileSync(join(world.masterDir, 'endpoints.json'), 'utf8')) as {
    http: string;
    grpc: string;
  };
  const argv = () => [
    ...['--data', world.masterDir, '--http', http.replace('http://', ''), '--grpc', grpc],
    ...world.masterFlags,
  ];
  const standbys = [1, 2].map((number) => program('replicator-master', argv, join(world.dir, `standby-${number}.log`)));
  t.teardown(() => Promise.all(standbys.map((one) => one.kill())));
  for (const one of standbys) one.start();
  const masters = [world.master, ...standbys];
  await world.startAgent();
  const source = join(world.sources, 'image');
  writeNoise(source, 8 << 20);
  await world.replicate('orders', source, { rpoSeconds: 2 });
  await world.normal('orders');
  const writer = await startWriter(source, next);
  t.teardown(() => writer.stop());

  const holder = async (): Promise<string> => {
    const path = '/apis/coordination.k8s.io/v1/namespaces/default/leases/cdm-replicator-master';
    const { body } = await cluster.request('GET', path);
    return (body['spec'] as { holderIdentity?: string } | undefined)?.holderIdentity ?? '';
  };
  const reported = new Map<number, string>();
  for (let round = 1; round <= rounds; round++) {
    await sleep(2000 * next());
    for (const { sequence, digest } of await world.points('orders')) reported.set(sequence, digest);
    const fault = faults[Math.floor(next() * faults.length)] ?? 'leader';
    const before = await holder();
    const rpoSeconds = 2 + Math.floor(next() * 3);
    const patch = `{"spec":{"rpoSeconds":${rpoSeconds}},"metadata":{"labels":{"round":"${round}"}}}`;
    const startMs = performance.now();
    if (fault.includes('apiserver')) await cluster.kill();
    // The identity of a holder has its process id.
    if (fault.includes('leader')) process.kill(Number(before.split('_')[1]), 'SIGKILL');
    if (fault === 'agent') await world.agent.kill();
    if (fault.includes('apiserver')) await cluster.start();
    if (fault === 'compaction') await cluster.compact();
    cluster.kubectl(['patch', 'ri', 'orders', '--type=merge', '-p', patch]);
    if (fault === 'agent') world.agent.start();
    if (fault.includes('leader')) {
      await world.until('another one leads', async () => ![before, ''].includes(await holder()), 60);
      const seconds = (performance.now() - startMs) / 1000;
      t.comment(`round ${round}: another one led after ${seconds.toFixed(1)} s`);
      // Three tries of 2 s, and the time that a busy machine takes.
      t.ok(seconds < leaseSeconds + 25, `it leads within the lease time: ${seconds.toFixed(1)} s`);
    }
    for (const one of masters) if (!one.running) one.start();
    const { spec, metadata } = await world.until(
      `round ${round}, ${fault}: what kubectl wrote is there`,
      async () => {
        const now = await world.get('orders');
        return now.metadata.labels?.['round'] === String(round) && now;
      },
      120,
    );
    t.match([spec.rpoSeconds, metadata.name], [rpoSeconds, 'orders'], `round ${round}: ${fault}`);
    await world.normal('orders', Date.now(), 120);
    const now = new Map((await world.points('orders')).map(({ sequence, digest }) => [sequence, digest]));
    const lost = [...reported].filter(([sequence, digest]) => now.get(sequence) !== digest);
    t.same(lost, [], 'every point reported before is there');
  }
  await writer.stop();
  await world.normal('orders', Date.now(), 120);
  const { path } = await world.copyOf('orders');
  t.ok(sameBytes(source, path), 'the copy is the source');
});
