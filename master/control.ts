/**
 * The master's side of the Control streams: who is connected, what they have, what they shall mirror, how it goes.
 *
 * One loop per connected agent. Guarantees: an agent is sent its assignments at once and whenever they have changed since
 * it was last told, never twice the same; its newest inventory outlives a restart of the master; a report is handed on
 * only for a replication that this agent was told to mirror. A second stream of the same agent replaces the first: a
 * half-open line must not keep a node out. The store is written at most each statusMs per agent, however often it pings.
 * Failure: whatever ends the stream marks the agent CONN FAILED with the reason; the agent dials again by itself.
 * Not here: what the assignments are (assignmentsFor) and what a report means (onReport).
 */
import { isDeepStrictEqual } from 'node:util';
import type { Clock } from '../proto/effects.ts';
import { ReplicationError, asReplicationError } from '../proto/errors.ts';
import { type Stream, bell } from '../proto/stream.ts';
import type {
  AgentEvent,
  AgentHello,
  AgentMessage,
  Assignment,
  MasterMessage,
  Ping,
  ProbeOutcome,
  Report,
  Restore,
} from '../proto/wire.ts';
import { type Volume, protocolOldest, protocolVersion } from '../proto/wire.ts';
import type { EventInput, Events } from './engine.ts';
import { rate } from './rate.ts';
import type { Agent, AgentStatus, AgentVolume } from './resources.ts';
import type { Store } from './store.ts';

const helloMs = 10_000;
const statusMs = 10_000;
const seenTogetherMs = 500;
/** After a start of the master, agents get this long to come back before they count as failed. */
const returnMs = 30_000;
/** A node that does not answer by then (a dead mount) is taken as not knowing. */
const lookMs = 5000;
const maxLooks = 16;
const logMs = 10_000;
/** Longer than an agent waits for an answer. */
const probeMs = 8000;
const maxProbes = 16;
const inventoryTable = 'inventory';

export interface ControlOptions {
  store: Store;
  clock: Clock;
  events: Events;
  masterVersion: string;
  /** All that the agent shall mirror now. Asked again after each notify(). */
  assignmentsFor: (agent: string) => Assignment[];
  /** Uids of all replications that name the agent, mirrored now or not: what it keeps of others may go. */
  knownFor: (agent: string) => string[];
  /** Recovery points that are to be written into volumes of the agent now. */
  restoresFor?: (agent: string) => Restore[];
  onReport: (agent: string, report: Report) => void;
}

export interface Control {
  /** One Control call, to its end. */
  serve(agent: string, stream: Stream<MasterMessage, AgentMessage>, signal: AbortSignal): Promise<void>;
  /** What this agent is told may have changed; absent: of any. Cheap; many at once are one. */
  notify(agent?: string): void;
  /** Asks a connected agent for a new certificate now. */
  renew(agent: string): void;
  /** Newest inventory, also of an agent that is not connected. */
  volumes(agent: string): AgentVolume[];
  /**
   * Asks a connected agent what a path of its node is; with `write` whether a recovery may write that volume now. Undefined: no
   * answer, or an agent that cannot tell.
   */
  look(agent: string, path: string, write?: boolean): Promise<AgentVolume | undefined>;
  /** The newest lines of a connected agent's log, one JSON object each. Undefined: no answer, or an agent that does not tell. */
  log(agent: string): Promise<string | undefined>;
  /** Whether a node answers, as a connected agent sees it. Undefined: no answer, or an agent that cannot tell. */
  probe(agent: string, address: string, port: number): Promise<ProbeOutcome | undefined>;
  connected(agent: string): boolean;
  /** When the agent was heard last, on the monotonic clock; undefined: not since this master started. */
  heardMs(agent: string): number | undefined;
  /** Root folder of its node's kubelet, as a connected agent has told it. */
  kubelet(agent: string): string | undefined;
  /** Settles the states left over from the last run; ends after returnMs or when the signal aborts. */
  settle(signal: AbortSignal): Promise<void>;
}

