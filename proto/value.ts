/**
 * Values as people type them on a command line or in a configuration: addresses, durations, sizes, names.
 *
 * Each reader answers the value or throws an Error whose message says what is wrong and gives an example; the caller
 * adds which flag or field it was. Pure; nothing is resolved or opened.
 */

export interface HostPort {
  /** Without the brackets of an IPv6 address. */
  host: string;
  /** 0: any free port, where one listens. */
  port: number;
}

/** `127.0.0.1:8443`, `[::1]:8443`, `master.example:8443`. */
export function parseHostPort(text: string): HostPort {
  const match = /^(?:\[([0-9a-fA-F:.%a-z]+)\]|([^\s:[\]/]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  const host = match?.[1] ?? match?.[2];
  if (host === undefined || port > 65535)
    throw new Error('is not HOST:PORT such as 127.0.0.1:8443 or [::1]:8443, with a port of at most 65535');
  return { host, port };
}

/** For dialling: a port 0 is nothing to dial. */
export function parsePeer(text: string): HostPort {
  const peer = parseHostPort(text);
  if (peer.port === 0) throw new Error('port 0 cannot be dialled; give the port that the master listens on');
  return peer;
}

export function formatHostPort({ host, port }: HostPort): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

/** As this machine itself dials who listens on `host`: of all addresses the loopback's, which our certificates name. */
export function nearHost(host: string): string {
  return host === '0.0.0.0' ? '127.0.0.1' : host === '::' ? '::1' : host;
}

export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || /^127\.\d+\.\d+\.\d+$/.test(host);
}

const durationSeconds: Record<string, number> = { ms: 0.001, s: 1, m: 60, h: 3600, d: 86_400 };
/** `500ms`, `5s`, `2m`, `1.5h`, `7d`; answers seconds. A number without a unit is refused: it would be a guess. */
export function parseDuration(text: string): number {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h|d)$/.exec(text);
  const unit = durationSeconds[match?.[2] ?? ''];
  if (match === null || unit === undefined) throw new Error('is not a duration such as 500ms, 5s, 2m, 1h or 7d');
  return Math.round(Number(match[1]) * unit * 1000) / 1000;
}

const sizeBytes: Record<string, number> = {
  '': 1, B: 1, kB: 1e3, KB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, K: 1024, M: 1024 ** 2, G: 1024 ** 3, T: 1024 ** 4,
  KiB: 1024, MiB: 1024 ** 2, GiB: 1024 ** 3, TiB: 1024 ** 4, Ki: 1024, Mi: 1024 ** 2, Gi: 1024 ** 3, Ti: 1024 ** 4,
}; // prettier-ignore
/** `4096`, `64MiB`, `10GB`, Kubernetes' `10Gi`; answers bytes, a whole number. */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([A-Za-z]*)$/.exec(text);
  const unit = sizeBytes[match?.[2] ?? '?'];
  const bytes = Math.round(Number(match?.[1]) * (unit ?? NaN));
  if (!Number.isSafeInteger(bytes)) throw new Error('is not a size such as 4096, 64MiB, 10GiB or 10GB');
  return bytes;
}

/** RFC 1123 label: what every object of the API may be called. */
export function parseName(text: string): string {
  if (!/^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/.test(text))
    throw new Error('is not a name: 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit');
  return text;
}

export function parseText(text: string): string {
  return text;
}

/** The reader knows its words, for completion. */
export function parseChoice<const T extends string>(...choices: T[]): ((text: string) => T) & { choices: T[] } {
  const read = (text: string): T => {
    const found = choices.find((choice) => choice === text);
    if (found === undefined) throw new Error(`is none of ${choices.join(', ')}`);
    return found;
  };
  return Object.assign(read, { choices });
}

/** A folder to keep data in; absent ones are made. The kernel's own filesystems keep nothing (and making one there can hang). */
export function parseFolder(text: string): string {
  if (/^\/(proc|sys|dev)(\/|$)/.test(text)) throw new Error('is in a filesystem of the kernel, which keeps no data');
  return parseText(text);
}
