/**
 * What the kernel tells of the bios of device-mapper, put together. One that is split (where two stretches of the device meet,
 * or at a limit of what is below) is told as completed once, with its last part only. What was told when it was queued says
 * where it began; both end at the same sector. Pure.
 *
 * The two events of one bio may come in any order, as each processor has its own ring. Bios that overlap, end at the same sector
 * and are under way at once can be taken for one another: then the sum may be wrong for a while, which the proof sees, and each is
marked as far as any of them goes.
 * Sectors are of 512 bytes; ends are exclusive.
 */

/** Beyond it something is wrong: no device has so many under way. */
const maxPending = 1 << 16;

interface Stretch {
  first: number;
  end: number;
  /** What is marked begins here: before `first` where it may be another one's completion that is told. */
  markFirst: number;
}

export class Bios {
  /** Queued and not told as completed. */
  readonly #pending = new Map<number, Stretch[]>();
  /** Completed; what tells of their beginning is yet to come. */
  #early: Omit<Stretch, 'markFirst'>[] = [];
  #pendingSectors = 0;
  #count = 0;

  /** May have been counted by the device and not yet told as completed. */
  get pendingSectors(): number {
    return this.#pendingSectors;
  }

  /** Answers what is known to be written by this, and how many sectors of it were not counted before. */
  queued(first: number, end: number): { sectors: number; first: number; end: number } {
    let at = this.#early.findIndex((one) => one.end === end && one.first === first);
    if (at < 0) at = this.#early.findIndex((one) => one.end === end && one.first > first);
    const [early] = at < 0 ? [] : this.#early.splice(at, 1);
    if (early) return { sectors: early.first - first, first, end: early.first };
    if (this.#count >= maxPending) this.#clearPending();
    const same = this.#pending.get(end);
    const one = { first, end, markFirst: first };
    if (same) same.push(one);
    else this.#pending.set(end, [one]);
    this.#pendingSectors += end - first;
    this.#count++;
    return { sectors: 0, first, end: first };
  }

  completed(first: number, end: number): { sectors: number; first: number; end: number } {
    const same = this.#pending.get(end) ?? [];
    let at = same.findIndex((one) => one.first === first);
    if (at < 0) at = same.findIndex((one) => one.first <= first);
    const whole = same[at];
    if (!whole) {
      this.#early.push({ first, end });
      if (this.#early.length > maxPending) this.#early.shift();
      return { sectors: end - first, first, end };
    }
    same.splice(at, 1);
    for (const other of same) other.markFirst = Math.min(other.markFirst, whole.markFirst);
    if (same.length === 0) this.#pending.delete(end);
    this.#pendingSectors -= whole.end - whole.first;
    this.#count--;
    return { sectors: whole.end - whole.first, first: whole.markFirst, end: whole.end };
  }

  #clearPending(): void {
    this.#pending.clear();
    this.#pendingSectors = 0;
    this.#count = 0;
  }

  /** Nothing is under way: what waits for its other half waits in vain. */
  atRest(): void {
    this.#early = [];
  }
}
