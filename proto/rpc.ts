/**
 * replicator.proto on gRPC: the service, its channel and server options, calls as Streams, errors as statuses.
 *
 * Guarantees: what waits to be sent on one call is bounded by maxQueuedBytes (plus one message of each concurrent
 * sender), what was received and not yet taken by the flow-control window and one batch of messages. A message that
 * does not decode ends the call with INVALID_ARGUMENT naming the field. A ReplicationError travels with its code; what
 * has none arrives as Disconnected. A line that is dead without saying so is noticed within keepaliveMs.
 *
 * Serializing is done here and not by grpc-js, because its server answers every decoding fault with a bare INTERNAL.
 */
import * as grpc from '@grpc/grpc-js';
import type { EventEmitter } from 'node:events';
import { isIP } from 'node:net';
import { type PeerCertificate, checkServerIdentity, createSecureContext } from 'node:tls';
import { BulkChannel, type ClientCall, ServerCall } from './bulkcall.ts';
import { type ErrorCode, ReplicationError, asReplicationError, errorCodes, messageOf } from './errors.ts';
import type { HoldReply, HoldRequest } from './holdwire.ts';
import { type Stream, bell } from './stream.ts';
import { isLoopback, parsePeer } from './value.ts';
import type {
  AgentMessage,
  JoinReply,
  JoinRequest,
  MasterMessage,
  Messages,
  RenewRequest,
  SnapshotReply,
  SnapshotRequest,
} from './wire.ts';
import {
  type Encoded,
  type MirrorReply,
  type MirrorRequest,
  decode,
  encode,
  encodeParts,
  maxMessageBytes,
} from './wire.ts';

/** Flow-control window of each stream and of each connection, both directions: the default 64 KiB halves the speed. */
export const windowBytes = 8 << 20;
/** Encoded and not yet taken by the connection, of one call. */
export const maxQueuedBytes = 4 << 20;
/** A half-open line is given up after at most this long: a ping each 10 s, 5 s for its answer. */
export const keepaliveMs = 15_000;
const unaryDeadlineMs = 30_000;

/** SNI and first name of every server certificate: an IP address is no valid SNI, RFC 6066. */
export const masterServerName = 'replicator-master';

export const maxFrameBytes = maxMessageBytes + 65536;

const commonOptions = {
  'grpc.max_receive_message_length': maxFrameBytes,
  'grpc.max_send_message_length': maxFrameBytes,
  'grpc.keepalive_time_ms': 10_000,
  'grpc.keepalive_timeout_ms': keepaliveMs - 10_000,
  'grpc.enable_channelz': 0,
} as const;

/** The server's windows are not among them: grpc-js knows that option on the client only; see master/server.ts. */
export const serverOptions: grpc.ServerOptions = commonOptions;

const clientOptions: grpc.ClientOptions = {
  ...commonOptions,
  'grpc-node.flow_control_window': windowBytes,
  // With a retry buffer grpc-js says "written" before the bytes have left; a buffer used again then corrupts data.
  'grpc.per_rpc_retry_buffer_size': 0,
  'grpc.enable_retries': 0,
  'grpc.keepalive_permit_without_calls': 1,
  'grpc.use_local_subchannel_pool': 1,
  // The loops above back off by themselves; a channel that waits longer than they do would only make them fail again.
  'grpc.initial_reconnect_backoff_ms': 100,
  'grpc.min_reconnect_backoff_ms': 100,
  'grpc.max_reconnect_backoff_ms': 1000,
};

