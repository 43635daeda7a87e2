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
 * A device whose counters are said to be off (blockstat.ts, `perhaps`) is proven for a start by nothing until they have been seen
 * to move by exactly what was told.
 *
 * Blind spots, on purpose: writes to a loop device's backing file, writes from another node. Memory that is not yet written
 * to the device is not on the volume.
 */
import type { Clock } from '../../proto/effects.ts';
import { messageOf } from '../../proto/errors.ts';
import type { BlockStat } from '../blockstat.ts';
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
  startSector: number;
  /** The counter when exactly the marked events had been taken; null = not known to the sector. */
  sectors: number | null;
}

export interface FtraceOptions {
  tracer: Tracer;
  clock: Clock;
  /** The device behind the path now, or why it cannot be told. */
  stat: () => BlockStat | string;
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
  /** Sectors told of when the counter was first known to the sector. */
  #firstTold: number | undefined;
  /** Counters of a device that is said not to count have moved by what was told. */
  #countsAnyway = false;

  constructor(options: FtraceOptions) {
    this.#options = options;
  }

  async begin(state: unknown): Promise<{ proven: boolean; reason: string }> {
    const stat = this.#options.stat();
    if (typeof stat === 'string') throw new Error(stat);
    if (stat.counted === 'no')
      throw new Error('queue/iostats of the device is off; turn it on so that writes are counted');
    const before = parseState(state);
    this.#countsAnyway = false;
    this.#watch(stat);
    const isSame =
      before?.bootId === stat.bootId &&
      before.device === stat.device &&
      before.diskseq === stat.diskseq &&
      before.startSector === stat.startSector;
    if (before && isSame && stat.diskseq !== '' && before.sectors !== null) {
      // Kept only of a device that was seen to count; that is the kernel's way until the next boot.
      this.#countsAnyway = true;
      this.#begin(before.sectors);
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
      return { proven: false, reason: doubt };
    }
    this.#begin();
    await this.drain();
    return { proven: false, reason: whyUnproven(before, stat) };
  }

  #begin(sectors?: number): void {
    this.#proof = new Proof(sectors);
    this.#firstTold = undefined;
  }

  #watch(stat: BlockStat): void {
    const before = this.#range;
    this.#device = stat;
    this.#lost = undefined;
    this.#range = {
      disk: stat.disk,
      first: stat.startSector,
      end: stat.startSector + stat.sizeBytes / sectorBytes,
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
      if (this.#proof.fits(before.sectors, range.sums, after.sectors, range.bios?.pendingSectors)) {
        // The disk may have grown: what lies behind is marked from here on.
        range.end = after.startSector + after.sizeBytes / sectorBytes;
        return this.#answer(before, after);
      }
      if (clock.monotonicMs() > endMs) {
        const told = range.sums.rq + range.sums.bio;
        return this.#doubt(
          `the counters say other writes than the trace: ${after.sectors} sectors, ${told} told since the beginning`,
          after,
        );
      }
      await clock.sleep(2);
    }
  }

  #answer(before: BlockStat, after: BlockStat): Drained {
    const sums = this.#range?.sums ?? { rq: 0, bio: 0 };
    const counter = this.#proof.counterAt(sums);
    if (counter !== undefined) {
      const told = sums.rq + sums.bio;
      this.#firstTold ??= told;
      if (told > this.#firstTold) this.#countsAnyway = true;
    }
    const isStill = before.sectors === after.sectors && before.writing === 0 && counter === after.sectors;
    if (isStill) this.#range?.bios?.atRest();
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
    if (now.counted === 'no') return "the device's queue/iostats was turned off";
    return undefined;
  }

  state(): FtraceState | undefined {
    const { bootId, device, diskseq, startSector } = this.#device ?? {};
    if (bootId === undefined || device === undefined || diskseq === undefined || startSector === undefined)
      return undefined;
    const lost = this.#lost !== undefined;
    const isCounted = this.#device?.counted === 'yes' || this.#countsAnyway;
    const sectors = this.#range && !lost && isCounted ? this.#proof.counterAt(this.#range.sums) : undefined;
    return { bootId, device, diskseq, startSector, sectors: sectors ?? null };
  }

  async kept(): Promise<void> {
    // The ring goes on by itself.
  }

  async close(): Promise<void> {
    if (this.#range) this.#options.tracer.remove(this.#range);
    this.#range = undefined;
  }
}

function parseState(state: unknown): FtraceState | undefined {
  if (typeof state !== 'object' || state === null) return undefined;
  const { bootId, device, diskseq, startSector, sectors } = state as Record<string, unknown>;
  if (typeof bootId !== 'string' || typeof device !== 'string' || typeof diskseq !== 'string') return undefined;
  if (typeof startSector !== 'number' || !(typeof sectors === 'number' || sectors === null)) return undefined;
  return { bootId, device, diskseq, startSector, sectors };
}

function whyUnproven(before: FtraceState | undefined, now: BlockStat): string {
  if (!before) return 'nothing was noted of this volume before';
  if (before.bootId !== now.bootId) return 'the node was started anew since';
  if (before.device !== now.device || before.startSector !== now.startSector) return 'it is another device than before';
  if (before.diskseq !== now.diskseq) return 'the device was detached and attached since';
  if (now.diskseq === '') return 'this kernel does not tell whether a device was attached anew';
  return 'the counters of the last look were not exact';
}
