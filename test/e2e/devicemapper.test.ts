import t from 'tap';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Outcome } from '../conformance/blockadversary.ts';
import { missingMachine, runInMachine } from '../vm/machine.ts';
import { long } from './world.ts';

/** Captures on kernels that this machine does not run: bio-based device-mapper, and the events of an older kernel. */
const arenas = [
  'ftrace, ext4 on device-mapper, told by bios',
  'ftrace, xfs on device-mapper, told by bios',
  'ftrace, ext4 on a loop device',
];
const rounds = 20;

t.setTimeout(3_600_000);
const skip = long ? missingMachine() : 'long: npm run e2e -- devicemapper';

for (const name of arenas) {
  const seed = Math.floor(Math.random() * 2 ** 30);
  await t.test(`${name}: ${rounds} rounds on Debian's kernel (seed ${seed})`, { skip }, async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'replicator-vm-'));
    t.teardown(() => rmSync(folder, { recursive: true, force: true }));
    const text = await runInMachine({
      folder,
      modules: ['loop', 'dm-mod', 'xfs', 'crc32c_generic'],
      script: 'test/vm/guest.ts',
      argv: [name, String(seed), String(rounds)],
      seconds: 1200,
    });
    const line = /^OUTCOME (.*)$/m.exec(text)?.[1];
    if (line === undefined) throw new Error(`the machine ended early: ${text.slice(-3000)}`);
    type Told = Omit<Outcome, 'refused'> & { refused: Record<string, number>; failure?: string };
    const { failure, cuts, compared, fullScans, refused, tricks } = JSON.parse(line) as Told;
    t.equal(failure, undefined);
    t.comment(`${compared} points of ${cuts} cuts, ${fullScans} full scans, ${JSON.stringify({ tricks, refused })}`);
    t.ok(compared >= rounds, `${compared} points, each the volume at its cut`);
    t.ok(cuts - compared <= Math.max(2, 0.05 * cuts), `${cuts - compared} of ${cuts} cuts refused`);
  });
}
