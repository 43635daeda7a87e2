import fc from 'fast-check';
import t from 'tap';
import {
  actions,
  ask,
  failed,
  hasEnded,
  nextStep,
  settle,
  succeeded,
  type Action,
  type Job,
  type Work,
} from '../../../../master/recovery/machine.ts';
import type { RecoveryState, RecoveryType } from '../../../../master/resources.ts';

function job(type: RecoveryType, orders: number[]): Job {
  return {
    spec: { group: 'g', type, point: 'latest-data', target: null },
    status: {
      ...{ state: 'Waiting', outcome: null, message: null, point: null, verified: null },
      ...{ rtoSeconds: null, rpoSeconds: null, startTime: null, endTime: null },
      tasks: orders.map((_order, index) => ({
        ...{ volume: `v${index}`, state: 'Waiting', path: null, point: null, message: null },
        ...{ startTime: null, endTime: null, progress: null, check: null },
      })),
    },
    job: {
      force: false,
      commonMs: null,
      volumes: orders.map((order) => ({ stage: 'new', order, usableMs: null, goodAsOfMs: null, verified: false })),
    },
  };
}

/** What the world looks like outside of the machine: the model that its states are held against. */
interface Volume {
  fenced: boolean;
  copy: boolean;
  handedOver: boolean;
}

/** Does the next step, failing where `fails` says so. Answers whether it did anything. */
function advance(
  one: Job,
  world: Volume[],
  fails: (work: Work, index: number) => boolean,
  say: (text: string) => void,
): boolean {
  const step = nextStep(one);
  say(`${one.status.state}: ${JSON.stringify(step)}`);
  if (step.kind === 'rest') return false;
  if (step.kind === 'begin') one.status.state = 'Running';
  else if (step.kind === 'settle') settle(one, step.state, 'now');
  else
    for (const index of step.volumes) {
      const volume = world[index];
      const task = one.status.tasks[index];
      if (!volume || !task) throw new Error('work on what is not there');
      if (step.work !== 'undo' && step.work !== 'confirm') task.state = 'Running';
      if (fails(step.work, index)) {
        failed(one, index, step.work, 'it broke', 'now');
        continue;
      }
      if (step.work === 'fence') volume.fenced = true;
      if (step.work === 'copy') {
        if (
          one.spec.type === 'failover' &&
          world.some(({ fenced }, other) => !fenced && one.status.tasks[other]?.state !== 'Failed')
        )
          throw new Error('a copy was made before all sources were fenced');
        volume.copy = true;
      }
      if (step.work === 'undo') Object.assign(volume, { fenced: false, copy: false });
      if (step.work === 'confirm') volume.handedOver = true;
      succeeded(one, index, step.work, 'now');
    }
  return true;
}

const ways = fc.record({
  type: fc.constantFrom<RecoveryType>('drill', 'failover'),
  orders: fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 1, maxLength: 4 }),
  moves: fc.array(
    fc.oneof(
      fc.record({ action: fc.constantFrom<Action>(...actions, 'confirm', 'confirm', 'retry'), force: fc.boolean() }),
      { arbitrary: fc.record({ failing: fc.array(fc.nat(3), { maxLength: 3 }) }), weight: 2 },
      { arbitrary: fc.constant({ failing: [] as number[] }), weight: 12 },
    ),
    { maxLength: 80, size: 'max' },
  ),
});

