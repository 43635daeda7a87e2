import t, { type Test } from 'tap';
import { BufferPool, chunkBytes, Known, scan, wholeVolume, type ScanOptions } from '../../../agent/blockscan.ts';
import type { Readable } from '../../../agent/device.ts';
import type { Piece } from '../../../agent/source.ts';
import { granuleBytes, granuleCount, granuleHash, zeroHash } from '../../../proto/granule.ts';
import { Pace } from '../../../proto/pace.ts';
import { SimClock } from '../../sim/clock.ts';

const none = new AbortController().signal;

function readable(bytes: Buffer, holes = true): Readable {
  const next = (from: number, wanted: boolean): number => {
    let at = from;
    for (; at < bytes.length; at = (Math.floor(at / 4096) + 1) * 4096)
      if (bytes.subarray(at, at + 4096).some((byte) => byte !== 0) === wanted) break;
    return at;
  };
  return {
    read: async (buffer, position) => bytes.copy(buffer, 0, position, position + buffer.length),
    nextData: async (position) => {
      const at = holes ? next(position, true) : position;
      return at < bytes.length ? at : undefined;
    },
    nextHole: async (position) => (holes ? Math.min(bytes.length, next(position, false)) : bytes.length),
  };
}

function options(bytes: Buffer, change: Partial<ScanOptions> = {}): ScanOptions {
  return {
    readable: readable(bytes),
    sizeBytes: bytes.length,
    parts: wholeVolume(change.sizeBytes ?? bytes.length),
    known: undefined,
    blank: false,
    whole: false,
    offer: true,
    pool: new BufferPool(Array.from({ length: 6 }, () => Buffer.alloc(chunkBytes))),
    pace: new Pace(
      new SimClock().machine(0, () => 0),
      0,
    ),
    counters: {
      readBytes: 0,
      skippedSameBytes: 0,
      skippedZeroBytes: 0,
      fullScans: 0,
      fullScanReason: '',
      lostEvents: 0,
    },
    progress: () => undefined,
    signal: none,
    ...change,
  };
}

/** Applies the pieces to a volume and answers it; each piece's hashes are checked. */
async function applied(t: Test, onto: Buffer, given: ScanOptions): Promise<{ image: Buffer; pieces: Piece[] }> {
  const image = Buffer.alloc(given.sizeBytes);
  onto.copy(image);
  const pieces: Piece[] = [];
  for await (const piece of scan(given)) {
    pieces.push(piece);
    if (piece.kind === 'zeros') {
      const from = piece.first * granuleBytes;
      image.fill(0, from, from + (piece.count - 1) * granuleBytes + piece.tailBytes);
    } else if (piece.kind === 'content') {
      piece.bytes.copy(image, piece.first * granuleBytes);
      for (let at = 0; at < piece.bytes.length; at += granuleBytes) {
        const own = (at / granuleBytes) * 16;
        const sum = granuleHash(piece.bytes.subarray(at, at + granuleBytes));
        t.ok(sum.equals(piece.hashes.subarray(own, own + 16)));
      }
      piece.release();
    }
  }
  return { image, pieces };
}

function volume(sizeBytes: number, values: Record<number, number>): Buffer {
  const bytes = Buffer.alloc(sizeBytes);
  for (const [granule, value] of Object.entries(values)) {
    const from = Number(granule) * granuleBytes;
    bytes.fill(value, from, Math.min(sizeBytes, from + granuleBytes));
  }
  return bytes;
}

const size = 3 * chunkBytes + 5 * granuleBytes + 77;

t.test('one that gives nothing back keeps its own part of the buffers, and no more', async (t) => {
  const pool = new BufferPool(Array.from({ length: 12 }, () => Buffer.alloc(1)));
  const slow = [pool.share(), pool.share(), pool.share()];
  const want = (share: Pick<BufferPool, 'take'>, got: Buffer[], signal: AbortSignal): void => {
    share.take(signal).then(
      (buffer) => got.push(buffer),
      () => undefined,
    );
  };
  const times = (count: number, work: () => void): void => Array.from({ length: count }).forEach(work);
  const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
  const ending = new AbortController();
  const held: Buffer[][] = slow.map(() => []);
  times(6, () => slow.forEach((share, index) => want(share, held[index] ?? [], ending.signal)));
  await settled();
  t.same(
    held.map(({ length }) => length),
    [4, 4, 4],
    'each its part of three',
  );
  const quick = pool.share();
  const mine: Buffer[] = [];
  times(5, () => want(quick, mine, ending.signal));
  slow.forEach((share, index) => share.give(held[index]?.pop() as Buffer));
  await settled();
  t.equal(mine.length, 3, 'what comes back goes to who has least, up to its part of four');
  for (const buffer of mine.splice(0)) quick.give(buffer);
  await settled();
  t.equal(mine.length, 2, 'and again');
  ending.abort();
  await settled();
  const rest: Buffer[] = [];
  times(12, () => want(quick, rest, new AbortController().signal));
  for (const [index, got] of held.entries()) for (const buffer of got.splice(0)) slow[index]?.give(buffer);
  await settled();
  t.equal(rest.length + mine.length, 12, 'a single one may have all');
});

