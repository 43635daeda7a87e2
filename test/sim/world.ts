/**
 * One replication with everything around it: the agent's `mirror` loop with a BlockSource on a modelled volume, a network,
 * and the master's `Replica` and `serveSession` on a modelled disk. The loops are production's own; what is modelled is what
 * they stand on.
 *
 * The master's part here is what master/mirrors.ts does with a replica: open it, try again when that fails, serve calls, advance.
 */
import assert from 'node:assert/strict';
import { mirror } from '../../agent/mirror.ts';
import { BlockSource } from '../../agent/blocksource.ts';
import { BufferPool, chunkBytes } from '../../agent/blockscan.ts';
import { DirtyMap } from '../../agent/capture/dirtymap.ts';
import { Ftrace } from '../../agent/capture/ftrace.ts';
import { Rescan } from '../../agent/capture/rescan.ts';
import { Tracer } from '../../agent/capture/tracer.ts';
import { Tracking } from '../../agent/capture/tracking.ts';
import type { BlockDevice } from '../../agent/device.ts';
import { serveSession, type MirrorStream } from '../../master/session.ts';
import { OnDemandReplica } from '../../master/replica/ondemand.ts';
import { OpenSet } from '../../master/replica/openset.ts';
import type { ReplicaLimits } from '../../master/replica/limits.ts';
import type { CommitRecord } from '../../master/replica/frame.ts';
import type { Point } from '../../master/replica/horizon.ts';
import type { Clock } from '../../proto/effects.ts';
import { asReplicationError, ReplicationError } from '../../proto/errors.ts';
import { Permits } from '../../proto/lock.ts';
import { bell } from '../../proto/stream.ts';
import type { Assignment, Report } from '../../proto/wire.ts';
import { assignment } from '../assignment.ts';
import { Checks } from './checks.ts';
import { SimClock } from './clock.ts';
import { SimDevice, type Abilities } from './device.ts';
import { Dice } from './dice.ts';
import { volumeDigest } from './digest.ts';
import { SimDisk } from './disk.ts';
import { Indexes } from './indexes.ts';
import { SimMapFile } from './kernel.ts';
import { MasterClock } from './masterclock.ts';
import { Network } from './network.ts';
import { Versions } from './versions.ts';
import { readSlots } from './volume.ts';

export const epochMs = Date.UTC(2026, 0, 1);
export const replicaFolder = '/class/volume';
const uid = '00000000-0000-4000-8000-000000000001';
export const advanceEveryMs = 5000;
const reopenMs = 1000;
/** Until the control line is there again. */
const controlMs = 3000;

/** Of agents that are gone: to take new memory costs more than what is done with it. */
const spareBuffers: Buffer[] = [];

/** One process of the master. */
export interface MasterProcess {
  clock: Clock;
  replica: OnDemandReplica | undefined;
  readonly stopping: AbortController;
  advancing: boolean;
  readonly folder: string;
  open: () => Promise<void>;
}

export interface WorldOptions {
  seed: number;
  indexRoot: string;
  trace: (line: string) => void;
  /** Instead of what the seed has. */
  given?: undefined | { abilities?: Partial<Abilities>; limits?: Partial<ReplicaLimits>; sizeBytes?: number };
}

export class World {
  readonly clock = new SimClock();
  readonly dice: Dice;
  readonly device: SimDevice;
  readonly mapFile = new SimMapFile();
  readonly disk: SimDisk;
  readonly indexes: Indexes;
  readonly network: Network;
  readonly versions: Versions;
  readonly checks: Checks;
  readonly limits: ReplicaLimits;
  readonly journalSeconds: number;
  /** 0: its files are closed whenever nobody needs them. */
  readonly openReplicas: number;
  readonly counts = {
    commits: 0,
    points: 0,
    agentStarts: 0,
    masterStarts: 0,
    powerLosses: 0,
    reopened: 0,
    rests: 0,
    advances: 0,
  };
  /** How often each kind of fault happened. */
  readonly faults: Record<string, number> = {};
  /** Those that were told to be ready. */
  readonly snapshots = new Map<string, Point>();
  /** What the newest scrub found. */
  scrubbedBad: number | undefined;
  /** Of the agent. */
  sessionsEnded = 0;
  #requests = 0;
  #present: { version: number; digest: Buffer } | undefined;
  readonly #trace: (line: string) => void;
  readonly #agentAheadMs: number;
  readonly masterClock: MasterClock;
  readonly #assignmentChanged = bell();
  assignment: Assignment;
  /** Newest state that the agent told. */
  report: Report | undefined;
  master: MasterProcess | undefined;
  ended = false;
  #agent: AbortController | undefined;
  readonly #progressCommitBytes: number;
  /** Calls of the disk until the master's process crashes within one. */
  #crashIn: { calls: number; power: boolean } | undefined;
  /** What has yet to end, by name. */
  readonly #running = new Set<string>();

