/**
 * The agent's side of the Control stream: dials the master, again and again, tells what there is and how it goes, and
 * learns what to mirror and what time it is.
 *
 * Guarantees: assignments are handed on only once the master's clock is known, so whoever works on one can map instants.
 * Of each replication the newest report is sent, after a reconnect again, as the master may have restarted; older ones
 * are overwritten. At most maxEvents events wait; the oldest go first and are counted. masterUs is never later than the
 * truth, and does not jump when the node's wall clock is set: the agent's clock here is the monotonic one.
 * Failure: a line that ends, or a master that does not answer for silenceMs, is dialled again after a growing pause; a
 * refusal that needs a person is looked at again once a minute. Assignments stay in force meanwhile.
 */
import assert from 'node:assert/strict';
import { isDeepStrictEqual } from 'node:util';
import { backoff } from '../proto/backoff.ts';
import { clockOffset } from '../proto/clockoffset.ts';
import type { Clock, Random } from '../proto/effects.ts';
import { ReplicationError, asReplicationError, messageOf } from '../proto/errors.ts';
import { type Stream, bell } from '../proto/stream.ts';
import type {
  AgentEvent,
  AgentHello,
  AgentMessage,
  Assignment,
  Assignments,
  MasterMessage,
  Pong,
  Probe,
  Probed,
  Report,
  Restore,
} from '../proto/wire.ts';
import { type Volume, protocolOldest, protocolVersion } from '../proto/wire.ts';

const pingMs = 5000;
const quickPings = 5;
const silenceMs = 30_000;
const rescanMs = 30_000;
const personMs = 60_000;
/** A line that lived this long was a good one: the next pause is short again. */
const goodMs = 10_000;
const maxEvents = 1000;
/** What fits a message many times over. */
const maxVolumes = 5000;
const maxLooks = 16;
const maxProbes = 16;

export interface ControlOptions {
  /** Opens the call; the signal ends it. */
  open: (signal: AbortSignal) => Stream<AgentMessage, MasterMessage>;
  hello: Pick<AgentHello, 'agentVersion' | 'bootId' | 'defaultRole' | 'kernel' | 'kubelet'>;
  /** Asked at each connect and every 30 s, one at a time; sent when it changed. */
  inventory: () => Promise<Volume[]>;
  /** One path as a volume, whatever it is. */
  look: (path: string, write: boolean) => Promise<Volume>;
  /** Whether something answers at an address. Absent: the master is not answered. */
  probe?: (address: string, port: number) => Promise<Omit<Probed, 'number'>>;
  /** The newest lines of the log, at most 512 KiB. Absent: none are kept, and the master does not ask. */
  log?: () => string;
  /** The whole list, whenever the master sent one: what is not in it stops. */
  onAssignments: (items: Assignment[]) => void;
  /** Recovery points to be written into volumes of this node, the whole list, after onAssignments. */
  onRestores?: (restores: Restore[]) => void;
  /** Uids of all replications that the master knows to name this agent, after onAssignments. */
  onKnown?: (uids: string[]) => void;
  /** The master wants the certificate renewed now. */
  onRenew: () => void;
  /** For the log: undefined = connected, else why not. */
  onLine?: (error: ReplicationError | undefined) => void;
  clock: Clock;
  random: Random;
}

export interface Control {
  /** Until the signal aborts; never throws. */
  run(signal: AbortSignal): Promise<void>;
  /** Only of an assigned replication; others are of no interest any more. */
  report(report: Report): void;
  event(event: Omit<AgentEvent, 'agentUs'>): void;
  connected(): boolean;
  /** Newest that both sides speak, as of the newest line; our own newest before there was one. */
  protocol(): number;
  /** A steady clock of this process, close to the wall clock at its start. */
  agentUs(): number;
  /** The master's clock at that instant of agentUs (default: now), never later than the truth. Known since the first assignments. */
  masterUs(agentUs?: number): number;
}

