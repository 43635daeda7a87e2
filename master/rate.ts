/**
 * How often something may happen, per key: a bucket of `burst` that fills again at `perSecond`.
 *
 * Pure but for its buckets; time is given. At most `maxKeys` are remembered: the one that was used longest ago is
 * forgotten first, which gives its key a full bucket again.
 */
export interface Rate {
  /** Takes one if there is one. */
  take(key: string, nowMs: number): boolean;
  /** Whether take would be granted. */
  allows(key: string, nowMs: number): boolean;
}

export function rate(burst: number, perSecond: number, maxKeys = 1024): Rate {
  const buckets = new Map<string, { left: number; atMs: number }>();
  const leftAt = (key: string, nowMs: number): number => {
    const bucket = buckets.get(key);
    if (bucket === undefined) return burst;
    return Math.min(burst, bucket.left + (Math.max(0, nowMs - bucket.atMs) / 1000) * perSecond);
  };
  return {
    allows: (key, nowMs) => leftAt(key, nowMs) >= 1,
    take(key, nowMs) {
      const left = leftAt(key, nowMs);
      // Deleted and set again, so that the map's order is that of use.
      buckets.delete(key);
      for (const oldest of buckets.keys()) {
        if (buckets.size < maxKeys) break;
        buckets.delete(oldest);
      }
      buckets.set(key, { left: left >= 1 ? left - 1 : left, atMs: nowMs });
      return left >= 1;
    },
  };
}
