/**
 * One ftrace instance of this agent's own, with the completion events of the block layer for the disks that it watches.
 *
 * Guarantees: `take` answers a reason whenever something may be missing: dropped events, an instance that is gone, off,
 * cleared of its filter, or a page that does not parse. The ring outlives a kill -9 of the agent, so that its successor
 * (same data directory, same name) finds what was written meanwhile. The buffers of all processors together are at most
 * `maxBufferBytes`. Nothing is ever written to a device.
 *
 * Loss that the kernel does not tell of (another program that switched tracing off and on between two looks, or emptied the
 * ring) shows in the disks' statistics: that proof is ftrace.ts's. Root only; what is missing is said by the error.
 */
import fs, { constants } from 'node:fs';
import { messageOf, systemErrorCode } from '../../proto/errors.ts';
import { mountVirtual } from '../../proto/libc.ts';
import { parseEventLayout, parsePage, parsePageLayout, type EventLayout } from './ringpage.ts';
import type { Ring, RingEvent } from './ring.ts';

/** Of all processors together. */
const maxBufferBytes = 64 << 20;
/** Of one: about 300,000 events. */
const maxCpuBytes = 16 << 20;
/** The kernel takes filters of less than a page. */
const maxFilterBytes = 3800;
const events: Record<RingEvent, string> = {
  rq: 'block/block_rq_complete',
  bio: 'block/block_bio_complete',
  queue: 'block/block_bio_queue',
};
const kindsOfEvents = ['rq', 'bio', 'queue'] as const;
const tracefsMagic = 0x74726163;
const roots = ['/sys/kernel/tracing', '/sys/kernel/debug/tracing'];

export interface TracefsOptions {
  /** Letters, digits and dashes; one reader per name. */
  instance: string;
  /** For tests: a ring that overflows soon. */
  bufferBytesPerCpu?: number;
}

/** @throws Error with why this machine cannot */
export function openTracefs({ instance, bufferBytesPerCpu }: TracefsOptions): Ring {
  const root = mountedTracefs();
  const folder = `${root}/instances/${instance}`;
  const page = parsePageLayout(text(`${root}/events/header_page`));
  const layouts = new Map<number, EventLayout>();
  const kinds = new Map<number, RingEvent>();
  for (const kind of kindsOfEvents) {
    const layout = parseEventLayout(text(`${root}/events/${events[kind]}/format`));
    layouts.set(layout.id, layout);
    kinds.set(layout.id, kind);
  }
  let pipes: Pipe[] = [];
  const filters: Record<RingEvent, string> = { rq: '', bio: '', queue: '' };
  const inheritedOf = (kind: RingEvent): number[] =>
    exists(folder) ? devsOf(text(`${folder}/events/${events[kind]}/filter`)) : [];
  const [inherited, inheritedQueue] = [inheritedOf('rq'), inheritedOf('queue')];

  function setUp(): void {
    closePipes();
    const found = exists(folder);
    if (!found) {
      fs.mkdirSync(folder);
      const cpus = cpusOf(folder).length;
      const bytes = bufferBytesPerCpu ?? Math.min(maxCpuBytes, Math.floor(maxBufferBytes / Math.max(1, cpus)));
      write(`${folder}/options/overwrite`, '0');
      write(`${folder}/buffer_size_kb`, String(Math.max(4, Math.floor(bytes / 1024))));
    }
    pipes = cpusOf(folder).map((cpu) => openPipe(`${folder}/per_cpu/${cpu}`));
  }

  function tearDown(): void {
    closePipes();
    if (exists(folder)) fs.rmdirSync(folder);
  }

  function closePipes(): void {
    for (const { fd } of pipes.splice(0)) fs.closeSync(fd);
  }

  /** Filters first, so that nothing of other disks fills the ring. */
  function apply(): void {
    for (const kind of kindsOfEvents) {
      const filter = filters[kind];
      write(`${folder}/events/${events[kind]}/filter`, filter === '' ? '0' : filter);
      write(`${folder}/events/${events[kind]}/enable`, filter === '' ? '0' : '1');
    }
    write(`${folder}/tracing_on`, '1');
  }

  /** Why the instance is not as we left it. */
  function disturbed(): string | undefined {
    if (filters.rq === '') return undefined;
    if (text(`${folder}/tracing_on`) !== '1') return 'another program switched tracing off';
    for (const kind of kindsOfEvents) {
      const filter = filters[kind];
      const event = events[kind];
      if (filter === '') continue;
      if (text(`${folder}/events/${event}/enable`) !== '1') return `another program switched ${event} off`;
      if (text(`${folder}/events/${event}/filter`) !== filter) return `another program changed the filter of ${event}`;
    }
    return undefined;
  }

  // Its buffers take memory: made when there is something to watch.
  if (exists(folder)) setUp();
  const buffer = Buffer.alloc(page.data.offset + page.data.size);

  /** What is queued on one processor and done on another is to be told in its order: by time, where that matters. */
  function take(each: Parameters<Ring['take']>[0], quickly: boolean): ReturnType<Ring['take']> {
    if (filters.queue === '') return takeAll((event) => each(...event), quickly);
    const told: { event: Parameters<typeof each>; timeNs: number }[] = [];
    const result = takeAll((event, timeNs) => told.push({ event, timeNs }), quickly);
    for (const { event } of told.sort((a, b) => a.timeNs - b.timeNs)) each(...event);
    return result;
  }

  function takeAll(
    each: (event: Parameters<Parameters<Ring['take']>[0]>, timeNs: number) => void,
    quickly: boolean,
  ): ReturnType<Ring['take']> {
    let taken = 0;
    let lost = 0;
    let reason: string | undefined;
    for (const pipe of pipes) {
      for (let length = readNow(pipe.fd, buffer); length > 0; length = readNow(pipe.fd, buffer)) {
        const result = parsePage(
          buffer.subarray(0, length),
          page,
          layouts,
          ({ event, dev, sector, sectors }, timeNs) => {
            taken++;
            each([kinds.get(event) ?? 'rq', dev, sector, sectors], timeNs);
          },
        );
        if (result.broken !== undefined) reason ??= `the trace cannot be read: ${result.broken}`;
        if (result.lost) reason ??= 'the ring buffer says that events were lost';
      }
      if (quickly) continue;
      const dropped = droppedIn(text(pipe.stats));
      // Fewer than before: somebody emptied the ring, and its counters with it.
      if (dropped > pipe.dropped) lost += dropped - pipe.dropped;
      else if (dropped < pipe.dropped) reason ??= 'another program emptied the ring buffer';
      pipe.dropped = dropped;
    }
    if (lost > 0) reason ??= `the ring buffer was full: ${lost} events were dropped`;
    return { taken, lost, reason: reason ?? (quickly ? undefined : disturbed()) };
  }

  return {
    inherited,
    inheritedQueue,
    watch(devs, withQueue) {
      filters.rq = filters.bio = filterOf(devs);
      filters.queue = filterOf(withQueue);
      // Its buffers take memory, and tracing takes time of every write.
      if (devs.length === 0) return tearDown();
      if (!exists(folder) || pipes.length === 0) setUp();
      apply();
    },
    take(each, quickly = false) {
      try {
        const result = take(each, quickly);
        if (result.reason !== undefined && filters.rq !== '') apply();
        return result;
      } catch (error) {
        // The instance was removed, perhaps; a new one begins with nothing.
        const reason = `tracing failed: ${messageOf(error)}`;
        try {
          setUp();
          apply();
        } catch {
          // Told again at the next call.
        }
        return { taken: 0, lost: 0, reason };
      }
    },
    close: closePipes,
  };
}

