/**
 * Fuzzing led by coverage: an input that reaches code which none before it reached is kept and changed further, as AFL
 * (lcamtuf.coredump.cx/afl) does it. The coverage is V8's own, by blocks, of this project's modules.
 *
 * Deterministic for a seed but for what V8 compiles when; a failing input is answered whole, so that it can be replayed alone.
 */
import assert from 'node:assert/strict';
import { Session, type Profiler } from 'node:inspector';
import type { Dice } from '../sim/dice.ts';

export interface Target {
  name: string;
  /** Valid inputs to begin with, at least one. */
  seeds: Buffer[];
  /** Words that mean something to the decoder. */
  words?: string[];
  /** Decodes it. @throws whatever is a finding, now or later: refusing an input as documented is none */
  decode(bytes: Buffer): unknown;
}

export interface Finding {
  input: Buffer;
  error: unknown;
}

export interface Outcome {
  inputs: number;
  /** That reached something new. */
  kept: number;
  /** Times that code was reached for the first time. */
  steps: number;
  finding: Finding | undefined;
}

const project = new URL('../../', import.meta.url).href;
/** A look at the coverage costs some ten milliseconds: V8 tells of all code of the process. */
const batch = 256;
const mostBytes = 16_384;

type Range = readonly [from: number, to: number];

export class Coverage implements Disposable {
  readonly #session = new Session();
  /** By function: what of its text nothing has reached yet, ascending. */
  readonly #unreached = new Map<string, Range[]>();
  /** Times that something was reached for the first time. */
  steps = 0;

  constructor() {
    this.#session.connect();
    this.#session.post('Profiler.enable');
    this.#session.post('Profiler.startPreciseCoverage', { callCount: true, detailed: true });
  }

  /** Whether anything was reached since the last look that never was before; with `keep` it is not new any more. */
  look(keep: boolean): boolean {
    let isNew = false;
    // The session is in this thread: it answers before `post` returns.
    this.#session.post('Profiler.takePreciseCoverage', (error, answer?: Profiler.TakePreciseCoverageReturnType) => {
      if (error !== null || answer === undefined) throw new Error('there is no coverage', { cause: error });
      for (const { url, functions } of answer.result)
        if (url.startsWith(project) && !url.includes('/node_modules/'))
          for (const { ranges } of functions) isNew = this.#isNew(url, ranges, keep) || isNew;
    });
    if (isNew && keep) this.steps++;
    return isNew;
  }

  /** V8 names the parts that were not reached; which parts there are shows only by and by. */
  #isNew(url: string, ranges: Profiler.CoverageRange[], keep: boolean): boolean {
    const [whole] = ranges;
    if (!whole || whole.count === 0) return false;
    const key = `${url}:${whole.startOffset}-${whole.endOffset}`;
    const before = this.#unreached.get(key);
    if (before?.length === 0) return false;
    const missed: Range[] = [];
    // Ascending, and what lies within an earlier one adds nothing.
    for (const { startOffset, endOffset, count } of ranges)
      if (count === 0 && endOffset > (missed.at(-1)?.[1] ?? -1)) missed.push([startOffset, endOffset]);
    const after = common(before ?? [[whole.startOffset, whole.endOffset]], missed);
    if (before && lengthOf(after) === lengthOf(before)) return false;
    if (keep) this.#unreached.set(key, after);
    return true;
  }

  [Symbol.dispose](): void {
    this.#session.disconnect();
  }
}

function lengthOf(ranges: readonly Range[]): number {
  return ranges.reduce((sum, [from, to]) => sum + to - from, 0);
}

function common(some: readonly Range[], others: readonly Range[]): Range[] {
  return some
    .flatMap(([from, to]) => others.map(([start, end]): Range => [Math.max(from, start), Math.min(to, end)]))
    .filter(([from, to]) => from < to);
}

