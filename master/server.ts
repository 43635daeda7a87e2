/**
 * The master's gRPC server: who may call, and what becomes of their calls.
 *
 * Guarantees: TLS 1.3 always. A client certificate is optional in TLS, because Join comes without one; every other call
 * is refused as NotAuthenticated unless the certificate shown is signed by our CA, not expired by our clock, and
 * registered for an Agent object in the store. Deleting that object (or a re-join) therefore revokes at once and ends
 * the agent's open calls. Join attempts that fail are limited per address. A failing handler fails its call only.
 * Small flow-control windows (master/listener.ts) are no failure: everything works but slowly, and an event says so.
 */
import * as grpc from '@grpc/grpc-js';
import { X509Certificate } from 'node:crypto';
import type { ServerHttp2Session } from 'node:http2';
import type { TLSSocket } from 'node:tls';
import { fingerprintOf } from '../proto/certificate.ts';
import type { Clock } from '../proto/effects.ts';
import { ReplicationError, asReplicationError, messageOf, systemErrorCode } from '../proto/errors.ts';
import type { ServerDuplex } from '../proto/rpc.ts';
import { callIdOf, maxFrameBytes, refuse, serve, serverOptions, service, toStatus, windowBytes } from '../proto/rpc.ts';
import { ServerCall } from '../proto/bulkcall.ts';
import type { Stream } from '../proto/stream.ts';
import type {
  AgentMessage,
  JoinReply,
  MasterMessage,
  Messages,
  MirrorReply,
  MirrorRequest,
  SnapshotReply,
  SnapshotRequest,
} from '../proto/wire.ts';
import { decode, encode } from '../proto/wire.ts';
import type { Authority } from './authority.ts';
import type { Events } from './engine.ts';
import { admit, registrationOf, replyOf } from './join.ts';
import { OptionalClientCertificate, type Windows, bind, http2Servers, measureWindows, takeOver } from './listener.ts';
import { rate } from './rate.ts';
import type { Store } from './store.ts';

/** Calls of a connection without a certificate, which can only join. */
const maxStrangerStreams = 4;
const strangerMs = 60_000;
/** What a call that was ended may take to hear why, before its connection is closed. */
const farewellMs = 1000;
const refreshMs = 6 * 3_600_000;
/** Certificates good for one agent at a time: the one in use, and newer ones it may have failed to store. */
const maxCertificates = 4;

export interface ServerOptions {
  store: Store;
  authority: Authority;
  clock: Clock;
  events: Events;
  /** HOST:PORT; port 0 picks a free one. */
  listen: string;
  /** Each gets its agent's name, already proven. The signal aborts when the line is down or the call must end. */
  mirror: (agent: string, stream: Stream<MirrorReply, MirrorRequest>, signal: AbortSignal) => Promise<void>;
  snapshots: (agent: string, stream: Stream<SnapshotReply, SnapshotRequest>, signal: AbortSignal) => Promise<void>;
  restore: (agent: string, stream: Stream<MirrorRequest, MirrorReply>, signal: AbortSignal) => Promise<void>;
  control: (agent: string, stream: Stream<MasterMessage, AgentMessage>, signal: AbortSignal) => Promise<void>;
  /** A call of an agent begins; what is answered is told how it ended, e.g. OK, Disconnected. */
  onCall?: (call: { method: string; agent: string; id: string; address: string }) => (code: string) => void;
}

export interface Server {
  readonly port: number;
  /** As a peer sees them; windowBytes each when all is well. */
  readonly windows: Windows;
  /** Ends all calls of the agent and its connections. */
  disconnect(agent: string, why?: string): void;
  /** How the agent was seen last; undefined: never, by this process. */
  lineOf(agent: string): Line | undefined;
  /** Ends all calls, waits for their handlers, closes the port. */
  close(): Promise<void>;
}

export interface Line {
  /** The IP address that it dialled from. */
  address: string;
  /** The other end closed its newest connection; false: it is open, or fell silent. */
  closedByPeer: boolean;
}

