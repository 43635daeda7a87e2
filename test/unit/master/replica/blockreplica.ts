/** A block replica on a simulated disk, and a writer that puts whole granules into it. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import type { Test } from 'tap';
import { defaultLimits, type ReplicaLimits } from '../../../../master/replica/limits.ts';
import { Replica } from '../../../../master/replica/replica.ts';
import type { ReplicaSession } from '../../../../master/replica/writer.ts';
import type { CommitRecord } from '../../../../master/replica/frame.ts';
import type { Disk } from '../../../../proto/effects.ts';
import { granuleBytes, granuleCount, granuleHash, granuleLength, isZero } from '../../../../proto/granule.ts';
import type { Commit, Data } from '../../../../proto/wire.ts';
import { SimClock } from '../../../sim/clock.ts';
import { Dice } from '../../../sim/dice.ts';
import { SimDisk } from '../../../sim/disk.ts';

export const folder = '/class/r';
export const none = new AbortController().signal;

/** @param seed of what a power cut takes */
export function quietDisk(seed = 7): SimDisk {
  const dice = new Dice(seed);
  const disk = new SimDisk({ clock: new SimClock(), dice, reflink: true, capacityBytes: 1 << 30 });
  disk.slowChance = 0;
  return disk;
}

export interface Rig {
  sim: SimDisk;
  disk: Disk;
  indexFolder: string;
  nowMs: number;
  doubts: string[];
  open(limits?: Partial<ReplicaLimits>): Promise<Replica>;
}

/** @param seed of what a power cut takes */
export async function rig(t: Test, seed?: number): Promise<Rig> {
  const indexFolder = mkdtempSync(`${tmpdir()}/replica-`);
  t.teardown(() => rmSync(indexFolder, { recursive: true, force: true }));
  const sim = quietDisk(seed);
  const disk = sim.mount();
  await disk.mkdir('/class');
  await disk.mkdir('/copies');
  await disk.syncDirectory('/');
  const self: Rig = {
    sim,
    disk,
    indexFolder,
    nowMs: 1_000_000,
    doubts: [],
    open: (limits) =>
      Replica.open({
        effects: {
          clock: { nowMs: () => self.nowMs, monotonicMs: () => self.nowMs, sleep: async () => undefined },
          random: new Dice(9),
          disk: self.disk,
        },
        place: { folder, indexFolder },
        mode: 'Block',
        limits: { ...defaultLimits, ...limits },
        onDoubt: (why) => self.doubts.push(why),
      }),
  };
  return self;
}

export const writer = { name: 'agent', generation: '1', sourceId: 'id', sizeBytes: 10 * granuleBytes, force: false };

/** A granule's content of one repeated byte; 0 = zeros. */
export function dataOf(values: Record<number, number>, sizeBytes: number): Data[] {
  return Object.entries(values).map(([key, value]) => {
    const first = Number(key);
    const bytes = Buffer.alloc(granuleLength(first, sizeBytes), value);
    const zero = isZero(bytes);
    return {
      runs: [{ object: 0, first, count: 1, zero, tailBytes: bytes.length }],
      hashes: zero ? Buffer.alloc(0) : Buffer.from(granuleHash(bytes)),
      compression: 0,
      rawBytes: zero ? 0 : bytes.length,
      payload: zero ? Buffer.alloc(0) : bytes,
    };
  });
}

export function commitOf(sequence: number, sizeBytes: number, change: Partial<Commit> = {}): Commit {
  return {
    sequence,
    point: true,
    sourceUs: sequence * 1000,
    consistency: 'crash',
    sizeBytes,
    verified: false,
    mismatchedGranules: 0,
    startedUs: 0,
    sentBytes: 0,
    groupCut: '',
    ...change,
  };
}

export async function put(
  replica: Replica,
  session: ReplicaSession,
  values: Record<number, number>,
  sizeBytes: number,
  change: Partial<Commit> = {},
): Promise<CommitRecord> {
  for (const data of dataOf(values, sizeBytes)) await replica.data(session, data);
  return replica.commit(session, commitOf(replica.head.sequence + 1, sizeBytes, change));
}

export function imageOf(values: Record<number, number>, sizeBytes: number): Buffer {
  const image = Buffer.alloc(sizeBytes);
  for (let i = 0; i < granuleCount(sizeBytes); i++) {
    const from = i * granuleBytes;
    image.fill(values[i] ?? 0, from, from + granuleLength(i, sizeBytes));
  }
  return image;
}

/** The point's bytes, recovered with every byte read again. */
export async function recovered(rig: Rig, replica: Replica, sequence: number): Promise<Buffer> {
  const point = replica.points.find((candidate) => candidate.sequence === sequence);
  if (!point) throw new Error(`point ${sequence} is not listed`);
  const path = `/copies/${sequence}`;
  await replica.recover(point, path, { verify: true, signal: none, progress: () => undefined });
  const bytes = rig.sim.peek(path);
  rig.sim.unlink(path);
  return bytes;
}