export async function fuzz(target: Target, dice: Dice, rounds: number): Promise<Outcome> {
  using coverage = new Coverage();
  const corpus = [...target.seeds];
  const outcome: Outcome = { inputs: 0, kept: 0, steps: 0, finding: undefined };
  const run = async (input: Buffer): Promise<boolean> => {
    outcome.inputs++;
    try {
      // A decoder may not count on bytes of others behind its own.
      await target.decode(Buffer.from(input));
      return true;
    } catch (error) {
      outcome.finding = { input, error };
      return false;
    }
  };
  for (const seed of target.seeds) if (!(await run(seed))) return outcome;
  coverage.look(true);
  while (outcome.inputs < rounds) {
    const inputs = Array.from({ length: batch }, () => changed(corpus, target.words ?? [], dice));
    for (const input of inputs) if (!(await run(input))) return outcome;
    if (coverage.look(false)) await keepNew(inputs);
  }
  /** Which of them it was: each half once more, with a look of its own. */
  async function keepNew(inputs: Buffer[]): Promise<void> {
    if (inputs.length > 1) {
      const middle = inputs.length >> 1;
      for (const half of [inputs.slice(0, middle), inputs.slice(middle)]) {
        for (const input of half) await target.decode(Buffer.from(input));
        if (coverage.look(false)) await keepNew(half);
      }
      return;
    }
    for (const input of inputs) await target.decode(Buffer.from(input));
    if (!coverage.look(true)) return;
    corpus.push(...inputs);
    outcome.kept++;
  }
  return { ...outcome, steps: coverage.steps };
}

const edges = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff];

function changed(corpus: readonly Buffer[], words: readonly string[], dice: Dice): Buffer {
  // What was reached last is what little is known of.
  let bytes: Buffer = Buffer.from((dice.chance(0.5) ? corpus.at(-1) : undefined) ?? dice.pick(corpus));
  for (let times = 1 + dice.below(4); times > 0; times--) bytes = change(bytes, corpus, words, dice);
  return bytes.subarray(0, mostBytes);
}

function change(bytes: Buffer, corpus: readonly Buffer[], words: readonly string[], dice: Dice): Buffer {
  const at = dice.below(bytes.length + 1);
  const length = dice.below(Math.min(64, bytes.length - at) + 1);
  const part = bytes.subarray(at, at + length);
  const put = (inserted: Uint8Array, over: number): Buffer =>
    Buffer.concat([bytes.subarray(0, at), inserted, bytes.subarray(at + over)]);
  switch (dice.below(words.length > 0 ? 10 : 9)) {
    case 0:
      if (at < bytes.length) bytes.writeUInt8(bytes.readUInt8(at) ^ (1 << dice.below(8)), at);
      return bytes;
    case 1:
      if (at < bytes.length) bytes.writeUInt8(dice.below(256), at);
      return bytes;
    case 2:
      return put(edge(dice), 0);
    case 3: {
      const value = edge(dice);
      return put(value, value.length);
    }
    case 4:
      return put(none, length);
    case 5:
      return put(Buffer.concat(Array.from({ length: 1 + dice.below(8) }, () => part)), 0);
    case 6:
      return bytes.subarray(0, at);
    case 7: {
      const other = dice.pick(corpus);
      return Buffer.concat([bytes.subarray(0, at), other.subarray(dice.below(other.length + 1))]);
    }
    case 8:
      return put(dice.bytes(1 + dice.below(16)), length);
    default:
      return put(Buffer.from(dice.pick(words)), dice.chance(0.5) ? length : 0);
  }
}

const none = Buffer.alloc(0);

/** A number at the edge of its range, in 1 to 8 bytes, either end first. */
function edge(dice: Dice): Buffer {
  const value = BigInt(dice.pick(edges)) * (dice.chance(0.2) ? 0x100000001n : 1n);
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, value));
  const short = bytes.subarray(0, dice.pick([1, 2, 4, 8]));
  return dice.chance(0.3) ? Buffer.from(short).reverse() : short;
}

/** For a decoder that refused its input: not as expected is a finding. */
export function refusal(error: unknown, expected: abstract new (...args: never[]) => Error): undefined {
  if (!(error instanceof expected)) throw error;
  // A bare Error is what the readers of typed values throw: with a message, and no accident of the language.
  if (error instanceof TypeError || error instanceof RangeError || error instanceof ReferenceError) throw error;
  assert.ok(error.message.length > 0 && error.message.length < 20_000, 'a refusal says why, in a few words');
  return undefined;
}
