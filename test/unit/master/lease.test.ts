/** The lease of the leader, on an API server that loses answers, and for a process that is kept from running. */
import t from 'tap';
import { setImmediate as turn } from 'node:timers/promises';
import { ApiFault, type Api } from '../../../master/kubernetes/api.ts';
import { lead } from '../../../master/kubernetes/lease.ts';

interface Stored {
  metadata: { resourceVersion: string };
  spec: { holderIdentity: string };
}

/** An API server of one lease, and a clock that moves when it is told to. */
function world(onGoingOn = (): void => undefined) {
  let stored: Stored | undefined;
  let nowMs = 1000;
  const sleepers: { atMs: number; wake: () => void }[] = [];
  /** `stopped`: done, and the process runs again a minute later, when the request has timed out. */
  const faults: ('lost' | 'away' | 'stopped')[] = [];
  const away = (): ApiFault => new ApiFault(0, 'NoAnswer', 'the operation was aborted');
  const api: Pick<Api, 'request'> = {
    async request(method, _path, body) {
      const fault = faults.shift();
      if (fault === 'away') throw away();
      const sent = body as Stored | undefined;
      if (method === 'GET' && stored === undefined) throw new ApiFault(404, 'NotFound', '"lease" not found');
      if (method !== 'GET') {
        if (stored && sent?.metadata.resourceVersion !== stored.metadata.resourceVersion)
          throw new ApiFault(409, 'Conflict', 'the object has been modified');
        const resourceVersion = `${Number(stored?.metadata.resourceVersion ?? 0) + 1}`;
        stored = structuredClone({ ...sent, metadata: { ...sent?.metadata, resourceVersion } }) as Stored;
      }
      if (fault === 'stopped') {
        nowMs += 60_000;
        onGoingOn();
      }
      if (fault === 'lost' || fault === 'stopped') throw away();
      return structuredClone(stored);
    },
  };
  const clock = {
    nowMs: () => nowMs,
    monotonicMs: () => nowMs,
    sleep: (ms: number) => new Promise<void>((wake) => sleepers.push({ atMs: nowMs + ms, wake })),
  };
  return {
    clock,
    api: api as Api,
    faults,
    holder: () => stored?.spec.holderIdentity,
    /** As if another master wrote. */
    take(holderIdentity: string): void {
      if (!stored) throw new Error('there is no lease');
      stored = {
        metadata: { resourceVersion: `${Number(stored.metadata.resourceVersion) + 1}` },
        spec: { holderIdentity },
      };
    },
    /** All at once, as for a process that was stopped; what was to wake meanwhile wakes then. */
    async pass(ms: number): Promise<void> {
      nowMs += ms;
      for (const one of sleepers.splice(0)) {
        if (one.atMs <= nowMs) one.wake();
        else sleepers.push(one);
      }
      for (let turns = 0; turns < 20; turns++) await turn();
    },
  };
}

async function leader(one: ReturnType<typeof world>) {
  const { api, clock } = one;
  const options = { api, clock, namespace: 'n', name: 'l', identity: 'me', onWait: () => undefined };
  const leadership = await lead(options, new AbortController().signal);
  let lost: string | undefined;
  leadership.lost.then(
    (why) => (lost = why),
    () => undefined,
  );
  return { leadership, lost: () => lost };
}

t.test('a renewal whose answer was lost is found, and goes on at once', async (t) => {
  const one = world();
  const { leadership, lost } = await leader(one);
  one.faults.push('lost');
  await one.pass(9000.25);
  await one.pass(2000);
  t.equal(lost(), undefined);
  leadership.mayWrite();
});

t.test(
  'a process that was kept from running writes nothing before it knows, and leads on when nobody else does',
  async (t) => {
    const one = world(() => t.throws(() => leadership.mayWrite(), { code: 'Fenced' }));
    const { leadership, lost } = await leader(one);
    one.faults.push('stopped');
    await one.pass(2000);
    t.equal(lost(), undefined);
    leadership.mayWrite();
  },
);

t.test('another one leads: it is lost, and never taken back', async (t) => {
  const one = world();
  const { lost } = await leader(one);
  one.take('other');
  await one.pass(20_000);
  t.equal(lost(), 'other leads now');
  t.equal(one.holder(), 'other');
});

t.test('an API server that is away: lost after ten seconds, with its words', async (t) => {
  const one = world();
  const { leadership, lost } = await leader(one);
  one.faults.push(...Array.from({ length: 20 }, () => 'away' as const));
  for (let seconds = 2; seconds <= 10; seconds += 2) {
    await one.pass(2000);
    t.equal(lost(), undefined, `${seconds} s`);
  }
  await one.pass(2000);
  t.match(lost(), /could not be renewed for 10 s: .*aborted/);
  t.throws(() => leadership.mayWrite(), { code: 'Fenced' });
});
