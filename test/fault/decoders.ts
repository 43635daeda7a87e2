/**
 * Everything of ours that takes apart bytes or text which somebody else made, each with valid inputs to begin with and with
 * what must hold whatever comes: no error but the documented one, nothing read beyond its end, and what was taken comes out the
 * same when it is written and read again. (What people type: decodertexts.ts. HTTP bodies: test/e2e/fuzz.test.ts, by the description that the server gives.)
 */
import assert from 'node:assert/strict';
import fs from 'node:fs';
import { join } from 'node:path';
import { compareExtents } from '../../agent/capture/extentdiff.ts';
import { parseFanEvents } from '../../agent/capture/fanevents.ts';
import { formatHeader, parseHeader } from '../../agent/capture/mapfile.ts';
import { parseEventLayout, parsePage, parsePageLayout } from '../../agent/capture/ringpage.ts';
import { parseMountinfo, parseSuperblock, superblockBytes } from '../../agent/mounts.ts';
import { parseTargets } from '../../agent/mapping.ts';
import { decodeFrameMeta } from '../../master/replica/frame.ts';
import { Journal } from '../../master/replica/journal.ts';
import { seal, unseal } from '../../master/replica/note.ts';
import { ReplicationError } from '../../proto/errors.ts';
import { granuleBytes, granuleHash, hash } from '../../proto/granule.ts';
import { parseExtents } from '../../proto/libc.ts';
import { systemDisk } from '../../proto/system.ts';
import { decode, encode, nodeTypes, type Commit, type Messages, type Node } from '../../proto/wire.ts';
import { texts } from './decodertexts.ts';
import { refusal, type Target } from './fuzzing.ts';

/** @param folder for those that read files */
export function targets(folder: string): Target[] {
  return [...messages(), ...kernel(), ...disk(folder), ...texts(folder)];
}

// ---- the wire

const content = Buffer.alloc(granuleBytes + 100, 'content');
const halves = [content.subarray(0, granuleBytes), content.subarray(granuleBytes)];
const data = {
  runs: [
    { object: 3, first: 7, count: 2, zero: false, tailBytes: 100 },
    { object: 3, first: 12, count: 9, zero: true, tailBytes: granuleBytes },
  ],
  hashes: Buffer.concat(halves.map((half) => granuleHash(half))),
  compression: 2,
  rawBytes: content.length,
  payload: Buffer.from('compressed'),
};
const node: Node = {
  slot: 5,
  type: nodeTypes.file,
  mode: 0o4755,
  uid: 1000,
  gid: 0xffffffff,
  mtimeSeconds: 1_700_000_000,
  mtimeNanoseconds: 999_999_999,
  sizeBytes: content.length,
  target: Buffer.alloc(0),
  deviceMajor: 0,
  deviceMinor: 0,
  xattrs: [{ name: Buffer.from('user.a'), value: Buffer.from([0, 1, 2]) }],
  names: [{ parent: 0, name: Buffer.from('line\n\xff', 'latin1') }],
  contentRoot: hash(content),
};
const commit: Commit = {
  sequence: 9,
  point: true,
  sourceUs: 1_700_000_000_000_000,
  consistency: 'crash',
  sizeBytes: 2 ** 40,
  verified: false,
  mismatchedGranules: 0,
  startedUs: 1_700_000_000_000_000,
  sentBytes: 77,
  groupCut: 'cut-1',
};
const journalCommit = { ...commit, digest: hash(content), committedUs: 1, sourceId: 'boot/dev', generation: '3' };
const trouble = { reason: 'NotFrozen', message: 'why', stops: false };

