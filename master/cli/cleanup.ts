/** `replctl cleanup`: shows what recoveries and deleted replications left on storage, and removes it when asked. */
import { withDefault } from '../../proto/cli.ts';
import { parseChoice } from '../../proto/value.ts';
import type { Cleanup, Garbage } from '../garbage.ts';
import { confirmed, confirmFlags } from './confirm.ts';
import { plain, size, table } from './format.ts';
import { verb } from './verb.ts';

export const cleanup = verb(
  {
    name: 'cleanup',
    summary: 'Show what recoveries and deleted replications left on storage. --mode restored or all removes it.',
    flags: {
      mode: withDefault(
        'MODE',
        'none',
        'none: only show; restored: copies of recoveries that are gone; all: kept replicas too',
        parseChoice('none', 'restored', 'all'),
      ),
      ...confirmFlags,
    },
    notes: 'Examples:\n  replctl cleanup\n  replctl cleanup --mode restored --yes',
  },
  async (session, { options }) => {
    const { mode } = options;
    const question = mode === 'all' ? 'This deletes copies, and replicas that were kept.' : 'This deletes copies.';
    if (mode !== 'none' && !(await confirmed(session, options.yes, mode, question))) return 1;
    const outcome = await session.client.send<Cleanup>('POST', '/garbage/actions/cleanup', { mode });
    if (session.output === 'json') session.print(JSON.stringify(outcome, null, 2));
    else {
      const row = (done: string) => (one: Garbage) => [
        done,
        one.kind,
        plain(one.name),
        size(one.sizeBytes),
        one.lockedUntil ?? '-',
        plain(one.message),
      ];
      const rows = [...outcome.removed.map(row('removed')), ...outcome.left.map(row('left'))];
      if (rows.length === 0) session.note('Nothing is left over.');
      else session.print(table(['DONE', 'KIND', 'NAME', 'SIZE', 'LOCKED', 'WHAT'], rows, session.paint));
    }
    const failed = outcome.left.some(({ message }) => message.includes('not removed'));
    return failed ? 1 : 0;
  },
);
