import t from 'tap';
import { backoff } from '../../../proto/backoff.ts';
import { ReplicationError } from '../../../proto/errors.ts';
import { streamPair } from '../../../proto/stream.ts';
import { systemRandom } from '../../../proto/system.ts';

t.test('a pair delivers in order, and a full window holds the sender', async (t) => {
  const { client, server } = streamPair<number, string>(2);
  await client.send(1);
  let free = false;
  const second = client.send(2).then(() => (free = true));
  await new Promise((resolve) => setImmediate(resolve));
  t.equal(free, false);
  t.same(await server.receive.next(), { value: 1, done: false });
  await second;
  client.end();
  await server.send('a');
  t.same(await server.receive.next(), { value: 2, done: false });
  t.same(await server.receive.next(), { value: undefined, done: true });
  server.end();
  t.same(await client.receive.next(), { value: 'a', done: false });
  t.equal((await client.receive.next()).done, true);
  await t.rejects(client.send(3), { code: 'Disconnected' });
});

t.test('a cut reaches both sides, also those that wait', async (t) => {
  const pair = streamPair<number, number>(1);
  const { client, server } = pair;
  const waiting = [client.send(1), server.receive.next().then(() => server.receive.next()), client.receive.next()];
  await new Promise((resolve) => setImmediate(resolve));
  pair.cut(new ReplicationError('Stopped', 'enough'));
  const outcomes = await Promise.allSettled(waiting);
  t.same(
    outcomes.map(({ status }) => status),
    ['fulfilled', 'rejected', 'rejected'],
  );
  await t.rejects(client.send(2), { code: 'Stopped' });
  await t.rejects(server.send(2), { code: 'Stopped' });
});

t.test('leaving the iteration cancels the call at the client, not at the server', async (t) => {
  const one = streamPair<number, number>();
  await one.client.send(1);
  for await (const _ of one.server.receive) break;
  await one.server.send(2);
  for await (const _ of one.client.receive) break;
  await t.rejects(one.server.send(3), { code: 'Disconnected' });
});

t.test('pauses grow to their end, are never in step and begin anew after a success', async (t) => {
  const pause = backoff(100, 1000, systemRandom);
  const waits = Array.from({ length: 8 }, () => pause.nextMs());
  const ceilings = [100, 200, 400, 800, 1000, 1000, 1000, 1000];
  t.ok(waits.every((waitMs, index) => waitMs >= (ceilings[index] ?? 0) / 2 && waitMs <= (ceilings[index] ?? 0)));
  t.ok(new Set(waits).size === 8);
  pause.reset();
  t.ok(pause.nextMs() <= 100);
});
