/**
 * Rounds of a block capture against an adversary: writers that never pause, and before each cut something that a capture may
 * stumble over. After each cut that holds the replica is compared, byte for byte, with a copy that was taken
 * independently while the filesystem was frozen for that very cut.
 */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import fs, { copyFileSync, existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { BlockSource } from '../../agent/blocksource.ts';
import { BufferPool, chunkBytes } from '../../agent/blockscan.ts';
import { countsReads, tryBlockStat } from '../../agent/blockstat.ts';
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
import { Refusal, refusalOf } from '../../agent/refusal.ts';
import { ReplicationError } from '../../proto/errors.ts';
import { alignedPool } from '../../proto/libc.ts';
import { systemClock, systemRandom } from '../../proto/system.ts';
import { random } from '../e2e/content.ts';
import { run } from '../loop.ts';
import { overwrite, type Arena } from './blockarena.ts';
import { scanAfter, tricksIn, type Trick } from './blocktricks.ts';
import { attach, sync } from './capture.ts';
import { isAllButDiscarded, watchDiscards, type Discards } from './discards.ts';
import { ModelReplica } from './modelreplica.ts';

export interface Outcome {
  cuts: number;
  refused: Map<string, number>;
  fullScans: number;
  compared: number;
  /** Of those compared: they differ by what was discarded between the cut and the copy, and by nothing else. */
  discarding: number;
  tricks: Map<string, number>;
}

interface Agent {
  source: BlockSource;
  tracking: Tracking;
  tracer: Tracer | undefined;
  stopping: AbortController;
}

export class Adversary {
  readonly outcome: Outcome = {
    cuts: 0,
    refused: new Map(),
    fullScans: 0,
    compared: 0,
    discarding: 0,
    tricks: new Map(),
  };
  readonly #arena: Arena;
  readonly #guard: Guard;
  readonly #instance = `adversary-${process.pid}`;
  readonly #replica = new ModelReplica('Block');
  readonly #pool = new BufferPool(alignedPool(32 << 20, chunkBytes));
  readonly #folder: string;
  readonly #devices: BlockDevice[] = [];
  readonly #events: string[] = [];
  #maps = 0;
  #boot = '';
  #scanOwed = false;
  #ringBytes: number | undefined;
  #agent: Agent | undefined;
  #driver: Driver | undefined;
  /** Taken by ourselves while the filesystem stood still. */
  #copy: Buffer | undefined;
  /** What its filesystem discarded while it stood still, until the copy was taken: that is a moment after the cut. */
  #discarded: { first: number; end: number }[] = [];
  #discards: Discards | undefined;
  #stopWriter: (() => Promise<void>) | undefined;

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
        if (frozen instanceof Refusal) return frozen;
        if (this.#arena.discards) {
          this.#discards ??= watchDiscards(this.#arena.path, `${this.#instance}-discards`);
          this.#discards.begin();
        }
        return {
          ...frozen,
          thaw: async () => {
            this.#copy = this.#arena.content();
            this.#discarded = this.#discards?.since() ?? [];
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
      maxFreezeMs: 120_000,
      readBytesPerSecond: 0,
      generation: '1',
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
        isCounting: () => countsReads(path),
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
    const arena = this.#arena;
    const { raw, path } = arena;
    const at = raw.offset + Math.floor(next() * 512) * 4096;
    const length = 4096 * (1 + Math.floor(next() * 400));
    if (trick === 'session' && this.#agent) {
      const { tracking, source } = this.#agent;
      await source.close();
      this.#note(this.#agent);
      this.#agent = { ...this.#agent, source: this.#source(this.#device(), tracking) };
      await this.#session();
    } else if (trick === 'stopped') {
      await this.#stop();
      await delay(next() * 600);
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
    } else if (trick === 'grown') arena.grow?.();
    else if (trick === 'direct') overwrite(path, at, length);
    else if (trick === 'buffered')
      run('dd', 'if=/dev/urandom', `of=${path}`, 'bs=7777', 'count=20', `seek=${Math.ceil(at / 7777)}`, 'conv=notrunc,fsync', 'status=none'); // prettier-ignore
    else if (trick === 'mapped') mapAndWrite(path, Math.ceil(at / 4096) * 4096, length, Math.floor(next() * 256));
    else if (trick === 'discarded') this.#punch('-o', at, length);
    else if (trick === 'zeroed') this.#punch('-z', at, length);
    else if (trick === 'besideIt') arena.beside?.();
    else if (trick === 'aroundIt') arena.around?.();
    else if (trick === 'formatted') await this.#unmounted(() => void arena.mkfs());
    else if (trick === 'reattached') await this.#unmounted(() => void arena.reattach?.());
    else if (trick === 'remapped') await this.#unmounted(() => void arena.remap?.());
    else if (trick === 'tracingReset') {
      // As trace-cmd does it.
      writeFileSync(`${root}/tracing_on`, '0');
      writeFileSync(`${root}/events/enable`, '0');
      writeFileSync(`${root}/events/block/filter`, '0');
      writeFileSync(`${root}/trace`, '');
      writeFileSync(`${root}/tracing_on`, '1');
    } else if (trick === 'cutLeft') await this.#cutLeft(Math.floor(next() * 6));
    else if (trick === 'tracingOff') {
      writeFileSync(`${root}/tracing_on`, '0');
      await pause();
      if (next() < 0.5) writeFileSync(`${root}/tracing_on`, '1');
    } else if (trick === 'ringEmptied') writeFileSync(`${root}/trace`, '');
    else if (trick === 'deltaRefused' && this.#driver) this.#driver.refuse = 1;
    else if (trick === 'commitUnheard') await this.#commitUnheard();
    await pause();
  }

  /** Of a device, or of an image. */
  #punch(how: '-o' | '-z', offset: number, length: number): void {
    const { path } = this.#arena;
    if (!path.startsWith('/dev/') || path.startsWith('/dev/shm/')) {
      const place = ['--keep-size', '--offset', String(offset), '--length', String(length), path];
      // Not every filesystem zeroes.
      if (how === '-o' || spawnSync('fallocate', ['--zero-range', ...place]).status !== 0)
        run('fallocate', '--punch-hole', ...place);
      run('sync', path);
    } else run('blkdiscard', '-f', ...(how === '-z' ? ['-z'] : []), '-o', String(offset), '-l', String(length), path);
  }

  async #unmounted(work: () => void): Promise<void> {
    await this.#stopWriter?.();
    this.#arena.unmount();
    for (const device of this.#devices) await device.rest();
    work();
    this.#arena.mount();
    this.write(this.#maps);
  }

  /** Writers to the filesystem, until the end. */
  write(seed: number): void {
    this.#stopWriter = this.#arena.write(seed);
  }

  /** The line breaks while a cut is being sent; work so far is committed wherever it may be. */
  async #cutLeft(left: number): Promise<void> {
    const source = this.#agent?.source;
    if (!source) return;
    const commit = async (): Promise<void> => {
      const sequence = this.#replica.sequence + 1;
      await source.prepare(sequence);
      this.#replica.commit(sequence, source.commitSizeBytes(), false);
      await source.committed(sequence, false, this.#replica.welcome().digest);
    };
    for await (const piece of source.round(false, () => undefined, never)) this.#replica.take(piece);
    const cut = await source.cut(never).catch((error: unknown) => {
      if (error instanceof ReplicationError && error.code === 'NoConsistentCut') return undefined;
      throw error;
    });
    try {
      if (cut)
        for await (const piece of cut.pieces(never)) {
          this.#replica.take(piece);
          if (!source.isIndivisible) await commit();
          if (left-- === 0) break;
        }
    } finally {
      await cut?.release();
    }
    await this.#play('session', () => 0);
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
    const all = tricksIn(this.#arena);
    const only = process.env['ADVERSARY_TRICK'] as Trick | undefined;
    const trick = isFirst ? 'nothing' : (only ?? all[Math.floor(next() * all.length)] ?? 'nothing');
    this.outcome.tricks.set(trick, (this.outcome.tricks.get(trick) ?? 0) + 1);
    if (this.#agent) this.#note(this.#agent);
    const scansBefore = this.outcome.fullScans;
    const eventsBefore = this.#events.length;
    await this.#play(trick, next);
    let isWhole = false;
    for (let tries = 0; tries < 4 && !isWhole; tries++) isWhole = await this.#tryCut(trick);
    if (this.#agent) this.#note(this.#agent);
    if (trick === 'ringFull') {
      await this.#kill();
      removeInstance(this.#instance);
      this.#ringBytes = undefined;
      await this.#session();
      isWhole = false;
      for (let tries = 0; tries < 4 && !isWhole; tries++) isWhole = await this.#tryCut('ringFull, after it');
    }
    // What no cut of this round could bring is read in the next one.
    const owed = this.#scanOwed;
    this.#scanOwed = !isWhole;
    const agent = this.#agent;
    assert.equal(
      agent?.source.captureMethod,
      method,
      `after ${trick}: ${agent?.source.captureReason}; ${this.#events.slice(-4).join('; ')}`,
    );
    if (method === 'scan' || isFirst) return;
    if (scanAfter(trick, this.#arena) === 'must')
      assert(this.outcome.fullScans > scansBefore, `no full scan after ${trick}, where nothing else could find it`);
    // mkfs discards all of it: then all is marked, without a doubt.
    const isAllMarked = trick === 'formatted' && this.#events.length === eventsBefore;
    if (scanAfter(trick, this.#arena) === 'no' && !owed && !isAllMarked)
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
    const told = `${why.reason} (${trick}: ${why.message.replaceAll(/\d+/g, 'N').slice(0, 160)})`;
    this.outcome.refused.set(told, (this.outcome.refused.get(told) ?? 0) + 1);
    return false;
  }

  async #cut(): Promise<Refusal | undefined> {
    const source = this.#agent?.source;
    assert(source);
    this.#copy = undefined;
    let why: Refusal | undefined;
    try {
      why = await sync(source, this.#replica);
    } catch (error) {
      if (!(error instanceof ReplicationError) || error.code !== 'NoConsistentCut') throw error;
      why = refusalOf(error);
    }
    if (why !== undefined) return why;
    const copy = this.#copy as Buffer | undefined;
    assert(copy, 'a copy was taken while frozen');
    const image = this.#replica.bytes(0, this.#replica.sizeBytes);
    this.outcome.compared++;
    if (image.equals(copy)) return undefined;
    if (isAllButDiscarded(image, copy, this.#discarded)) {
      this.outcome.discarding++;
      return undefined;
    }
    const at = image.findIndex((byte, index) => byte !== copy[index]);
    throw new assert.AssertionError({
      message: `point ${this.#replica.sequence} is not the volume at its cut: ${image.length} and ${copy.length} bytes, first at granule ${Math.floor(at / 65536)}`,
    });
  }

  async end(): Promise<void> {
    await this.#stopWriter?.();
    await this.#stop().catch(() => undefined);
    removeInstance(this.#instance);
    this.#discards?.close();
  }
}

/** `at` on a page. */
function mapAndWrite(path: string, at: number, length: number, value: number): void {
  run('xfs_io', '-c', `mmap -rw ${at} ${length}`, '-c', `mwrite -S ${value} ${at + 77} ${length - 99}`, '-c', 'msync -s', path); // prettier-ignore
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
  adversary.write(seed);
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
    await adversary.end();
  }
}
