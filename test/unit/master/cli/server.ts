/** A server that answers as a test tells it to, and remembers what it was asked. */
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface Asked {
  method: string;
  url: string;
  headers: IncomingMessage['headers'];
  body: unknown;
}
export interface Answering {
  url: string;
  asked: Asked[];
  close(): void;
}

export async function serve(answer: (asked: Asked, response: ServerResponse) => void): Promise<Answering> {
  const asked: Asked[] = [];
  const server = createServer((request, response) => {
    const take = async () => {
      let text = '';
      for await (const chunk of request) text += String(chunk as Buffer);
      const body: unknown = text === '' ? undefined : JSON.parse(text);
      const one = { method: request.method ?? '', url: request.url ?? '', headers: request.headers, body };
      asked.push(one);
      answer(one, response);
    };
    take().catch((error: unknown) => response.destroy(error as Error));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked,
    close: () => {
      server.close();
      server.closeAllConnections();
    },
  };
}

export function json(response: ServerResponse, value: unknown, status = 200): void {
  const type = status < 400 ? 'application/json' : 'application/problem+json';
  response.writeHead(status, { 'content-type': type }).end(JSON.stringify(value));
}
export function problem(response: ServerResponse, status: number, detail: string, more: object = {}): void {
  json(response, { type: 'urn:x', title: 'T', status, detail, code: 'X', requestId: 'r', ...more }, status);
}