  constructor({ seed, indexRoot, trace, given }: WorldOptions) {
    const dice = (this.dice = new Dice(seed));
    this.#trace = trace;
    const { clock } = this;
    this.masterClock = new MasterClock(clock, epochMs);
    const reflink = dice.chance(0.4);
    this.device = new SimDevice(clock, dice.fork('device'), given?.sizeBytes ?? volumeSize(dice), {
      freeze: dice.chance(0.4),
      reflink,
      // One way at least that always works in the end.
      stamp: !reflink || dice.chance(0.8),
      holes: dice.chance(0.7),
      trace: dice.fork('trace').chance(0.6),
      restless: dice.fork('restless').chance(0.15),
      ...given?.abilities,
    });
    this.disk = new SimDisk({
      clock,
      dice: dice.fork('disk'),
      reflink: dice.chance(0.5),
      capacityBytes: 1 << 30,
      onCall: () => this.#countDown(),
    });
    this.indexes = new Indexes(indexRoot, dice.fork('indexes'));
    this.versions = new Versions(dice.fork('versions'));
    this.network = new Network({
      clock,
      dice: dice.fork('network'),
      latencyMs: dice.pick([0.1, 1, 10, 60]),
      serve: (stream, signal) => this.#serve(stream, signal),
      isNewer: (side) => this.versions.isNewer(side),
      onReply: (reply) => {
        if (reply.committed) this.checks.onAcknowledged(reply.committed.sequence, reply.committed.digest);
      },
    });
    this.limits = {
      maxJournalBytes: dice.pick([4 << 20, 16 << 20, 1 << 30]),
      maxEpochBytes: 512 << 20,
      segmentBytes: dice.pick([100_000, 1 << 20, 64 << 20]),
      ...given?.limits,
    };
    this.openReplicas = dice.fork('rest').pick([0, 0, 1]);
    this.#progressCommitBytes = dice.fork('progress').pick([64 << 20, 1 << 20, 200_000]);
    this.journalSeconds = dice.pick([0, 5, 20, 60]);
    this.#agentAheadMs = dice.between(-100_000, 100_000);
    this.assignment = {
      ...assignment,
      replicationUid: uid,
      path: '/dev/sim',
      cutIntervalSeconds: dice.pick([1, 2, 5]),
      consistency: dice.pick(['', '', '', 'crash']),
      maxFreezeMs: dice.pick([20, 100, 500]),
      // Thread pools have their own time: what they compress would finish at another virtual instant in each run.
      compression: 'none',
      bandwidthBytesPerSecond: dice.chance(0.1) ? 4 << 20 : 0,
    };
    this.checks = new Checks(this);
  }

  trace(line: string): void {
    this.#trace(`${(this.clock.nowMs / 1000).toFixed(3).padStart(9)}  ${line}`);
  }

  /** Folders that an installation makes. */
  async prepare(): Promise<void> {
    const disk = this.disk.mount();
    let made = false;
    const making = (async () => {
      for (const path of ['/class', '/recoveries']) await disk.mkdir(path);
      await disk.syncDirectory('/');
      made = true;
    })();
    await this.clock.runUntil(() => made, Infinity);
    await making;
  }

  nextRequest(): number {
    return ++this.#requests;
  }

