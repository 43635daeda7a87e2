/** Calls of proto/bulkcall.ts against grpc-js at the other end, in both directions; ours against ours is rpc.test.ts. */
import * as grpc from '@grpc/grpc-js';
import { readFile } from 'node:fs/promises';
import { connect as connectHttp2, constants } from 'node:http2';
import { join } from 'node:path';
import { createSecureContext } from 'node:tls';
import t, { type Test } from 'tap';
import { FrameReader, frameHeader } from '../../proto/frames.ts';
import { type ClientTrust, connect, masterServerName, serverOptions, service, toStatus } from '../../proto/rpc.ts';
import { ReplicationError } from '../../proto/errors.ts';
import { type MirrorReply, type MirrorRequest, decode, encode } from '../../proto/wire.ts';
import { openMaster, until } from '../trust.ts';

const asIs = (bytes: Buffer): Buffer => bytes;
const offer = (number: number, bytes: number): MirrorRequest => ({
  number,
  offer: { object: 0, first: 0, hashes: Buffer.alloc(bytes, number) },
});
const data = (number: number): MirrorRequest => {
  const payload = Buffer.alloc(1 << 20, number);
  const run = { object: 0, first: 0, count: 16, zero: false, tailBytes: 65536 };
  return {
    number,
    data: { runs: [run], hashes: Buffer.alloc(256, 1), compression: 0, rawBytes: payload.length, payload },
  };
};

async function trustOf(t: Test) {
  const master = await openMaster(t, {
    mirror: async (_agent, stream) => {
      for await (const message of stream.receive) {
        const { number, data } = message;
        if (number === 99) throw new ReplicationError('TargetFull', 'no space: 100 % of "disk" é');
        const isWhole = data?.payload.equals(Buffer.alloc(1 << 20, number)) ?? false;
        if (data && number % 3 > 0) stream.recycle?.(message);
        await stream.send({ want: { number, bitmap: Buffer.from([isWhole ? number : 0]) } });
      }
    },
  });
  await master.join('node-a');
  const text = await readFile(join(master.dir, 'node-a', 'identity.json'), 'utf8');
  return { master, trust: JSON.parse(text) as Required<ClientTrust> };
}

/** grpc-js, as a stranger would write it. */
function plainClient(t: Test, address: string, { caPem, keyPem, certificatePem }: Required<ClientTrust>) {
  const context = createSecureContext({ ca: caPem, key: keyPem, cert: certificatePem });
  const client = new grpc.Client(address, grpc.credentials.createFromSecureContext(context, {}), {
    'grpc.ssl_target_name_override': 'localhost',
    'grpc.max_receive_message_length': 8 << 20,
  });
  t.teardown(() => client.close());
  return client;
}

t.test('a client of grpc-js is served: messages of all sizes, the end, the error', async (t) => {
  const { master, trust } = await trustOf(t);
  const client = plainClient(t, master.address, trust);
  const call = client.makeBidiStreamRequest(service.Mirror.path, asIs, asIs);
  const replies: MirrorReply[] = [];
  call.on('data', (bytes: Buffer) => replies.push(decode('MirrorReply', bytes)));
  const status = new Promise<grpc.StatusObject>((resolve) => call.on('status', resolve));
  for (let number = 1; number <= 20; number++)
    call.write(encode('MirrorRequest', number % 2 === 0 ? data(number) : offer(number, 16)));
  call.end();
  t.match(await status, { code: grpc.status.OK });
  t.same(
    replies.map(({ want }) => [want?.number, want?.bitmap[0]]),
    Array.from({ length: 20 }, (_, index) => [index + 1, index % 2 === 0 ? 0 : index + 1]),
  );
  const refused = client.makeBidiStreamRequest(service.Mirror.path, asIs, asIs);
  refused.resume();
  const error = new Promise<grpc.ServiceError>((resolve) =>
    refused.on('error', (error) => resolve(error as grpc.ServiceError)),
  );
  refused.write(encode('MirrorRequest', offer(99, 16)));
  t.match(await error, { code: grpc.status.RESOURCE_EXHAUSTED, details: 'no space: 100 % of "disk" é' });
  t.same((await error).metadata.get('replicator-code'), ['TargetFull']);
});

