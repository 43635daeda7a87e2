import t from 'tap';
import assert from 'node:assert/strict';
import fc from 'fast-check';
import { parseEventLayout, parsePage, parsePageLayout, type Completion } from '../../../../agent/capture/ringpage.ts';

/** As the kernel 6.18 says it. */
const headerPage = `	field: u64 timestamp;	offset:0;	size:8;	signed:0;
	field: local_t commit;	offset:8;	size:8;	signed:1;
	field: int overwrite;	offset:8;	size:1;	signed:1;
	field: char data;	offset:16;	size:4080;	signed:0;`;
const format = `name: block_rq_complete
ID: 2107
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:dev_t dev;	offset:8;	size:4;	signed:0;
	field:sector_t sector;	offset:16;	size:8;	signed:0;
	field:unsigned int nr_sector;	offset:24;	size:4;	signed:0;
	field:int error;	offset:28;	size:4;	signed:1;
	field:unsigned short ioprio;	offset:32;	size:2;	signed:0;
	field:char rwbs[10];	offset:34;	size:10;	signed:0;
	field:__data_loc char[] cmd;	offset:44;	size:4;	signed:0;

print fmt: "%d,%d", ((unsigned int) ((REC->dev) >> 20))`;
const page = parsePageLayout(headerPage);
const layout = parseEventLayout(format);
const layouts = new Map([[layout.id, layout]]);

/** Read from a loop device's ring: two writes of 4 KiB, write-zeroes of 64 KiB at 2 MiB; and a discard of 64 KiB at 1 MiB. */
const captured = [
  'BnSJ254KAACoAAAAAAAAAA0AAAA7CBAADgAAAAAAcAAAAAAAAAAAAAAAAAAIAAAAAAAAAARAV1MAAAAAAAAAADAAAQAAAAAAbYQZADsIEAAOAAAAAABwAAAAAAAIAAAAAAAAAAgAAAAAAAAABEBXUwAAAAAAAAAAMAABAAAAAADtZeIdOwgQAA4AAAAAAHAAAAAAAAAQAAAAAAAAgAAAAAAAAAAEQE5TAAAAAAAAAAAwAAEAAAAAAA==',
  'r28G3J4KAAA4AAAAAAAAAA0AAAA7CBAAFgAAAAAAcAAAAAAAAAgAAAAAAACAAAAAAAAAAARARFMAAAAAAAAAADAAAQAAAAAA',
].map((text) => Buffer.from(text, 'base64'));

function parsed(bytes: Buffer): { events: Completion[]; lost: boolean; broken: string | undefined } {
  const events: Completion[] = [];
  return { ...parsePage(bytes, page, layouts, (event) => events.push(event)), events };
}

t.test('pages as a kernel wrote them', async (t) => {
  const dev = 7 * 2 ** 20;
  const event = 2107;
  t.same(captured.map(parsed), [
    {
      lost: false,
      broken: undefined,
      events: [
        { event, dev, sector: 0, sectors: 8 },
        { event, dev, sector: 8, sectors: 8 },
        { event, dev, sector: 4096, sectors: 128 },
      ],
    },
    { lost: false, broken: undefined, events: [{ event, dev, sector: 2048, sectors: 128 }] },
  ]);
});

t.test('a format that lacks a field is told by its name', async (t) => {
  t.throws(() => parseEventLayout(format.replace('nr_sector', 'many')), /block_rq_complete has no field nr_sector/);
  t.throws(() => parseEventLayout(format.replace('ID: 2107', '')), /has no ID/);
  t.throws(() => parsePageLayout(''), /header_page has no field commit/);
});

t.test(
  'a format with a field where no page reaches is refused, one beyond its event makes the page broken',
  async (t) => {
    const dev = 'dev;	offset:8;';
    t.throws(
      () => parseEventLayout(format.replace(dev, 'dev;	offset:999999999999999999999;')),
      /has its field dev beyond any page/,
    );
    const far = parseEventLayout(format.replace(dev, 'dev;	offset:4000;'));
    const { broken } = parsePage(captured[0] ?? assert.fail(), page, new Map([[far.id, far]]), () =>
      t.fail('no event has it'),
    );
    t.equal(broken, 'an event is shorter than its format');
    const wide = parsePageLayout(headerPage.replace('commit;	offset:8;', 'commit;	offset:60000;'));
    t.match(
      parsePage(captured[0] ?? assert.fail(), wide, layouts, () => t.fail('no length, no event')).broken,
      /^a page of/,
    );
  },
);

