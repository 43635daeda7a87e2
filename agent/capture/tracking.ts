/**
 * A volume's dirty map and the capture that marks it, over all sessions of one replication: what a Source of it asks.
 *
 * It lives as long as the agent does, so that writes are noted while the line is down, and goes on from the map that an
 * earlier agent kept, where the capture can prove that nothing was missed (the start rules are the capture's `begin`).
 * Whatever cannot be proven marks the whole volume: then everything is compared with the replica, and an event says why.
 */
import type { MirrorWelcome } from '../../proto/wire.ts';
import type { BlockCapture, Drained } from './block.ts';
import type { DirtyMap } from './dirtymap.ts';

export interface CaptureEvent {
  code: 'CaptureStarted' | 'CaptureResumed' | 'CaptureLost';
  level: 'WARNING' | 'INFO';
  message: string;
}

/** Doubts without a point between them, after which a capture is given up for `fallBack`. */
const maxDoubts = 3;

export class Tracking {
  readonly map: DirtyMap;
  #capture: BlockCapture;
  readonly #fallBack: ((why: string) => BlockCapture) | undefined;
  #event: (event: CaptureEvent) => void;
  #begun = false;
  #doubts = 0;
  /** Grows with every doubt. */
  doubtCount = 0;
  #keeping: Promise<void> | undefined;
  #keepAgain = false;
  #toldFailure: string | undefined;
  /** Of the session: what it commits is of this one. */
  #generation = '';

  constructor(options: {
    map: DirtyMap;
    capture: BlockCapture;
    /** What takes its place when it proves nothing; absent: nothing may, and what keeps it from beginning is thrown. */
    fallBack?: (why: string) => BlockCapture;
    event: (event: CaptureEvent) => void;
  }) {
    this.map = options.map;
    this.#capture = options.capture;
    this.#fallBack = options.fallBack;
    this.#event = options.event;
    this.#use(options.capture);
  }

  /** Events go there from now on. */
  with(event: (event: CaptureEvent) => void): this {
    this.#event = event;
    return this;
  }

  get capture(): BlockCapture {
    return this.#capture;
  }

