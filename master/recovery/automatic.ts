/**
 * Fails over by policy (policy.ts) what has asked for it, and says at each step why it does or does not.
 *
 * Guarantees: what it begins is one failover at most for each silence of a source, over restarts too: that it will is
 * written down before the failover is made, and that it was stays until the source has been heard of and a person has ended the
 * failover. A master that starts anew counts the hold-off anew. Failure: a failover that is refused (no point, another recovery) is told,
 * and tried again as long as the reasons for it last.
 */
import type { Clock } from '../../proto/effects.ts';
import { messageOf } from '../../proto/errors.ts';
import { groupNow, mayRecover, recoveryDraft } from '../api/recoveries.ts';
import type { Engine, EventInput, Events } from '../engine.ts';
import { asTheyAre, derived, find, type Found } from '../derived.ts';
import { volumesOf } from '../groups.ts';
import type { Mirrors } from '../mirrors.ts';
import { pauseAfter } from '../pacing.ts';
import type { FailoverPolicy, Replication } from '../resources.ts';
import { StoreUnavailable, type Store } from '../store.ts';
import { hasEnded } from './machine.ts';
import { absenceOf, decide, type Decision, type NodeFacts } from './policy.ts';
import type { Witnesses } from './witness.ts';

export interface AutomaticOptions {
  store: Store;
  clock: Clock;
  engine: Engine;
  events: Events;
  mirrors: Pick<Mirrors, 'absent'>;
  witnesses: Witnesses;
  connected: (agent: string) => boolean;
  heardMs: (agent: string) => number | undefined;
  /** The other end closed the agent's newest line; undefined: not known. */
  closedByPeer: (agent: string) => boolean | undefined;
}

/** On a recovery: what was failed over by policy, `replication` or `group`. */
export const automaticLabel = 'replicator.cdm.datacommand.co.kr/automatic-failover';
const everyMs = 1000;
/** By uid of the replication or group: the failover of this silence. */
const table = 'automatic-failovers';

interface Spent {
  recovery: string;
  made: boolean;
}

/** What is failed over as a whole: a replication in no group, or all members of one. */
interface Subject {
  kind: 'Replication' | 'Group';
  name: string;
  uid: string;
  failover: FailoverPolicy;
  members: Replication[];
}

/** What the loop remembers from one look to the next. */
interface Seen {
  startMs: number;
  /** By subject: the reason of the newest decision, so that each step is told once. */
  told: Map<string, string>;
  /** By agent. */
  awayMs: Map<string, number>;
}

export async function runAutomatic(options: AutomaticOptions, signal: AbortSignal): Promise<void> {
  const { store, clock } = options;
  const seen: Seen = { startMs: clock.monotonicMs(), told: new Map(), awayMs: new Map() };
  const { told } = seen;
  const shown = new Set<string>();
  const own = derived(store, candidates);
  while (!signal.aborted) {
    const lookMs = clock.monotonicMs();
    const subjects = subjectsIn(store, own());
    const uids = new Set(subjects.map(({ uid }) => uid));
    for (const { key } of store.listRecords(table)) if (!uids.has(key)) store.putRecord(table, key, undefined);
    for (const uid of told.keys()) if (!uids.has(uid)) told.delete(uid);
    const members = new Set(subjects.flatMap((one) => one.members.map(({ metadata }) => metadata.uid)));
    for (const uid of shown) if (!members.has(uid)) options.mirrors.absent(uid, undefined, undefined);
    for (const uid of shown.difference(members)) shown.delete(uid);
    for (const uid of members) shown.add(uid);
    for (const subject of subjects) {
      try {
        await turn(options, subject, seen);
      } catch (error) {
        if (error instanceof StoreUnavailable) throw error;
        tell(options, subject, 'MasterTrouble', 'ERROR', `automatic failover: ${messageOf(error)}`);
      }
    }
    await clock.sleep(pauseAfter(everyMs, clock.monotonicMs() - lookMs), signal).catch(() => undefined);
  }
}

/** Those with a policy, or with a group, which may have one. */
interface Candidate extends Found {
  failover: FailoverPolicy | undefined;
  group: string | undefined;
}
function candidates(all: Replication[]): Candidate[] {
  const found = all.map((one): Candidate => ({ ...find(one), failover: one.spec.failover, group: one.spec.group }));
  return found.filter(({ failover, group }) => failover !== undefined || group !== undefined);
}

function subjectsIn(store: Store, all: Candidate[]): Subject[] {
  const single = all.flatMap(({ name, uid, failover, group }): Subject[] => {
    const members = failover && group === undefined ? asTheyAre(store, [{ name, uid }]) : [];
    return failover && members.length > 0 ? [{ kind: 'Replication', name, uid, failover, members }] : [];
  });
  const groups = store.list('Group').flatMap(({ metadata: { name, uid }, spec: { failover } }): Subject[] => {
    if (!failover) return [];
    const members = asTheyAre(store, all.filter(({ group }) => group === name)); // prettier-ignore
    return members.length > 0 ? [{ kind: 'Group', name, uid, failover, members }] : [];
  });
  return [...single, ...groups];
}