  /** Of what the source is now. */
  presentDigest(): Buffer {
    const { volume } = this.device;
    if (this.#present?.version !== volume.version) {
      const bytes = Buffer.allocUnsafe(volume.sizeBytes);
      readSlots(volume.present, volume.sizeBytes, bytes, 0);
      this.#present = { version: volume.version, digest: volumeDigest(bytes) };
    }
    return this.#present.digest;
  }

  assign(change: Partial<Assignment>): void {
    this.assignment = { ...this.assignment, ...change };
    this.trace(`assigned ${JSON.stringify(change)}`);
    this.#assignmentChanged.ring();
  }

  startAgent(): void {
    assert(!this.#agent);
    const stopping = (this.#agent = new AbortController());
    this.counts.agentStarts++;
    this.trace('agent starts');
    this.versions.agree();
    const clock = this.clock.machine(epochMs, () => this.#agentAheadMs);
    const isDead = (): boolean => stopping.signal.aborted;
    const error = this.dice.between(0, 3);
    const tracking = this.#tracking(clock, isDead, stopping.signal);
    // Few buffers, as if other volumes held the rest.
    const buffers = Array.from(
      { length: this.dice.pick([5, 8, 64]) },
      () => spareBuffers.pop() ?? Buffer.allocUnsafeSlow(chunkBytes),
    );
    const pool = new BufferPool(buffers);
    this.#run(
      `agent ${this.counts.agentStarts}`,
      mirror(
        {
          clock,
          random: this.dice.fork('agent'),
          assignment: () => this.assignment,
          changed: (signal) => this.#changed(signal),
          openSource: async ({ consistency, maxFreezeMs, readBytesPerSecond, fencingGeneration }) =>
            new BlockSource({
              ...tracking(),
              pool,
              clock,
              consistency: consistency === 'crash' ? 'crash' : null,
              maxFreezeMs,
              readBytesPerSecond,
              generation: fencingGeneration,
            }),
          connect: (signal) => this.network.connect(signal),
          protocol: () => this.versions.agreed,
          toMasterUs: async (agentUs) =>
            this.masterClock.name(Math.floor(agentUs - (this.#agentAheadMs + error) * 1000)),
          progressCommitBytes: this.#progressCommitBytes,
          report: (report) => {
            if (!isDead()) this.#onReport(report);
          },
          event: ({ code, level, message }) => this.trace(`agent ${level} ${code} ${message}`),
        },
        stopping.signal,
      )
        .catch((thrown: unknown) => this.checks.violated('I0 the loop never ends by itself', String(thrown)))
        .finally(() => spareBuffers.push(...buffers)),
    );
  }

  setMasterClock(byMs: number): void {
    this.trace(`the master's clock is set by ${byMs} ms`);
    this.masterClock.set(byMs);
  }

  /** As agent/trackings.ts: one for the life of the process, another one each time where nothing but a scan works. */
  #tracking(
    clock: Clock,
    isDead: () => boolean,
    signal: AbortSignal,
  ): () => { device: BlockDevice; tracking: Tracking } {
    const { kernel, volume, abilities } = this.device;
    const tracer = abilities.trace ? new Tracer(kernel.ring(isDead), clock) : undefined;
    if (tracer) void tracer.run(signal);
    let tracking: Tracking | undefined;
    const dice = this.dice.fork(`map ${this.counts.agentStarts}`);
    const turn = async (): Promise<void> => {
      await this.clock.sleep(dice.between(0, 2));
      if (isDead()) throw new ReplicationError('Stopped', 'this process is gone');
    };
    return () => {
      const device = this.device.open(isDead);
      if (!tracking || tracking.capture.method === 'scan') {
        tracking = new Tracking({
          map: new DirtyMap(this.mapFile.open(turn)),
          capture: tracer
            ? new Ftrace({ tracer, clock, stat: () => kernel.stat(volume.sizeBytes), isCounting: async () => true })
            : new Rescan(device, 'cannot be traced'),
          fallBack: (why) => new Rescan(device, why),
          event: ({ code, message }) => this.trace(`agent ${code} ${message}`),
        });
      }
      return { device, tracking };
    };
  }

  /** The process is gone at this instant; `power`: its machine too, so that nobody is told. */
  crashAgent(power: boolean): void {
    if (!this.#agent) return;
    this.trace(`agent crashes${power ? ' with its machine' : ''}`);
    this.network.loseAgent(power);
    if (power) this.device.kernel.reboot();
    this.#agent.abort(new ReplicationError('Stopped', 'crashed'));
    this.#agent = undefined;
    this.report = undefined;
  }

  get agentRuns(): boolean {
    return this.#agent !== undefined;
  }

  async #changed(signal: AbortSignal): Promise<void> {
    await new Promise<void>((resolve) => {
      void this.#assignmentChanged.rung().then(resolve);
      signal.addEventListener('abort', () => resolve(), { once: true });
    });
  }

  #onReport(report: Report): void {
    this.report = report;
    this.checks.onReport(report);
  }

  startMaster(): void {
    assert(!this.master);
    this.counts.masterStarts++;
    this.trace('master starts');
    this.clock.after(this.dice.fork(`control ${this.counts.masterStarts}`).between(0, controlMs), () =>
      this.versions.agree(),
    );
    const master: MasterProcess = (this.master = {
      clock: this.masterClock.clock,
      replica: undefined,
      stopping: new AbortController(),
      advancing: false,
      folder: this.indexes.folder,
      open: async () => undefined,
    });
    const disk = this.disk.mount();
    const random = this.dice.fork(`master ${this.counts.masterStarts}`);
    const trusted = this.masterClock.trusted();
    master.open = async (): Promise<void> => {
      try {
        const replica = await OnDemandReplica.open({
          openSet: new OpenSet(this.openReplicas),
          opening: new Permits(1),
          onOpened: (replica) => {
            this.counts.rests++;
            if (this.master === master) this.checks.onOpened(replica);
          },
          effects: { clock: master.clock, random, disk },
          trusted,
          place: { folder: replicaFolder, indexFolder: master.folder },
          mode: 'Block',
          limits: this.limits,
          onDoubt: (why) => {
            this.trace(`doubt: ${why}`);
            if (this.master === master) this.checks.onDoubt(why);
          },
        });
        if (this.master !== master) return await replica.close().catch(() => undefined);
        master.replica = replica;
        this.trace(`replica open at ${replica.head.sequence}, points ${pointsText(replica)}`);
        this.checks.onOpened(replica);
      } catch (error) {
        if (this.master !== master) return;
        const { code, message } = asReplicationError(error, 'TargetFailed');
        this.trace(`replica does not open: ${code} ${message}`);
        this.checks.onFault(error, 'opening the replica');
        this.clock.after(reopenMs, () => {
          if (this.master === master) void master.open();
        });
      }
    };
    const tick = (): void => {
      if (this.master !== master) return;
      this.#advance(master);
      this.clock.after(advanceEveryMs, tick);
    };
    void master.open();
    this.clock.after(advanceEveryMs, tick);
  }

  #advance(master: MasterProcess): void {
    const { replica } = master;
    if (!replica || master.advancing) return;
    master.advancing = true;
    void replica
      .advance(this.journalSeconds, master.stopping.signal)
      .then(
        () => {
          this.counts.advances++;
          if (this.master === master) this.checks.onAdvanced(replica);
        },
        (error: unknown) => {
          if (this.master !== master) return;
          this.trace(`advance: ${asReplicationError(error).message}`);
          this.checks.onFault(error, 'advance');
        },
      )
      .then(async () => {
        master.advancing = false;
        await this.#reopenIfDamaged(master);
      });
  }

  async #reopenIfDamaged(master: MasterProcess): Promise<void> {
    const { replica } = master;
    if (!replica || (!replica.damaged && replica.lost === undefined) || this.master !== master) return;
    this.trace('the journal is damaged: the replica is opened again');
    this.counts.reopened++;
    master.replica = undefined;
    await replica.close();
    await master.open();
  }

  async #serve(stream: MirrorStream, signal: AbortSignal): Promise<void> {
    const { master } = this;
    if (!master) throw new ReplicationError('Disconnected', 'nobody listens');
    const hello = await this.versions.hello(stream);
    const { replica } = master;
    if (!replica) throw new ReplicationError('TargetFailed', 'the replica is being opened');
    const onCommit = (commit: CommitRecord): void => {
      if (this.master !== master) return;
      this.counts.commits++;
      if (commit.point) this.counts.points++;
      this.trace(`commit ${commit.sequence}${commit.point ? ` point ${commit.consistency}` : ''}`);
      this.checks.onCommit(commit);
      if (commit.point || !replica.newestPoint) this.clock.after(0, () => this.#advance(master));
    };
    try {
      await serveSession(
        replica,
        'agent',
        hello,
        stream,
        master.clock,
        {
          onCommit,
          onVerified: ({ badGranules }) => {
            this.trace(`scrubbed: ${badGranules} bad`);
            this.scrubbedBad = badGranules;
          },
        },
        AbortSignal.any([signal, master.stopping.signal]),
      );
    } catch (error) {
      const { code, message } = asReplicationError(error);
      this.trace(`session ends: ${code} ${message}`);
      await this.#reopenIfDamaged(master);
      throw error;
    } finally {
      this.sessionsEnded++;
    }
  }

  /** The process is gone at this instant. With `power` the disk forgets what was not synced. */
  crashMaster(power: boolean): void {
    const { master } = this;
    if (!master) return;
    this.trace(`master crashes${power ? ', power lost' : ''}`);
    if (power) this.counts.powerLosses++;
    this.master = undefined;
    this.disk.crash(power);
    this.indexes.crash(power, this.#snapshotsOnDisk());
    if (power && this.dice.chance(0.5)) this.network.silence();
    else this.network.cut();
    master.stopping.abort(new ReplicationError('Stopped', 'crashed'));
    const { replica } = master;
    // Only so that its files are closed here; it has no disk any more.
    const closed = (replica?.close() ?? Promise.resolve()).catch(() => undefined);
    this.#run(
      `replica in ${master.folder}`,
      closed.then(() => this.indexes.forget(master.folder)),
    );
  }

  #run(name: string, work: Promise<unknown>): void {
    this.#running.add(name);
    void work.finally(() => this.#running.delete(name));
  }

  #snapshotsOnDisk(): string[] {
    const folder = `${replicaFolder}/snapshots/`;
    const names = this.disk.paths().filter((path) => path.startsWith(folder));
    return [...new Set(names.map((path) => path.slice(folder.length).split('/')[0] ?? ''))];
  }

