import { Client, type ServiceError, credentials, status } from '@grpc/grpc-js';
import { readFile } from 'node:fs/promises';
import { type Socket, connect as connectTcp, createServer } from 'node:net';
import { join } from 'node:path';
import { createSecureContext } from 'node:tls';
import t from 'tap';
import { control as agentControl } from '../../agent/control.ts';
import { type Control as MasterControl, control as masterControl } from '../../master/control.ts';
import { ReplicationError } from '../../proto/errors.ts';
import { granuleBytes, hashBytes } from '../../proto/granule.ts';
import { type ClientTrust, connect, maxQueuedBytes, service } from '../../proto/rpc.ts';
import type { Stream } from '../../proto/stream.ts';
import { systemClock, systemRandom } from '../../proto/system.ts';
import type { Assignment, MirrorReply, MirrorRequest } from '../../proto/wire.ts';
import { openMaster, until } from '../trust.ts';

const received = (number: number): MirrorReply => ({ received: { number, workedUs: 0 } });
const data = (number: number, bytes: number): MirrorRequest => {
  const count = Math.ceil(bytes / granuleBytes);
  const run = { object: 0, first: 0, count, zero: false, tailBytes: bytes - (count - 1) * granuleBytes };
  const hashes = Buffer.alloc(count * hashBytes, 1);
  return {
    number,
    data: { runs: [run], hashes, compression: 0, rawBytes: bytes, payload: Buffer.alloc(bytes, number) },
  };
};

t.test('messages go both ways in order and the call ends well', async (t) => {
  const master = await openMaster(t, {
    mirror: async (_agent, stream) => {
      for await (const { number } of stream.receive) await stream.send(received(number));
    },
  });
  const stream = (await master.join('node-a')).client().mirror();
  for (let number = 1; number <= 100; number++) await stream.send(data(number, 1000));
  stream.end();
  const numbers = [];
  for await (const reply of stream.receive) numbers.push(reply.received?.number);
  t.same(
    numbers,
    Array.from({ length: 100 }, (_, index) => index + 1),
  );
  t.ok(stream.sentBytes > 100_000 && stream.receivedBytes > 100, 'bytes are counted');
  await t.rejects(stream.send(data(1, 1)), { code: 'Disconnected' });
});

t.test('an error of the server arrives with its code, after what was sent before it', async (t) => {
  const master = await openMaster(t, {
    mirror: async (_agent, stream) => {
      const first = await stream.receive.next();
      await stream.send(received(1));
      if (first.done !== true && first.value.number === 1)
        throw new ReplicationError('TargetFull', 'no space left: 100 % of "disk" é');
      throw new TypeError('a fault of ours');
    },
  });
  const client = (await master.join('node-a')).client();
  const full = client.mirror();
  await full.send(data(1, 10));
  t.match(await full.receive.next(), { value: received(1) });
  const error = await full.receive.next().catch((error: unknown) => error);
  t.match(error, { code: 'TargetFull', retry: 'backoff', message: 'no space left: 100 % of "disk" é' });
  await t.rejects(full.send(data(2, 10)), { code: 'TargetFull' });
  const internal = client.mirror();
  await internal.send(data(2, 10));
  await internal.receive.next();
  await t.rejects(internal.receive.next(), { code: 'Internal', message: 'a fault of ours' });
});

