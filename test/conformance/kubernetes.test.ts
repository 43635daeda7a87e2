/** What only the store over Kubernetes has to stand: other writers, an API server that goes away, history that is gone, and its Lease. */
import t from 'tap';
import { setTimeout as sleep } from 'node:timers/promises';
import { connectApi, type Api } from '../../master/kubernetes/api.ts';
import { lead } from '../../master/kubernetes/lease.ts';
import { openKubernetesStore, type KubernetesStore } from '../../master/kubernetes/store.ts';
import { draft } from '../../master/api/replications.ts';
import { check } from '../../master/api/check.ts';
import { asProblem, document } from '../../master/api/problem.ts';
import { ReplicationInput } from '../../master/api/schema/replication.ts';
import { StoreRefused, StoreUnavailable } from '../../master/store.ts';
import type { Change } from '../../master/store.ts';
import { systemClock } from '../../proto/system.ts';
import { skipKubernetes, startKubernetes, until } from '../kubernetes.ts';

const long = process.env['REPLICATOR_LONG'] === '1';

t.test('the store over Kubernetes', { skip: skipKubernetes }, async (t) => {
  const cluster = await startKubernetes();
  t.teardown(() => cluster.close());
  await cluster.install();
  const base = '/apis/replicator.cdm.datacommand.co.kr/v1/namespaces/default/replicationinfoes';
  const replication = (name: string) => {
    const source = { agent: 'a', path: '/dev/vdb', volumeMode: 'Block' };
    const input = check(ReplicationInput, { metadata: { name }, spec: { source, target: { storageClass: 'local' } } });
    return draft(input, input.spec);
  };
  const create = (store: KubernetesStore, name: string) => store.create('Replication', name, replication(name));
  let writable = true;
  /** Runs before each of our requests. */
  let overtake = (): void => undefined;
  const open = () =>
    openKubernetesStore({
      cluster: { kubeconfig: cluster.kubeconfig },
      namespace: 'default',
      mayWrite() {
        if (!writable) throw new Error('does not lead');
        overtake();
      },
      onFailure: (error) => t.fail(String(error)),
    });
  const store = await open();
  t.teardown(() => store.close());
  const onServer = async (name: string) =>
    (await cluster.request('GET', `${base}/${name}`)).body as {
      status: Record<string, unknown>;
      spec: { rpoSeconds: number };
      metadata: { labels?: object };
    };
  /** Requests so far, without those of leases, watches and of asking. */
  async function requests(verbs: RegExp): Promise<number> {
    const text = String((await cluster.request('GET', '/metrics')).body['text']);
    const lines = text.split('\n').filter((line) => line.startsWith('apiserver_request_total{'));
    const ours = lines.filter((line) => /replicator.cdm/.test(line) && verbs.test(line));
    return ours.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(' '))), 0);
  }

  await t.test('figures wait, a change of state does not and takes them along', async (t) => {
    create(store, 'figures');
    const before = await requests(/verb="(PUT|PATCH|POST)"/);
    t.ok(before >= 2, 'requests are counted');
    for (let lag = 1; lag <= 50; lag++) store.update('Replication', 'figures', ({ status }) => (status.lagBytes = lag));
    t.equal(store.get('Replication', 'figures')?.status.lagBytes, 50, 'they are read at once');
    t.ok((await requests(/verb="(PUT|PATCH|POST)"/)) - before <= 1, 'fifty changes are one write at most');
    store.update('Replication', 'figures', ({ status }) => (status.state = 'NORMAL'));
    t.match((await onServer('figures')).status, { state: 'NORMAL', lagBytes: 50 });
    store.update('Replication', 'figures', ({ status }) => (status.lagBytes = 51));
    await store.flush();
    t.match((await onServer('figures')).status, { lagBytes: 51 });
    const other = await open();
    t.same(other.get('Replication', 'figures'), store.get('Replication', 'figures'), 'another master reads the same');
    other.close();
  });

  await t.test('what the API server refuses is told with the field, as 422, and nothing is written', async (t) => {
    const wrong = replication('refused');
    const schedule = { period: 'hour' as const, every: 1, retain: 1, startTime: null, timeZone: 'UTC' };
    wrong.spec.snapshotSchedules = [schedule, schedule];
    const refusal = (work: () => unknown) => {
      try {
        work();
      } catch (error) {
        t.ok(error instanceof StoreRefused, String(error));
        return document(asProblem(error), 'id');
      }
      return t.fail('it was taken');
    };
    const made = refusal(() => store.create('Replication', 'refused', wrong));
    t.match(made, { status: 422, code: 'Invalid', errors: [{ path: 'spec', message: /one schedule of each period/ }] });
    t.equal(store.get('Replication', 'refused'), undefined);
    create(store, 'refused');
    const change = () => store.update('Replication', 'refused', ({ spec }) => (spec.target.storageClass = 'other'));
    t.match(refusal(change), { status: 422, errors: [{ message: /cannot be changed/ }] });
    t.equal(store.get('Replication', 'refused')?.spec.target.storageClass, 'local');
    store.delete('Replication', 'refused');
  });

  await t.test('at rest nothing is asked for', async (t) => {
    const count = long ? 2000 : 50;
    const startMs = performance.now();
    for (let index = 0; index < count; index++) create(store, `rest-${index}`);
    const each = (performance.now() - startMs) / count;
    await until(() => store.list('Replication').length === count + 1);
    const before = await requests(/verb="(GET|LIST|PUT|PATCH|POST|DELETE)"/);
    await sleep(long ? 60_000 : 5000);
    t.equal((await requests(/verb="(GET|LIST|PUT|PATCH|POST|DELETE)"/)) - before, 0);
    t.comment(`${count} objects, ${each.toFixed(1)} ms to make one (two writes)`);
    for (let index = 0; index < count; index++) store.delete('Replication', `rest-${index}`);
  });

  await t.test('who writes at the same time loses nothing, and nothing of theirs is lost', async (t) => {
    create(store, 'shared');
    const rounds = 20;
    let theirs = 0;
    const people = (async () => {
      for (; theirs < rounds; theirs++) {
        const labels = { [`label-${theirs}`]: 'x' };
        const { status } = await cluster.request('PATCH', `${base}/shared`, { metadata: { labels } });
        t.equal(status, 200);
      }
    })();
    for (let ours = 1; ours <= rounds || theirs < rounds; ours++) {
      store.update('Replication', 'shared', (object) => {
        object.spec.rpoSeconds = 100 + ours;
        object.status.fencingGeneration = String(ours);
      });
      await new Promise(setImmediate);
    }
    await people;
    const end = await onServer('shared');
    t.equal(Object.keys(end.metadata.labels ?? {}).length, rounds, 'their labels are all there');
    const object = store.get('Replication', 'shared');
    t.equal(end.spec.rpoSeconds, object?.spec.rpoSeconds);
    t.equal(end.status['fencingGeneration'], object?.status.fencingGeneration);
    t.equal(Number(object?.status.fencingGeneration) + 100, object?.spec.rpoSeconds);
  });

  await t.test('who is overtaken each time is told to come again; it is no fault of the master', async (t) => {
    let times = 0;
    overtake = () => void cluster.kubectl(['annotate', '--overwrite', 'replicationinfoes/shared', `round=${times++}`]);
    const attempts = {
      spec: () => store.update('Replication', 'shared', ({ spec }) => (spec.rpoSeconds = 13)),
      status: () => store.update('Replication', 'shared', ({ status }) => (status.phase = 'Paused')),
    };
    for (const [what, attempt] of Object.entries(attempts)) {
      const before = times;
      try {
        attempt();
        t.fail(`${what} was written`);
      } catch (error) {
        t.equal(asProblem(error).code, 'Unavailable', `${what}: ${String(error)}`);
      }
      t.ok(times - before > 10, `${what}: overtaken ${times - before} times`);
    }
    overtake = () => undefined;
    attempts.spec();
    t.equal((await onServer('shared')).spec.rpoSeconds, 13);
  });

  await t.test('who does not lead writes nothing', async (t) => {
    writable = false;
    t.throws(() => store.update('Replication', 'shared', ({ spec }) => (spec.rpoSeconds = 7)), /does not lead/);
    t.throws(() => store.delete('Replication', 'shared'), /does not lead/);
    t.throws(() => store.putRecord('x', 'y', 'z'), /does not lead/);
    writable = true;
    t.not((await onServer('shared')).spec.rpoSeconds, 7);
  });

  await t.test(
    'an API server that is away costs its time once; what changed meanwhile is seen, over a 410 too',
    async (t) => {
      const stop = new AbortController();
      const changes: Change[] = [];
      const watching = (async () => {
        for await (const change of store.watch({ kinds: ['Replication'], signal: stop.signal })) changes.push(change);
      })();
      create(store, 'goes');
      await cluster.kill();
      const write = () => store.update('Replication', 'shared', ({ spec }) => (spec.rpoSeconds = 11));
      t.throws(write, StoreUnavailable);
      const startMs = performance.now();
      t.throws(write, StoreUnavailable);
      t.ok(performance.now() - startMs < 1000, 'the second one fails at once');
      t.ok(store.get('Replication', 'shared'), 'reads go on');
      await cluster.start();
      await cluster.request('PATCH', `${base}/goes`, { metadata: { finalizers: null } });
      await cluster.request('DELETE', `${base}/goes`);
      await cluster.request('PATCH', `${base}/shared`, { spec: { rpoSeconds: 12 } });
      await cluster.compact();
      await until(() => store.get('Replication', 'shared')?.spec.rpoSeconds === 12);
      await until(() => store.get('Replication', 'goes') === undefined);
      await until(() => {
        write();
        return true;
      });
      t.equal((await onServer('shared')).spec.rpoSeconds, 11);
      await until(() => changes.some(({ object }) => object.kind === 'Replication' && object.spec.rpoSeconds === 11));
      const told = changes.filter(({ key }) => key === 'goes').map(({ type }) => type);
      t.match([told[0], told.at(-1)], ['ADDED', 'DELETED'], 'the watch tells of it');
      stop.abort();
      await watching;
    },
  );

  await t.test('one leads; the next one does when it lets go, or was silent for the time of the lease', async (t) => {
    const api = connectApi({ kubeconfig: cluster.kubeconfig });
    let hangs = false;
    const frozen: Api = {
      ...api,
      request: (method, path, body, signal) =>
        hangs
          ? new Promise((_resolve, reject) => signal?.addEventListener('abort', () => reject(new Error('no answer'))))
          : api.request(method, path, body, signal),
    };
    const waits: string[] = [];
    const stop = new AbortController();
    const run = (identity: string, line: Api) =>
      lead(
        {
          api: line,
          clock: systemClock,
          namespace: 'default',
          name: 'test',
          identity,
          onWait: (text) => waits.push(text),
        },
        stop.signal,
      );
    const first = await run('one', frozen);
    t.equal(first.transitions, 0);
    const second = run('two', api);
    await until(() => waits.some((text) => /one leads/.test(text)));
    hangs = true;
    const startMs = performance.now();
    t.match(await first.lost, /could not be renewed/);
    t.throws(() => first.mayWrite(), /does not lead any more/, 'the first one stops before');
    const lostMs = performance.now() - startMs;
    const next = await second;
    t.ok(lostMs < performance.now() - startMs, 'the second one leads after that');
    t.equal(next.transitions, 1);
    next.mayWrite();
    await next.release();
    const againMs = performance.now();
    const third = await run('three', api);
    t.ok(performance.now() - againMs < 10_000, 'what was let go is not waited for');
    await third.release();
    stop.abort();
  });
});
