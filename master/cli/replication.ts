/**
 * The verbs that act on replications: replicate, snapshot, pause, resume, resync, verify, watch.
 */
import { optional, required, toggle, UsageError, withDefault } from '../../proto/cli.ts';
import { parseChoice, parseDuration, parseName, parseText } from '../../proto/value.ts';
import type { Recovery, Replication, Snapshot } from '../resources.ts';
import { confirmed, confirmFlags } from './confirm.ts';
import { follow } from './client.ts';
import { liveLine, stateColour } from './format.ts';
import { kindOf } from './kinds.ts';
import {
  recoveryLine,
  printDone,
  replicationLine,
  untilEnded,
  untilNormal,
  untilResynced,
  untilVerified,
  waitFor,
} from './progress.ts';
import { verb, type Session } from './verb.ts';

export const waitFlags = {
  wait: toggle('stay until it is done, and end with its outcome'),
  timeout: optional('DURATION', 'how long to stay, such as 10m; without: as long as it takes', parseDuration),
};
const kind = kindOf('replications');

/** A name as an operand. @throws UsageError */
export function nameOperand(operands: string[], what: string): string {
  const name = (operands[0] ?? '').replace(new RegExp(`^${what}s?/`), '');
  try {
    return parseName(name);
  } catch (error) {
    throw new UsageError(`${JSON.stringify(name)} ${(error as Error).message}.`, `Give the name of a ${what}.`);
  }
}

async function waitForReplication(
  session: Session,
  from: Replication,
  ended: (replication: Replication) => number | undefined,
  timeoutSeconds: number | undefined,
): Promise<{ status: number; object: Replication }> {
  const line = (object: Replication) => replicationLine(object, session.paint);
  return waitFor(session, '/replications', from, line, ended, timeoutSeconds);
}

export const replicate = verb(
  {
    name: 'replicate',
    summary: 'Mirror a volume of a node: a directory, a raw image or a block device.',
    operands: 'NODE:PATH',
    minOperands: 1,
    maxOperands: 1,
    flags: {
      name: required('NAME', 'name of the replication', parseName),
      to: required('CLASS', 'storage class that the copy goes to', parseName),
      rpo: withDefault('DURATION', '30s', 'how old the copy may be at most', parseDuration),
      mode: optional(
        'MODE',
        'Block or Filesystem; without: what the agent says of PATH',
        parseChoice('Block', 'Filesystem'),
      ),
      group: optional('GROUP', 'protection group that it becomes a member of', parseName),
      ...waitFlags,
    },
    notes: 'Example:\n  replctl replicate node-a:/srv/orders --name orders --to local --rpo 5s --wait',
  },
  async (session, { options, operands }) => {
    const match = /^([^:/]+):(\/.*)$/s.exec(operands[0] ?? '');
    if (match === null)
      throw new UsageError(
        `${JSON.stringify(operands[0])} is not NODE:PATH with an absolute path.`,
        'Give it such as node-a:/srv/orders; `replctl get volumes` lists what there is.',
      );
    const source = { agent: match[1], path: match[2], ...(options.mode && { volumeMode: options.mode }) };
    const { group } = options;
    const spec = { source, target: { storageClass: options.to }, rpoSeconds: options.rpo, ...(group && { group }) };
    const made = await session.client.send<Replication>('POST', '/replications', {
      metadata: { name: options.name },
      spec,
    });
    const wait = options.wait ? () => waitForReplication(session, made, untilNormal, options.timeout) : undefined;
    return printDone(session, { kind, done: 'created' }, made, wait);
  },
);

export const snapshot = verb(
  {
    name: 'snapshot',
    summary: 'Keep the newest recovery point of a replication under a name.',
    operands: 'REPLICATION',
    minOperands: 1,
    maxOperands: 1,
    flags: {
      name: optional('NAME', 'name of the snapshot; without: one is made', parseName),
      'locked-until': optional('TIME', 'it cannot be deleted before (RFC 3339)', parseText),
      pin: toggle('retention never removes it'),
      ...waitFlags,
    },
  },
  async (session, { options, operands }) => {
    const name = nameOperand(operands, 'replication');
    const collection = `/replications/${name}/snapshots`;
    const made = await session.client.send<Snapshot>('POST', collection, {
      ...(options.name !== undefined && { name: options.name }),
      ...(options['locked-until'] !== undefined && { lockedUntil: options['locked-until'] }),
      ...(options.pin && { pinned: true }),
    });
    const line = ({ status }: Snapshot) => session.paint(status.state, stateColour(status.state) ?? 'bold');
    const ended = ({ status: { state } }: Snapshot) => (state === 'Ready' ? 0 : state === 'Failed' ? 1 : undefined);
    const wait = async () => {
      const waited = await waitFor(session, collection, made, line, ended, options.timeout);
      if (waited.object.status.message !== null) session.note(waited.object.status.message);
      return waited;
    };
    const about = { kind: kindOf('snapshots'), owner: name, done: 'created' };
    return printDone(session, about, made, options.wait ? wait : undefined);
  },
);

