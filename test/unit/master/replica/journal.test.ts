import assert from 'node:assert/strict';
import t, { type Test } from 'tap';
import type { CommitRecord, JournalRecord } from '../../../../master/replica/frame.ts';
import { Journal } from '../../../../master/replica/journal.ts';
import type { Disk } from '../../../../proto/effects.ts';
import { granuleBytes } from '../../../../proto/granule.ts';
import type { SimDisk } from '../../../sim/disk.ts';
import { commitOf, dataOf, quietDisk } from './blockreplica.ts';

const folder = '/j';
const size = 100 * granuleBytes;

function recordOf(sequence: number): CommitRecord {
  return {
    ...commitOf(sequence, size),
    digest: Buffer.alloc(16, sequence),
    committedUs: 1,
    sourceId: 's',
    generation: '1',
  };
}

async function epoch(journal: Journal, sequence: number): Promise<void> {
  for (const data of dataOf({ [sequence]: sequence }, size)) await journal.append(sequence, { data });
  await journal.commit(recordOf(sequence));
}

async function opened(disk: Disk, segmentBytes = 64 << 20): Promise<{ journal: Journal; sequences: number[] }> {
  const sequences: number[] = [];
  const journal = await Journal.open(disk, folder, segmentBytes, (records, commit) => {
    sequences.push(commit.sequence);
    assert.equal(records.length, 1, 'each epoch comes with its own records');
  });
  return { journal, sequences };
}

async function filled(
  t: Test,
  epochs: number,
  segmentBytes?: number,
  seed?: number,
): Promise<{ sim: SimDisk; disk: Disk; journal: Journal }> {
  const sim = quietDisk(seed);
  const disk = sim.mount();
  const { journal } = await opened(disk, segmentBytes);
  await disk.syncDirectory('/');
  for (let sequence = 1; sequence <= epochs; sequence++) await epoch(journal, sequence);
  t.equal(journal.lastSequence, epochs);
  return { sim, disk, journal };
}

const upTo = (last: number): number[] => Array.from({ length: last }, (_, at) => at + 1);
const paths = (sim: SimDisk): string[] => sim.paths().filter((path) => path.startsWith(folder));

async function read(journal: Journal, after: number, through: number): Promise<JournalRecord[]> {
  const records: JournalRecord[] = [];
  for await (const record of journal.read(after, through)) records.push(record);
  return records;
}

t.test('what was written is read again, payload and all', async (t) => {
  const { disk, journal } = await filled(t, 3);
  const check = async (from: Journal): Promise<void> => {
    const records = await read(from, 1, 3);
    t.equal(records.length, 4);
    const [first, second] = records;
    t.ok(first && 'data' in first && first.data.payload.equals(Buffer.alloc(granuleBytes, 2)));
    t.same(second, { commit: recordOf(2) });
  };
  await check(journal);
  await journal.close();
  const again = await opened(disk);
  t.same(again.sequences, [1, 2, 3]);
  await check(again.journal);
  t.same(await read(again.journal, 3, 3), []);
  await t.rejects(read(again.journal, 0, 4), { code: 'PointGone' });
});

t.test('cut off at any byte, it opens at the newest whole commit', async (t) => {
  const { sim } = await filled(t, 4);
  const [path = ''] = paths(sim);
  const whole = sim.peek(path);
  for (let length = 0; length <= whole.length; length += length % 3 === 0 ? 1009 : 7919) {
    const disk = quietDisk().mount();
    await disk.mkdir(folder);
    const file = await disk.open(path, 'write');
    await file.write([whole.subarray(0, length)], 0);
    const { journal, sequences } = await opened(disk);
    t.same(sequences, upTo(sequences.length));
    t.ok(
      sequences.length === Math.floor((length / whole.length) * 4),
      `${length} of ${whole.length} bytes: ${sequences.join()}`,
    );
    t.equal(await file.size(), journal.bytes, 'the torn tail is gone');
    await epoch(journal, sequences.length + 1);
    t.same((await opened(disk)).sequences, upTo(sequences.length + 1), 'and writing goes on behind it');
  }
});

t.test('a damaged frame ends it there, and what follows is not taken for right', async (t) => {
  const { sim, disk, journal } = await filled(t, 4);
  const [path = ''] = paths(sim);
  const quarter = sim.peek(path).length / 4;
  sim.flip(path, Math.floor(quarter * 2) + 20);
  await t.rejects(read(journal, 0, 4), { code: 'ReplicaDamaged' });
  t.ok(journal.damaged);
  t.equal((await read(journal, 0, 2)).length, 4, 'what is before it can be read');
  await journal.close();
  t.same((await opened(disk)).sequences, [1, 2]);
});

t.test('no byte of what leads a frame can be another one unnoticed', async (t) => {
  const { sim: whole } = await filled(t, 2);
  const [path = ''] = paths(whole);
  const bytes = whole.peek(path);
  const payloadAt = bytes.indexOf(Buffer.alloc(granuleBytes, 2));
  const from = bytes.length / 2;
  t.ok(payloadAt > from + 40 && payloadAt < from + 200, `${payloadAt - from} bytes lead it`);
  for (let at = from; at < payloadAt; at++) {
    const { sim, disk } = await filled(t, 2);
    sim.flip(path, at);
    t.same((await opened(disk)).sequences, [1], `byte ${at - from} of the second epoch`);
  }
});

