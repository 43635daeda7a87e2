/**
 * Which key a host must show before anything is said to it. Pure.
 *
 * A key is given as its fingerprint (`SHA256:...`, as `ssh-keygen -l` prints it), as a public key (`ssh-ed25519 AAAA...`), or
 * found in the text of a known_hosts file (sshd(8)): names, patterns, hashed names, `[host]:port`, `@revoked`. Lines of
 * `@cert-authority` are passed over. No key is ever trusted at first sight.
 */
import { createHash, createHmac } from 'node:crypto';

export interface HostKeys {
  accepts(key: Buffer): boolean;
  /** Kinds of the keys, such as ssh-ed25519, so that the host is asked for one of these; empty: not known. */
  kinds: string[];
}

export function fingerprintOf(key: Buffer): string {
  return `SHA256:${createHash('sha256').update(key).digest('base64').replace(/=+$/, '')}`;
}

/** The kind that a public key says of itself (RFC 4253, 6.6). */
export function kindOf(key: Buffer): string {
  const length = key.length < 4 ? 0 : key.readUInt32BE(0);
  return key.subarray(4, 4 + Math.min(length, 64)).toString('latin1');
}

/** @throws Error whose message completes "hostKey ..." */
export function parseHostKey(text: string): HostKeys {
  const trimmed = text.trim();
  if (/^SHA256:[A-Za-z0-9+/]{43}=?$/.test(trimmed)) {
    const wanted = trimmed.replace(/=$/, '');
    return { accepts: (key) => fingerprintOf(key) === wanted, kinds: [] };
  }
  const key = publicKey(trimmed);
  if (key !== undefined) return only([key]);
  throw new Error(
    'is neither a fingerprint such as SHA256:... nor a public key such as ssh-ed25519 AAAA...; ' +
      'on the host: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub',
  );
}

/** The keys that a known_hosts file has for a host; undefined: none. */
export function knownHost(text: string, host: string, port: number): HostKeys | undefined {
  const name = port === 22 ? host : `[${host}]:${port}`;
  const good: Buffer[] = [];
  const revoked: Buffer[] = [];
  for (const line of text.split('\n')) {
    const words = line.trim().split(/\s+/);
    const marker = words[0]?.startsWith('@') === true ? words.shift() : undefined;
    const [names = '', kind = '', data = ''] = words;
    if (names === '' || names.startsWith('#') || !isNamed(names, name)) continue;
    const key = publicKey(`${kind} ${data}`);
    if (key === undefined) continue;
    if (marker === undefined) good.push(key);
    else if (marker === '@revoked') revoked.push(key);
  }
  const left = good.filter((key) => !revoked.some((one) => one.equals(key)));
  return left.length === 0 ? undefined : only(left);
}

function only(keys: Buffer[]): HostKeys {
  return { accepts: (shown) => keys.some((key) => key.equals(shown)), kinds: [...new Set(keys.map(kindOf))] };
}

function publicKey(text: string): Buffer | undefined {
  const [kind = '', data = ''] = text.split(/\s+/);
  if (!/^[a-z0-9@.-]+$/.test(kind) || !/^[A-Za-z0-9+/]+=*$/.test(data)) return undefined;
  const key = Buffer.from(data, 'base64');
  return kindOf(key) === kind ? key : undefined;
}

function isNamed(names: string, name: string): boolean {
  const hashed = /^\|1\|([^|]+)\|([^|]+)$/.exec(names);
  if (hashed !== null) {
    const [, salt = '', hash = ''] = hashed;
    return createHmac('sha1', Buffer.from(salt, 'base64')).update(name).digest('base64') === hash;
  }
  const patterns = names.split(',');
  const fits = (pattern: string): boolean =>
    new RegExp(
      `^${pattern
        .replace(/[.+^${}()|[\]\\]/g, '\\$&')
        .replaceAll('*', '.*')
        .replaceAll('?', '.')}$`,
      'i',
    ).test(name);
  if (patterns.some((pattern) => pattern.startsWith('!') && fits(pattern.slice(1)))) return false;
  return patterns.some((pattern) => !pattern.startsWith('!') && fits(pattern));
}
