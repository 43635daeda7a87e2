/**
 * How soon one granule of a large sparse block device is durable at the target: from the completion of the write (fsync) to the
 * first answer of the API with a newer point, so with the wait for the next cut. Of several sizes, as it should be the same.
 */
import { closeSync, fsyncSync, openSync, writeSync } from 'node:fs';
import { granuleBytes } from '../../proto/granule.ts';
import { loopDevice, missingForLoop } from '../loop.ts';
import { Dice } from '../sim/dice.ts';
import { near } from './distance.ts';
import { startOurs } from './ours.ts';
import { measure, type Figures } from './processes.ts';
import { medians, type Result } from './results.ts';
import { Missing } from './subject.ts';

const gib = 2 ** 30;
export const granuleSizes = [gib, 10 * gib, 50 * gib];

/** @throws Missing */
export async function benchGranule(sizeBytes: number, runs: number, say: (line: string) => void): Promise<Result> {
  const missing = missingForLoop('ext4');
  if (missing !== false) throw new Missing(missing);
  const endings: (() => unknown)[] = [];
  try {
    const { device } = loopDevice({ teardown: (end) => void endings.push(end) }, sizeBytes / 2 ** 20);
    const volume = { path: device, kind: 'image', sizeBytes, files: 1 } as const;
    const ours = await startOurs(device, near);
    endings.push(() => ours.stop());
    await ours.reset(volume);
    await ours.begin(volume);
    const dice = new Dice(sizeBytes / granuleBytes);
    const file = openSync(device, 'r+');
    endings.push(() => closeSync(file));
    const all: Figures[] = [];
    for (let run = 0; run < runs; run++) {
      const at = dice.below(sizeBytes / granuleBytes) * granuleBytes;
      let writtenMs = 0;
      const write = (): void => {
        writeSync(file, dice.bytes(granuleBytes), 0, granuleBytes, at);
        fsyncSync(file);
        writtenMs = performance.now();
      };
      const figures = await measure(
        () => ours.roots(),
        () => ours.wireBytes(),
        () => ours.follow(write),
      );
      all.push({ ...figures, wallSeconds: (performance.now() - writtenMs) / 1000 });
      say(`  ${sizeBytes / gib} GiB: ${JSON.stringify(all.at(-1))}`);
    }
    await ours.check(volume);
    const walls = all.map(({ wallSeconds }) => Number(wallSeconds.toFixed(3)));
    return {
      case: 'granule-durable',
      peer: null,
      command: null,
      size: sizeBytes,
      content: 'zero',
      runs,
      ours: medians(all),
      theirs: null,
      ratio: null,
      spread: { ours: [Math.min(...walls), Math.max(...walls)], theirs: null },
      syncs: { ours: null, theirs: null },
    };
  } finally {
    for (const end of endings.reverse()) await end();
  }
}
