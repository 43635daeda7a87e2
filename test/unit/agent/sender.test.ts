import t, { type Test } from 'tap';
import { Sender, windowBytes } from '../../../agent/sender.ts';
import type { ContentPiece, Piece } from '../../../agent/source.ts';
import { granuleBytes, granuleHash } from '../../../proto/granule.ts';
import type { CompressionChoice } from '../../../proto/payload.ts';
import { Pace } from '../../../proto/pace.ts';
import { ReplicationError } from '../../../proto/errors.ts';
import { streamPair } from '../../../proto/stream.ts';
import type { Commit, MirrorReply, MirrorRequest } from '../../../proto/wire.ts';
import { SimClock } from '../../sim/clock.ts';

const commit: Commit = {
  sequence: 6,
  point: true,
  sourceUs: 1,
  consistency: 'crash',
  sizeBytes: 1,
  verified: false,
  mismatchedGranules: 0,
  startedUs: 0,
  sentBytes: 0,
  groupCut: '',
};
const welcome = {
  protocol: 1,
  headSequence: 5,
  initialized: true,
  sizeBytes: 1,
  digest: Buffer.alloc(16),
  sourceId: 's',
  blank: false,
  incomplete: false,
};

/** A sender whose master is `answer`: what it says to each message. */
async function connected(
  t: Test,
  answer: (message: MirrorRequest) => MirrorReply[],
  compression: CompressionChoice = 'none',
) {
  const pair = streamPair<MirrorRequest, MirrorReply>();
  const ending = new AbortController();
  const clock = new SimClock().machine(0, () => 0);
  const got: MirrorRequest[] = [];
  void (async () => {
    for await (const message of pair.server.receive) {
      got.push(message);
      const replies = message.hello ? [{ welcome }] : answer(message);
      for (const reply of replies) await pair.server.send(reply);
    }
  })().catch(() => undefined);
  const sender = await Sender.open(
    pair.client,
    {
      protocol: 1,
      replicationUid: 'u',
      fencingGeneration: '1',
      volumeMode: 'Block',
      sizeBytes: 1,
      sourceId: 's',
      force: false,
    },
    { compression, pace: new Pace(clock, 0), clock, signal: ending.signal },
  );
  t.teardown(() => sender.close());
  return { pair, sender, got, ending };
}

const taken = (message: MirrorRequest): MirrorReply => ({ received: { number: message.number, workedUs: 0 } });
const obedient = (message: MirrorRequest): MirrorReply[] => {
  if (message.offer) return [{ want: { number: message.number, bitmap: Buffer.from([0b10]) } }, taken(message)];
  if (message.commit) return [{ committed: { sequence: message.commit.sequence, digest: Buffer.alloc(16, 7) } }];
  return [taken(message)];
};

function piece(
  first: number,
  values: number[],
  change: Partial<ContentPiece> = {},
): ContentPiece & { released: number } {
  const granules = values.map((value) => Buffer.alloc(granuleBytes, value));
  const one = {
    kind: 'content' as const,
    object: 0,
    first,
    hashes: Buffer.concat(granules.map((granule) => granuleHash(granule))),
    bytes: Buffer.concat(granules),
    offer: true,
    expectSame: false,
    released: 0,
    release: () => void one.released++,
    ...change,
  };
  return one;
}

async function* from(...pieces: Piece[]): AsyncGenerator<Piece> {
  yield* pieces;
}

t.test('of what is offered only what is wanted goes, and the commit after all of it', async (t) => {
  const { sender, got } = await connected(t, obedient);
  const pieces = [piece(4, [1, 2, 3], { expectSame: true }), piece(9, [5], { offer: false })];
  await sender.send(from(...pieces));
  t.ok((await sender.commit(commit)).equals(Buffer.alloc(16, 7)));
  t.same(
    got.map((message) => Object.keys(message).find((key) => key !== 'number')),
    ['hello', 'offer', 'data', 'commit'],
  );
  const runs = got[2]?.data?.runs.map(({ first, count }) => [first, count]);
  t.same(
    runs?.toSorted((a, b) => (a[0] ?? 0) - (b[0] ?? 0)),
    [
      [5, 1],
      [9, 1],
    ],
  );
  t.equal(sender.mismatched, 1, 'one of those that should have been there');
  t.equal(sender.sentBytes, 2 * granuleBytes);
  t.same(
    pieces.map(({ released }) => released),
    [1, 1],
  );
});

