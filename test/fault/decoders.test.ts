/**
 * Every decoder against inputs that coverage leads into its corners (fuzzing.ts). REPLICATOR_SEED chooses the inputs (printed),
 * REPLICATOR_TRIES how many for each; `npm run e2e -- decoders` does very many.
 */
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { Dice } from '../sim/dice.ts';
import { targets } from './decoders.ts';
import { fuzz } from './fuzzing.ts';
import { chosenSeed } from '../seed.ts';

const long = process.env['REPLICATOR_LONG'] !== undefined;
const seed = chosenSeed();
const tries = Number(process.env['REPLICATOR_TRIES'] ?? (long ? 200_000 : 1000));
t.setTimeout(long ? 7_200_000 : 300_000);

/** Chance alone finds it once in sixteen million inputs. */
function hidden(bytes: Buffer): void {
  if (bytes[0] !== 0x46) return;
  if (bytes[1] !== 0x55) return;
  if (bytes[2] === 0x5a) throw new Error('found');
}

t.test('coverage leads behind several conditions', async (t) => {
  const target = { name: 'hidden', seeds: [Buffer.from('abcdef')], decode: hidden };
  // A seed of its own: with one in some dozens the way there is kept as a long input only, of which a change rarely meets the third byte.
  const { finding, inputs } = await fuzz(target, new Dice(2), 100_000);
  t.match(finding?.error, { message: 'found' });
  t.comment(`after ${inputs} inputs`);
});

t.test('decoders', async (t) => {
  const folder = fs.mkdtempSync(join(tmpdir(), 'decoders-'));
  t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
  for (const target of targets(folder)) {
    const { inputs, kept, steps, finding } = await fuzz(target, new Dice(seed, target.name), tries);
    const why = finding && `${String((finding.error as Error).stack)}\ninput: ${finding.input.toString('base64')}`;
    t.equal(why, undefined, `${target.name} (REPLICATOR_SEED=${seed})`);
    t.ok(inputs >= tries || finding, `${target.name}: all were tried`);
    t.comment(`${target.name}: ${inputs} inputs, ${kept} kept, new code reached ${steps} times`);
  }
});
