/**
 * Capture `scan`: nothing tells what changed, so all of the volume counts as changed, unless its stamp (an image's times, a
 * device's counters) proves that nothing did.
 */
import type { BlockDevice } from '../device.ts';
import type { BlockCapture, Drained, MarkBytes } from './block.ts';

export class Rescan implements BlockCapture {
  readonly method = 'scan';
  readonly reason: string;
  readonly lostEvents = 0;
  marks: MarkBytes = () => undefined;
  onMarks = (): void => undefined;
  readonly #device: Pick<BlockDevice, 'stamp'>;
  #stamp: string | undefined;

  constructor(device: Pick<BlockDevice, 'stamp'>, reason: string) {
    this.#device = device;
    this.reason = reason;
  }

  async begin(): Promise<{ proven: boolean; reason: string }> {
    this.#stamp = undefined;
    return { proven: false, reason: 'a scan knows nothing of what was before it' };
  }

  async drain(): Promise<Drained> {
    const { stamp, reason } = await this.#device.stamp();
    if (stamp === undefined || stamp !== this.#stamp) this.marks(0, Infinity);
    this.#stamp = stamp;
    return { doubt: undefined, still: stamp, busy: reason };
  }

  state(): undefined {
    return undefined;
  }

  async kept(): Promise<void> {
    // Nothing is.
  }

  async close(): Promise<void> {
    // Nothing is open.
  }
}
