import t, { type Test } from 'tap';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Outcome } from '../conformance/blockadversary.ts';
import { missingMachine, runInMachine } from '../vm/machine.ts';
import { long } from './world.ts';
import { chosenSeed } from '../seed.ts';

/** Captures on kernels that this machine does not run: bio-based device-mapper, and the events of an older kernel. */
const arenas = [
  'ftrace, ext4 on device-mapper, told by bios',
  'ftrace, xfs on device-mapper, told by bios',
  'ftrace, ext4 on a loop device',
];
/** ADVERSARY_ROUNDS, ADVERSARY_SEED and ADVERSARY_ARENA as in test/conformance/blockrounds.ts. */
const rounds = Number(process.env['ADVERSARY_ROUNDS'] ?? 20);

t.setTimeout(3_600_000);
const skip = long ? missingMachine() : 'long: npm run e2e -- devicemapper';

interface Told extends Omit<Outcome, 'refused' | 'tricks'> {
  refused: Record<string, number>;
  tricks: Record<string, number>;
  failure?: string;
}

async function played(t: Test, name: string, seed: number, count: number, ...trick: string[]): Promise<Told> {
  const folder = mkdtempSync(join(tmpdir(), 'replicator-vm-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const text = await runInMachine({
    folder,
    modules: ['loop', 'dm-mod', 'xfs', 'crc32c_generic'],
    script: 'test/vm/guest.ts',
    argv: [name, String(seed), String(count), ...trick],
    seconds: 3000,
  });
  const line = /^OUTCOME (.*)$/m.exec(text)?.[1];
  if (line === undefined) throw new Error(`the machine ended early: ${text.slice(-3000)}`);
  const told = JSON.parse(line) as Told;
  t.equal(told.failure, undefined);
  t.ok(told.compared >= count, `${told.compared} points, each the volume at its cut: ${JSON.stringify(told)}`);
  return told;
}

const asked = arenas.filter((name) => name.includes(process.env['ADVERSARY_ARENA'] ?? ''));

for (const name of asked) {
  const seed = chosenSeed('ADVERSARY_SEED');
  await t.test(`${name}: ${rounds} rounds on Debian's kernel (seed ${seed})`, { skip }, async (t) => {
    const { cuts, compared, refused, ...told } = await played(t, name, seed, rounds);
    t.comment(`${compared} points of ${cuts} cuts: ${JSON.stringify({ ...told, refused })}`);
    t.ok(cuts - compared <= Math.max(2, 0.05 * cuts), `${cuts - compared} of ${cuts} cuts refused: ${JSON.stringify(refused)}`); // prettier-ignore
  });
}

const [mapped = ''] = arenas;
if (asked.includes(mapped)) {
  await t.test('a table that is replaced under a live mapping by other content is noticed', { skip }, async (t) => {
    const { fullScans, tricks } = await played(t, mapped, 1, 4, 'remapped');
    t.equal(tricks['remapped'], 3, 'after the first copy');
    t.ok(fullScans >= 4, `${fullScans} times all was compared`);
  });
}
