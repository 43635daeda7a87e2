/**
 * People: their roles, passwords and sessions.
 *
 * A password is kept as scrypt's hash with its own salt, never itself. Five wrong passwords in a row lock the name for 30 s;
 * names that nobody has are treated alike and take as long, so nothing tells which names exist. A session is 256 random bits,
 * kept as their SHA-256, in memory: it ends when idle for 30 minutes, after 12 hours, when role, groups or password change,
 * and with the master. `admin` exists once, is made at the first start without a password (its token is in admin.token) and
 * can neither be deleted nor have another role.
 * Not here: API tokens (tokens.ts), and directories of people outside.
 */
import { createHash, randomBytes, scrypt, timingSafeEqual } from 'node:crypto';
import { isDeepStrictEqual, promisify } from 'node:util';
import type { Clock, Random } from '../proto/effects.ts';
import type { Role } from './api/schema/token.ts';
import type { UserView } from './api/schema/user.ts';
import { apiVersion } from './resources.ts';
import type { Store } from './store.ts';
import { builtIn } from './tokens.ts';
import type { Caller } from './tokens.ts';

export const idleMs = 30 * 60_000;
const longestMs = 12 * 3_600_000;
export const lockMs = 30_000;
export const maxFailures = 5;
export const maxUsers = 1000;
const maxSessionsOfUser = 20;
/** Names with failures that are remembered; the oldest are forgotten first. */
const maxSuspects = 10_000;
/** Each costs 16 MiB and about 50 ms of a core. */
const maxHashing = 4;
const table = 'users';
const cost = { N: 16_384, r: 8, p: 1 };
const derive = promisify<string, Buffer, number, typeof cost, Buffer>(scrypt);