t.test('a message that cannot be decoded ends the call with INVALID_ARGUMENT naming the field', async (t) => {
  const outcomes: unknown[] = [];
  const master = await openMaster(t, {
    mirror: async (_agent, stream) => {
      try {
        for await (const _ of stream.receive) outcomes.push('message');
      } catch (error) {
        outcomes.push((error as ReplicationError).code);
        // Even a handler that goes on in spite of it does not keep the call open.
      }
    },
  });
  await master.join('node-a');
  const trust = JSON.parse(
    await readFile(join(master.dir, 'node-a', 'identity.json'), 'utf8'),
  ) as Required<ClientTrust>;
  const context = createSecureContext({ ca: trust.caPem, key: trust.keyPem, cert: trust.certificatePem });
  const raw = new Client(master.address, credentials.createFromSecureContext(context, {}), {
    'grpc.ssl_target_name_override': 'localhost',
  });
  t.teardown(() => raw.close());
  const asIs = (bytes: Buffer): Buffer => bytes;
  // An Offer with three bytes of hashes; a request without a kind; bytes that are no message at all.
  for (const [bytes, text] of [
    [Buffer.from('08011a051a03010203', 'hex'), /Offer\.hashes is not a multiple/],
    [Buffer.from('0801', 'hex'), /MirrorRequest has 0 kinds/],
    [Buffer.from('ffffffffff', 'hex'), /MirrorRequest: not a message/],
  ] as const) {
    const call = raw.makeBidiStreamRequest(service.Mirror.path, asIs, asIs);
    call.resume();
    call.write(bytes);
    const error = await new Promise<ServiceError>((resolve) => call.on('error', resolve as (error: Error) => void));
    t.equal(error.code, status.INVALID_ARGUMENT);
    t.match(error.details, text);
  }
  t.same(outcomes, ['BadMessage', 'BadMessage', 'BadMessage']);
});

t.test('a slow receiver slows the sender and bounds what waits, in both directions', async (t) => {
  const hold = Promise.withResolvers<void>();
  let atServer: Stream<MirrorReply, MirrorRequest> | undefined;
  let sentByServer = 0;
  const master = await openMaster(t, {
    mirror: async (_agent, stream) => {
      atServer = stream;
      const sending = (async () => {
        for (; sentByServer < 200; sentByServer++)
          await stream.send({ want: { number: 1, bitmap: Buffer.alloc(1 << 20) } });
      })();
      await hold.promise;
      let bytes = 0;
      for await (const request of stream.receive) bytes += request.data?.payload.length ?? 0;
      await sending;
      await stream.send(received(bytes));
    },
  });
  const stream = (await master.join('node-a')).client().mirror();
  let sent = 0;
  const sending = (async () => {
    for (; sent < 200; sent++) await stream.send(data(sent + 1, 1 << 20));
    stream.end();
  })();
  // Stalled: nothing has moved between two looks a while apart.
  let before = -1;
  await until(async () => {
    const now = sent + sentByServer;
    const still = now === before && now > 10;
    before = now;
    await new Promise((resolve) => setTimeout(resolve, 200));
    return still;
  });
  // The queue, the windows of 8 MiB, and a batch of 16 messages in the receiver's hands.
  const boundMiB = (maxQueuedBytes >> 20) + 8 + 16 + 8;
  t.ok(sent <= boundMiB, `${sent} of 200 messages were taken from the client`);
  t.ok(sentByServer <= boundMiB, `${sentByServer} of 200 messages were taken from the server`);
  t.equal(atServer?.receivedBytes, 0);
  hold.resolve();
  const last = [];
  for await (const reply of stream.receive) last.push(reply.received?.number);
  await sending;
  t.equal(last.length, 201);
  t.equal(last.at(-1), 200 << 20, 'all of it arrived');
});

t.test('leaving the iteration, or aborting the signal, cancels the call at the server', async (t) => {
  const ends: unknown[] = [];
  const master = await openMaster(t, {
    mirror: async (_agent, stream, signal) => {
      await stream.send(received(1));
      await stream.receive.next().catch((error: unknown) => ends.push((error as ReplicationError).code));
      ends.push(signal.aborted);
    },
  });
  const client = (await master.join('node-a')).client();
  for await (const _ of client.mirror().receive) break;
  await until(() => ends.length === 2);
  const stop = new AbortController();
  const stream = client.mirror(stop.signal);
  await stream.receive.next();
  stop.abort(new ReplicationError('Stopped', 'enough'));
  await t.rejects(stream.receive.next(), { code: 'Stopped', message: 'enough' });
  await until(() => ends.length === 4);
  t.same(ends, ['Disconnected', true, 'Disconnected', true]);
  t.throws(() => client.mirror(stop.signal), { code: 'Stopped' });
});

