import t from 'tap';
import type { Test } from 'tap';
import { control as agentControl } from '../../../agent/control.ts';
import { control as masterControl, negotiate } from '../../../master/control.ts';
import { openDatabase } from '../../../master/database.ts';
import type { EventInput } from '../../../master/engine.ts';
import { apiVersion } from '../../../master/resources.ts';
import { sqliteStore } from '../../../master/store-sqlite.ts';
import { ReplicationError } from '../../../proto/errors.ts';
import { type Pair, streamPair } from '../../../proto/stream.ts';
import { systemRandom } from '../../../proto/system.ts';
import type { AgentMessage, Assignment, MasterMessage, Report, Volume } from '../../../proto/wire.ts';
import { shiftedClock, until } from '../../trust.ts';

const hello = {
  agentVersion: '1.2',
  bootId: 'boot',
  defaultRole: 'source',
  kernel: '6.1',
  tellsLog: true,
  kubelet: '/var/lib/kubelet',
};
const assignment = (uid: string, paused = false): Assignment =>
  ({ replicationUid: uid, name: `name-of-${uid}`, paused }) as Assignment;
const report = (uid: string, bytesDone = 0): Report => ({ replicationUid: uid, bytesDone }) as Report;
const volume = (path: string): Volume => ({
  path,
  kind: 'disk',
  volumeMode: 'Block',
  sizeBytes: 1,
  filesystem: '',
  filesystemId: '',
  mountPoint: '',
  csiDriver: '',
  csiVolume: '',
  persistentVolume: '',
  podUid: '',
  claim: '',
  eligible: true,
  reason: '',
  write: false,
});

function open(t: Test, settings: { ownClocks?: boolean } = {}) {
  const clock = shiftedClock();
  const agentClock = settings.ownClocks === true ? shiftedClock() : clock;
  const database = openDatabase(':memory:');
  const store = sqliteStore(database, { clock, random: systemRandom });
  store.create('Agent', 'node-a', {
    apiVersion,
    kind: 'Agent',
    metadata: { name: 'node-a' },
    spec: { role: 'target' },
    status: {
      state: 'NO CONN INFO',
      message: '',
      version: null,
      kernel: null,
      bootId: null,
      lastSeenTime: null,
      clockOffsetSeconds: null,
      certificateExpiryTime: null,
    },
    identity: { machineId: 'm', certificates: [] },
  });
  const events: EventInput[] = [];
  const reports: Report[] = [];
  const state = { assignments: [assignment('u1')], assigned: [] as string[][], volumes: [volume('/dev/a')], renews: 0 };
  const lines: (ReplicationError | undefined)[] = [];
  const serves: Promise<unknown>[] = [];
  const pairs: Pair<AgentMessage, MasterMessage>[] = [];
  const options = {
    store,
    clock,
    events: { emit: (event: EventInput) => void events.push(event) },
    masterVersion: '1',
    assignmentsFor: () => state.assignments,
    knownFor: () => [],
    onReport: (_agent: string, report: Report) => void reports.push(report),
  };
  const master = masterControl(options);
  const agent = agentControl({
    open(signal) {
      const pair = streamPair<AgentMessage, MasterMessage>();
      pairs.push(pair);
      signal.addEventListener('abort', () => pair.client.cancel());
      const served = master.serve('node-a', pair.server, signal).catch((error: unknown) => {
        pair.cut(error as ReplicationError);
        return (error as ReplicationError).code;
      });
      serves.push(served);
      return pair.client;
    },
    hello,
    inventory: async () => state.volumes,
    look: async (path) => ({
      ...volume(path),
      volumeMode: path === '/none' ? '' : 'Block',
      eligible: path !== '/none',
    }),
    log: () => 'a line\n',
    onAssignments: (items) =>
      void state.assigned.push(items.map(({ name, paused }) => (paused ? `${name} paused` : name))),
    onRenew: () => void state.renews++,
    onLine: (error) => void lines.push(error),
    clock: agentClock,
    random: systemRandom,
  });
  const stop = new AbortController();
  const runs: Promise<void>[] = [];
  const run = (): void => void runs.push(agent.run(stop.signal));
  t.teardown(async () => {
    stop.abort();
    await Promise.all([...serves, ...runs]);
    store.close();
  });
  const status = () => store.get('Agent', 'node-a')?.status;
  return {
    run,
    clock,
    agentClock,
    store,
    events,
    reports,
    state,
    lines,
    serves,
    pairs,
    options,
    master,
    agent,
    stop,
    status,
  };
}

