import '../../proto/reflect.ts';
import { Pkcs10CertificateRequestGenerator } from '@peculiar/x509';
import { createHash, webcrypto } from 'node:crypto';
import { readFile, rm, stat, writeFile } from 'node:fs/promises';
import { connect as connectTls } from 'node:tls';
import { join } from 'node:path';
import t from 'tap';
import { joinOrLoad } from '../../agent/identity.ts';
import { generateKeyPair, signingRequest } from '../../proto/certificate.ts';
import { ReplicationError } from '../../proto/errors.ts';
import { connect, windowBytes } from '../../proto/rpc.ts';
import { systemRandom } from '../../proto/system.ts';
import { dayMs, openMaster, until } from '../trust.ts';

const hour = 3_600_000;
const code = (name: string, message?: RegExp) => ({ code: name, ...(message === undefined ? {} : { message }) });

t.test('an agent joins with a token and its calls are let in under its name', async (t) => {
  const master = await openMaster(t);
  const identity = await master.join('node-a');
  t.equal(await master.whoami(identity.client()), 'node-a');
  t.match(master.store.get('Agent', 'node-a'), { identity: { certificates: [{ notAfter: /Z$/ }] }, spec: {} });
  t.ok(Math.abs(identity.notAfterMs - (Date.now() + 30 * dayMs)) < hour, 'good for 30 days');
  t.ok(master.events.some((event) => event.code === 'AgentJoined'));
  t.equal((await stat(join(master.dir, 'node-a', 'identity.json'))).mode & 0o777, 0o600);
  t.equal((await stat(join(master.dir, 'ca.key'))).mode & 0o777, 0o600);
  t.equal((await stat(join(master.dir, 'join.token'))).mode & 0o777, 0o600);
});

t.test('the server windows took effect', async (t) => {
  const master = await openMaster(t);
  t.ok(master.server.windows.streamBytes >= windowBytes);
  t.ok(master.server.windows.connectionBytes >= windowBytes);
  t.notOk(master.events.some((event) => event.code === 'MasterTrouble'));
});

t.test('TLS below 1.3 is refused', async (t) => {
  const master = await openMaster(t);
  const socket = connectTls({ port: master.server.port, maxVersion: 'TLSv1.2', rejectUnauthorized: false });
  const outcome = await new Promise((resolve) => {
    socket.once('secureConnect', () => resolve('connected'));
    socket.once('error', () => resolve('refused'));
  });
  socket.destroy();
  t.equal(outcome, 'refused');
});

t.test('a token joins once; join.token always holds an unused one', async (t) => {
  const master = await openMaster(t);
  const path = join(master.dir, 'join.token');
  const token = await readFile(path, 'utf8');
  await master.join('node-a');
  t.not(await readFile(path, 'utf8'), token);
  const old = join(master.dir, 'old.token');
  await writeFile(old, token);
  await t.rejects(master.join('node-b', { joinTokenFile: old }), code('JoinRefused', /already used by node-a/));
  await master.join('node-b');
  t.notOk(
    master.store.listRecords('join-tokens').some(({ key, value }) => `${key}${value}`.includes(token.trim())),
    'the store does not hold it in clear',
  );
});

t.test('a token for several nodes lets so many in, each as itself', async (t) => {
  const master = await openMaster(t);
  const token = master.authority.createToken(hour, 2);
  const joiner = (name: string) => ({ name, machineId: `machine-of-${name}`, keyHash: name });
  for (const name of ['a', 'b']) master.authority.useToken(token, joiner(name));
  master.authority.useToken(token, joiner('a'));
  t.throws(() => master.authority.useToken(token, joiner('c')), { message: /was already used by b and 1 others/ });
  t.throws(() => master.authority.useToken(token, { ...joiner('a'), machineId: 'machine-of-c' }));
});

