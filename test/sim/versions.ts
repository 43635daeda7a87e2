/**
 * Which protocol each side speaks while one after the other is upgraded, or taken back. A version speaks its own protocol and the one
 * before it; the control line agrees on one. A side that is newer sends fields that the other does not know.
 */
import { negotiate } from '../../master/control.ts';
import { readHello, type MirrorStream } from '../../master/session.ts';
import type { MirrorHello } from '../../proto/wire.ts';
import type { Dice } from './dice.ts';

const newest = 3;
/** Field 1000 as a varint: in no message of replicator.proto. */
export const unknownField = Buffer.from([0xc0, 0x3e, 0x01]);

export type Side = 'agent' | 'master';

export class Versions {
  readonly #dice: Dice;
  readonly #of: Record<Side, number>;
  readonly counts = { versionRefused: 0 };
  /** By the newest control line that came about. */
  agreed = 1;

  constructor(dice: Dice) {
    this.#dice = dice;
    this.#of = { agent: dice.pick([1, 2]), master: dice.pick([1, 2]) };
    this.agree();
  }

  spoken(side: Side): { oldest: number; newest: number } {
    return { oldest: Math.max(1, this.#of[side] - 1), newest: this.#of[side] };
  }

  isNewer(side: Side): boolean {
    return this.#of[side] > this.#of[side === 'agent' ? 'master' : 'agent'];
  }

  /** A control line begins. Where there is nothing in common it ends, and the agent goes on with what was agreed on before. */
  agree(): void {
    const { oldest, newest } = this.spoken('agent');
    try {
      this.agreed = negotiate({ protocolMin: oldest, protocolMax: newest }, this.spoken('master'));
    } catch {
      // Told to people; a session that is tried all the same is refused.
    }
  }

  /** As the master that runs now reads it. */
  async hello(stream: MirrorStream): Promise<MirrorHello> {
    try {
      return await readHello(stream, this.spoken('master'));
    } catch (error) {
      this.counts.versionRefused++;
      throw error;
    }
  }

  /** To a neighbour: what runs next on that side is of that version. */
  move(side: Side): string {
    const step = this.#dice.pick([-1, 1, 1]);
    this.#of[side] = Math.min(newest, Math.max(1, this.#of[side] + step));
    return `${side} of version ${this.#of[side]}`;
  }

  /** The older one is upgraded until both have something in common. */
  settle(): void {
    const newer = Math.max(this.#of.agent, this.#of.master);
    for (const side of ['agent', 'master'] as const) this.#of[side] = Math.max(this.#of[side], newer - 1);
    this.agree();
  }
}