t.test('pieces about the same part come in their order, asked for or not', async (t) => {
  const values = ({ data }: MirrorRequest): number[] =>
    (data?.runs ?? []).map((_run, index) => data?.payload[index * granuleBytes] ?? -1);
  for (const [asked, askedLater] of [
    [true, false],
    [false, true],
    [true, true],
  ] as const) {
    let owed: MirrorReply[] = [];
    const { sender, got, pair } = await connected(t, (message) => {
      if (!message.offer) return obedient(message);
      owed.push({ want: { number: message.number, bitmap: Buffer.from([1]) } }, taken(message));
      // The answers come when the sender has nothing more to do without them.
      setImmediate(() => {
        for (const reply of owed) pair.server.send(reply).catch(() => undefined);
        owed = [];
      });
      return [];
    });
    await sender.send(from(piece(3, [1], { offer: asked }), piece(3, [2], { offer: askedLater })));
    const seen = got.flatMap((message): (string | number)[] => (message.offer ? ['offer'] : values(message)));
    const [first, later] = [
      [...(asked ? ['offer'] : []), 1],
      [...(askedLater ? ['offer'] : []), 2],
    ];
    t.same(seen, [...first, ...later], `${asked}, then ${askedLater}`);
  }
});

t.test('what is asked for and not answered holds up nothing that is about another part', async (t) => {
  const { sender, got, pair } = await connected(t, (message) => (message.offer ? [] : obedient(message)));
  const sending = sender.send(from(piece(3, [1]), piece(4, [2], { offer: false }), piece(5, new Array<number>(16).fill(3), { offer: false }))); // prettier-ignore
  while (!got.some(({ data }) => data)) await new Promise((resolve) => setImmediate(resolve));
  const { number } = got.find(({ offer }) => offer) ?? {};
  await pair.server.send({ want: { number: number ?? 0, bitmap: Buffer.from([0]) } });
  await sending;
  t.equal(sender.sameBytes, granuleBytes);
});

t.test('at most the window is under way, and it moves on with what is received', async (t) => {
  let owed: MirrorRequest[] = [];
  let most = 0;
  const { sender, pair } = await connected(t, (message) => {
    if (message.data) owed.push(message);
    most = Math.max(
      most,
      owed.reduce((sum, { data }) => sum + (data?.payload.length ?? 0), 0),
    );
    return message.commit ? obedient(message) : [];
  });
  const megabyte = Array.from({ length: 16 }, (_, at) => at + 1);
  let read = 0;
  async function* endless(): AsyncGenerator<Piece> {
    for (; read < 80; read++) yield piece(read * 16, megabyte, { offer: false });
  }
  const sending = sender.send(endless());
  for (let freed = 0; freed < 80;) {
    await new Promise((resolve) => setImmediate(resolve));
    if (owed.length === 0 || (owed.length < 32 && read < 80)) continue;
    freed += owed.length;
    const newest = owed.at(-1);
    owed = [];
    if (newest) await pair.server.send(taken(newest));
  }
  await sending;
  t.equal(most, windowBytes);
});

t.test('a line that breaks ends every wait and gives back what was offered', async (t) => {
  for (const breaking of ['cut', 'abort'] as const) {
    const { sender, pair, ending } = await connected(t, () => []);
    const offered = [piece(0, [1]), piece(1, [2])];
    const error = new ReplicationError('Stopped', 'stopped');
    let failed = false;
    async function* waiting(): AsyncGenerator<Piece> {
      yield* offered;
      // As a scan that has no buffer left until one of these comes back.
      while (offered.some(({ released }) => released === 0)) await new Promise((resolve) => setImmediate(resolve));
      failed = true;
      yield piece(2, [3]);
    }
    const sending = sender.send(waiting());
    await new Promise((resolve) => setImmediate(resolve));
    if (breaking === 'cut') pair.cut();
    else ending.abort(error);
    await t.rejects(sending, { code: breaking === 'cut' ? 'Disconnected' : 'Stopped' });
    t.ok(failed, 'the reading was set free');
    t.same(
      offered.map(({ released }) => released),
      [1, 1],
    );
    await t.rejects(sender.commit(commit), { code: breaking === 'cut' ? 'Disconnected' : 'Stopped' });
  }
});