/** Takes the instance away, with all that waits in it, where there is one. */
export function removeInstance(instance: string): void {
  for (const root of roots) if (exists(`${root}/instances/${instance}`)) fs.rmdirSync(`${root}/instances/${instance}`);
}

interface Pipe {
  fd: number;
  stats: string;
  /** As of the last look. What was dropped before us is for the statistics to show: ftrace.ts. */
  dropped: number;
}

function openPipe(folder: string): Pipe {
  const fd = fs.openSync(`${folder}/trace_pipe_raw`, constants.O_RDONLY | constants.O_NONBLOCK);
  return { fd, stats: `${folder}/stats`, dropped: droppedIn(text(`${folder}/stats`)) };
}

function cpusOf(folder: string): string[] {
  return fs.readdirSync(`${folder}/per_cpu`).filter((name) => /^cpu\d+$/.test(name));
}

/** Bytes, 0 when nothing waits. */
function readNow(fd: number, buffer: Buffer): number {
  try {
    return fs.readSync(fd, buffer, 0, buffer.length, null);
  } catch (error) {
    if (systemErrorCode(error) === 'EAGAIN') return 0;
    throw error;
  }
}

function droppedIn(stats: string): number {
  const dropped = Number(/^dropped events:\s*(\d+)$/m.exec(stats)?.[1]);
  const overrun = Number(/^overrun:\s*(\d+)$/m.exec(stats)?.[1]);
  if (!Number.isInteger(dropped) || !Number.isInteger(overrun)) throw new Error('per_cpu stats name no dropped events');
  return dropped + overrun;
}

const anyWrite = 'nr_sector > 0 && !(rwbs ~ "R*")';

/** Writes of these disks: whatever has sectors and is no read. Too many disks for a filter: all disks' writes. */
function filterOf(devs: readonly number[]): string {
  if (devs.length === 0) return '';
  const some = [...devs]
    .sort((a, b) => a - b)
    .map((dev) => `dev == ${dev}`)
    .join(' || ');
  const filter = devs.length === 1 ? `${some} && ${anyWrite}` : `(${some}) && ${anyWrite}`;
  return filter.length <= maxFilterBytes ? filter : anyWrite;
}

function devsOf(filter: string): number[] {
  if (filter === anyWrite) return allDisks();
  return [...filter.matchAll(/dev == (\d+)/g)].map(([, dev]) => Number(dev));
}

/** major << 20 | minor */
function allDisks(): number[] {
  return fs.readdirSync('/sys/block').map((name) => {
    const [major = 0, minor = 0] = text(`/sys/block/${name}/dev`).split(':').map(Number);
    return major * 2 ** 20 + minor;
  });
}

/** Where tracefs is mounted; mounts it where it is not. */
function mountedTracefs(): string {
  for (const path of roots) if (isTracefs(path)) return path;
  mountVirtual('tracefs', '/sys/kernel/tracing');
  if (isTracefs('/sys/kernel/tracing')) return '/sys/kernel/tracing';
  throw new Error('tracefs is not mounted and cannot be: mount -t tracefs tracefs /sys/kernel/tracing, as root');
}

function isTracefs(path: string): boolean {
  try {
    return fs.statfsSync(path).type === tracefsMagic && exists(`${path}/instances`);
  } catch {
    return false;
  }
}

function exists(path: string): boolean {
  // Not existsSync: access(2) goes without the capabilities of a user that is not root.
  return fs.statSync(path, { throwIfNoEntry: false }) !== undefined;
}

function text(path: string): string {
  return fs.readFileSync(path, 'utf8').trim();
}

function write(path: string, value: string): void {
  // Not truncated: that would empty the ring of some of these files.
  const fd = fs.openSync(path, constants.O_WRONLY);
  try {
    fs.writeSync(fd, value);
  } finally {
    fs.closeSync(fd);
  }
}
