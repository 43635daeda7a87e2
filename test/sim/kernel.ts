/**
 * What the modelled node's kernel knows of the volume's writes: counters, a trace ring of limited size, and what was begun and
 * is not completed. The data of a write is there before its event is, as on real disks. All of it outlives a killed agent;
 * another boot begins anew.
 */
import type { BlockStat } from '../../agent/blockstat.ts';
import type { MapHeader, MapStore } from '../../agent/capture/dirtymap.ts';
import type { Ring } from '../../agent/capture/ring.ts';
import type { SimClock } from './clock.ts';
import type { Dice } from './dice.ts';

const disk = 7 * 2 ** 20;
const sectorBytes = 512;

export class SimKernel {
  readonly #clock: SimClock;
  readonly #dice: Dice;
  readonly #ringEvents: number;
  #boot = 1;
  #diskseq = 1;
  #sectors = 0;
  #writing = 0;
  #events: { sector: number; sectors: number }[] = [];
  #watched = false;
  #dropped = 0;
  #told = 0;
  /** Another program meddles: events go missing and the ring says nothing. */
  stealChance = 0;
  #disturbed: string | undefined;

  constructor(clock: SimClock, dice: Dice) {
    this.#clock = clock;
    this.#dice = dice;
    this.#ringEvents = dice.pick([5, 60, 100_000]);
  }

  /** The data is there; its completion follows. */
  wrote(offset: number, length: number): void {
    const sector = Math.floor(offset / sectorBytes);
    const sectors = Math.ceil((offset + length) / sectorBytes) - sector;
    if (sectors <= 0) return;
    const boot = this.#boot;
    this.#writing++;
    const complete = (): void => {
      if (boot !== this.#boot) return;
      this.#writing--;
      this.#record(sector, sectors);
      this.#sectors += sectors;
    };
    if (this.#dice.chance(0.4)) complete();
    else this.#clock.after(this.#dice.between(0, 3), complete);
  }

  #record(sector: number, sectors: number): void {
    if (!this.#watched || this.#dice.chance(this.stealChance)) return;
    if (this.#events.length >= this.#ringEvents) this.#dropped++;
    else this.#events.push({ sector, sectors });
  }

  /** Another program resets tracing. */
  reset(): void {
    this.#events = [];
    this.#watched = false;
    this.#disturbed = 'another program switched tracing off';
  }

  attachedAnew(): void {
    this.#diskseq++;
  }

  reboot(): void {
    this.#boot++;
    this.#sectors = 0;
    this.#writing = 0;
    this.#events = [];
    this.#watched = false;
    this.#dropped = this.#told = 0;
  }

  stat(sizeBytes: number): BlockStat {
    return {
      bootId: `boot ${this.#boot}`,
      device: '7:0',
      disk,
      isPartition: false,
      startSector: 0,
      sizeBytes: Math.ceil(sizeBytes / sectorBytes) * sectorBytes,
      diskseq: String(this.#diskseq),
      attached: '',
      mapping: [],
      counted: 'yes',
      iostats: true,
      splitsBios: false,
      sectors: this.#sectors,
      readSectors: 0,
      writing: this.#writing,
    };
  }

  /** For one agent process; `isDead` when that is gone. */
  ring(isDead: () => boolean): Ring {
    return {
      inherited: this.#watched ? [disk] : [],
      inheritedQueue: [],
      watch: (disks) => {
        if (!isDead()) this.#watched = disks.includes(disk);
      },
      take: (each) => {
        if (isDead()) throw new Error('this process is gone');
        const events = this.#events.splice(0);
        for (const { sector, sectors } of events) each('rq', disk, sector, sectors);
        const lost = this.#dropped - this.#told;
        this.#told = this.#dropped;
        const reason = lost > 0 ? `${lost} events were dropped` : this.#disturbed;
        if (this.#disturbed !== undefined) this.#watched = true;
        this.#disturbed = undefined;
        return { taken: events.length, lost, reason };
      },
      close: () => undefined,
    };
  }
}

/** The agent's file of the dirty map: outlives the process, and is written step by step. */
export class SimMapFile {
  #header: MapHeader | undefined;
  readonly #pages = new Map<number, Buffer>();

  open(turn: () => Promise<void>): MapStore {
    return {
      read: async () => {
        await turn();
        return this.#header && { header: structuredClone(this.#header), pages: [...this.#pages] };
      },
      writePages: async (pages) => {
        for (const [number, bytes] of pages) {
          // As it is now: a page is not written as it was when this began.
          await turn();
          if (bytes) this.#pages.set(number, Buffer.from(bytes));
          else this.#pages.delete(number);
        }
      },
      writeHeader: async (header) => {
        await turn();
        this.#header = structuredClone(header);
      },
      sync: turn,
    };
  }
}
