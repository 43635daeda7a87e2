/**
 * Whether a source that is gone is failed over by itself: facts in, decision with its reason out. Pure.
 *
 * A node is gone when its agent has no line to the master and a witness that reached the node before finds that nothing answers
 * there any more: nothing accepts or refuses a connection, or the API server says that it is not Ready. An agent that ended on a node that answers
 * is no node that is gone. Guarantees: `start` only when every node of the source is gone and nobody has heard of any of them
 * for the whole hold-off; a doubt is never a reason to start. One silence leads to one failover at most.
 */
import type { FailoverPolicy } from '../resources.ts';

/** An answer of a witness; times on the monotonic clock. */
export interface WitnessView {
  /** Its name, for people. */
  by: string;
  /** unknown: it did not answer, or could not ask. */
  says: 'alive' | 'gone' | 'unknown';
  /** Of the first answer since which it has said so each time. */
  sinceMs: number;
  /** Of the newest answer. */
  atMs: number;
  /** When it found the node alive last; -Infinity: never. */
  aliveMs: number;
}

export interface NodeFacts {
  agent: string;
  connected: boolean;
  /** When it was heard last; never by this master: when that began. */
  heardMs: number;
  /** Since when it has had no line, as this master saw it. */
  awayMs: number;
  views: WitnessView[];
}

export interface FailoverFacts {
  nowMs: number;
  failover: FailoverPolicy;
  /** Why this may not be failed over now whatever happens to its source: paused, demoted, no point. */
  bar: string | undefined;
  /** A failover that nobody has confirmed or undone. */
  open: string | undefined;
  /** A failover that the policy began since the source was heard last. */
  spent: string | undefined;
  /** Of all volumes that would be failed over. */
  nodes: NodeFacts[];
}

export interface Decision {
  act: 'none' | 'wait' | 'start';
  reason:
    | 'Manual'
    | 'FailoverOpen'
    | 'FailoverSpent'
    | 'Barred'
    | 'SourceHeard'
    | 'WitnessUnproven'
    | 'WitnessDisagrees'
    | 'HoldingOff'
    | 'NoWitness'
    | 'AwaitingWitness'
    | 'SourceGone';
  message: string;
}

/** Older answers say nothing of now; a witness that can ask at all has answered within this time. */
export const freshMs = 20_000;
/** One lost packet is no node that is gone: a witness has said so for this long. */
export const steadyMs = 10_000;

export function decide(facts: FailoverFacts): Decision {
  const { failover, nodes, nowMs } = facts;
  const decision = (act: Decision['act'], reason: Decision['reason'], message: string): Decision => ({
    act,
    reason,
    message,
  });
  if (failover.policy !== 'automatic') return decision('none', 'Manual', 'a person decides');
  if (facts.open !== undefined)
    return decision('none', 'FailoverOpen', `failover ${facts.open} is there; confirm it or roll it back`);
  const connected = nodes.filter((node) => node.connected);
  if (connected.length > 0 || nodes.length === 0) {
    const unproven = nodes.filter(({ views }) => views.length === 0);
    return unproven.length === 0
      ? decision('none', 'SourceHeard', `${namesOf(connected)} is connected`)
      : decision(
          'none',
          'WitnessUnproven',
          `${namesOf(connected)} is connected; no witness has reached ${namesOf(unproven)} yet: it would not be failed over`,
        );
  }
  if (facts.spent !== undefined)
    return decision(
      'none',
      'FailoverSpent',
      `failover ${facts.spent} was begun and ended since the source was heard last; a person decides about another one`,
    );
  if (facts.bar !== undefined) return decision('none', 'Barred', facts.bar);
  const fresh = nodes.flatMap(({ agent, views }) =>
    views.filter((view) => says(view, nowMs)).map((view) => ({ agent, ...view })),
  );
  const alive = fresh.find(({ says }) => says === 'alive');
  if (alive)
    return decision(
      'none',
      'WitnessDisagrees',
      `${alive.by} says that node ${alive.agent} is there: its agent, or its line to the master, has ended`,
    );
  const silentMs = nowMs - Math.max(...nodes.map(lastHeardMs));
  const holdOffMs = failover.holdOffSeconds * 1000;
  if (silentMs < holdOffMs) {
    const seconds = Math.max(0, Math.floor(silentMs / 1000));
    return decision(
      'wait',
      'HoldingOff',
      `nobody has heard of ${namesOf(nodes)} for ${seconds} of ${failover.holdOffSeconds} s`,
    );
  }
  const unseen = nodes.filter(({ agent }) => !fresh.some((view) => view.agent === agent));
  if (unseen.length > 0 && unseen.every(({ views, awayMs }) => views.length > 0 && nowMs - awayMs < freshMs))
    return decision('wait', 'AwaitingWitness', `a witness is being asked whether ${namesOf(unseen)} is gone`);
  if (unseen.length > 0)
    return decision(
      'none',
      'NoWitness',
      `no witness that has reached ${namesOf(unseen)} before can say now whether it is gone; a person decides`,
    );
  const steady = nodes.every(({ agent }) =>
    fresh.some((view) => view.agent === agent && nowMs - view.sinceMs >= steadyMs),
  );
  if (!steady) return decision('wait', 'AwaitingWitness', 'a witness is asked again before it is believed');
  const by = [...new Set(fresh.map((view) => view.by))].join(', ');
  return decision(
    'start',
    'SourceGone',
    `nobody has heard of ${namesOf(nodes)} for ${failover.holdOffSeconds} s, and ${by} finds it gone`,
  );
}

/** A witness that finds the node alive has heard of it too. */
function lastHeardMs({ heardMs, views }: NodeFacts): number {
  return Math.max(heardMs, ...views.map(({ aliveMs }) => aliveMs));
}

function says({ says, atMs }: WitnessView, nowMs: number): boolean {
  return says !== 'unknown' && nowMs - atMs <= freshMs;
}

/** What is away, as well as that can be told; undefined: nothing is, or nobody was asked. */
export function absenceOf(
  { agent, connected, views }: NodeFacts,
  closedByPeer: boolean | undefined,
  nowMs: number,
): { reason: 'AgentGone' | 'NodeGone' | 'ConnectionLost'; message: string } | undefined {
  if (connected) return undefined;
  const fresh = views.filter((view) => says(view, nowMs));
  const alive = fresh.find(({ says }) => says === 'alive');
  const gone = fresh.find(({ says }) => says === 'gone');
  if (gone && !alive)
    return {
      reason: 'NodeGone',
      message: `node ${agent} does not answer ${gone.by} either; see to the node or its network`,
    };
  if (closedByPeer === true)
    return {
      reason: 'AgentGone',
      message: `agent ${agent} has ended its line${alive ? `, and its node answers ${alive.by}` : ''}; start it`,
    };
  if (closedByPeer === false)
    return alive
      ? {
          reason: 'ConnectionLost',
          message: `agent ${agent} fell silent, and its node answers ${alive.by}; check the line from it to the master`,
        }
      : { reason: 'ConnectionLost', message: `agent ${agent} fell silent; check its node and its line to the master` };
  return (
    alive && {
      reason: 'AgentGone',
      message: `agent ${agent} is not connected, and its node answers ${alive.by}; start it and check its line to the master`,
    }
  );
}

function namesOf(nodes: NodeFacts[]): string {
  return [...new Set(nodes.map(({ agent }) => agent))].join(', ') || 'nothing';
}
