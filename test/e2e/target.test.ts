import t from 'tap';
import { closeSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { loopMount, missingForLoop } from '../loop.ts';
import { countIn, noise, random, sameBytes, startWriter, writeNoise } from './content.ts';
import { openWorld } from './world.ts';

/** Leaves no more than `leftBytes`. */
function fill(path: string, leftBytes: number): void {
  const file = openSync(path, 'a');
  const piece = noise(64 << 10);
  try {
    for (;;) writeSync(file, piece);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
  } finally {
    closeSync(file);
  }
  if (leftBytes > 0) shorten(path, leftBytes);
}

function shorten(path: string, bytes: number): void {
  const file = openSync(path, 'r+');
  ftruncateSync(file, Math.max(0, fstatSync(file).size - bytes));
  closeSync(file);
}
