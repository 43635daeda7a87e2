/**
 * `npm run sim [-- SEED] [--runs N] [--jobs N] [--coverage]`: simulates agent and master under faults (see world.ts). Without
 * arguments a fixed number of new seeds, whose start is printed; with a seed that one again, traced. Exit status 1 when an invariant was
 * violated. Ctrl-C ends it with what was done. With `--coverage` it ends with the branches of the data path that the seeds went through.
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { availableParallelism } from 'node:os';
import { parseArgs } from 'node:util';
import { messageOf } from '../../proto/errors.ts';
import { startCoverage } from './coverage.ts';
import { runSeed, type Outcome } from './run.ts';

const defaultRuns = 30;
const progressEveryMs = 60_000;
/** Volumes are buffers outside of the heap: without these half of the time goes into looking for garbage after each few of them. */
const collectLess = [
  '--single-threaded-gc',
  '--max-semi-space-size=64',
  '--heap-growing-percent=400',
  '--external-memory-accounted-in-global-limit',
  '--external-memory-max-growing-factor=4',
];

function options(): { given: number | undefined; runs: number; jobs: number; covers: boolean } {
  try {
    const { positionals, values } = parseArgs({
      allowPositionals: true,
      options: { runs: { type: 'string' }, jobs: { type: 'string' }, coverage: { type: 'boolean' } },
    });
    const given = positionals.length > 0 ? Number(positionals[0]) : undefined;
    const runs = Number(values.runs ?? (given === undefined ? defaultRuns : 1));
    const jobs = Number(values.jobs ?? availableParallelism());
    const counts = [runs, jobs].every((count) => Number.isInteger(count) && count > 0);
    if (positionals.length > 1 || !counts || !Number.isInteger(given ?? 0))
      throw new Error('SEED and N are whole numbers');
    return { given, runs, jobs, covers: values.coverage === true };
  } catch (error) {
    process.stderr.write(`${messageOf(error)}\nusage: npm run sim [-- [SEED] [--runs N] [--jobs N] [--coverage]]\n`);
    process.exit(2);
  }
}

const { given, runs, jobs, covers } = options();
const coverage = covers ? startCoverage() : undefined;
const first = given ?? Math.floor(Math.random() * 2 ** 31);
const total: Record<string, number> = {};
let [ended, failed, virtualSeconds] = [0, 0, 0];
const startMs = performance.now();

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

function summary(): string {
  const seconds = (performance.now() - startMs) / 1000;
  return `${ended - failed} of ${ended} seeds clean, ${failed} failed; ${Math.round(virtualSeconds)} s simulated in ${seconds.toFixed(1)} s`;
}

function take({ seed, counts, violations, ...outcome }: Outcome): void {
  ended++;
  virtualSeconds += outcome.virtualSeconds;
  for (const [key, count] of Object.entries(counts)) total[key] = (total[key] ?? 0) + count;
  if (violations.length === 0) return;
  failed++;
  say(
    `FAIL seed ${seed}\n${violations.map((violation) => `  ${violation}`).join('\n')}\n  again: npm run sim -- ${seed}`,
  );
}

let next = first;
let last = first + runs - 1;
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => (last = next - 1));

async function work(): Promise<void> {
  const worker = fork(new URL('worker.ts', import.meta.url), {
    execArgv: [...process.execArgv, ...collectLess],
    env: coverage?.env ?? process.env,
  });
  const exited = once(worker, 'exit');
  const died = exited.then(([code]) => {
    throw new Error(`a process that simulates ended with ${String(code)}`);
  });
  died.catch(() => undefined);
  while (next <= last) {
    const answered = once(worker, 'message');
    worker.send(next++);
    const [outcome] = (await Promise.race([answered, died])) as [Outcome];
    take(outcome);
  }
  worker.disconnect();
  await exited;
}

if (runs === 1 && !coverage) take(await runSeed(first, say));
else {
  say(`seeds ${first} to ${first + runs - 1}`);
  const telling = setInterval(() => process.stderr.write(`${summary()}\n`), progressEveryMs);
  await Promise.all(Array.from({ length: Math.min(jobs, runs) }, work));
  clearInterval(telling);
}
say(`${Object.entries(total).map(([key, count]) => `${key} ${count}`).join(', ')}\n${summary()}`); // prettier-ignore
if (coverage) say(coverage.table());
process.exitCode = failed === 0 ? 0 : 1;
