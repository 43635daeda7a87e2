/**
 * Runs in the virtual machine of test/e2e/devicemapper.test.ts: the adversary's rounds on one arena, and the outcome as one line
 * of JSON on standard output. Arguments: ARENA SEED ROUNDS [TRICK: only this one].
 */
import { mkdtempSync } from 'node:fs';
import type { Test } from 'tap';
import { startGuard } from '../../agent/guard.ts';
import { arenas, missingFor } from '../conformance/blockarena.ts';
import { rounds } from '../conformance/blockadversary.ts';

const [name = '', seed = '1', count = '1', trick = ''] = process.argv.slice(2);
if (trick !== '') process.env['ADVERSARY_TRICK'] = trick;
// All is slower here, and the disks are memory: a writer at full speed changes more than is ever read.
process.env['ADVERSARY_WRITER_REST_MS'] = '50';
const teardowns: (() => unknown)[] = [];
const test = { teardown: (work: () => unknown) => void teardowns.unshift(work) } as unknown as Test;
const guard = startGuard();

async function play(): Promise<unknown> {
  const arena = Object.keys(arenas).find((one) => one === name) as keyof typeof arenas | undefined;
  if (arena === undefined) return { failure: `no arena ${name}` };
  const missing = missingFor(arena);
  if (missing !== false) return { failure: missing };
  try {
    const folder = mkdtempSync('/tmp/adversary-');
    const outcome = await rounds(arenas[arena](test), guard, { folder, seed: Number(seed), count: Number(count) });
    return { ...outcome, refused: Object.fromEntries(outcome.refused), tricks: Object.fromEntries(outcome.tricks) };
  } catch (error) {
    return { failure: String(error) };
  }
}

const outcome = await play();
process.stdout.write(`\nOUTCOME ${JSON.stringify(outcome)}\n`);
for (const work of teardowns) await work();
await guard.stop();