/** Kinds of which every message is a valid one to begin with. */
const samples: { [K in keyof Messages]?: unknown[] } = {
  JoinRequest: [{ name: 'node-a', token: 'secret', csrDer: Buffer.from('der'), agentVersion: '1', machineId: 'm' }],
  RenewRequest: [{ csrDer: Buffer.from('der') }],
  JoinReply: [{ certificateDer: Buffer.from('a'), caDer: Buffer.from('b'), notAfterUs: 1 }],
  AgentMessage: [
    { hello: { protocolMin: 1, protocolMax: 1, agentVersion: '1', bootId: 'b', kernel: '6.1' } },
    { report: { replicationUid: 'u', phase: 'Live', troubles: [trouble], readBytes: 5 } },
    { event: { code: 'CutWay', level: 'INFO', message: 'm' } },
    { inventory: { volumes: [{ path: '/dev/sda', kind: 'disk', sizeBytes: 5 }] } },
  ],
  MasterMessage: [
    { look: { path: '/srv' } },
    { assignments: { items: [{ replicationUid: 'u', path: '/srv', include: ['a'] }], known: ['u'] } },
    { pong: { number: 1, agentUs: 2, masterReceivedUs: 3, masterSentUs: 4 } },
  ],
  MirrorRequest: [
    { number: 1, hello: { protocol: 1, replicationUid: 'u', volumeMode: 'Block', sizeBytes: 10, sourceId: 's' } },
    { number: 2, offer: { object: 0, first: 4, hashes: data.hashes } },
    { number: 3, data },
    { number: 4, nodes: { nodes: [node] } },
    { number: 5, commit },
    { number: 6, group: { cut: 'c', step: 'held', message: '' } },
  ],
  MirrorReply: [
    { want: { number: 2, bitmap: Buffer.from([3]) } },
    { nodes: { nodes: [node] } },
    { refusal: { code: 'TargetFull', message: 'no room' } },
    { restore: { protocol: 1, uid: 'r' } },
  ],
  SnapshotRequest: [{ replicationUid: 'u', action: 'take', name: 'cdmr-1', keep: ['cdmr-2'] }],
  SnapshotReply: [
    { names: ['cdmr-1'], path: '/dev/x', handle: 'h', address: 'a:1', caPem: Buffer.from('pem'), token: 't' },
  ],
  Data: [data],
  Nodes: [{ nodes: [node] }],
  Node: [node],
  JournalCommit: [journalCommit],
};

function messages(): Target[] {
  return Object.entries(samples).map(([name, values]) => {
    const kind = name as keyof Messages;
    return {
      name: `message ${kind}`,
      seeds: values.map((value) => encode(kind, value as never)),
      decode(bytes) {
        let first: Messages[typeof kind];
        try {
          first = decode(kind, bytes);
        } catch (error) {
          refusal(error, ReplicationError);
          assert.equal((error as ReplicationError).code, 'BadMessage');
          return;
        }
        assert.deepEqual(decode(kind, encode(kind, first as never)), first, 'what was taken comes out the same');
      },
    };
  });
}

// ---- what the kernel says

const eventFormat = `name: block_rq_complete
ID: 2107
	field:dev_t dev;	offset:8;	size:4;	signed:0;
	field:sector_t sector;	offset:16;	size:8;	signed:0;
	field:unsigned int nr_sector;	offset:24;	size:4;	signed:0;
	field:char rwbs[10];	offset:34;	size:10;	signed:0;
`;
const pageFormat = `	field: u64 timestamp;	offset:0;	size:8;	signed:0;
	field: local_t commit;	offset:8;	size:8;	signed:1;
	field: char data;	offset:16;	size:4080;	signed:0;
`;

function ringPage(): Buffer {
  const event = Buffer.alloc(44);
  event.writeUInt16LE(2107, 0);
  event.writeUInt32LE((7 << 20) | 1, 8);
  event.writeBigUInt64LE(4096n, 16);
  event.writeUInt32LE(8, 24);
  event.write('WS', 34);
  const words = [11 | (9 << 5), event, 30 | (5 << 5), 7, 29 | (1 << 5), 8, 0, 0, 48, event];
  const body = Buffer.concat(
    words.map((word) => (Buffer.isBuffer(word) ? word : Buffer.from(Uint32Array.of(word).buffer))),
  );
  const header = Buffer.alloc(16);
  header.writeBigUInt64LE(12_345n, 0);
  header.writeUInt32LE(body.length, 8);
  return Buffer.concat([header, body]);
}

function fanEvent(): Buffer {
  const record = Buffer.concat([
    Buffer.alloc(8, 0xaa),
    Buffer.from([8, 0, 0, 0, 1, 0, 0, 0]),
    Buffer.from('handle:)name\0'),
  ]);
  const info = Buffer.concat([Buffer.from([2, 0, record.length + 4, 0]), record]);
  const metadata = Buffer.alloc(24);
  metadata.writeUInt32LE(24 + info.length, 0);
  metadata.writeUInt8(3, 4);
  metadata.writeUInt16LE(24, 6);
  metadata.writeBigUInt64LE(0x100n, 8);
  return Buffer.concat([metadata, info]);
}

