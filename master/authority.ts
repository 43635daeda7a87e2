/**
 * Who belongs: the master's own CA, its server certificate, the certificates of agents, and join tokens.
 *
 * On disk under DIR: `ca.key` (0600), `ca.pem` (0600), `server.key` (0600), `server.pem`, `join.token` (0600, always one unused
 * token). Every file is replaced whole or not at all. Losing the folder means that every agent joins again; a `ca.key`
 * without its `ca.pem`, or the other way round, is refused rather than replaced.
 *
 * Tokens are kept as SHA-256 in the store (table join-tokens), so the store tells nobody how to join. A token joins once;
 * the same machine with the same key may use it again within its life, because the answer to its first try may be lost.
 * Revocation is not here: the registered fingerprints of Agent objects are what counts, see master/server.ts.
 */
import '../proto/reflect.ts';
import * as x509 from '@peculiar/x509';
import { createHash, createPublicKey, randomBytes, webcrypto, X509Certificate } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { isIP } from 'node:net';
import { join } from 'node:path';
import * as certificate from '../proto/certificate.ts';
import { readText, writeDurably } from '../proto/durable.ts';
import type { Clock } from '../proto/effects.ts';
import { ReplicationError, messageOf } from '../proto/errors.ts';
import { masterServerName } from '../proto/rpc.ts';
import type { Store } from './store.ts';

const dayMs = 86_400_000;
const caDays = 20 * 365;
const serverDays = 365;
/** Clocks of nodes may be behind the master's. */
const skewMs = 3_600_000;
const tokensTable = 'join-tokens';
/** Unused and used tokens together; expired ones go first. */
const maxTokens = 10_000;

export interface Pair {
  keyPem: string;
  certificatePem: string;
}

export interface Issued {
  certificateDer: Buffer;
  fingerprint: string;
  notAfterMs: number;
  /** SHA-256 of the public key, hex. */
  keyHash: string;
}

/** Who used a token; the same one may use it again. */
export interface Joiner {
  name: string;
  machineId: string;
  keyHash: string;
}

export interface Authority {
  readonly caPem: string;
  readonly caDer: Buffer;
  /** The server's present key and certificate; again after `refresh`. */
  server(): Pair;
  /** Issues a new server certificate when names changed or a third of its life is left. True when it did. */
  refresh(): Promise<boolean>;
  /** @throws ReplicationError BadMessage when the request is no PKCS #10 of a P-256 key signed by that key */
  sign(csrDer: Buffer, name: string): Promise<Issued>;
  /** A new key with its certificate: `server` of a receiver of that name, `client` of this master when it dials them. */
  pair(usage: 'server' | 'client', name: string): Promise<Pair>;
  /** True when our CA has signed it; says nothing about time and revocation. */
  issued(certificateDer: Buffer): boolean;
  /** A new token that lets `nodes` (1) nodes in, each once. The only time it is seen in clear. */
  createToken(lifeMs?: number, nodes?: number): string;
  /** @throws ReplicationError JoinRefused: unknown, used up by others, or expired */
  checkToken(token: string, joiner?: Joiner): void;
  /** checkToken, and from now on one of its uses is this joiner's alone. */
  useToken(token: string, joiner: Joiner): void;
  /** Makes join.token hold an unused one; call it after useToken. */
  publishToken(): Promise<void>;
}

export interface AuthorityOptions {
  dir: string;
  store: Store;
  clock: Clock;
  /** --advertise: names and addresses that agents dial, beside the loopback ones. */
  hosts?: string[];
  /** Of agents' certificates. Default 30. */
  certificateDays?: number;
  /** Default 24. */
  tokenHours?: number;
}

interface TokenRecord {
  expiresMs: number;
  /** Absent: 1. */
  nodes?: number;
  usedBy: Joiner[];
}