async function turn(options: AutomaticOptions, subject: Subject, seen: Seen): Promise<void> {
  const { store, clock, connected } = options;
  const nowMs = clock.monotonicMs();
  const { failover, members } = subject;
  const nodes = members.map(({ spec: { source } }): NodeFacts => {
    const { agent, pvc } = source;
    const heardMs = connected(agent) ? nowMs : (options.heardMs(agent) ?? seen.startMs);
    const views = agent === '' ? [] : options.witnesses.look(agent, failover.witness, pvc);
    if (connected(agent)) seen.awayMs.delete(agent);
    else if (!seen.awayMs.has(agent)) seen.awayMs.set(agent, nowMs);
    return { agent, connected: connected(agent), heardMs, awayMs: seen.awayMs.get(agent) ?? nowMs, views };
  });
  const open = openFailover(store, subject);
  const spent = spentOf(options, subject, open !== undefined, nodes);
  const facts = { nowMs, failover, bar: barOf(members), open, spent, nodes };
  const decision = decide(facts);
  const failure = decision.act === 'start' ? await start(options, subject, decision) : undefined;
  show(options, subject, nodes, failure ?? decision);
  tellOnce(options, subject, failure ?? decision, seen.told);
}

function openFailover(store: Store, { members }: Subject): string | undefined {
  const names = new Set(members.map(({ metadata }) => metadata.name));
  return store
    .list('Recovery')
    .find(
      (one) => one.spec.type === 'failover' && !hasEnded(one) && volumesOf(store, one).some((name) => names.has(name)),
    )?.metadata.name;
}

/** The failover of this silence. What was written down and then not made, as the master ended in between, never was. */
function spentOf(
  { store }: AutomaticOptions,
  { uid }: Subject,
  isOpen: boolean,
  nodes: NodeFacts[],
): string | undefined {
  const spent = JSON.parse(store.getRecord(table, uid) ?? 'null') as Spent | null;
  if (spent === null) return undefined;
  const isOver = !isOpen && nodes.some((node) => node.connected);
  const wasMade = spent.made || store.get('Recovery', spent.recovery) !== undefined;
  if (!isOver && wasMade) {
    if (!spent.made) store.putRecord(table, uid, JSON.stringify({ ...spent, made: true }));
    return spent.recovery;
  }
  store.putRecord(table, uid, undefined);
  return undefined;
}

function barOf(members: Replication[]): string | undefined {
  for (const {
    metadata: { name },
    spec,
    requests,
    status,
  } of members) {
    if (spec.paused) return `${name} is paused`;
    if (requests.fencedBy !== undefined || spec.replicationState === 'secondary')
      return `the source of ${name} is demoted, or its replica was promoted`;
    if (status.recoveryPoint === null) return `the first copy of ${name} is not complete`;
  }
  return undefined;
}

/** Answers why it could not be. */
async function start(
  options: AutomaticOptions,
  subject: Subject,
  { message }: Decision,
): Promise<Decision | undefined> {
  const { store, engine, clock } = options;
  const asked = {
    ...(subject.kind === 'Group' ? { group: subject.name } : { replication: subject.name }),
    ...{ type: 'failover' as const, point: 'latest-data' as const, target: null },
  };
  const time = new Date(clock.nowMs()).toISOString().replace(/\D/g, '').slice(0, 14);
  const name = `${subject.name.slice(0, 39)}-failover-${time}`;
  try {
    const point = await mayRecover({ store, engine }, asked);
    // It may have been heard, paused or failed over by a person while that was looked at.
    const present = subjectsIn(store, candidates(store.list('Replication'))).find(({ uid }) => uid === subject.uid);
    if (
      present?.failover.policy !== 'automatic' ||
      openFailover(store, present) !== undefined ||
      present.members.some(({ spec }) => options.connected(spec.source.agent)) ||
      barOf(present.members) !== undefined
    )
      return { act: 'none', reason: 'SourceHeard', message: 'something has changed at the last moment' };
    const draft = recoveryDraft(name, { ...asked, point }, groupNow(store, asked));
    draft.metadata.labels = { [automaticLabel]: subject.kind.toLowerCase() };
    store.putRecord(table, subject.uid, JSON.stringify({ recovery: name, made: false }));
    store.create('Recovery', name, draft);
    store.putRecord(table, subject.uid, JSON.stringify({ recovery: name, made: true }));
  } catch (error) {
    return { act: 'none', reason: 'Barred', message: `the failover cannot be made: ${messageOf(error)}` };
  }
  tell(options, subject, 'FailoverStarted', 'ERROR', `failover ${name}: ${message}`);
  return undefined;
}

function show(options: AutomaticOptions, { failover, members }: Subject, nodes: NodeFacts[], decision: Decision): void {
  const { act, reason, message } = decision;
  const view = { status: act === 'none' ? ('False' as const) : ('True' as const), reason, message };
  members.forEach(({ metadata, spec }, index) => {
    const node = nodes[index] as NodeFacts;
    const absence = absenceOf(node, options.closedByPeer(spec.source.agent), options.clock.monotonicMs());
    options.mirrors.absent(metadata.uid, absence, failover.policy === 'automatic' ? view : undefined);
  });
}

function tellOnce(
  options: AutomaticOptions,
  subject: Subject,
  { reason, message }: Decision,
  told: Map<string, string>,
): void {
  const before = told.get(subject.uid);
  told.set(subject.uid, reason);
  if (before === reason) return;
  const wasAway = before !== undefined && !['SourceHeard', 'WitnessUnproven', 'Manual'].includes(before);
  if (reason === 'HoldingOff') tell(options, subject, 'FailoverWaiting', 'WARNING', message);
  else if ((reason === 'SourceHeard' || reason === 'WitnessUnproven') && wasAway)
    tell(options, subject, 'SourceHeard', 'INFO', message);
  else if (['Barred', 'NoWitness', 'WitnessDisagrees', 'FailoverSpent'].includes(reason))
    tell(options, subject, 'FailoverWithheld', 'WARNING', message);
}

function tell(
  { events }: AutomaticOptions,
  { kind, name }: Subject,
  code: string,
  level: EventInput['level'],
  message: string,
): void {
  events.emit({ code, level, message, object: `${kind}/${name}` });
}
