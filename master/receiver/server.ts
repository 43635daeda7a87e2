/**
 * The receiver's listener: HTTP/2 with mutual TLS 1.3, open to its master alone.
 *
 * Guarantees: a peer without a certificate of our CA does not come past the handshake; one that is an agent's and not the
 * master's is refused as NotAuthenticated. Key and certificate are read anew while it runs, as they are renewed beside it.
 */
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createSecureServer, type ServerHttp2Session, type ServerHttp2Stream } from 'node:http2';
import type { AddressInfo } from 'node:net';
import type { TLSSocket } from 'node:tls';
import { ServerCall } from '../../proto/bulkcall.ts';
import { asReplicationError, ReplicationError } from '../../proto/errors.ts';
import { masterClientName, maxFrameBytes, receiverPaths, refuse, serve, windowBytes } from '../../proto/rpc.ts';
import type { Filler } from './filler.ts';
import type { Receiver } from './receiver.ts';

export interface ReceiverFiles {
  key: string;
  certificate: string;
  ca: string;
}

/** What the program is there for. */
export type Calls = Partial<Receiver & Filler>;

export interface ReceiverServer {
  readonly port: number;
  /** Ends all calls and waits for them. */
  close(): Promise<void>;
}

const reloadEveryMs = 600_000;

export async function listen(
  calls: Calls,
  at: { host: string; port: number },
  files: ReceiverFiles,
  onTrouble: (error: unknown) => void,
): Promise<ReceiverServer> {
  const trust = async () => ({
    key: await readFile(files.key),
    cert: await readFile(files.certificate),
    ca: await readFile(files.ca),
  });
  const server = createSecureServer({
    ...(await trust()),
    requestCert: true,
    rejectUnauthorized: true,
    minVersion: 'TLSv1.3',
    settings: { initialWindowSize: windowBytes, enablePush: false },
  });
  const closing = new AbortController();
  const running = new Set<Promise<void>>();
  const sessions = new Set<ServerHttp2Session>();

  async function call(stream: ServerHttp2Stream, path: string): Promise<void> {
    const call = new ServerCall(stream, {}, maxFrameBytes);
    const socket = stream.session?.socket as TLSSocket | undefined;
    const { subject } = socket?.getPeerCertificate() ?? {};
    if (subject?.CN !== masterClientName)
      return refuse(call, new ReplicationError('NotAuthenticated', 'only the master may call a receiver'));
    const { hold, mirror, read, fill } = calls;
    if (path === receiverPaths.Hold && hold)
      return serve(call, ['HoldReply', 'HoldRequest'], hold.bind(calls), closing.signal);
    if (path === receiverPaths.Mirror && mirror)
      return serve(call, ['MirrorReply', 'MirrorRequest'], mirror.bind(calls), closing.signal);
    if (path === receiverPaths.Read && read)
      return serve(call, ['MirrorRequest', 'MirrorReply'], read.bind(calls), closing.signal);
    if (path === receiverPaths.Fill && fill)
      return serve(call, ['MirrorReply', 'MirrorRequest'], fill.bind(calls), closing.signal);
    refuse(call, new ReplicationError('BadMessage', `a receiver has no call ${path}`));
  }

  server.on('session', (session) => {
    sessions.add(session);
    session.setLocalWindowSize(windowBytes);
    session.once('close', () => sessions.delete(session));
  });
  server.on('stream', (stream, headers) => {
    const done: Promise<void> = call(stream as ServerHttp2Stream, headers[':path'] ?? '')
      .catch(onTrouble)
      .finally(() => running.delete(done));
    running.add(done);
  });
  server.on('sessionError', () => undefined); // each stream tells
  const reload = setInterval(() => {
    trust().then((next) => server.setSecureContext({ ...next, minVersion: 'TLSv1.3' }), onTrouble);
  }, reloadEveryMs);
  reload.unref();
  server.listen(at.port, at.host);
  await once(server, 'listening');
  return {
    port: (server.address() as AddressInfo).port,
    async close() {
      clearInterval(reload);
      closing.abort(asReplicationError(new Error('the receiver is being stopped'), 'Stopped'));
      await Promise.all(running);
      for (const session of sessions) session.destroy();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}
