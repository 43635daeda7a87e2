/**
 * replicator-master: receives, keeps and recovers, and serves the control API.
 *
 * Wires store, authority, gRPC, controllers and HTTP, in the order in which they need each other, and unwires them in the
 * reverse one. Exit status 0 after SIGTERM or SIGINT, 1 when it cannot start (the reason is on standard error), 2 for a
 * wrong command line or configuration.
 */
import { randomUUID } from 'node:crypto';
import { mkdir, readFile, realpath } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { type Allow, allowList } from '../proto/allow.ts';
import { printUsageError, programVersion, UsageError } from '../proto/cli.ts';
import { writeDurably } from '../proto/durable.ts';
import { asReplicationError, messageOf, ReplicationError } from '../proto/errors.ts';
import { holdData } from '../proto/hold.ts';
import { keepLines, openLog } from '../proto/log.ts';
import { systemClock, systemEffects, systemRandom } from '../proto/system.ts';
import { formatHostPort, isLoopback, nearHost, parseHostPort } from '../proto/value.ts';
import { startApi } from './api/server.ts';
import { openAuthority } from './authority.ts';
import { bootstraps } from './bootstrap/bootstraps.ts';
import { mustSuit, readCommandLine } from './commandline.ts';
import { Configuration, readConfiguration, type Configured } from './configuration.ts';
import { reloads } from './reload.ts';
import { control } from './control.ts';
import { openDatabase } from './database.ts';
import type { Engine } from './engine.ts';
import { eventLog } from './events.ts';
import { runForks } from './forks.ts';
import { cleanUp, listGarbage } from './garbage.ts';
import { serveHealth, type Health } from './health.ts';
import { StoreUnavailable } from './store.ts';
import type { MembershipOptions } from './kubernetes/membership.ts';
import { startMetrics, type Metrics } from './metrics.ts';
import { mirrors } from './mirrors.ts';
import { keepFiles, restoreFiles } from './keptfiles.ts';
import { restores } from './restores.ts';
import { classProblems, problemsOf, targetProblems, claimProblems } from './problems.ts';
import { runAutomatic } from './recovery/automatic.ts';
import { runRecoveries } from './recovery/loop.ts';
import { runProofs } from './recovery/proof.ts';
import { runRecoverySchedules } from './recovery/schedules.ts';
import { volumeEffects } from './recovery/volume.ts';
import { openWitnesses } from './recovery/witness.ts';
import { ageHistory } from './history.ts';
import { apiVersion, type ReplicationSpec, type StorageClass } from './resources.ts';
import { runSchedules } from './schedules.ts';
import { startServer } from './server.ts';
import { runSnapshots } from './snapshots.ts';
import { sqliteStore } from './store-sqlite.ts';
import type { Store } from './store.ts';
import { runSpace } from './space.ts';
import { isCopied, keepStateCopy, restoreStateCopy } from './statecopy.ts';
import { folderOwner, takeOver } from './takeover.ts';
import { openTokens } from './tokens.ts';
import { openSinks } from './sinks.ts';
import { openUsers } from './users.ts';
import { trustedClock } from './trustedclock.ts';

if (process.argv.includes('--config-schema')) {
  process.stdout.write(`${JSON.stringify(Configuration, null, 2)}\n`);
  process.exit(0);
}
const typed = readCommandLine(process.argv.slice(2));

type Source = ReplicationSpec['source'];
const levelOf = ({ logLevel }: Configured) => typed['log-level'] ?? logLevel ?? 'info';
/** For support bundles. */
const keptLog = keepLines(4 << 20);
const log = openLog('replicator-master', levelOf({}), undefined, undefined, keptLog);
const logLevelOf = { FATAL: 'fatal', ERROR: 'error', WARNING: 'warn', INFO: 'info', TRACE: 'debug' } as const;
/** SIGHUP never ends us, whenever it comes. */
let hungUp = (): void => undefined;
process.on('SIGHUP', () => hungUp());
const stopping = new AbortController();
for (const name of ['SIGTERM', 'SIGINT'] as const) {
  process.once(name, () => {
    log.info({ signal: name }, 'stopping');
    stopping.abort(asReplicationError(new Error(`stopped by ${name}`), 'Stopped'));
  });
}

