/**
 * What production does by node:fs/promises with the real files of SQLite (see indexes.ts), done at once instead: a thread pool
 * has an order of its own, and waiting for it is most of what so small a call costs.
 */
import fs, { type PathLike, promises } from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import { turn } from './turns.ts';

let atOnce = false;
let working = 0;

/** In this process from now on. Of node:fs/promises there is then only what replicas of block volumes need. */
export function realFilesAtOnce(): void {
  if (atOnce) return;
  atOnce = true;
  Object.assign(promises, {
    mkdir: (path: PathLike, options: fs.MakeDirectoryOptions) => asIfElsewhere(() => fs.mkdirSync(path, options)),
    readdir: (path: PathLike) => asIfElsewhere(() => fs.readdirSync(path)),
    rm: (path: PathLike, options: fs.RmOptions) => asIfElsewhere(() => fs.rmSync(path, options)),
    rename: (from: PathLike, to: PathLike) => asIfElsewhere(() => fs.renameSync(from, to)),
    copyFile: (from: PathLike, to: PathLike, mode: number) => asIfElsewhere(() => fs.copyFileSync(from, to, mode)),
    open: (path: PathLike, flags: string) => asIfElsewhere(() => opened(fs.openSync(path, flags))),
  });
  syncBuiltinESMExports();
}

function opened(fd: number): Pick<promises.FileHandle, 'sync' | typeof Symbol.asyncDispose> {
  return {
    // What a power cut leaves is for Indexes to say.
    sync: async () => undefined,
    [Symbol.asyncDispose]: () => asIfElsewhere(() => fs.closeSync(fd)),
  };
}

/** Who asked for it hears of it when all others have come to a stop, as if a thread had done it. */
async function asIfElsewhere<T>(work: () => T): Promise<T> {
  working++;
  try {
    return work();
  } finally {
    await turn();
    working--;
  }
}

/** Something is under way that takes no virtual time. */
export function isWorkingForReal(): boolean {
  if (atOnce) return working > 0;
  return process.getActiveResourcesInfo().some((name) => /^(FSReq|FileHandle|CloseReq)/.test(name));
}
