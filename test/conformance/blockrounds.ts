/** The adversary's rounds as tests, one per arena. A seed and the arena's name replay what failed. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { startGuard } from '../../agent/guard.ts';
import { rounds } from './blockadversary.ts';
import { arenas, missingFor } from './blockarena.ts';
import { chosenSeed } from '../seed.ts';

/** ADVERSARY_SEED, ADVERSARY_ROUNDS (of each arena) and ADVERSARY_ARENA (part of its name) in the environment replay one. */
export async function adversaryTests(t: Test, roundsOfEach: number): Promise<void> {
  const count = Number(process.env['ADVERSARY_ROUNDS'] ?? roundsOfEach);
  const seed = chosenSeed('ADVERSARY_SEED');
  const only = process.env['ADVERSARY_ARENA'] ?? '';
  for (const [name, open] of Object.entries(arenas)) {
    if (!name.includes(only)) continue;
    const skip = missingFor(name as keyof typeof arenas);
    await t.test(`${name}: ${count} rounds (ADVERSARY_SEED=${seed})`, { skip, timeout: 3_600_000 }, async (t) => {
      const folder = mkdtempSync(join(tmpdir(), 'adversary-'));
      t.teardown(() => rmSync(folder, { recursive: true, force: true }));
      const guard = startGuard();
      t.teardown(() => guard.stop());
      const outcome = await rounds(open(t), guard, { folder, seed, count });
      const { cuts, compared, discarding, fullScans, tricks } = outcome;
      const refused = [...outcome.refused].map(([why, times]) => `${times} times ${why}`).join('; ');
      const played = [...tricks].map(([trick, times]) => `${trick} ${times}`).join(', ');
      t.comment(
        `seed ${seed}: ${compared} points of ${cuts} cuts (${discarding} with discards after the cut), ${fullScans} full scans, ${played}; refused: ${refused || 'none'}`,
      );
      t.ok(compared >= count, `${compared} points in ${count} rounds, each the volume at its cut`);
      // Of few rounds one may be most.
      t.ok(cuts - compared <= Math.max(2, 0.05 * cuts), `${cuts - compared} of ${cuts} cuts refused: ${refused}`);
    });
  }
}
