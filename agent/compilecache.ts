/**
 * What V8 and the type stripper made of the agent's modules, kept in `compile-cache` of the data directory for the next start:
 * half of a start is compiling.
 *
 * The folder counts for nothing: what is not of the same source and runtime is compiled anew, it may be removed at any time,
 * and nothing fails without it. Code comes out of it, so it is used only in a directory that nobody else may write to.
 */
import { readdirSync, rmSync, statSync } from 'node:fs';
import { enableCompileCache, flushCompileCache, getCompileCacheDir } from 'node:module';
import { basename, dirname, join } from 'node:path';

/** For all modules that are loaded from now on. A data directory that is not there yet has no cache: it is not made here. */
export function useCompiled(dataDir: string): void {
  const found = statSync(dataDir, { throwIfNoEntry: false });
  if (found?.isDirectory() && found.uid === process.geteuid?.() && (found.mode & 0o22) === 0)
    enableCompileCache(join(dataDir, 'compile-cache'));
}

/** Once the agent is at work: a killed process would keep nothing. What is of other runtimes goes. */
export function keepCompiled(): void {
  const folder = getCompileCacheDir();
  if (folder === undefined) return;
  flushCompileCache();
  try {
    for (const name of readdirSync(dirname(folder)))
      if (name !== basename(folder)) rmSync(join(dirname(folder), name), { recursive: true, force: true });
  } catch {
    // Somebody removes it at the same time, or the disk is full.
  }
}