const megabyteOf = (first: number, change: Partial<ContentPiece> = {}) =>
  piece(
    first,
    Array.from({ length: 16 }, (_, at) => at + 1),
    change,
  );

t.test('a piece that fills a message is lent to it until it is taken, a smaller one is copied', async (t) => {
  const { sender, got, pair } = await connected(t, () => []);
  const [large, small] = [megabyteOf(0, { offer: false }), piece(16, [7, 8], { offer: false })];
  let sent = false;
  const sending = sender.send(from(large, small)).then(() => (sent = true));
  const payloads = () => got.flatMap(({ data }) => (data ? [data.payload] : []));
  while (payloads().length < 2) await new Promise((resolve) => setImmediate(resolve));
  t.ok(payloads()[0]?.buffer === large.bytes.buffer, 'not copied');
  t.notOk(payloads()[1]?.buffer === small.bytes.buffer, 'copied');
  t.same([large.released, small.released, sent], [0, 1, false]);
  const last = got.find(({ data }) => data);
  if (last) await pair.server.send(taken(last));
  await sending;
  pair.cut();
  await t.rejects(sender.commit(commit), { code: 'Disconnected' });
  t.equal(large.released, 1, 'once');
});

t.test('no more is lent than a part of what the agent has', async (t) => {
  const { sender, got, pair } = await connected(t, () => []);
  const pieces = Array.from({ length: 25 }, (_, at) => megabyteOf(at * 16, { offer: false }));
  const sending = sender.send(from(...pieces));
  while (got.length < 26) await new Promise((resolve) => setImmediate(resolve));
  t.equal(pieces.filter(({ released }) => released === 0).length, 16);
  const last = got.at(-1);
  if (last) await pair.server.send(taken(last));
  await sending;
  t.ok(pieces.every(({ released }) => released === 1));
});

t.test('what was lent comes back when the line breaks, or when it is compressed into another buffer', async (t) => {
  const { sender, pair, got } = await connected(t, () => []);
  const lent = [megabyteOf(0, { offer: false }), megabyteOf(16, { offer: false })];
  const sending = sender.send(from(...lent));
  while (got.filter(({ data }) => data).length < 2) await new Promise((resolve) => setImmediate(resolve));
  t.same(
    lent.map(({ released }) => released),
    [0, 0],
  );
  pair.cut();
  await t.rejects(sending, { code: 'Disconnected' });
  t.same(
    lent.map(({ released }) => released),
    [1, 1],
  );
  const { sender: packing } = await connected(t, () => [], 'zstd');
  const packed = megabyteOf(0, { offer: false });
  await packing.send(from(packed));
  t.equal(packed.released, 1);
});

t.test('a commit is not taken for done before it is', async (t) => {
  const { sender, pair } = await connected(t, () => []);
  let done = false;
  const committing = sender.commit(commit).then(() => (done = true));
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
  t.equal(done, false);
  await pair.server.send({ committed: { sequence: 6, digest: Buffer.alloc(16) } });
  await committing;
  t.equal(done, true);
});

t.test('a master that refuses says why, and one that ends without a welcome is a broken line', async (t) => {
  const clock = new SimClock().machine(0, () => 0);
  const options = {
    compression: 'none' as const,
    pace: new Pace(clock, 0),
    clock,
    signal: new AbortController().signal,
  };
  const hello = {
    protocol: 1,
    replicationUid: 'u',
    fencingGeneration: '1',
    volumeMode: 'Block',
    sizeBytes: 1,
    sourceId: 's',
    force: false,
  };
  const refusing = streamPair<MirrorRequest, MirrorReply>();
  const refused = Sender.open(refusing.client, hello, options);
  refusing.cut(new ReplicationError('Fenced', 'an older generation'));
  await t.rejects(refused, { code: 'Fenced' });
  const ending = streamPair<MirrorRequest, MirrorReply>();
  const ended = Sender.open(ending.client, hello, options);
  ending.server.end();
  await t.rejects(ended, { code: 'Disconnected' });
});