t.test('whatever is asked and whatever fails, the state says what is so', async (t) => {
  const visited = new Set<RecoveryState>();
  fc.assert(
    fc.property(ways, ({ type, orders, moves }) => {
      const one = job(type, orders);
      const world: Volume[] = orders.map(() => ({ fenced: false, copy: false, handedOver: false }));
      const told: string[] = [];
      const check = (condition: boolean, what: string): void => {
        if (!condition)
          throw new Error(`${what}\n${told.join('\n')}\n${JSON.stringify(one)}\n${JSON.stringify(world)}`);
      };
      for (const move of moves) {
        const before = one.status.state;
        const wasFinal = hasEnded(one) && before !== 'Completed' && before !== 'Failed';
        if ('action' in move) {
          told.push(`${move.action}${move.force ? ' by force' : ''}`);
          const copy = JSON.stringify(one);
          if (ask(one, move.action, move.force) !== undefined)
            check(copy === JSON.stringify(one), 'a refusal changes nothing');
        } else
          advance(
            one,
            world,
            (_work, index) => move.failing.includes(index),
            (text) => told.push(text),
          );
        const { state, tasks, outcome } = one.status;
        visited.add(state);
        if (wasFinal) check(state === before, 'a final state stays');
        if (type === 'drill') {
          check(
            world.every(({ fenced, handedOver }) => !fenced && !handedOver),
            'a drill touches no source',
          );
          check(!['Confirming', 'Confirmed', 'ForceConfirmed'].includes(state), 'a drill is never confirmed');
        }
        if (state === 'Cancelled' || state === 'RolledBack') {
          check(
            world.every(({ fenced, copy }) => (!fenced && !copy) || one.job.force),
            'all of it is undone',
          );
          check(
            tasks.every((task) => task.state === 'Cancelled' || task.state === 'RolledBack'),
            'tasks say so',
          );
        }
        if (state === 'Completed') {
          const good = tasks.filter((task) => task.state === 'Completed').length;
          check(type === 'drill' ? good === tasks.length : good > 0, 'complete: all of a drill, some of a failover');
        }
        tasks.forEach((task, index) => {
          if (task.state === 'Completed')
            check(world[index]?.copy === true || world[index]?.handedOver === true, 'what is complete is there');
        });
        if (state === 'Confirmed')
          check(
            world.every(({ handedOver, fenced }) => handedOver && fenced),
            'all of it is handed over',
          );
        if (outcome === 'success' && type === 'failover')
          check(state.endsWith('onfirmed'), 'a failover succeeds by its confirmation');
        if (outcome === 'cancelled')
          check(['Cancelled', 'RolledBack', 'RollbackIgnored'].includes(state), 'cancelled or rolled back');
      }
    }),
    { numRuns: 3000 },
  );
  t.equal(visited.size, 14, `every state is reached: ${[...visited].join(' ')}`);
});

t.test('from anywhere it ends by itself, or one action ends it, even when nothing works any more', async (t) => {
  fc.assert(
    fc.property(ways, fc.boolean(), ({ type, orders, moves }, broken) => {
      const one = job(type, orders);
      const world: Volume[] = orders.map(() => ({ fenced: false, copy: false, handedOver: false }));
      for (const move of moves) {
        if ('action' in move) ask(one, move.action, move.force);
        else
          advance(
            one,
            world,
            (_work, index) => move.failing.includes(index),
            () => undefined,
          );
      }
      const run = (): void => {
        for (
          let left = 100;
          left > 0 &&
          advance(
            one,
            world,
            () => broken,
            () => undefined,
          );
        )
          left--;
      };
      run();
      if (hasEnded(one)) return;
      const good = structuredClone(one);
      const ends = (['cancel', 'rollback', 'confirm'] as const).filter((action) => {
        Object.assign(one, structuredClone(good));
        if (ask(one, action, true) !== undefined) return false;
        run();
        return hasEnded(one);
      });
      if (ends.length === 0) throw new Error(`no way out of ${good.status.state}: ${JSON.stringify(good)}`);
    }),
    { numRuns: 2000 },
  );
  t.pass('always');
});

t.test('a retry takes up what failed, where it failed', async (t) => {
  const one = job('failover', [1, 1]);
  const world: Volume[] = [0, 1].map(() => ({ fenced: false, copy: false, handedOver: false }));
  const copies: number[] = [];
  let isBroken = true;
  const run = (): void => {
    while (
      advance(
        one,
        world,
        (work, index) => {
          if (work === 'copy' && !(isBroken && index === 1)) copies.push(index);
          return work === 'copy' && index === 1 && isBroken;
        },
        () => undefined,
      )
    );
  };
  run();
  t.equal(one.status.state, 'Completed', 'one of two is enough for a failover');
  t.equal(one.status.outcome, null);
  t.match(ask(one, 'confirm', false), /v1 is not recovered; retry it/);
  isBroken = false;
  t.equal(ask(one, 'retry', false), undefined);
  run();
  t.same(copies, [0, 1], 'what was good is not made again');
  t.ok(one.status.tasks.every(({ state }) => state === 'Completed'));
  t.match(ask(one, 'retry', false), /nothing of it has failed/);
  t.equal(ask(one, 'confirm', false), undefined);
  run();
  t.equal(one.status.state, 'Confirmed');
  t.equal(one.status.outcome, 'success');
});

t.test('a pause takes hold between two pieces of work', async (t) => {
  const one = job('drill', [1, 2]);
  const world: Volume[] = [0, 1].map(() => ({ fenced: false, copy: false, handedOver: false }));
  const go = (): boolean =>
    advance(
      one,
      world,
      () => false,
      () => undefined,
    );
  for (let steps = 3; steps > 0; steps--) go();
  t.same(
    world.map(({ copy }) => copy),
    [true, false],
    'the first in order is copied',
  );
  t.equal(ask(one, 'pause', false), undefined);
  while (go());
  t.equal(one.status.state, 'Paused');
  t.same(
    world.map(({ copy }) => copy),
    [true, false],
  );
  t.equal(ask(one, 'resume', false), undefined);
  while (go());
  t.equal(one.status.state, 'Completed');
});