interface Peer {
  line: Line;
  session: ServerHttp2Session;
  certificateDer: Buffer | undefined;
}

export async function startServer(options: ServerOptions): Promise<Server> {
  const { store, authority, clock, events } = options;
  const server = new grpc.Server(serverOptions);
  const credentials = new OptionalClientCertificate(authority);
  /** By remote address:port, as grpc-js names the peer of a call. */
  const peers = new Map<string, Peer>();
  const lines = new Map<string, Line>();
  /** Open streams by agent. */
  const calls = new Map<string, Set<AbortController>>();
  const running = new Set<Promise<void>>();
  const closing = new AbortController();
  const joinFaults = rate(10, 1 / 6);
  const refusalEvents = rate(10, 1 / 6);

  function authenticate(peer: string): { agent: string; fingerprint: string } {
    try {
      return identify(peers.get(peer)?.certificateDer, authority, store, clock.nowMs());
    } catch (error) {
      if (refusalEvents.take(addressOf(peer), clock.nowMs()))
        events.emit({
          code: 'AgentRefused',
          level: 'WARNING',
          message: `${addressOf(peer)}: ${messageOf(error)}`,
          object: null,
        });
      throw error;
    }
  }

  async function stream<O extends keyof Messages, I extends keyof Messages>(
    method: string,
    call: ServerDuplex,
    kinds: readonly [O, I],
    handler: (agent: string, stream: Stream<Messages[O], Messages[I]>, signal: AbortSignal) => Promise<void>,
  ): Promise<void> {
    let agent: string;
    try {
      closing.signal.throwIfAborted();
      ({ agent } = authenticate(call.getPeer()));
    } catch (error) {
      refuse(call, error);
      return;
    }
    const line = peers.get(call.getPeer())?.line;
    if (line) lines.set(agent, line);
    const ending = new AbortController();
    const open = calls.get(agent) ?? new Set();
    calls.set(agent, open.add(ending));
    const address = addressOf(call.getPeer());
    const ended = options.onCall?.({ method, agent, id: callIdOf(call), address });
    const told = async (stream: Stream<Messages[O], Messages[I]>, signal: AbortSignal): Promise<void> => {
      try {
        await handler(agent, stream, signal);
        ended?.('OK');
      } catch (error) {
        ended?.(asReplicationError(error).code);
        throw error;
      }
    };
    await serve(call, kinds, told, ending.signal);
    open.delete(ending);
    if (open.size === 0 && calls.get(agent) === open) calls.delete(agent);
  }

  /** Fits grpc-js's handlers, which do not wait. */
  function track(work: Promise<void>): void {
    const done = work.finally(() => running.delete(done));
    running.add(done);
  }

  function unary(work: (call: grpc.ServerUnaryCall<Buffer, Buffer>) => Promise<JoinReply>) {
    return (call: grpc.ServerUnaryCall<Buffer, Buffer>, callback: grpc.sendUnaryData<Buffer>): void =>
      track(
        work(call).then(
          (reply) => callback(null, encode('JoinReply', reply)),
          (error: unknown) => callback(toStatus(error)),
        ),
      );
  }

  async function join(call: grpc.ServerUnaryCall<Buffer, Buffer>): Promise<JoinReply> {
    const address = addressOf(call.getPeer());
    if (!joinFaults.allows(address, clock.nowMs()))
      throw new ReplicationError('JoinRefused', `too many failed attempts to join from ${address}; wait a minute`);
    try {
      const request = decode('JoinRequest', call.request);
      const { issued, replaced } = await admit(request, authority, store, clock);
      await authority.publishToken().catch((error: unknown) =>
        events.emit({
          code: 'MasterTrouble',
          level: 'ERROR',
          message: `join.token could not be written, it holds a used token: ${messageOf(error)}`,
          object: null,
        }),
      );
      if (replaced) disconnect(request.name, 'this node joined again with a newer certificate');
      events.emit({
        code: replaced ? 'AgentReplaced' : 'AgentJoined',
        level: 'INFO',
        message: `${request.name} joined from ${address}`,
        object: `Agent/${request.name}`,
      });
      return replyOf(issued, authority);
    } catch (error) {
      if (joinFaults.take(address, clock.nowMs()))
        events.emit({
          code: 'AgentRefused',
          level: 'WARNING',
          message: `${address}: ${messageOf(error)}`,
          object: null,
        });
      throw error;
    }
  }

  async function renew(call: grpc.ServerUnaryCall<Buffer, Buffer>): Promise<JoinReply> {
    const { agent, fingerprint } = authenticate(call.getPeer());
    const { csrDer } = decode('RenewRequest', call.request);
    const issued = await authority.sign(csrDer, agent);
    // Again: it may have been revoked meanwhile.
    authenticate(call.getPeer());
    store.update('Agent', agent, (object) => {
      const good = object.identity.certificates.filter(({ notAfter }) => Date.parse(notAfter) > clock.nowMs());
      const inUse = good.filter((one) => one.fingerprint === fingerprint);
      const others = good.filter((one) => one.fingerprint !== fingerprint).slice(-(maxCertificates - 2));
      object.identity.certificates = [...inUse, ...others, registrationOf(issued)];
      object.status.certificateExpiryTime = new Date(issued.notAfterMs).toISOString();
    });
    return replyOf(issued, authority);
  }

  function disconnect(agent: string, why = 'the agent was removed; join again with a new token'): void {
    for (const call of calls.get(agent) ?? []) call.abort(new ReplicationError('NotAuthenticated', why));
    const sessions = [...peers.values()].filter(({ certificateDer }) => nameIn(certificateDer) === agent);
    // A peer that does not read would keep its call open for ever.
    setTimeout(() => sessions.forEach(({ session }) => session.destroy()), farewellMs).unref();
  }

  function greet(session: ServerHttp2Session): void {
    const socket = session.socket as TLSSocket;
    const key = `${socket.remoteAddress}:${socket.remotePort}`;
    const shown: { raw?: Buffer } = socket.getPeerCertificate();
    const line = { address: (socket.remoteAddress ?? '').replace(/^::ffff:(?=\d+\.)/, ''), closedByPeer: false };
    socket.once('end', () => (line.closedByPeer = true));
    socket.once('error', (error) => (line.closedByPeer ||= systemErrorCode(error) === 'ECONNRESET'));
    const peer = { session, certificateDer: shown.raw, line };
    peers.set(key, peer);
    session.setLocalWindowSize(windowBytes);
    let patience: NodeJS.Timeout | undefined;
    if (shown.raw === undefined) {
      session.settings({ maxConcurrentStreams: maxStrangerStreams, initialWindowSize: 65_535 });
      patience = setTimeout(() => session.destroy(), strangerMs).unref();
    }
    session.once('close', () => {
      clearTimeout(patience);
      if (peers.get(key) === peer) peers.delete(key);
    });
  }

  function mirror(call: ServerDuplex): void {
    track(stream('Mirror', call, ['MirrorReply', 'MirrorRequest'], options.mirror));
  }

  server.addService(service, {
    Join: unary(join),
    Renew: unary(renew),
    Control: (call: grpc.ServerDuplexStream<Buffer, Buffer>) =>
      track(stream('Control', call, ['MasterMessage', 'AgentMessage'], options.control)),
    Mirror: mirror,
    Restore: (call: grpc.ServerDuplexStream<Buffer, Buffer>) =>
      track(stream('Restore', call, ['MirrorRequest', 'MirrorReply'], options.restore)),
    Snapshots: (call: grpc.ServerDuplexStream<Buffer, Buffer>) =>
      track(stream('Snapshots', call, ['SnapshotReply', 'SnapshotRequest'], options.snapshots)),
  });
  const port = await bind(server, options.listen, credentials);
  for (const http2 of http2Servers(server)) {
    http2.on('session', greet);
    takeOver(http2, service.Mirror.path, (stream, headers) => mirror(new ServerCall(stream, headers, maxFrameBytes)));
  }

  /** Deleted objects revoke, whoever deleted them. */
  async function watchAgents(since: number): Promise<void> {
    for await (const change of store.watch({ kinds: ['Agent'], since, signal: closing.signal }))
      if (change.type === 'DELETED') disconnect(change.key);
  }
  async function watchForEver(): Promise<void> {
    while (!closing.signal.aborted) {
      const since = store.version();
      for (const agent of calls.keys()) if (store.get('Agent', agent) === undefined) disconnect(agent);
      // It throws when it fell behind the store's history: look at the whole once more and go on.
      await watchAgents(since).catch(() => clock.sleep(1000, closing.signal));
    }
  }
  async function stayFresh(): Promise<void> {
    for (;;) {
      await clock.sleep(refreshMs, closing.signal);
      try {
        if (await authority.refresh()) credentials.replace(authority);
        await authority.publishToken();
      } catch (error) {
        events.emit({ code: 'MasterTrouble', level: 'ERROR', message: messageOf(error), object: null });
      }
    }
  }
  const background = [watchForEver(), stayFresh()].map((work) => work.catch(() => undefined));

  const windows = await measureWindows(options.listen, port);
  if (windows.streamBytes < windowBytes || windows.connectionBytes < windowBytes) {
    events.emit({
      code: 'MasterTrouble',
      level: 'WARNING',
      message: `flow-control windows are ${windows.streamBytes} and ${windows.connectionBytes} bytes instead of ${windowBytes}: transfers will be slow; the gRPC library in use does not take the setting`,
      object: null,
    });
  }

  return {
    port,
    windows,
    disconnect,
    lineOf: (agent) => lines.get(agent),
    async close() {
      const reason = new ReplicationError('Stopped', 'the master is being stopped');
      closing.abort(reason);
      for (const open of calls.values()) for (const call of open) call.abort(reason);
      await Promise.all([...running, ...background]);
      const closed = new Promise<void>((resolve) => server.tryShutdown(() => resolve()));
      const impatience = setTimeout(() => server.forceShutdown(), farewellMs);
      await closed;
      clearTimeout(impatience);
    },
  };
}

