import { setImmediate } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { readyOf } from '../../../../master/kubernetes/clusterview.ts';
import { openWitnesses } from '../../../../master/recovery/witness.ts';
import { systemClock } from '../../../../proto/system.ts';
import { world } from '../controllers.ts';

const pvc = { cluster: 'prod', namespace: 'shop', name: 'db' };

/** A claim's node in a cluster that says what `answer` says, or does not answer. */
async function claimed(t: Test) {
  const { store } = await world(t);
  const node = { connected: true, address: '10.0.0.1', answer: async (): Promise<boolean | undefined> => true };
  const asked: unknown[] = [];
  let nowMs = 0;
  const open = () =>
    openWitnesses({
      store,
      clock: { ...systemClock, monotonicMs: () => nowMs },
      connected: () => node.connected,
      addressOf: () => node.address,
      probe: async () => undefined,
      nodeReady(claim, name) {
        asked.push([claim, name]);
        return node.answer();
      },
    });
  let witnesses = open();
  return {
    node,
    asked,
    startAnew: (): void => void (witnesses = open()),
    /** After so many seconds: what is known when it has answered. */
    after: async (seconds: number) => {
      nowMs += seconds * 1000;
      const look = () => witnesses.look('node-a', { agents: [], port: 22 }, pvc);
      look();
      await setImmediate();
      return look();
    },
  };
}

t.test('the API server is a witness of the node of a claim', async (t) => {
  const { node, asked, after, startAnew } = await claimed(t);
  t.match(await after(0), [{ by: 'the API server', says: 'alive', aliveMs: 0 }]);
  t.strictSame(asked, [[pvc, 'node-a']]);
  await after(30);
  t.equal(asked.length, 1, 'it is asked once a minute');
  node.connected = false;
  node.answer = async () => false;
  t.match(await after(0), [{ says: 'gone', sinceMs: 30_000, atMs: 30_000, aliveMs: 0 }], 'and sooner when it is away');
  t.match(await after(5), [{ says: 'gone', sinceMs: 30_000, atMs: 35_000 }]);
  node.answer = async () => undefined;
  t.match(await after(5), [{ says: 'unknown' }], 'a node that it does not have is no node that is gone');
  node.answer = async () => Promise.reject(new Error('it is away'));
  t.match(await after(5), [{ says: 'unknown' }], 'nor is one of which it does not answer');
  node.answer = async () => false;
  t.match(await after(5), [{ says: 'gone', sinceMs: 50_000 }], 'what it says then begins anew');
  startAnew();
  t.match(await after(5), [{ says: 'gone', aliveMs: -Infinity }], 'that it has said alive is known after a restart');
});

t.test('one that has never found the node alive says nothing', async (t) => {
  const { node, after } = await claimed(t);
  node.answer = async () => false;
  t.strictSame(await after(0), [], 'while its agent is connected');
  node.connected = false;
  node.answer = async () => true;
  t.strictSame(await after(60), [], 'and while it is away: nobody knows whether that is the same node');
  node.connected = true;
  node.address = '127.0.0.1';
  t.strictSame(await after(60), [], 'each machine has a loopback of its own');
});

t.test('only Ready True is ready', async (t) => {
  const node = (...conditions: object[]) => ({ status: { conditions } });
  const pressure = { type: 'MemoryPressure', status: 'True' };
  t.equal(readyOf(node(pressure, { type: 'Ready', status: 'True' })), true);
  t.equal(readyOf(node(pressure, { type: 'Ready', status: 'False' })), false);
  t.equal(readyOf(node({ type: 'Ready', status: 'Unknown' })), false, 'its kubelet is not heard');
  t.equal(readyOf(node(pressure)), undefined);
  t.equal(readyOf({ status: {} }), undefined);
  t.equal(readyOf({}), undefined);
});
