/** The web page's files, read once at the start: small modules that the browser takes as they are. */
import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { extname, join } from 'node:path';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import { pageFolder } from './rights.ts';

const folder = join(import.meta.dirname, '..', 'page');
const types: Record<string, string> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
};

export interface PageFile {
  url: string;
  type: string;
  etag: string;
  content: Buffer;
}

export async function pageFiles(): Promise<PageFile[]> {
  const names = (await readdir(folder)).filter((name) => extname(name) in types);
  return Promise.all(
    names.map(async (name) => {
      const content = await readFile(join(folder, name));
      const etag = `"${createHash('sha256').update(content).digest('base64url').slice(0, 22)}"`;
      const url = name === 'index.html' ? '/' : `${pageFolder}${name}`;
      return { url, type: types[extname(name)] ?? '', etag, content };
    }),
  );
}

export function pageRoutes(app: FastifyInstance, files: PageFile[]): void {
  for (const { url, type, etag, content } of files) {
    app.get(url, { schema: { hide: true } }, async (request: FastifyRequest, reply: FastifyReply) => {
      // Asked for anew each time, so that page and master are never of two versions; sent only when changed.
      void reply.header('etag', etag).header('cache-control', 'no-cache');
      if (request.headers['if-none-match'] === etag) return reply.code(304).send();
      return reply.type(type).send(content);
    });
  }
}
