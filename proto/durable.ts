/**
 * Small files that must never be found half written: keys, certificates, tokens.
 *
 * After writeDurably returns the new content is there even over a power cut; when it fails or the process dies, the old
 * one is. A left-over `.new` file is overwritten by the next write. Not for bulk data and not for two writers at once.
 */
import { open, readFile, rename } from 'node:fs/promises';
import { dirname } from 'node:path';
import { systemErrorCode } from './errors.ts';

/** @param mode permission bits; 0600 for anything secret. */
export async function writeDurably(path: string, content: string | Uint8Array, mode: number): Promise<void> {
  const staged = `${path}.new`;
  const file = await open(staged, 'w', mode);
  try {
    // An older left-over keeps its mode on open.
    await file.chmod(mode);
    await file.writeFile(content);
    await file.sync();
  } finally {
    await file.close();
  }
  await rename(staged, path);
  const directory = await open(dirname(path), 'r');
  try {
    await directory.sync();
  } finally {
    await directory.close();
  }
}

/** Undefined when there is none. */
export async function readText(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (systemErrorCode(error) === 'ENOENT') return undefined;
    throw error;
  }
}
