/**
 * The verbs around recoveries (recover, rollback, confirm, cancel, retry), and delete.
 */
import { optional, repeated, required, toggle, UsageError, withDefault } from '../../proto/cli.ts';
import { parseChoice, parseName } from '../../proto/value.ts';
import type { Action } from '../recovery/machine.ts';
import type { PointChoice, Recovery, RecoveryState, RecoveryTarget } from '../resources.ts';
import { withQuery } from './client.ts';
import { confirmed, confirmFlags } from './confirm.ts';
import { span } from './format.ts';
import { select } from './get.ts';
import { kindOf } from './kinds.ts';
import { printDone, recoveryLine, untilEnded, waitFor } from './progress.ts';
import { nameOperand, waitFlags } from './replication.ts';
import { verb, type Session } from './verb.ts';

const kind = kindOf('recoveries');

/** `latest-data`, `latest-snapshot`, a time, or the name of a snapshot. */
export function parsePoint(text: string): PointChoice {
  if (text === 'latest-data' || text === 'latest-snapshot') return text;
  if (/^\d{4}-\d\d-\d\d[Tt ]/.test(text)) {
    if (!/(?:Z|[+-]\d\d:\d\d)$/i.test(text) || Number.isNaN(Date.parse(text)))
      throw new Error('is not a time such as 2026-11-20T09:00:00Z (with Z or an offset)');
    return { time: new Date(text).toISOString() };
  }
  try {
    return { snapshot: parseName(text) };
  } catch {
    throw new Error('is neither latest-data, latest-snapshot, a time such as 2026-11-20T09:00:00Z nor a snapshot name');
  }
}
function parseTarget(text: string): RecoveryTarget {
  const claim = /^pvc\/(?:([^/]+)\/)?([^/]+)$/.exec(text);
  if (claim) {
    const [, namespace, name = ''] = claim;
    return { pvc: { ...(namespace !== undefined && { namespace: parseName(namespace) }), name: parseName(name) } };
  }
  const volume = /^([a-z0-9-]+):(\/.*)$/.exec(text);
  if (volume) return { agent: parseName(volume[1] ?? ''), path: volume[2] ?? '' };
  if (!text.startsWith('/'))
    throw new Error(
      'is neither a path (on the machine that holds the copy) nor NODE:PATH, a volume of that node, nor pvc/NAME, a new claim',
    );
  return { path: text };
}

function parseMemberVolume(text: string): [member: string, volume: { agent: string; path: string }] {
  const [, member, agent, path] = /^([^=]+)=([a-z0-9-]+):(\/.*)$/.exec(text) ?? [];
  if (member === undefined || agent === undefined || path === undefined) throw new Error('is not MEMBER=NODE:PATH');
  return [parseName(member), { agent: parseName(agent), path }];
}

/** Shows a recovery until it ends, then what came of it. */
async function waitForRecovery(
  session: Session,
  from: Recovery,
  timeoutSeconds: number | undefined,
): Promise<{ status: number; object: Recovery }> {
  const line = (object: Recovery) => recoveryLine(object, session.paint);
  const { status, object } = await waitFor(session, '/recoveries', from, line, untilEnded, timeoutSeconds);
  const { outcome, message, verified, rtoSeconds, rpoSeconds, tasks } = object.status;
  if (message !== null) session.note(message);
  for (const task of tasks) {
    if (task.message !== null && task.message !== message) session.note(`${task.volume}: ${task.message}`);
    const isSaid = message?.includes(task.path ?? '') === true;
    if (task.path !== null && outcome === 'success' && !isSaid) session.note(`the copy is at ${task.path}`);
  }
  if (outcome === 'success')
    session.note(
      `verified: ${verified === true ? 'yes' : verified === null ? 'not yet, it is being read' : 'no'}, took ${span(rtoSeconds)}, data ${span(rpoSeconds)} old`,
    );
  return { status, object };
}