t.test('a server of grpc-js serves our client: messages of all sizes, the end, the error', async (t) => {
  const { master, trust } = await trustOf(t);
  const { keyPem, certificatePem } = master.authority.server();
  const server = new grpc.Server(serverOptions);
  let over = 0;
  server.addService(
    { Mirror: service.Mirror },
    {
      Mirror(call: grpc.ServerDuplexStream<Buffer, Buffer>) {
        // grpc-js ends a call that was reset like one that was ended.
        call.on('end', () => {
          over++;
          call.end();
        });
        call.on('data', (bytes: Buffer) => {
          const { number, data } = decode('MirrorRequest', bytes);
          if (number === 99) call.emit('error', toStatus(new ReplicationError('Fenced', 'not é')));
          else call.write(encode('MirrorReply', { want: { number, bitmap: Buffer.from([data?.payload[0] ?? 0]) } }));
        });
      },
    },
  );
  const credentials = grpc.ServerCredentials.createSsl(
    Buffer.from(trust.caPem),
    [{ private_key: Buffer.from(keyPem), cert_chain: Buffer.from(certificatePem) }],
    true,
  );
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', credentials, (error, bound) => (error ? reject(error) : resolve(bound))),
  );
  t.teardown(() => server.forceShutdown());
  const client = connect(`127.0.0.1:${port}`, trust);
  t.teardown(() => client.close());
  const call = client.mirror();
  for (let number = 1; number <= 20; number++) await call.send(number % 2 === 0 ? data(number) : offer(number, 16));
  call.end();
  const replies = [];
  for await (const { want } of call.receive) replies.push([want?.number, want?.bitmap[0]]);
  t.same(
    replies,
    Array.from({ length: 20 }, (_, index) => [index + 1, index % 2 === 0 ? 0 : index + 1]),
  );
  const refused = client.mirror();
  await refused.send(offer(99, 16));
  await t.rejects(refused.receive.next(), { code: 'Fenced', message: 'not é' });
  const left = client.mirror();
  await left.send(offer(1, 16));
  await left.receive.next();
  const before = over;
  left.cancel();
  await until(() => over > before);
});

t.test('a master that is not there, or not to be trusted, is told as such', async (t) => {
  const { master, trust } = await trustOf(t);
  const stranger = await trustOf(t);
  const other = connect(master.address, { ...trust, caPem: stranger.trust.caPem });
  t.teardown(() => other.close());
  await t.rejects(other.mirror().receive.next(), { code: 'NotAuthenticated', message: /not trusted/ });
  const gone = connect('127.0.0.1:1', trust);
  t.teardown(() => gone.close());
  await t.rejects(gone.mirror().receive.next(), { code: 'Disconnected' });
  gone.close();
  t.throws(() => gone.mirror(), { code: 'Disconnected' });
});

t.test('what is no gRPC message ends the call, not the master', async (t) => {
  const { master, trust } = await trustOf(t);
  const context = createSecureContext({ ca: trust.caPem, key: trust.keyPem, cert: trust.certificatePem });
  const session = connectHttp2(`https://${master.address}`, { secureContext: context, servername: masterServerName });
  t.teardown(() => session.destroy());
  const headers = { ':method': 'POST', ':path': service.Mirror.path, 'content-type': 'application/grpc' };
  for (const [bytes, text] of [
    [Buffer.from([1, 0, 0, 0, 1, 7]), 'compressed'],
    [Buffer.from([0, 0xff, 0xff, 0xff, 0xff, 7]), 'at most'],
  ] as const) {
    const stream = session.request(headers, { endStream: false });
    stream.write(bytes);
    const trailers = await new Promise<Record<string, unknown>>((resolve) => stream.on('trailers', resolve));
    t.equal(trailers['grpc-status'], String(grpc.status.INVALID_ARGUMENT));
    t.match(decodeURIComponent(String(trailers['grpc-message'])), text);
    stream.close(constants.NGHTTP2_CANCEL);
  }
  const half = session.request(headers, { endStream: false });
  half.end(frameHeader(10));
  half.resume();
  await new Promise((resolve) => half.on('close', resolve));
  t.pass('half a message, then the end');
});

t.test('only buffers that came back are used again', (t) => {
  const got: Buffer[] = [];
  const reader = new FrameReader(4 << 20, (message) => got.push(message));
  const send = (value: number): Buffer => {
    reader.push(frameHeader(1 << 20));
    reader.push(Buffer.alloc(1 << 20, value));
    return got.at(-1) ?? Buffer.alloc(0);
  };
  const first = send(1);
  const second = send(2);
  reader.recycle(first);
  const third = send(3);
  t.ok(third.buffer === first.buffer);
  t.ok(second.equals(Buffer.alloc(1 << 20, 2)));
  t.notOk(send(4).buffer === third.buffer);
  reader.recycle(Buffer.alloc(1 << 20));
  t.ok(third.equals(Buffer.alloc(1 << 20, 3)));
  t.end();
});

t.test('messages are whole however they are cut', (t) => {
  const messages = [0, 1, 5, 70_000, 3, 0].map((length, index) => Buffer.alloc(length, index + 1));
  const wire = Buffer.concat(messages.flatMap((message) => [frameHeader(message.length), message]));
  for (const step of [1, 2, 7, 16_384, wire.length]) {
    const got: Buffer[] = [];
    const reader = new FrameReader(1 << 20, (message) => got.push(message));
    for (let at = 0; at < wire.length; at += step) reader.push(wire.subarray(at, at + step));
    t.same(got, messages, `in steps of ${step}`);
    t.equal(reader.isInside, false);
  }
  t.end();
});
