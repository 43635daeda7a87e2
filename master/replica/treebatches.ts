/**
 * Batches of treejobs.ts on a thread that all trees of this process share. It is made when the first one comes and keeps nobody
 * from ending. One that a dead disk holds up holds up the trees that come after it, as the pool of threads is held up then.
 *
 * Failure: a thread that ends by itself fails what it was given; the next batch makes another one.
 */
import { Worker } from 'node:worker_threads';
import type { Latin1, PlacedFile, TreeJob } from './treejobs.ts';
import type { FromThread } from './treethread.ts';
import type { Handle } from './treepath.ts';

interface Pending {
  resolve: (results: number[] | boolean[]) => void;
  reject: (error: Error) => void;
}

/** Fewer are not worth waking the thread. */
export const minBatch = 4;

let thread: Worker | undefined;
let lastId = 0;
const pending = new Map<number, Pending>();

function ended(worker: Worker, error: Error): void {
  if (thread !== worker) return;
  thread = undefined;
  for (const { reject } of pending.values()) reject(error);
  pending.clear();
}

function begun(): Worker {
  if (thread) return thread;
  const worker = new Worker(new URL('./treethread.ts', import.meta.url));
  worker.on('message', ({ id, results, fault }: FromThread) => {
    const one = pending.get(id);
    pending.delete(id);
    if (pending.size === 0) worker.unref();
    if (results) one?.resolve(results);
    else one?.reject(Object.assign(new Error(fault?.message), { code: fault?.code }));
  });
  worker.on('error', (error: Error) => ended(worker, error));
  worker.on('exit', () => ended(worker, new Error('the thread for trees has ended')));
  return (thread = worker);
}

function ask(job: TreeJob, transfer: ArrayBuffer[] = []): Promise<number[] | boolean[]> {
  const worker = begun();
  worker.ref();
  return new Promise((resolve, reject) => {
    pending.set(++lastId, { resolve, reject });
    worker.postMessage({ id: lastId, job }, transfer);
  });
}

/** Answers what size each had before. @throws the first failure; what came before it is written */
export async function writeFiles(
  directory: Handle,
  files: { name: Latin1; position: number; bytes: Buffer }[],
): Promise<number[]> {
  // They are slices of what was received, which is used again.
  const bytes = new Uint8Array(files.reduce((sum, one) => sum + one.bytes.length, 0));
  let at = 0;
  for (const one of files) {
    bytes.set(one.bytes, at);
    at += one.bytes.length;
  }
  const jobs = files.map(({ name, position, bytes: { length } }) => ({ name, position, length }));
  return (await ask({ kind: 'write', directory: directory.fd, files: jobs, bytes }, [bytes.buffer])) as number[];
}

/** Answers for each whether there is nothing by that name now. */
export async function removeNames(directory: Handle, names: Latin1[]): Promise<boolean[]> {
  return (await ask({ kind: 'remove', directory: directory.fd, names })) as boolean[];
}

/** Answers for each whether it has its state and its place; one that has not is where it was. */
export async function placeFiles(staging: Handle, directory: Handle, files: PlacedFile[]): Promise<boolean[]> {
  return (await ask({ kind: 'place', staging: staging.fd, directory: directory.fd, files })) as boolean[];
}
