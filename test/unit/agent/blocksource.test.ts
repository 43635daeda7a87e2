import t, { type Test } from 'tap';
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
import type { Clock } from '../../../proto/effects.ts';
import { granuleBytes } from '../../../proto/granule.ts';
import { systemClock } from '../../../proto/system.ts';
import { attach, sync } from '../../conformance/capture.ts';
import { ModelReplica } from '../../conformance/modelreplica.ts';
import { noise } from '../../e2e/content.ts';

const sizeBytes = 64 * granuleBytes;
const never = new AbortController().signal;

/** A volume in memory whose every write is told at once. */
class Volume {
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

function opener(t: Test, volume: Volume, options: Partial<BlockSourceOptions> = {}): () => BlockSource {
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

async function progress(source: BlockSource, replica: ModelReplica): Promise<void> {
  const sequence = replica.sequence + 1;
  await source.prepare(sequence);
  replica.commit(sequence, source.commitSizeBytes(), false);
  await source.committed(sequence, false, replica.welcome().digest);
}

t.test('what was read in a cut and not yet sent stays in the map when work so far is committed', async (t) => {
  const volume = new Volume();
  const open = opener(t, volume);
  const replica = new ModelReplica('Block');
  const source = open();
  await attach(source, replica);
  t.equal(await sync(source, replica), undefined);
  for (const granule of [3, 20, 40]) volume.write(granule);
  const cut = await source.cut(never);
  for await (const piece of cut.pieces(never)) {
    replica.take(piece);
    if (!source.isIndivisible) await progress(source, replica);
    break; // the line breaks
  }
  await source.close();

  const next = open();
  await attach(next, replica);
  t.equal(await sync(next, replica), undefined);
  t.ok(replica.bytes(0, sizeBytes).equals(volume.bytes), 'nothing is missing');
});

t.test('another device at the path: what is compared then is that one, not the one that was open', async (t) => {
  const volume = new Volume();
  const source = opener(t, volume)();
  const replica = new ModelReplica('Block');
  await attach(source, replica);
  volume.onRead = () => {
    volume.onRead = () => undefined;
    volume.replaceAt({ bytes: noise(sizeBytes) });
  };
  for (let tries = 0; tries < 3 && (await sync(source, replica)) !== undefined; tries++);
  t.ok(replica.isPoint);
  t.ok(replica.bytes(0, sizeBytes).equals(volume.bytes), 'the point is the device that stands at the path');
});

t.test('a write that landed while the volume was read and is told after it is no quiet interval', async (t) => {
  const volume = new Volume();
  const source = opener(t, volume, { consistency: 'crash' })();
  const replica = new ModelReplica('Block');
  await attach(source, replica);
  t.equal(await sync(source, replica), undefined);
  volume.write(3);
  volume.write(40);
  volume.onRead = () => {
    volume.onRead = () => undefined;
    volume.writeToldLate(3, 40);
  };
  const cut = await source.cut(never);
  for await (const piece of cut.pieces(never)) replica.take(piece);
  t.match(await cut.broken(), { reason: 'busy', message: /written to while it was read/ });
  await cut.release();
  t.equal(await sync(source, replica), undefined);
  t.ok(replica.bytes(0, sizeBytes).equals(volume.bytes));
});

t.test('reads keep to their rate, but for what a cut must read at once', async (t) => {
  const rate = 16 * granuleBytes;
  let nowMs = 1000;
  const clock: Clock = {
    nowMs: () => nowMs,
    monotonicMs: () => nowMs,
    sleep: async (ms) => void (nowMs += ms),
  };
  const volume = new Volume();
  const source = opener(t, volume, { readBytesPerSecond: rate, clock })();
  const replica = new ModelReplica('Block');
  await attach(source, replica);
  const startMs = nowMs;
  volume.onRead = () => {
    const mostBytes = rate * (1 + (nowMs - startMs) / 1000) + chunkBytes;
    t.ok(source.counters.readBytes <= mostBytes, `${source.counters.readBytes} read after ${nowMs - startMs} ms`);
  };
  t.equal(await sync(source, replica), undefined);
  t.equal(source.counters.readBytes, sizeBytes);
  t.ok(nowMs - startMs >= ((sizeBytes - rate) / rate) * 1000, `${nowMs - startMs} ms`);
});
