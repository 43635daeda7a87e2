/**
 * A sample volume for those who have none at hand: a directory with a few thousand files of every kind a real one has,
 * and a writer that goes on changing it while it is mirrored. Bounded: it never grows beyond about 60 MiB.
 */
import { randomBytes, randomInt } from 'node:crypto';
import {
  appendFile,
  link,
  mkdir,
  open,
  readdir,
  rename,
  rm,
  stat,
  symlink,
  truncate,
  writeFile,
  chmod,
} from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { systemErrorCode } from '../../proto/errors.ts';

const folders = 30;
const filesPerFolder = 100;
const maxLogBytes = 4 * 2 ** 20;
const maxIncoming = 200;

/** Fills the directory unless a run before has done so. Answers how many files there are. */
export async function makeSample(directory: string): Promise<number> {
  const done = join(directory, 'README.txt');
  if ((await sizeOf(done)) === undefined) {
    await rm(directory, { recursive: true, force: true });
    await fill(directory);
    await writeFile(done, 'A sample volume of the quickstart. It may be changed and deleted at will.\n');
  }
  const entries = await readdir(directory, { recursive: true, withFileTypes: true });
  return entries.filter((entry) => !entry.isDirectory()).length;
}

async function fill(directory: string): Promise<void> {
  for (let folder = 0; folder < folders; folder++) {
    const path = join(directory, 'documents', `year-${2000 + folder}`);
    await mkdir(path, { recursive: true });
    for (let file = 0; file < filesPerFolder; file++)
      await writeFile(join(path, `letter ${file}.txt`), `Letter ${file}\n`.repeat(randomInt(0, 400)));
  }
  const media = join(directory, 'media');
  await mkdir(media);
  for (let file = 0; file < 8; file++) await writeFile(join(media, `photo-${file}.raw`), randomBytes(2 * 2 ** 20));
  await writeFile(join(media, 'empty'), '');
  await writeFile(join(media, 'run-me'), '#!/bin/sh\necho hello\n');
  await chmod(join(media, 'run-me'), 0o755);
  await writeFile(join(media, '한국어 이름 – ünïcode'), 'names are bytes\n');
  await writeFile(Buffer.concat([Buffer.from(`${media}/latin-`), Buffer.from([0xe9, 0xff])]), 'not UTF-8\n');
  await link(join(media, 'photo-0.raw'), join(media, 'hard-link'));
  await symlink('photo-1.raw', join(media, 'link'));
  await symlink('/nowhere/at/all', join(media, 'dangling'));
  const sparse = await open(join(media, 'sparse.img'), 'w');
  try {
    await sparse.truncate(64 * 2 ** 20);
    await sparse.write(randomBytes(4096), 0, 4096, 50 * 2 ** 20);
  } finally {
    await sparse.close();
  }
  const deep = join(directory, ...Array.from({ length: 20 }, (_, level) => `level-${level}`));
  await mkdir(deep, { recursive: true });
  await writeFile(join(deep, 'bottom'), 'deep\n');
  await mkdir(join(directory, 'incoming'));
}

async function sizeOf(path: string): Promise<number | undefined> {
  try {
    return (await stat(path)).size;
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}

/** Appends, replaces, adds, moves and deletes files until the signal; counts the changes into `tally`. */
export async function keepWriting(directory: string, tally: { changes: number }, signal: AbortSignal): Promise<void> {
  const incoming = join(directory, 'incoming');
  const log = join(directory, 'application.log');
  const letter = () =>
    join(directory, 'documents', `year-${2000 + randomInt(folders)}`, `letter ${randomInt(filesPerFolder)}.txt`);
  for (let round = 0; !signal.aborted; round++) {
    await appendFile(log, `${new Date().toISOString()} order ${round} booked\n`.repeat(50));
    if (((await sizeOf(log)) ?? 0) > maxLogBytes) await truncate(log, 0);
    const replaced = letter();
    await writeFile(`${replaced}.new`, `Changed in round ${round}\n`.repeat(randomInt(1, 400)));
    await rename(`${replaced}.new`, replaced);
    await writeFile(join(incoming, `order-${round % maxIncoming}`), randomBytes(randomInt(1, 20_000)));
    await rm(join(incoming, `order-${(round + maxIncoming / 2) % maxIncoming}`), { force: true });
    tally.changes += 4;
    await sleep(200, undefined, { signal }).catch(() => undefined);
  }
}
