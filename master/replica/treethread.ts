/** The thread of treebatches.ts: one job after the other. */
import { parentPort } from 'node:worker_threads';
import { messageOf, systemErrorCode } from '../../proto/errors.ts';
import { run, type TreeJob } from './treejobs.ts';

export interface ToThread {
  id: number;
  job: TreeJob;
}
export interface FromThread {
  id: number;
  results?: number[] | boolean[];
  /** As a system error has it; an Error would lose its code on the way. */
  fault?: { message: string; code: string | undefined };
}

parentPort?.on('message', ({ id, job }: ToThread) => {
  parentPort?.postMessage(answer(id, job));
});

function answer(id: number, job: TreeJob): FromThread {
  try {
    return { id, results: run(job) };
  } catch (error) {
    return { id, fault: { message: messageOf(error), code: systemErrorCode(error) } };
  }
}
