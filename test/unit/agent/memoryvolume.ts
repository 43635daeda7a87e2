/** A block volume in memory, and sources that mirror it with the real dirty map. */
import type { Test } from 'tap';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BlockSource, type BlockSourceOptions } from '../../../agent/blocksource.ts';
import { BufferPool, chunkBytes } from '../../../agent/blockscan.ts';
import type { BlockCapture } from '../../../agent/capture/block.ts';
import { DirtyMap } from '../../../agent/capture/dirtymap.ts';
import { mapFile } from '../../../agent/capture/mapfile.ts';
import { Tracking } from '../../../agent/capture/tracking.ts';
import type { BlockDevice } from '../../../agent/device.ts';
import { Refusal } from '../../../agent/refusal.ts';
import { granuleBytes } from '../../../proto/granule.ts';
import { systemClock } from '../../../proto/system.ts';
import { noise } from '../../e2e/content.ts';

export const sizeBytes = 64 * granuleBytes;

/** A volume in memory whose every write is told at once. */
export class Volume {
  bytes = noise(sizeBytes);
  /** Another one may come to stand at the path; who has opened it goes on with the one of before. */
  id = 'one';
  writes = 0;
  /** Called by the next reads. */
  onRead: () => void = () => undefined;
  readonly #captures = new Set<{ marks: BlockCapture['marks'] }>();

  write(granule: number): void {
    noise(granuleBytes).copy(this.bytes, granule * granuleBytes);
    this.writes++;
    for (const { marks } of this.#captures) marks(granule * granuleBytes, granuleBytes);
  }

  /** The bytes are there, and the kernel tells of it a moment later. */
  writeToldLate(...granules: number[]): void {
    for (const granule of granules) noise(granuleBytes).copy(this.bytes, granule * granuleBytes);
    setTimeout(() => {
      this.writes++;
      for (const granule of granules)
        for (const { marks } of this.#captures) marks(granule * granuleBytes, granuleBytes);
    }, 3);
  }

  replaceAt(path: { bytes: Buffer }): void {
    this.bytes = path.bytes;
    this.id += "'";
  }

  capture(): BlockCapture {
    let { id } = this;
    const capture: BlockCapture = {
      method: 'ftrace',
      reason: 'a volume in memory tells all',
      lostEvents: 0,
      marks: () => undefined,
      onMarks: () => undefined,
      begin: async (state) => ({ proven: state === this.writes, reason: 'by the number of writes' }),
      drain: async () => {
        const doubt = id === this.id ? undefined : 'another device is behind the path';
        id = this.id;
        return { doubt, still: doubt === undefined ? String(this.writes) : undefined, busy: doubt ?? '' };
      },
      state: () => this.writes,
      kept: async () => undefined,
      close: async () => undefined,
    };
    this.#captures.add(capture);
    return capture;
  }

  device(): BlockDevice {
    let opened: Buffer | undefined;
    return {
      facts: async () => ({ sizeBytes, sourceId: 'volume' }),
      size: async () => sizeBytes,
      read: async (buffer, position) => {
        opened ??= this.bytes;
        const length = opened.copy(buffer, 0, position, position + buffer.length);
        this.onRead();
        return length;
      },
      nextData: async (position) => position,
      nextHole: async () => sizeBytes,
      stamp: async () => ({ stamp: undefined, reason: 'it has none' }),
      flush: async () => undefined,
      freeze: async () => ({ isAlone: () => true, thaw: async () => ({ held: true, freezeUs: 1 }) }),
      stopWriters: async () => new Refusal('unsupported', 'no pod uses it'),
      reflink: async () => 'it has no reflinks',
      rest: async () => void (opened = undefined),
    };
  }
}

export function opener(t: Test, volume: Volume, options: Partial<BlockSourceOptions> = {}): () => BlockSource {
  const folder = mkdtempSync(join(tmpdir(), 'blocksource-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return () =>
    new BlockSource({
      device: volume.device(),
      tracking: new Tracking({
        map: new DirtyMap(mapFile(join(folder, 'map'))),
        capture: volume.capture(),
        fallBack: () => volume.capture(),
        event: () => undefined,
      }),
      pool: new BufferPool(Array.from({ length: 16 }, () => Buffer.alloc(chunkBytes))),
      clock: systemClock,
      consistency: null,
      maxFreezeMs: 10_000,
      readBytesPerSecond: 0,
      generation: '1',
      ...options,
    });
}
