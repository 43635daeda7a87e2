/**
 * The kernel's trace ring buffer as bytes: what `per_cpu/cpuN/trace_pipe_raw` hands out, and the format files that say where
 * in an event its fields are. Pure.
 *
 * A page: timestamp (8 bytes), commit (bytes of data, with flags above), data. An event: a word of 5 bits type or length and
 * 27 bits of time, then its payload; include/linux/ring_buffer.h and the kernel's own `events/header_event` say the same.
 * A page that breaks these rules is answered with what was whole before it and `broken`.
 */

/** Field of an event or of a page's header. */
export interface Field {
  offset: number;
  size: number;
}

export interface PageLayout {
  /** Of the number of bytes of data; its low 20 bits count, above them stand flags. */
  commit: Field;
  /** Of the data; offset + size = a whole page. */
  data: Field;
}

/** Where a block completion event has what is needed. */
export interface EventLayout {
  id: number;
  dev: Field;
  sector: Field;
  sectors: Field;
  rwbs: Field;
}

/** @throws Error naming the field that is not there */
export function parsePageLayout(text: string): PageLayout {
  const fields = parseFields(text);
  return { commit: need(fields, 'commit', 'header_page'), data: need(fields, 'data', 'header_page') };
}

/** @throws Error naming the field that is not there */
export function parseEventLayout(text: string): EventLayout {
  const id = Number(/^ID:\s*(\d+)$/m.exec(text)?.[1]);
  const name = /^name:\s*(\S+)$/m.exec(text)?.[1] ?? 'the event';
  if (!Number.isInteger(id)) throw new Error(`the format of ${name} has no ID`);
  const fields = parseFields(text);
  return {
    id,
    dev: need(fields, 'dev', name),
    sector: need(fields, 'sector', name),
    sectors: need(fields, 'nr_sector', name),
    rwbs: need(fields, 'rwbs', name),
  };
}

/** Lines `field:TYPE NAME;	offset:N;	size:N;	signed:N;`. */
function parseFields(text: string): Map<string, Field> {
  const fields = new Map<string, Field>();
  for (const [, name, offset, size] of text.matchAll(/field:[^;]*?(\w+)(?:\[\d*\])?;\s*offset:(\d+);\s*size:(\d+);/g))
    if (name !== undefined) fields.set(name, { offset: Number(offset), size: Number(size) });
  return fields;
}

function need(fields: Map<string, Field>, name: string, where: string): Field {
  const field = fields.get(name);
  if (!field) throw new Error(`the format of ${where} has no field ${name}`);
  if (field.offset + field.size > largestPage)
    throw new Error(`the format of ${where} has its field ${name} beyond any page`);
  return field;
}

/** Of any kernel: those of arm64 and ppc64 go up to it. */
const largestPage = 65_536;

/** A completed write, discard or write-zeroes, as the kernel told it. */
export interface Completion {
  /** Id of the event, as in its layout. */
  event: number;
  /** major << 20 | minor */
  dev: number;
  /** Absolute on the disk, in units of 512 bytes. */
  sector: number;
  sectors: number;
}

/** Bits of `commit` that are the length; above are "events were lost before this page" and whether a count of them follows. */
const lengthMask = 0xfffff;
const lostFlag = 2 ** 31;
/** Of a page's first field, its own time. */
const timeBytes = 8;
const types = { maxData: 28, padding: 29, timeExtend: 30, timeStamp: 31 } as const;

/** What could not be read: then anything may have been in it. */
export interface PageResult {
  lost: boolean;
  broken: string | undefined;
}

/**
 * One page's events to `take`, those of `layouts` only, but reads and flushes.
 * @param bytes a page, or the part of one that a read answered
 * @param take with the time in nanoseconds of the ring's clock, which is nearly the same on all processors
 */
export function parsePage(
  bytes: Buffer,
  page: PageLayout,
  layouts: ReadonlyMap<number, EventLayout>,
  take: (completion: Completion, timeNs: number) => void,
): PageResult {
  if (bytes.length < Math.max(page.data.offset, page.commit.offset + 4, timeBytes))
    return { lost: false, broken: `a page of ${bytes.length} bytes` };
  // Little endian: x86-64 and arm64 both.
  const word = bytes.readUInt32LE(page.commit.offset);
  const lost = word >= lostFlag;
  const end = page.data.offset + (word & lengthMask);
  if (end > bytes.length) return { lost, broken: `a page says ${word & lengthMask} bytes, ${bytes.length} were read` };
  let at = page.data.offset;
  let timeNs = Number(bytes.readBigUInt64LE(0));
  while (at + 4 <= end) {
    const header = bytes.readUInt32LE(at);
    const type = header & 31;
    const delta = header >>> 5;
    at += 4;
    if (type < types.padding) timeNs += delta;
    if (type === types.padding) {
      // Without time it is the rest of the page; else an event that was taken back, with its length behind.
      if (delta === 0) return { lost, broken: undefined };
      if (at + 4 > end) return { lost, broken: 'a padding without length' };
      at += bytes.readUInt32LE(at);
    } else if (type === types.timeExtend || type === types.timeStamp) {
      if (at + 4 > end) return { lost, broken: 'a time without its second half' };
      const time = bytes.readUInt32LE(at) * 2 ** 27 + delta;
      timeNs = type === types.timeExtend ? timeNs + time : time;
      at += 4;
    } else {
      let length = type * 4;
      if (type === 0) {
        if (at + 4 > end) return { lost, broken: 'an event without length' };
        length = bytes.readUInt32LE(at) - 4;
        at += 4;
      }
      if (length < 0 || at + length > end) return { lost, broken: `an event of ${length} bytes does not fit its page` };
      const layout = length >= 2 ? layouts.get(bytes.readUInt16LE(at)) : undefined;
      if (layout) {
        const completion = parseEvent(bytes.subarray(at, at + length), layout);
        if (completion === 'short') return { lost, broken: 'an event is shorter than its format' };
        if (completion) take(completion, timeNs);
      }
      at += length;
    }
  }
  return { lost, broken: at > end ? 'a padding goes beyond its page' : undefined };
}

function parseEvent(bytes: Buffer, layout: EventLayout): Completion | undefined | 'short' {
  const { dev, sector, sectors, rwbs } = layout;
  if (bytes.length < Math.max(dev.offset + 4, sector.offset + 8, sectors.offset + 4, rwbs.offset + 1)) return 'short';
  const kind = bytes[rwbs.offset];
  const count = bytes.readUInt32LE(sectors.offset);
  if (kind === read || count === 0) return undefined;
  return {
    event: layout.id,
    dev: bytes.readUInt32LE(dev.offset),
    sector: Number(bytes.readBigUInt64LE(sector.offset)),
    sectors: count,
  };
}

/** Of `rwbs`: R; everything else that has sectors changes something (W, D, F with W, N of write-zeroes...). */
const read = 'R'.charCodeAt(0);
