/**
 * A child process that writes to the files of a folder without pause, seeded: random and sequential, through the page cache,
 * O_DIRECT and mmap, holes, zeroed ranges, truncation, deletion. Ends when it is killed or its parent ends. Arguments: FOLDER SEED.
 */
import { spawnSync } from 'node:child_process';
import fs, { constants } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { alignedPool, fallocatePunch, fallocateZero } from '../../proto/libc.ts';
import { noise, random } from '../e2e/content.ts';

const [folder = '', seed = '1'] = process.argv.slice(2);
const next = random(Number(seed));
const below = (limit: number): number => Math.floor(next() * limit);
const page = alignedPool(256 << 10)[0] as Buffer;
const maxBytes = 2 << 20;
/** After each write. */
const restMs = Number(process.env['ADVERSARY_WRITER_REST_MS'] ?? 0);

async function one(): Promise<void> {
  const path = join(folder, `file-${below(12)}`);
  const kind = below(100);
  const offset = below(maxBytes / 4096) * 4096;
  if (kind < 3) return fs.rmSync(path, { force: true });
  if (kind < 6) {
    spawnSync('xfs_io', ['-f', '-c', `pwrite -q ${offset} 65536`, '-c', `mmap -rw ${offset} 65536`, '-c', `mwrite ${offset + below(100)} 9000`, ...(below(2) ? ['-c', 'msync -s'] : []), path]); // prettier-ignore
    return;
  }
  const direct = kind < 40 ? constants.O_DIRECT : 0;
  const file = await fs.promises.open(path, constants.O_RDWR | constants.O_CREAT | direct);
  try {
    if (direct) {
      const length = 4096 * (1 + below(32));
      noise(length).copy(page);
      await file.write(page, 0, length, offset);
    } else if (kind < 75) {
      const bytes = noise(1 + below(90_000));
      await file.write(bytes, 0, bytes.length, offset + below(4096));
    } else if (kind < 80) await fallocatePunch(file.fd, offset, 65536);
    else if (kind < 85) await fallocateZero(file.fd, offset, 65536);
    else if (kind < 90) await file.truncate(below(maxBytes));
    if (below(4) === 0) await file.datasync();
  } finally {
    await file.close();
  }
}

const parent = process.ppid;
while (process.ppid === parent) {
  // A full filesystem is as good as any.
  await one().catch(() => undefined);
  if (restMs > 0) await delay(restMs);
  if (below(5) === 0) await delay(below(8));
}
