/**
 * The one reader of the kernel's ring for all traced volumes of this agent: takes what waits, sooner the more there is, and
 * hands each event to the volumes that it lies in.
 *
 * Guarantees: an event is handed out in the `drain` that took it; what the ring lost is told to every volume, as nobody
 * knows whose it was. Events that waited for disks nobody has asked for yet (the agent has just started) are kept for
 * `inheritMs`, `maxInherited` of them at most; what is dropped of them shows in the disk's statistics (proof.ts).
 */
import type { Clock } from '../../proto/effects.ts';
import type { Sums } from './proof.ts';
import type { Bios } from './bios.ts';
import type { Ring, RingEvent } from './ring.ts';

const poll = { fastMs: 20, slowMs: 400, busyEvents: 2000 };
const inheritMs = 10 * 60_000;
const maxInherited = 1 << 20;

/** A stretch of a disk that one volume is. */
export interface TracedRange {
  /** major << 20 | minor */
  readonly disk: number;
  /** Where what is queued is told too. */
  readonly bios: Bios | undefined;
  /** Sectors of 512 bytes. */
  readonly first: number;
  end: number;
  /** Sectors written so far, by what told of them. */
  readonly sums: Sums;
  /** Sectors relative to the range. */
  each(sector: number, sectors: number): void;
  /** Something may be missing. */
  lost(events: number, reason: string): void;
  /** After a drain that brought something. */
  drained(): void;
}

export class Tracer {
  readonly #ring: Ring;
  readonly #clock: Clock;
  readonly #ranges = new Set<TracedRange>();
  /** Four numbers each: kind, disk, sector, sectors. */
  #inherited: number[] = [];
  #inheritedDisks: Set<number>;
  #inheritedUntilMs: number;

  constructor(ring: Ring, clock: Clock) {
    this.#ring = ring;
    this.#clock = clock;
    this.#inheritedDisks = new Set(ring.inherited);
    this.#inheritedUntilMs = clock.monotonicMs() + inheritMs;
  }

  /** Whether its writes were recorded for an agent before us, until we came. */
  isInherited(disk: number): boolean {
    return this.#ring.inherited.includes(disk);
  }

  /** From now on; events that waited from before for these sectors come first. @throws Error saying why not */
  add(range: TracedRange): void {
    this.drain();
    this.#ranges.add(range);
    this.#watch();
    const rest: number[] = [];
    for (let at = 0; at < this.#inherited.length; at += 4) {
      const [kind = 0, disk = 0, sector = 0, sectors = 0] = this.#inherited.slice(at, at + 4);
      if (!give(range, kinds[kind] ?? 'rq', disk, sector, sectors)) rest.push(kind, disk, sector, sectors);
    }
    this.#inherited = rest;
  }

  remove(range: TracedRange): void {
    if (!this.#ranges.delete(range)) return;
    // Whoever has asked for what waited of this disk has had it.
    this.#inheritedDisks.delete(range.disk);
    this.#watch();
  }

  #watch(): void {
    if (this.#clock.monotonicMs() > this.#inheritedUntilMs) this.#inheritedDisks.clear();
    const disks = (ranges: TracedRange[]): number[] => ranges.map(({ disk }) => disk);
    const all = [...this.#ranges];
    const waiting = [...this.#inheritedDisks].filter((disk) => !disks(all).includes(disk));
    const withBios = disks(all.filter(({ bios }) => bios));
    this.#ring.watch(
      [...new Set([...disks(all), ...waiting])],
      [...new Set([...withBios, ...waiting.filter((disk) => this.#ring.inheritedQueue.includes(disk))])],
    );
  }

  /**
   * Everything that the kernel has told of is handed out when it returns. Answers how many events there were. `quickly`: whether
   * something was missed is for the next drain to say; at rest that is most of what looking costs.
   */
  drain(quickly = false): number {
    const touched = new Set<TracedRange>();
    const { taken, lost, reason } = this.#ring.take((kind, disk, sector, sectors) => {
      let isSomeones = false;
      for (const range of this.#ranges) {
        if (!give(range, kind, disk, sector, sectors)) continue;
        touched.add(range);
        isSomeones = true;
      }
      if (!isSomeones && this.#inheritedDisks.has(disk) && this.#inherited.length < maxInherited * 4)
        this.#inherited.push(kinds.indexOf(kind), disk, sector, sectors);
    }, quickly);
    if (reason !== undefined) for (const range of this.#ranges) range.lost(lost, reason);
    for (const range of touched) range.drained();
    return taken;
  }

  async run(signal: AbortSignal): Promise<void> {
    let waitMs: number = poll.slowMs;
    while (!signal.aborted) {
      await this.#clock.sleep(waitMs, signal).catch(() => undefined);
      if (signal.aborted) return;
      if (this.#ranges.size === 0 && this.#inheritedDisks.size === 0) continue;
      const taken = this.drain(true);
      // A burst shall not fill the ring before the next look; a quiet node is looked at twice a second.
      waitMs = taken > poll.busyEvents ? poll.fastMs : Math.min(poll.slowMs, waitMs * 2);
      if (this.#inheritedDisks.size > 0 && this.#clock.monotonicMs() > this.#inheritedUntilMs) {
        this.#inherited = [];
        this.#watch();
      }
    }
  }

  close(): void {
    this.#ranges.clear();
    this.#ring.close();
  }
}

const kinds: RingEvent[] = ['rq', 'bio', 'queue'];

/** Whether the event is the range's, in part at least. */
function give(range: TracedRange, kind: RingEvent, disk: number, sector: number, sectors: number): boolean {
  if (disk !== range.disk) return false;
  const first = Math.max(sector, range.first);
  const end = Math.min(sector + sectors, range.end);
  if (first >= end) return false;
  if (kind === 'rq' || (kind === 'bio' && !range.bios)) {
    range.sums[kind] += end - first;
    range.each(first - range.first, end - first);
  } else if (range.bios) {
    const told = kind === 'queue' ? range.bios.queued(first, end) : range.bios.completed(first, end);
    range.sums.bio += told.sectors;
    if (told.end > told.first) range.each(told.first - range.first, told.end - told.first);
  }
  return true;
}