  /** Within one of the disk's next calls: between any two steps of persistence. */
  crashMasterSoon(power: boolean): void {
    this.#crashIn = { calls: 1 + this.dice.below(150), power };
  }

  #countDown(): void {
    if (!this.#crashIn || --this.#crashIn.calls > 0) return;
    const { power } = this.#crashIn;
    this.#crashIn = undefined;
    this.crashMaster(power);
  }

  get crashIsComing(): boolean {
    return this.#crashIn !== undefined;
  }

  cancelCrash(): void {
    this.#crashIn = undefined;
  }

  async end(): Promise<void> {
    this.ended = true;
    this.device.stop();
    this.crashAgent(false);
    const { master } = this;
    this.master = undefined;
    master?.stopping.abort(new ReplicationError('Stopped', 'the end'));
    this.network.cut();
    if (master?.replica) this.#run('the last replica', master.replica.close());
    if (!(await this.clock.runUntil(() => this.#running.size === 0, this.clock.nowMs + 600_000)))
      this.checks.violated('I0 everything ends', `these still wait: ${[...this.#running].join(', ')}`);
  }
}

function volumeSize(dice: Dice): number {
  const granules = dice.pick([0, 1, 3, 20, 60, 60, 120, 120, 300]);
  const tail = dice.pick([0, 0, 1, 512, 4096, 30_000, 65_535]);
  return granules * 65536 + tail;
}

export function pointsText({ points }: OnDemandReplica): string {
  return `[${points.map(({ sequence }) => sequence).join(' ')}]`;
}