t.test('neighbouring protocol versions meet at the newest that both speak, others are refused', async (t) => {
  t.equal(negotiate({ protocolMin: 0, protocolMax: 1 }), 1);
  t.equal(negotiate({ protocolMin: 1, protocolMax: 2 }), 1);
  t.throws(() => negotiate({ protocolMin: 2, protocolMax: 3 }), {
    code: 'VersionMismatch',
    message: /upgrade the master/,
  });
  t.throws(() => negotiate({ protocolMin: 0, protocolMax: 0 }), {
    code: 'VersionMismatch',
    message: /upgrade the agent/,
  });
  t.equal(negotiate({ protocolMin: 2, protocolMax: 3 }, { oldest: 1, newest: 2 }), 2);
  t.equal(negotiate({ protocolMin: 1, protocolMax: 1 }, { oldest: 1, newest: 2 }), 1);
});

t.test('an agent of a version too new is told so, and asks again a minute later', async (t) => {
  const { run, master, lines, clock } = open(t);
  const serve = master.serve.bind(master);
  master.serve = (name, stream, signal) => {
    const next = stream.receive.next.bind(stream.receive);
    stream.receive.next = async () => {
      const first = await next();
      if (first.done !== true && first.value.hello)
        Object.assign(first.value.hello, { protocolMin: 2, protocolMax: 3 });
      return first;
    };
    return serve(name, stream, signal);
  };
  run();
  await until(() => lines.length === 1);
  t.match(lines[0], { code: 'VersionMismatch' });
  await until(() => clock.sleepers.length === 1);
  clock.advance(59_000);
  t.equal(clock.sleepers.length, 1, 'still waiting');
});

t.test(
  'a connected agent is ACTIVE, gets its assignments once the clock is known and whenever they change',
  async (t) => {
    const { agent, run, master, state, status, store, events } = open(t);
    t.throws(() => agent.masterUs(), /not known/);
    run();
    await until(() => state.assigned.length === 1);
    t.ok(agent.masterUs() > 0);
    t.match(status(), { state: 'ACTIVE', version: '1.2', kernel: '6.1', bootId: 'boot', lastSeenTime: /Z$/ });
    t.equal(store.get('Agent', 'node-a')?.spec.role, 'source');
    t.equal(events[0]?.code, 'AgentConnected');
    master.notify('node-a');
    state.assignments = [assignment('u1'), assignment('u2')];
    master.notify('node-a');
    await until(() => state.assigned.length === 2);
    // The very objects changed in place must not hide the change.
    state.assignments[0] = assignment('u1', true);
    master.notify('node-a');
    await until(() => state.assigned.length === 3);
    t.same(state.assigned, [['name-of-u1'], ['name-of-u1', 'name-of-u2'], ['name-of-u1 paused', 'name-of-u2']]);
    master.renew('node-a');
    await until(() => state.renews === 1);
  },
);

t.test(
  'reports are handed on only for assigned replications, the newest of each, and again after a reconnect',
  async (t) => {
    const { agent, run, state, reports, pairs, clock, lines } = open(t);
    agent.report(report('u1', 1));
    run();
    await until(() => state.assigned.length === 1);
    agent.report(report('other', 5));
    for (let done = 1; done <= 100; done++) agent.report(report('u1', done));
    await until(() => reports.at(-1)?.bytesDone === 100);
    t.ok(reports.length < 10, 'older ones were overwritten');
    t.ok(reports.every(({ replicationUid }) => replicationUid === 'u1'));
    const before = reports.length;
    pairs[0]?.cut();
    await until(() => lines.length === 2 && clock.sleepers.length > 0);
    clock.advance(1000);
    await until(() => reports.length > before);
    t.equal(reports.at(-1)?.bytesDone, 100);
  },
);

t.test('a report for what was never assigned to this agent is dropped by the master', async (t) => {
  const { master, reports, state, events } = open(t);
  const pair = streamPair<AgentMessage, MasterMessage>();
  const served = master.serve('node-a', pair.server, new AbortController().signal).catch(() => undefined);
  await pair.client.send({ hello: { ...hello, protocolMin: 1, protocolMax: 1 } });
  await pair.client.receive.next();
  t.match(await pair.client.receive.next(), { value: { assignments: { items: state.assignments } } });
  await pair.client.send({ report: report('stolen') });
  await pair.client.send({ report: report('u1') });
  const event = { code: 'CutRefused', level: 'WARNING', message: 'm', agentUs: 0 };
  await pair.client.send({ event: { ...event, replicationUid: 'stolen' } });
  await pair.client.send({ event: { ...event, replicationUid: 'u1' } });
  await until(() => events.filter(({ code }) => code === 'CutRefused').length === 2);
  t.same(
    reports.map(({ replicationUid }) => replicationUid),
    ['u1'],
  );
  t.same(
    events.slice(1).map(({ object }) => object),
    ['Agent/node-a', 'Replication/name-of-u1'],
  );
  pair.cut();
  await served;
});

