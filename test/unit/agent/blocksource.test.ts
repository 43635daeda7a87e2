import t from 'tap';
import type { BlockSource } from '../../../agent/blocksource.ts';
import { chunkBytes } from '../../../agent/blockscan.ts';
import type { Clock } from '../../../proto/effects.ts';
import { granuleBytes } from '../../../proto/granule.ts';
import { attach, sync } from '../../conformance/capture.ts';
import { ModelReplica } from '../../conformance/modelreplica.ts';
import { noise } from '../../e2e/content.ts';
import { opener, sizeBytes, Volume } from './memoryvolume.ts';

const never = new AbortController().signal;

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

t.test('what a doubt has marked while a little was read is offered, not sent', async (t) => {
  const volume = new Volume();
  const open = opener(t, volume);
  const replica = new ModelReplica('Block');
  const source = open();
  await attach(source, replica);
  t.equal(await sync(source, replica), undefined);
  await source.close();

  const next = open();
  t.equal((await attach(next, replica)).whole, false, 'proven');
  t.equal(await sync(next, replica), undefined);
  volume.write(3);
  volume.write(40);
  volume.onRead = () => {
    volume.onRead = () => undefined;
    volume.replaceAt({ bytes: volume.bytes });
  };
  let sentBytes = 0;
  for (let round = 0; round < 3; round++) {
    for await (const piece of next.round(false, () => undefined, never)) {
      if (piece.kind === 'content' && !piece.offer) sentBytes += piece.bytes.length;
      replica.take(piece);
      // Looks at the volume: the doubt comes in the middle of the round.
      await next.unchangedUntil();
    }
  }
  t.ok(sentBytes <= 4 * granuleBytes, `${sentBytes / granuleBytes} granules were sent without being asked for`);
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
