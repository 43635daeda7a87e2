/** What only a replica with a receiver has to stand: kills, a second master, other certificates, a line that breaks. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { HeldReplica } from '../../master/held.ts';
import { receiverStorage } from '../../master/receiver/driver.ts';
import type { Line } from '../../master/receiver/remote.ts';
import { asReplicationError } from '../../proto/errors.ts';
import { systemClock } from '../../proto/system.ts';
import { startReceiver, type TestReceiver } from '../receiver.ts';
import { imageOf, none } from '../unit/master/replica/blockreplica.ts';
import { mirrored, size, uid } from './storage.ts';

interface Lab {
  folder: string;
  receiver: TestReceiver;
  open: (line?: Line) => Promise<HeldReplica>;
}

async function lab(t: Test): Promise<Lab> {
  const folder = mkdtempSync(join(tmpdir(), 'receiver-volume-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const receiver = await startReceiver(t, folder);
  const unheard = { onDoubt: () => undefined, onChange: () => undefined };
  const open = (line = receiver.line()): Promise<HeldReplica> =>
    receiverStorage(line).open({ name: 'shop', uid, mode: 'Block', ...unheard });
  return { folder, receiver, open };
}

async function until(isSo: () => boolean): Promise<void> {
  for (let tries = 0; !isSo(); tries++) {
    if (tries > 600) throw new Error(`not so: ${isSo.toString()}`);
    await systemClock.sleep(50);
  }
}

const codeOf = async (work: Promise<unknown>): Promise<string> =>
  work.then(
    () => 'OK',
    (error: unknown) => asReplicationError(error).code,
  );

t.test('a receiver that is killed again and again loses nothing that it acknowledged', async (t) => {
  const { folder, receiver, open } = await lab(t);
  const values: Record<number, number> = {};
  let acknowledged = 0;
  for (let round = 1; round <= 5; round++) {
    const replica = await open();
    t.ok((replica.newestPoint?.sequence ?? 0) >= acknowledged, `round ${round}: ${acknowledged} is there`);
    values[round % 10] = round;
    acknowledged = await mirrored(replica, { [round % 10]: round });
    t.equal(replica.newestPoint?.sequence, acknowledged, 'what is acknowledged is known here');
    // Something is under way when it dies.
    const broken = codeOf(mirrored(replica, ...Array.from({ length: 500 }, () => ({ [round % 10]: round }))));
    await until(() => (replica.newestPoint?.sequence ?? 0) > acknowledged);
    acknowledged = replica.newestPoint?.sequence ?? 0;
    await receiver.process.kill();
    t.equal(await broken, 'Disconnected');
    await until(() => replica.lost !== undefined);
    t.equal(await codeOf(replica.fence('1')), 'Disconnected');
    await replica.close();
    receiver.process.start();
    await receiver.ready();
  }
  const replica = await open();
  const point = replica.newestPoint;
  if (!point) return t.fail('no point');
  const path = join(folder, 'copy');
  await replica.recover(point, path, { verify: true, signal: none, progress: () => undefined });
  t.ok(readFileSync(path).equals(imageOf(values, size)));
  await replica.close();
});

t.test('the newest call of its master has the replica, a master of before is turned away', async (t) => {
  const { receiver, open } = await lab(t);
  const [older, newer] = [receiver.line(systemClock, 3), receiver.line(systemClock, 4)];
  const first = await open(older);
  const writing = codeOf(mirrored(first, ...Array.from({ length: 500 }, () => ({ 0: 1 }))));
  await until(() => first.newestPoint !== undefined);
  const second = await open(older);
  await until(() => first.lost !== undefined);
  t.match(first.lost, /newer call/);
  t.not(await writing, 'OK', 'its Mirror call has ended with it');
  const third = await open(newer);
  await until(() => second.lost !== undefined);
  t.match(second.lost, /newer master/);
  t.equal(await codeOf(open(older)), 'Fenced');
  await third.fence('2');
  t.equal(await codeOf(mirrored(third, { 1: 1 })), 'Fenced', 'generation 1 writes no more');
  await third.close();
});

t.test('who is not the master is not let in, nor out of the volume', async (t) => {
  const { folder, receiver, open } = await lab(t);
  t.equal(await codeOf(open(await receiver.lineAs('node-a'))), 'NotAuthenticated');
  const replica = await open();
  await mirrored(replica, { 0: 1 });
  const point = replica.newestPoint;
  if (!point) return t.fail('no point');
  const recover = (path: string) =>
    codeOf(replica.recover(point, path, { verify: false, signal: none, progress: () => undefined }));
  for (const path of ['/tmp/elsewhere', `${folder}/../x`, folder, `${folder}/shop-${uid}/base/x`, `${folder}x/y`])
    t.equal(await recover(path), 'TargetRefused', path);
  t.equal(await recover(`${folder}/copy`), 'OK');
  await replica.close();
});

t.test('work that is given up ends, and the replica can be had again at once', async (t) => {
  const { open } = await lab(t);
  const replica = await open();
  await mirrored(replica, { 0: 1 });
  const giving = new AbortController();
  giving.abort(new Error('given up'));
  t.not(await codeOf(replica.advance(0, giving.signal)), 'OK');
  await replica.noteDrill(1, 1_000_000);
  await replica.close();
  const again = await open();
  t.equal(again.drilledUs(1), 1_000_000, 'the note is told anew');
  await again.close();
});
