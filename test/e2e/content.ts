/** Contents of test volumes: seeded bytes, a writer that goes on meanwhile, and comparing. */
import { execFileSync, spawnSync } from 'node:child_process';
import { closeSync, constants, copyFileSync, existsSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import { promises as fs } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

/** mulberry32: small, seeded, good enough to choose offsets. 0 <= answer < 1. */
export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Bytes that no compression makes smaller. */
export function noise(length: number): Buffer {
  const bytes = Buffer.allocUnsafe(length);
  for (let at = 0; at < length; at += 65536) crypto.getRandomValues(bytes.subarray(at, Math.min(length, at + 65536)));
  return bytes;
}

/** A file of `sizeBytes` of noise. */
export function writeNoise(path: string, sizeBytes: number): void {
  const file = openSync(path, 'w');
  const piece = 16 << 20;
  for (let at = 0; at < sizeBytes; at += piece) writeSync(file, noise(Math.min(piece, sizeBytes - at)), 0, null, at);
  closeSync(file);
}

/** A sparse file of `sizeBytes` with noise at some offsets. */
export function writeSparse(path: string, sizeBytes: number, offsets: number[], length = 65536): void {
  const file = openSync(path, 'w');
  ftruncateSync(file, sizeBytes);
  for (const offset of offsets) writeSync(file, noise(Math.min(length, sizeBytes - offset)), 0, null, offset);
  closeSync(file);
}

/** Whether the two files hold the same bytes. */
export function sameBytes(one: string, other: string): boolean {
  const { status, error } = spawnSync('cmp', ['--silent', one, other]);
  if (error) throw error;
  return status === 0;
}

/** Numbers of the blocks of 4096 bytes in which they differ, the first of them; empty = none. */
export function differingBlocks(one: string, other: string): string {
  const numbers = `cmp -l '${one}' '${other}' | awk '{ print int(($1 - 1) / 4096) }' | uniq | head -50`;
  return execFileSync('sh', ['-c', numbers], { encoding: 'utf8' }).trim().replaceAll('\n', ' ');
}

export function copyKeeping(from: string, to: string): void {
  copyFileSync(from, to, constants.COPYFILE_FICLONE);
}

export function readAt(path: string, offset: number, length: number): Buffer {
  const file = openSync(path, 'r');
  const bytes = Buffer.alloc(length);
  readSync(file, bytes, 0, length, offset);
  closeSync(file);
  return bytes;
}

export interface Writer {
  /** Ends it; the file is as it will stay when this returns. */
  stop(): Promise<void>;
  /** The count at the file's start that was written, at the latest, before this instant (ms since the epoch). */
  countBefore(ms: number): number;
  readonly writes: number;
}

/**
 * Writes at seeded places of an image, in bursts with pauses in which a quiet interval fits. Each write is preceded by a
 * growing count in the first 8 bytes of the file, so that a copy tells how far it goes.
 */
export async function startWriter(path: string, next: () => number, pauseMs = 700): Promise<Writer> {
  const file = await fs.open(path, 'r+');
  const { size } = await file.stat();
  const log: { count: number; ms: number }[] = [];
  let stopped = false;
  let count = 0;
  const one = async (): Promise<void> => {
    const header = Buffer.alloc(8);
    header.writeBigUInt64LE(BigInt(++count));
    await file.write(header, 0, 8, 0);
    log.push({ count, ms: Date.now() });
    const length = 512 * (1 + Math.floor(next() * 256));
    const offset = 4096 + Math.floor(next() * Math.max(1, size - length - 4096));
    await file.write(noise(length), 0, length, offset);
  };
  const work = (async () => {
    while (!stopped) {
      for (let left = 1 + Math.floor(next() * 20); left > 0 && !stopped; left--) await one();
      await sleep(pauseMs * (0.5 + next()));
    }
    await file.close();
  })();
  return {
    async stop() {
      stopped = true;
      await work;
    },
    countBefore: (ms) => log.findLast((entry) => entry.ms < ms)?.count ?? 0,
    get writes() {
      return count;
    },
  };
}

/** The count that a copy holds. */
export function countIn(path: string): number {
  return existsSync(path) ? Number(readAt(path, 0, 8).readBigUInt64LE()) : -1;
}