interface Entry {
  role: Role;
  groups?: readonly string[] | undefined;
  displayName?: string;
  creationTimestamp: string;
  /** Hex; null: nobody can log in by password. */
  salt: string | null;
  hash: string | null;
}
interface Session {
  user: string;
  csrf: string;
  startedMs: number;
  usedMs: number;
}
export interface Login {
  caller: Caller;
  /** The session's secret. */
  secret: string;
  csrf: string;
}
export interface SessionCaller extends Caller {
  /** What a page must send with each write, in X-CSRF-Token. */
  csrf: string;
}
interface Settings {
  role?: Role;
  displayName?: string;
  /** undefined: bound to none. */
  groups?: readonly string[] | undefined;
}
export interface Users {
  list(): UserView[];
  get(name: string): UserView | undefined;
  /** False when the name is taken. @throws PasswordRefused, UsersRefused */
  create(name: string, password: string, of: Settings & { role: Role }): Promise<boolean>;
  /** Ends the user's sessions when role, groups or password change. False when there is none. @throws PasswordRefused */
  change(name: string, changes: Settings & { password?: string }): Promise<boolean>;
  delete(name: string): boolean;
  /** The password is right. @throws UsersRefused when locked or busy */
  verify(name: string, password: string): Promise<boolean>;
  /** @throws UsersRefused locked, busy; undefined: name or password are wrong */
  login(name: string, password: string): Promise<Login | undefined>;
  /** A session for who has shown a token. */
  start(caller: Caller): Login;
  /** `isUse` false: only looked up, the session goes on becoming idle. */
  session(secret: string, isUse?: boolean): SessionCaller | undefined;
  end(secret: string): void;
  endAll(name: string): void;
}
export class PasswordRefused extends Error {}
export class UsersRefused extends Error {
  readonly retryAfterSeconds: number | undefined;
  constructor(message: string, retryAfterSeconds?: number) {
    super(message);
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

/** What is missing of a password, as the end of a sentence, or undefined. */
export function weakness(password: string): string | undefined {
  if (password.length < 8 || password.length > 128) return 'must have 8 to 128 characters';
  const rules: [RegExp, string][] = [
    [/\p{Lu}/u, 'an upper-case letter'],
    [/\p{Ll}/u, 'a lower-case letter'],
    [/\p{Nd}/u, 'a digit'],
    [/[^\p{L}\p{Nd}]/u, 'a special character'],
  ];
  const missing = rules.filter(([rule]) => !rule.test(password)).map(([, what]) => what);
  return missing.length === 0 ? undefined : `must have ${missing.join(', ')}`;
}

export function openUsers(options: {
  store: Pick<Store, 'putRecord' | 'listRecords'>;
  clock: Pick<Clock, 'nowMs'>;
  random: Random;
  /** A name was locked. */
  onLocked?: (name: string) => void;
}): Users {
  const { store, clock, random } = options;
  const entries = new Map<string, Entry>();
  const sessions = new Map<string, Session>();
  const suspects = new Map<string, { failures: number; lockedUntilMs: number }>();
  const lastLogin = new Map<string, number>();
  const pretended = randomBytes(16);
  let hashing = 0;
  for (const { key, value } of store.listRecords(table)) entries.set(key, JSON.parse(value) as Entry);

  function put(name: string, entry: Entry): void {
    store.putRecord(table, name, JSON.stringify(entry));
    entries.set(name, entry);
  }
  function mustBeFree(): void {
    if (hashing >= maxHashing) throw new UsersRefused('too many log-ins at once; try again', 1);
  }
  async function hash(password: string, salt: Buffer): Promise<Buffer> {
    mustBeFree();
    hashing += 1;
    try {
      return await derive(password, salt, 32, cost);
    } finally {
      hashing -= 1;
    }
  }
  async function fits(entry: Entry | undefined, password: string): Promise<boolean> {
    const found = await hash(password, entry?.salt ? Buffer.from(entry.salt, 'hex') : pretended);
    return Boolean(entry?.hash) && timingSafeEqual(found, Buffer.from(entry?.hash ?? '', 'hex'));
  }
  async function secretOf(password: string, before?: Entry): Promise<{ salt: string; hash: string }> {
    const wrong = weakness(password);
    if (wrong !== undefined) throw new PasswordRefused(wrong);
    if (before?.hash && (await fits(before, password))) throw new PasswordRefused('must not be the one before');
    const salt = random.bytes(16);
    return { salt: Buffer.from(salt).toString('hex'), hash: (await hash(password, Buffer.from(salt))).toString('hex') };
  }
  function live(id: string): Session | undefined {
    const session = sessions.get(id);
    if (session === undefined) return undefined;
    const nowMs = clock.nowMs();
    if (nowMs - session.usedMs < idleMs && nowMs - session.startedMs < longestMs) return session;
    sessions.delete(id);
    return undefined;
  }
  const idsOf = (name: string): string[] =>
    [...sessions.keys()].filter((id) => live(id) !== undefined && sessions.get(id)?.user === name);
  function view(name: string, entry: Entry): UserView {
    const lockedUntilMs = suspects.get(name)?.lockedUntilMs ?? 0;
    const loginMs = lastLogin.get(name);
    return {
      apiVersion,
      kind: 'User',
      metadata: {
        name,
        ...(entry.displayName === undefined ? {} : { displayName: entry.displayName }),
        creationTimestamp: entry.creationTimestamp,
      },
      spec: { role: entry.role, groups: entry.groups === undefined ? null : [...entry.groups] },
      status: {
        hasPassword: entry.hash !== null,
        sessions: idsOf(name).length,
        lockedUntil: lockedUntilMs > clock.nowMs() ? new Date(lockedUntilMs).toISOString() : null,
        lastLoginTime: loginMs === undefined ? null : new Date(loginMs).toISOString(),
      },
    };
  }
  function endAll(name: string): void {
    for (const id of idsOf(name)) sessions.delete(id);
  }
  /** Counts before the hash is made, so that guesses sent at once are counted too. @throws UsersRefused */
  function suspect(name: string): void {
    const nowMs = clock.nowMs();
    const seen = suspects.get(name);
    const waitMs = (seen?.lockedUntilMs ?? 0) - nowMs;
    if (waitMs > 0) {
      const seconds = Math.ceil(waitMs / 1000);
      throw new UsersRefused(`locked after ${maxFailures} wrong passwords; try again in ${seconds} s`, seconds);
    }
    // A lock that is over gives all tries again.
    const failures = (seen === undefined || seen.lockedUntilMs > 0 ? 0 : seen.failures) + 1;
    const isLocked = failures >= maxFailures;
    suspects.delete(name);
    suspects.set(name, { failures, lockedUntilMs: isLocked ? nowMs + lockMs : 0 });
    for (const oldest of suspects.keys()) {
      if (suspects.size <= maxSuspects) break;
      suspects.delete(oldest);
    }
  }
  async function verify(name: string, password: string): Promise<boolean> {
    mustBeFree(); // before it is counted: what is not looked at is no failure
    suspect(name);
    const isRight = await fits(entries.get(name), password);
    if (isRight) suspects.delete(name);
    else if ((suspects.get(name)?.failures ?? 0) === maxFailures) options.onLocked?.(name);
    return isRight;
  }
  function start(caller: Caller): Login {
    const nowMs = clock.nowMs();
    for (const id of sessions.keys()) live(id);
    const own = idsOf(caller.name);
    if (own.length >= maxSessionsOfUser) sessions.delete(own[0] ?? '');
    const secret = `rps_${Buffer.from(random.bytes(32)).toString('base64url')}`;
    const csrf = Buffer.from(random.bytes(16)).toString('base64url');
    sessions.set(digest(secret), { user: caller.name, csrf, startedMs: nowMs, usedMs: nowMs });
    lastLogin.set(caller.name, nowMs);
    return { caller, secret, csrf };
  }

  if (!entries.has(builtIn)) {
    const creationTimestamp = new Date(clock.nowMs()).toISOString();
    put(builtIn, { role: 'admin', creationTimestamp, salt: null, hash: null });
  }
  return {
    list: () => [...entries].map(([name, entry]) => view(name, entry)).sort(byName),
    get(name) {
      const entry = entries.get(name);
      return entry === undefined ? undefined : view(name, entry);
    },
    async create(name, password, of) {
      if (entries.has(name)) return false;
      if (entries.size >= maxUsers) throw new UsersRefused(`there are ${maxUsers} users already; delete some`);
      const secret = await secretOf(password);
      if (entries.has(name)) return false; // made by another meanwhile
      const creationTimestamp = new Date(clock.nowMs()).toISOString();
      put(name, { ...of, creationTimestamp, ...secret });
      return true;
    },
    async change(name, { password, ...changes }) {
      const secret = password === undefined ? {} : await secretOf(password, entries.get(name));
      // Looked up after the hash: what another did meanwhile stays.
      const entry = entries.get(name);
      if (entry === undefined) return false;
      const next = { ...entry, ...changes, ...secret };
      put(name, next);
      const isOther = next.role !== entry.role || !isDeepStrictEqual(next.groups, entry.groups);
      if (password !== undefined || isOther) endAll(name);
      if (password !== undefined) suspects.delete(name);
      return true;
    },
    delete(name) {
      if (name === builtIn || !entries.has(name)) return false;
      endAll(name);
      store.putRecord(table, name, undefined);
      return entries.delete(name);
    },
    verify,
    async login(name, password) {
      const isRight = await verify(name, password);
      // Deleted while the hash was made: not let in.
      const entry = entries.get(name);
      return isRight && entry !== undefined ? start({ name, role: entry.role, groups: entry.groups }) : undefined;
    },
    start,
    session(secret, isUse = true) {
      const session = live(digest(secret));
      const entry = session === undefined ? undefined : entries.get(session.user);
      if (session === undefined || entry === undefined) return undefined;
      if (isUse) session.usedMs = clock.nowMs();
      return { name: session.user, role: entry.role, groups: entry.groups, csrf: session.csrf };
    },
    end: (secret) => void sessions.delete(digest(secret)),
    endAll,
  };
}

function digest(secret: string): string {
  return createHash('sha256').update(secret).digest('hex');
}
function byName(a: UserView, b: UserView): number {
  return a.metadata.name < b.metadata.name ? -1 : 1;
}
