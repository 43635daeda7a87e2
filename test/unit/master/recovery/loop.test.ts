/**
 * The loop with the real store and a world whose every step can fail, hang or be cut off: a thousand seeds, or the one in
 * REPLICATOR_SEED. A cut-off master is an aborted loop whose half-done work stays; the next one begins with the same store.
 */
import t from 'tap';
import { pinnedPoints, snapshotReferences } from '../../../../master/references.ts';
import { actions, ask, hasEnded, type Work } from '../../../../master/recovery/machine.ts';
import { runRecoveries, type Effects } from '../../../../master/recovery/loop.ts';
import { openDatabase } from '../../../../master/database.ts';
import { sqliteStore } from '../../../../master/store-sqlite.ts';
import type { Mirrors } from '../../../../master/mirrors.ts';
import { volumeEffects } from '../../../../master/recovery/volume.ts';
import type { AgentVolume, PointView, Recovery } from '../../../../master/resources.ts';
import { recoveryDraft } from '../../../../master/api/recoveries.ts';
import { snapshotKey } from '../../../../master/store.ts';
import { systemClock, systemRandom } from '../../../../proto/system.ts';
import { random } from '../../../e2e/content.ts';
import { addReplication, addSnapshot } from '../controllers.ts';

const seeds = process.env['REPLICATOR_SEED'] === undefined ? 1000 : 1;
const members = ['a', 'b', 'c'];

interface Volume {
  /** Newest generation that its replica was told of. */
  generation: bigint;
  copies: Set<string>;
  handedOver: boolean;
  /** Sequences of the points that can be recovered; the oldest go as time passes, unless they are pinned. */
  journal: number[];
  /** Of the volume at an agent that recoveries write: under which generation, and who does so right now. */
  written: bigint;
  writer: string | undefined;
}