export async function openAuthority(options: AuthorityOptions): Promise<Authority> {
  const { dir, store, clock, hosts = [], certificateDays = 30, tokenHours = 24 } = options;
  await mkdir(dir, { recursive: true });
  const ca = await openCa(dir, clock.nowMs());
  const caCertificate = new X509Certificate(ca.pem);
  const names = [...new Set([masterServerName, 'localhost', '127.0.0.1', '::1', ...hosts])];
  let server = await readServer(dir);
  let publishing = Promise.resolve();

  const authority: Authority = {
    caPem: ca.pem,
    caDer: caCertificate.raw,
    server() {
      if (server === undefined) throw new ReplicationError('Internal', 'the server certificate is not ready');
      return server;
    },

    async refresh() {
      if (server !== undefined && isGood(server.certificatePem, caCertificate, names, clock.nowMs())) return false;
      const next = await newPair(ca, {
        name: masterServerName,
        days: serverDays,
        nowMs: clock.nowMs(),
        usage: x509.ExtendedKeyUsage.serverAuth,
        names,
      });
      // One after the other: a crash between them leaves a pair that does not fit, which readServer throws away.
      await writeDurably(join(dir, 'server.key'), next.keyPem, 0o600);
      await writeDurably(join(dir, 'server.pem'), next.certificatePem, 0o644);
      server = next;
      return true;
    },

    async sign(csrDer, name) {
      const publicKey = await requestedKey(csrDer);
      const nowMs = clock.nowMs();
      const usage = x509.ExtendedKeyUsage.clientAuth;
      const certificateDer = await issue(ca, publicKey, { name, days: certificateDays, nowMs, usage, names: [] });
      return {
        certificateDer,
        fingerprint: certificate.fingerprintOf(certificateDer),
        notAfterMs: certificate.validityOf(certificateDer).notAfterMs,
        keyHash: createHash('sha256').update(Buffer.from(publicKey.rawData)).digest('hex'),
      };
    },

    pair(usage, name) {
      const { clientAuth, serverAuth } = x509.ExtendedKeyUsage;
      const [key, names] = usage === 'server' ? [serverAuth, [name]] : [clientAuth, []];
      return newPair(ca, { name, days: serverDays, nowMs: clock.nowMs(), usage: key, names });
    },

    issued(certificateDer) {
      try {
        return new X509Certificate(certificateDer).verify(caCertificate.publicKey);
      } catch {
        return false;
      }
    },

    createToken(lifeMs = tokenHours * 3_600_000, nodes = 1) {
      dropOldTokens(store, clock.nowMs());
      const token = randomBytes(32).toString('base64url');
      write(store, hashOf(token), { expiresMs: clock.nowMs() + lifeMs, nodes, usedBy: [] });
      return token;
    },

    checkToken(token, joiner) {
      const record = read(store, hashOf(token));
      if (record === undefined) refuse('is not one of this master, or was used or expired long ago');
      const { usedBy, nodes = 1 } = record;
      const isFull = usedBy.length >= nodes && joiner !== undefined && !usedBy.some((one) => isSame(one, joiner));
      if (isFull) refuse(`was already used by ${usedBy.at(-1)?.name}${nodes > 1 ? ` and ${nodes - 1} others` : ''}`);
      if (record.expiresMs <= clock.nowMs()) refuse(`expired at ${new Date(record.expiresMs).toISOString()}`);
    },

    useToken(token, { name, machineId, keyHash }) {
      const joiner = { name, machineId, keyHash };
      authority.checkToken(token, joiner);
      const record = read(store, hashOf(token));
      if (record === undefined || record.usedBy.some((one) => isSame(one, joiner))) return;
      write(store, hashOf(token), { ...record, usedBy: [...record.usedBy, joiner] });
    },

    publishToken() {
      // One at a time: two joins at once must not write the same staged file.
      publishing = publishing
        .catch(() => undefined)
        .then(async () => {
          const path = join(dir, 'join.token');
          const record = read(store, hashOf(((await readText(path)) ?? '').trim()));
          // Half of its life left, so that whoever reads the file has time to use it.
          const enoughMs = (tokenHours * 3_600_000) / 2;
          if (record?.usedBy.length === 0 && record.expiresMs - clock.nowMs() > enoughMs) return;
          await writeDurably(path, `${authority.createToken()}\n`, 0o600);
        });
      return publishing;
    },
  };
  await authority.refresh();
  await authority.publishToken();
  return authority;
}

