import t from 'tap';
import { parseFanEvents } from '../../../../agent/capture/fanevents.ts';

/** struct fanotify_event_metadata and its records, as linux/fanotify.h has them. */
function event(mask: bigint, ...infos: Buffer[]): Buffer {
  const metadata = Buffer.alloc(24);
  metadata.writeUInt32LE(24 + infos.reduce((sum, { length }) => sum + length, 0), 0);
  metadata.writeUInt8(3, 4);
  metadata.writeUInt16LE(24, 6);
  metadata.writeBigUInt64LE(mask, 8);
  metadata.writeInt32LE(-1, 16);
  return Buffer.concat([metadata, ...infos]);
}

const handle = Buffer.concat([
  Buffer.from([8, 0, 0, 0, 1, 0, 0, 0]),
  Buffer.from('\x00\x01\x02\x03\x04\x05\x06\xff', 'latin1'),
]);

function info(type: number, name: string, body = handle): Buffer {
  const rest = Buffer.concat([Buffer.alloc(8, 0xaa), body, Buffer.from(`${name}\0`, 'latin1')]);
  const length = Math.ceil((4 + rest.length) / 4) * 4;
  const header = Buffer.from([type, 0, length & 0xff, length >> 8]);
  return Buffer.concat([header, rest, Buffer.alloc(length - 4 - rest.length)]);
}

t.test('directories by handle and names by their bytes', async (t) => {
  const names = ['a', 'line\n', 'not \xff UTF-8', 'n'.repeat(255), '.'];
  const read = Buffer.concat(names.map((name) => event(0x100n, info(2, name))));
  const { events, overflowed, torn } = parseFanEvents(read);
  t.same([overflowed, torn], [false, false]);
  t.same(
    events.map(({ name }) => name.toString('latin1')),
    names,
  );
  t.ok(events.every((one) => one.handle === handle.toString('latin1')));
});

t.test('an overflow is told, records of other kinds are passed over', async (t) => {
  const { events, overflowed, torn } = parseFanEvents(
    Buffer.concat([event(0x4000n), event(2n, info(1, ''), info(2, 'x'), info(99, 'what may come')), event(4n)]),
  );
  t.same([overflowed, torn], [true, false]);
  t.same(
    events.map(({ name }) => name.toString()),
    ['x'],
  );
});

t.test('what cannot be is never read beyond, and is told', async (t) => {
  const good = event(2n, info(2, 'good'));
  const spoilt: Record<string, (bytes: Buffer) => Buffer> = {
    'cut off': (bytes) => bytes.subarray(0, bytes.length - 3),
    'cut off in the header': (bytes) => bytes.subarray(0, 10),
    'length 0': (bytes) => (bytes.writeUInt32LE(0, 0), bytes),
    'length too large': (bytes) => (bytes.writeUInt32LE(0xffffffff, 0), bytes),
    'another version': (bytes) => (bytes.writeUInt8(4, 4), bytes),
    'header too large': (bytes) => (bytes.writeUInt16LE(0xffff, 6), bytes),
    'record of length 0': (bytes) => (bytes.writeUInt16LE(0, 26), bytes),
    'record too large': (bytes) => (bytes.writeUInt16LE(0xffff, 26), bytes),
    'handle too large': (bytes) => (bytes.writeUInt32LE(0xfffffff0, 36), bytes),
    'no end of the name': (bytes) => bytes.fill('x', 52),
  };
  for (const [what, spoil] of Object.entries(spoilt)) {
    const { events, torn } = parseFanEvents(Buffer.concat([good, spoil(Buffer.from(good))]));
    t.equal(torn, true, what);
    t.equal(events.length, 1, what);
  }
});