t.test('a token of an earlier version is known', async (t) => {
  const master = await openMaster(t);
  const joiner = { name: 'a', machineId: 'machine-1', keyHash: 'k' };
  const hash = (token: string) => createHash('sha256').update(token).digest('hex');
  for (const [token, usedBy] of [
    ['unused', null],
    ['used', joiner],
  ] as const)
    master.store.putRecord('join-tokens', hash(token), JSON.stringify({ expiresMs: Date.now() + 60_000, usedBy }));
  for (const token of ['unused', 'used']) master.authority.useToken(token, joiner);
  for (const token of ['unused', 'used'])
    t.throws(() => master.authority.useToken(token, { ...joiner, name: 'b' }), { message: /already used by a/ });
});

t.test('a join whose answer was lost is finished with the same token and key, by nobody else', async (t) => {
  const master = await openMaster(t);
  const token = (await readFile(join(master.dir, 'join.token'), 'utf8')).trim();
  const stranger = connect(master.address, { caPem: master.authority.caPem });
  t.teardown(() => stranger.close());
  const request = async () => ({
    name: 'node-a',
    token,
    csrDer: await signingRequest(await generateKeyPair(), 'x'),
    agentVersion: '1',
    machineId: 'machine-1',
  });
  const first = await request();
  await stranger.join(first);
  await stranger.join(first);
  await t.rejects(stranger.join(await request()), code('JoinRefused', /already used/));
});

t.test('a wrong and an expired token are refused, and guessing is slowed down', async (t) => {
  const master = await openMaster(t);
  const wrong = join(master.dir, 'wrong.token');
  await writeFile(wrong, 'no such token');
  await t.rejects(master.join('node-a', { joinTokenFile: wrong }), code('JoinRefused', /not one of this master/));
  const late = join(master.dir, 'late.token');
  await writeFile(late, master.authority.createToken(hour));
  master.clock.shiftMs += 2 * hour;
  await t.rejects(master.join('node-a', { joinTokenFile: late }), code('JoinRefused', /expired at 20/));
  // Two hours have refilled what the first two took, but for the late one.
  for (let tries = 0; tries < 9; tries++)
    await t.rejects(master.join('node-a', { joinTokenFile: wrong }), code('JoinRefused', /not one of/));
  await t.rejects(master.join('node-a'), code('JoinRefused', /too many failed attempts/));
  master.clock.shiftMs += hour / 10;
  await master.join('node-a');
});

t.test('a name taken by another node is refused until that one is gone; the same node may join again', async (t) => {
  const master = await openMaster(t);
  const first = await master.join('node-a');
  await t.rejects(
    master.join('node-a', { dataDir: join(master.dir, 'other') }),
    code('JoinRefused', /belongs to another node/),
  );
  const stored = JSON.parse(await readFile(join(master.dir, 'node-a', 'identity.json'), 'utf8')) as object;
  await writeFile(join(master.dir, 'node-a', 'identity.json'), JSON.stringify({ ...stored, certificatePem: null }));
  const again = await master.join('node-a');
  t.equal(await master.whoami(again.client()), 'node-a');
  await t.rejects(master.whoami(first.client()), code('NotAuthenticated', /joined anew|joined again/));
  master.store.delete('Agent', 'node-a');
  await master.join('node-a', { dataDir: join(master.dir, 'other') });
});

