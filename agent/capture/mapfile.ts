/**
 * A dirty map as a file: a header page, then the bitmap's pages at their places (a sparse file).
 *
 * Header, 4 KiB: 8 bytes magic and version, 4 bytes length, 4 bytes CRC-32 of the JSON, the JSON, zeros. One write within
 * one page, so that a killed process leaves the old header or the new one. A header that does not add up is no map:
 * then the volume is compared as a whole, which is always right.
 */
import { constants, promises as fs } from 'node:fs';
import { dirname } from 'node:path';
import { crc32 } from 'node:zlib';
import { systemErrorCode } from '../../proto/errors.ts';
import { granuleCount } from '../../proto/granule.ts';
import { pageBytes, pageGranules } from './bitmap.ts';
import type { MapHeader, MapStore } from './dirtymap.ts';

const magic = Buffer.from('cdmrmap1');
const fixedBytes = 16;
const empty = Buffer.alloc(pageBytes);

export function mapFile(path: string): MapStore {
  async function open(): Promise<fs.FileHandle> {
    try {
      return await fs.open(path, constants.O_RDWR | constants.O_CREAT, 0o600);
    } catch (error) {
      if (systemErrorCode(error) !== 'ENOENT') throw error;
      await fs.mkdir(dirname(path), { recursive: true, mode: 0o700 });
      return fs.open(path, constants.O_RDWR | constants.O_CREAT, 0o600);
    }
  }

  return {
    async read() {
      let bytes: Buffer;
      try {
        bytes = await fs.readFile(path);
      } catch (error) {
        if (systemErrorCode(error) === 'ENOENT') return undefined;
        throw error;
      }
      const header = parseHeader(bytes.subarray(0, pageBytes));
      if (!header) return undefined;
      const pages = Math.ceil(granuleCount(header.sizeBytes) / pageGranules);
      return { header, pages: pagesIn(bytes, pages) };
    },
    async writePages(pages) {
      await using file = await open();
      for (const [number, bytes] of pages) await file.write(bytes ?? empty, 0, pageBytes, (number + 1) * pageBytes);
    },
    async writeHeader(header) {
      const page = formatHeader(header);
      await using file = await open();
      await file.write(page, 0, page.length, 0);
    },
    async sync() {
      await using file = await open();
      await file.sync();
    },
  };
}

function* pagesIn(bytes: Buffer, count: number): Generator<[number, Buffer]> {
  for (let number = 0; number < count; number++) {
    // A file that ends before is one whose last pages were never marked.
    const page = bytes.subarray((number + 1) * pageBytes, (number + 2) * pageBytes);
    if (page.length > 0 && !page.equals(empty)) yield [number, page];
  }
}

/** @throws Error when it does not fit into a page */
export function formatHeader(header: MapHeader): Buffer {
  const json = Buffer.from(JSON.stringify(header));
  if (json.length > pageBytes - fixedBytes) throw new Error('the header of the dirty map does not fit its page');
  const page = Buffer.alloc(pageBytes);
  magic.copy(page);
  page.writeUInt32LE(json.length, 8);
  page.writeUInt32LE(crc32(json), 12);
  json.copy(page, fixedBytes);
  return page;
}

/** Undefined when it is none, or damaged. */
export function parseHeader(page: Buffer): MapHeader | undefined {
  if (page.length < pageBytes || !page.subarray(0, 8).equals(magic)) return undefined;
  const json = page.subarray(fixedBytes, fixedBytes + page.readUInt32LE(8));
  if (crc32(json) !== page.readUInt32LE(12)) return undefined;
  const header = JSON.parse(json.toString('utf8')) as MapHeader;
  const isWhole = Number.isSafeInteger(header.sizeBytes) && Number.isSafeInteger(header.prepared);
  return isWhole ? header : undefined;
}
