/**
 * grpc-js and the HTTP/2 server under it: TLS with an optional client certificate, and the flow-control windows.
 *
 * grpc-js 1.14 offers neither on the server. Credentials of our own carry the TLS and HTTP/2 settings; sessions are
 * reached by one private field of grpc.Server, which is checked. Whether the windows took effect is measured over a
 * connection of our own, as an update of grpc-js may undo it without an error.
 */
import * as grpc from '@grpc/grpc-js';
import assert from 'node:assert/strict';
import {
  connect as connectHttp2,
  type Http2Server,
  type IncomingHttpHeaders,
  type ServerHttp2Stream,
  type Settings,
} from 'node:http2';
import { ReplicationError } from '../proto/errors.ts';
import { masterServerName, windowBytes } from '../proto/rpc.ts';
import { formatHostPort, nearHost, parseHostPort } from '../proto/value.ts';
import type { Authority } from './authority.ts';

/** Calls of one connection. */
const maxStreams = 4096;

export interface Windows {
  streamBytes: number;
  connectionBytes: number;
}

/** TLS that asks for a client certificate and goes on without or with any: authenticate() decides. */
export class OptionalClientCertificate extends grpc.ServerCredentials {
  constructor(authority: Authority) {
    super(
      {
        requestCert: true,
        rejectUnauthorized: false,
        settings: { initialWindowSize: windowBytes, maxConcurrentStreams: maxStreams },
      },
      contextOf(authority),
    );
  }
  /** For new connections from now on. */
  replace(authority: Authority): void {
    this.updateSecureContextOptions(contextOf(authority));
  }
  override _equals(other: grpc.ServerCredentials): boolean {
    return this === other;
  }
}

function contextOf(authority: Authority) {
  const { keyPem, certificatePem } = authority.server();
  return { ca: authority.caPem, key: keyPem, cert: certificatePem, minVersion: 'TLSv1.3' as const };
}

export function bind(server: grpc.Server, listen: string, credentials: grpc.ServerCredentials): Promise<number> {
  return new Promise((resolve, reject) => {
    server.bindAsync(listen, credentials, (error, port) => {
      if (error === null) resolve(port);
      else reject(new ReplicationError('Internal', `cannot listen on ${listen}: ${error.message}`, { cause: error }));
    });
  });
}

export function http2Servers(server: grpc.Server): Http2Server[] {
  const servers: unknown = Reflect.get(server, 'http2Servers');
  assert(servers instanceof Map && servers.size > 0, 'this grpc-js keeps its HTTP/2 servers elsewhere');
  return [...servers.keys()] as Http2Server[];
}

/** Streams of this path go to `handler`, all others to grpc-js as before. */
export function takeOver(
  server: Http2Server,
  path: string,
  handler: (stream: ServerHttp2Stream, headers: IncomingHttpHeaders) => void,
): void {
  const others = server.listeners('stream');
  assert(others.length > 0, 'this grpc-js does not listen for streams');
  server.removeAllListeners('stream');
  server.on('stream', (stream, headers, ...rest) => {
    const isBulk = headers[':path'] === path && (headers['content-type'] ?? '').startsWith('application/grpc');
    if (isBulk) handler(stream as ServerHttp2Stream, headers);
    else for (const other of others) other.call(server, stream, headers, ...rest);
  });
}

/** Asks our own port as a stranger would. */
export async function measureWindows(listen: string, port: number): Promise<Windows> {
  const { host } = parseHostPort(listen);
  const session = connectHttp2(`https://${formatHostPort({ host: nearHost(host), port })}`, {
    servername: masterServerName,
    // Nothing is said on this connection; only numbers are read.
    rejectUnauthorized: false,
  });
  try {
    return await new Promise((resolve, reject) => {
      session.once('error', reject);
      session.once('remoteSettings', ({ initialWindowSize }: Settings) => {
        // The connection's window comes in a frame of its own; when the ping is back it has been read.
        session.ping((error: Error | null) => {
          if (error !== null) return reject(error);
          resolve({ streamBytes: initialWindowSize ?? 0, connectionBytes: session.state.remoteWindowSize ?? 0 });
        });
      });
    });
  } finally {
    session.destroy();
  }
}
