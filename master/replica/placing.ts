/**
 * The first copy of a block volume goes straight into the image: before the first point nobody needs the bytes that are
 * there, and through the journal all would be written twice. The journal is told what came, without its bytes ("placed").
 *
 * Guarantees: content is placed only while there is no point and the base stands at the head. Windows of the image are
 * named in the note, durably, before the first byte in them is written. What an epoch that was not committed has left there
 * is found by reading them again, now or when the replica is opened: it is unknown from then on, and offered anew (I3).
 * Failure: what cannot be placed so (many windows at once, a base that is behind) is journaled like anything later; an
 * epoch that has begun to be journaled is so to its end, as redo would put the older bytes over the newer ones.
 */
import type { Data } from '../../proto/wire.ts';
import type { Base } from './base.ts';
import type { Checkpoint } from './checkpoint.ts';
import type { Timeline } from './timeline.ts';
import type { VolumeIndex } from './volumeindex.ts';

/** Granules of a window: 64 MiB, about what an epoch of a first copy brings. */
export const windowGranules = 1024;
/** Of one epoch: bounds what is read again after a crash. */
const maxWindows = 16;

export class Placing {
  readonly #head: VolumeIndex;
  readonly #base: Base;
  readonly #timeline: Timeline;
  readonly #checkpoint: Checkpoint;
  /** Of the open epoch. */
  #windows = new Set<number>();
  #bytes = 0;
  #journaled = false;

  constructor(parts: { head: VolumeIndex; base: Base; timeline: Timeline; checkpoint: Checkpoint }) {
    this.#head = parts.head;
    this.#base = parts.base;
    this.#timeline = parts.timeline;
    this.#checkpoint = parts.checkpoint;
  }

  /** Bytes that the open epoch has placed. */
  get bytes(): number {
    return this.#bytes;
  }

  /** The open epoch has bytes in the image, or what another one left there is not settled yet. */
  get open(): boolean {
    return this.#windows.size > 0;
  }

  /** Puts proven content into the image, or answers false: it is to be journaled. */
  async place(data: Data, raw: Buffer): Promise<boolean> {
    const windows = this.#windowsWith(data);
    this.#journaled ||= !windows;
    if (!windows || this.#journaled) return false;
    await this.#intend([...windows]);
    this.#windows = windows;
    await this.#base.place?.(data, raw);
    this.#bytes += raw.length;
    return true;
  }

  #windowsWith({ runs }: Data): Set<number> | undefined {
    const may =
      this.#base.place !== undefined &&
      this.#timeline.points.length === 0 &&
      this.#base.index.sequence === this.#head.sequence;
    if (!may) return undefined;
    const windows = new Set(this.#windows);
    for (const { first, count } of runs) {
      const last = Math.floor((first + count - 1) / windowGranules);
      if (last - Math.floor(first / windowGranules) > maxWindows) return undefined;
      for (let window = Math.floor(first / windowGranules); window <= last; window++) windows.add(window);
    }
    return windows.size > maxWindows ? undefined : windows;
  }

  /** A first copy goes upwards: the window that comes next is named with those of now. */
  async #intend(windows: number[]): Promise<void> {
    const named = this.#timeline.note.placing?.windows ?? [];
    if (windows.every((window) => named.includes(window))) return;
    const next = Math.max(...windows) + 1;
    await this.#timeline.setNote({ placing: { epoch: this.#head.sequence + 1, windows: [...windows, next] } });
  }

  /** Before the commit: what was placed is durable. */
  async sync(): Promise<void> {
    if (this.open) await this.#base.sync();
  }

  /** The epoch is committed in the journal. Answers whether anything of it was placed. */
  committed(): boolean {
    const { open } = this;
    this.#windows.clear();
    this.#bytes = 0;
    this.#journaled = false;
    return open;
  }

  /** The epoch is forgotten: what of it lies in the image is unknown, durably. */
  async discard(): Promise<void> {
    if (this.open) await this.#checkpoint.settlePlaced();
    this.committed();
  }
}