try {
  await run(stopping.signal);
  log.info('stopped');
} catch (error) {
  if (error instanceof UsageError) {
    printUsageError('replicator-master', error);
    process.exitCode = 2;
  } else if (!stopping.signal.aborted) {
    log.fatal(asReplicationError(error).message);
    process.stderr.write(`replicator-master: ${messageOf(error)}\n`);
    // Not by itself: what was already started (a listener, a database) would keep the process, deaf, for ever.
    process.exit(1);
  }
}

async function run(signal: AbortSignal): Promise<void> {
  const read = async (): Promise<Configured> => (typed.config === undefined ? {} : readConfiguration(typed.config));
  const configured = await read();
  log.level = levelOf(configured);
  const listen = {
    http: typed.http ?? parseHostPort(configured.http ?? '127.0.0.1:8080'),
    grpc: typed.grpc ?? parseHostPort(configured.grpc ?? '127.0.0.1:8443'),
  };
  if (typed['check-config']) {
    process.stdout.write(`${typed.config ?? 'the command line'} is right\n`);
    return;
  }
  const stateCopy = typed['state-copy'] ?? configured.stateCopy;
  mustSuit(typed, stateCopy);
  await mkdir(typed.data, { recursive: true, mode: 0o700 });
  const dir = await realpath(typed.data);
  const health = await serveHealth(typed.health);
  // Its client library takes 80 MiB, which a master without a cluster need not have.
  const membership = typed.kubernetes === undefined ? undefined : await import('./kubernetes/membership.ts');
  const cluster =
    typed.kubernetes === undefined
      ? undefined
      : await membership?.joinCluster(memberOf(typed.kubernetes, health), signal);
  holdData(dir);
  if (typed['take-over'] !== undefined) await restoreStateCopy(typed['take-over'], dir);
  const recoveries = join(dir, 'recoveries');
  await mkdir(recoveries, { recursive: true, mode: 0o700 });
  const allowed = (now: Configured): Allow =>
    allowList({ allow: [...(now.allow ?? []), ...typed.allow], own: [dir], recoveries: [recoveries] });
  let rules = allowed(configured);
  const allow: Pick<Allow, 'mayWriteRecovery' | 'mayRun'> = {
    mayWriteRecovery: (path) => rules.mayWriteRecovery(path),
    mayRun: (path) => rules.mayRun(path),
  };

  const database = openDatabase(join(dir, 'master.db'));
  const store = cluster?.store ?? sqliteStore(database, { clock: systemClock, random: systemRandom });
  if (cluster || isCopied(store)) await restoreFiles(store, dir);
  const events = eventLog(database, systemClock, undefined, ({ code, level, message, object }) => {
    log[logLevelOf[level]]({ code, object }, message);
    cluster?.onEvent({ code, level, message, object });
  });
  const version = programVersion();
  const metrics = startMetrics({
    store,
    clock: systemClock,
    version,
    certificates: () => ({
      ca: authority.caPem,
      grpc: authority.server().certificatePem,
      ...(tls && { http: tls.cert }),
    }),
  });
  const authority = await openAuthority({
    dir,
    store,
    clock: systemClock,
    hosts: [
      ...(configured.advertise ?? []),
      ...typed.advertise,
      ...named(listen.grpc.host),
      ...named(listen.http.host),
    ],
  });
  await authority.refresh();
  await authority.publishToken();
  const tokens = await openTokens({
    store,
    clock: systemClock,
    random: systemRandom,
    adminFile: join(dir, 'admin.token'),
  });
  const sinks = openSinks({ store, events, clock: systemClock });
  const users = openUsers({
    store,
    clock: systemClock,
    random: systemRandom,
    onLocked: (name) =>
      events.emit({ code: 'UserLocked', level: 'WARNING', message: 'five wrong passwords', object: `User/${name}` }),
  });
  provideLocalClass(store, join(dir, 'volumes'));
  if (cluster) await keepFiles(store, dir);
  takeOver({ store, clock: systemClock, random: systemRandom, events, paths: new Map(typed['class-path']) });

  const trusted = trustedClock(systemClock, store, (aheadMs) => {
    const message =
      `the machine's clock is ${Math.round(aheadMs / 1000)} s ahead of the time that has passed; ` +
      'journals and locks follow after a day of it. Set the clock right if it is wrong';
    events.emit({ code: 'ClockJumped', level: 'WARNING', message, object: null });
  });
  const sourceBytes = async ({ agent, path }: Source): Promise<number | undefined> => {
    const known = agents.volumes(agent).find((volume) => volume.path === path);
    const volume = known ?? (await agents.look(agent, path));
    // Of a folder that is no whole filesystem nobody knows it.
    return volume && (volume.sizeBytes ?? 0);
  };
  const running = mirrors({
    store,
    effects: systemEffects,
    trusted,
    events,
    metrics,
    ...(cluster ? {} : { own: folderOwner({ store, random: systemRandom }) }),
    notify: (agent) => agents.notify(agent),
    connected: (agent) => agents.connected(agent),
    claimTrouble: (uid) => claims?.trouble(uid),
    ...(configured.openReplicas === undefined ? {} : { openReplicas: configured.openReplicas }),
    sourceBytes,
    ...(cluster && {
      clusterStorage: (found: StorageClass) => cluster.storage({ authority, trusted, ...configured.receivers }, found),
    }),
  });
  const recovered = cluster?.recovered({ authority, ...configured.receivers });
  const writing = restores(() => agents.notify());
  const connected = (agent: string): boolean => agents.connected(agent);
  const forks = join(dir, 'forks');
  const agents = control({
    store,
    clock: systemClock,
    events,
    masterVersion: version,
    assignmentsFor: (agent) => running.assignmentsFor(agent),
    knownFor: (agent) => store.replicationsOf(agent).map(({ metadata }) => metadata.uid),
    restoresFor: (agent) => writing.restoresFor(agent),
    onReport: (agent, report) => running.onReport(agent, report),
  });
  const claims = cluster?.claims({
    kubelet: (agent) => agents.kubelet(agent),
    report: (event) => events.emit(event),
  });
  const snapshots =
    claims &&
    cluster?.snapshots({
      claims,
      kubelet: (agent) => agents.kubelet(agent),
      ...(configured.receivers?.image === undefined ? {} : { image: configured.receivers.image }),
    });
  const server = await startServer({
    store,
    authority,
    clock: systemClock,
    events,
    listen: formatHostPort(listen.grpc),
    onCall({ method, agent, id, address }) {
      log.info({ agent, call: id, method, address }, 'a call begins');
      return (code) => log.info({ agent, call: id, method, code }, 'the call has ended');
    },
    mirror: counted(metrics, 'Mirror', (agent, stream, call) => running.serve(agent, stream, call)),
    restore: counted(metrics, 'Restore', (agent, stream, call) => writing.serve(agent, stream, call)),
    snapshots: counted(metrics, 'Snapshots', async (agent, call, ending) => {
      if (!snapshots) throw new ReplicationError('NotAssigned', 'this master lives in no cluster');
      await snapshots.serve(agent, call, ending);
    }),
    control: counted(metrics, 'Control', (agent, stream, call) => agents.serve(agent, stream, call)),
  });
  const advertised = [...(configured.advertise ?? []), ...typed.advertise][0];
  const installing = bootstraps({
    store,
    clock: systemClock,
    events,
    newJoinToken: async () => authority.createToken(),
    disconnect: (name) => server.disconnect(name, 'the bootstrap of this node was undone'),
    caPem: authority.caPem,
    packages: join(dir, 'packages'),
    version,
    dialed: advertised === undefined ? undefined : formatHostPort({ host: advertised, port: server.port }),
    agentSocket: process.env['SSH_AUTH_SOCK'],
    onStep: (agent, { step, state, message }) => log.info({ agent, step, state }, message),
  });
  const history = ageHistory(store, systemClock);
  const engine: Engine = {
    history: (uid) => history.of(uid),
    bootstrap: (agent, request) => installing.start(agent, request),
    points: (uid, from, to) => running.points(uid, from, to),
    groupPoints: (group) => running.groupPoints(group),
    volumes: (agent) => agents.volumes(agent),
    look: (agent, path, write) => agents.look(agent, path, write),
    agentLog: (agent) => agents.log(agent),
    log: () => keptLog.text(),
    ...(claims ? { claim: (pvc) => claims.claim(pvc) } : {}),
    validateReplication: (spec) => problemsOf(spec, agents.volumes(spec.source.agent)),
    validateStorageClass: (spec) => classProblems(spec, dir, cluster !== undefined),
    validateRecovery: (path, mode) => targetProblems(allow, path, mode),
    ...(recovered && { validateRecoveredClaim: (spec, found) => claimProblems(recovered, store, spec, found) }),
    async lockSnapshot(uid, snapshot, untilMs) {
      const replica = running.replica(uid);
      if (!replica) throw new ReplicationError('TargetFailed', 'the replica is not open; lock it again when it is');
      // One that is being made gets its lock with its name.
      if (replica.snapshotNames.includes(snapshot)) await replica.lockSnapshot(snapshot, untilMs);
    },
    garbage: {
      list: () => listGarbage({ store, mirrors: running, folder: recoveries }),
      cleanUp: (mode) => cleanUp({ store, mirrors: running, folder: recoveries }, mode),
    },
    revokeAgent(name) {
      installing.stop(name, 'the agent was revoked');
      server.disconnect(name, 'the agent was revoked');
    },
  };
  const tlsOf = (now: Configured) => {
    const { certificatePem, keyPem } = authority.server();
    return now.tls ?? (isLoopback(listen.http.host) ? undefined : { cert: certificatePem, key: keyPem });
  };
  /** Of API and page; undefined: plain HTTP. */
  let tls = tlsOf(configured);
  const context = {
    store,
    engine,
    events,
    tokens,
    users,
    sinks,
    clock: systemClock,
    trusted,
    newJoinToken: (lifeMs?: number, nodes?: number) => authority.createToken(lifeMs, nodes),
    caPem: authority.caPem,
  };
  const api = await startApi({
    ...context,
    listen: { ...listen.http, ...(tls ? { tls } : {}) },
    metrics,
    version,
    ready: () => !signal.aborted,
    logger: log,
    ...(configured.requestsPerSecond === undefined ? {} : { requestsPerSecond: configured.requestsPerSecond }),
  });

  const inCluster =
    cluster && claims && recovered && snapshots
      ? cluster.run(
          {
            recovered,
            snapshots,
            replica: (uid) => running.replica(uid),
            context,
            claims,
            api,
            adminToken: (await readFile(join(dir, 'admin.token'), 'utf8')).trim(),
            report: (event) => events.emit(event),
          },
          signal,
        )
      : Promise.resolve();
  const reload = reloads({
    clock: systemClock,
    events,
    before: configured,
    read,
    apply(next) {
      rules = allowed(next);
      log.level = levelOf(next);
      api.setRequestsPerSecond(next.requestsPerSecond);
      tls = tlsOf(next) ?? tls;
      if (tls) api.setTls(tls);
    },
  });
  hungUp = () => void reload.now(true);

  const work = [
    reload.run(signal),
    sinks.run(signal),
    running.run(signal),
    history.run(signal),
    runSnapshots({ store, clock: systemClock, mirrors: running, events, metrics }, signal),
    runRecoveries(
      {
        store,
        clock: systemClock,
        events,
        metrics,
        effects: volumeEffects({
          store,
          clock: systemClock,
          mirrors: running,
          events,
          allow,
          folder: recoveries,
          forks,
          claims: recovered,
          restores: writing,
          look: (agent, path, write) => agents.look(agent, path, write),
        }),
      },
      signal,
    ),
    steadily(() => runRecoverySchedules({ store, clock: systemClock, engine, events }, signal), signal),
    steadily(
      () =>
        runAutomatic(
          {
            ...{ store, clock: systemClock, engine, events, mirrors: running, connected },
            heardMs: (agent) => agents.heardMs(agent),
            closedByPeer: (agent) => server.lineOf(agent)?.closedByPeer,
            witnesses: openWitnesses({
              ...{ store, clock: systemClock, connected },
              addressOf: (agent) => server.lineOf(agent)?.address,
              probe: (by, address, port) => agents.probe(by, address, port),
              ...(claims ? { nodeReady: (pvc, node) => claims.nodeReady(pvc, node) } : {}),
            }),
          },
          signal,
        ),
      signal,
    ),
    steadily(() => runSchedules({ store, clock: systemClock, trusted, mirrors: running, events }, signal), signal),
    steadily(() => runSpace({ store, clock: systemClock, mirrors: running, events, sourceBytes }, signal), signal),
    steadily(
      () => runForks({ store, clock: systemClock, events, restores: writing, connected, folder: forks }, signal),
      signal,
    ),
    steadily(() => runProofs({ store, clock: systemClock, events, metrics, mirrors: running }, signal), signal),
    agents.settle(signal),
    stateCopy === undefined
      ? Promise.resolve()
      : keepStateCopy({ database, dir, path: stateCopy, clock: systemClock, events }, signal),
    inCluster,
  ];
  await writeDurably(
    join(dir, 'endpoints.json'),
    `${JSON.stringify({ http: api.url, grpc: formatHostPort({ host: nearHost(listen.grpc.host), port: server.port }) })}\n`,
    0o600,
  );
  events.emit({ code: 'MasterStarted', level: 'INFO', message: `version ${version}`, object: null });
  log.info({ http: api.url, grpc: server.port, data: dir }, 'ready');
  health.ready = true;

  await new Promise<void>((resolve) => {
    if (signal.aborted) return resolve();
    signal.addEventListener('abort', () => resolve(), { once: true });
  });
  await api.close();
  await installing.close();
  await server.close();
  for (const result of await Promise.allSettled(work)) {
    if (result.status === 'rejected') log.warn(messageOf(result.reason));
  }
  events.emit({ code: 'MasterStopped', level: 'INFO', message: 'stopped in order', object: null });
  events.close();
  await cluster?.leave();
  // And the database with it.
  if (cluster) database.close();
  else store.close();
  health.close();
}