/** A page made by the rules of include/linux/ring_buffer.h. */
type Entry =
  | { kind: 'event'; rwbs: string; sector: number; sectors: number; long: boolean; id: number }
  | { kind: 'time' | 'stamp' | 'gone' };

function made(entries: Entry[], options: { lost?: boolean; padded?: boolean } = {}): Buffer {
  const parts: Buffer[] = [];
  const word = (value: number): Buffer => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value);
    return bytes;
  };
  for (const entry of entries) {
    if (entry.kind === 'time') parts.push(word(30 | (5 << 5)), word(7));
    else if (entry.kind === 'stamp') parts.push(word(31 | (5 << 5)), word(7));
    else if (entry.kind === 'gone') parts.push(word(29 | (1 << 5)), word(12), Buffer.alloc(8));
    else if (entry.kind === 'event') {
      const payload = Buffer.alloc(48);
      payload.writeUInt16LE(entry.id);
      payload.writeUInt32LE(7 * 2 ** 20, 8);
      payload.writeBigUInt64LE(BigInt(entry.sector), 16);
      payload.writeUInt32LE(entry.sectors, 24);
      payload.write(entry.rwbs, 34, 'latin1');
      if (entry.long) parts.push(word(0), word(payload.length + 4), payload);
      else parts.push(word(payload.length / 4), payload);
    }
  }
  if (options.padded) parts.push(word(29), Buffer.alloc(40));
  const data = Buffer.concat(parts);
  const header = Buffer.alloc(16);
  header.writeUInt32LE((data.length | (options.lost ? 2 ** 31 : 0)) >>> 0, 8);
  return Buffer.concat([header, data]);
}

const entry: fc.Arbitrary<Entry> = fc.oneof(
  { weight: 1, arbitrary: fc.constantFrom<Entry>({ kind: 'time' }, { kind: 'stamp' }, { kind: 'gone' }) },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant('event' as const),
      rwbs: fc.constantFrom('W', 'WS', 'DS', 'NS', 'FWS', 'R', 'RA', 'F'),
      sector: fc.maxSafeNat(),
      sectors: fc.oneof(fc.constant(0), fc.nat(2 ** 31)),
      long: fc.boolean(),
      id: fc.constantFrom(2107, 2107, 5),
    }),
  },
);

t.test('every event of ours that writes is told once, in order', async () => {
  fc.assert(
    fc.property(fc.array(entry, { maxLength: 40 }), fc.boolean(), fc.boolean(), (entries, lost, padded) => {
      const result = parsed(made(entries, { lost, padded }));
      const expected = entries.flatMap((one) =>
        one.kind === 'event' && one.id === 2107 && !one.rwbs.startsWith('R') && one.sectors > 0
          ? [{ event: 2107, dev: 7 * 2 ** 20, sector: one.sector, sectors: one.sectors }]
          : [],
      );
      assert.deepEqual(result, { lost, broken: undefined, events: expected });
    }),
    { numRuns: 100 },
  );
});

t.test('any bytes at all: an answer, never an exception, and never an event that is not whole', async (t) => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), fc.nat(400), (bytes, commit) => {
      const given = Buffer.from(bytes);
      if (given.length >= 12) given.writeUInt32LE(commit, 8);
      for (const { sectors } of parsed(given).events) assert(sectors > 0);
    }),
    { numRuns: 500 },
  );
  const whole = made([{ kind: 'event', rwbs: 'W', sector: 1, sectors: 8, long: false, id: 2107 }]);
  for (let length = 0; length < whole.length; length++) {
    const { events, broken } = parsed(whole.subarray(0, length));
    t.ok(events.length === 0 && broken !== undefined, `${length} bytes of it`);
  }
});

t.test('a padding that goes beyond its page may have hidden events: the page is broken', async (t) => {
  const bytes = made([{ kind: 'gone' }]);
  t.equal(parsed(bytes).broken, undefined);
  const padding = bytes.indexOf(Buffer.from([29 | (1 << 5), 0, 0, 0]));
  bytes.writeUInt32LE(4000, padding + 4);
  t.match(parsed(bytes).broken, /padding/);
});