/**
 * The newest protocol that both sides speak.
 * @throws ReplicationError VersionMismatch
 */
export function negotiate(
  { protocolMin, protocolMax }: Pick<AgentHello, 'protocolMin' | 'protocolMax'>,
  ours = { oldest: protocolOldest, newest: protocolVersion },
): number {
  const protocol = Math.min(protocolMax, ours.newest);
  if (protocol >= Math.max(protocolMin, ours.oldest)) return protocol;
  const older = protocolMax < ours.oldest ? 'agent' : 'master';
  throw new ReplicationError(
    'VersionMismatch',
    `the agent speaks protocol ${protocolMin} to ${protocolMax}, the master ${ours.oldest} to ${ours.newest}; upgrade the ${older}`,
  );
}

interface Session {
  ring(): void;
  end(error: ReplicationError): void;
  renew: boolean;
  /** Paths that were asked for (see lookKey), and whether the agent was told of it. */
  looks: Map<
    string,
    { path: string; write: boolean; sent: boolean; answered: PromiseWithResolvers<AgentVolume | undefined> }
  >;
  /** Whoever asks while an answer is awaited gets that one too. */
  log: { sent: boolean; answered: PromiseWithResolvers<string | undefined> } | undefined;
  probes: Map<
    number,
    { address: string; port: number; sent: boolean; answered: PromiseWithResolvers<ProbeOutcome | undefined> }
  >;
  tellsLog: boolean;
  kubelet: string;
}

