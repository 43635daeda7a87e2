import fc from 'fast-check';
import t from 'tap';
import { granuleBytes, granuleHash } from '../../../proto/granule.ts';
import { decode, encode, encodeParts, type MirrorRequest } from '../../../proto/wire.ts';

const run = fc.record({
  object: fc.nat(),
  first: fc.nat({ max: 1e9 }),
  count: fc.constant(1),
  zero: fc.boolean(),
  tailBytes: fc.integer({ min: 1, max: granuleBytes }),
});

t.test('a message in parts is the message, whatever its length', async (t) => {
  fc.assert(
    fc.property(fc.nat(), fc.array(run, { maxLength: 3 }), (number, runs) => {
      const contents = runs.filter(({ zero }) => !zero).map(({ tailBytes }, i) => Buffer.alloc(tailBytes, i + 1));
      const payload = Buffer.concat(contents);
      const hashes = Buffer.concat(contents.map((bytes) => granuleHash(bytes)));
      const sent: MirrorRequest = {
        number,
        data: { runs, hashes, compression: 0, rawBytes: payload.length, payload },
      };
      const parts = encodeParts('MirrorRequest', sent);
      const frame = Buffer.alloc(parts.length + 10);
      const copied = parts.copy(frame, 7);
      const got = decode('MirrorRequest', frame.subarray(7, 7 + copied));
      return copied === parts.byteLength && encode('MirrorRequest', got).equals(encode('MirrorRequest', sent));
    }),
  );
  const plain = encodeParts('MirrorRequest', { number: 7, verify: {} });
  t.equal(plain.length, encode('MirrorRequest', { number: 7, verify: {} }).length);
});