t.test('a blank replica gets the content and no zeros, whether holes can be told or not', async (t) => {
  const bytes = volume(size, { 0: 1, 17: 2, 18: 3, [granuleCount(size) - 1]: 4 });
  for (const holes of [true, false]) {
    const known = new Known(granuleCount(size), true);
    const given = options(bytes, { readable: readable(bytes, holes), known, blank: true });
    const { image, pieces } = await applied(t, Buffer.alloc(size), given);
    t.ok(image.equals(bytes));
    t.ok(pieces.every((piece) => piece.kind === 'content' && !piece.offer));
    t.same(await applied(t, Buffer.alloc(0), given).then(({ pieces }) => pieces), [], 'and nothing twice');
  }
});

t.test('an unknown replica is offered everything, and what it had where zeros are goes', async (t) => {
  const bytes = volume(size, { 3: 1, 40: 2 });
  const known = new Known(granuleCount(size), false);
  const { image, pieces } = await applied(t, Buffer.alloc(size, 9), options(bytes, { known, whole: true }));
  t.ok(image.equals(bytes));
  t.ok(pieces.every((piece) => piece.kind === 'zeros' || (piece.kind === 'content' && piece.offer)));
  t.ok(pieces.every((piece) => piece.kind !== 'nodes' && !piece.expectSame));
});

t.test('only what differs from what is known comes, without being offered', async (t) => {
  const known = new Known(granuleCount(size), true);
  const before = volume(size, { 0: 1, 17: 2, 30: 5 });
  await applied(t, Buffer.alloc(size), options(before, { known, blank: true }));
  const after = volume(size, { 0: 1, 17: 3, 31: 6 });
  const given = options(after, { known });
  const { image, pieces } = await applied(t, before, given);
  t.ok(image.equals(after));
  const content = pieces.flatMap((piece) => (piece.kind === 'content' ? [[piece.first, piece.offer]] : []));
  t.same(content, [
    [17, false],
    [31, false],
  ]);
  t.equal(given.counters.skippedSameBytes, granuleBytes);
});

t.test('a verify offers what is known too and says that it should be there', async (t) => {
  const known = new Known(granuleCount(size), true);
  const bytes = volume(size, { 0: 1, 17: 2 });
  await applied(t, Buffer.alloc(size), options(bytes, { known, blank: true }));
  const { pieces } = await applied(t, bytes, options(bytes, { known, whole: true }));
  t.ok(pieces.length > 0);
  t.ok(pieces.every((piece) => piece.kind !== 'nodes' && piece.expectSame));
});

t.test('growth: the last granule that was short comes again, new zeros do not', async (t) => {
  const known = new Known(granuleCount(granuleBytes + 10), true);
  const small = volume(granuleBytes + 10, { 0: 1, 1: 2 });
  await applied(t, Buffer.alloc(small.length), options(small, { known, blank: true }));
  const large = Buffer.concat([small, Buffer.alloc(3 * granuleBytes)]);
  known.resize(granuleCount(large.length));
  const { image, pieces } = await applied(t, small, options(large, { known }));
  t.ok(image.equals(large));
  t.same(
    pieces.map((piece) => piece.kind !== 'nodes' && piece.first),
    [1],
  );
});

t.test('a volume that became shorter while it is read reads as zeros there', async (t) => {
  const bytes = volume(size, { 0: 1 });
  const shorter = options(bytes.subarray(0, granuleBytes), {
    sizeBytes: size,
    known: new Known(granuleCount(size), false),
  });
  const { image } = await applied(t, Buffer.alloc(size, 7), shorter);
  t.ok(image.equals(bytes));
});

t.test('a read that fails ends the scan, is heard once, and every buffer comes back', async (t) => {
  const bytes = volume(size, { 0: 1, 16: 1, 32: 1, 48: 1 });
  const count = 6;
  const pool = new BufferPool(Array.from({ length: count }, () => Buffer.alloc(chunkBytes)));
  const inner = readable(bytes);
  const failing: Readable = {
    ...inner,
    read: async (buffer, position) => {
      if (position >= chunkBytes) throw new Error('EIO');
      return inner.read(buffer, position);
    },
  };
  const unheard: unknown[] = [];
  const hear = (reason: unknown): void => void unheard.push(reason);
  process.on('unhandledRejection', hear);
  const reading = (async () => {
    for await (const piece of scan(
      options(bytes, { readable: failing, pool, known: new Known(granuleCount(size), true) }),
    )) {
      // Whoever takes a piece may take its time: the reads behind it fail meanwhile.
      await new Promise((resolve) => setImmediate(resolve));
      if (piece.kind === 'content') piece.release();
    }
  })();
  await t.rejects(reading, /EIO/);
  await new Promise((resolve) => setImmediate(resolve));
  process.off('unhandledRejection', hear);
  t.same(unheard, []);
  const back = new Set(await Promise.all(Array.from({ length: count }, () => pool.take(none))));
  t.equal(back.size, count);
});

t.test('what is known: zeros, ranges, growth', async (t) => {
  const known = new Known(4, false);
  t.notOk(known.isZero(0, 1));
  known.setZero(1, 2);
  t.ok(known.isZero(1, 2));
  t.notOk(known.isZero(1, 3));
  known.resize(6);
  t.ok(known.isZero(4, 2), 'what is new is zeros at the replica too');
  t.ok(known.get(5).equals(zeroHash));
});
