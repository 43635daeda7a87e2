/**
 * Capture `ftrace`: the kernel tells of every completed write, discard and write-zeroes; the device's counters prove at each
 * drain that none is missing (proof.ts).
 *
 * When the proof fails (events dropped, tracing switched off by somebody, another disk behind the path, counters that do
 * not add up) the answer is a doubt, and the proof begins anew with what is written from then on.
 *
 * What was written while no agent looked is proven by one of two: the counters are what they were, or the ring of the agent
 * before us brought exactly what they moved by. Both need the same boot and the same diskseq.
 *
 * A device that may not count (blockstat.ts, `perhaps`) proves nothing until a read of ours was seen in its counters: one that
 * neither counts nor tells would be still for ever.
 *
 * Where the device is written to without pause, the counter's beginning is known to a few sectors only. What is lost meanwhile
 * and is less than that would not show, so the first look that is exact is a doubt where the first of all was not.
 *
 * Blind spots, on purpose: writes to a loop device's backing file, writes from another node. Memory that is not yet written
 * to the device is not on the volume.
 */
import type { Clock } from '../../proto/effects.ts';
import { messageOf } from '../../proto/errors.ts';
import type { BlockStat } from '../blockstat.ts';
import { mappingDigest, sameContent } from '../mapping.ts';
import type { BlockCapture, Drained, MarkBytes } from './block.ts';
import { Bios } from './bios.ts';
import { Proof } from './proof.ts';
import type { TracedRange, Tracer } from './tracer.ts';

/** How long a look that does not fit is repeated: events and counters of one write come apart by the time of an interrupt. */
const settleMs = 250;
const sectorBytes = 512;

export interface FtraceState {
  bootId: string;
  device: string;
  diskseq: string;
  /** Digest of its device-mapper tables; empty = it has none. */
  mapping: string;
  startSector: number;
  /** The counter when exactly the marked events had been taken; null = not known to the sector. */
  sectors: number | null;
}

export interface FtraceOptions {
  tracer: Tracer;
  clock: Clock;
  /** The device behind the path now, or why it cannot be told. */
  stat: () => BlockStat | string;
  /** Reads some of the device past the page cache, and answers whether that was counted. */
  isCounting: () => Promise<boolean>;
}

export class Ftrace implements BlockCapture {
  readonly method = 'ftrace';
  readonly reason = 'the kernel tells of every write, and its counters prove that none is missing';
  lostEvents = 0;
  marks: MarkBytes = () => undefined;
  /** After a drain by the tracer's own pace that brought marks. */
  onMarks: () => void = () => undefined;
  readonly #options: FtraceOptions;
  #range: TracedRange | undefined;
  #device: BlockStat | undefined;
  #proof = new Proof();
  #lost: string | undefined;
  /** The counter that the range's sums are counted from. */
  #sectorsBefore = 0;
  /** The device was seen to count. */
  #isCounting = false;
  /** The proof was exact at its beginning, or the doubt of that was told. */
  #isExact = false;
  /** No look has fitted yet. */
  #isFirst = true;

  constructor(options: FtraceOptions) {
    this.#options = options;
  }