// ---- peers ----

/** @throws ReplicationError NotAuthenticated with the reason and the cure */
function identify(
  certificateDer: Buffer | undefined,
  authority: Authority,
  store: Store,
  nowMs: number,
): { agent: string; fingerprint: string } {
  const refuse = (why: string): never => {
    throw new ReplicationError('NotAuthenticated', why);
  };
  if (certificateDer === undefined) return refuse('no client certificate was shown; join this node with a join token');
  const agent = nameIn(certificateDer);
  if (agent === undefined || !authority.issued(certificateDer))
    return refuse("the client certificate was not signed by this master's CA; join this node to this master");
  const notAfterMs = Date.parse(new X509Certificate(certificateDer).validTo);
  if (notAfterMs <= nowMs)
    return refuse(
      `the certificate of ${agent} expired at ${new Date(notAfterMs).toISOString()}; join again with a new token`,
    );
  const object = store.get('Agent', agent);
  if (object === undefined)
    return refuse(`the agent ${agent} was removed from this master; join again with a new token`);
  const fingerprint = fingerprintOf(certificateDer);
  if (!object.identity.certificates.some((one) => one.fingerprint === fingerprint))
    return refuse(
      `this certificate of ${agent} is revoked, the node has joined anew since; join again with a new token`,
    );
  return { agent, fingerprint };
}

/** The agent's name in the subject that the authority gave it. */
function nameIn(certificateDer: Buffer | undefined): string | undefined {
  if (certificateDer === undefined) return undefined;
  try {
    return /^CN=([a-z0-9-]{1,63})$/.exec(new X509Certificate(certificateDer).subject)?.[1];
  } catch {
    return undefined;
  }
}

function addressOf(peer: string): string {
  const colon = peer.lastIndexOf(':');
  return colon === -1 ? peer : peer.slice(0, colon);
}