export function control(options: ControlOptions): Control {
  const { store, clock, events } = options;
  const sessions = new Map<string, Session>();
  const heard = new Map<string, number>();
  let probeNumber = 0;
  const eventRate = rate(1000, 5);
  const droppedEvents = new Map<string, number>();

  const nowText = (): string => new Date(clock.nowMs()).toISOString();
  const tell = (agent: string, code: string, level: EventInput['level'], message: string): void =>
    events.emit({ code, level, message, object: `Agent/${agent}` });
  /** A revoked agent has no object any more. */
  function setStatus(agent: string, status: Partial<AgentStatus>, change?: (object: Agent) => void): void {
    if (store.get('Agent', agent) === undefined) return;
    store.update('Agent', agent, (object) => {
      Object.assign(object.status, status);
      change?.(object);
    });
  }

  /** Of all agents in one step of the store: hundreds ping within the time that one durable write takes. */
  const lately = new Map<string, Pick<AgentStatus, 'lastSeenTime' | 'clockOffsetSeconds'>>();
  function seen(agent: string, status: Pick<AgentStatus, 'lastSeenTime' | 'clockOffsetSeconds'>, over: AbortSignal) {
    lately.set(agent, status);
    if (lately.size > 1) return;
    const write = (): void => {
      const told = [...lately];
      lately.clear();
      store.batch(() => told.forEach(([name, status]) => setStatus(name, status)));
    };
    // Who is not written down is seen again soon; whatever bars it is told by those whose writes matter.
    void clock
      .sleep(seenTogetherMs, over)
      .catch(() => undefined)
      .then(write)
      .catch(() => undefined);
  }

  function connectedNow(agent: string, hello: AgentHello): void {
    const role = hello.defaultRole;
    if (role !== 'source' && role !== 'target')
      throw new ReplicationError('BadMessage', 'AgentHello.default_role is neither source nor target');
    const status: Partial<AgentStatus> = {
      state: 'ACTIVE',
      message: 'connected',
      version: hello.agentVersion.slice(0, 64),
      kernel: hello.kernel.slice(0, 128),
      bootId: hello.bootId.slice(0, 64),
      lastSeenTime: nowText(),
    };
    setStatus(agent, status, (object) => (object.spec.role = role));
    tell(agent, 'AgentConnected', 'INFO', `${agent} is connected, version ${status.version ?? ''}`);
  }

  function disconnectedNow(agent: string, error: ReplicationError): void {
    if (error.code === 'Stopped') {
      setStatus(agent, { state: 'UNKNOWN', message: 'the master was stopped' });
      return;
    }
    const message = `not connected: ${error.message}; the agent dials again by itself`;
    setStatus(agent, { state: 'CONN FAILED', message });
    tell(agent, 'AgentDisconnected', 'WARNING', message);
  }

  function keepInventory(agent: string, volumes: Volume[]): void {
    const text = JSON.stringify(volumes.map(viewOf));
    if (store.getRecord(inventoryTable, agent) !== text) store.putRecord(inventoryTable, agent, text);
  }

  function passOn(agent: string, event: AgentEvent, replication: string | undefined): void {
    if (!eventRate.take(agent, clock.nowMs())) {
      droppedEvents.set(agent, (droppedEvents.get(agent) ?? 0) + 1);
      return;
    }
    const dropped = droppedEvents.get(agent);
    droppedEvents.delete(agent);
    if (dropped !== undefined)
      tell(agent, 'AgentEvent', 'WARNING', `${agent} sent more events than are taken; ${dropped} were dropped`);
    const { code, message } = event;
    const object = replication === undefined ? `Agent/${agent}` : `Replication/${replication}`;
    events.emit({ code, level: event.level as EventInput['level'], message, object });
  }

  /** Undefined when there is no answer by then. */
  async function within<T>(ms: number, answer: Promise<T | undefined>): Promise<T | undefined> {
    const done = new AbortController();
    const late = clock.sleep(ms, done.signal).then(
      () => undefined,
      () => undefined,
    );
    return Promise.race([answer, late]).finally(() => done.abort());
  }

  /** The loop of one agent after its hello. Throws what ended it. */
  async function converse(
    agent: string,
    stream: Stream<MasterMessage, AgentMessage>,
    session: Session,
    rung: () => Promise<void>,
    over: AbortSignal,
  ): Promise<void> {
    /** Names by uid of what the agent was told last and before: a report may be under way while the list changes. */
    let told: { items: Assignment[]; known: string[]; restores: Restore[] } | undefined;
    let names = new Map<string, string>();
    let statusAtMs = clock.monotonicMs();

    async function pushing(): Promise<void> {
      while (!over.aborted) {
        const waiting = rung();
        const items = options.assignmentsFor(agent);
        const known = options.knownFor(agent);
        const restores = options.restoresFor?.(agent) ?? [];
        if (!isDeepStrictEqual({ items, known, restores }, told)) {
          names = new Map([...(told?.items ?? []), ...items].map(({ replicationUid, name }) => [replicationUid, name]));
          told = structuredClone({ items, known, restores });
          await stream.send({ assignments: { items, known, knownComplete: true, restores } });
        }
        if (session.renew) {
          session.renew = false;
          await stream.send({ renew: {} });
        }
        for (const one of session.looks.values()) {
          const { path, write } = one;
          if (!one.sent) await stream.send({ look: { path, write } });
          one.sent = true;
        }
        for (const [number, one] of session.probes) {
          const { address, port } = one;
          if (!one.sent) await stream.send({ probe: { number, address, port } });
          one.sent = true;
        }
        if (session.log?.sent === false) {
          session.log.sent = true;
          await stream.send({ logRequest: {} });
        }
        await waiting;
      }
    }

    async function pong({ number, agentUs, offsetUs }: Ping): Promise<void> {
      const receivedUs = microseconds(clock);
      if (clock.monotonicMs() - statusAtMs >= statusMs) {
        statusAtMs = clock.monotonicMs();
        seen(agent, { lastSeenTime: nowText(), clockOffsetSeconds: Math.round(offsetUs / 1000) / 1000 }, over);
      }
      const masterSentUs = microseconds(clock);
      await stream.send({ pong: { number, agentUs, masterReceivedUs: receivedUs, masterSentUs } });
    }

    async function receiving(): Promise<void> {
      for await (const { ping, inventory, report, event, hello, looked, log, probed } of stream.receive) {
        heard.set(agent, clock.monotonicMs());
        if (ping !== undefined) await pong(ping);
        if (inventory !== undefined) keepInventory(agent, inventory.volumes);
        if (looked !== undefined) answer(session, looked);
        if (log !== undefined) session.log?.answered.resolve(log.text);
        if (probed !== undefined) session.probes.get(probed.number)?.answered.resolve(probed.outcome);
        if (report !== undefined && names.has(report.replicationUid)) options.onReport(agent, report);
        if (event !== undefined) passOn(agent, event, names.get(event.replicationUid));
        if (hello !== undefined) throw new ReplicationError('BadMessage', 'AgentMessage.hello came twice');
      }
      throw new ReplicationError('Disconnected', 'the agent ended the call');
    }

    await Promise.race([receiving(), pushing(), rejected(over)]);
  }

  return {
    async serve(agent, stream, signal) {
      const hello = await firstHello(stream, clock, signal);
      const protocol = negotiate(hello);
      const { rung, ring } = bell();
      const ending = new AbortController();
      const session: Session = {
        ring,
        renew: false,
        looks: new Map(),
        probes: new Map(),
        log: undefined,
        tellsLog: hello.tellsLog,
        kubelet: hello.kubelet,
        end: (error) => ending.abort(error),
      };
      const before = sessions.get(agent);
      sessions.set(agent, session);
      if (before !== undefined) {
        before.end(new ReplicationError('Stopped', 'the same agent has connected anew'));
        tell(
          agent,
          'AgentConnected',
          'WARNING',
          `${agent} connected anew while still connected; the old line is closed`,
        );
      }
      const over = AbortSignal.any([signal, ending.signal]);
      try {
        connectedNow(agent, hello);
        heard.set(agent, clock.monotonicMs());
        await stream.send({ welcome: { protocol, masterVersion: options.masterVersion } });
        await converse(agent, stream, session, rung, over);
      } catch (thrown) {
        const error = asReplicationError(thrown);
        if (sessions.get(agent) === session) {
          sessions.delete(agent);
          disconnectedNow(agent, error);
        }
        throw error;
      } finally {
        ending.abort();
        ring();
        for (const { answered } of session.looks.values()) answered.resolve(undefined);
        for (const { answered } of session.probes.values()) answered.resolve(undefined);
        session.log?.answered.resolve(undefined);
      }
    },
    notify(agent) {
      if (agent !== undefined) return sessions.get(agent)?.ring();
      for (const session of sessions.values()) session.ring();
    },
    renew(agent) {
      const session = sessions.get(agent);
      if (session === undefined) return;
      session.renew = true;
      session.ring();
    },
    volumes(agent) {
      const text = store.get('Agent', agent) === undefined ? undefined : store.getRecord(inventoryTable, agent);
      return text === undefined ? [] : (JSON.parse(text) as AgentVolume[]);
    },
    async look(agent, path, write = false) {
      const session = sessions.get(agent);
      if (session === undefined || session.looks.size >= maxLooks) return undefined;
      const key = lookKey({ path, write });
      const one = session.looks.get(key) ?? { path, write, sent: false, answered: Promise.withResolvers() };
      session.looks.set(key, one);
      session.ring();
      return within(lookMs, one.answered.promise).finally(() => session.looks.delete(key));
    },
    async log(agent) {
      const session = sessions.get(agent);
      if (session?.tellsLog !== true) return undefined;
      const one = (session.log ??= { sent: false, answered: Promise.withResolvers() });
      session.ring();
      return within(logMs, one.answered.promise).finally(() => {
        if (session.log === one) session.log = undefined;
      });
    },
    async probe(agent, address, port) {
      const session = sessions.get(agent);
      if (session === undefined || session.probes.size >= maxProbes) return undefined;
      const number = ++probeNumber;
      const one = { address, port, sent: false, answered: Promise.withResolvers<ProbeOutcome | undefined>() };
      session.probes.set(number, one);
      session.ring();
      return within(probeMs, one.answered.promise).finally(() => session.probes.delete(number));
    },
    connected: (agent) => sessions.has(agent),
    heardMs: (agent) => heard.get(agent),
    kubelet: (agent) => sessions.get(agent)?.kubelet || undefined,
    async settle(signal) {
      const absent = (): string[] =>
        store
          .list('Agent')
          .filter(({ status }) => status.state === 'ACTIVE' || status.state === 'UNKNOWN')
          .map(({ metadata }) => metadata.name)
          .filter((agent) => !sessions.has(agent));
      for (const agent of absent())
        setStatus(agent, {
          state: 'UNKNOWN',
          message: 'the master was restarted; waiting for the agent to dial again',
        });
      await clock.sleep(returnMs, signal).catch(() => undefined);
      if (signal.aborted) return;
      for (const agent of absent())
        disconnectedNow(
          agent,
          new ReplicationError('Disconnected', 'it has not come back since the master was restarted'),
        );
    },
  };
}