const asIs = (bytes: Buffer): Buffer => bytes;
const serializers = {
  requestSerialize: asIs,
  requestDeserialize: asIs,
  responseSerialize: asIs,
  responseDeserialize: asIs,
};
const method = (name: string, streams: boolean): grpc.MethodDefinition<Buffer, Buffer> => ({
  path: `/cdm.replicator.v1.Replicator/${name}`,
  requestStream: streams,
  responseStream: streams,
  ...serializers,
});
/** The streams of a receiver, see replicator.proto. */
export const receiverPaths = {
  Hold: '/cdm.replicator.v1.Receiver/Hold',
  Mirror: '/cdm.replicator.v1.Receiver/Mirror',
  Read: '/cdm.replicator.v1.Receiver/Read',
  Fill: '/cdm.replicator.v1.Receiver/Fill',
};
export const service = {
  Join: method('Join', false),
  Renew: method('Renew', false),
  Control: method('Control', true),
  Mirror: method('Mirror', true),
  Restore: method('Restore', true),
  Snapshots: method('Snapshots', true),
};

// ---- errors ----

const codeKey = 'replicator-code';

function statusOf(code: ErrorCode): grpc.status {
  switch (code) {
    case 'BadMessage':
      return grpc.status.INVALID_ARGUMENT;
    case 'NotAuthenticated':
      return grpc.status.UNAUTHENTICATED;
    case 'JoinRefused':
      return grpc.status.PERMISSION_DENIED;
    case 'Stopped':
    case 'Disconnected':
      return grpc.status.UNAVAILABLE;
    case 'TargetFull':
      return grpc.status.RESOURCE_EXHAUSTED;
    case 'Internal':
      return grpc.status.INTERNAL;
    default:
      return errorCodes[code].retry === 'never' ? grpc.status.FAILED_PRECONDITION : grpc.status.ABORTED;
  }
}

/** For a handler's callback or `call.emit('error', ..)`. */
export function toStatus(thrown: unknown): grpc.ServiceError {
  const error = asReplicationError(thrown);
  const metadata = new grpc.Metadata();
  metadata.set(codeKey, error.code);
  // The text goes into a header: bounded, and without the lone surrogates that percent-encoding throws on.
  const details = error.message.slice(0, 2000).toWellFormed();
  return Object.assign(new Error(details), { code: statusOf(error.code), details, metadata });
}

export function fromStatus(thrown: unknown): ReplicationError {
  if (!(thrown instanceof Error)) return new ReplicationError('Disconnected', messageOf(thrown));
  const { details, metadata } = thrown as Partial<grpc.ServiceError>;
  const text = details ?? thrown.message;
  const code = metadata?.get(codeKey)[0];
  if (typeof code === 'string' && code in errorCodes) return new ReplicationError(code as ErrorCode, text);
  if (/certificate|altname|SELF_SIGNED|UNABLE_TO_VERIFY/i.test(text)) {
    return new ReplicationError(
      'NotAuthenticated',
      `the master's certificate is not trusted: ${text}. Give the ca.pem of this very master as the CA file, and an ` +
        'address that its certificate names (--advertise on the master)',
      { cause: thrown },
    );
  }
  return new ReplicationError('Disconnected', text, { cause: thrown });
}

// ---- calls as Streams ----

/** What a call of grpc-js and one of ours (bulkcall.ts) have in common. */
interface Call {
  read(): unknown;
  write(message: Buffer & Encoded, written: () => void): unknown;
  end(): unknown;
  recycle?(message: Buffer): void;
  readonly writableEnded: boolean;
  on(event: 'readable' | 'end' | 'close', listener: () => void): unknown;
}

interface Ends {
  /** Tells the other side and ends the call. */
  abort(error: ReplicationError): void;
  /** The iteration was left with the call still open. */
  left(): void;
  /** No more messages will come: calls back once it is sure that this is a good end, if it is. */
  ended(good: () => void): void;
}

