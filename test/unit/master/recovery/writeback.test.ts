import t from 'tap';
import { mustBeWritable } from '../../../../master/recovery/writeback.ts';
import type { AgentVolume } from '../../../../master/resources.ts';
import { systemClock } from '../../../../proto/system.ts';

const place = { agent: 'node-a', path: '/dev/vg/db' };

/** An agent that is back after `awayMs`, and how it went. */
async function asked(awayMs: number, volume: Partial<AgentVolume>, signal = new AbortController().signal) {
  let nowMs = 0;
  let told = 0;
  const clock = {
    ...systemClock,
    monotonicMs: () => nowMs,
    sleep: async (ms: number, stop?: AbortSignal) => {
      stop?.throwIfAborted();
      nowMs += ms;
    },
  };
  const look = async () =>
    nowMs < awayMs ? undefined : ({ eligible: true, volumeMode: 'Block', ...volume } as AgentVolume);
  const error = await mustBeWritable({ clock, look }, place, 'Block', signal, () => void told++).then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  return { error, told, nowMs };
}

t.test(
  'an agent that is away, as all are after a start of the master, is waited for, and that is told once',
  async (t) => {
    t.strictSame(await asked(0, {}), { error: undefined, told: 0, nowMs: 0 });
    t.match(await asked(20_000, {}), { error: undefined, told: 1, nowMs: 20_000 });
  },
);

t.test('not for ever, nor when it is not wanted any more', async (t) => {
  const never = await asked(Infinity, {});
  t.match(never, { error: { code: 'TargetRefused', message: /agent node-a does not say .*start it/ }, told: 1 });
  t.equal(never.nowMs, 30_000);
  t.match(await asked(Infinity, {}, AbortSignal.abort(new Error('cancelled'))), { error: { message: 'cancelled' } });
});

t.test('what the agent refuses is refused at once, with its reason', async (t) => {
  const { error, nowMs } = await asked(0, { eligible: false, reason: '/dev/vg/db is mounted' });
  t.match(error, { code: 'TargetRefused', message: 'node-a: /dev/vg/db is mounted' });
  t.equal(nowMs, 0);
  t.match(await asked(0, { volumeMode: 'Filesystem' }), {
    error: { code: 'TargetRefused', message: /is a directory/ },
  });
});
