/**
 * What a replica knows of its points beyond the commits themselves: which can be recovered now, what work in the making
 * still needs of the journal, and the note on disk (who may write, where the base is going, what was drilled).
 *
 * Guarantees: a change of the note is durable when it returns, and has not happened when it throws.
 */
import type { Disk } from '../../proto/effects.ts';
import { Lock } from '../../proto/lock.ts';
import type { Point } from './horizon.ts';
import { format, writeNote, type ReplicaNote } from './note.ts';

/** First the point that the base may not pass, then where the redo of the one who holds it begins. */
export interface Pin {
  sequence: number;
}

export class Timeline {
  readonly #disk: Disk;
  readonly #folder: string;
  #note: ReplicaNote;
  /** Everything that changes the note. */
  readonly #noting = new Lock();
  readonly #pins = new Set<Pin>();
  #points: Point[];

  constructor(disk: Disk, folder: string, note: ReplicaNote, points: Point[]) {
    this.#disk = disk;
    this.#folder = folder;
    this.#note = note;
    this.#points = points;
    this.dropBelow(note.applying ?? 0);
  }

  /** Those that can be recovered now, oldest first. */
  get points(): readonly Point[] {
    return this.#points;
  }

  get newest(): Point | undefined {
    return this.#points.at(-1);
  }

  add(point: Point): void {
    this.#points.push(point);
  }

  replace(points: Point[]): void {
    this.#points = points;
  }

  dropBelow(sequence: number): void {
    this.#points = this.#points.filter((point) => point.sequence >= sequence);
  }

  /** What is needed from `sequence` on stays until the pin is given back; moving it on gives back what is before. */
  pin(sequence: number): Pin {
    const pin = { sequence };
    this.#pins.add(pin);
    return pin;
  }

  unpin(pin: Pin): void {
    this.#pins.delete(pin);
  }

  get oldestPinned(): number | undefined {
    return this.#pins.size === 0 ? undefined : Math.min(...[...this.#pins].map(({ sequence }) => sequence));
  }

  get note(): Readonly<ReplicaNote> {
    return this.#note;
  }

  async setNote(change: Partial<ReplicaNote>): Promise<void> {
    await this.#noting.run(async () => {
      const note = { ...this.#note, ...change, format };
      await writeNote(this.#disk, this.#folder, note);
      this.#note = note;
    });
  }

  async noteDrill(sequence: number, us: number): Promise<void> {
    const kept = Object.entries(this.#note.drilled).filter(([key]) =>
      this.#points.some((point) => point.sequence === Number(key)),
    );
    await this.setNote({ drilled: { ...Object.fromEntries(kept), [sequence]: us } });
  }
}