function wrap<O extends keyof Messages, I extends keyof Messages>(call: Call, out: O, into: I, ends: Ends) {
  const { rung, ring } = bell();
  let failure: ReplicationError | undefined;
  let queuedBytes = 0;
  let sentBytes = 0;
  let receivedBytes = 0;
  /** The other side will send no more (all of it is read), or the call is over. */
  let readEnded = false;
  let over = false;
  let newest: { message: Messages[I]; bytes: Buffer } | undefined;

  const fail = (error: ReplicationError): void => {
    failure ??= error;
    over = true;
    ring();
  };
  const abort = (error: ReplicationError): void => {
    if (over) return;
    fail(error);
    ends.abort(error);
  };
  call.on('readable', ring);
  call.on('end', () => {
    ends.ended(() => {
      readEnded = true;
      ring();
    });
  });
  call.on('close', ring);

  function take(bytes: Buffer): Messages[I] {
    receivedBytes += bytes.length;
    try {
      const message = decode(into, bytes);
      newest = { message, bytes };
      return message;
    } catch (error) {
      abort(asReplicationError(error, 'BadMessage'));
      throw error;
    }
  }

  async function* receive(): AsyncGenerator<Messages[I]> {
    try {
      for (;;) {
        const bytes = call.read() as Buffer | null;
        if (bytes !== null) {
          yield take(bytes);
          continue;
        }
        if (failure !== undefined) throw failure;
        if (readEnded || over) return;
        await rung();
      }
    } finally {
      if (!readEnded && !over) ends.left();
    }
  }

  const stream: Stream<Messages[O], Messages[I]> = {
    async send(message) {
      if (failure !== undefined) throw failure;
      if (over || call.writableEnded) throw new ReplicationError('Disconnected', 'the call has ended');
      const bytes = encodeParts(out, message);
      queuedBytes += bytes.length;
      // Of a Buffer grpc-js needs no more than that it can be copied into its frame.
      call.write(bytes as Buffer & Encoded, () => {
        queuedBytes -= bytes.length;
        sentBytes += bytes.length;
        ring();
      });
      while (queuedBytes > maxQueuedBytes && !over) await rung();
      if (failure !== undefined) throw failure as ReplicationError;
    },
    receive: receive(),
    recycle(message) {
      if (newest?.message === message) call.recycle?.(newest.bytes);
      newest = undefined;
    },
    end: () => void call.end(),
    cancel: () => abort(new ReplicationError('Disconnected', 'the call was cancelled')),
    get sentBytes() {
      return sentBytes;
    },
    get receivedBytes() {
      return receivedBytes;
    },
  };
  return {
    stream,
    fail,
    abort,
    finish: () => {
      over = true;
      ring();
    },
  };
}

/**
 * Serves one streaming call: the handler gets it as a Stream, its end is the call's end, its error the call's status.
 * Answers when all is over; never throws. The signal's reason ends the call at once.
 */
export async function serve<O extends keyof Messages, I extends keyof Messages>(
  call: ServerDuplex,
  [out, into]: readonly [O, I],
  handler: (stream: Stream<Messages[O], Messages[I]>, signal: AbortSignal) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  const ends: Ends = {
    abort: (error) => refuse(call, error),
    left: () => undefined,
    ended(good) {
      // A call that the client reset ends like one that it ended well; sending headers makes grpc-js look, and say
      // "cancelled" within this turn of the loop.
      if (!(call instanceof ServerCall)) call.sendMetadata(new grpc.Metadata());
      setImmediate(() => {
        if (!(call instanceof ServerCall) || call.isGood) good();
      });
    },
  };
  const { stream, fail, abort, finish } = wrap(call, out, into, ends);
  if (call instanceof ServerCall) call.onMalformed((error) => abort(asReplicationError(error, 'BadMessage')));
  const gone = new AbortController();
  (call as EventEmitter).on('cancelled', () => {
    const error = new ReplicationError('Disconnected', 'the other side ended the call or the line is down');
    fail(error);
    gone.abort(error);
  });
  const stop = (): void => abort(asReplicationError(signal.reason, 'Stopped'));
  if (signal.aborted) stop();
  signal.addEventListener('abort', stop);
  try {
    await handler(stream, AbortSignal.any([signal, gone.signal]));
    finish();
    call.end();
  } catch (error) {
    abort(asReplicationError(error));
  } finally {
    signal.removeEventListener('abort', stop);
  }
}

export type ServerDuplex = grpc.ServerDuplexStream<Buffer, Buffer> | ServerCall;