/** A loop that looks at what is there begins anew when the store does not take a write: the API server may be away. */
async function steadily(loop: () => Promise<void>, signal: AbortSignal): Promise<void> {
  for (;;) {
    try {
      return await loop();
    } catch (error) {
      if (signal.aborted || !(error instanceof StoreUnavailable)) throw error;
      log.warn(error.message);
      await systemClock.sleep(1000, signal).catch(() => undefined);
    }
  }
}

function memberOf(namespace: string, health: Health): MembershipOptions {
  return {
    cluster: typed.kubeconfig === undefined ? {} : { kubeconfig: typed.kubeconfig },
    namespace,
    identity: `${process.env['POD_NAME'] ?? hostname()}_${process.pid}_${randomUUID()}`,
    clock: systemClock,
    pod: process.env['POD_NAME'],
    onStandby: () => (health.ready = true),
    log: (message) => log.info(message),
    onLost(reason) {
      if (stopping.signal.aborted) return;
      log.fatal(reason);
      process.exit(1);
    },
  };
}

/** Counts a call by its method and how it ended. */
function counted<S>(
  metrics: Metrics,
  method: string,
  serve: (agent: string, stream: S, signal: AbortSignal) => Promise<void>,
): (agent: string, stream: S, signal: AbortSignal) => Promise<void> {
  return async (agent, stream, signal) => {
    metrics.onCallStarted(method);
    let code = 'OK';
    try {
      await serve(agent, stream, signal);
    } catch (error) {
      code = asReplicationError(error).code;
      throw error;
    } finally {
      metrics.onCallEnded(method, code);
    }
  };
}

function named(host: string): string[] {
  return host === '0.0.0.0' || host === '::' ? [] : [host];
}

/** The embedded storage class, made once; a person may delete it. */
function provideLocalClass(store: Store, path: string): void {
  const made = store.getRecord('installed', 'storageclass/local');
  if (made !== undefined) return;
  store.create('StorageClass', 'local', {
    apiVersion,
    kind: 'StorageClass',
    metadata: { name: 'local', displayName: 'Embedded, beside the master' },
    spec: { driver: 'directory', parameters: { path } },
    status: { capacityBytes: null, usedBytes: null, reflink: null, conditions: [] },
  });
  store.putRecord('installed', 'storageclass/local', path);
}
