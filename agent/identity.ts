/**
 * Who this agent is: its key, certificate and the CA it trusts, in `identity.json` (0600) in its data directory.
 *
 * Guarantees: joins once; the key is on disk before it is used, so a join whose answer was lost is finished by the next
 * start with the same token. A renewed certificate is used only after it is stored, until then the old one is. What marks
 * the machine is a random number in that file, not /etc/machine-id, as several agents may live on one machine.
 * Failure: a master that cannot be reached is tried again for ever; a refusal is thrown with its reason.
 * Not here: leaving a master. Removing identity.json forgets it.
 */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { backoff } from '../proto/backoff.ts';
import { generateKeyPair, importKeyPair, pemOf, signingRequest, validityOf } from '../proto/certificate.ts';
import { readText, writeDurably } from '../proto/durable.ts';
import type { Clock, Random } from '../proto/effects.ts';
import { ReplicationError, asReplicationError, messageOf } from '../proto/errors.ts';
import { type Client, type ClientTrust, connect } from '../proto/rpc.ts';
import type { JoinReply } from '../proto/wire.ts';

/** Renewal is looked at this often, so that a jump of the clock or a long sleep does no harm. */
const lookMs = 3_600_000;
const maxTokenReads = 5;

export interface IdentityOptions {
  dataDir: string;
  name: string;
  /** HOST:PORT */
  master: string;
  /** Read only while joining. */
  joinTokenFile?: string;
  /** PEM of the master's CA. Needed to join; afterwards only compared, when it is there. */
  caFile?: string;
  agentVersion: string;
  clock: Clock;
  random: Random;
  /** Told of each failed try that will be made again. */
  onRetry?: (error: ReplicationError) => void;
}

export interface Identity {
  readonly name: string;
  readonly notAfterMs: number;
  /** Connected with the newest certificate; ask again for each call, it changes with a renewal. */
  client(): Client;
  /** Now. Resolves when the new certificate is stored and in use. */
  renew(): Promise<void>;
  /** Renews at two thirds of the certificate's life until the signal aborts; a failed try is made again. */
  run(signal: AbortSignal): Promise<void>;
  close(): void;
}

interface Stored {
  name: string;
  machineId: string;
  keyPem: string;
  /** null: the key waits for its certificate. */
  certificatePem: string | null;
  caPem: string;
}

/** @throws ReplicationError JoinRefused (token, name), NotAuthenticated (another CA), Stopped */
export async function joinOrLoad(options: IdentityOptions, signal: AbortSignal): Promise<Identity> {
  const { dataDir, name, clock } = options;
  await mkdir(dataDir, { recursive: true, mode: 0o700 });
  const path = join(dataDir, 'identity.json');
  const caPem = options.caFile === undefined ? undefined : await readText(options.caFile);
  let stored = await load(path);
  if (stored !== undefined && stored.name !== name)
    throw new ReplicationError(
      'JoinRefused',
      `${dataDir} belongs to the agent ${stored.name}, not ${name}; use another data directory, or --name ${stored.name}`,
    );
  if (stored !== undefined && stored.certificatePem !== null && caPem !== undefined && !sameText(caPem, stored.caPem))
    throw new ReplicationError(
      'NotAuthenticated',
      `${path} was made for a master with another CA than ${options.caFile ?? ''}; remove it to join the new master`,
    );
  const expired =
    typeof stored?.certificatePem === 'string' && validityOf(stored.certificatePem).notAfterMs <= clock.nowMs();
  const token = options.joinTokenFile === undefined ? undefined : await readText(options.joinTokenFile);
  if (stored === undefined || stored.certificatePem === null || (expired && token !== undefined)) {
    const trusted = caPem ?? stored?.caPem;
    if (trusted === undefined)
      throw new ReplicationError(
        'JoinRefused',
        `no CA file at ${options.caFile ?? '--ca-file'}; copy ca.pem from the master's folder`,
      );
    if (stored === undefined) {
      const { keyPem } = await generateKeyPair();
      const machineId = options.random.bytes(16).toString('hex');
      stored = { name, machineId, keyPem, certificatePem: null, caPem: trusted };
    } else stored = { ...stored, caPem: trusted };
    await save(path, stored);
    stored = await joinMaster(options, stored, signal);
    await save(path, stored);
  }
  return identity(options, path, stored);
}