/** Ends the call with this error as its status. */
export function refuse(call: ServerDuplex, error: unknown): void {
  const status = toStatus(error);
  if (!(call instanceof ServerCall)) return void call.emit('error', status);
  const code = status.metadata.get(codeKey)[0];
  call.finish({ code: status.code, details: status.details, metadata: { [codeKey]: String(code) } });
}

const callIdKey = 'x-call-id';

/** What the caller named its call; empty: nothing that could stand in a log. */
export function callIdOf(call: ServerDuplex): string {
  const id = call instanceof ServerCall ? call.header(callIdKey) : call.metadata.get(callIdKey)[0];
  return typeof id === 'string' && /^[\w-]{1,64}$/.test(id) ? id : '';
}

type ClientDuplex = grpc.ClientDuplexStream<Buffer, Buffer> | ClientCall;

function clientStream<O extends keyof Messages, I extends keyof Messages>(
  client: grpc.Client | BulkChannel,
  { path }: { path: string },
  [out, into]: readonly [O, I],
  signal?: AbortSignal,
  id?: string,
): Stream<Messages[O], Messages[I]> {
  let call: ClientDuplex;
  try {
    signal?.throwIfAborted();
    call = begin(client, path, id === undefined ? {} : { [callIdKey]: id });
  } catch (error) {
    throw signal?.aborted === true ? asReplicationError(error, 'Stopped') : fromStatus(error);
  }
  const cancel = (): void => call.cancel();
  const { stream, fail, abort, finish } = wrap(call, out, into, {
    abort: cancel,
    left: cancel,
    ended: (good) => good(),
  });
  const stop = (): void => abort(asReplicationError(signal?.reason, 'Stopped'));
  signal?.addEventListener('abort', stop);
  const events: EventEmitter = call;
  events.on('error', (error: Error) => fail(fromStatus(error)));
  events.on('status', () => {
    signal?.removeEventListener('abort', stop);
    // Good or bad: nothing can be sent any more. What was received before is still handed out.
    finish();
  });
  return stream;
}

function begin(client: grpc.Client | BulkChannel, path: string, headers: Record<string, string>): ClientDuplex {
  if (client instanceof BulkChannel) return client.call(path, headers);
  const metadata = new grpc.Metadata();
  for (const [key, value] of Object.entries(headers)) metadata.set(key, value);
  return client.makeBidiStreamRequest(path, asIs, asIs, metadata);
}

// ---- client ----

export interface Client {
  join(request: JoinRequest): Promise<JoinReply>;
  renew(request: RenewRequest): Promise<JoinReply>;
  control(signal?: AbortSignal): Stream<AgentMessage, MasterMessage>;
  /** @param id written into the logs of both sides */
  mirror(signal?: AbortSignal, id?: string): Stream<MirrorRequest, MirrorReply>;
  /** As `mirror`, with the directions turned round. */
  restore(signal?: AbortSignal, id?: string): Stream<MirrorReply, MirrorRequest>;
  snapshots(signal?: AbortSignal): Stream<SnapshotRequest, SnapshotReply>;
  /** Calls under way go on to their end; new ones fail as Disconnected. */
  close(): void;
}

export interface ClientTrust {
  caPem: string;
  /** Both or neither; without them only join() is let in. */
  certificatePem?: string;
  keyPem?: string;
}

const proxyVariables = ['grpc_proxy', 'https_proxy', 'http_proxy'];