export function control(options: ControlOptions): Control {
  const { clock, random } = options;
  const startUs = Math.round((clock.nowMs() - clock.monotonicMs()) * 1000);
  const agentUs = (): number => startUs + Math.round(clock.monotonicMs() * 1000);
  const offset = clockOffset();
  const { rung, ring } = bell();
  /** Newest report of each assigned replication, and which of them the master does not have. */
  const reports = new Map<string, Report>();
  const unsent = new Set<string>();
  let assigned = new Set<string>();
  const events: AgentEvent[] = [];
  let droppedEvents = 0;
  let scan: Promise<Volume[]> | undefined;
  let line: Stream<AgentMessage, MasterMessage> | undefined;
  let agreed = protocolVersion;
  let pingNumber = 0;

  function assign({ items, known, knownComplete, restores }: Assignments): void {
    assigned = new Set(items.map(({ replicationUid }) => replicationUid));
    for (const uid of reports.keys()) {
      if (assigned.has(uid)) continue;
      reports.delete(uid);
      unsent.delete(uid);
    }
    options.onAssignments(items);
    options.onRestores?.(restores);
    if (knownComplete) options.onKnown?.(known);
  }

  function event(event: Omit<AgentEvent, 'agentUs'>): void {
    events.push({ ...event, message: event.message.slice(0, 4096), agentUs: agentUs() });
    if (events.length > maxEvents) {
      events.shift();
      droppedEvents++;
    }
    ring();
  }

  /** One that hangs (a dead mount) must not be joined by more and more others. */
  function rescan(): Promise<Volume[]> {
    scan ??= options.inventory().finally(() => (scan = undefined));
    return scan;
  }

  /** One line from hello to its end; throws what ended it. */
  async function converse(stream: Stream<AgentMessage, MasterMessage>, over: AbortSignal): Promise<void> {
    let ping = { number: 0, sentUs: 0 };
    let lastPongUs = agentUs();
    const answers = bell();
    let waiting: Assignments | undefined;
    let inventory: Volume[] | undefined;
    let looks = 0;
    const looked: Volume[] = [];
    let logAsked = false;
    let probes = 0;
    const probed: Probed[] = [];

    function hear({ number, masterReceivedUs, masterSentUs }: Pong): void {
      if (number !== ping.number) return;
      const agentReceivedUs = agentUs();
      lastPongUs = agentReceivedUs;
      offset.add({ agentSentUs: ping.sentUs, masterReceivedUs, masterSentUs, agentReceivedUs });
      answers.ring();
    }

    /** What cannot be described is not answered: the master does not wait for ever. */
    async function look({ path, write }: { path: string; write: boolean }): Promise<void> {
      if (looks >= maxLooks) return;
      looks++;
      try {
        looked.push(await options.look(path, write));
        ring();
      } catch {
        looks--;
      }
    }

    async function probe({ number, address, port }: Probe): Promise<void> {
      if (probes >= maxProbes || !options.probe) return;
      probes++;
      probed.push({ number, ...(await options.probe(address, port)) });
      ring();
    }

    async function receiving(): Promise<void> {
      for await (const { pong, assignments, renew, welcome, look: asked, logRequest, probe: reach } of stream.receive) {
        if (pong !== undefined) hear(pong);
        if (assignments !== undefined) waiting = assignments;
        if (renew !== undefined) options.onRenew();
        if (asked !== undefined) void look(asked);
        if (logRequest !== undefined) logAsked = true;
        if (reach !== undefined) void probe(reach);
        if (welcome !== undefined) throw new ReplicationError('BadMessage', 'MasterMessage.welcome came twice');
        if (waiting !== undefined && offset.at(agentUs()) !== undefined) {
          assign(waiting);
          waiting = undefined;
        }
        ring();
      }
      throw new ReplicationError('Disconnected', 'the master ended the call');
    }

    async function pinging(): Promise<void> {
      for (let count = 0; !over.aborted; count++) {
        if (agentUs() - lastPongUs > silenceMs * 1000)
          throw new ReplicationError('Disconnected', `the master has not answered for ${silenceMs / 1000} s`);
        const sentUs = agentUs();
        const now = offset.at(sentUs) ?? { offsetUs: 0, errorUs: 0 };
        ping = { number: ++pingNumber, sentUs };
        await stream.send({
          ping: {
            number: ping.number,
            agentUs: sentUs,
            offsetUs: Math.round(now.offsetUs),
            errorUs: Math.round(now.errorUs),
          },
        });
        // The first ones as fast as they are answered: work waits for the clock.
        const answered = answers.rung();
        const pause = clock.sleep(pingMs, over);
        await (count < quickPings ? Promise.race([answered, pause]) : pause);
      }
    }

    async function sending(): Promise<void> {
      while (!over.aborted) {
        const news = rung();
        const uid = unsent.values().next().value;
        const report = uid === undefined ? undefined : reports.get(uid);
        if (inventory !== undefined) {
          const volumes = inventory;
          inventory = undefined;
          await stream.send({ inventory: { volumes } });
        } else if (looked[0] !== undefined) {
          looks--;
          await stream.send({ looked: looked.shift() as Volume });
        } else if (probed[0] !== undefined) {
          probes--;
          await stream.send({ probed: probed.shift() as Probed });
        } else if (logAsked) {
          logAsked = false;
          await stream.send({ log: { text: options.log?.() ?? '' } });
        } else if (uid !== undefined && report !== undefined) {
          unsent.delete(uid);
          await stream.send({ report });
        } else if (droppedEvents > 0) {
          const message = `${droppedEvents} older events were dropped while they could not be sent`;
          droppedEvents = 0;
          await stream.send({
            event: { code: 'AgentEvent', level: 'WARNING', replicationUid: '', message, agentUs: agentUs() },
          });
        } else if (events[0] !== undefined) {
          const event = events[0];
          await stream.send({ event });
          // It may have been dropped meanwhile.
          if (events[0] === event) events.shift();
        } else await news;
      }
    }

    async function scanning(): Promise<void> {
      let sent: Volume[] | undefined;
      while (!over.aborted) {
        const found = await rescan().then(
          (volumes) => volumes.slice(0, maxVolumes),
          (error: unknown) => {
            const message = `the volumes of this node could not be listed: ${messageOf(error)}`;
            event({ code: 'AgentEvent', level: 'WARNING', replicationUid: '', message });
            return sent;
          },
        );
        if (found !== undefined && !isDeepStrictEqual(found, sent)) {
          sent = found;
          inventory = found;
          ring();
        }
        await clock.sleep(rescanMs, over);
      }
    }

    const ours = { protocolMin: protocolOldest, protocolMax: protocolVersion, tellsLog: options.log !== undefined };
    await stream.send({ hello: { ...options.hello, ...ours } });
    const first = await stream.receive.next();
    const protocol = first.done === true ? undefined : first.value.welcome?.protocol;
    if (protocol === undefined)
      throw new ReplicationError('BadMessage', 'MasterMessage.welcome is not the first message');
    if (protocol < protocolOldest || protocol > protocolVersion)
      throw new ReplicationError('VersionMismatch', `the master chose protocol ${protocol}, which was not offered`);
    line = stream;
    agreed = protocol;
    for (const uid of reports.keys()) unsent.add(uid);
    options.onLine?.(undefined);
    await Promise.race([receiving(), pinging(), sending(), scanning()]);
  }

  return {
    async run(signal) {
      const pause = backoff(250, 10_000, random);
      while (!signal.aborted) {
        const ending = new AbortController();
        const over = AbortSignal.any([signal, ending.signal]);
        const sinceMs = clock.monotonicMs();
        let error: ReplicationError | undefined;
        try {
          await converse(options.open(over), over);
        } catch (thrown) {
          error = asReplicationError(thrown);
        } finally {
          line = undefined;
          ending.abort(new ReplicationError('Stopped', 'the line is over'));
          ring();
        }
        if (signal.aborted) return;
        options.onLine?.(error);
        if (clock.monotonicMs() - sinceMs > goodMs) pause.reset();
        const waitMs = error?.retry === 'never' ? personMs : pause.nextMs();
        await clock.sleep(waitMs, signal).catch(() => undefined);
      }
    },
    report(report) {
      if (!assigned.has(report.replicationUid)) return;
      reports.set(report.replicationUid, report);
      unsent.add(report.replicationUid);
      ring();
    },
    event,
    connected: () => line !== undefined,
    protocol: () => agreed,
    agentUs,
    masterUs(at = agentUs()) {
      const masterUs = offset.toMasterUs(at);
      assert(masterUs !== undefined, "the master's clock is not known before the first assignments");
      return masterUs;
    },
  };
}