const questions: Partial<Record<string, string>> = {
  resync: 'Forcing this makes the copy follow the source, whatever it has become, and drops what was promoted.',
  promote: 'This stops mirroring: the source writes nothing more.',
  demote: 'This stops mirroring after a last cut: the source writes nothing more.',
};

function action(
  name: 'pause' | 'resume' | 'resync' | 'verify' | 'promote' | 'demote',
  summary: string,
  done: string,
  until: (before: Replication) => (now: Replication) => number | undefined,
) {
  return verb(
    {
      name,
      summary,
      operands: name === 'pause' || name === 'resume' ? 'REPLICATION|recovery/NAME' : 'REPLICATION',
      minOperands: 1,
      maxOperands: 1,
      flags: { force: toggle('do what would be refused for safety'), ...confirmFlags, ...waitFlags },
    },
    async (session, { options, operands }) => {
      // Recoveries can be paused too.
      if ((name === 'pause' || name === 'resume') && /^recover(y|ies)\//.test(operands[0] ?? ''))
        return steerRecovery(session, name, operands, options);
      const target = nameOperand(operands, 'replication');
      const question = questions[name];
      if (
        question !== undefined &&
        (name !== 'resync' || options.force) &&
        !(await confirmed(session, options.yes, target, question))
      )
        return 1;
      const before = await session.client.get<Replication>(`/replications/${target}`);
      const body = { force: options.force };
      const after = await session.client.send<Replication>('POST', `/replications/${target}/actions/${name}`, body);
      const wait = options.wait ? () => waitForReplication(session, after, until(before), options.timeout) : undefined;
      return printDone(session, { kind, done }, after, wait);
    },
  );
}
async function steerRecovery(
  session: Session,
  name: 'pause' | 'resume',
  operands: string[],
  { force, wait, timeout }: { force: boolean; wait: boolean; timeout: number | undefined },
): Promise<number> {
  const target = nameOperand([(operands[0] ?? '').replace(/^.*\//, '')], 'recovery');
  const after = await session.client.send<Recovery>('POST', `/recoveries/${target}/actions/${name}`, { force });
  const line = (object: Recovery) => recoveryLine(object, session.paint);
  const paused = ({ status }: Recovery) => (status.state === 'Paused' ? 0 : untilEnded({ spec: after.spec, status } as Recovery) === undefined ? undefined : 1); // prettier-ignore
  const ended = name === 'pause' ? paused : untilEnded;
  const about = { kind: kindOf('recoveries'), done: name === 'pause' ? 'pausing' : 'resumed' };
  const waiting = () => waitFor(session, '/recoveries', after, line, ended, timeout);
  return printDone(session, about, after, wait ? waiting : undefined);
}
export const pause = action(
  'pause',
  'Stop mirroring until resumed; what changes meanwhile is remembered.',
  'pausing',
  () => {
    return ({ status }) => (status.phase === 'Paused' ? 0 : undefined);
  },
);
export const resume = action('resume', 'Go on mirroring.', 'resumed', () => {
  return ({ status }) => (status.phase === 'Mirroring' ? 0 : status.state === 'FAILED' ? 1 : undefined);
});
export const resync = action(
  'resync',
  'Compare source and copy by their hashes and send what differs.',
  'resync asked for',
  untilResynced,
);
export const promote = action(
  'promote',
  'Make the copy the one that is used; the source is kept out. Without --force only after demote.',
  'promoting',
  () =>
    ({ status }) =>
      status.phase === 'Promoted' ? 0 : undefined,
);
export const demote = action(
  'demote',
  'Take a last cut of the source and keep it out from then on: a move that loses nothing.',
  'demoting',
  () =>
    ({ status }) =>
      status.phase === 'Demoted' ? 0 : undefined,
);
export const verify = action(
  'verify',
  'Read source and copy whole, compare, and repair what differs.',
  'verify asked for',
  ({ status }) => untilVerified(status.lastVerifiedTime),
);

export const watch = verb(
  {
    name: 'watch',
    summary:
      'Show live how a replication goes: bytes, rate, time left, phase, lag. Ends when it is deleted or with Ctrl-C.',
    operands: 'REPLICATION',
    minOperands: 1,
    maxOperands: 1,
    flags: {},
    notes: 'Not on a terminal, or with -o json, it prints a line for each change.',
  },
  async (session, { operands }) => {
    const name = nameOperand(operands, 'replication');
    const live = liveLine(process.stdout);
    let newest: { object: Replication; atMs: number } | undefined;
    const show = () => {
      if (newest === undefined) return;
      const sinceSeconds = process.stdout.isTTY ? (performance.now() - newest.atMs) / 1000 : 0;
      live.show(replicationLine(newest.object, session.paint, sinceSeconds));
    };
    const ticker = process.stdout.isTTY && session.output === 'table' ? setInterval(show, 250) : undefined;
    try {
      for await (const object of follow<Replication>(session.client, '/replications', name, session.signal)) {
        newest = { object, atMs: performance.now() };
        if (session.output === 'json') session.print(JSON.stringify(object));
        else show();
      }
      live.end();
      session.note(`replication/${name} was deleted.`);
    } finally {
      clearInterval(ticker);
      live.end();
    }
    return 0;
  },
);