/** Dials lazily and again by itself. @param master HOST:PORT, must be among the names of the master's certificate. */
export function connect(master: string, { caPem, certificatePem, keyPem }: ClientTrust): Client {
  const { host, port } = parsePeer(master);
  const secureContext = createSecureContext({ ca: caPem, cert: certificatePem, key: keyPem, minVersion: 'TLSv1.3' });
  const trust = {
    checkServerIdentity: (_name: string, certificate: PeerCertificate) => checkServerIdentity(host, certificate),
  };
  const credentials = grpc.credentials.createFromSecureContext(secureContext, trust);
  const client = new grpc.Client(master, credentials, {
    ...clientOptions,
    ...(isIP(host) === 0 ? {} : { 'grpc.ssl_target_name_override': masterServerName }),
    ...(isLoopback(host) ? { 'grpc.enable_http_proxy': 0 } : {}),
  });
  // A proxy of the environment is grpc-js's to talk to.
  const isProxied = !isLoopback(host) && proxyVariables.some((name) => (process.env[name] ?? '') !== '');
  const bulk = new BulkChannel({
    host,
    port,
    secureContext,
    ...trust,
    servername: isIP(host) === 0 ? undefined : masterServerName,
    windowBytes,
    keepaliveMs,
    maxMessageBytes: maxFrameBytes,
  });
  const unary = <K extends keyof Messages>(path: string, kind: K, request: Messages[K]): Promise<JoinReply> =>
    new Promise((resolve, reject) => {
      const deadline = Date.now() + unaryDeadlineMs;
      client.makeUnaryRequest(path, asIs, asIs, encode(kind, request), { deadline }, (error, reply) => {
        if (error !== null) return reject(fromStatus(error));
        try {
          resolve(decode('JoinReply', reply ?? Buffer.alloc(0)));
        } catch (fault) {
          reject(asReplicationError(fault, 'BadMessage'));
        }
      });
    });
  return {
    join: async (request) => unary(service.Join.path, 'JoinRequest', request),
    renew: async (request) => unary(service.Renew.path, 'RenewRequest', request),
    control: (signal) => clientStream(client, service.Control, ['AgentMessage', 'MasterMessage'], signal),
    mirror: (signal, id) =>
      clientStream(isProxied ? client : bulk, service.Mirror, ['MirrorRequest', 'MirrorReply'], signal, id),
    restore: (signal, id) => clientStream(client, service.Restore, ['MirrorReply', 'MirrorRequest'], signal, id),
    snapshots: (signal) => clientStream(client, service.Snapshots, ['SnapshotRequest', 'SnapshotReply'], signal),
    close() {
      client.close();
      bulk.close();
    },
  };
}

/** What a master's certificate is called when it dials receivers: no agent can have a name with a dot. */
export const masterClientName = 'replicator.master';

/** A receiver as its master calls it. */
export interface ReceiverClient {
  hold(signal?: AbortSignal): Stream<HoldRequest, HoldReply>;
  mirror(signal?: AbortSignal): Stream<MirrorRequest, MirrorReply>;
  /** A point of a replica that it keeps, in parts. */
  read(signal?: AbortSignal): Stream<MirrorReply, MirrorRequest>;
  /** To one that is beside a blank volume. */
  fill(signal?: AbortSignal): Stream<MirrorRequest, MirrorReply>;
  /** Calls under way go on to their end; new ones fail as Disconnected. */
  close(): void;
}

/** Dials lazily and again by itself. @param name that the receiver's certificate must be for */
export function connectReceiver(
  { host, port }: { host: string; port: number },
  name: string,
  { caPem, certificatePem, keyPem }: Required<ClientTrust>,
): ReceiverClient {
  const channel = new BulkChannel({
    host,
    port,
    secureContext: createSecureContext({ ca: caPem, cert: certificatePem, key: keyPem, minVersion: 'TLSv1.3' }),
    checkServerIdentity: (_name, certificate) => checkServerIdentity(name, certificate),
    servername: name,
    windowBytes,
    keepaliveMs,
    maxMessageBytes: maxFrameBytes,
  });
  return {
    hold: (signal) => clientStream(channel, { path: receiverPaths.Hold }, ['HoldRequest', 'HoldReply'], signal),
    mirror: (signal) => clientStream(channel, { path: receiverPaths.Mirror }, ['MirrorRequest', 'MirrorReply'], signal),
    read: (signal) => clientStream(channel, { path: receiverPaths.Read }, ['MirrorReply', 'MirrorRequest'], signal),
    fill: (signal) => clientStream(channel, { path: receiverPaths.Fill }, ['MirrorRequest', 'MirrorReply'], signal),
    close: () => channel.close(),
  };
}
