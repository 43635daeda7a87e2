/**
 * Which changes of a status are news, and which are only figures that move on: times, sizes, progress. News are written
 * at once and durable when the write returns; figures wait, for the API server is no place for a write each second. Pure.
 */
import { isDeepStrictEqual } from 'node:util';
import type { Condition, Kind, Resources } from '../resources.ts';

export const statusEveryMs = 10_000;
/** Figures that only say that what was so still is: an object at rest is not worth more. */
const stillEveryMs = 600_000;
/** Of all objects at rest together not more than one a second. */
export function stillAfterMs(waiting: number): number {
  return Math.max(stillEveryMs, waiting * 1000);
}

const told = (conditions: Condition[]): unknown => conditions.map(({ type, status, reason }) => [type, status, reason]);

/** The status without its figures; a kind that is not here has none. */
const news: { [K in Kind]?: (object: Resources[K]) => unknown } = {
  Replication: ({ status, requests }) => {
    const { state, phase, role, captureMethod, fencingGeneration, latestImage, observedGeneration } = status;
    const { lastVerifiedTime, lastDrilledTime, recoveryPoint, conditions } = status;
    const fixed = { state, phase, role, captureMethod, fencingGeneration, latestImage, observedGeneration };
    return {
      ...fixed,
      lastVerifiedTime,
      lastDrilledTime,
      hasPoint: recoveryPoint !== null,
      requests,
      conditions: told(conditions),
    };
  },
  Agent: ({ status, identity }) => ({ ...status, lastSeenTime: null, clockOffsetSeconds: null, identity }),
  StorageClass: ({ status: { conditions, reflink } }) => ({ reflink, conditions: told(conditions) }),
  Recovery: ({ status, job }) => {
    const tasks = status.tasks.map((task) => ({ ...task, progress: null }));
    return { ...status, tasks, job };
  },
};

/** The status without what moves by itself while nothing happens; a kind that is not here has none of that. */
const moved: { [K in Kind]?: (object: Resources[K]) => unknown } = {
  Replication: ({ status }) => ({
    ...status,
    ...{ lastSyncTime: null, lagSeconds: null, lastAttemptTime: null, nextSyncTime: null },
  }),
  Agent: ({ status }) => ({ ...status, lastSeenTime: null, clockOffsetSeconds: null }),
};

/** Of an object of which only figures differ: whether nothing has happened. */
export function isStill<K extends Kind>(kind: K, before: Resources[K], after: Resources[K]): boolean {
  const of = moved[kind] as ((object: Resources[K]) => unknown) | undefined;
  return of !== undefined && isDeepStrictEqual(of(before), of(after));
}

/** Whether nothing but figures differs; metadata and spec are the caller's to compare. */
export function onlyFigures<K extends Kind>(kind: K, before: Resources[K], after: Resources[K]): boolean {
  const of = news[kind] as ((object: Resources[K]) => unknown) | undefined;
  return of !== undefined && isDeepStrictEqual(of(before), of(after));
}
