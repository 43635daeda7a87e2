import t from 'tap';
import { ApiProblem, connect, follow, serverSentEvents, Unreachable } from '../../../../master/cli/client.ts';
import { json, problem, serve } from './server.ts';

const event = (id: number, type: string, name: string) =>
  `id: ${id}\ndata: ${JSON.stringify({ type, object: { metadata: { name, resourceVersion: String(id) } } })}\n\n`;
interface Named {
  metadata: { name: string; resourceVersion: string };
}

t.test('events are put together whatever the pieces they come in', async (t) => {
  const text = ': heartbeat\nid: 1\ndata: a\ndata: b\n\n\r\ndata:ü\r\n\r\nid: 7\n\nevent: x\n\ndata: cut';
  const bytes = new TextEncoder().encode(text);
  for (const length of [1, 2, 3, 1000]) {
    const pieces = Array.from({ length: Math.ceil(bytes.length / length) }, (_, i) =>
      bytes.subarray(i * length, (i + 1) * length),
    );
    const events = await Array.fromAsync(serverSentEvents(ReadableStream.from(pieces)));
    t.strictSame(
      events,
      [{ id: '1', data: 'a\nb' }, { id: undefined, data: 'ü' }, { id: '7', data: '' }], // prettier-ignore
      `pieces of ${length}; what was cut off is no event`,
    );
  }
});

t.test('a list is all its pages, and the token goes with each request', async (t) => {
  const server = await serve(({ url }, response) => {
    const second = url.includes('continue=p%2B2');
    json(response, {
      items: second ? [3] : [1, 2],
      metadata: { continue: second ? null : 'p+2', resourceVersion: '9' },
    });
  });
  t.teardown(() => server.close());
  const list = await connect(server.url, 'secret').list('/agents?limit=2');
  t.strictSame(list, { items: [1, 2, 3], metadata: { continue: null, resourceVersion: '9' } });
  t.strictSame(server.asked.map(({ url }) => url), ['/api/v1/agents?limit=2', '/api/v1/agents?limit=2&continue=p%2B2']); // prettier-ignore
  t.ok(server.asked.every(({ headers }) => headers.authorization === 'Bearer secret'));
});

t.test('a refusal is thrown with what the master said', async (t) => {
  const server = await serve((_, response) => problem(response, 422, 'spec.rpoSeconds is too small'));
  t.teardown(() => server.close());
  await t.rejects(connect(server.url, '').send('POST', '/replications', {}), {
    name: 'ApiProblem',
    message: 'spec.rpoSeconds is too small',
    problem: { status: 422 },
  });
  t.match(server.asked[0]?.headers, { 'idempotency-key': /.+/, 'content-type': 'application/json' });
});

t.test('what is no master is told apart from one that refuses and from one that is away', async (t) => {
  const proxy = await serve((_, response) => response.writeHead(502).end('<html>'));
  await t.rejects(connect(proxy.url, '').get('/agents'), { message: /502.*is this a replicator master/ });
  proxy.close();
  const gone = await connect(proxy.url, '').get('/agents').catch((error: unknown) => error); // prettier-ignore
  t.ok(gone instanceof Unreachable && !(gone instanceof ApiProblem));
  t.match((gone as Error).message, /ECONNREFUSED/);
});

t.test(
  'a connection that is closed under a question is no failure: it is asked once more, what may not be twice is not',
  async (t) => {
    let left = 0;
    const server = await serve((_asked, response) => {
      if (left-- > 0) response.destroy();
      else json(response, {});
    });
    t.teardown(() => server.close());
    const client = connect(server.url, '');
    left = 1;
    t.strictSame(await client.get('/agents'), {});
    left = 1;
    t.strictSame(await client.send('POST', '/recoveries', {}), {});
    const keys = server.asked.slice(-2).map(({ headers }) => headers['idempotency-key']);
    t.equal(keys[0], keys[1], 'with the key of the first');
    left = 1;
    await t.rejects(client.send('DELETE', '/agents/a'), { message: /cannot be reached/ });
    left = 2;
    await t.rejects(client.get('/agents'), { message: /cannot be reached/ }, 'once more, not for ever');
  },
);

t.test('a watch that is cut goes on after the last event seen, none lost and none twice', async (t) => {
  const streams = [
    event(5, 'MODIFIED', 'a') + event(6, 'MODIFIED', 'b'),
    '',
    event(8, 'MODIFIED', 'a'),
    event(9, 'DELETED', 'a'),
  ];
  let connection = 0;
  const server = await serve((_, response) => {
    const stream = streams[connection++] ?? '';
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    if (stream === '') response.destroy();
    else response.write(`${stream}id: 99`, () => response.destroy()); // the last id was not finished: it does not count
  });
  t.teardown(() => server.close());
  const seen: string[] = [];
  for await (const { type, object } of connect(server.url, '').watch<Named>('/x', '4', new AbortController().signal)) {
    seen.push(`${type} ${object.metadata.resourceVersion}`);
    if (type === 'DELETED') break;
  }
  t.strictSame(seen, ['MODIFIED 5', 'MODIFIED 6', 'MODIFIED 8', 'DELETED 9']);
  t.strictSame(server.asked.map(({ headers }) => headers['last-event-id']), ['4', '6', '6', '8']); // prettier-ignore
});

t.test('following one object: now, each change, past others, and past a history that is gone', async (t) => {
  let watches = 0;
  const server = await serve(({ url }, response) => {
    if (url.includes('limit=1'))
      return json(response, { items: [], metadata: { continue: null, resourceVersion: '10' } });
    if (url.endsWith('/x/a')) return json(response, { metadata: { name: 'a', resourceVersion: '7' } });
    if (watches++ === 0) return problem(response, 410, 'gone');
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    response.write(event(11, 'MODIFIED', 'b') + event(12, 'MODIFIED', 'a') + event(13, 'DELETED', 'a'));
  });
  t.teardown(() => server.close());
  const from = { metadata: { name: 'a', resourceVersion: '3' } };
  const objects = await Array.fromAsync(
    follow<Named>(connect(server.url, ''), '/x', 'a', new AbortController().signal, from),
  );
  t.strictSame(objects.map(({ metadata }) => metadata.resourceVersion), ['3', '7', '12']); // prettier-ignore
  const ids = server.asked.filter(({ url }) => url.includes('watch')).map(({ headers }) => headers['last-event-id']);
  t.strictSame(ids, ['3', '10'], 'the first from the answer, the second from the list');
});

t.test('a watch ends with its signal, also while the master is away', async (t) => {
  const server = await serve((_, response) => response.destroy());
  server.close();
  const stop = new AbortController();
  const watching = connect(server.url, '').watch('/x', '1', stop.signal).next();
  stop.abort();
  await t.rejects(watching, { name: 'AbortError' });
});

t.test('a refused watch is not tried again', async (t) => {
  const server = await serve((_, response) => problem(response, 403, 'no'));
  t.teardown(() => server.close());
  await t.rejects(connect(server.url, '').watch('/x', '1', new AbortController().signal).next(), {
    name: 'ApiProblem',
    message: 'no',
  });
  t.equal(server.asked.length, 1);
});
