import t, { type Test } from 'tap';
import * as grpc from '@grpc/grpc-js';
import protobuf from 'protobufjs';
import { readFileSync } from 'node:fs';
import { snapshotMetadata, type ByteRange } from '../../../../agent/capture/snapshotmetadata.ts';
import { systemClock, systemRandom } from '../../../../proto/system.ts';

const root = protobuf.parse(
  readFileSync(new URL('../../../../proto/snapshotmetadata.proto', import.meta.url), 'utf8'),
).root;
const never = new AbortController().signal;

interface Request {
  securityToken: string;
  namespace: string;
  baseSnapshotId: string;
  targetSnapshotName: string;
  startingOffset: number;
}
/** What one call answers: messages of ranges, then how it ends. */
interface Script {
  messages: [number, number][][];
  code?: grpc.status;
  capacity?: number;
}

/** A real gRPC server that answers delta calls one after the other as told. */
async function serving(t: Test, scripts: Script[]) {
  const requests: Request[] = [];
  const server = new grpc.Server();
  const asIs = (bytes: Buffer): Buffer => bytes;
  const type = root.lookupType('snapshotmetadata.GetMetadataDeltaResponse');
  server.addService(
    {
      delta: {
        path: '/snapshotmetadata.SnapshotMetadata/GetMetadataDelta',
        requestStream: false,
        responseStream: true,
        requestSerialize: asIs,
        requestDeserialize: asIs,
        responseSerialize: (message: object) => Buffer.from(type.encode(type.fromObject(message)).finish()),
        responseDeserialize: asIs,
      },
    },
    {
      delta(call: grpc.ServerWritableStream<Buffer, object>) {
        const request = root.lookupType('snapshotmetadata.GetMetadataDeltaRequest');
        requests.push(request.toObject(request.decode(call.request), { defaults: true, longs: Number }) as Request);
        const { messages, code, capacity = 1 << 30 } = scripts.shift() ?? { messages: [] };
        for (const message of messages) {
          const blockMetadata = message.map(([byteOffset, sizeBytes]) => ({ byteOffset, sizeBytes }));
          call.write({ blockMetadataType: 2, volumeCapacityBytes: capacity, blockMetadata });
        }
        if (code === undefined) call.end();
        else call.emit('error', Object.assign(new Error('as told'), { code, details: 'as told' }));
      },
    },
  );
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    );
  });
  t.teardown(() => server.forceShutdown());
  const client = snapshotMetadata({
    address: `127.0.0.1:${port}`,
    credentials: grpc.credentials.createInsecure(),
    namespace: 'shop',
    token: async () => `token ${requests.length}`,
    clock: systemClock,
    random: systemRandom,
  });
  t.teardown(() => client.close());
  const delta = async (): Promise<ByteRange[]> => {
    const ranges: ByteRange[] = [];
    for await (const range of client.delta('monday', 'tuesday', never)) ranges.push(range);
    return ranges;
  };
  return { requests, delta };
}

const { UNAVAILABLE, FAILED_PRECONDITION, NOT_FOUND, INVALID_ARGUMENT, OUT_OF_RANGE } = grpc.status;

t.test('an answer in several messages', async (t) => {
  const { requests, delta } = await serving(t, [{ messages: [[[0, 4096], [8192, 65536]], [], [[1 << 20, 1]]] }]); // prettier-ignore
  t.same(await delta(), [
    { offset: 0, length: 4096 },
    { offset: 8192, length: 65536 },
    { offset: 1 << 20, length: 1 },
  ]);
  t.match(requests, [
    {
      securityToken: 'token 0',
      namespace: 'shop',
      baseSnapshotId: 'monday',
      targetSnapshotName: 'tuesday',
      startingOffset: 0,
    },
  ]);
});

t.test('a call that breaks goes on behind the last range, with a fresh token', async (t) => {
  const { requests, delta } = await serving(t, [
    { messages: [[[0, 4096]]], code: UNAVAILABLE },
    { messages: [], code: UNAVAILABLE },
    // The server may begin with the range in which the offset lies.
    { messages: [[[0, 8192]], [[65536, 4096]]], code: UNAVAILABLE },
    { messages: [], code: OUT_OF_RANGE },
  ]);
  t.same((await delta()).at(-1), { offset: 65536, length: 4096 });
  t.same(
    requests.map(({ startingOffset, securityToken }) => [startingOffset, securityToken]),
    [
      [0, 'token 0'],
      [4096, 'token 1'],
      [4096, 'token 2'],
      [69632, 'token 3'],
    ],
  );
});

t.test('where nobody can tell what differs, that is the answer', async (t) => {
  for (const code of [FAILED_PRECONDITION, NOT_FOUND]) {
    const { requests, delta } = await serving(t, [{ messages: [[[0, 4096]]], code }]);
    await t.rejects(delta(), { name: 'NoDelta' });
    t.equal(requests.length, 1, 'asked once');
  }
});

t.test('what nothing can be built on is refused', async (t) => {
  const wrong: Record<string, Script> = {
    'out of order': { messages: [[[8192, 4096], [0, 4096]]] }, // prettier-ignore
    overlapping: { messages: [[[0, 8192], [4096, 8192]]] }, // prettier-ignore
    empty: { messages: [[[0, 0]]] },
    'outside the volume': { messages: [[[4096, 8192]]], capacity: 8192 },
    'before the volume': { messages: [[[-4096, 4096]]] },
  };
  for (const [what, script] of Object.entries(wrong)) {
    const { delta } = await serving(t, [script]);
    await t.rejects(delta(), { name: 'NoDelta' }, what);
  }
});

t.test('a refusal that will not change, and a server that never answers, are errors', async (t) => {
  const first = await serving(t, [{ messages: [], code: INVALID_ARGUMENT }]);
  await t.rejects(first.delta(), { code: INVALID_ARGUMENT });
  const second = await serving(
    t,
    Array.from({ length: 20 }, () => ({ messages: [], code: UNAVAILABLE })),
  );
  await t.rejects(second.delta(), { code: UNAVAILABLE });
  t.equal(second.requests.length, 7);
});