t.test(
  'a name that is no label, a key that is not P-256 and a request not signed by its key are refused',
  async (t) => {
    const master = await openMaster(t);
    const stranger = connect(master.address, { caPem: master.authority.caPem });
    t.teardown(() => stranger.close());
    const csrDer = await signingRequest(await generateKeyPair(), 'x');
    const request = { name: 'node-a', token: '', csrDer, agentVersion: '1', machineId: 'machine-1' };
    const attempt = (change: object) => stranger.join({ ...request, token: master.authority.createToken(), ...change });
    await t.rejects(attempt({ name: '../etc' }), code('BadMessage', /JoinRequest\.name/));
    await t.rejects(attempt({ name: 'x'.repeat(64) }), code('BadMessage', /JoinRequest\.name/));
    await t.rejects(attempt({ machineId: '' }), code('BadMessage', /machine_id/));
    await t.rejects(attempt({ csrDer: Buffer.from('junk') }), code('BadMessage', /csr_der/));
    const wide = { name: 'ECDSA', namedCurve: 'P-384', hash: 'SHA-384' };
    const keys = await webcrypto.subtle.generateKey(wide, true, ['sign', 'verify']);
    const other = await Pkcs10CertificateRequestGenerator.create({ name: 'CN=x', keys, signingAlgorithm: wide });
    await t.rejects(attempt({ csrDer: Buffer.from(other.rawData) }), code('BadMessage', /not for a P-256 key/));
    const forged = Buffer.from(csrDer);
    forged[forged.length - 1] = (forged.at(-1) ?? 0) ^ 1;
    await t.rejects(attempt({ csrDer: forged }), code('BadMessage', /csr_der/));
    await attempt({});
  },
);

t.test(
  'no certificate, another CA, an expired and a revoked certificate are refused with reason and cure',
  async (t) => {
    const master = await openMaster(t);
    const other = await openMaster(t);
    const stranger = connect(master.address, { caPem: master.authority.caPem });
    t.teardown(() => stranger.close());
    await t.rejects(master.whoami(stranger), code('NotAuthenticated', /no client certificate.*join/));

    await other.join('node-a');
    const foreign = JSON.parse(await readFile(join(other.dir, 'node-a', 'identity.json'), 'utf8')) as {
      keyPem: string;
      certificatePem: string;
    };
    const client = connect(master.address, { ...foreign, caPem: master.authority.caPem });
    t.teardown(() => client.close());
    await t.rejects(master.whoami(client), code('NotAuthenticated', /not signed by this master/));

    const identity = await master.join('node-a');
    master.clock.shiftMs += 31 * dayMs;
    await t.rejects(master.whoami(identity.client()), code('NotAuthenticated', /expired at .*join again/));
    master.clock.shiftMs = 0;
    t.equal(await master.whoami(identity.client()), 'node-a');
    master.store.delete('Agent', 'node-a');
    await t.rejects(master.whoami(identity.client()), code('NotAuthenticated', /removed.*join again/));
    await t.rejects(identity.renew(), code('NotAuthenticated'));
  },
);

t.test('revoking ends the open calls of that agent, and of no other', async (t) => {
  const master = await openMaster(t);
  const revoked = (await master.join('node-a')).client().control();
  const kept = (await master.join('node-b')).client().control();
  for (const stream of [revoked, kept]) {
    await stream.send({ ping: { number: 1, agentUs: 0, offsetUs: 0, errorUs: 0 } });
    t.match(await stream.receive.next(), { value: { welcome: {} } });
  }
  master.store.delete('Agent', 'node-a');
  await t.rejects(revoked.receive.next(), code('NotAuthenticated', /removed/));
  await t.rejects(revoked.send({ ping: { number: 2, agentUs: 0, offsetUs: 0, errorUs: 0 } }), code('NotAuthenticated'));
  await kept.send({ ping: { number: 2, agentUs: 0, offsetUs: 0, errorUs: 0 } });
  t.match(await kept.receive.next(), { value: { welcome: {} } });
  kept.cancel();
});

t.test('a renewed certificate replaces the old one, which goes on until it expires', async (t) => {
  const master = await openMaster(t);
  const identity = await master.join('node-a');
  const old = identity.client();
  const oldTrust = JSON.parse(await readFile(join(master.dir, 'node-a', 'identity.json'), 'utf8')) as never;
  master.clock.shiftMs += 21 * dayMs;
  await identity.renew();
  t.not(identity.client(), old);
  t.equal(await master.whoami(identity.client()), 'node-a');
  const client = connect(master.address, oldTrust);
  t.teardown(() => client.close());
  t.equal(await master.whoami(client), 'node-a');
  master.clock.shiftMs += 10 * dayMs;
  await t.rejects(master.whoami(client), code('NotAuthenticated', /expired/));
  t.equal(await master.whoami(identity.client()), 'node-a');
  const loaded = await master.join('node-a', { joinTokenFile: '/nowhere' });
  t.equal(loaded.notAfterMs, identity.notAfterMs, 'the new one was stored');
});

