/**
 * What many ReplicationInfo objects cost a master and an API server, both real: taking them on, a change, rest. Their agent never comes:
 * what agents cost is scale.test.ts. `npm run e2e -- kubernetesmany` has 2,000 (REPLICATOR_OBJECTS: so many) and prints a
 * table.
 */
import t from 'tap';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { group } from '../../master/kubernetes/kinds.ts';
import type { Replication } from '../../master/resources.ts';
import { skipKubernetes, until } from '../kubernetes.ts';
import { account, namespace, openKubernetesWorld } from './kubernetesworld.ts';
import { long } from './world.ts';

const count = Number(process.env['REPLICATOR_OBJECTS'] ?? 2000);
const changed = Math.min(count, 200);
const restMs = 60_000;
const skip = skipKubernetes || (long ? false : 'minutes: npm run e2e -- kubernetesmany');

const isStatus = (request: string): boolean => /infoes\/status/.test(request);
const nameOf = (number: number): string => `many-${String(number).padStart(5, '0')}`;
const objectOf = (number: number, rpoSeconds: number): object => ({
  apiVersion: `${group}/v1`,
  kind: 'ReplicationInfo',
  metadata: { name: nameOf(number), namespace },
  spec: {
    source: { agent: 'absent', path: `/srv/${number}`, volumeMode: 'Block' },
    target: { storageClass: 'local' },
    rpoSeconds,
  },
});

t.test(`${count} ReplicationInfo objects`, { skip, timeout: 3_600_000 }, async (t) => {
  const config = join(t.testdir({ 'c.yaml': 'openReplicas: 2\n' }), 'c.yaml');
  const { cluster, world } = await openKubernetesWorld(t, { masterFlags: ['--config', config] });
  const cpuSeconds = (): number => {
    const stat = readFileSync(`/proc/${world.master.pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[11]) + Number(fields[12])) / 100;
  };
  const replications = async (): Promise<Replication[]> =>
    (await world.client.list<Replication>('/replications?limit=10000')).items;
  const rows: string[] = [];
  async function measured(what: string, objects: number, work: () => Promise<void>): Promise<string[]> {
    const [startMs, cpu, sinceMs] = [performance.now(), cpuSeconds(), Date.now()];
    await work();
    const seconds = (performance.now() - startMs) / 1000;
    const asked = cluster.requestsSince(namespace, account, sinceMs);
    const each = (figure: number, digits: number): string => (figure / objects).toFixed(digits);
    rows.push(
      `| ${what} | ${seconds.toFixed(1)} | ${each((cpuSeconds() - cpu) * 1000, 1)} | ${each(asked.length, 2)} | ${((asked.length / seconds) * 60).toFixed(0)} | ${(world.master.rssBytes() / 2 ** 20).toFixed(0)} |`,
    );
    return asked;
  }
  const apply = (numbers: number[], rpoSeconds: number): void => {
    const items = numbers.map((number) => objectOf(number, rpoSeconds));
    const argv = ['apply', '--server-side', '-f', '-'];
    cluster.kubectl(argv, JSON.stringify({ apiVersion: 'v1', kind: 'List', items }));
  };
  const all = Array.from({ length: count }, (_, number) => number);

  const taken = await measured('taken on', count, async () => {
    for (let from = 0; from < count; from += 250) apply(all.slice(from, from + 250), 30);
    await until(async () => (await replications()).length === count, 1_800_000);
  });
  t.ok(taken.length <= count * 6, `${taken.length} requests`);
  // Their replicas are made, and their state is told; figures alone come one a second for all, and are no news.
  const settled = async (): Promise<void> => {
    let sinceMs = Date.now();
    await until(() => {
      const windowMs = Date.now() - sinceMs;
      if (windowMs < 15_000) return false;
      const told = cluster.requestsSince(namespace, account, sinceMs).filter(isStatus).length;
      sinceMs = Date.now();
      return told <= (windowMs / 1000) * 1.5;
    }, 1_800_000);
  };
  await measured('replicas made, states told', count, settled);
  await measured('a change', changed, async () => {
    apply(all.slice(0, changed), 60);
    await until(async () => {
      const now = (await replications()).filter(
        ({ spec, metadata, status }) => spec.rpoSeconds === 60 && status.observedGeneration === metadata.generation,
      );
      return now.length === changed;
    }, 600_000);
  });
  await settled();
  const atRest = await measured('rest', count, () => new Promise((resolve) => setTimeout(resolve, restMs)));
  const others = atRest.filter(
    (one) =>
      !isStatus(one) && !/^(watch |(get|update) coordination|update \/secrets|.*storageclasses\/status)/.test(one),
  );
  t.same(
    others.slice(0, 5),
    [],
    'at rest nothing but leases, watches, figures, the time that has passed, and what is free',
  );
  t.ok(atRest.filter(isStatus).length <= (restMs / 1000) * 1.5, 'figures of all objects: one a second at most');
  t.comment('| what | seconds | CPU ms each | requests each | requests a minute | MiB resident |');
  t.comment('| --- | --- | --- | --- | --- | --- |');
  for (const row of rows) t.comment(row);
});
