/** What a recovery says of itself in each state. Pure. */
import type { Recovery, RecoveryState } from '../resources.ts';
import { proofText } from './proven.ts';

export function messageFor(
  { spec, status, job }: Pick<Recovery, 'spec' | 'status' | 'job'>,
  state: RecoveryState,
): string {
  const { tasks } = status;
  const only = tasks.length === 1 ? tasks[0] : undefined;
  const bad = tasks.filter((task) => task.state === 'Failed');
  const reasons = bad.map(({ volume, message }) => `${volume}: ${message ?? 'failed'}`).join('; ');
  const remarks = tasks.flatMap(({ volume, message }) => (message ? [only ? message : `${volume}: ${message}`] : []));
  const remark = remarks.length > 0 ? `; ${remarks.join('; ')}` : '';
  switch (state) {
    case 'Paused':
      return 'paused; resume it or cancel it';
    case 'Completed': {
      const next = `${proofText({ status, job })}${spec.type === 'failover' ? '; confirm it or roll it back' : ''}`;
      if (only && spec.target?.agent !== undefined)
        return `${spec.target.agent}:${only.path ?? ''} holds it, read again and found right${remark}${next}`;
      if (only) return `the copy is at ${only.path ?? ''}${remark}${next}`;
      const good = tasks.length - bad.length;
      return `${good} of ${tasks.length} volumes are recovered${remark}${bad.length > 0 ? '; retry what failed' : ''}${next}`;
    }
    case 'Failed':
      if (tasks.length === 0) return 'there is nothing to recover: the group has no members';
      return only ? (only.message ?? 'failed') : `not recovered: ${reasons}`;
    case 'Cancelled':
      return `cancelled; what was made is removed${leftOver(tasks)}`;
    case 'RolledBack':
      if (spec.target?.agent !== undefined || spec.target?.volumes !== undefined)
        return `rolled back${leftOver(tasks)}`;
      return `rolled back; the ${only ? 'copy is' : 'copies are'} removed${leftOver(tasks)}`;
    case 'RollbackIgnored':
      return `rolled back by force${remark}; cleanup lists what is left`;
    case 'Confirmed':
      return `confirmed${remark}`;
    case 'ForceConfirmed':
      return `confirmed by force${remark}`;
    default:
      return '';
  }
}

function leftOver(tasks: Recovery['status']['tasks']): string {
  const left = tasks.flatMap(({ state, message }) =>
    state !== 'Failed' && message?.includes('left alone') ? [message] : [],
  );
  return left.length > 0 ? `; ${left.join('; ')}` : '';
}
