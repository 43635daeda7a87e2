import fc from 'fast-check';
import t from 'tap';
import {
  absenceOf,
  decide,
  freshMs,
  steadyMs,
  type FailoverFacts,
  type NodeFacts,
  type WitnessView,
} from '../../../../master/recovery/policy.ts';

const nowMs = 10_000_000;
const times = fc.noBias(fc.integer({ min: 0, max: 400_000 })).map((ago) => nowMs - ago);
const views = fc
  .record({
    by: fc.constantFrom('node-c', 'node-d'),
    says: fc.constantFrom<WitnessView['says']>('alive', 'gone', 'gone', 'gone', 'gone', 'unknown'),
    atMs: fc.noBias(fc.integer({ min: 0, max: 25_000 })).map((ago) => nowMs - ago),
    heldMs: fc.noBias(fc.integer({ min: 0, max: 60_000 })),
    alive: fc.option(times, { freq: 1 }),
  })
  .map(({ by, says, atMs, heldMs, alive }): WitnessView => {
    const aliveMs = says === 'alive' ? atMs : Math.min(alive ?? -Infinity, atMs - heldMs - 1);
    return { by, says, atMs, sinceMs: atMs - heldMs, aliveMs };
  });
const nodes = fc.record({
  agent: fc.constantFrom('node-a', 'node-b'),
  connected: fc.constant(false),
  heardMs: times,
  awayMs: times,
  views: fc.array(views, { maxLength: 3 }),
});
const facts: fc.Arbitrary<FailoverFacts> = fc.record({
  nowMs: fc.constant(nowMs),
  failover: fc.record({
    policy: fc.constantFrom('automatic' as const, 'automatic' as const, 'manual' as const),
    holdOffSeconds: fc.integer({ min: 10, max: 200 }),
    witness: fc.constant({ agents: ['node-c'], port: 22 }),
  }),
  bar: fc.constantFrom(undefined, undefined, undefined, undefined, 'it is paused'),
  open: fc.constantFrom(undefined, undefined, undefined, undefined, 'one'),
  spent: fc.constantFrom(undefined, undefined, undefined, undefined, 'one'),
  nodes: fc.array(
    nodes.chain((node) =>
      fc.boolean().map((connected) => ({ ...node, connected: connected && node.heardMs % 4 === 0 })),
    ),
    { maxLength: 2 },
  ),
});
const isFresh = ({ atMs }: WitnessView): boolean => nowMs - atMs <= freshMs;

t.test('it starts only when nothing at all speaks against it', async (t) => {
  let starts = 0;
  fc.assert(
    fc.property(facts, (given) => {
      const { act } = decide(given);
      const { failover, bar, open, spent, nodes } = given;
      const isSilent = nodes.every((node) => !node.connected && nowMs - node.heardMs >= failover.holdOffSeconds * 1000);
      const isDoubted = nodes.some(({ views }) =>
        views.some(
          (view) => (view.says === 'alive' && isFresh(view)) || nowMs - view.aliveMs < failover.holdOffSeconds * 1000,
        ),
      );
      const isSeenGone = nodes.every(({ agent }) =>
        nodes
          .filter((node) => node.agent === agent)
          .some(({ views }) =>
            views.some((view) => view.says === 'gone' && isFresh(view) && nowMs - view.sinceMs >= steadyMs),
          ),
      );
      const may =
        failover.policy === 'automatic' && !bar && !open && !spent && nodes.length > 0 && isSilent && !isDoubted;
      if (act === 'start') starts++;
      return (act === 'start') === (may && isSeenGone);
    }),
    { numRuns: 20_000 },
  );
  t.ok(starts > 20, `${starts} of the runs start one: the property is not empty`);
});

const silent: NodeFacts = {
  ...{ agent: 'node-a', connected: false, heardMs: nowMs - 60_000, awayMs: nowMs - 50_000 },
  views: [{ by: 'node-c', says: 'gone', atMs: nowMs, sinceMs: nowMs - 50_000, aliveMs: nowMs - 120_000 }],
};
const gone: FailoverFacts = {
  ...{ nowMs, bar: undefined, open: undefined, spent: undefined, nodes: [silent] },
  failover: { policy: 'automatic', holdOffSeconds: 60, witness: { agents: ['node-c'], port: 22 } },
};