function extents(...list: [logical: number, physical: number, length: number, flags: number][]): Buffer {
  const buffer = Buffer.alloc(32 + 56 * list.length);
  buffer.writeUInt32LE(list.length, 20);
  for (const [index, [logical, physical, length, flags]] of list.entries()) {
    const at = 32 + 56 * index;
    [logical, physical, length].forEach((value, i) => buffer.writeBigUInt64LE(BigInt(value), at + 8 * i));
    buffer.writeUInt32LE(flags, at + 40);
  }
  return buffer;
}

function mappingTable(): Buffer {
  const header = Buffer.alloc(312);
  header.writeUInt32LE(312, 16);
  header.writeUInt32LE(1, 20);
  const spec = Buffer.alloc(40);
  spec.writeBigUInt64LE(2048n, 8);
  spec.write('linear', 24);
  spec.writeUInt32LE(64, 20);
  return Buffer.concat([header, spec, Buffer.from('7:0 2048\0'.padEnd(24, '\0'))]);
}

function kernel(): Target[] {
  const layout = parseEventLayout(eventFormat);
  const page = parsePageLayout(pageFormat);
  return [
    {
      name: 'trace page',
      seeds: [ringPage()],
      decode(bytes) {
        const layouts = new Map([[layout.id, layout]]);
        let events = 0;
        parsePage(bytes, page, layouts, () => events++);
        assert.ok(events <= bytes.length / 4, 'an event takes four bytes at least');
        // What was cut off is told, unless it was the rest of a page that was padding.
        const all = parsePage(bytes, page, layouts, () => undefined);
        let fewer = 0;
        const cut = parsePage(bytes.subarray(0, bytes.length - 1), page, layouts, () => fewer++);
        assert.ok(cut.broken !== undefined || all.broken !== undefined || fewer === events, 'no event goes in silence');
      },
    },
    {
      name: 'formats of trace events',
      seeds: [Buffer.from(eventFormat + pageFormat)],
      words: ['field:', 'offset:', 'size:', ';', '99999999999999999999', 'dev', 'rwbs', 'ID: '],
      decode(bytes) {
        const text = bytes.toString('latin1');
        try {
          const event = parseEventLayout(text);
          parsePage(ringPage(), parsePageLayout(text), new Map([[event.id, event]]), () => undefined);
        } catch (error) {
          refusal(error, Error);
        }
      },
    },
    {
      name: 'fanotify events',
      seeds: [fanEvent(), Buffer.concat([fanEvent(), fanEvent()])],
      decode(bytes) {
        const { events } = parseFanEvents(bytes);
        for (const { handle, name } of events) {
          assert.ok(name.length > 0 && !name.includes(0), 'a name is none');
          assert.ok(handle.length >= 8 && handle.length + name.length <= bytes.length, 'a handle is beyond its buffer');
        }
      },
    },
    {
      name: 'extents of a file',
      seeds: [extents([0, 4096, 4096, 0], [8192, 65536, 8192, 1]), extents([0, 4096, 1 << 20, 0x800])],
      async decode(bytes) {
        async function* all() {
          // The buffer is ours, what is in it the kernel's.
          yield* parseExtents(Buffer.concat([bytes, Buffer.alloc(32)]));
        }
        async function* none() {
          yield* [];
        }
        let calls = 0;
        let end = 0;
        await compareExtents(all(), none(), (offset, length) => {
          assert.ok(offset >= end && length > 0, 'changes ascend');
          end = offset + length;
          calls++;
        });
        assert.ok(calls <= 2 * (bytes.length / 56) + 1);
      },
    },
    {
      name: 'table of device-mapper',
      seeds: [mappingTable()],
      decode(bytes) {
        try {
          parseTargets(Buffer.concat([bytes, Buffer.alloc(Math.max(0, 312 - bytes.length))]));
        } catch (error) {
          refusal(error, Error);
        }
      },
    },
    {
      name: 'mounts',
      seeds: [
        Buffer.from(
          '36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n22 1 0:21 / /a ro - tmpfs none ro\n',
        ),
      ],
      words: [' - ', '\\040', '\\777', '\n', ' '],
      decode: (bytes) => parseMountinfo(bytes).forEach(({ mountPoint }) => assert.equal(typeof mountPoint, 'string')),
    },
    {
      name: 'superblock',
      seeds: superblocks(),
      words: ['XFSB', '_BHRfS_M', 'EFI PART'],
      decode: (bytes) => parseSuperblock(bytes),
    },
  ];
}

