/**
 * What a thread does for trees, many files in one message (treethread.ts): a call of the pool, a promise and an event for each
 * step of each small file cost several times what the kernel's own work does.
 *
 * Only what is simple is done here: files of one name and no attributes that are new, and names that are to go. Whatever is
 * otherwise, or fails, is left as it is and answered; the caller does it one by one, with all that may be said of it.
 *
 * Nothing outside is reached, as in treepath.ts: directories are descriptors of the caller, held open until the answer, a name is
 * one entry of one of them and never followed. A new file gets its state in the staging folder, where nobody else is, and its
 * place by a rename.
 */
import fs, { constants } from 'node:fs';
import { systemErrorCode } from '../../proto/errors.ts';
import { futimensNow, hasXattrs } from '../../proto/libc.ts';

/** Bytes of a name, one for each character. */
export type Latin1 = string;

export interface WriteJob {
  kind: 'write';
  directory: number;
  /** Made where they are not yet. `length` of `bytes`, one after the other. */
  files: { name: Latin1; position: number; length: number }[];
  bytes: Uint8Array;
}

export interface RemoveJob {
  kind: 'remove';
  directory: number;
  names: Latin1[];
}

export interface PlaceJob {
  kind: 'place';
  staging: number;
  directory: number;
  files: PlacedFile[];
}

export interface PlacedFile {
  staged: Latin1;
  name: Latin1;
  sizeBytes: number;
  /** Permissions, without the type. */
  mode: number;
  uid: number;
  gid: number;
  mtimeSeconds: number;
  mtimeNanoseconds: number;
}

export type TreeJob = WriteJob | RemoveJob | PlaceJob;

/** Sizes of the files before they were written to (write), else for each whether it is done. @throws of `write` alone */
export function run(job: TreeJob): number[] | boolean[] {
  if (job.kind === 'write') return write(job);
  if (job.kind === 'remove') return job.names.map((name) => isDone(() => remove(job.directory, name)));
  const { staging, directory } = job;
  return job.files.map((file) => isDone(() => place(staging, directory, file)));
}

const safe = constants.O_RDWR | constants.O_NOFOLLOW | constants.O_NONBLOCK;

function at(directory: number, name: Latin1): Buffer {
  return Buffer.from(`/proc/self/fd/${directory}/${name}`, 'latin1');
}

function write({ directory, files, bytes }: WriteJob): number[] {
  let from = 0;
  return files.map(({ name, position, length }) => {
    const fd = fs.openSync(at(directory, name), safe | constants.O_CREAT, 0o600);
    try {
      const sizeBytes = sizeOf(fs.fstatSync(fd));
      for (let done = 0; done < length;) done += fs.writeSync(fd, bytes, from + done, length - done, position + done);
      from += length;
      return sizeBytes;
    } finally {
      fs.closeSync(fd);
    }
  });
}

function remove(directory: number, name: Latin1): void {
  try {
    fs.unlinkSync(at(directory, name));
  } catch (error) {
    if (systemErrorCode(error) !== 'ENOENT') throw error;
  }
}

function isDone(work: () => void): boolean {
  try {
    work();
    return true;
  } catch {
    return false;
  }
}

function place(staging: number, directory: number, file: PlacedFile): void {
  const from = at(staging, file.staged);
  // An empty one has had no content that would have made it.
  const fd = fs.openSync(from, file.sizeBytes === 0 ? safe | constants.O_CREAT : safe, 0o600);
  try {
    const stat = fs.fstatSync(fd);
    if (sizeOf(stat) !== file.sizeBytes || stat.nlink !== 1) throw new Error('not as it should be');
    // Those that a directory hands on to what is made in it.
    if (hasXattrs(fd)) throw new Error('it has attributes');
    if (stat.uid !== file.uid || stat.gid !== file.gid) fs.fchownSync(fd, file.uid, file.gid);
    if ((stat.mode & 0o7777) !== file.mode) fs.fchmodSync(fd, file.mode);
    futimensNow(fd, { seconds: file.mtimeSeconds, nanoseconds: file.mtimeNanoseconds });
  } finally {
    fs.closeSync(fd);
  }
  fs.renameSync(from, at(directory, file.name));
}

function sizeOf(stat: fs.Stats): number {
  if (stat.isFile()) return stat.size;
  throw Object.assign(new Error('ENOENT: no regular file'), { code: 'ENOENT' });
}