t.test('each step says why', async (t) => {
  const after = (change: Partial<FailoverFacts>) => decide({ ...gone, ...change });
  const view = silent.views[0] as WitnessView;
  t.match(after({}), { act: 'start', reason: 'SourceGone', message: /node-a for 60 s, and node-c finds it gone/ });
  t.match(after({ nodes: [{ ...silent, heardMs: nowMs - 40_999 }] }), {
    ...{ act: 'wait', reason: 'HoldingOff', message: /40 of 60 s/ },
  });
  const alive = { ...view, says: 'alive' as const, aliveMs: nowMs };
  t.match(after({ nodes: [{ ...silent, views: [alive, view] }] }), { act: 'none', reason: 'WitnessDisagrees' });
  t.match(after({ nodes: [{ ...silent, views: [{ ...view, aliveMs: nowMs - 30_000 }] }] }), {
    ...{ act: 'wait', reason: 'HoldingOff', message: /30 of 60 s/ },
  });
  t.match(after({ nodes: [{ ...silent, views: [] }] }), { act: 'none', reason: 'NoWitness' });
  t.match(after({ nodes: [{ ...silent, views: [{ ...view, atMs: nowMs - freshMs - 1 }] }] }), { reason: 'NoWitness' });
  const asked = { ...silent, awayMs: nowMs - freshMs + 1, views: [{ ...view, atMs: nowMs - freshMs - 1 }] };
  t.match(after({ nodes: [asked] }), { act: 'wait', reason: 'AwaitingWitness', message: /being asked whether node-a/ });
  t.match(after({ nodes: [{ ...asked, awayMs: nowMs - freshMs }] }), { reason: 'NoWitness' });
  t.match(after({ nodes: [{ ...asked, views: [] }] }), { reason: 'NoWitness' });
  t.match(after({ nodes: [{ ...silent, views: [{ ...view, sinceMs: nowMs - 4000 }] }] }), {
    ...{ act: 'wait', reason: 'AwaitingWitness' },
  });
  t.match(after({ nodes: [silent, { ...silent, agent: 'node-b', connected: true }] }), { reason: 'SourceHeard' });
  t.match(after({ nodes: [{ ...silent, connected: true, views: [] }] }), { reason: 'WitnessUnproven' });
  t.match(after({ nodes: [silent, { ...silent, agent: 'node-b', views: [] }] }), {
    ...{ reason: 'NoWitness', message: /node-b/ },
  });
  t.match(after({ open: 'f' }), { act: 'none', reason: 'FailoverOpen', message: /confirm it or roll it back/ });
  t.match(after({ spent: 'f' }), { act: 'none', reason: 'FailoverSpent' });
  t.match(after({ bar: 'db is paused' }), { act: 'none', reason: 'Barred', message: 'db is paused' });
});

t.test('agent, node and connection are told apart', async (t) => {
  const [view] = silent.views as [WitnessView];
  const alive = { ...silent, views: [{ ...view, says: 'alive' as const }] };
  const none = { ...silent, views: [] };
  t.match(absenceOf(silent, true, nowMs), { reason: 'NodeGone', message: /node-c/ });
  t.match(absenceOf(alive, true, nowMs), { reason: 'AgentGone', message: /its node answers node-c/ });
  t.match(absenceOf(alive, false, nowMs), { reason: 'ConnectionLost', message: /its node answers node-c/ });
  t.match(absenceOf(none, false, nowMs), { reason: 'ConnectionLost' });
  t.match(absenceOf(none, true, nowMs), { reason: 'AgentGone' });
  t.equal(absenceOf(none, undefined, nowMs), undefined);
  t.equal(absenceOf({ ...silent, connected: true }, true, nowMs), undefined);
});
