/**
 * Calls between agent and master that arrive late, break, or go silent on both sides until each gives up by itself.
 * Every message is encoded and decoded as on the real wire.
 */
import type { MirrorCall } from '../../agent/sender.ts';
import type { MirrorStream } from '../../master/session.ts';
import { asReplicationError, ReplicationError } from '../../proto/errors.ts';
import { bell, streamPair, type Stream } from '../../proto/stream.ts';
import { decode, encode, type Messages, type MirrorReply, type MirrorRequest } from '../../proto/wire.ts';
import type { SimClock } from './clock.ts';
import type { Dice } from './dice.ts';
import { unknownField, type Side } from './versions.ts';

/** As gRPC's keepalive does. */
const keepaliveMs = 20_000;
/** Under way in one direction; more makes the sender wait. */
const underWayMessages = 64;

export interface NetworkOptions {
  clock: SimClock;
  dice: Dice;
  latencyMs: number;
  /** One call at the master, to its end; what it throws travels back. */
  serve: (stream: MirrorStream, signal: AbortSignal) => Promise<void>;
  /** Whether that side sends what the other does not know. */
  isNewer: (side: Side) => boolean;
  /** Each message as the agent gets it. */
  onReply: (reply: MirrorReply) => void;
}

interface Line {
  silent: boolean;
  ended: boolean;
  /** Each side sees the failure; the default is a broken line. */
  breakAgent: (error?: ReplicationError) => void;
  breakMaster: () => void;
}

export class Network {
  readonly #options: NetworkOptions;
  readonly #lines = new Set<Line>();
  /** New calls fail. */
  down = false;
  readonly counts = { calls: 0, refused: 0, messages: 0, unknownFields: 0, cuts: 0, silences: 0 };

  constructor(options: NetworkOptions) {
    this.#options = options;
  }

  connect(signal: AbortSignal): MirrorCall {
    const { clock } = this.#options;
    const agent = streamPair<MirrorRequest, MirrorReply>();
    const master = streamPair<MirrorRequest, MirrorReply>();
    this.counts.calls++;
    if (this.down) {
      this.counts.refused++;
      clock.after(20, () => agent.cut(new ReplicationError('Disconnected', 'the master cannot be reached')));
      return agent.client;
    }
    const ending = new AbortController();
    const line: Line = {
      silent: false,
      ended: false,
      breakAgent: (error) => agent.cut(error),
      breakMaster: () => {
        master.cut();
        ending.abort(new ReplicationError('Disconnected', 'the call is over'));
      },
    };
    this.#lines.add(line);
    // What ends on one side is known at the other a moment later, unless the line is silent.
    const tell = (breakOther: () => void): void => {
      if (line.silent) return;
      clock.after(this.#latencyMs(), () => {
        if (line.silent) return;
        line.ended = true;
        this.#lines.delete(line);
        breakOther();
      });
    };
    void this.#carry('MirrorRequest', agent.server.receive, master.client, line).catch(() => tell(line.breakMaster));
    void this.#carry('MirrorReply', master.client.receive, agent.server, line, this.#options.onReply).catch(() =>
      tell(() => line.breakAgent()),
    );
    void this.#options.serve(master.server, ending.signal).then(
      () => tell(() => line.breakAgent()),
      (error: unknown) => tell(() => line.breakAgent(asReplicationError(error))),
    );
    signal.addEventListener('abort', () => agent.client.cancel(), { once: true });
    if (signal.aborted) agent.client.cancel();
    return agent.client;
  }

  /** As a newer version would send it: with a field that the other side does not know. */
  #encode<K extends 'MirrorRequest' | 'MirrorReply'>(kind: K, message: Messages[K]): Buffer {
    const bytes = encode(kind, message);
    if (!this.#options.isNewer(kind === 'MirrorRequest' ? 'agent' : 'master')) return bytes;
    this.counts.unknownFields++;
    return Buffer.concat([bytes, unknownField]);
  }

  #latencyMs(): number {
    return this.#options.latencyMs * this.#options.dice.between(0.5, 1.5);
  }

  /** Messages keep their order and overlap in time. */
  async #carry<K extends 'MirrorRequest' | 'MirrorReply'>(
    kind: K,
    from: AsyncIterable<Messages[K]>,
    to: Stream<Messages[K], unknown>,
    line: Line,
    onArrival?: (message: Messages[K]) => void,
  ): Promise<void> {
    const { clock } = this.#options;
    const queue: { bytes: Buffer; atMs: number }[] = [];
    const { rung, ring } = bell();
    let failure: ReplicationError | undefined;
    const deliver = async (): Promise<void> => {
      for (;;) {
        const next = queue.shift();
        if (next === undefined) {
          if (failure !== undefined) return;
          await rung();
          continue;
        }
        ring();
        if (next.atMs > clock.nowMs) await clock.sleep(next.atMs - clock.nowMs);
        if (line.silent || line.ended) return;
        const message = decode(kind, next.bytes);
        onArrival?.(message);
        await to.send(message);
      }
    };
    const delivering = deliver().catch((error: unknown) => {
      failure ??= asReplicationError(error);
      ring();
    });
    try {
      for await (const message of from) {
        this.counts.messages++;
        const atMs = Math.max(queue.at(-1)?.atMs ?? 0, clock.nowMs + this.#latencyMs());
        queue.push({ bytes: this.#encode(kind, message), atMs });
        ring();
        while (queue.length > underWayMessages && failure === undefined) await rung();
        if (failure !== undefined) throw failure;
      }
      throw new ReplicationError('Disconnected', 'the other side has ended');
    } catch (error) {
      failure ??= asReplicationError(error);
      ring();
      await delivering;
      throw error;
    }
  }

  cut(): void {
    for (const line of this.#lines) {
      this.counts.cuts++;
      line.ended = true;
      line.breakAgent();
      line.breakMaster();
    }
    this.#lines.clear();
  }

  /** Nothing arrives any more, and nobody is told: each side finds out for itself. */
  silence(): void {
    const { clock, dice } = this.#options;
    for (const line of this.#lines) {
      this.counts.silences++;
      line.silent = true;
      clock.after(keepaliveMs * dice.between(0.5, 1.2), () => line.breakAgent());
      clock.after(keepaliveMs * dice.between(0.5, 1.2), () => line.breakMaster());
    }
    this.#lines.clear();
  }

  /** The agent's machine or process is gone: the master is told if it was only the process. */
  loseAgent(power: boolean): void {
    if (power) this.silence();
    else this.cut();
  }
}