async function joinMaster(options: IdentityOptions, stored: Stored, signal: AbortSignal): Promise<Stored> {
  const { name, master, clock, random, agentVersion, joinTokenFile = '--join-token-file' } = options;
  const pair = await importKeyPair(stored.keyPem);
  const csrDer = await signingRequest(pair, name);
  const client = connect(master, { caPem: stored.caPem });
  const pause = backoff(250, 10_000, random);
  const tried = new Set<string>();
  try {
    for (;;) {
      signal.throwIfAborted();
      const token = (await readText(joinTokenFile))?.trim() ?? '';
      if (token === '')
        throw new ReplicationError('JoinRefused', `no join token in ${joinTokenFile}; copy join.token from the master`);
      tried.add(token);
      try {
        const reply = await client.join({ name, token, csrDer, agentVersion, machineId: stored.machineId });
        return { ...stored, certificatePem: checked(reply, pair.keyPem) };
      } catch (thrown) {
        const error = asReplicationError(thrown);
        // The file may hold a fresh token by now: another agent took the one that we read.
        const again = (await readText(joinTokenFile))?.trim() ?? '';
        if (error.code === 'JoinRefused' && !tried.has(again) && tried.size < maxTokenReads) continue;
        if (error.retry !== 'backoff') throw error;
        options.onRetry?.(error);
        await clock.sleep(pause.nextMs(), signal);
      }
    }
  } finally {
    client.close();
  }
}

function identity(options: IdentityOptions, path: string, loaded: Stored): Identity {
  const { master, clock, random, name } = options;
  let stored = loaded;
  let client = connect(master, trustOf(stored));
  let renewing: Promise<void> | undefined;

  async function renewNow(): Promise<void> {
    const pair = await generateKeyPair();
    const reply = await client.renew({ csrDer: await signingRequest(pair, name) });
    const renewed = { ...stored, keyPem: pair.keyPem, certificatePem: checked(reply, pair.keyPem) };
    await save(path, renewed);
    stored = renewed;
    const before = client;
    client = connect(master, trustOf(stored));
    before.close();
  }
  const validity = (): { notBeforeMs: number; notAfterMs: number } => validityOf(stored.certificatePem ?? '');

  const self: Identity = {
    name,
    get notAfterMs() {
      return validity().notAfterMs;
    },
    client: () => client,
    renew() {
      renewing ??= renewNow().finally(() => (renewing = undefined));
      return renewing;
    },
    async run(signal) {
      const pause = backoff(1000, lookMs / 4, random);
      while (!signal.aborted) {
        const { notBeforeMs, notAfterMs } = validity();
        const dueMs = notBeforeMs + ((notAfterMs - notBeforeMs) * 2) / 3;
        try {
          if (dueMs > clock.nowMs()) await clock.sleep(Math.min(lookMs, dueMs - clock.nowMs()), signal);
          else {
            await self.renew();
            pause.reset();
          }
        } catch (error) {
          if (signal.aborted) return;
          options.onRetry?.(asReplicationError(error));
          await clock.sleep(pause.nextMs(), signal).catch(() => undefined);
        }
      }
    },
    close: () => client.close(),
  };
  return self;
}

/** PEM of the answered certificate. @throws ReplicationError BadMessage when it is not for our key */
function checked({ certificateDer }: JoinReply, keyPem: string): string {
  let fits: boolean;
  try {
    fits = new X509Certificate(certificateDer).checkPrivateKey(createPrivateKey(keyPem));
  } catch (error) {
    throw new ReplicationError('BadMessage', `JoinReply.certificate_der: ${messageOf(error)}`, { cause: error });
  }
  if (!fits) throw new ReplicationError('BadMessage', 'JoinReply.certificate_der is for another key');
  return pemOf('CERTIFICATE', certificateDer);
}

function trustOf({ caPem, certificatePem, keyPem }: Stored): ClientTrust {
  return { caPem, keyPem, certificatePem: certificatePem ?? '' };
}

async function load(path: string): Promise<Stored | undefined> {
  const text = await readText(path);
  if (text === undefined) return undefined;
  try {
    const stored = JSON.parse(text) as Stored;
    await importKeyPair(stored.keyPem);
    if (stored.certificatePem !== null) validityOf(stored.certificatePem);
    if (typeof stored.name === 'string' && typeof stored.machineId === 'string') return stored;
  } catch (error) {
    throw new ReplicationError('Internal', `${path} is damaged; remove it and join again`, { cause: error });
  }
  throw new ReplicationError('Internal', `${path} is damaged; remove it and join again`);
}

async function save(path: string, stored: Stored): Promise<void> {
  await writeDurably(path, `${JSON.stringify(stored, null, 2)}\n`, 0o600);
}

function sameText(a: string, b: string): boolean {
  return a.trim() === b.trim();
}
