/**
 * How fast a line takes what is sent, from the acknowledgements: bytes taken in the time in which any were under way and the
 * receiver had nothing to do. So neither a slow sender (reading, compressing) nor a slow receiver makes a line look slow.
 */
import type { Clock } from './effects.ts';

/** The rate is that of about the newest so many bytes. */
const rememberedBytes = 16 << 20;

export class Line {
  readonly #clock: Clock;
  #underWay = 0;
  /** When the time that is not yet counted began. */
  #sinceMs = 0;
  #busyMs = 0;
  #takenBytes = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  sent(bytes: number): void {
    if (this.#underWay === 0) this.#sinceMs = this.#clock.monotonicMs();
    this.#underWay += bytes;
  }

  /** @param workedMs that the receiver has worked since it last said so */
  taken(bytes: number, workedMs: number): void {
    const nowMs = this.#clock.monotonicMs();
    this.#busyMs += Math.max(0, nowMs - this.#sinceMs - workedMs);
    this.#sinceMs = nowMs;
    this.#underWay -= bytes;
    this.#takenBytes += bytes;
    if (this.#takenBytes <= rememberedBytes) return;
    const kept = rememberedBytes / 2 / this.#takenBytes;
    this.#takenBytes *= kept;
    this.#busyMs *= kept;
  }

  /** Undefined until a message's worth has been taken. */
  get bytesPerSecond(): number | undefined {
    if (this.#takenBytes < 1 << 20) return undefined;
    return (this.#takenBytes / Math.max(this.#busyMs, 0.01)) * 1000;
  }
}