t.test('closing the server tells the open calls and waits for their handlers', async (t) => {
  let ended = false;
  const master = await openMaster(t, {
    mirror: async (_agent, stream) => {
      await stream.send(received(1));
      await stream.receive.next().catch(() => undefined);
      await new Promise((resolve) => setImmediate(resolve));
      ended = true;
    },
  });
  const identity = await master.join('node-a');
  const stream = identity.client().mirror();
  await stream.receive.next();
  await master.server.close();
  t.equal(ended, true);
  await t.rejects(stream.receive.next(), { code: 'Stopped', message: /master is being stopped/ });
  await t.rejects(identity.client().mirror().receive.next(), { code: 'Disconnected' });
});

/** A line that can be cut: forwards to the port, and drops all that is open on demand. */
async function cutter(port: number) {
  const sockets = new Set<Socket>();
  const server = createServer((near) => {
    const far = connectTcp(port, '127.0.0.1');
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from);
      from.pipe(to);
      from.on('error', () => to.destroy());
      from.on('close', () => {
        sockets.delete(from);
        to.destroy();
      });
    }
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address();
  return {
    address: `127.0.0.1:${typeof address === 'object' ? address?.port : ''}`,
    cut: () => sockets.forEach((socket) => socket.destroy()),
    close: () => {
      sockets.forEach((socket) => socket.destroy());
      server.close();
    },
  };
}

t.test('a line cut in mid-stream is Disconnected on both sides, and the control loop comes back', async (t) => {
  const ends: unknown[] = [];
  const assignment = { replicationUid: 'uid-1', name: 'orders' } as Assignment;
  const master = await openMaster(t, {
    mirror: async (_agent, stream) => {
      await stream.send(received(1));
      await stream.receive.next().catch((error: unknown) => ends.push((error as ReplicationError).code));
    },
    control: (...call) => control.serve(...call),
  });
  const control: MasterControl = masterControl({
    store: master.store,
    clock: systemClock,
    events: { emit: (event) => void master.events.push(event) },
    masterVersion: '1',
    assignmentsFor: () => [assignment],
    knownFor: () => [],
    onReport: () => undefined,
  });
  const line = await cutter(master.server.port);
  t.teardown(() => line.close());
  await master.join('node-a');
  const trust = JSON.parse(await readFile(join(master.dir, 'node-a', 'identity.json'), 'utf8')) as ClientTrust;
  const client = connect(line.address, trust);
  t.teardown(() => client.close());

  const assigned: string[][] = [];
  const lines: (string | undefined)[] = [];
  const agent = agentControl({
    open: (signal) => client.control(signal),
    hello: { agentVersion: '1', bootId: 'b', defaultRole: 'target', kernel: 'k', kubelet: '' },
    inventory: async () => [],
    look: () => Promise.reject(new Error('not asked')),
    onAssignments: (items) => void assigned.push(items.map(({ name }) => name)),
    onRenew: () => undefined,
    onLine: (error) => void lines.push(error?.code),
    clock: systemClock,
    random: systemRandom,
  });
  const stop = new AbortController();
  const running = agent.run(stop.signal);
  await until(() => assigned.length === 1);
  t.ok(Math.abs(agent.masterUs() - Date.now() * 1000) < 1e6);
  t.match(master.store.get('Agent', 'node-a'), { status: { state: 'ACTIVE' }, spec: { role: 'target' } });
  const mirror = client.mirror();
  await mirror.receive.next();

  line.cut();
  await t.rejects(mirror.receive.next(), { code: 'Disconnected' });
  await until(() => ends.length === 1);
  t.same(ends, ['Disconnected']);
  await until(() => assigned.length === 2);
  t.same(assigned, [['orders'], ['orders']]);
  t.same(lines, [undefined, 'Disconnected', undefined]);
  t.ok(master.events.some(({ code }) => code === 'AgentDisconnected'));
  t.equal(master.store.get('Agent', 'node-a')?.status.state, 'ACTIVE');
  stop.abort();
  await running;
  await until(() => master.store.get('Agent', 'node-a')?.status.state === 'CONN FAILED');
});