function superblocks(): Buffer[] {
  return ['LUKS\xba\xbe', 'XFSB']
    .map((magic) => Buffer.concat([Buffer.from(magic, 'latin1'), Buffer.alloc(600, 7)]))
    .concat([Buffer.alloc(superblockBytes).fill(Buffer.from([0x53, 0xef]), 0x438, 0x43a)]);
}

// ---- files of our own, which rot and which others can write to

function disk(folder: string): Target[] {
  const header = { version: 1, sizeBytes: 1 << 20, prepared: 0, digest: '', method: 'ftrace', state: { at: 1 } };
  const frames = [
    frame(1, 1, encode('JournalData', { ...data, payload: Buffer.alloc(0) }), data.payload),
    frame(1, 3, encode('JournalCommit', { ...journalCommit, sequence: 1 })),
  ];
  const journal = join(folder, 'journal');
  const segment = join(journal, '0000000000000001.log');
  fs.mkdirSync(journal);
  return [
    {
      name: 'frame of a journal',
      seeds: [
        Buffer.concat([Buffer.from([1]), encode('JournalData', { ...data, payload: Buffer.alloc(0) })]),
        Buffer.concat([Buffer.from([2]), encode('Nodes', { nodes: [node] })]),
        Buffer.concat([Buffer.from([3]), encode('JournalCommit', journalCommit)]),
      ],
      decode: (bytes) => decodeFrameMeta(bytes[0] ?? 0, bytes.subarray(1), Buffer.alloc(0), 10),
    },
    {
      name: 'segment of a journal',
      seeds: [Buffer.concat(frames), Buffer.concat([...frames, frame(2, 2, encode('Nodes', { nodes: [node] }))])],
      words: ['CDM1'],
      async decode(bytes) {
        fs.writeFileSync(segment, resealed(bytes));
        let epochs = 0;
        const opened = await Journal.open(systemDisk, journal, 1 << 30, (_, { sequence }) => {
          assert.equal(sequence, ++epochs, 'epochs follow each other');
        });
        assert.equal(opened.lastSequence, epochs);
        let commits = 0;
        for await (const record of opened.read(0, epochs)) if ('commit' in record) commits++;
        assert.equal(commits, epochs, 'what was opened can be read');
        await opened.close();
      },
    },
    {
      name: 'note of a replica',
      seeds: [Buffer.from(seal({ format: 2, generation: '1', drilled: {} })), Buffer.from('{"format":1,"drilled":{}}')],
      words: ['null', '"sum"', '__proto__', '[]', '1e999', '"format"'],
      decode(bytes) {
        try {
          const note = unseal<{ format: number; drilled: object; generation: string }>(bytes.toString(), [
            'format',
            'generation',
            'drilled',
          ]);
          assert.ok(typeof note === 'object' && !Array.isArray(note));
        } catch (error) {
          refusal(error, SyntaxError);
        }
      },
    },
    {
      name: 'header of a dirty map',
      seeds: [formatHeader(header as never)],
      decode(bytes) {
        const read = parseHeader(bytes);
        if (read) assert.ok(read.sizeBytes >= 0 || read.sizeBytes < 0);
      },
    },
  ];
}

function frame(sequence: number, kind: number, meta: Buffer, payload: Buffer = Buffer.alloc(0)): Buffer {
  const header = Buffer.alloc(40);
  header.write('CDM1');
  header.writeUInt32LE(kind, 4);
  header.writeUInt32LE(meta.length, 8);
  header.writeUInt32LE(payload.length, 12);
  header.writeBigUInt64LE(BigInt(sequence), 16);
  hash(header.subarray(0, 24), meta).copy(header, 24);
  return Buffer.concat([header, meta, payload]);
}

/** The hash of each frame made right, or nothing behind it would ever be reached. */
function resealed(bytes: Buffer): Buffer {
  for (let at = 0; at + 40 <= bytes.length;) {
    const metaEnd = at + 40 + bytes.readUInt32LE(at + 8);
    if (metaEnd > bytes.length) break;
    hash(bytes.subarray(at, at + 24), bytes.subarray(at + 40, metaEnd)).copy(bytes, at + 24);
    at = metaEnd + bytes.readUInt32LE(at + 12);
  }
  return bytes;
}
