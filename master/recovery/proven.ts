/**
 * What a recovery knows of its copies' proof. A drill's copy is read again before it is handed out; of a failover's, which is needed at
 * once, the point is read whole afterwards (proof.ts). Pure.
 */
import type { Recovery, RecoveryState } from '../resources.ts';

type Job = Pick<Recovery, 'status' | 'job'>;

const handedOut: readonly RecoveryState[] = ['Completed', 'Confirming', 'Confirmed', 'ForceConfirmed'];
const takenBack: readonly RecoveryState[] = ['Cancelling', 'Cancelled', 'RollingBack', 'RolledBack', 'RollbackIgnored'];

/** Its point has to stay until it has been read. */
export function owesProof({ status, job }: Job, index: number): boolean {
  const volume = job.volumes[index];
  if (volume?.replica === undefined || takenBack.includes(status.state)) return false;
  return ['copied', 'ready', 'confirmed'].includes(volume.stage) && (status.tasks[index]?.verified ?? null) === null;
}

/** Its point is to be read now. */
export function awaitsProof(one: Job, index: number): boolean {
  const { status } = one;
  return handedOut.includes(status.state) && status.tasks[index]?.state === 'Completed' && owesProof(one, index);
}

/** Of all that was recovered: false as soon as one is not right. */
export function verifiedOf({ status, job }: Job): boolean | null {
  const all = status.tasks.flatMap(({ state, verified }, index) =>
    state === 'Completed' ? [job.volumes[index]?.replica === undefined ? job.volumes[index]?.verified : verified] : [],
  );
  if (all.includes(false)) return false;
  return all.every((one) => one === true) ? true : null;
}

/** Of those whose point is read after they were handed out; what is wrong is in the tasks' messages. */
export function proofText({ status, job }: Job): string {
  const owed = status.tasks.filter(
    ({ state }, index) => state === 'Completed' && job.volumes[index]?.replica !== undefined,
  );
  const [what, is, was] = owed.length === 1 ? ['its point', 'is', 'was'] : ['their points', 'are', 'were'];
  if (owed.some(({ verified = null }) => verified === null)) return `; ${what} ${is} being read whole`;
  return owed.length > 0 && owed.every(({ verified }) => verified) ? `; ${what} ${was} read whole and ${is} right` : '';
}
