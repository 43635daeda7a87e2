/**
 * Asks others whether a source's node is there, and keeps what they say.
 *
 * Guarantees: a witness counts only for what it has reached before, at the same address and port, while the node's agent was
 * connected: one that a firewall keeps away finds every node gone. That is kept over restarts of the master. Who does not answer, or
 * cannot ask, says nothing. Asked once a minute, every 5 s while the agent is away or the witness has not reached its node yet; one
 * question to each at a time.
 */
import type { Clock } from '../../proto/effects.ts';
import { isLoopback } from '../../proto/value.ts';
import type { ProbeOutcome } from '../../proto/wire.ts';
import type { ClaimRef, FailoverPolicy } from '../resources.ts';
import type { Store } from '../store.ts';
import type { WitnessView } from './policy.ts';

const soonEveryMs = 5000;
const baseEveryMs = 60_000;
/** By agent: where its node was reached, and by whom. */
const table = 'witnesses';
const apiServer = 'the API server';

export interface WitnessOptions {
  store: Store;
  clock: Clock;
  connected: (agent: string) => boolean;
  /** The IP address that an agent dialled from last. */
  addressOf: (agent: string) => string | undefined;
  probe: (by: string, address: string, port: number) => Promise<ProbeOutcome | undefined>;
  /** Whether the node of a claim's cluster is Ready; undefined: not known. Absent: no cluster is. */
  nodeReady?: (pvc: ClaimRef, node: string) => Promise<boolean | undefined>;
}

export interface Witnesses {
  /** What is known now; asks anew when that is due. */
  look(agent: string, witness: FailoverPolicy['witness'], pvc: ClaimRef | undefined): WitnessView[];
}

interface Reached {
  address: string;
  port: number;
  by: string[];
}

export function openWitnesses({ store, clock, connected, ...ask }: WitnessOptions): Witnesses {
  const views = new Map<string, WitnessView>();
  const askedMs = new Map<string, number>();
  const asking = new Set<string>();

  function reachedOf(agent: string): Reached | undefined {
    const text = store.getRecord(table, agent);
    return text === undefined ? undefined : (JSON.parse(text) as Reached);
  }

  /** The place where the node was reached while its agent was connected; a new address begins anew. */
  function placeOf(agent: string, port: number): Reached | undefined {
    const known = reachedOf(agent);
    const address = connected(agent) ? ask.addressOf(agent) : known?.address;
    // Each machine has a loopback of its own: what answers there is the witness itself.
    if (address === undefined || isLoopback(address)) return undefined;
    return known?.address === address && known.port === port ? known : { address, port, by: [] };
  }

  function heard(agent: string, by: string, place: Reached, isAlive: boolean | undefined): void {
    const key = `${agent} ${by}`;
    const nowMs = clock.monotonicMs();
    if (isAlive === true && connected(agent) && !place.by.includes(by)) {
      const present = reachedOf(agent);
      const others = present?.address === place.address && present.port === place.port ? present.by : [];
      store.putRecord(table, agent, JSON.stringify({ ...place, by: [...new Set([...others, by])] }));
    } else if (!place.by.includes(by)) return;
    const says = isAlive === undefined ? 'unknown' : isAlive ? 'alive' : 'gone';
    const before = views.get(key);
    views.set(key, {
      ...{ by, says, atMs: nowMs },
      sinceMs: before?.says === says ? before.sinceMs : nowMs,
      aliveMs: says === 'alive' ? nowMs : (before?.aliveMs ?? -Infinity),
    });
  }

  function askWhenDue(agent: string, by: string, place: Reached, question: () => Promise<boolean | undefined>): void {
    const key = `${agent} ${by}`;
    const everyMs = connected(agent) && place.by.includes(by) ? baseEveryMs : soonEveryMs;
    if (asking.has(key) || clock.monotonicMs() - (askedMs.get(key) ?? -Infinity) < everyMs) return;
    asking.add(key);
    askedMs.set(key, clock.monotonicMs());
    void question()
      // The cluster does not answer: nobody has said anything.
      .catch(() => undefined)
      .then((isAlive) => heard(agent, by, place, isAlive))
      // The store does not take it: the next answer is written.
      .catch(() => undefined)
      .finally(() => asking.delete(key));
  }

  return {
    look(agent, { agents, port }, pvc) {
      const place = placeOf(agent, port);
      if (!place) return [];
      const names = agents.filter((by) => by !== agent);
      for (const by of names)
        askWhenDue(agent, by, place, async () => {
          const outcome = await ask.probe(by, place.address, port);
          return outcome === undefined || outcome === 'failed' ? undefined : outcome === 'reached';
        });
      const { nodeReady } = ask;
      if (pvc && nodeReady) askWhenDue(agent, apiServer, place, () => nodeReady(pvc, agent));
      return [...names, ...(pvc ? [apiServer] : [])].flatMap((by) => views.get(`${agent} ${by}`) ?? []);
    },
  };
}
