/**
 * Rounds of a block capture against an adversary: writers that never pause, and before each cut something that a capture may
 * stumble over. After each cut that holds the replica is compared, byte for byte, with a copy that was taken
 * independently while the filesystem was frozen for that very cut.
 */
import assert from 'node:assert/strict';
import fs, { copyFileSync, existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { BlockSource } from '../../agent/blocksource.ts';
import { BufferPool, chunkBytes } from '../../agent/blockscan.ts';
import { tryBlockStat } from '../../agent/blockstat.ts';
import { DirtyMap } from '../../agent/capture/dirtymap.ts';
import * as grpc from '@grpc/grpc-js';
import { CsiCbt } from '../../agent/capture/csicbt.ts';
import { snapshotMetadata, type SnapshotMetadata } from '../../agent/capture/snapshotmetadata.ts';
import type { Driver } from './csidriver.ts';
import { Extents } from '../../agent/capture/extents.ts';
import { Ftrace } from '../../agent/capture/ftrace.ts';
import { mapFile } from '../../agent/capture/mapfile.ts';
import { Rescan } from '../../agent/capture/rescan.ts';
import { openTracefs, removeInstance } from '../../agent/capture/tracefs.ts';
import { Tracer } from '../../agent/capture/tracer.ts';
import { Tracking } from '../../agent/capture/tracking.ts';
import type { BlockDevice } from '../../agent/device.ts';
import { systemDevice } from '../../agent/device-system.ts';
import type { Guard } from '../../agent/guard.ts';
import { ReplicationError } from '../../proto/errors.ts';
import { alignedPool } from '../../proto/libc.ts';
import { systemClock, systemRandom } from '../../proto/system.ts';
import { random } from '../e2e/content.ts';
import type { Arena } from './blockarena.ts';
import { attach, sync } from './capture.ts';
import { ModelReplica } from './modelreplica.ts';

/** What happens before a cut, by capture. `scans`: everything may have to be read after it. */
const tricks = {
  nothing: { scans: false },
  session: { scans: false },
  stopped: { scans: false },
  killed: { scans: true },
  commitUnheard: { scans: false },
  forgotten: { scans: true },
  grown: { scans: false },
  tracingOff: { scans: true },
  ringEmptied: { scans: true },
  ringFull: { scans: true },
  rebooted: { scans: true },
  cloneGone: { scans: true },
  snapshotGone: { scans: true },
  deltaRefused: { scans: true },
  callsBreak: { scans: false },
} as const;
type Trick = keyof typeof tricks;

const common: Trick[] = ['nothing', 'nothing', 'nothing', 'nothing', 'session', 'stopped', 'killed', 'commitUnheard', 'forgotten']; // prettier-ignore
const tricksOf: Record<Arena['method'], Trick[]> = {
  ftrace: [...common, 'grown', 'tracingOff', 'ringEmptied', 'ringFull', 'rebooted'],
  extents: [...common, 'cloneGone'],
  'csi-cbt': [...common, 'snapshotGone', 'deltaRefused', 'callsBreak', 'callsBreak'],
  scan: common,
};

export interface Outcome {
  cuts: number;
  refused: Map<string, number>;
  fullScans: number;
  compared: number;
  tricks: Map<string, number>;
}

interface Agent {
  source: BlockSource;
  tracking: Tracking;
  tracer: Tracer | undefined;
  stopping: AbortController;
}

export class Adversary {
  readonly outcome: Outcome = { cuts: 0, refused: new Map(), fullScans: 0, compared: 0, tricks: new Map() };
  readonly #arena: Arena;
  readonly #guard: Guard;
  readonly #instance = `cdmr-adversary-${process.pid}`;
  readonly #replica = new ModelReplica('Block');
  readonly #pool = new BufferPool(alignedPool(32 << 20, chunkBytes));
  readonly #folder: string;
  readonly #devices: BlockDevice[] = [];
  readonly #events: string[] = [];
  #maps = 0;
  #boot = '';
  #ringBytes: number | undefined;
  #agent: Agent | undefined;
  #driver: Driver | undefined;
  /** Taken by ourselves while the filesystem stood still. */
  #copy: Buffer | undefined;

  constructor(arena: Arena, guard: Guard, folder: string) {
    this.#arena = arena;
    this.#guard = guard;
    this.#folder = folder;
  }

  #mapPath(): string {
    return join(this.#folder, `map-${this.#maps}`);
  }

  #device(): BlockDevice {
    const device = systemDevice({
      path: this.#arena.path,
      clock: systemClock,
      guard: this.#guard,
      protectedPaths: [],
    });
    this.#devices.push(device);
    return {
      ...device,
      freeze: async (maxFreezeMs, signal) => {
        const frozen = await device.freeze(maxFreezeMs, signal);
        if (typeof frozen === 'string') return frozen;
        return {
          thaw: async () => {
            this.#copy = this.#arena.content();
            return frozen.thaw();
          },
        };
      },
    };
  }

  #source(device: BlockDevice, tracking: Tracking): BlockSource {
    return new BlockSource({
      device,
      tracking,
      pool: this.#pool,
      clock: systemClock,
      consistency: 'filesystem',
      maxFreezeMs: 20_000,
      readBytesPerSecond: 0,
    });
  }

  #start(): Agent {
    const { method, path } = this.#arena;
    const device = this.#device();
    const stopping = new AbortController();
    let tracer: Tracer | undefined;
    const rescan = (why: string): Rescan => new Rescan(device, why);
    const traced = (): Ftrace => {
      const ring = openTracefs({
        instance: this.#instance,
        ...(this.#ringBytes ? { bufferBytesPerCpu: this.#ringBytes } : {}),
      });
      tracer = new Tracer(ring, systemClock);
      void tracer.run(stopping.signal);
      return new Ftrace({
        tracer,
        clock: systemClock,
        stat: () => {
          const stat = tryBlockStat(path);
          return typeof stat === 'string' ? stat : { ...stat, bootId: stat.bootId + this.#boot };
        },
      });
    };
    const capture =
      method === 'ftrace'
        ? traced()
        : method === 'extents'
          ? new Extents({ path, name: 'adversary' })
          : this.#driver
            ? new CsiCbt({ snapshots: this.#driver.snapshots, metadata: metadataOf(this.#driver) })
            : rescan('as the test wants it');
    const tracking = new Tracking({
      map: new DirtyMap(mapFile(this.#mapPath())),
      capture,
      fallBack: rescan,
      event: ({ code, message }) => void this.#events.push(`${code} ${message}`),
    });
    return { source: this.#source(device, tracking), tracking, tracer, stopping };
  }

  /** kill -9: what is on disk stays as it is at this moment, and nothing of the old agent writes there any more. */
  async #kill(): Promise<void> {
    const agent = this.#agent;
    if (!agent) return;
    this.#note(agent);
    agent.stopping.abort();
    agent.tracer?.close();
    const before = this.#mapPath();
    this.#maps++;
    if (existsSync(before)) copyFileSync(before, this.#mapPath());
    this.#agent = undefined;
    await this.#closeDevices();
  }

  async #closeDevices(): Promise<void> {
    for (const device of this.#devices.splice(0)) await device.rest();
  }

  #note({ source }: Agent): void {
    this.outcome.fullScans += source.counters.fullScans;
    source.counters.fullScans = 0;
  }

  async #stop(): Promise<void> {
    const agent = this.#agent;
    if (!agent) return;
    agent.tracer?.drain();
    await agent.source.close();
    agent.stopping.abort();
    agent.tracer?.close();
    await this.#closeDevices();
    this.#note(agent);
    this.#agent = undefined;
  }

  async #session(): Promise<void> {
    this.#driver ??= await this.#arena.driver;
    this.#agent ??= this.#start();
    await attach(this.#agent.source, this.#replica);
  }

  async #play(trick: Trick, next: () => number): Promise<void> {
    if (this.#driver) this.#driver.breakChance = trick === 'callsBreak' ? 0.7 : 0;
    const root = `/sys/kernel/tracing/instances/${this.#instance}`;
    const pause = (): Promise<void> => delay(next() * 60);
    if (trick === 'session' && this.#agent) {
      const { tracking, source } = this.#agent;
      await source.close();
      this.#note(this.#agent);
      this.#agent = { ...this.#agent, source: this.#source(this.#device(), tracking) };
      await this.#session();
    } else if (trick === 'stopped') {
      await this.#stop();
      await pause();
      await this.#session();
    } else if (
      trick === 'killed' ||
      trick === 'rebooted' ||
      trick === 'ringFull' ||
      trick === 'cloneGone' ||
      trick === 'snapshotGone'
    ) {
      await this.#kill();
      if (trick === 'rebooted') this.#boot = `-${next()}`;
      if (trick === 'ringFull') {
        removeInstance(this.#instance);
        this.#ringBytes = 4096;
      }
      if (trick === 'cloneGone') this.#removeClones();
      if (trick === 'snapshotGone') for (const name of (await this.#driver?.snapshots.list()) ?? []) await this.#driver?.snapshots.remove(name); // prettier-ignore
      await pause();
      await this.#session();
    } else if (trick === 'forgotten') {
      await this.#kill();
      fs.rmSync(this.#mapPath(), { force: true });
      await this.#session();
    } else if (trick === 'grown') this.#arena.grow?.(next() < 0.5 ? 1 : 3);
    else if (trick === 'tracingOff') {
      writeFileSync(`${root}/tracing_on`, '0');
      await pause();
      if (next() < 0.5) writeFileSync(`${root}/tracing_on`, '1');
    } else if (trick === 'ringEmptied') writeFileSync(`${root}/trace`, '');
    else if (trick === 'deltaRefused' && this.#driver) this.#driver.refuse = 1;
    else if (trick === 'commitUnheard') await this.#commitUnheard();
    await pause();
  }

  /** The replica has the commit, and the agent dies before it hears of it. */
  async #commitUnheard(): Promise<void> {
    const source = this.#agent?.source;
    if (!source) return;
    try {
      for await (const piece of source.round(false, () => undefined, never)) this.#replica.take(piece);
      await source.prepare(this.#replica.sequence + 1);
      this.#replica.commit(this.#replica.sequence + 1, source.commitSizeBytes(), false);
    } finally {
      await this.#kill();
    }
    await this.#session();
  }

  #removeClones(): void {
    const folder = join(this.#arena.path, '..', '.cdm-replicator');
    for (const name of existsSync(folder) ? fs.readdirSync(folder) : []) fs.rmSync(join(folder, name));
  }

  /** One round; throws when a point is not what the volume was, or when a scan hid what should have been known. */
  async round(seed: number): Promise<void> {
    const next = random(seed);
    const { method } = this.#arena;
    const isFirst = this.#agent === undefined;
    if (isFirst) await this.#session();
    const trick = isFirst ? 'nothing' : (tricksOf[method][Math.floor(next() * tricksOf[method].length)] ?? 'nothing');
    this.outcome.tricks.set(trick, (this.outcome.tricks.get(trick) ?? 0) + 1);
    if (this.#agent) this.#note(this.#agent);
    const scansBefore = this.outcome.fullScans;
    await this.#play(trick, next);
    for (let tries = 0; tries < 4 && !(await this.#tryCut(trick)); tries++);
    if (this.#agent) this.#note(this.#agent);
    if (trick === 'ringFull') {
      await this.#kill();
      removeInstance(this.#instance);
      this.#ringBytes = undefined;
      await this.#session();
      await this.#tryCut('ringFull, after it');
    }
    if (method === 'scan') return;
    const agent = this.#agent;
    assert.equal(
      agent?.source.captureMethod,
      method,
      `after ${trick}: ${agent?.source.captureReason}; ${this.#events.slice(-4).join('; ')}`,
    );
    if (!tricks[trick].scans && !isFirst)
      assert.equal(
        this.outcome.fullScans,
        scansBefore,
        `a full scan after ${trick}, where the capture should have known: ${this.#events.slice(-4).join('; ')}; refused: ${[...this.outcome.refused.keys()].slice(-4).join('; ')}`,
      );
  }

  async #tryCut(trick: string): Promise<boolean> {
    this.outcome.cuts++;
    const why = await this.#cut();
    if (why === undefined) return true;
    const reason = `${trick}: ${why.replaceAll(/\d+/g, 'N').slice(0, 160)}`;
    this.outcome.refused.set(reason, (this.outcome.refused.get(reason) ?? 0) + 1);
    return false;
  }

  async #cut(): Promise<string | undefined> {
    const source = this.#agent?.source;
    assert(source);
    this.#copy = undefined;
    let why: string | undefined;
    try {
      why = await sync(source, this.#replica);
    } catch (error) {
      if (!(error instanceof ReplicationError) || error.code !== 'NoConsistentCut') throw error;
      why = error.message;
    }
    if (why !== undefined) return why;
    const copy = this.#copy as Buffer | undefined;
    assert(copy, 'a copy was taken while frozen');
    const image = this.#replica.bytes(0, this.#replica.sizeBytes);
    this.outcome.compared++;
    if (image.equals(copy)) return undefined;
    const at = image.findIndex((byte, index) => byte !== copy[index]);
    throw new assert.AssertionError({
      message: `point ${this.#replica.sequence} is not the volume at its cut: ${image.length} and ${copy.length} bytes, first at granule ${Math.floor(at / 65536)}`,
    });
  }

  async end(): Promise<void> {
    await this.#stop().catch(() => undefined);
    removeInstance(this.#instance);
  }
}

function metadataOf({ address }: Driver): SnapshotMetadata {
  return snapshotMetadata({
    address,
    credentials: grpc.credentials.createInsecure(),
    namespace: 'shop',
    token: async () => 'token-for-tests',
    clock: systemClock,
    random: systemRandom,
  });
}

const never = new AbortController().signal;

/** Rounds of one arena; prints nothing, throws with the seed of the round that failed. */
export async function rounds(
  arena: Arena,
  guard: Guard,
  { folder, seed, count }: { folder: string; seed: number; count: number },
): Promise<Outcome> {
  const adversary = new Adversary(arena, guard, folder);
  const stopWriter = arena.write(seed);
  try {
    for (let round = 0; round < count; round++) {
      try {
        await adversary.round(seed + round);
      } catch (error) {
        throw new Error(`round ${round} of seed ${seed}: ${String(error)}`, { cause: error });
      }
    }
    return adversary.outcome;
  } finally {
    await stopWriter();
    await adversary.end();
  }
}