/** Of a path where nothing is the mode is not known; it is not eligible either, so nobody reads its mode. */
function answer({ looks }: Session, looked: Volume): void {
  const { eligible, volumeMode } = looked;
  const known = eligible || volumeMode !== '' ? looked : { ...looked, volumeMode: 'Filesystem' };
  looks.get(lookKey(looked))?.answered.resolve(viewOf(known));
}

function lookKey({ path, write }: { path: string; write: boolean }): string {
  return `${write ? 'write' : 'read'} ${path}`;
}

async function firstHello(
  stream: Stream<MasterMessage, AgentMessage>,
  clock: Clock,
  signal: AbortSignal,
): Promise<AgentHello> {
  const done = new AbortController();
  const late = async (): Promise<never> => {
    await clock.sleep(helloMs, AbortSignal.any([signal, done.signal]));
    throw new ReplicationError('BadMessage', `AgentMessage.hello did not come within ${helloMs / 1000} s`);
  };
  try {
    const first = await Promise.race([stream.receive.next(), late()]);
    if (first.done === true) throw new ReplicationError('Disconnected', 'the agent ended the call');
    if (first.value.hello === undefined)
      throw new ReplicationError('BadMessage', 'AgentMessage.hello is not the first message');
    return first.value.hello;
  } finally {
    done.abort();
  }
}