function refuse(what: string): never {
  throw new ReplicationError(
    'JoinRefused',
    `the join token ${what}; get a new one (join.token in the master's folder)`,
  );
}

// ---- tokens at rest ----

function hashOf(token: string): string {
  return createHash('sha256').update(token).digest('hex');
}
function read(store: Store, hash: string): TokenRecord | undefined {
  const text = store.getRecord(tokensTable, hash);
  if (text === undefined) return undefined;
  const record = JSON.parse(text) as TokenRecord | (Omit<TokenRecord, 'usedBy'> & { usedBy: Joiner | null });
  // Once there was one use only.
  const { usedBy } = record;
  return { ...record, usedBy: Array.isArray(usedBy) ? usedBy : usedBy === null ? [] : [usedBy] };
}
function isSame(a: Joiner, b: Joiner): boolean {
  return a.name === b.name && a.machineId === b.machineId && a.keyHash === b.keyHash;
}
function write(store: Store, hash: string, record: TokenRecord): void {
  store.putRecord(tokensTable, hash, JSON.stringify(record));
}
/** Expired ones stay a week, so that who comes late with one hears why. */
function dropOldTokens(store: Store, nowMs: number): void {
  const records = store
    .listRecords(tokensTable)
    .map(({ key, value }) => ({ key, expiresMs: (JSON.parse(value) as TokenRecord).expiresMs }))
    .sort((a, b) => a.expiresMs - b.expiresMs);
  const excess = records.length - maxTokens + 1;
  records.forEach(({ key, expiresMs }, index) => {
    if (index < excess || expiresMs < nowMs - 7 * dayMs) store.putRecord(tokensTable, key, undefined);
  });
}

// ---- certificates ----

interface Ca {
  pem: string;
  certificate: x509.X509Certificate;
  privateKey: webcrypto.CryptoKey;
}

async function openCa(dir: string, nowMs: number): Promise<Ca> {
  const keyPath = join(dir, 'ca.key');
  const pemPath = join(dir, 'ca.pem');
  const keyPem = await readText(keyPath);
  let pem = await readText(pemPath);
  // The certificate is written last: a key alone is a first start that was cut short, nobody has joined yet.
  if (keyPem === undefined && pem !== undefined)
    throw new ReplicationError('Internal', `${pemPath} is there but ${keyPath} is not; restore it from a backup`);
  const pair = keyPem === undefined ? await certificate.generateKeyPair() : await importKey(keyPath, keyPem);
  if (keyPem === undefined) await writeDurably(keyPath, pair.keyPem, 0o600);
  if (pem === undefined) {
    const made = await x509.X509CertificateGenerator.createSelfSigned({
      serialNumber: randomBytes(16).toString('hex'),
      name: [{ CN: [`replicator CA ${randomBytes(4).toString('hex')}`] }],
      notBefore: new Date(nowMs - dayMs),
      notAfter: new Date(nowMs + caDays * dayMs),
      keys: pair.keys,
      signingAlgorithm: certificate.keyAlgorithm,
      extensions: [
        new x509.BasicConstraintsExtension(true, 0, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
        await x509.SubjectKeyIdentifierExtension.create(pair.keys.publicKey),
      ],
    });
    pem = certificate.pemOf('CERTIFICATE', Buffer.from(made.rawData));
    await writeDurably(pemPath, pem, 0o600);
  }
  return { pem, certificate: new x509.X509Certificate(pem), privateKey: pair.keys.privateKey };
}

async function importKey(path: string, keyPem: string): Promise<certificate.KeyPair> {
  try {
    return await certificate.importKeyPair(keyPem);
  } catch (error) {
    throw new ReplicationError('Internal', `${path} is no P-256 key; restore it from a backup`, { cause: error });
  }
}

interface Subject {
  name: string;
  days: number;
  nowMs: number;
  usage: x509.ExtendedKeyUsage;
  names: string[];
}

async function issue(ca: Ca, publicKey: x509.PublicKey, subject: Subject): Promise<Buffer> {
  const names = subject.names.map((value) => ({ type: isIP(value) === 0 ? ('dns' as const) : ('ip' as const), value }));
  const made = await x509.X509CertificateGenerator.create({
    // The first bit stays clear: serial numbers are positive.
    serialNumber: `01${randomBytes(15).toString('hex')}`,
    subject: [{ CN: [subject.name] }],
    issuer: ca.certificate.subjectName,
    notBefore: new Date(subject.nowMs - skewMs),
    notAfter: new Date(subject.nowMs + subject.days * dayMs),
    publicKey,
    signingKey: ca.privateKey,
    signingAlgorithm: certificate.keyAlgorithm,
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([subject.usage], true),
      await x509.AuthorityKeyIdentifierExtension.create(ca.certificate),
      ...(names.length === 0 ? [] : [new x509.SubjectAlternativeNameExtension(names)]),
    ],
  });
  return Buffer.from(made.rawData);
}

