import t, { type Test } from 'tap';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { openTracefs, removeInstance } from '../../../agent/capture/tracefs.ts';
import type { Tracking } from '../../../agent/capture/tracking.ts';
import type { BlockDevice } from '../../../agent/device.ts';
import { openTrackings, traceInstance } from '../../../agent/trackings.ts';
import { messageOf } from '../../../proto/errors.ts';
import { systemClock } from '../../../proto/system.ts';
import type { MirrorWelcome } from '../../../proto/wire.ts';
import { loopDevice, missingForLoop, run } from '../../loop.ts';

function missing(): string | false {
  try {
    openTracefs({ instance: 'cdmr-probe' }).close();
    removeInstance('cdmr-probe');
    return missingForLoop('ext4');
  } catch (error) {
    return messageOf(error);
  }
}

const blank: MirrorWelcome = {
  ...{ protocol: 1, headSequence: 1, initialized: false, sizeBytes: 0, digest: Buffer.alloc(16) },
  ...{ sourceId: '', blank: true, incomplete: false },
};
/** Of the replica that has all of it. */
const welcome: MirrorWelcome = { ...blank, headSequence: 2, digest: Buffer.alloc(16, 2), blank: false };

/** A device of 16 MiB, all of which the replica has. */
async function traced(t: Test) {
  const dataDir = t.testdir({});
  const { device } = loopDevice(t, 16);
  const open = () => openTrackings({ dataDir, clock: systemClock, log: { info: () => undefined } });
  let trackings = open();
  t.teardown(async () => {
    await trackings.close();
    removeInstance(traceInstance(dataDir));
  });
  const events: string[] = [];
  const of = (path: string): Promise<Tracking> =>
    trackings.of('uid', path, {} as BlockDevice, ({ code, message }) => void events.push(`${code} ${message}`));
  const tracking = await of(device);
  await tracking.attach(blank, 16 << 20, '1');
  tracking.map.take(0, 256);
  tracking.map.handed(0, 256);
  await tracking.prepare(2);
  await tracking.committed(2, true, welcome.digest);
  t.equal(tracking.map.dirtyBytes, 0);
  return {
    ...{ dataDir, device, events, of, tracking },
    restarted: async () => {
      await trackings.close();
      trackings = open();
      return of(device);
    },
  };
}

const skip = missing();

t.test('a traced device under another name is tracked on; another device is a doubt', { skip }, async (t) => {
  const { dataDir, device, events, of, tracking } = await traced(t);
  const other = loopDevice(t, 16).device;
  // As the kubelet makes one for each pod.
  const alias = join(dataDir, 'alias');
  const { rdev } = statSync(device);
  run('mknod', alias, 'b', String(rdev >> 8), String(rdev & 0xff));
  run('dd', 'if=/dev/urandom', `of=${device}`, 'bs=64k', 'count=1', 'seek=3', 'oflag=direct', 'status=none');
  t.equal(await of(alias), tracking);
  t.match(await tracking.attach(welcome, 16 << 20, '1'), { whole: false });
  t.equal(tracking.map.dirtyBytes, 65536, 'what was written between, and nothing else');

  t.equal(await of(other), tracking);
  t.match(await tracking.attach(welcome, 16 << 20, '1'), { whole: true, reason: 'another device is behind the path' });
  t.match(events.at(-1), /^CaptureStarted .*another device is behind the path/);
});

t.test('a session that came to nothing leaves the map that an agent before kept', { skip }, async (t) => {
  const { restarted } = await traced(t);
  await (await restarted()).detach();
  t.match(await (await restarted()).attach(welcome, 16 << 20, '1'), {
    whole: false,
    reason: /counters are what they were/,
  });
});

for (const isRestarted of [false, true]) {
  const who = isRestarted ? 'an agent that had just started' : 'its agent';
  t.test(`a device that was smaller, as ${who} saw: what lay behind its end is read`, { skip }, async (t) => {
    const { tracking, restarted } = await traced(t);
    await (isRestarted ? await restarted() : tracking).sized(8 << 20);
    const next = isRestarted ? await restarted() : tracking;
    await next.sized(16 << 20);
    t.match(await next.attach(welcome, 16 << 20, '1'), { whole: false });
    t.equal(next.map.dirtyBytes, (8 << 20) + 65536, 'and the granule that was the last one');
  });
}