export const recover = verb(
  {
    name: 'recover',
    summary:
      'Make a usable copy at a recovery point. A drill touches neither source nor mirroring; a failover stops both.',
    operands: '[REPLICATION]',
    minOperands: 0,
    maxOperands: 1,
    flags: {
      type: required('TYPE', 'drill or failover', parseChoice('drill', 'failover')),
      group: optional('GROUP', 'all members of the group, to one moment, instead of REPLICATION', parseName),
      point: withDefault('POINT', 'latest-data', 'latest-data, latest-snapshot, a snapshot or a time', parsePoint),
      to: optional(
        '[NODE:]PATH',
        'where to; must be absent (of a group: the folder for them), or with NODE a volume of it that is written over, or pvc/[NAMESPACE/]NAME, a new claim. Without: new paths under the recoveries folder, of replicas on claims new claims',
        parseTarget,
      ),
      volume: repeated(
        'MEMBER=NODE:PATH',
        'with --group: a volume of a node that this member is written over to; the others get new copies',
        parseMemberVolume,
      ),
      name: optional('NAME', 'name of the recovery; without: one is made', parseName),
      ...confirmFlags,
      ...waitFlags,
    },
    notes: 'Example:\n  replctl recover orders --type drill --point 2026-11-20T09:00:00Z --wait',
  },
  async (session, { options, operands }) => {
    const { group, type } = options;
    if ((operands.length === 0) === (group === undefined))
      throw new UsageError('Give a REPLICATION or --group GROUP, one of them.', 'See `replctl recover --help`.');
    const of = group === undefined ? { replication: nameOperand(operands, 'replication') } : { group };
    const question = 'A failover stops mirroring: the source writes nothing more until it is rolled back.';
    const name = of.replication ?? group ?? '';
    if (type === 'failover' && !(await confirmed(session, options.yes, name, question))) return 1;
    if (options.volume.length > 0 && (group === undefined || options.to !== undefined))
      throw new UsageError('--volume is for --group, and without --to.', 'See `replctl recover --help`.');
    const over = options.volume.map(([, volume]) => volume);
    const { to } = options;
    if (to?.agent !== undefined) over.push({ agent: to.agent, path: to.path });
    for (const { agent, path } of over) {
      const loss = `Everything that ${agent}:${path} holds is written over.`;
      if (!(await confirmed(session, options.yes, path, loss))) return 1;
    }
    const volumes = options.volume.length > 0 ? { volumes: Object.fromEntries(options.volume) } : undefined;
    const target = options.to ?? volumes;
    const made = await session.client.send<Recovery>('POST', '/recoveries', {
      ...of,
      type,
      point: options.point,
      ...(options.name !== undefined && { name: options.name }),
      ...(target !== undefined && { target }),
    });
    const wait = options.wait ? () => waitForRecovery(session, made, options.timeout) : undefined;
    return printDone(session, { kind, done: 'created' }, made, wait);
  },
);

/** Statuses by the state that is reached. */
function reached(good: RecoveryState[], bad: RecoveryState[]) {
  return ({ status: { state } }: Recovery): number | undefined =>
    good.includes(state) ? 0 : bad.includes(state) ? 1 : undefined;
}

function recoveryAction(
  name: Action,
  summary: string,
  done: string,
  question: string | undefined,
  ended: (recovery: Recovery) => number | undefined,
) {
  return verb(
    {
      name,
      summary,
      operands: 'RECOVERY',
      minOperands: 1,
      maxOperands: 1,
      flags: { force: toggle('go on although something of it fails'), ...confirmFlags, ...waitFlags },
    },
    async (session, { options, operands }) => {
      const target = nameOperand(operands, 'recovery');
      if (question !== undefined && !(await confirmed(session, options.yes, target, question))) return 1;
      const body = { force: options.force };
      const after = await session.client.send<Recovery>('POST', `/recoveries/${target}/actions/${name}`, body);
      const line = (object: Recovery) => recoveryLine(object, session.paint);
      const wait = async () => {
        const waited = await waitFor(session, '/recoveries', after, line, ended, options.timeout);
        if (waited.object.status.message !== null) session.note(waited.object.status.message);
        return waited;
      };
      return printDone(session, { kind, done }, after, options.wait ? wait : undefined);
    },
  );
}
export const rollback = recoveryAction(
  'rollback',
  'Remove what a recovery made; after a failover its source is mirrored again.',
  'rolling back',
  'This deletes the recovered copy, with what was written to it.',
  reached(['RolledBack', 'RollbackIgnored'], []),
);
export const confirmRecovery = recoveryAction(
  'confirm',
  'Make what a failover recovered the source from now on.',
  'confirming',
  'This ends the old replication: what its source has that was not mirrored is given up.',
  reached(['Confirmed', 'ForceConfirmed'], []),
);
export const cancel = recoveryAction(
  'cancel',
  'Stop a recovery that runs and undo it.',
  'cancelling',
  undefined,
  reached(['Cancelled'], ['Completed', 'Failed']),
);
export const retry = recoveryAction(
  'retry',
  'Recover the volumes of a recovery again that have failed.',
  'tried again',
  undefined,
  untilEnded,
);

export const remove = verb(
  {
    name: 'delete',
    summary: 'Delete an object. An agent is revoked, a replication loses its copy and its snapshots.',
    operands: 'KIND NAME',
    minOperands: 1,
    flags: { 'keep-replica': toggle('of a replication: leave the copy in the storage class'), ...confirmFlags },
    notes: 'Examples:\n  replctl delete replication orders\n  replctl delete snapshot orders/monday --yes',
  },
  async (session, { options, operands }) => {
    const { kind, owner, name } = select(operands);
    if (!kind.deletable) throw new UsageError(`${kind.plural} cannot be deleted.`, 'See `replctl delete --help`.');
    if (name === '')
      throw new UsageError('NAME is missing.', `Form: delete ${kind.singular} ${kind.operands || 'NAME'}`);
    if (options['keep-replica'] && kind.plural !== 'replications')
      throw new UsageError('--keep-replica is for replications only.', 'Leave out --keep-replica.');
    const path = `${kind.path(owner)}/${name}`;
    const shown = `${kind.singular}/${owner === '' ? '' : `${owner}/`}${name}`;
    const question = `This deletes ${shown}${options['keep-replica'] ? ', and leaves its copy' : ''}.`;
    if (!(await confirmed(session, options.yes, name, question))) return 1;
    await session.client.send('DELETE', withQuery(path, { keepReplica: options['keep-replica'] ? 'true' : undefined }));
    session.print(`${shown} deleted`);
    return 0;
  },
);
