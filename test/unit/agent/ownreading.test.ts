import { closeSync, openSync, rmSync, writeFileSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { systemDevice } from '../../../agent/device-system.ts';
import { startGuard } from '../../../agent/guard.ts';
import { OwnReading } from '../../../agent/ownreading.ts';
import { describeWritable } from '../../../agent/volumes.ts';
import { inUse } from '../../../agent/volumewriter.ts';
import { granuleBytes } from '../../../proto/granule.ts';
import { systemClock } from '../../../proto/system.ts';
import { noise } from '../../e2e/content.ts';

function image(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'ownreading-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'image');
  writeFileSync(path, noise(2 * granuleBytes));
  return path;
}
const allow = { mayWriteVolume: async (path: string) => path };

t.test('a volume that we read ourselves may be written, one that somebody else has open may not', async (t) => {
  const path = image(t);
  const reading = new OwnReading();
  const guard = startGuard();
  t.teardown(() => guard.stop());
  const device = systemDevice({ path, clock: systemClock, guard, protectedPaths: [] });
  const buffer = Buffer.alloc(granuleBytes);
  await reading.read(path, device, async (turn) => {
    t.equal(await turn(() => device.read(buffer, 0)), granuleBytes);
    t.match(await inUse(path), /open elsewhere/, 'it is open here between two pieces');
    t.match(await describeWritable(path, allow, reading), { eligible: true });
    t.equal(await turn(() => device.read(buffer, granuleBytes)), granuleBytes, 'and is read on');
    const held = openSync(path, 'r');
    t.match(await describeWritable(path, allow, reading), { eligible: false, reason: /open elsewhere/ });
    closeSync(held);
  });
  t.equal(await inUse(path), undefined, 'nothing is open after it');
});

t.test('nothing is read while it is let go, and each goes on', async (t) => {
  const reading = new OwnReading();
  const told: string[] = [];
  const go = Promise.withResolvers<undefined>();
  const device = { rest: async () => void told.push('rest') };
  const done = reading.read('/v', device, async (turn) => {
    await turn(() => go.promise);
    await turn(async () => void told.push('second piece'));
  });
  const other = reading.letGo('/w', async () => void told.push('another volume'));
  const mine = reading.letGo('/v', async () => void told.push('let go'));
  await other;
  t.strictSame(told, ['another volume']);
  go.resolve(undefined);
  await Promise.all([done, mine]);
  t.strictSame(told, ['another volume', 'rest', 'let go', 'second piece', 'rest']);
  await t.rejects(
    reading.letGo('/v', () => Promise.reject(new Error('no'))),
    /no/,
  );
  await reading.letGo('/v', async () => void told.push('again'));
  t.equal(told.at(-1), 'again');
});
