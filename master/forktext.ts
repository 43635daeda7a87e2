import type { Fork } from './resources.ts';

/** So many are kept and told. */
export const maxRanges = 8;

/** What differs and what to do, for people. */
export function forkText({ agent, path, sequence, found }: Fork): string {
  const ranges = (found?.ranges ?? []).map(({ offset, length }) => `${offset}+${length}`).join(', ');
  const more = (found?.granules ?? 0) > 0 && (found?.ranges.length ?? 0) === maxRanges ? ', ...' : '';
  return `both sides were written: ${agent}:${path} has ${found?.granules ?? 0} granules (${found?.bytes ?? 0} bytes) that point ${sequence} has not, at ${ranges}${more}. Save what is needed of them; then resync with force gives them up, or a rollback of the failover keeps them and gives up the new side's`;
}