  async begin(state: unknown): Promise<{ proven: boolean; reason: string }> {
    const stat = this.#options.stat();
    if (typeof stat === 'string') throw new Error(stat);
    if (stat.counted === 'no')
      throw new Error('queue/iostats of the device is off; turn it on so that writes are counted');
    this.#isCounting = false;
    if (!(await this.#counts(stat))) throw new Error(notCounting);
    const before = parseState(state);
    const isTraced = this.#options.tracer.isInherited(stat.disk);
    this.#watch(stat);
    const isSame =
      before?.bootId === stat.bootId &&
      before.device === stat.device &&
      before.diskseq === stat.diskseq &&
      before.mapping === mappingDigest(stat.mapping) &&
      before.startSector === stat.startSector;
    if (before && isSame && stat.diskseq !== '' && before.sectors !== null) {
      this.#begin(before.sectors);
      this.#sectorsBefore = before.sectors;
      const { doubt } = await this.drain();
      if (doubt === undefined) {
        const sums = this.#range?.sums;
        const brought = (sums?.rq ?? 0) + (sums?.bio ?? 0);
        const reason =
          brought === 0
            ? "the device's counters are what they were"
            : `the ring brought the ${brought} sectors that the counters moved by`;
        return { proven: true, reason };
      }
      return { proven: false, reason: isTraced ? doubt : `its trace instance was removed since; ${doubt}` };
    }
    this.#begin();
    await this.drain();
    return { proven: false, reason: whyUnproven(before, stat) };
  }

  #begin(sectors?: number): void {
    this.#proof = new Proof(sectors);
    this.#isExact = sectors !== undefined;
    this.#isFirst = true;
  }

  async #counts({ counted }: BlockStat): Promise<boolean> {
    return (this.#isCounting ||= counted === 'yes' || (await this.#options.isCounting()));
  }

  #watch(stat: BlockStat): void {
    const before = this.#range;
    this.#device = stat;
    this.#lost = undefined;
    this.#sectorsBefore = stat.sectors;
    this.#range = {
      disk: stat.disk,
      first: stat.startSector,
      end: endOf(stat),
      bios: stat.splitsBios ? new Bios() : undefined,
      sums: { rq: 0, bio: 0 },
      each: (sector, sectors) => this.marks(sector * sectorBytes, sectors * sectorBytes),
      lost: (events, reason) => {
        this.lostEvents += events;
        this.#lost ??= reason;
      },
      drained: () => this.onMarks(),
    };
    // The new one first: a ring that nobody wants any more is taken down.
    try {
      this.#options.tracer.add(this.#range);
    } finally {
      if (before) this.#options.tracer.remove(before);
    }
  }

  async drain(): Promise<Drained> {
    const { tracer, clock } = this.#options;
    const endMs = clock.monotonicMs() + settleMs;
    for (;;) {
      const before = this.#options.stat();
      if (typeof before === 'string') return this.#doubt(before);
      const moved = this.#whyOther(before);
      if (moved !== undefined) return this.#doubt(moved, before);
      if (!(await this.#counts(before))) return this.#doubt(notCounting, before);
      try {
        tracer.drain();
      } catch (error) {
        return this.#doubt(messageOf(error), before);
      }
      if (this.#lost !== undefined) return this.#doubt(this.#lost, before);
      const range = this.#range;
      const after = this.#options.stat();
      if (typeof after === 'string') return this.#doubt(after);
      if (!range) return this.#doubt('the capture has ended');
      const movedSince = this.#whyOther(after);
      if (movedSince !== undefined) return this.#doubt(movedSince, after);
      const isLate = clock.monotonicMs() > endMs;
      if (this.#fits(before, after, range)) {
        const isExact = this.#proof.counterAt(range.sums) !== undefined;
        // The first look is repeated until it is exact, if that can be.
        if (!this.#isFirst || isExact || isLate) return this.#answer(before, after, range);
      } else if (isLate) {
        const told = range.sums.rq + range.sums.bio;
        return this.#doubt(
          `the counters say other writes than the trace: ${after.sectors - this.#sectorsBefore} sectors, ${told} were told`,
          after,
        );
      }
      await clock.sleep(2);
    }
  }

  #fits(before: BlockStat, after: BlockStat, range: TracedRange): boolean {
    if (!this.#proof.fits(before.sectors, range.sums, after.sectors, range.bios?.pendingSectors)) return false;
    // At rest nothing is pending: what still seems to be was completed, and that was not told.
    const counter = this.#proof.counterAt(range.sums);
    return !isAtRest(before, after) || counter === undefined || counter === after.sectors;
  }

  #answer(before: BlockStat, after: BlockStat, range: TracedRange): Drained {
    // It may have grown: what lies behind is marked from here on.
    range.end = endOf(after);
    this.#device = after;
    const counter = this.#proof.counterAt(range.sums);
    const wasExact = this.#isExact || this.#isFirst;
    this.#isFirst = false;
    this.#isExact ||= counter !== undefined;
    const isStill = isAtRest(before, after) && counter === after.sectors;
    if (isStill) range.bios?.atRest();
    if (this.#isExact && !wasExact) return { doubt: inexact, still: undefined, busy: inexact };
    const { bootId, device, diskseq, sizeBytes, sectors } = after;
    return {
      doubt: undefined,
      still: isStill ? `${bootId}:${device}:${diskseq}:${sizeBytes}:${sectors}` : undefined,
      busy: isStill ? '' : 'the device is being written to',
    };
  }

  /** What is written from now on is looked at anew. */
  #doubt(doubt: string, stat?: BlockStat): Drained {
    this.#begin();
    this.#isCounting = false;
    try {
      if (stat) this.#watch(stat);
    } catch {
      // Told again by the next drain.
    }
    return { doubt, still: undefined, busy: doubt };
  }

  #whyOther(now: BlockStat): string | undefined {
    const was = this.#device;
    if (!was || now.device !== was.device || now.diskseq !== was.diskseq || now.startSector !== was.startSector)
      return 'another device is behind the path';
    if (now.attached !== was.attached) return 'the device was detached and attached';
    if (!sameContent(was.mapping, now.mapping)) return 'the device was mapped to other content (device-mapper)';
    if (now.counted === 'no' || (was.iostats && !now.iostats)) return "the device's queue/iostats was turned off";
    return undefined;
  }

  state(): FtraceState | undefined {
    if (!this.#device) return undefined;
    const { bootId, device, diskseq, mapping, startSector } = this.#device;
    const isProven = this.#range && this.#lost === undefined && this.#isExact;
    const sectors = isProven ? this.#proof.counterAt(this.#range?.sums ?? { rq: 0, bio: 0 }) : undefined;
    return { bootId, device, diskseq, mapping: mappingDigest(mapping), startSector, sectors: sectors ?? null };
  }

  async kept(): Promise<void> {
    // The ring goes on by itself.
  }

  async close(): Promise<void> {
    if (this.#range) this.#options.tracer.remove(this.#range);
    this.#range = undefined;
  }
}

const notCounting =
  'reads of the device do not show in its counters, so writes that are not told would not show either';
const inexact = 'the device was written to without pause since tracing began, so that a loss of a few sectors would not have shown'; // prettier-ignore

/** A partition is followed by others; behind the end of a disk there is only what it grows by, before we see that. */
function endOf({ isPartition, startSector, sizeBytes }: BlockStat): number {
  return isPartition ? startSector + sizeBytes / sectorBytes : Infinity;
}

function isAtRest(before: BlockStat, after: BlockStat): boolean {
  return before.sectors === after.sectors && before.writing === 0 && after.writing === 0;
}

function parseState(state: unknown): FtraceState | undefined {
  if (typeof state !== 'object' || state === null) return undefined;
  const { bootId, device, diskseq, mapping, startSector, sectors } = state as Record<string, unknown>;
  if (typeof bootId !== 'string' || typeof device !== 'string' || typeof diskseq !== 'string') return undefined;
  if (typeof mapping !== 'string') return undefined;
  if (typeof startSector !== 'number' || !(typeof sectors === 'number' || sectors === null)) return undefined;
  return { bootId, device, diskseq, mapping, startSector, sectors };
}

function whyUnproven(before: FtraceState | undefined, now: BlockStat): string {
  if (!before) return 'nothing was noted of this volume before';
  if (before.bootId !== now.bootId) return 'the node was started anew since';
  if (before.device !== now.device || before.startSector !== now.startSector) return 'it is another device than before';
  if (before.diskseq !== now.diskseq) return 'the device was detached and attached since';
  if (before.mapping !== mappingDigest(now.mapping)) return 'its device-mapper table was replaced since';
  if (now.diskseq === '') return 'this kernel does not tell whether a device was attached anew';
  return 'the counters of the last look were not exact';
}