  #use(capture: BlockCapture): void {
    this.#capture = capture;
    capture.marks = (offset, length) => this.map.markBytes(offset, length);
    capture.onMarks = () => this.keepSoon();
  }

  /**
   * A session with the replica at `welcome`, under this fencing generation. Answers whether everything must be compared, and how
   * that is known.
   */
  async attach(
    welcome: MirrorWelcome,
    sizeBytes: number,
    generation: string,
  ): Promise<{ whole: boolean; reason: string }> {
    const { map } = this;
    this.#generation = generation;
    const { headSequence, digest, blank } = welcome;
    map.back();
    const { proven, reason } = await this.#begin(sizeBytes);
    if (blank) {
      map.adopt(headSequence, digest, false);
      await this.keep();
      this.#tell('CaptureStarted', 'the replica is blank and gets everything');
      return { whole: false, reason: 'the replica is blank' };
    }
    if (proven && map.belongsTo(headSequence, digest, generation)) {
      await this.keep();
      this.#tell('CaptureResumed', `${reason}: ${map.dirtyBytes} of ${sizeBytes} bytes are to be read`);
      return { whole: false, reason };
    }
    const why = proven ? 'the replica does not stand where this agent left it' : reason;
    map.adopt(headSequence, digest, true);
    await this.keep();
    this.#tell('CaptureStarted', `${why}: the whole volume is compared with the replica`);
    return { whole: true, reason: why };
  }

  /**
   * The volume's size now, whether there is a session or none: what lay behind the end of a smaller one is not what it was should it
   * grow again, and nothing else would tell.
   */
  async sized(sizeBytes: number): Promise<void> {
    const { map } = this;
    const kept = this.#begun ? undefined : await map.load();
    if (sizeBytes >= map.sizeBytes) return;
    map.resize(sizeBytes);
    if (kept) await map.persist(kept.method, kept.state, true);
    else await this.keep();
  }

  async #begin(sizeBytes: number): Promise<{ proven: boolean; reason: string }> {
    const { map } = this;
    if (this.#begun) {
      map.resize(sizeBytes);
      const { doubt } = await this.#drained();
      return { proven: doubt === undefined, reason: doubt ?? 'this agent has noted every write' };
    }
    const kept = await map.load();
    map.resize(sizeBytes);
    try {
      const began = await this.#capture.begin(kept?.method === this.#capture.method ? kept.state : undefined);
      this.#begun = true;
      return began;
    } catch (error) {
      if (!this.#fallBack) throw error;
      const why = error instanceof Error ? error.message : String(error);
      this.#use(this.#fallBack(why));
      this.#begun = true;
      return this.#capture.begin(undefined);
    }
  }

  #tell(code: CaptureEvent['code'], message: string): void {
    const { method, reason } = this.#capture;
    // A scan knows nothing from one session to the next: told each time it would only be noise.
    if (method === 'scan') return;
    this.#event({ code, level: 'INFO', message: `capture ${method} (${reason}): ${message}` });
  }

  /** As BlockCapture.drain; a doubt marks everything. */
  async drain(): Promise<Drained> {
    const drained = await this.#drained();
    if (drained.doubt !== undefined) this.doubt(drained.doubt);
    this.keepSoon();
    return drained;
  }

  #drained(): Promise<Drained> {
    return this.#capture.drain();
  }

  /** Everything may have changed. */
  doubt(why: string): void {
    this.doubtCount++;
    this.map.markAll(true);
    this.#event({
      code: 'CaptureLost',
      level: 'WARNING',
      message: `capture ${this.#capture.method}: ${why}; the whole volume is compared with the replica`,
    });
    if (++this.#doubts < maxDoubts || !this.#fallBack) return;
    const left = this.#capture;
    this.#use(this.#fallBack(`${left.method} proved nothing ${maxDoubts} times in a row, at last: ${why}`));
    this.#doubts = 0;
    void left.close().catch(() => undefined);
  }

  async prepare(sequence: number): Promise<void> {
    await this.map.prepare(sequence, this.#generation);
  }

  async committed(sequence: number, point: boolean, digest: Buffer): Promise<void> {
    if (point) this.#doubts = 0;
    await this.map.committed(sequence, digest);
    this.keepSoon();
  }

  /** What is marked now, and the capture's state that goes with it, survive the agent. */
  async keep(): Promise<void> {
    const { method } = this.#capture;
    const kept = await this.map.persist(method, this.#capture.state(), method === 'extents' || method === 'csi-cbt');
    if (kept) await this.#capture.kept();
    const failure = this.map.failure;
    if (failure !== undefined && failure !== this.#toldFailure) {
      this.#event({
        code: 'CaptureLost',
        level: 'WARNING',
        message: `the dirty map cannot be kept: ${failure}; when this agent is started anew the whole volume is compared`,
      });
    }
    this.#toldFailure = failure;
  }

  /** `keep` without waiting; calls that come while one runs are one. */
  keepSoon(): void {
    // Before the first session what an agent before us kept is all there is.
    if (!this.#begun || this.#capture.method === 'scan') return;
    if (this.#keeping) {
      this.#keepAgain = true;
      return;
    }
    this.#keeping = this.keep()
      .catch(() => undefined)
      .finally(() => {
        this.#keeping = undefined;
        if (!this.#keepAgain) return;
        this.#keepAgain = false;
        this.keepSoon();
      });
  }

  /** The session is over: what it has not committed is to be sent again. */
  async detach(): Promise<void> {
    this.map.back();
    this.keepSoon();
    while (this.#keeping) await this.#keeping;
  }

  async close(): Promise<void> {
    await this.detach();
    await this.#capture.close();
  }
}
