import t from 'tap';
import { BufferPool, chunkBytes, scan, type ScanOptions } from '../../../agent/blockscan.ts';
import { Pace } from '../../../proto/pace.ts';
import { systemClock } from '../../../proto/system.ts';

const pool = (count: number) => new BufferPool(Array.from({ length: count }, () => Buffer.alloc(chunkBytes)));

function options(over: Partial<ScanOptions>): ScanOptions {
  return {
    readable: {
      read: async (buffer: Uint8Array) => buffer.fill(7).length,
      nextData: async (position: number) => position,
      nextHole: async () => Infinity,
    } as unknown as ScanOptions['readable'],
    sizeBytes: 64 * chunkBytes,
    known: undefined,
    blank: false,
    whole: false,
    pool: pool(8),
    pace: new Pace(systemClock, 0),
    counters: {
      readBytes: 0,
      skippedSameBytes: 0,
      skippedZeroBytes: 0,
      fullScans: 0,
      fullScanReason: '',
      lostEvents: 0,
    },
    progress: () => undefined,
    signal: new AbortController().signal,
    ...over,
  };
}

t.test('who waits for a buffer and is aborted leaves the line; the buffer goes to the next one', async (t) => {
  const one = pool(1);
  const never = new AbortController().signal;
  const buffer = await one.take(never);
  const gone = new AbortController();
  const first = one.take(gone.signal);
  const second = one.take(never);
  gone.abort(new Error('gone'));
  await t.rejects(first, { message: 'gone' });
  one.give(buffer);
  t.equal(await second, buffer);
});

t.test('a scan is left at once, also while it waits for buffers that others hold', async (t) => {
  const shared = pool(2);
  const never = new AbortController().signal;
  const pieces = scan(options({ pool: shared }));
  const { value } = await pieces.next();
  t.equal(value?.kind, 'content');
  await pieces.return(undefined);
  if (value?.kind === 'content') value.release();
  await Promise.all([shared.take(never), shared.take(never)]);
});

t.test('a scan that is slowed down on purpose holds no buffers while it waits', async (t) => {
  const shared = pool(2);
  const never = new AbortController();
  const pieces = scan(options({ pool: shared, pace: new Pace(systemClock, 1), signal: never.signal }));
  const next = pieces.next();
  await Promise.all([shared.take(never.signal), shared.take(never.signal)]);
  never.abort(new Error('stopped'));
  await t.rejects(next, { message: 'stopped' });
});
