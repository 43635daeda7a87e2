/**
 * The mount points and control groups that this agent has ever frozen, kept in its data directory: what an agent that starts thaws, as the one
 * before may have been killed with its guard in the middle of a freeze. What others freeze (a snapshot tool, a second agent of
 * this node) is theirs to thaw.
 *
 * Written before the first freeze of a target, and never while something is frozen that the data directory lies on
 * (guard.ts, `freezable`). Not synced: a power cut thaws everything.
 */
import { promises as fs } from 'node:fs';
import { systemErrorCode } from '../proto/errors.ts';

/** More than a node has volumes; the oldest are forgotten. */
const maxTargets = 5000;

export interface FrozenMounts {
  readonly targets: readonly string[];
  /** Kept when it returns. @throws system errors: what cannot be noted is not to be frozen */
  note(target: string): Promise<void>;
}

export async function frozenMounts(path: string): Promise<FrozenMounts> {
  let targets = await read(path);
  let writing: Promise<void> = Promise.resolve();
  return {
    get targets() {
      return targets;
    },
    async note(target) {
      if (!targets.includes(target)) {
        targets = [...targets, target].slice(-maxTargets);
        const text = JSON.stringify(targets);
        writing = writing
          .catch(() => undefined)
          .then(async () => {
            await fs.writeFile(`${path}.new`, text, { mode: 0o600 });
            await fs.rename(`${path}.new`, path);
          });
        writing.catch(() => (targets = targets.filter((one) => one !== target)));
      }
      await writing;
    },
  };
}

async function read(path: string): Promise<string[]> {
  try {
    const found: unknown = JSON.parse(await fs.readFile(path, 'utf8'));
    return Array.isArray(found) ? found.filter((one) => typeof one === 'string') : [];
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT' || error instanceof SyntaxError) return [];
    throw error;
  }
}
