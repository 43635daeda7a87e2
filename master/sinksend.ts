/**
 * One event to one place: a webhook (POST, JSON) or a syslog server (RFC 5424; over TCP and TLS framed as RFC 6587 counts). Resolves
 * when the other side has taken it, as far as its protocol says: a webhook answers 2xx, TCP has passed it on, UDP promises nothing.
 * Redirections are not followed, and of an answer only the status is read.
 */
import { createHmac } from 'node:crypto';
import { createSocket } from 'node:dgram';
import { connect as connectTcp } from 'node:net';
import { hostname } from 'node:os';
import { connect as connectTls } from 'node:tls';
import type { EventView } from './api/schema/event.ts';

const timeoutMs = 10_000;
const protocols = ['http:', 'https:', 'syslog+udp:', 'syslog+tcp:', 'syslog+tls:'];
/** local0 */
const facility = 16;
const severities = { FATAL: 2, ERROR: 3, WARNING: 4, INFO: 6, TRACE: 7 } as const;

/** Why it is no place, as the end of a sentence, or undefined. */
export function wrongUrl(text: string): string | undefined {
  const url = URL.parse(text);
  if (url === null || !protocols.includes(url.protocol) || url.hostname === '')
    return 'must be http(s)://HOST.. or syslog+udp://HOST:PORT, syslog+tcp://.., syslog+tls://..';
  // Where clouds answer with the machine's own secrets; no server of events is there.
  if (/^(169\.254\.|\[fe[89ab])/i.test(url.hostname)) return 'must not be a link-local address';
  if (url.protocol.startsWith('syslog') && url.port === '')
    return 'must name the port, such as syslog+tls://logs.example.com:6514';
  return undefined;
}

/** @param secret of webhooks: the body is signed with it. @throws Error that says why, without the url */
export async function send(url: string, event: EventView, secret: string | null, signal: AbortSignal): Promise<void> {
  const { protocol, hostname: host, port } = new URL(url);
  const both = AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]);
  if (protocol.startsWith('http')) return post(url, JSON.stringify(event), secret, both);
  const line = Buffer.from(syslogLine(event));
  const address = { host: host.replace(/^\[(.*)\]$/, '$1'), port: Number(port) };
  if (protocol === 'syslog+udp:') return datagram(address, line);
  return stream(address, protocol === 'syslog+tls:', Buffer.concat([Buffer.from(`${line.length} `), line]), both);
}

async function post(url: string, body: string, secret: string | null, signal: AbortSignal): Promise<void> {
  const signed = secret === null ? {} : { 'x-replicator-signature': `sha256=${signature(body, secret)}` };
  const headers = { 'content-type': 'application/json', 'user-agent': 'cdm-replicator', ...signed };
  let answer: Response;
  try {
    answer = await fetch(url, { method: 'POST', body, headers, redirect: 'manual', signal });
  } catch (error) {
    const { cause } = error as { cause?: { code?: string } };
    throw new Error(`not reached: ${cause?.code ?? (error as Error).name}`, { cause: error });
  }
  await answer.body?.cancel();
  if (!answer.ok) throw new Error(`answered ${answer.status}`);
}

export function signature(body: string, secret: string): string {
  return createHmac('sha256', secret).update(body).digest('hex');
}

export function syslogLine({ time, level, code, object, message, service }: EventView): string {
  // One line, whatever an agent has said.
  const text = `${service} ${object ?? '-'}: ${message}`.replace(/\p{Cc}+/gu, ' ');
  return `<${facility * 8 + severities[level]}>1 ${time} ${hostname() || '-'} replicator-master ${process.pid} ${code} - ${text}`;
}

function datagram({ host, port }: { host: string; port: number }, line: Buffer): Promise<void> {
  const socket = createSocket(host.includes(':') ? 'udp6' : 'udp4');
  return new Promise<void>((resolve, reject) => {
    socket.on('error', reject);
    socket.send(line, port, host, (error) => (error ? reject(error) : resolve()));
  }).finally(() => socket.close());
}

function stream(
  address: { host: string; port: number },
  isTls: boolean,
  frame: Buffer,
  signal: AbortSignal,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = isTls ? connectTls({ ...address, servername: address.host }) : connectTcp(address);
    const abort = (): void => void socket.destroy(new Error('no answer in time'));
    signal.addEventListener('abort', abort, { once: true });
    socket.on('error', reject);
    socket.on('close', () => {
      signal.removeEventListener('abort', abort);
      resolve(); // after an error this is too late to matter
    });
    socket.resume();
    socket.once(isTls ? 'secureConnect' : 'connect', () => socket.end(frame, () => socket.destroySoon()));
  });
}
