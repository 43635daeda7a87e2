/**
 * The modelled volume as agent/device.ts BlockDevice, and the workload that writes to it meanwhile. What the volume can do
 * (freeze, reflink, tell writes) is fixed when it is made, as a filesystem's abilities are.
 */
import type { BlockDevice, Frozen, View } from '../../agent/device.ts';
import { Refusal } from '../../agent/refusal.ts';
import { ReplicationError } from '../../proto/errors.ts';
import { granuleBytes } from '../../proto/granule.ts';
import type { SimClock } from './clock.ts';
import type { Dice } from './dice.ts';
import { SimKernel } from './kernel.ts';
import { readSlots, slotBytes, Volume } from './volume.ts';

const granuleSlots = granuleBytes / slotBytes;

export interface Abilities {
  freeze: boolean;
  reflink: boolean;
  /** Writes show in a stamp. */
  stamp: boolean;
  /** Holes can be told. */
  holes: boolean;
  /** Its writes can be traced. */
  trace: boolean;
  /** The workload never rests; else it writes in bursts. */
  restless: boolean;
}

export class SimDevice {
  readonly volume: Volume;
  readonly kernel: SimKernel;
  readonly abilities: Abilities;
  readonly #clock: SimClock;
  readonly #dice: Dice;
  #value = 0;
  #writing = true;
  #busyUntilMs = 0;
  #frozen: { held: boolean } | undefined;
  /** The path is not there. */
  gone = false;
  eioChance = 0;
  openViews = 0;

  constructor(clock: SimClock, dice: Dice, sizeBytes: number, abilities: Abilities) {
    this.#clock = clock;
    this.#dice = dice;
    this.abilities = abilities;
    this.volume = new Volume(sizeBytes, clock.nowMs);
    this.kernel = new SimKernel(clock, dice.fork('kernel'));
    this.#fill();
    this.#work();
  }

  /** The workload never rests from now on. */
  unrest(): void {
    this.abilities.restless = true;
    this.#work();
  }

  /** The workload ends; what is there stays. */
  stop(): void {
    this.#writing = false;
  }

