/** A TCP proxy between agent and master whose lines a test can cut, or leave standing and silent. Counts what passes. */
import { once } from 'node:events';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';

export interface Proxy {
  address: string;
  /** From the agent to the master, since the start, TLS included. */
  readonly sentBytes: number;
  /** The other way. */
  readonly receivedBytes: number;
  /** Closes every line; with `refuse` new ones too, until `heal`. */
  cut(refuse: boolean): void;
  /** Lines stay up, nothing passes, not even a close; new ones are taken and as silent. */
  silence(): void;
  /** New lines pass again; those that were silent are closed. */
  heal(): void;
  close(): Promise<void>;
}

export async function startProxy(target: string): Promise<Proxy> {
  const [host, port] = target.split(':') as [string, string];
  const lines = new Set<Socket>();
  let mode: 'pass' | 'refuse' | 'silent' = 'pass';
  let sentBytes = 0;
  let receivedBytes = 0;
  const closeAll = () => {
    // Not resetAndDestroy: on a paused socket it leaves a handle that keeps Node from ever exiting.
    for (const socket of lines) socket.destroy();
    lines.clear();
  };
  const keep = (socket: Socket) => {
    lines.add(socket);
    socket.on('error', () => socket.destroy());
    socket.on('close', () => lines.delete(socket));
  };
  const server = createServer({ allowHalfOpen: true }, (up) => {
    keep(up);
    if (mode === 'refuse') return void up.destroy();
    if (mode === 'silent') return;
    const down = connect({ host, port: Number(port) });
    keep(down);
    up.on('data', (data) => (sentBytes += data.length));
    down.on('data', (data) => (receivedBytes += data.length));
    up.pipe(down).pipe(up);
    up.on('close', () => down.destroy());
    down.on('close', () => up.destroy());
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    address: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    get sentBytes() {
      return sentBytes;
    },
    get receivedBytes() {
      return receivedBytes;
    },
    cut(refuse) {
      mode = refuse ? 'refuse' : 'pass';
      closeAll();
    },
    silence() {
      mode = 'silent';
      for (const socket of lines) {
        socket.unpipe();
        socket.pause();
      }
    },
    heal() {
      mode = 'pass';
      closeAll();
    },
    async close() {
      mode = 'refuse';
      closeAll();
      server.close();
      await once(server, 'close');
    },
  };
}
