import t, { type Test } from 'tap';
import { openSync, writeSync, closeSync, constants, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { countsReads, tryBlockStat, type BlockStat } from '../../../../agent/blockstat.ts';
import { Ftrace } from '../../../../agent/capture/ftrace.ts';
import { openTracefs, removeInstance } from '../../../../agent/capture/tracefs.ts';
import type { Ring } from '../../../../agent/capture/ring.ts';
import { Tracer } from '../../../../agent/capture/tracer.ts';
import { messageOf } from '../../../../proto/errors.ts';
import { alignedPool } from '../../../../proto/libc.ts';
import { systemClock } from '../../../../proto/system.ts';
import { noise } from '../../../e2e/content.ts';
import { loopDevice, missingForLoop, run } from '../../../loop.ts';

const instance = `cdmr-test-${process.pid}`;
const root = `/sys/kernel/tracing/instances/${instance}`;

function missing(): string | false {
  const loop = missingForLoop('ext4');
  if (loop !== false) return loop;
  try {
    openTracefs({ instance }).close();
    return false;
  } catch (error) {
    return messageOf(error);
  }
}

interface Traced {
  device: string;
  image: string;
  /** What the device is said to be, beside what it is. */
  facts: Partial<BlockStat>;
  capture: Ftrace;
  marks: [number, number][];
  /** As an agent that is killed: the ring stays. */
  killed: () => Promise<{ capture: Ftrace; marks: [number, number][] }>;
  /** The same, and the ring is removed before the next agent; `meanwhile` it is gone. */
  killedAndUntraced: (meanwhile?: () => void) => Promise<{ capture: Ftrace; marks: [number, number][] }>;
  write: (offset: number, length: number) => void;
}

async function traced(t: Test, bufferBytesPerCpu?: number): Promise<Traced> {
  const facts: Partial<BlockStat> = {};
  const { device, image } = loopDevice(t, 64);
  const page = alignedPool(1 << 20)[0] as Buffer;
  noise(page.length).copy(page);
  let tracer: Tracer | undefined;
  t.teardown(() => {
    tracer?.close();
    removeInstance(instance);
  });
  const open = (): { capture: Ftrace; marks: [number, number][] } => {
    const ring = openTracefs({ instance, ...(bufferBytesPerCpu === undefined ? {} : { bufferBytesPerCpu }) });
    tracer = new Tracer(ring, systemClock);
    const marks: [number, number][] = [];
    const stat = (): BlockStat | string => {
      const now = tryBlockStat(device);
      return typeof now === 'string' ? now : { ...now, ...facts };
    };
    const isCounting = async (): Promise<boolean> => facts.iostats !== false && countsReads(device);
    const capture = new Ftrace({ tracer, clock: systemClock, stat, isCounting });
    capture.marks = (offset, length) => marks.push([offset, length]);
    return { capture, marks };
  };
  return {
    device,
    image,
    facts,
    ...open(),
    async killed() {
      // No capture is closed: that would end the tracing.
      tracer?.close();
      return open();
    },
    async killedAndUntraced(meanwhile = () => undefined) {
      tracer?.close();
      removeInstance(instance);
      meanwhile();
      return open();
    },
    write(offset, length) {
      const file = openSync(device, constants.O_WRONLY | constants.O_DIRECT);
      for (let at = 0; at < length; at += page.length)
        writeSync(file, page, 0, Math.min(page.length, length - at), offset + at);
      closeSync(file);
    },
  };
}

function covers(marks: [number, number][], offset: number, length: number): boolean {
  const bytes = new Set<number>();
  for (const [from, size] of marks) for (let at = from; at < from + size; at += 512) bytes.add(at);
  for (let at = offset; at < offset + length; at += 512) if (!bytes.has(at)) return false;
  return true;
}

await t.test('a traced loop device', { skip: missing() }, async (t) => {
  await t.test('every kind of write is marked and proven', async (t) => {
    const { capture, marks, write, device } = await traced(t);
    const began = await capture.begin(undefined);
    t.same(began, { proven: false, reason: 'nothing was noted of this volume before' });
    write(8192, 4096);
    run('blkdiscard', '-o', '1048576', '-l', '65536', device);
    run('blkdiscard', '-z', '-o', '4194304', '-l', '131072', device);
    const drained = await capture.drain();
    t.equal(drained.doubt, undefined);
    t.match(drained.still, /^[-0-9a-f]+:7:\d+:\d+:67108864:\d+$/);
    t.ok(covers(marks, 8192, 4096) && covers(marks, 1048576, 65536) && covers(marks, 4194304, 131072));
    const length = marks.length;
    t.equal((await capture.drain()).still, drained.still, 'nothing was written');
    t.equal(marks.length, length);
    write(0, 4096);
    t.not((await capture.drain()).still, drained.still);
  });

  await t.test('what was written while no agent looked comes out of the ring', async (t) => {
    const { capture, write, killed } = await traced(t);
    await capture.begin(undefined);
    await capture.drain();
    const state: unknown = JSON.parse(JSON.stringify(capture.state()));
    const quiet = await killed();
    t.same(await quiet.capture.begin(state), { proven: true, reason: "the device's counters are what they were" });
    write(16384, 8192);
    const next = await killed();
    const { proven, reason } = await next.capture.begin(state);
    t.equal(proven, true);
    t.match(reason, /the ring brought the 16 sectors/);
    t.ok(covers(next.marks, 16384, 8192));
  });

  await t.test('so it does with more disks than a filter can name', async (t) => {
    const { capture, write, killed } = await traced(t);
    await capture.begin(undefined);
    await capture.drain();
    const state: unknown = JSON.parse(JSON.stringify(capture.state()));
    const crowd = openTracefs({ instance });
    crowd.watch(
      Array.from({ length: 400 }, (_, minor) => 259 * 2 ** 20 + minor),
      [],
    );
    crowd.close();
    write(16384, 8192);
    const next = await killed();
    t.match(await next.capture.begin(state), { proven: true, reason: /the ring brought the 16 sectors/ });
  });

  await t.test('what is not proven is a doubt, with its reason', async (t) => {
    const { capture, write, killed, device } = await traced(t);
    await capture.begin(undefined);
    const state = { ...capture.state() };
    write(0, 4096);
    await capture.drain(); // taken from the ring, and not in the state
    for (const [change, why] of [
      [{}, /counters say other writes/],
      [{ bootId: 'another' }, /started anew/],
      [{ diskseq: '1' }, /detached and attached/],
      [{ device: '7:99' }, /another device/],
      [{ sectors: null }, /not exact/],
    ] as const) {
      const { capture: next } = await killed();
      const { proven, reason } = await next.begin({ ...state, ...change });
      t.equal(proven, false);
      t.match(reason, why);
    }
    t.match(await (await killed()).capture.begin('nonsense'), { proven: false });
    const gone = await killed();
    await gone.capture.begin(undefined);
    run('losetup', '--detach', device);
    t.match((await gone.capture.drain()).doubt, /cannot be read|another device|other writes/);
  });

  await t.test(
    'tracing that was taken away while no agent ran is a doubt only where something was written',
    async (t) => {
      const { capture, write, killed, killedAndUntraced } = await traced(t);
      await capture.begin(undefined);
      await capture.drain();
      const state: unknown = JSON.parse(JSON.stringify(capture.state()));
      const still = await killedAndUntraced();
      t.match(await still.capture.begin(state), { proven: true, reason: /are what they were/ });
      const told = await killedAndUntraced(() => write(0, 4096));
      const { proven, reason } = await told.capture.begin(state);
      t.equal(proven, false);
      t.match(reason, /^its trace instance was removed since; .*: 8 sectors, 0 were told$/);
      await told.capture.drain();
      const next = await killed();
      t.match(await next.capture.begin(told.capture.state()), { proven: true }, 'and traced again from then on');
    },
  );

  await t.test('a ring that is full drops events, and says so; the next look is sound again', async (t) => {
    const { capture, write } = await traced(t, 8192);
    await capture.begin(undefined);
    for (let i = 0; i < 600; i++) write((i % 1000) * 4096, 4096);
    t.match((await capture.drain()).doubt, /events were dropped|other writes/);
    t.ok(capture.lostEvents > 0);
    t.equal((await capture.drain()).doubt, undefined);
    write(0, 4096);
    t.equal((await capture.drain()).doubt, undefined);
  });

  const meddling: Record<string, (write: Traced['write']) => void> = {
    'switches tracing off': () => writeFileSync(`${root}/tracing_on`, '0'),
    'switches it off and on again': (write) => {
      writeFileSync(`${root}/tracing_on`, '0');
      write(4096, 4096);
      writeFileSync(`${root}/tracing_on`, '1');
    },
    'switches the event off': () => writeFileSync(`${root}/events/block/enable`, '0'),
    'changes the filter': () => writeFileSync(`${root}/events/block/block_rq_complete/filter`, 'nr_sector > 77'),
    'empties the ring': (write) => {
      write(4096, 4096);
      writeFileSync(`${root}/trace`, '');
    },
    'removes the instance': () => undefined,
  };
  for (const [what, meddle] of Object.entries(meddling)) {
    if (what === 'removes the instance') continue; // the kernel keeps what has a reader
    await t.test(`another program ${what}: noticed, and mended`, async (t) => {
      const { capture, write, marks } = await traced(t);
      await capture.begin(undefined);
      write(0, 4096);
      t.equal((await capture.drain()).doubt, undefined);
      meddle(write);
      write(8192, 4096);
      t.type((await capture.drain()).doubt, 'string');
      write(65536, 4096);
      t.equal((await capture.drain()).doubt, undefined, 'the look after the next');
      t.ok(covers(marks, 65536, 4096));
    });
  }

  await t.test('counters that are off cannot prove anything', async (t) => {
    const { capture, device } = await traced(t);
    const iostats = `/sys/class/block/${device.slice(5)}/queue/iostats`;
    t.teardown(() => writeFileSync(iostats, '1'));
    writeFileSync(iostats, '0');
    await t.rejects(capture.begin(undefined), /iostats/);
    writeFileSync(iostats, '1');
    await capture.begin(undefined);
    writeFileSync(iostats, '0');
    t.match((await capture.drain()).doubt, /iostats/);
  });

  await t.test(
    'a device without requests is traced where a read shows in its counters, and else is none to be traced',
    async (t) => {
      const { capture, facts, write } = await traced(t);
      Object.assign(facts, { counted: 'perhaps', iostats: true });
      await capture.begin(undefined);
      write(0, 4096);
      t.equal((await capture.drain()).doubt, undefined);
      facts.iostats = false;
      t.match((await capture.drain()).doubt, /iostats was turned off/);
      t.match((await capture.drain()).doubt, /do not show in its counters/);
      await t.rejects(capture.begin(undefined), /do not show in its counters/);
    },
  );

  await t.test('a disk that grows is followed, also when what it grew by is written to at once', async (t) => {
    const { capture, device, image, write } = await traced(t);
    await capture.begin(undefined);
    truncateSync(image, 96 << 20);
    run('losetup', '--set-capacity', device);
    write(80 << 20, 1 << 20);
    t.equal((await capture.drain()).doubt, undefined);
  });

  await t.test('detached and attached again is noticed where the kernel numbers no disks, too', async (t) => {
    const { capture, device, image, facts } = await traced(t);
    facts.diskseq = '';
    await capture.begin(undefined);
    run('losetup', '--detach', device);
    run('losetup', device, image);
    t.match((await capture.drain()).doubt, /detached and attached/);
    t.equal((await capture.drain()).doubt, undefined);
  });

  await t.test('what device-mapper puts in the place of the content is a doubt, growth is none', async (t) => {
    const { capture, facts, killed } = await traced(t);
    const table = (sectors: number, hash: string) => [{ device: '253:0', targets: [{ first: 0, sectors, type: 'linear', hash }] }]; // prettier-ignore
    facts.mapping = table(1000, 'a');
    await capture.begin(undefined);
    facts.mapping = table(2000, 'a');
    t.equal((await capture.drain()).doubt, undefined);
    const state: unknown = JSON.parse(JSON.stringify(capture.state()));
    facts.mapping = table(2000, 'b');
    t.match((await capture.drain()).doubt, /mapped to other content/);
    t.equal((await capture.drain()).doubt, undefined);
    t.match(await (await killed()).capture.begin(state), { proven: false, reason: /table was replaced/ });
    facts.mapping = table(2000, 'a');
    t.match(await (await killed()).capture.begin(state), { proven: true });
  });

  await t.test('under load nothing is doubted', async (t) => {
    const { capture, device } = await traced(t);
    await capture.begin(undefined);
    const ended = new AbortController();
    const { spawn } = await import('node:child_process');
    const writer = spawn('dd', ['if=/dev/zero', `of=${device}`, 'bs=4k', 'count=3000', 'oflag=direct']);
    writer.once('exit', () => ended.abort());
    let looks = 0;
    for (; !ended.signal.aborted || looks < 10; looks++) {
      t.equal((await capture.drain()).doubt, undefined);
      await delay(3);
    }
    t.ok((await capture.drain()).still);
  });
});

/** A kernel that says what the test wants. */
function modelled() {
  const events: Parameters<Parameters<Ring['take']>[0]>[] = [];
  const ring: Ring = {
    ...{ inherited: [], inheritedQueue: [], watch: () => undefined, close: () => undefined },
    take(each) {
      const now = events.splice(0);
      for (const event of now) each(...event);
      return { taken: now.length, lost: 0, reason: undefined };
    },
  };
  const disk = 253 << 20;
  const facts: BlockStat = {
    ...{ bootId: 'boot', device: '253:0', disk, isPartition: false, startSector: 0, sizeBytes: 1 << 30, diskseq: '1' },
    ...{ attached: '', mapping: [], counted: 'yes', iostats: true, splitsBios: true, sectors: 0, readSectors: 0, writing: 0 }, // prettier-ignore
  };
  const at = { onStat: (): void => undefined };
  const stat = (): BlockStat => {
    at.onStat();
    return { ...facts };
  };
  const capture = new Ftrace({ tracer: new Tracer(ring, systemClock), clock: systemClock, stat, isCounting: async () => true }); // prettier-ignore
  return { capture, facts, at, tell: (kind: 'bio' | 'queue' | 'rq', sector: number, sectors: number) => events.push([kind, disk, sector, sectors]) }; // prettier-ignore
}

t.test('a bio whose completion was lost is a doubt once the device is at rest', async (t) => {
  const { capture, facts, tell } = modelled();
  await capture.begin(undefined);
  tell('queue', 0, 8);
  facts.writing = 1;
  t.match(await capture.drain(), { doubt: undefined, still: undefined });
  // Another program had switched tracing off for a moment.
  Object.assign(facts, { writing: 0, sectors: 8 });
  t.match((await capture.drain()).doubt, /other writes than the trace/);
});

t.test('where no look was exact since the beginning, the first one that is exact is a doubt', async (t) => {
  const { capture, facts, at, tell } = modelled();
  const busy = (): void => {
    facts.sectors += 8;
    tell('rq', 0, 8);
  };
  at.onStat = busy;
  t.match(await capture.begin(undefined), { proven: false });
  t.equal((await capture.drain()).doubt, undefined);
  at.onStat = () => undefined;
  t.match((await capture.drain()).doubt, /without pause/);
  t.match(await capture.drain(), { doubt: undefined, still: String });
  at.onStat = busy;
  t.equal((await capture.drain()).doubt, undefined);
  at.onStat = () => undefined;
  t.match(await capture.drain(), { doubt: undefined, still: String }, 'and no second time');
});

t.test('facts of a device', { skip: missingForLoop('ext4') }, async (t) => {
  const { device } = loopDevice(t, 8);
  const stat = tryBlockStat(device) as BlockStat;
  t.equal(stat.sizeBytes, 8 << 20);
  t.equal(stat.bootId, readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim());
  t.equal(stat.counted, 'yes');
  t.match(tryBlockStat('/dev/null'), /is no block device/);
  t.match(tryBlockStat('/dev/absent'), /ENOENT/);
});
