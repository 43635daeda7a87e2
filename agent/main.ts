/**
 * replicator-agent: joins the master once, then mirrors what it is told to until it is stopped.
 *
 * Wires the effects, the control line and one mirror loop per assigned replication. Exit status 0 after SIGTERM or
 * SIGINT, 1 when it cannot start (the reason is on standard error), 2 for a wrong command line.
 */
import { readFileSync } from 'node:fs';
import { mkdir, realpath } from 'node:fs/promises';
import { release } from 'node:os';
import { allowList } from '../proto/allow.ts';
import { optional, parseArguments, programVersion, repeated, required, withDefault } from '../proto/cli.ts';
import { holdData } from '../proto/hold.ts';
import { keepLines, logLevels, openLog } from '../proto/log.ts';
import { systemClock, systemRandom } from '../proto/system.ts';
import { alignedPool, lowerIoPriority } from '../proto/libc.ts';
import { asReplicationError, messageOf } from '../proto/errors.ts';
import { parseChoice, parseFolder, parseHostPort, parseName, parseText, formatHostPort } from '../proto/value.ts';
import type { Assignment } from '../proto/wire.ts';
import { assignments } from './assignments.ts';
import { BufferPool, chunkBytes } from './blockscan.ts';
import { keepCompiled } from './compilecache.ts';
import { control } from './control.ts';
import { systemDevice } from './device-system.ts';
import { frozenMounts } from './frozenmounts.ts';
import { startGuard } from './guard.ts';
import { joinOrLoad } from './identity.ts';
import { pathsUnder, readMounts } from './mounts.ts';
import { sourceOpener } from './opening.ts';
import { OwnReading } from './ownreading.ts';
import { probe } from './probe.ts';
import { restoreMarks } from './restoremarks.ts';
import { restores } from './restores.ts';
import { isGroup } from './standstill.ts';
import { openTrackings } from './trackings.ts';
import { describeVolume, describeWritable, listVolumes } from './volumes.ts';

const { options } = parseArguments(
  {
    name: 'replicator-agent',
    summary: 'Mirrors volumes of this node to a replicator master.',
    flags: {
      name: required('NODE', 'name of this node', parseName),
      master: required('HOST:PORT', 'the master to dial', (text) => formatHostPort(parseHostPort(text))),
      data: required('DIR', 'where the agent keeps its identity and state', parseFolder),
      'join-token-file': optional('FILE', 'one-time token of the master, needed to join', parseText),
      'ca-file': optional('FILE', "the master's ca.pem, needed to join", parseText),
      role: withDefault(
        'source|target',
        'source',
        'what it does by default; every agent can do both',
        parseChoice('source', 'target'),
      ),
      allow: repeated('PATH', 'directory, image or device that may be read, with all below', parseText),
      'allow-write': repeated(
        'PATH',
        'image, device or directory, with all below, that a recovery may write over (none unless named)',
        parseText,
      ),
      kubelet: withDefault('DIR', '/var/lib/kubelet', "the kubelet's folder, whose CSI volumes may be read", parseText),
      'log-level': withDefault('LEVEL', 'info', 'trace, debug, info, warn or error', parseChoice(...logLevels)),
    },
  },
  process.argv.slice(2),
);

/** Shared fairly by all scans of block volumes: bounds what the agent holds of content that is read and not yet sent. */
const poolBytes = 64 << 20;

/** By then mirroring has begun, and with it all is loaded that it needs. */
const keepCompiledMs = 10_000;
/** For support bundles; as much as a Log message may hold. */
const keptLog = keepLines(512 << 10);
const log = openLog('replicator-agent', options['log-level'], undefined, undefined, keptLog);
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
  if (!stopping.signal.aborted) {
    const { code, message } = asReplicationError(error);
    log.fatal({ code }, message);
    process.stderr.write(`replicator-agent: ${message}\n`);
    process.exitCode = 1;
  }
}

