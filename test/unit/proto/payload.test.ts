import t from 'tap';
import { granuleBytes, granuleHash } from '../../../proto/granule.ts';
import { packPayload, unpack, type CompressionChoice } from '../../../proto/payload.ts';
import type { Data } from '../../../proto/wire.ts';

/** The ends of two files and a hole in one message: pieces of less than a granule, one behind the other. */
async function endsOfFiles(choice: CompressionChoice): Promise<{ data: Data; raw: Buffer }> {
  const pieces = [
    { object: 7, bytes: Buffer.alloc(granuleBytes, 1), first: 3, isLast: false },
    { object: 7, bytes: Buffer.alloc(1000, 2), first: 4, isLast: true },
    { object: 9, bytes: Buffer.alloc(1, 3), first: 0, isLast: true },
  ];
  const raw = Buffer.concat(pieces.map(({ bytes }) => bytes));
  const data = {
    runs: [
      { object: 7, first: 3, count: 2, zero: false, tailBytes: 1000 },
      { object: 8, first: 0, count: 1, zero: true, tailBytes: 10 },
      { object: 9, first: 0, count: 1, zero: false, tailBytes: 1 },
    ],
    hashes: Buffer.concat(pieces.map(({ bytes }) => granuleHash(bytes))),
    rawBytes: raw.length,
    ...(await packPayload(raw, choice)),
  };
  return { data, raw };
}

for (const choice of ['none', 'lz4', 'zstd'] as const) {
  t.test(`${choice}: each granule is proven by its own hash, the short ones too`, async (t) => {
    const { data, raw } = await endsOfFiles(choice);
    t.ok(unpack(data).equals(raw));
    for (let at = 0; at < 3; at++) {
      const hashes = Buffer.from(data.hashes);
      hashes[at * 16] = (hashes[at * 16] ?? 0) ^ 1;
      const object = at < 2 ? 7 : 9;
      t.throws(() => unpack({ ...data, hashes }), { code: 'HashMismatch', message: new RegExp(`object ${object} `) });
    }
  });
}