async function newPair(ca: Ca, subject: Subject): Promise<Pair> {
  const { keys, keyPem } = await certificate.generateKeyPair();
  const spki = await webcrypto.subtle.exportKey('spki', keys.publicKey);
  const der = await issue(ca, new x509.PublicKey(spki), subject);
  return { keyPem, certificatePem: certificate.pemOf('CERTIFICATE', der) };
}

async function requestedKey(csrDer: Buffer): Promise<x509.PublicKey> {
  let publicKey: x509.PublicKey;
  let curve: string | undefined;
  let proven: boolean;
  try {
    const request = new x509.Pkcs10CertificateRequest(csrDer);
    publicKey = request.publicKey;
    const spki = createPublicKey({ key: Buffer.from(publicKey.rawData), format: 'der', type: 'spki' });
    curve = spki.asymmetricKeyDetails?.namedCurve;
    proven = await request.verify();
  } catch (error) {
    throw new ReplicationError('BadMessage', `csr_der is no signing request: ${messageOf(error)}`, { cause: error });
  }
  if (curve !== 'prime256v1') throw new ReplicationError('BadMessage', 'csr_der is not for a P-256 key');
  if (!proven) throw new ReplicationError('BadMessage', 'csr_der is not signed by its own key');
  return publicKey;
}

async function readServer(dir: string): Promise<Pair | undefined> {
  const keyPem = await readText(join(dir, 'server.key'));
  const certificatePem = await readText(join(dir, 'server.pem'));
  if (keyPem === undefined || certificatePem === undefined) return undefined;
  try {
    const { keys } = await certificate.importKeyPair(keyPem);
    const spki = await webcrypto.subtle.exportKey('spki', keys.publicKey);
    const fits = new X509Certificate(certificatePem).publicKey.export({ type: 'spki', format: 'der' });
    return fits.equals(Buffer.from(spki)) ? { keyPem, certificatePem } : undefined;
  } catch {
    // Only a cache of what the CA can issue anew.
    return undefined;
  }
}

function isGood(certificatePem: string, ca: X509Certificate, names: string[], nowMs: number): boolean {
  const found = new X509Certificate(certificatePem);
  const { notAfterMs } = certificate.validityOf(certificatePem);
  if (!found.verify(ca.publicKey) || notAfterMs - nowMs < (serverDays * dayMs) / 3) return false;
  return names.every((name) => (isIP(name) === 0 ? found.checkHost(name) : found.checkIP(name)) !== undefined);
}
