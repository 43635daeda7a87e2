/**
 * Bearer tokens of the API: who is calling, and with which role.
 *
 * A token is shown once, when it is made; what is kept is its SHA-256 (they are 256 random bits, so a slow hash would add
 * nothing). Hashes are compared in constant time. `admin` is the token of the file admin.token, which is the truth: it is
 * made on the first start, and who replaces or removes the file and restarts the master has another one; the API neither
 * makes it nor takes it away.
 * Not here: users and sessions, and join tokens of agents (those are the authority's; see POST /tokens).
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { writeDurably } from '../proto/durable.ts';
import type { Clock, Random } from '../proto/effects.ts';
import { systemErrorCode } from '../proto/errors.ts';
import { roles } from './api/schema/token.ts';
import type { Role, TokenView } from './api/schema/token.ts';
import { apiVersion } from './resources.ts';
import type { Store } from './store.ts';

export interface Caller {
  name: string;
  role: Role;
  /** Protection groups that it is bound to: see api/scope.ts. Absent: none, it sees all. */
  groups?: readonly string[] | undefined;
}
export interface Tokens {
  /** Whose secret it is, or undefined. */
  caller(secret: string): Caller | undefined;
  /** Answers the secret, or undefined when the name is taken. @throws TooManyTokens */
  create(name: string, role: Role, groups?: readonly string[]): { view: TokenView; secret: string } | undefined;
  get(name: string): TokenView | undefined;
  /** By name. */
  list(): TokenView[];
  /** False when there is none, or when it is the built-in one. */
  delete(name: string): boolean;
}

export const builtIn = 'admin';
export const maxTokens = 1000;
const table = 'tokens';
const leastSecretLength = 32;

interface Entry {
  hash: Buffer;
  role: Role;
  groups?: readonly string[] | undefined;
  creationTimestamp: string;
}

export interface TokensOptions {
  store: Pick<Store, 'getRecord' | 'putRecord' | 'listRecords'>;
  clock: Pick<Clock, 'nowMs'>;
  random: Random;
  /** Of the admin's token; made with mode 0600 when absent. */
  adminFile: string;
}

/** @throws Error when the file of the admin's token cannot be read or holds no token */
export async function openTokens(options: TokensOptions): Promise<Tokens> {
  const { store, clock, random } = options;
  const entries = new Map<string, Entry>();
  for (const { key, value } of store.listRecords(table)) {
    const entry = JSON.parse(value) as Omit<Entry, 'hash'> & { hash: string };
    entries.set(key, { ...entry, hash: Buffer.from(entry.hash, 'hex') });
  }

  function put(name: string, role: Role, secret: string, groups?: readonly string[]): Entry {
    const entry = { hash: sha256(secret), role, groups, creationTimestamp: new Date(clock.nowMs()).toISOString() };
    store.putRecord(table, name, JSON.stringify({ ...entry, hash: entry.hash.toString('hex') }));
    entries.set(name, entry);
    return entry;
  }
  const view = (name: string, { role, groups, creationTimestamp }: Entry): TokenView => {
    const spec = { role, groups: groups === undefined ? null : [...groups] };
    return { apiVersion, kind: 'Token', metadata: { name, creationTimestamp }, spec };
  };
  const newSecret = (): string => `rpl_${random.bytes(32).toString('base64url')}`;

  let adminSecret = await readSecret(options.adminFile);
  if (adminSecret === undefined) {
    adminSecret = newSecret();
    await writeDurably(options.adminFile, `${adminSecret}\n`, 0o600);
  }
  if (entries.get(builtIn)?.hash.equals(sha256(adminSecret)) !== true) put(builtIn, 'admin', adminSecret);

  return {
    caller(secret) {
      const hash = sha256(secret);
      let found: Caller | undefined;
      // All of them, always: the time tells nothing about which one it is.
      for (const [name, entry] of entries)
        if (timingSafeEqual(entry.hash, hash))
          found = { name, role: roles.includes(entry.role) ? entry.role : 'user', groups: entry.groups };
      return found;
    },
    create(name, role, groups) {
      if (entries.has(name)) return undefined;
      if (entries.size >= maxTokens) throw new TooManyTokens();
      const secret = newSecret();
      return { view: view(name, put(name, role, secret, groups)), secret };
    },
    get(name) {
      const entry = entries.get(name);
      return entry === undefined ? undefined : view(name, entry);
    },
    list: () => [...entries].map(([name, entry]) => view(name, entry)).sort(byName),
    delete(name) {
      if (name === builtIn || !entries.has(name)) return false;
      store.putRecord(table, name, undefined);
      return entries.delete(name);
    },
  };
}

export class TooManyTokens extends Error {
  constructor() {
    super(`there are ${maxTokens} tokens already; delete those that nobody uses`);
  }
}

async function readSecret(path: string): Promise<string | undefined> {
  let content: string;
  try {
    content = (await readFile(path, 'utf8')).trim();
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return undefined;
    throw error;
  }
  if (content.length >= leastSecretLength && /^[\x21-\x7e]+$/.test(content)) return content;
  throw new Error(
    `${path} holds no token (${leastSecretLength} or more visible characters); remove it to have one made`,
  );
}

function sha256(secret: string): Buffer {
  return createHash('sha256').update(secret).digest();
}

function byName(a: TokenView, b: TokenView): number {
  return a.metadata.name < b.metadata.name ? -1 : 1;
}
