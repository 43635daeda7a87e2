/** Simulates the seeds that the process that forked it (main.ts) names, one after the other. */
import { runSeed } from './run.ts';

process.on('message', (seed: number) => {
  void runSeed(seed).then((outcome) => process.send?.(outcome));
});
process.on('disconnect', () => process.exit());
// The one that asks says when it is over.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => undefined);