t.test('what does not begin with a hello, says it twice or says it too late is refused', async (t) => {
  const { master, clock } = open(t);
  const attempt = async (...messages: AgentMessage[]): Promise<unknown> => {
    const pair = streamPair<AgentMessage, MasterMessage>();
    const served = master.serve('node-a', pair.server, new AbortController().signal).catch((error: unknown) => error);
    for (const message of messages) await pair.client.send(message);
    if (messages.length === 0) {
      await until(() => clock.sleepers.length > 0);
      clock.advance(10_000);
    }
    return served;
  };
  const good = { hello: { ...hello, protocolMin: 1, protocolMax: 1 } };
  t.match(await attempt({ inventory: { volumes: [] } }), { code: 'BadMessage', message: /hello is not the first/ });
  t.match(await attempt(good, good), { code: 'BadMessage', message: /hello came twice/ });
  t.match(await attempt(), { code: 'BadMessage', message: /did not come within/ });
  t.match(await attempt({ hello: { ...good.hello, defaultRole: 'king' } }), {
    code: 'BadMessage',
    message: /default_role/,
  });
  const odd = { ...volume('/x'), volumeMode: 'Tape' };
  t.match(await attempt(good, { inventory: { volumes: [odd] } }), { code: 'BadMessage', message: /volume_mode/ });
});

t.test('an agent is asked what a path is; one that is not there is not waited for', async (t) => {
  const { master, run, state } = open(t);
  t.equal(await master.look('node-a', '/dev/c'), undefined, 'not connected');
  run();
  await until(() => state.assigned.length === 1);
  const asked = ['/dev/c', '/none', '/dev/c'].map((path) => master.look('node-a', path));
  t.match(await Promise.all(asked), [
    { path: '/dev/c', volumeMode: 'Block', eligible: true },
    { path: '/none', eligible: false },
    { path: '/dev/c', eligible: true },
  ]);
});

t.test(
  'an agent tells its log when it is asked; one that does not keep any, or is not there, is not waited for',
  async (t) => {
    const { master, run, state } = open(t);
    t.equal(await master.log('node-a'), undefined, 'not connected');
    run();
    await until(() => state.assigned.length === 1);
    const both = [master.log('node-a'), master.log('node-a')];
    t.strictSame(await Promise.all(both), ['a line\n', 'a line\n']);
    t.equal(await master.log('node-a'), 'a line\n', 'and again');

    const pair = streamPair<AgentMessage, MasterMessage>();
    const served = master.serve('node-a', pair.server, new AbortController().signal).catch(() => undefined);
    await pair.client.send({ hello: { ...hello, protocolMin: 1, protocolMax: 1, tellsLog: false } });
    await pair.client.receive.next();
    t.equal(await master.log('node-a'), undefined, 'an older one would not know the question');
    pair.cut();
    await served;
  },
);

t.test('the inventory is sent when it changed and outlives a restart of the master', async (t) => {
  const { run, master, state, clock, options, store } = open(t);
  run();
  await until(() => master.volumes('node-a').length === 1);
  t.match(master.volumes('node-a'), [{ path: '/dev/a', filesystem: null, csi: null, reason: null }]);
  const tree = { ...volume('/srv'), kind: 'directory', volumeMode: 'Filesystem', sizeBytes: 0 };
  state.volumes = [volume('/dev/a'), { ...volume('/dev/b'), csiDriver: 'd', csiVolume: 'v' }, tree];
  await until(() => {
    clock.advance(1000);
    return master.volumes('node-a').length === 3;
  });
  t.match(master.volumes('node-a')[2], { volumeMode: 'Filesystem', sizeBytes: null }, 'what a tree holds is not known');
  const restarted = masterControl(options);
  t.match(restarted.volumes('node-a')[1], { csi: { driver: 'd', volumeHandle: 'v' } });
  store.delete('Agent', 'node-a');
  t.same(restarted.volumes('node-a'), []);
});

t.test('a second stream of the same agent replaces the first', async (t) => {
  const { run, master, state, serves, events, status } = open(t);
  run();
  await until(() => state.assigned.length === 1);
  const pair = streamPair<AgentMessage, MasterMessage>();
  const second = master.serve('node-a', pair.server, new AbortController().signal).catch(() => undefined);
  await pair.client.send({ hello: { ...hello, protocolMin: 1, protocolMax: 1 } });
  t.equal(await serves[0], 'Stopped');
  t.ok(events.some(({ level, message }) => level === 'WARNING' && message.includes('anew')));
  t.equal(status()?.state, 'ACTIVE');
  t.equal(master.connected('node-a'), true);
  pair.cut();
  await second;
  t.equal(master.connected('node-a'), false);
  t.match(status(), { state: 'CONN FAILED', message: /dials again/ });
});

