/** The real loop of an agent on a volume in memory, the master's side of the call, and a real replica on a simulated disk. */
import t, { type Test } from 'tap';
import { setImmediate } from 'node:timers/promises';
import { mirror } from '../../../agent/mirror.ts';
import { readHello, serveSession } from '../../../master/session.ts';
import type { Replica } from '../../../master/replica/replica.ts';
import { granuleBytes } from '../../../proto/granule.ts';
import { bell, streamPair } from '../../../proto/stream.ts';
import { systemClock } from '../../../proto/system.ts';
import { protocolVersion, type MirrorHello, type MirrorReply, type MirrorRequest } from '../../../proto/wire.ts';
import { mirroring } from '../agent/mirroring.ts';
import { opener, sizeBytes, Volume } from '../agent/memoryvolume.ts';
import { commitOf, dataOf, folder, none, recovered, rig } from './replica/blockreplica.ts';

const hello: MirrorHello = {
  protocol: protocolVersion,
  replicationUid: 'u',
  fencingGeneration: '1',
  volumeMode: 'Block',
  sizeBytes,
  sourceId: 'volume',
  force: false,
};
type Pair = ReturnType<typeof streamPair<MirrorRequest, MirrorReply>>;

async function serve(replica: Replica, { server }: Pair, onCommit = (): void => undefined): Promise<void> {
  const events = { onCommit, onVerified: () => undefined };
  await serveSession(replica, 'agent', await readHello(server), server, systemClock, events, none);
}

t.test('agents of protocols that are not spoken any more, or not yet, are told so', async (t) => {
  for (const [protocol, fits] of [
    [1, false],
    [2, true],
    [3, true],
    [4, false],
  ] as const) {
    const pair = streamPair<MirrorRequest, MirrorReply>();
    await pair.client.send({ number: 1, hello: { ...hello, protocol } });
    const reading = readHello(pair.server, { oldest: 2, newest: 3 });
    if (fits) t.equal((await reading).protocol, protocol);
    else await t.rejects(reading, { code: 'VersionMismatch', message: /this master 2 to 3/ });
  }
});

t.test('what a session that ends has left open is gone at once, not when the next one comes', async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  const pair = streamPair<MirrorRequest, MirrorReply>();
  const serving = serve(replica, pair);
  let number = 1;
  const send = async (message: Omit<MirrorRequest, 'number'>): Promise<void> =>
    void (await pair.client.send({ number: number++, ...message }));
  await send({ hello });
  for (const data of dataOf({ 0: 1 }, sizeBytes)) await send({ data });
  await send({ commit: commitOf(1, sizeBytes) });
  for (let isCommitted = false; !isCommitted;) {
    const reply = await pair.client.receive.next();
    if (reply.done === true) throw new Error('the call is over');
    isCommitted = reply.value.committed !== undefined;
  }
  for (const data of dataOf({ 1: 2 }, sizeBytes)) await send({ data });
  while (replica.isSettled) await setImmediate();
  pair.cut();
  await t.rejects(serving);
  t.equal(replica.isSettled, true);
  await replica.close();
});

/** Runs the agent's loop until `isDone`, asked after each commit and each call that has ended. */
async function mirrored(
  t: Test,
  replica: Replica,
  open: ReturnType<typeof opener>,
  isDone: (calls: number) => boolean,
) {
  const ending = new AbortController();
  const look = bell();
  let calls = 0;
  const running = mirror(
    mirroring(t, {
      openSource: async () => open(),
      connect: () => {
        const pair = streamPair<MirrorRequest, MirrorReply>();
        void serve(replica, pair, () => look.ring())
          .catch((error: unknown) => t.comment(String(error)))
          .finally(() => {
            calls++;
            pair.cut();
            look.ring();
          });
        return pair.client;
      },
    }),
    ending.signal,
  );
  while (!isDone(calls)) await look.rung();
  ending.abort(new Error('the test is over'));
  await running;
}

t.test('a replica that lost content is offered all of the volume, also where nothing has changed', async (t) => {
  const r = await rig(t);
  const replica = await r.open();
  const volume = new Volume();
  const open = opener(t, volume);
  await mirrored(t, replica, open, () => replica.points.length > 0);
  await replica.advance(0, none);
  r.sim.flip(`${folder}/base/image.raw`, 5 * granuleBytes + 1);
  const session = await replica.attach({ name: 'agent', generation: '1', sourceId: 'volume', sizeBytes, force: false });
  t.equal((await replica.scrub(session, none, () => undefined)).badGranules, 1);
  await replica.detach(session);
  t.equal(replica.head.unknown, 1);
  const { sequence } = replica.head;
  await mirrored(t, replica, open, (calls) => calls > 1 || (replica.points.at(-1)?.sequence ?? 0) > sequence);
  t.equal(replica.head.unknown, 0);
  const { sequence: newest } = replica.points.at(-1) ?? { sequence: 0 };
  t.ok(newest > sequence, 'in the first call');
  t.ok((await recovered(r, replica, newest)).equals(volume.bytes));
  await replica.close();
});