/** Rejects with the signal's reason. */
function rejected(signal: AbortSignal): Promise<never> {
  return new Promise((_resolve, reject) => {
    const stop = (): void => reject(asReplicationError(signal.reason, 'Stopped'));
    if (signal.aborted) stop();
    else signal.addEventListener('abort', stop, { once: true });
  });
}

function microseconds(clock: Clock): number {
  return Math.round(clock.nowMs() * 1000);
}

function viewOf(volume: Volume): AgentVolume {
  const { volumeMode } = volume;
  if (volumeMode !== 'Block' && volumeMode !== 'Filesystem')
    throw new ReplicationError('BadMessage', 'Volume.volume_mode is neither Block nor Filesystem');
  return {
    path: volume.path,
    kind: volume.kind,
    volumeMode,
    // Nobody adds up a tree to list it.
    sizeBytes: volumeMode === 'Filesystem' && volume.sizeBytes === 0 ? null : volume.sizeBytes,
    filesystem: volume.filesystem || null,
    filesystemId: volume.filesystemId || null,
    mountPoint: volume.mountPoint || null,
    csi:
      volume.csiVolume === ''
        ? null
        : {
            driver: volume.csiDriver,
            volumeHandle: volume.csiVolume,
            persistentVolume: volume.persistentVolume,
            podUid: volume.podUid,
            claim: volume.claim || null,
          },
    eligible: volume.eligible,
    reason: volume.reason || null,
  };
}
