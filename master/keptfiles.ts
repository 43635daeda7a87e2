/** The files that make a master who it is, kept as records too: with them another data directory becomes the same master. */
import { join } from 'node:path';
import { readText, writeDurably } from '../proto/durable.ts';
import type { Store } from './store.ts';

const table = 'authority';
const files = ['ca.key', 'ca.pem', 'admin.token'];

/** Makes the files of a new data directory those that the store has. Before they would be made anew. */
export async function restoreFiles(store: Pick<Store, 'getRecord'>, dir: string): Promise<void> {
  for (const file of files) {
    const kept = store.getRecord(table, file);
    if (kept !== undefined && (await readText(join(dir, file))) !== kept)
      await writeDurably(join(dir, file), kept, 0o600);
  }
}

export async function keepFiles(store: Pick<Store, 'putRecord'>, dir: string): Promise<void> {
  for (const file of files) {
    const text = await readText(join(dir, file));
    if (text !== undefined) store.putRecord(table, file, text);
  }
}
