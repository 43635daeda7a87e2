/**
 * The seed of what a test file chooses by chance. In each CI run it comes from the commit: another commit looks elsewhere, and a
 * commit that failed fails again. Long runs, and REPLICATOR_SEED, choose for themselves.
 */
import { execFileSync } from 'node:child_process';

/** Below 2^30, so that a run may count on from it. @param variable that replays a run */
export function chosenSeed(variable = 'REPLICATOR_SEED'): number {
  const given = process.env[variable];
  if (given !== undefined) return Number(given);
  if (process.env['REPLICATOR_LONG'] !== undefined) return Math.floor(Math.random() * 2 ** 30);
  return parseInt(commit().slice(0, 8), 16) % 2 ** 30;
}

function commit(): string {
  try {
    return execFileSync('git', ['rev-parse', 'HEAD'], {
      cwd: import.meta.dirname,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
  } catch {
    // Unpacked from an archive: there is but one.
    return '00000001';
  }
}