  /** Some of it has content from the start. */
  #fill(): void {
    const { slotCount } = this.volume;
    if (this.#dice.chance(0.2)) return;
    const share = this.#dice.fraction();
    const slots = new Uint32Array(slotCount);
    for (let i = 0; i < slotCount; i += granuleSlots)
      if (this.#dice.chance(share)) slots.fill(this.#fresh(), i, i + granuleSlots);
    this.volume.write(0, slots, this.#clock.nowMs);
  }

  /** Bursts of writes with quiet times between. */
  #work(): void {
    const nowMs = this.#clock.nowMs;
    const next = (ms: number): void => void this.#clock.after(ms, () => this.#work());
    if (!this.#writing) return;
    if (!this.abilities.restless && nowMs > this.#busyUntilMs) {
      const quietMs = this.#dice.between(200, 4000);
      this.#busyUntilMs = nowMs + quietMs + this.#dice.between(100, 2500);
      next(quietMs);
      return;
    }
    if (!this.#frozen) this.#write();
    next(this.abilities.restless ? this.#dice.between(2, 12) : this.#dice.between(3, 120));
  }

  #write(): void {
    const { volume } = this;
    const nowMs = this.#clock.nowMs;
    if (volume.slotCount === 0) return;
    const at = this.#dice.below(volume.slotCount);
    const granule = at - (at % granuleSlots);
    const kind = this.#dice.fraction();
    const write = (first: number, values: Uint32Array): void => {
      volume.write(first, values, nowMs);
      this.kernel.wrote(first * slotBytes, values.length * slotBytes);
    };
    if (kind < 0.4) write(at, repeat(this.#fresh(), 1));
    else if (kind < 0.6) write(granule, repeat(this.#fresh(), granuleSlots));
    else if (kind < 0.75) write(granule, repeat(this.#fresh(), granuleSlots * this.#dice.below(12)));
    else if (kind < 0.85) write(granule, repeat(0, granuleSlots * (1 + this.#dice.below(12))));
    else if (kind < 0.92) write(at, repeat(volume.slot(at), 1));
    else if (kind < 0.99) write(granule, repeat(1 + this.#dice.below(3), granuleSlots));
    else write(0, repeat(this.#dice.chance(0.5) ? 0 : this.#fresh(), volume.slotCount));
  }

  #fresh(): number {
    return 1000 + this.#value++;
  }

  grow(bytes: number): void {
    if (!this.#frozen) this.volume.resize(this.volume.sizeBytes + bytes, this.#fresh(), this.#clock.nowMs);
  }

  shrink(sizeBytes: number): void {
    if (!this.#frozen) this.volume.resize(sizeBytes, this.#fresh(), this.#clock.nowMs);
  }

  replace(): void {
    const slots = this.volume.slots().map(() => (this.#dice.chance(0.3) ? this.#fresh() : 0));
    this.volume.replace(`sim:${this.#fresh()}`, slots, this.#clock.nowMs);
    this.kernel.attachedAnew();
  }

  /** For one agent process; `dead` when that is gone. */
  open(isDead: () => boolean): BlockDevice {
    const turn = async (): Promise<void> => {
      if (this.#dice.chance(0.3)) await this.#clock.sleep(this.#dice.between(0, 5));
      else await Promise.resolve();
      if (isDead()) throw new ReplicationError('Stopped', 'this process is gone');
      if (this.gone) throw new ReplicationError('SourceGone', 'the volume is not there');
      if (this.eioChance > 0 && this.#dice.chance(this.eioChance)) throw new Error('EIO: the simulated volume fails');
    };
    const live = {
      slots: () => this.volume.present,
      sizeBytes: () => this.volume.sizeBytes,
      turn,
    };
    return {
      ...this.#readable(live),
      facts: async () => {
        await turn();
        return { sizeBytes: this.volume.sizeBytes, sourceId: this.volume.sourceId };
      },
      size: async () => {
        await turn();
        return this.volume.sizeBytes;
      },
      stamp: async () => {
        await turn();
        const stamp = this.abilities.stamp ? `version ${this.volume.version}` : undefined;
        return { stamp, reason: stamp === undefined ? 'writes do not show here' : '' };
      },
      flush: async () => undefined,
      freeze: async (maxFreezeMs, signal) => {
        await turn();
        signal.throwIfAborted();
        return this.abilities.freeze ? this.#freeze(maxFreezeMs) : new Refusal('unsupported', 'nothing is mounted');
      },
      stopWriters: async () => new Refusal('unsupported', 'no pod uses it'),
      reflink: async () => {
        await turn();
        if (!this.abilities.reflink) return 'the filesystem cannot share blocks';
        const slots = this.volume.slots();
        const { sizeBytes } = this.volume;
        this.openViews++;
        let open = true;
        const view: View = {
          ...this.#readable({ slots: () => slots, sizeBytes: () => sizeBytes, turn }),
          sizeBytes,
          release: async () => {
            if (open) this.openViews--;
            open = false;
          },
        };
        await turn().catch(async (error: unknown) => {
          await view.release();
          throw error;
        });
        return view;
      },
      rest: async () => undefined,
    };
  }

  /** The guard thaws when the time is over. */
  #freeze(maxFreezeMs: number): Frozen {
    const startMs = this.#clock.nowMs;
    const frozen = { held: true };
    const { version } = this.volume;
    this.#frozen = frozen;
    this.volume.noteFrozen();
    const thawed = (): void => {
      if (this.#frozen === frozen) this.#frozen = undefined;
    };
    // Now and then somebody else thaws it.
    const limitMs = this.#dice.chance(0.1) ? this.#dice.between(0, maxFreezeMs) : maxFreezeMs;
    const cancel = this.#clock.after(limitMs, () => {
      frozen.held = false;
      thawed();
    });
    return {
      thaw: async () => {
        cancel();
        const { held } = frozen;
        thawed();
        return { held, freezeUs: Math.max(1, Math.round((this.#clock.nowMs - startMs) * 1000)) };
      },
      isAlone: () => this.volume.version === version,
    };
  }

  #readable(of: {
    slots: () => Readonly<Uint32Array>;
    sizeBytes: () => number;
    turn: () => Promise<void>;
  }): Pick<BlockDevice, 'read' | 'nextData' | 'nextHole'> {
    const { holes } = this.abilities;
    return {
      read: async (buffer, position) => {
        // In two halves: a read of a live volume is no instant.
        const half = Math.floor(buffer.length / 2 / slotBytes) * slotBytes;
        await of.turn();
        const first = readSlots(of.slots(), of.sizeBytes(), buffer.subarray(0, half), position);
        await of.turn();
        return first + readSlots(of.slots(), of.sizeBytes(), buffer.subarray(half), position + half);
      },
      nextData: async (position) => {
        await of.turn();
        const slots = of.slots();
        for (let at = position; at < of.sizeBytes(); at = (Math.floor(at / slotBytes) + 1) * slotBytes)
          if (!holes || (slots[Math.floor(at / slotBytes)] ?? 0) !== 0) return at;
        return undefined;
      },
      nextHole: async (position) => {
        await of.turn();
        const slots = of.slots();
        for (let at = position; at < of.sizeBytes(); at = (Math.floor(at / slotBytes) + 1) * slotBytes)
          if (holes && slots[Math.floor(at / slotBytes)] === 0) return at;
        return of.sizeBytes();
      },
    };
  }
}

function repeat(value: number, count: number): Uint32Array {
  return new Uint32Array(count).fill(value);
}
