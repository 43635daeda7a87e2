/**
 * `npm run sim [-- SEED] [--runs N]`: simulates agent and master under faults (see world.ts). Without arguments a fixed number
 * of new seeds, whose start is printed; with a seed that one again, traced. Exit status 1 when an invariant was violated.
 */
import { parseArgs } from 'node:util';
import { messageOf } from '../../proto/errors.ts';
import { runSeed } from './run.ts';

const defaultRuns = 30;

function options(): { given: number | undefined; runs: number } {
  try {
    const { positionals, values } = parseArgs({ allowPositionals: true, options: { runs: { type: 'string' } } });
    const given = positionals.length > 0 ? Number(positionals[0]) : undefined;
    const runs = Number(values.runs ?? (given === undefined ? defaultRuns : 1));
    if (positionals.length > 1 || !Number.isInteger(runs) || runs < 1 || !Number.isInteger(given ?? 0))
      throw new Error('SEED and N are whole numbers');
    return { given, runs };
  } catch (error) {
    process.stderr.write(`${messageOf(error)}\nusage: npm run sim [-- [SEED] [--runs N]]\n`);
    process.exit(2);
  }
}

const { given, runs } = options();
const first = given ?? Math.floor(Math.random() * 2 ** 31);
const trace = runs === 1 ? (line: string) => process.stdout.write(`${line}\n`) : undefined;
if (runs > 1) process.stdout.write(`seeds ${first} to ${first + runs - 1}\n`);

const total: Record<string, number> = {};
let virtualSeconds = 0;
let failed = 0;
const startMs = performance.now();
for (let seed = first; seed < first + runs; seed++) {
  const outcome = await runSeed(seed, trace);
  virtualSeconds += outcome.virtualSeconds;
  for (const [key, count] of Object.entries(outcome.counts)) total[key] = (total[key] ?? 0) + count;
  if (outcome.violations.length === 0) continue;
  failed++;
  process.stdout.write(`FAIL seed ${seed}\n${outcome.violations.map((violation) => `  ${violation}\n`).join('')}`);
  process.stdout.write(`  again: npm run sim -- ${seed}\n`);
}
const counts = Object.entries(total).map(([key, count]) => `${key} ${count}`);
process.stdout.write(
  `${counts.join(', ')}\n${runs - failed} of ${runs} seeds clean, ${failed} failed; ` +
    `${Math.round(virtualSeconds)} s simulated in ${((performance.now() - startMs) / 1000).toFixed(1)} s\n`,
);
process.exitCode = failed === 0 ? 0 : 1;
