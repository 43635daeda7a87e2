/**
 * How often one caller may ask: a bucket for each token and user, and for each address of those who are not known, so that a script
 * in a loop slows down itself and nobody else. Refusals say how long to wait (Retry-After).
 */
import type { FastifyRequest } from 'fastify';
import type { Clock } from '../../proto/effects.ts';
import { rate } from '../rate.ts';
import type { Rate } from '../rate.ts';
import { ApiProblem } from './problem.ts';

export const defaultPerSecond = 100;
const burstSeconds = 4;

export interface RequestLimits {
  /** @throws ApiProblem TooManyRequests */
  take(request: FastifyRequest): void;
  set(perSecond: number | undefined): void;
}

export function requestLimits(clock: Pick<Clock, 'nowMs'>, perSecond = defaultPerSecond): RequestLimits {
  let count = perSecond;
  let buckets: Rate = rate(count * burstSeconds, count);
  return {
    take(request) {
      const key = request.caller === null ? `address ${request.ip}` : `caller ${request.caller.name}`;
      if (buckets.take(key, clock.nowMs())) return;
      throw new ApiProblem(
        'TooManyRequests',
        `more than ${count} requests a second; wait a second, watch instead of asking again and again, or raise requestsPerSecond`,
        [],
        1,
      );
    },
    set(next = defaultPerSecond) {
      if (next === count) return;
      count = next;
      buckets = rate(count * burstSeconds, count);
    },
  };
}