t.test('a certificate renews itself at two thirds of its life, and a failed try is made again', async (t) => {
  const master = await openMaster(t);
  const identity = await master.join('node-a');
  const before = identity.notAfterMs;
  const stop = new AbortController();
  const running = identity.run(stop.signal);
  await until(() => master.clock.sleepers.length > 0);
  master.clock.advance(19 * dayMs);
  await until(() => master.clock.sleepers.length > 0);
  t.equal(identity.notAfterMs, before);
  const agent = master.store.get('Agent', 'node-a');
  const registered = agent?.identity.certificates ?? [];
  master.store.update('Agent', 'node-a', (object) => (object.identity.certificates = []));
  master.clock.advance(2 * dayMs);
  await until(() => master.retries.length > 0);
  t.match(master.retries[0], code('NotAuthenticated'));
  master.store.update('Agent', 'node-a', (object) => (object.identity.certificates = registered));
  await until(() => {
    master.clock.advance(hour / 4);
    return identity.notAfterMs > before;
  });
  stop.abort();
  await running;
});

t.test('however often an agent renews without storing it, the certificate that it has stays good', async (t) => {
  const master = await openMaster(t);
  const identity = await master.join('node-a');
  const client = identity.client();
  for (let times = 0; times < 6; times++)
    await client.renew({ csrDer: await signingRequest(await generateKeyPair(), 'x') });
  t.equal(await master.whoami(client), 'node-a');
  t.ok((master.store.get('Agent', 'node-a')?.identity.certificates.length ?? 0) <= 4);
});

t.test('an agent refuses a master of another CA, and a data directory of another name', async (t) => {
  const master = await openMaster(t);
  const other = await openMaster(t);
  await t.rejects(
    master.join('node-a', { caFile: join(other.dir, 'ca.pem') }),
    code('NotAuthenticated', /master's certificate is not trusted/),
  );
  await master.join('node-b');
  await t.rejects(
    master.join('node-c', { dataDir: join(master.dir, 'node-b') }),
    code('JoinRefused', /belongs to the agent node-b/),
  );
  await t.rejects(master.join('node-b', { caFile: join(other.dir, 'ca.pem') }), code('NotAuthenticated', /another CA/));
});

t.test('an agent that finds no master tries again until it is there or it is stopped', async (t) => {
  const master = await openMaster(t);
  const stop = new AbortController();
  const joining = joinOrLoad(
    {
      dataDir: join(master.dir, 'node-x'),
      name: 'node-x',
      master: '127.0.0.1:1',
      joinTokenFile: join(master.dir, 'join.token'),
      caFile: join(master.dir, 'ca.pem'),
      agentVersion: '1',
      clock: master.clock,
      random: systemRandom,
      onRetry: (error) => stop.abort(error),
    },
    stop.signal,
  );
  await t.rejects(joining, code('Disconnected'));
});

t.test(
  'the authority survives a restart, issues a new server certificate for new names, keeps the token',
  async (t) => {
    const master = await openMaster(t);
    const token = await readFile(join(master.dir, 'join.token'), 'utf8');
    const before = master.authority.server().certificatePem;
    const same = await master.reopenAuthority();
    t.equal(same.server().certificatePem, before);
    t.equal(same.caPem, master.authority.caPem);
    t.equal(await readFile(join(master.dir, 'join.token'), 'utf8'), token);
    const named = await master.reopenAuthority(['master.example', '192.0.2.7']);
    t.not(named.server().certificatePem, before);
    master.clock.shiftMs += 300 * dayMs;
    t.equal(await named.refresh(), true, 'near its end');
    await rm(join(master.dir, 'ca.key'));
    await t.rejects(master.reopenAuthority(), ReplicationError);
  },
);