async function run(signal: AbortSignal): Promise<void> {
  await mkdir(options.data, { recursive: true, mode: 0o700 });
  const dataDir = await realpath(options.data);
  holdData(dataDir);
  // The workload's own reads and writes come first.
  lowerIoPriority();
  const kubelet = options.kubelet;
  const allow = allowList({
    allow: options.allow,
    allowWrite: options['allow-write'],
    own: [dataDir],
    recoveries: [`${dataDir}/recoveries`],
    kubelet,
    ownLayers: () => pathsUnder([dataDir]),
  });
  const managed = await frozenMounts(`${dataDir}/frozen.json`);
  const guard = startGuard(managed);
  try {
    // A filesystem that an agent before us left frozen would hang its workload for ever.
    const mounted = (await readMounts()).map(({ mountPoint }) => mountPoint);
    const thawed = await guard.thawAll(managed.targets.filter((one) => isGroup(one) || mounted.includes(one)));
    if (thawed.length > 0) log.warn({ thawed }, 'thawed what was left frozen');
    const identity = await joinOrLoad(
      {
        dataDir,
        name: options.name,
        master: options.master,
        ...(options['join-token-file'] === undefined ? {} : { joinTokenFile: options['join-token-file'] }),
        ...(options['ca-file'] === undefined ? {} : { caFile: options['ca-file'] }),
        agentVersion: programVersion(),
        clock: systemClock,
        random: systemRandom,
        onRetry: ({ code, message }) => log.warn({ code }, `joining is tried again: ${message}`),
      },
      signal,
    );
    const marks = restoreMarks(dataDir);
    const reading = new OwnReading();
    const seen = {
      mayRead: allow.mayRead,
      allow: options.allow,
      kubelet,
      halfWritten: (path: string) => marks.halfWritten(path),
    };
    const line = control({
      open: (call) => identity.client().control(call),
      hello: {
        agentVersion: programVersion(),
        bootId: readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim(),
        defaultRole: options.role,
        kernel: release(),
        kubelet,
      },
      inventory: () => listVolumes(seen),
      look: (path, write) => (write ? describeWritable(path, allow, reading) : describeVolume(path, seen)),
      onAssignments(items) {
        assigned = items;
        mirrors.set(items);
      },
      onRestores: (list) => written.set(list),
      probe,
      log: () => keptLog.text(),
      onKnown: (uids) =>
        void mirrors
          .ended()
          .then(() => trackings.forgetOthers(uids))
          .catch((error: unknown) => log.warn(messageOf(error))),
      onRenew: () => void identity.renew().catch((error: unknown) => log.warn(asReplicationError(error).message)),
      onLine(error) {
        if (error) return log.warn({ code: error.code }, error.message);
        log.info(isFirst ? { startMs: Math.round(performance.now()) } : {}, 'connected to the master');
        if (isFirst) setTimeout(keepCompiled, keepCompiledMs).unref();
        isFirst = false;
      },
      clock: systemClock,
      random: systemRandom,
    });
    // The wall clock may be set at any time; the line's own clock is steady, and it is what the master's is mapped from.
    const steady = { ...systemClock, nowMs: () => line.agentUs() / 1000 };
    const trackings = openTrackings({ dataDir, clock: systemClock, log });
    const mirrors = assignments({
      clock: steady,
      random: systemRandom,
      log,
      masterUs: (agentUs) => line.masterUs(agentUs),
      connect: (signal, id) => identity.client().mirror(signal, id),
      protocol: () => line.protocol(),
      report: (report) => line.report(report),
      event: (event) => line.event(event),
      openSource: sourceOpener({
        allow,
        guard,
        pool: new BufferPool(alignedPool(poolBytes, chunkBytes)),
        clock: steady,
        dataDir,
        protectedPaths: [dataDir, kubelet, import.meta.dirname],
        kubelet,
        trackings,
        marks,
        // Loaded where it is asked for: most nodes have no use for it.
        snapshots: (replicationUid) => async () =>
          (await import('./clustersnapshots.ts')).clusterSnapshots({
            replicationUid,
            ask: (signal) => identity.client().snapshots(signal),
            openDevice: async (path) =>
              systemDevice({ path: await allow.mayRead(path), clock: systemClock, guard, protectedPaths: [] }),
            clock: systemClock,
            random: systemRandom,
            signal,
          }),
        treeCopies: async (replicationUid, kind) =>
          (await import('./clustersnapshots.ts')).clusterTrees({
            ...{ replicationUid, kind, mayRead: allow.mayRead, signal },
            ask: (signal) => identity.client().snapshots(signal),
          }),
      }),
    });
    let isFirst = true;
    let assigned: Assignment[] = [];
    const written = restores({
      clock: systemClock,
      random: systemRandom,
      log,
      allow,
      marks,
      comparisons: `${dataDir}/comparisons`,
      reading,
      connect: (signal, id) => identity.client().restore(signal, id),
      protocol: () => line.protocol(),
      openDevice: (path) => systemDevice({ path, clock: systemClock, guard, protectedPaths: [] }),
      sources: () =>
        Promise.all(assigned.filter(({ paused }) => !paused).map(({ path }) => realpath(path).catch(() => path))),
    });
    log.info({ node: options.name, master: options.master }, 'started');
    try {
      await Promise.all([
        line.run(signal),
        identity.run(signal),
        mirrors.run(signal),
        written.run(signal),
        trackings.run(signal),
      ]);
    } finally {
      await trackings.close();
      identity.close();
    }
  } finally {
    await guard.stop();
  }
}