async function play(seed: number, visited: Set<string>): Promise<void> {
  const next = random(seed);
  const dice = (sides: number): number => Math.floor(next() * sides);
  const database = openDatabase(':memory:');
  // Rests take no time; what is waited for is only that all work that there is was done.
  const clock = {
    ...systemClock,
    sleep: async (_ms: number, signal?: AbortSignal) => {
      await new Promise((resolve) => setImmediate(resolve));
      signal?.throwIfAborted();
    },
  };
  const store = sqliteStore(database, { clock, random: systemRandom });
  const world = new Map<string, Volume>();
  for (const name of members) {
    addReplication(store, name);
    store.update('Replication', name, ({ spec }) => void (spec.group = 'g'));
    world.set(name, {
      ...{ generation: 1n, copies: new Set(), handedOver: false },
      ...{ journal: [2], written: 0n, writer: undefined },
    });
    const key = addSnapshot(store, name, 's', 'Ready');
    store.update('Snapshot', key, ({ status }) => void Object.assign(status, { point: { sequence: 1 } }));
  }
  let trouble = 0.15;
  const problems: string[] = [];

  const holder = (volume: string) => store.get('Replication', volume)?.requests.fencedBy;
  const replicaOf = (name: string) => ({
    async fence(generation: string) {
      const state = world.get(name);
      if (!state || BigInt(generation) < state.generation)
        problems.push(`${name} goes back to generation ${generation}`);
      else state.generation = BigInt(generation);
    },
  });
  const names = new Map(store.list('Replication').map(({ metadata }) => [metadata.uid, metadata.name]));
  const real = volumeEffects({
    store,
    clock,
    mirrors: { replica: (uid: string) => replicaOf(names.get(uid) ?? '') } as unknown as Mirrors,
    allow: { mayWriteRecovery: async (path) => path, mayRun: async (path) => path },
    folder: '/nowhere',
    forks: '/nowhere',
    events: { emit: () => undefined },
    // A node that is away, or whose volume is in use, now and then.
    look: async () =>
      next() < trouble ? undefined : ({ eligible: next() >= trouble, reason: 'in use' } as AgentVolume),
    restores: { run: () => Promise.reject(new Error('not asked')) },
  });

  function effect(work: Work): Effects[Work] {
    return async (recovery, index, signal) => {
      const volume = recovery.status.tasks[index]?.volume ?? '';
      const state = world.get(volume);
      if (!state) throw new Error(`there is no ${volume}`);
      const { uid } = recovery.metadata;
      for (let left = dice(3); left > 0; left--) await new Promise((resolve) => setImmediate(resolve));
      signal.throwIfAborted();
      if (next() < trouble) throw new Error(`${work} of ${volume} failed`);
      // Who may write is the real work's, on the real store.
      if (work === 'fence' || work === 'undo') await real[work](recovery, index, signal);
      if (work === 'choose') {
        const isSnapshot = recovery.spec.point !== 'latest-data';
        const sequence = isSnapshot ? 1 : (state.journal[dice(state.journal.length)] ?? 0);
        store.update('Recovery', recovery.metadata.name, ({ status }) => {
          const task = status.tasks[index];
          if (task) task.point = { sequence } as PointView;
        });
      }
      if (work === 'copy') {
        const sequence = recovery.status.tasks[index]?.point?.sequence ?? 0;
        if (sequence > 1 && !state.journal.includes(sequence))
          problems.push(`point ${sequence} of ${volume} was chosen and is gone`);
        if (recovery.spec.target?.agent !== undefined) await writeVolume(recovery, volume, state, signal);
        if (recovery.spec.type === 'failover' && holder(volume) !== uid) problems.push(`${volume} is copied unfenced`);
        if (sequence === 1 && !snapshotReferences(store).has(snapshotKey(volume, 's')))
          problems.push(`the snapshot of ${volume} is not pinned`);
        state.copies.add(uid);
      }
      if (work === 'undo') state.copies.delete(uid);
      if (work === 'confirm') state.handedOver = true;
      // Done, and the master dies before it is written down.
      if (next() < trouble / 3) stop.abort();
      signal.throwIfAborted();
      return undefined;
    };
  }

  /** As restores.ts and the agent's mark do: a writer at a time, none of an older generation, none that was ended. */
  async function writeVolume(recovery: Recovery, name: string, state: Volume, signal: AbortSignal): Promise<void> {
    const { uid } = recovery.metadata;
    const generation = BigInt(store.get('Replication', name)?.status.fencingGeneration ?? '0');
    if (state.writer !== undefined) problems.push(`${state.writer} and ${uid} write the volume of ${name} at once`);
    if (generation < state.written) problems.push(`the volume of ${name} is written by an older generation`);
    state.writer = uid;
    state.written = generation;
    try {
      for (let left = 1 + dice(6); left > 0; left--) {
        await new Promise((resolve) => setImmediate(resolve));
        signal.throwIfAborted();
        if (recovery.spec.type === 'failover' && holder(name) !== uid)
          problems.push(`${name} is written back while its source may write`);
      }
    } finally {
      state.writer = undefined;
    }
  }

  /** Points come, and those go that nobody has pinned, from the oldest on. */
  function passTime(): void {
    for (const [name, { journal }] of world) {
      const pinned = pinnedPoints(store, name);
      if (holder(name) === undefined) journal.push((journal.at(-1) ?? 1) + 1);
      while (journal.length > 1 && !pinned.includes(journal[0] ?? 0) && dice(2) === 0) journal.shift();
    }
  }

  let stop = new AbortController();
  let running = Promise.resolve();
  const begin = (): void => {
    stop = new AbortController();
    const effects = Object.fromEntries(
      (['fence', 'choose', 'copy', 'check', 'undo', 'confirm'] as const).map((work) => [work, effect(work)]),
    ) as unknown as Effects;
    const nothing = () => undefined;
    const options = { store, clock, events: { emit: nothing }, metrics: { onRecovery: nothing } };
    running = runRecoveries({ ...options, effects: { ...effects, forget: nothing } }, stop.signal).catch(nothing);
  };
  const turns = async (count: number): Promise<void> => {
    for (let left = count; left > 0; left--) await new Promise((resolve) => setImmediate(resolve));
  };
  const list = (): Recovery[] => store.list('Recovery');
  const isUnderWay = ({ status }: Recovery): boolean => !['Waiting', 'Completed', 'Failed'].includes(status.state);

  function mustHold(): void {
    const now = list();
    for (const { status } of now) visited.add(status.state);
    const busy = now.filter(
      (one) => !hasEnded(one) && isUnderWay(one) && !['RollingBack', 'Cancelling'].includes(one.status.state),
    );
    if (busy.length > 1) problems.push(`two of one group at once: ${busy.map(({ status }) => status.state).join()}`);
    for (const one of now) {
      const { uid } = one.metadata;
      const isUndone = ['Cancelled', 'RolledBack'].includes(one.status.state) && !one.job.force;
      for (const [name, { copies }] of world)
        if (isUndone && (holder(name) === uid || copies.has(uid)))
          problems.push(`${name} is left of ${one.status.state}`);
      one.job.volumes.forEach(({ stage }, index) => {
        const name = one.status.tasks[index]?.volume ?? '';
        const isHeld = ['fenced', 'chosen', 'copied', 'ready', 'confirmed'].includes(stage) && !one.job.force;
        const isForward = !['Cancelling', 'RollingBack'].includes(one.status.state);
        if (one.spec.type === 'failover' && isForward && isHeld && holder(name) !== uid)
          problems.push(`the source of ${name} writes during a failover: ${one.status.state}, ${stage}`);
      });
      if (one.spec.type === 'drill' && members.some((name) => holder(name) === uid))
        problems.push('a drill fenced a source');
    }
  }

  begin();
  for (let move = 0; move < 24; move++) {
    if (stop.signal.aborted || dice(8) === 0) {
      stop.abort();
      await running;
      begin();
    } else if (dice(4) === 0 && list().length < 4) {
      const type = dice(2) === 0 ? 'drill' : 'failover';
      const name = `r${move}`;
      const of = dice(2) === 0 ? { group: 'g' } : { replication: members[dice(3)] ?? 'a' };
      const point = dice(2) === 0 ? { snapshot: 's' } : ('latest-data' as const);
      const isBack = dice(3) === 0 && 'replication' in of;
      const target = isBack ? { agent: 'node-a', path: '/dev/vdb' } : null;
      store.create('Recovery', name, recoveryDraft(name, { ...of, type, point, target }));
    } else {
      const all = list();
      const one = all[dice(all.length)];
      if (one)
        store.update(
          'Recovery',
          one.metadata.name,
          (job) => void ask(job, actions[dice(6)] ?? 'cancel', dice(4) === 0),
        );
    }
    await turns(dice(20));
    passTime();
    mustHold();
  }

  // Nothing works any more: one action by force, and each ends.
  trouble = dice(2) === 0 ? 0 : 1;
  for (const { metadata, status } of list()) {
    if (stop.signal.aborted) {
      await running;
      begin();
    }
    const before = status.state;
    let isOut = false;
    for (const action of ['cancel', 'rollback', 'confirm'] as const) {
      const one = store.get('Recovery', metadata.name);
      if (!one || hasEnded(one)) break;
      store.update('Recovery', metadata.name, (job) => (isOut = ask(job, action, true) === undefined));
      if (isOut) break;
    }
    for (let left = 3000; left > 0; left--) {
      const one = store.get('Recovery', metadata.name);
      if (!one || hasEnded(one)) break;
      if (left === 1) problems.push(`no end after ${before}: ${one.status.state}, ${one.status.message}`);
      await turns(1);
    }
  }
  mustHold();
  stop.abort();
  await running;
  store.close();
  if (database.isOpen) database.close();
  if (problems.length > 0) throw new Error(`REPLICATOR_SEED=${seed}: ${[...new Set(problems)].join('; ')}`);
}

t.test('faults and kills at every step end in a state that one action leaves', { timeout: 600_000 }, async (t) => {
  const visited = new Set<string>();
  const from = Number(process.env['REPLICATOR_SEED'] ?? 1);
  for (let seed = from; seed < from + seeds; seed++) await play(seed, visited);
  t.pass(`${seeds} seeds`);
  if (seeds > 1) t.equal(visited.size, 14, `all states were seen: ${[...visited].join(' ')}`);
});