t.test('pings do not write the store each time; offset and last sight are kept', async (t) => {
  const { run, state, status, clock, agentClock, store } = open(t, { ownClocks: true });
  agentClock.shiftMs = -3_600_000;
  run();
  await until(() => state.assigned.length === 1 && agentClock.sleepers.length >= 2);
  const version = store.version();
  for (let pings = 0; pings < 20; pings++) {
    await until(() => agentClock.sleepers.length >= 2);
    clock.shiftMs += 1000;
    agentClock.advance(5000);
    agentClock.shiftMs -= 4000;
  }
  // Written together with what is seen of the others within half a second.
  await until(() => {
    clock.advance(100);
    return status()?.clockOffsetSeconds !== null;
  });
  t.ok((status()?.clockOffsetSeconds ?? 0) > 3000);
  t.ok(store.version() - version <= 4, `${store.version() - version} writes in 20 seconds`);
});

t.test('events wait while there is no line, at most a thousand, and the loss is told', async (t) => {
  const { agent, run, events } = open(t);
  for (let number = 1; number <= 1500; number++)
    agent.event({ code: 'CaptureChosen', level: 'INFO', replicationUid: '', message: `event ${number}` });
  run();
  const last = (): boolean => events.some(({ message }) => message.startsWith('event 1499'));
  await until(last);
  t.ok(events.some(({ message }) => message === '500 older events were dropped while they could not be sent'));
  t.notOk(events.some(({ message }) => message === 'event 500'));
  t.ok(events.some(({ message }) => message === 'event 501'));
});

t.test('a flood of events is cut off and counted', async (t) => {
  const { master, events, clock } = open(t);
  const pair = streamPair<AgentMessage, MasterMessage>();
  const served = master.serve('node-a', pair.server, new AbortController().signal).catch(() => undefined);
  await pair.client.send({ hello: { ...hello, protocolMin: 1, protocolMax: 1 } });
  const send = (message: string) =>
    pair.client.send({ event: { code: 'CutRefused', level: 'INFO', message, replicationUid: '', agentUs: 0 } });
  for (let number = 0; number < 1500; number++) await send('flood');
  await until(() => events.length > 900);
  clock.shiftMs += 60_000;
  await send('after');
  await until(() => events.some(({ message }) => message === 'after'));
  t.ok(events.length < 1200, `${events.length} of 1500 were taken`);
  t.ok(events.some(({ message }) => /more events than are taken; \d+ were dropped/.test(message)));
  pair.cut();
  await served;
});

t.test('a master that does not answer for 30 s is dialled again', async (t) => {
  const clock = shiftedClock();
  const opened: Pair<AgentMessage, MasterMessage>[] = [];
  const lines: (string | undefined)[] = [];
  const agent = agentControl({
    open(signal) {
      const pair = streamPair<AgentMessage, MasterMessage>(1000);
      opened.push(pair);
      signal.addEventListener('abort', () => pair.client.cancel());
      void pair.server.send({ welcome: { protocol: 1, masterVersion: '1' } }).catch(() => undefined);
      return pair.client;
    },
    hello,
    inventory: async () => [],
    look: () => Promise.reject(new Error('not asked')),
    onAssignments: () => undefined,
    onRenew: () => undefined,
    onLine: (error) => void lines.push(error?.message),
    clock,
    random: systemRandom,
  });
  const stop = new AbortController();
  const running = agent.run(stop.signal);
  await until(() => lines.length === 1);
  await until(() => {
    clock.advance(5000);
    return lines.length >= 2;
  });
  t.match(lines[1], /not answered for 30 s/);
  stop.abort();
  await running;
});

t.test('agents that were ACTIVE when the master stopped are UNKNOWN, then failed unless they come back', async (t) => {
  const { stop, run, state, options, store, clock, events, status, pairs } = open(t);
  run();
  await until(() => state.assigned.length === 1);
  stop.abort();
  pairs[0]?.cut(new ReplicationError('Stopped', 'the master is being stopped'));
  await until(() => status()?.state !== 'ACTIVE');
  const restarted = masterControl(options);
  store.update('Agent', 'node-a', (object) => (object.status.state = 'ACTIVE'));
  const settling = restarted.settle(new AbortController().signal);
  t.match(status(), { state: 'UNKNOWN', message: /restarted/ });
  const before = events.length;
  clock.advance(30_000);
  await settling;
  t.equal(status()?.state, 'CONN FAILED');
  t.equal(events[before]?.code, 'AgentDisconnected');
});
