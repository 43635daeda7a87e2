/** Events on their way out, to real servers: a webhook, syslog over UDP, TCP; what fails is tried again, over restarts too. */
import t from 'tap';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { createServer, type IncomingMessage } from 'node:http';
import { createServer as createTcpServer, type AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { openDatabase } from '../../master/database.ts';
import { eventLog } from '../../master/events.ts';
import { openSinks } from '../../master/sinks.ts';
import { signature, wrongUrl } from '../../master/sinksend.ts';
import { sqliteStore } from '../../master/store-sqlite.ts';
import { systemClock, systemRandom } from '../../proto/system.ts';
import { refused, serve, v1 } from './apiserver.ts';

async function until(what: string, done: () => unknown): Promise<void> {
  for (const endMs = Date.now() + 60_000; !(await done()); await sleep(10))
    if (Date.now() > endMs) throw new Error(`not reached: ${what}`);
}
type Test = Parameters<typeof serve>[0];

/** A webhook that answers as told. */
async function hook(t: Test) {
  const got: { body: string; headers: IncomingMessage['headers'] }[] = [];
  const answer = { status: 200 };
  const server = createServer((request, reply) => {
    let body = '';
    request.on('data', (text: Buffer) => (body += text.toString()));
    request.on('end', () => {
      got.push({ body, headers: request.headers });
      reply
        .writeHead(answer.status, answer.status === 302 ? { location: 'http://127.0.0.1:1/' } : {})
        .end('secret answer');
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => {
    server.closeAllConnections();
    server.close();
  });
  const { port } = server.address() as AddressInfo;
  const codes = (): string[] => got.map(({ body }) => (JSON.parse(body) as { code: string }).code);
  return {
    url: `http://user:word@127.0.0.1:${port}/hook/secret-path?key=secret`,
    origin: `http://127.0.0.1:${port}`,
    got,
    answer,
    codes,
  };
}

t.test('a webhook gets what is bad enough, signed; its address is never shown', async (t) => {
  const { call, events, store } = await serve(t);
  const { url, origin, got, codes } = await hook(t);
  const plain = url.replace('user:word@', '');
  const made = await call('POST', `${v1}/sinks`, { name: 'chat', url: plain, secret: 'a-good-secret' });
  t.match(made, { status: 201, body: { kind: 'Sink', spec: { to: origin, level: 'WARNING', signed: true } } });
  events.emit({ code: 'FullScan', level: 'INFO', message: 'not bad enough', object: null });
  events.emit({ code: 'SpaceLow', level: 'WARNING', message: 'bad', object: 'StorageClass/local' });
  await until('it has come', () => codes().includes('SpaceLow'));
  t.notOk(codes().includes('FullScan'));
  const [first] = got;
  t.match(JSON.parse(first?.body ?? ''), { kind: 'Event', level: 'WARNING', object: 'StorageClass/local' });
  t.equal(first?.headers['x-replicator-signature'], `sha256=${signature(first?.body ?? '', 'a-good-secret')}`);
  const shown = (await call('GET', `${v1}/sinks`)).text + JSON.stringify(events.list({ limit: 100 }));
  t.notMatch(shown, /secret-path|a-good-secret|key=secret/);
  t.match(store.listRecords('sinks')[0]?.value, /secret-path/);
  for (const [body, field] of [
    [{ name: 'x', url: 'ftp://a/' }, /url/],
    [{ name: 'x', url: 'syslog+tcp://a' }, /port/],
    [{ name: 'x', url: 'syslog+tcp://a:1', secret: 'long-enough' }, /secret/],
    [{ name: 'X', url: plain }, /name/],
  ] as const)
    refused(t, await call('POST', `${v1}/sinks`, body), 422, 'Invalid', field);
  refused(t, await call('POST', `${v1}/sinks`, { name: 'chat', url: plain }), 409, 'AlreadyExists');
  t.equal((await call('DELETE', `${v1}/sinks/chat`)).status, 200);
  const before = got.length;
  events.emit({ code: 'SpaceLow', level: 'ERROR', message: 'later', object: null });
  await sleep(100);
  t.equal(got.length, before, 'nothing after it was deleted');
});

t.test('what is not taken is tried again in order, with one event about it, and over a restart', async (t) => {
  const database = openDatabase(':memory:');
  const store = sqliteStore(database, { clock: systemClock, random: systemRandom });
  const events = eventLog(database, systemClock);
  const clock = {
    nowMs: () => systemClock.nowMs(),
    sleep: (_ms: number, signal?: AbortSignal) => sleep(20, undefined, { signal }),
  };
  const { url, got, answer, codes } = await hook(t);
  const run = () => {
    const stop = new AbortController();
    const sinks = openSinks({ store, events, clock });
    const done = sinks.run(stop.signal);
    return { sinks, stop: () => (stop.abort(), done) };
  };
  const first = run();
  first.sinks.create('chat', { url: url.replace('user:word@', ''), level: 'WARNING', secret: null });
  answer.status = 302;
  events.emit({ code: 'SpaceLow', level: 'WARNING', message: 'one', object: null });
  await until('it is tried more than once', () => got.length > 2);
  t.match(first.sinks.get('chat')?.status, { state: 'Failing', message: /answered 302/ });
  await first.stop();
  events.emit({ code: 'StorageTrouble', level: 'ERROR', message: 'while nobody sends', object: null });
  answer.status = 500;
  const second = run();
  await until('it fails still', () => second.sinks.get('chat')?.status.state === 'Failing');
  const tried = got.length;
  answer.status = 204;
  await until('all have come', () => codes().slice(tried).includes('StorageTrouble'));
  await until('it is said', () => events.list({ limit: 20 }).items.some(({ code }) => code === 'SinkRecovered'));
  const failures = (): string[] =>
    codes()
      .slice(tried)
      .filter((code) => code === 'SinkFailing');
  await until('both events about it have come too', () => failures().length === 2);
  const taken = codes().slice(tried);
  t.ok(taken.indexOf('SpaceLow') < taken.indexOf('StorageTrouble'), 'in order');
  await second.stop();
  const count = got.length;
  const third = run();
  await sleep(100);
  t.equal(got.length, count, 'nothing again that was taken');
  await third.stop();
  store.close();
});

t.test('syslog over UDP and TCP, one line for an event', async (t) => {
  const { call, events } = await serve(t);
  const udp = createSocket('udp4');
  let line = '';
  udp.on('message', (data) => (line += data.toString()));
  udp.bind(0, '127.0.0.1');
  await once(udp, 'listening');
  let frames = '';
  const tcp = createTcpServer((socket) => socket.on('data', (data: Buffer) => (frames += data.toString())));
  tcp.listen(0, '127.0.0.1');
  await once(tcp, 'listening');
  t.teardown(() => {
    udp.close();
    tcp.close();
  });
  const at = (server: { address(): unknown }): number => (server.address() as AddressInfo).port;
  await call('POST', `${v1}/sinks`, { name: 'udp', url: `syslog+udp://127.0.0.1:${at(udp)}`, level: 'ERROR' });
  await call('POST', `${v1}/sinks`, { name: 'tcp', url: `syslog+tcp://127.0.0.1:${at(tcp)}`, level: 'ERROR' });
  events.emit({ code: 'StorageTrouble', level: 'ERROR', message: 'two\nlines\u0007', object: 'StorageClass/local' });
  await until('both have it', () => line !== '' && frames !== '');
  t.match(
    line,
    /^<131>1 \d{4}-\S+Z \S+ replicator-master \d+ StorageTrouble - storage StorageClass\/local: two lines $/,
  );
  t.equal(frames, `${Buffer.byteLength(line)} ${line}`);
});

t.test('addresses', (t) => {
  for (const url of ['https://h/x', 'http://h', 'syslog+udp://h:514', 'syslog+tls://[::1]:6514'])
    t.equal(wrongUrl(url), undefined, url);
  for (const url of ['', 'h:1', 'file:///etc/passwd', 'syslog+udp://h', 'syslog://h:1']) t.ok(wrongUrl(url), url);
  t.end();
});
