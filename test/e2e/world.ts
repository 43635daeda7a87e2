/**
 * A master and an agent as real processes in a temporary directory, and what tests ask of them over the REST API.
 *
 * Everything waits for conditions; one that is not reached says what was waited for, where the replications stand and how the
 * logs end. Teardown kills both and removes the directory.
 */
import { spawnSync } from 'node:child_process';
import { chownSync, existsSync, mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { getCACertificates, setDefaultCACertificates } from 'node:tls';
import type { Test } from 'tap';
import { removeInstance } from '../../agent/capture/tracefs.ts';
import { traceInstance } from '../../agent/trackings.ts';
import { ApiProblem, connect, Unreachable, type Client } from '../../master/cli/client.ts';
import type {
  PointChoice,
  PointView,
  Recovery,
  Replication,
  ReplicationSpec,
  Snapshot,
} from '../../master/resources.ts';
import { program, type Program, type ProgramName } from './program.ts';
import { startProxy, type Proxy } from './proxy.ts';

/** The long forms of the suites: `npm run e2e`. */
export const long = process.env['REPLICATOR_LONG'] === '1';
export const agentName = 'node-a';

export interface World {
  dir: string;
  /** Sources live here unless the test says otherwise; the agent may read it. */
  sources: string;
  masterDir: string;
  /** More of its command line; from its next start on. */
  masterFlags: string[];
  agentFlags: string[];
  master: Program;
  agent: Program;
  client: Client;
  proxy: Proxy | undefined;
  startMaster(): Promise<void>;
  startAgent(): Promise<void>;
  /** The first answer that is neither undefined nor false; a master that is away is waited for. */
  until<T>(what: string, probe: () => Promise<T | undefined | false>, seconds?: number): Promise<T>;
  replicate(name: string, path: string, spec?: SpecChange): Promise<Replication>;
  get(name: string): Promise<Replication>;
  points(name: string): Promise<PointView[]>;
  /** Waits for NORMAL with a point whose source time is not before `sinceMs`. */
  normal(name: string, sinceMs?: number, seconds?: number): Promise<Replication>;
  /** Waits until a Degraded condition has this reason. */
  degraded(name: string, reason: string, seconds?: number): Promise<Replication>;
  /** Runs a drill to its end, whatever that is. */
  drill(name: string, point?: PointChoice, path?: string, seconds?: number): Promise<Recovery>;
  /** Runs a drill, demands success, answers the path of the copy. */
  copyOf(name: string, point?: PointChoice): Promise<{ path: string; recovery: Recovery }>;
  snapshot(replication: string, name: string): Promise<Snapshot>;
  events(): Promise<{ code: string; level: string; message: string; object: string | null }[]>;
  metric(name: string, labels?: string): Promise<number>;
}

export type SpecChange = Partial<Omit<ReplicationSpec, 'source' | 'target'>> & {
  volumeMode?: 'Block' | 'Filesystem';
  storageClass?: string;
};

export interface WorldOptions {
  /** More paths that the agent may read. */
  allow?: string[];
  masterFlags?: string[];
  /** Where the master listens for agents, and where its API does; free ports of the loopback unless given. */
  grpc?: string;
  http?: string;
  /** The master runs as this user; we are root then. */
  masterUser?: number;
  agentFlags?: string[];
  /** The agent reaches the master through a proxy that the test may cut. */
  proxied?: boolean;
  /** The agent dials the port that this answers; the caller closes what is there. */
  far?: (port: number) => Promise<number>;
  /** Put before a program's command at each start: a tracer, which may kill it before it is ready. */
  tracer?: (name: ProgramName, dir: string) => string[];
}

export async function openWorld(t: Pick<Test, 'teardown'>, options: WorldOptions = {}): Promise<World> {
  const dir = realpathSync(mkdtempSync(join(tmpdir(), 'replicator-e2e-')));
  const masterDir = join(dir, 'm');
  const sources = join(dir, 'sources');
  const agentFlags = [...(options.agentFlags ?? [])];
  const masterFlags = [...(options.masterFlags ?? [])];
  mkdirSync(sources);
  let listen = { http: options.http ?? '127.0.0.1:0', grpc: options.grpc ?? '127.0.0.1:0' };
  let url = '';
  let dialed = '';
  const master = program(
    'replicator-master',
    () => [
      ...['--data', masterDir, '--http', listen.http, '--grpc', listen.grpc, '--allow', join(dir, 'copies')],
      ...masterFlags,
    ],
    join(dir, 'master.log'),
    options.masterUser,
    () => options.tracer?.('replicator-master', dir) ?? [],
  );
  if (options.masterUser !== undefined) chownSync(dir, options.masterUser, options.masterUser);
  const agent = program(
    'replicator-agent',
    () => [
      ...['--name', agentName, '--master', dialed, '--data', join(dir, 'a')],
      ...['--join-token-file', join(masterDir, 'join.token'), '--ca-file', join(masterDir, 'ca.pem')],
      ...[sources, ...(options.allow ?? [])].flatMap((path) => ['--allow', path]),
      ...agentFlags,
    ],
    join(dir, 'agent.log'),
    undefined,
    () => options.tracer?.('replicator-agent', dir) ?? [],
  );
  let proxy: Proxy | undefined;
  t.teardown(async () => {
    await Promise.all([agent.kill(), master.kill()]);
    await proxy?.close();
    removeInstance(traceInstance(join(dir, 'a')));
    // Locked snapshots are immutable for everybody.
    spawnSync('chattr', ['-R', '-i', dir]);
    rmSync(dir, { recursive: true, force: true });
  });

  async function startMaster(): Promise<void> {
    const path = join(masterDir, 'endpoints.json');
    rmSync(path, { force: true });
    master.start();
    const endMs = performance.now() + 240_000;
    while (!existsSync(path)) {
      if (!master.running && options.tracer) master.start();
      if (!master.running || performance.now() > endMs)
        throw new Error(`the master did not get ready:\n${master.logEnd()}`);
      await sleep(20);
    }
    const { http, grpc } = JSON.parse(readFileSync(path, 'utf8')) as { http: string; grpc: string };
    url = http;
    dialed ||= grpc;
    // The next start takes the same ports.
    const again = (asked: string, got: string): string => asked.replace(/\d+$/, /\d+$/.exec(got)?.[0] ?? '');
    listen = { http: again(listen.http, http), grpc: again(listen.grpc, grpc) };
  }

  await startMaster();
  if (options.proxied === true) proxy = await startProxy(dialed);
  dialed = proxy?.address ?? dialed;
  if (options.far) dialed = `127.0.0.1:${await options.far(Number(/\d+$/.exec(dialed)?.[0]))}`;
  const token = readFileSync(join(masterDir, 'admin.token'), 'utf8').trim();
  if (url.startsWith('https:'))
    setDefaultCACertificates([...getCACertificates('default'), readFileSync(join(masterDir, 'ca.pem'), 'utf8')]);
  const client = connect(url, token);

  async function state(): Promise<string> {
    const statuses = await client
      .list<Replication>('/replications')
      .then(
        ({ items }) => items.map(({ metadata, status }) => `${metadata.name}: ${JSON.stringify(status)}`).join('\n'),
        String,
      );
    const logs = [master, agent].map((one) => `${one.running ? '' : 'not running\n'}${one.logEnd()}`);
    return `${statuses}\n-- master: ${logs[0]}\n-- agent: ${logs[1]}`;
  }

  async function until<T>(what: string, probe: () => Promise<T | undefined | false>, seconds = 120): Promise<T> {
    const endMs = performance.now() + seconds * 1000;
    for (;;) {
      try {
        const answer = await probe();
        if (answer !== undefined && answer !== false) return answer;
      } catch (error) {
        if (!isAway(error)) throw error;
      }
      if (performance.now() > endMs) throw new Error(`not reached in ${seconds} s: ${what}\n${await state()}`);
      await sleep(40);
    }
  }

  const get = (name: string) => client.get<Replication>(`/replications/${name}`);

  async function startAgent(): Promise<void> {
    agent.start();
    let said = 'not there';
    await until('the agent is active', async () => {
      if (!agent.running) throw new Error(`the agent ended:\n${agent.logEnd()}`);
      const { items } = await client.list<{ status: { state: string; message: string } }>('/agents');
      said = items.map(({ status }) => `${status.state} ${status.message}`).join();
      return items.some(({ status }) => status.state === 'ACTIVE');
    }).catch((error: unknown) => {
      throw new Error(`it is ${said}`, { cause: error });
    });
  }

  async function drill(
    name: string,
    point: PointChoice = 'latest-data',
    path?: string,
    seconds = long ? 1200 : 300,
  ): Promise<Recovery> {
    const made = await client.send<Recovery>('POST', '/recoveries', {
      replication: name,
      type: 'drill',
      point,
      ...(path === undefined ? {} : { target: { path } }),
    });
    return until(
      `the drill of ${name} ends`,
      async () => {
        const recovery = await client.get<Recovery>(`/recoveries/${made.metadata.name}`);
        return recovery.status.outcome !== null && recovery;
      },
      seconds,
    );
  }

  return {
    dir,
    sources,
    masterDir,
    masterFlags,
    agentFlags,
    master,
    agent,
    client,
    get proxy() {
      return proxy;
    },
    startMaster,
    startAgent,
    until,
    get,
    replicate(name, path, { volumeMode = 'Block', storageClass = 'local', ...spec } = {}) {
      return client.send<Replication>('POST', '/replications', {
        metadata: { name },
        spec: { source: { agent: agentName, path, volumeMode }, target: { storageClass }, rpoSeconds: 2, ...spec },
      });
    },
    async points(name) {
      return (await client.list<PointView>(`/replications/${name}/points`)).items;
    },
    normal: (name, sinceMs = 0, seconds = 240) =>
      until(
        `${name} is NORMAL with a point since ${new Date(sinceMs).toISOString()}`,
        async () => {
          const replication = await get(name);
          const { state, lastSyncTime } = replication.status;
          return state === 'NORMAL' && Date.parse(lastSyncTime ?? '') >= sinceMs && replication;
        },
        seconds,
      ),
    degraded: (name, reason, seconds = 120) =>
      until(
        `${name} is degraded by ${reason}`,
        async () => {
          const replication = await get(name);
          const found = replication.status.conditions.find(({ type }) => type === 'Degraded');
          return found?.status === 'True' && found.reason === reason && replication;
        },
        seconds,
      ),
    drill,
    async copyOf(name, point) {
      const recovery = await drill(name, point);
      const { outcome, verified, message, tasks } = recovery.status;
      const path = tasks[0]?.path;
      if (outcome !== 'success' || verified !== true || typeof path !== 'string')
        throw new Error(`the drill of ${name} (${JSON.stringify(point)}) ended ${outcome}: ${message}`);
      return { path, recovery };
    },
    async snapshot(replication, name) {
      const collection = `/replications/${replication}/snapshots`;
      await client.send<Snapshot>('POST', collection, { name });
      return until(`snapshot ${name} is made`, async () => {
        const snapshot = await client.get<Snapshot>(`${collection}/${name}`);
        return snapshot.status.state !== 'Creating' && snapshot;
      });
    },
    async events() {
      const { items } = await client.list<Awaited<ReturnType<World['events']>>[number]>('/events');
      return items;
    },
    async metric(name, labels = '') {
      const response = await fetch(`${client.url}/metrics`, { headers: { authorization: `Bearer ${token}` } });
      const text = await response.text();
      const values = text
        .split('\n')
        .filter((line) => line.startsWith(`replicator_${name}{`) && line.includes(labels))
        .map((line) => Number(line.slice(line.lastIndexOf(' '))));
      return values.reduce((sum, value) => sum + value, 0);
    },
  };
}

function isAway(error: unknown): boolean {
  return error instanceof Unreachable || (error instanceof ApiProblem && error.problem.status === 503);
}

/** kill -9, and started again at once. */
export async function killed(world: World, who: 'agent' | 'master' | 'both'): Promise<void> {
  if (who !== 'agent') await world.master.kill();
  if (who !== 'master') await world.agent.kill();
  if (who !== 'agent') await world.startMaster();
  if (who !== 'master') world.agent.start();
}

/** Both sides are read whole, and compared, after this was called. */
export async function verified(world: World, name: string): Promise<void> {
  const before = (await world.get(name)).status.lastVerifiedTime;
  await world.client.send('POST', `/replications/${name}/actions/verify`, {});
  await world.until(
    `${name} is verified`,
    async () => {
      const { lastVerifiedTime } = (await world.get(name)).status;
      return lastVerifiedTime !== before && lastVerifiedTime !== null;
    },
    300,
  );
}
