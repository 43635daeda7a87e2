/** /healthz and /readyz for probes, without TLS and with nothing else: open also while this master waits to lead. */
import { createServer } from 'node:http';
import { once } from 'node:events';
import type { HostPort } from '../proto/value.ts';

export interface Health {
  ready: boolean;
  close(): void;
}

/** Without an address it serves nothing. */
export async function serveHealth(address: HostPort | undefined): Promise<Health> {
  const server = createServer((request, response) => {
    const isWell = request.url === '/healthz' || (request.url === '/readyz' && health.ready);
    const isKnown = request.url === '/healthz' || request.url === '/readyz';
    response.writeHead(isWell ? 200 : isKnown ? 503 : 404, { 'content-type': 'application/json' });
    response.end(`${JSON.stringify({ status: isWell ? 'ok' : isKnown ? 'waiting' : 'not found' })}\n`);
  });
  const health: Health = {
    ready: false,
    close() {
      server.close();
      server.closeAllConnections();
    },
  };
  if (address) {
    server.listen(address.port, address.host);
    await once(server, 'listening');
    server.unref();
  }
  return health;
}
