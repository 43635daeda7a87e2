/**
 * What is discarded on a block device, told by a trace instance of the test's own: ext4 and XFS with `discard` tell the device of
 * freed blocks in the background, also while they are frozen.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { blockStat } from '../../agent/blockstat.ts';
import { removeInstance } from '../../agent/capture/tracefs.ts';

/** What is queued too, as of a split bio only the last part is told when it is done. */
const events = ['block_rq_complete', 'block_bio_complete', 'block_bio_queue'];

export interface Discards {
  begin(): void;
  /** Bytes of the device that were discarded since `begin`. */
  since(): { first: number; end: number }[];
  close(): void;
}

export function watchDiscards(path: string, instance: string): Discards {
  const root = `/sys/kernel/tracing/instances/${instance}`;
  const { disk, startSector } = blockStat(path);
  mkdirSync(root, { recursive: true });
  for (const event of events) {
    writeFileSync(`${root}/events/block/${event}/filter`, `dev == ${disk} && rwbs ~ "D*"`);
    writeFileSync(`${root}/events/block/${event}/enable`, '1');
  }
  return {
    begin: () => writeFileSync(`${root}/trace`, ''),
    since() {
      // One that is under way may have been done and not be told.
      for (let tries = 0; tries < 400 && blockStat(path).writing > 0; tries++)
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 5);
      // 7,0 DS () 1234 + 56 [0], and of a bio without the parentheses.
      const told = readFileSync(`${root}/trace`, 'utf8').matchAll(/: \d+,\d+ D\S* (?:\(.*\) )?(\d+) \+ (\d+) /g);
      return [...told].map(([, sector, sectors]) => {
        const first = (Number(sector) - startSector) * 512;
        return { first, end: first + Number(sectors) * 512 };
      });
    },
    close: () => removeInstance(instance),
  };
}

/** Every sector that differs is zeros in `later`, and was discarded. */
export function isAllButDiscarded(image: Buffer, later: Buffer, discarded: { first: number; end: number }[]): boolean {
  if (image.length !== later.length) return false;
  const zeros = Buffer.alloc(512);
  for (let at = 0; at < image.length; at += zeros.length) {
    const part = later.subarray(at, at + zeros.length);
    if (part.equals(image.subarray(at, at + part.length))) continue;
    if (!part.equals(zeros.subarray(0, part.length))) return false;
    if (!discarded.some(({ first, end }) => first <= at && at + part.length <= end)) return false;
  }
  return true;
}
