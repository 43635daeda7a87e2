/** The loop and its witnesses over random days: nodes die, lines break, people act, masters start anew. The world knows what was true. */
import { setImmediate } from 'node:timers/promises';
import t, { type Test } from 'tap';
import type { Engine } from '../../../../master/engine.ts';
import { automaticLabel, runAutomatic } from '../../../../master/recovery/automatic.ts';
import { hasEnded } from '../../../../master/recovery/machine.ts';
import { openWitnesses } from '../../../../master/recovery/witness.ts';
import { systemClock } from '../../../../proto/system.ts';
import { Dice } from '../../../sim/dice.ts';
import { addClass, addReplication, world } from '../controllers.ts';

const holdOffSeconds = 30;
const days = Number(process.env['REPLICATOR_DAYS'] ?? 12);
const seconds = 1500;
/** Of witnesses, and a step of this world. */
const askEveryMs = 6000;

async function day(t: Test, seed: number): Promise<number> {
  const made = await world(t);
  const { store } = made;
  addClass(store, 'local', made.folder);
  addReplication(store, 'db');
  store.update('Replication', 'db', ({ spec, status }) => {
    spec.failover = { policy: 'automatic', holdOffSeconds, witness: { agents: ['node-c'], port: 22 } };
    status.recoveryPoint = { sequence: 1 } as never;
  });
  const dice = new Dice(seed);
  let nowMs = 1_000_000;
  const truth = { alive: true, connected: true, witness: true };
  /** Since when, and until when last, a witness could have seen the node for as long as it takes to ask it. */
  let seenSinceMs: number | undefined = nowMs;
  let seenMs = nowMs;
  let heardMs = nowMs;
  let heardSinceFailover = true;
  const seen = new Set<string>();
  let stop = new AbortController();

  function judge(): void {
    const automatic = store
      .list('Recovery')
      .filter(({ metadata }) => metadata.labels?.[automaticLabel] === 'replication');
    for (const { metadata } of automatic.filter((one) => !seen.has(one.metadata.name))) {
      const what = `seed ${seed}, ${metadata.name} at ${nowMs}`;
      if (truth.connected || nowMs - heardMs < holdOffSeconds * 1000) t.fail(`${what}: its agent was heard`);
      if (nowMs - seenMs < holdOffSeconds * 1000 - askEveryMs) t.fail(`${what}: its node was there`);
      if (store.get('Replication', 'db')?.spec.paused === true) t.fail(`${what}: it was paused`);
      if (!heardSinceFailover) t.fail(`${what}: there was one in this silence`);
      if (automatic.filter((one) => !hasEnded(one)).length > 1) t.fail(`${what}: there are two`);
      heardSinceFailover = false;
      seen.add(metadata.name);
    }
  }

  /** What happens in a second. */
  function happen(): void {
    if (dice.chance(0.01)) truth.alive = !truth.alive;
    if (dice.chance(0.05)) truth.connected = !truth.connected;
    if (dice.chance(0.01)) truth.witness = !truth.witness;
    truth.connected &&= truth.alive;
    seenSinceMs = truth.alive && truth.witness ? (seenSinceMs ?? nowMs) : undefined;
    if (seenSinceMs !== undefined && nowMs - seenSinceMs > askEveryMs) seenMs = nowMs;
    if (truth.connected) {
      heardMs = nowMs;
      heardSinceFailover = true;
    }
    if (dice.chance(0.01)) store.update('Replication', 'db', ({ spec }) => void (spec.paused = !spec.paused));
    const open = store.list('Recovery').find((one) => !hasEnded(one));
    if (open && dice.chance(0.05))
      store.update('Recovery', open.metadata.name, ({ status }) => void (status.state = 'RolledBack'));
    const ended = store.list('Recovery').find(hasEnded);
    if (ended && dice.chance(0.02)) store.delete('Recovery', ended.metadata.name);
    if (dice.chance(0.005)) stop.abort();
  }

  const clock = {
    ...systemClock,
    nowMs: () => nowMs,
    monotonicMs: () => nowMs,
    async sleep() {
      judge();
      nowMs += 1000;
      happen();
      await setImmediate();
    },
  };
  const connected = (agent: string): boolean => (agent === 'node-c' ? truth.witness : truth.connected);
  while (nowMs < 1_000_000 + seconds * 1000) {
    stop = new AbortController();
    const ending = setTimeout(() => stop.abort(), 60_000);
    const beganMs = nowMs;
    const witnesses = openWitnesses({
      ...{ store, clock, connected },
      addressOf: () => (heardMs >= beganMs || truth.connected ? '10.0.0.1' : undefined),
      // The clock stops when it is asked: an answer is of that second.
      probe: async () => (!truth.witness ? undefined : truth.alive ? 'reached' : 'unreachable'),
    });
    const bounded = {
      ...clock,
      sleep: () => (nowMs > 1_000_000 + seconds * 1000 ? void stop.abort() : undefined, clock.sleep()),
    };
    await runAutomatic(
      {
        ...{ store, clock: bounded, events: made.emitter, witnesses, connected },
        engine: { points: () => [] } as unknown as Engine,
        mirrors: { absent: () => undefined },
        heardMs: () => (heardMs >= beganMs ? heardMs : undefined),
        closedByPeer: () => undefined,
      },
      stop.signal,
    );
    clearTimeout(ending);
  }
  return seen.size;
}

t.test('no day has a failover that a doubt speaks against', async (t) => {
  let failovers = 0;
  for (let seed = 1; seed <= days; seed++) failovers += await day(t, seed);
  t.ok(failovers > days / 4, `${failovers} failovers in ${days} days`);
});
