/** Why there is no cut: a word to count by, and what people are told. */
import { ReplicationError } from '../proto/errors.ts';
import type { RefusalReason } from '../proto/refusal.ts';

export class Refusal {
  readonly reason: RefusalReason;
  readonly message: string;

  /** @param message what happened and, where there is one, the cure */
  constructor(reason: RefusalReason, message: string) {
    this.reason = reason;
    this.message = message;
  }

  /** The same, with what it is about before it. */
  prefixed(prefix: string): Refusal {
    return new Refusal(this.reason, `${prefix}${this.message}`);
  }
}

/** NoConsistentCut with its word. */
export class CutRefused extends ReplicationError {
  readonly reason: RefusalReason;

  constructor(reason: RefusalReason, message: string, options: { cause?: unknown } = {}) {
    super('NoConsistentCut', message, options);
    this.reason = reason;
  }
}

/** `otherwise`: the word for what has none of its own. */
export function refusalOf(error: ReplicationError, otherwise: RefusalReason = 'other'): Refusal {
  return new Refusal(error instanceof CutRefused ? error.reason : otherwise, error.message);
}

/** Of all ways that were tried, best first: the word of the best one that this volume has. */
export function allRefused(refusals: readonly Refusal[]): Refusal {
  const { reason } = refusals.find((one) => one.reason !== 'unsupported') ?? { reason: 'unsupported' };
  return new Refusal(reason, refusals.map(({ message }) => message).join('; '));
}