t.test('a segment that ends early is not passed over', async (t) => {
  const { sim, disk, journal } = await filled(t, 6, 1);
  const damaged = paths(sim).sort()[2] ?? '';
  sim.flip(damaged, 20);
  for (const after of [0, 2]) {
    await t.rejects(read(journal, after, 6), { code: 'ReplicaDamaged' });
    const given: number[] = [];
    await (async () => {
      for await (const record of journal.read(after, 6)) if ('commit' in record) given.push(record.commit.sequence);
    })().catch(() => undefined);
    t.same(given, upTo(2).slice(after), 'nothing that comes after the gap is given');
  }
  t.equal((await read(journal, 3, 6)).length, 6, 'what is behind it can be read by itself');
  await journal.close();
  t.same((await opened(disk, 1)).sequences, [1, 2]);
});

t.test('a missing segment ends it, and the ones behind it are dropped', async (t) => {
  const { sim, disk, journal } = await filled(t, 4, 1);
  await journal.close();
  t.equal(paths(sim).length, 4, 'one segment each');
  await disk.remove(paths(sim).sort()[1] ?? '');
  t.same((await opened(disk, 1)).sequences, [1]);
  t.equal(paths(sim).length, 1);
});

t.test('the open epoch is forgotten for good, also after a power cut', async (t) => {
  for (let loss = 0; loss < 10; loss++) {
    const { sim, journal } = await filled(t, 1, undefined, loss);
    const { bytes } = journal;
    for (const data of dataOf({ 1: 9, 2: 9 }, size)) await journal.append(2, { data });
    t.ok(journal.openBytes > 0);
    // Another process syncs, or the kernel does so by itself.
    const [path = ''] = paths(sim);
    await (await sim.mount().open(path, 'read')).sync();
    await journal.discard();
    t.same([journal.bytes, journal.openBytes], [bytes, 0]);
    sim.crash(true);
    t.equal(sim.peek(path).length, bytes);
    t.same((await opened(sim.mount())).sequences, [1]);
  }
});

t.test('trimming drops whole segments below, keeps the newest, and no power cut tears a gap', async (t) => {
  for (let loss = 0; loss < 30; loss++) {
    const { sim, journal } = await filled(t, 6, 1, loss);
    t.notOk(journal.canTrim(0));
    t.ok(journal.canTrim(3));
    await journal.trim(3);
    t.same([journal.baseSequence, journal.lastSequence], [3, 6]);
    await journal.trim(100);
    t.same([journal.baseSequence, journal.lastSequence], [5, 6], 'the newest stays');
    await t.rejects(read(journal, 4, 6), { code: 'PointGone' });
    sim.crash(true);
    t.same((await opened(sim.mount(), 1)).sequences, [6]);
  }
});

t.test('cleared, it starts anew at any sequence', async (t) => {
  const { disk, journal } = await filled(t, 3, 1);
  await journal.clear();
  t.same([journal.lastSequence, journal.bytes], [undefined, 0]);
  await epoch(journal, 8);
  t.same((await opened(disk)).sequences, [8]);
});

t.test('what a process that died left written and not synced is durable once it was opened again', async (t) => {
  for (let loss = 0; loss < 30; loss++) {
    const { sim } = await filled(t, 2);
    const [path = ''] = paths(sim);
    const whole = sim.peek(path);
    const fresh = quietDisk(loss);
    const disk = fresh.mount();
    await disk.mkdir(folder);
    await disk.syncDirectory('/');
    const file = await disk.open(path, 'write');
    await file.write([whole], 0);
    fresh.crash(false);
    t.same((await opened(fresh.mount())).sequences, [1, 2]);
    fresh.crash(true);
    t.same((await opened(fresh.mount())).sequences, [1, 2]);
  }
});

t.test('the commit record is written when what it closes is durable', async (t) => {
  const kindAt = 4;
  const commitKind = 3;
  const plain = quietDisk().mount();
  let unsynced = 0;
  let commits = 0;
  const disk: Disk = {
    ...plain,
    async open(path, mode) {
      const file = await plain.open(path, mode);
      return {
        ...file,
        async write(buffers, position) {
          if (Buffer.from(buffers[0] ?? []).readUInt32LE(kindAt) === commitKind) {
            commits++;
            // A disk may take the record first: then it would close an epoch whose bytes are not there.
            t.equal(unsynced, 0, 'all of the epoch was synced before');
          }
          await file.write(buffers, position);
          unsynced++;
        },
        async sync() {
          await file.sync();
          unsynced = 0;
        },
      };
    },
  };
  const { journal } = await opened(disk);
  for (let sequence = 1; sequence <= 3; sequence++) {
    await epoch(journal, sequence);
    t.equal(unsynced, 0, 'and the record is durable when commit returns');
  }
  t.equal(commits, 3);
  await journal.close();
});
