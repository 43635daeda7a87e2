/**
 * Streaming gRPC calls on node:http2 itself, for those that carry the bulk of the data: grpc-js copies each message once more at
 * both ends and makes a new buffer for it each time, which costs more than TLS does. On the wire they are gRPC; either end
 * talks to grpc-js as well (test/conformance/bulkcall.test.ts).
 *
 * Guarantees: messages in order, at most one beyond `holdBytes` received and not yet read, the rest held back by HTTP/2's
 * windows; `written` is called when the bytes are encrypted or will never be; what came before a status is read before it.
 */
import { EventEmitter } from 'node:events';
import * as http2 from 'node:http2';
import type { PeerCertificate, SecureContext } from 'node:tls';
import { FrameReader, frameHeader } from './frames.ts';
import type { Encoded } from './wire.ts';

/** Whole messages received and not yet read. */
const holdBytes = 2 << 20;
/** After its status a call that the client leaves open is closed. */
const farewellMs = 1000;
const statusOk = 0;

export interface Status {
  code: number;
  details: string;
  /** Headers beside them. */
  metadata: Record<string, string>;
}

/** Emits readable, end, close. */
class BulkCall extends EventEmitter {
  protected readonly stream: http2.Http2Stream;
  readonly #reader: FrameReader;
  readonly #messages: Buffer[] = [];
  #heldBytes = 0;
  #dropped = false;

  constructor(stream: http2.Http2Stream, maxMessageBytes: number) {
    super();
    this.stream = stream;
    this.#reader = new FrameReader(maxMessageBytes, (message) => {
      this.#messages.push(message);
      this.#heldBytes += message.length;
    });
    stream.on('data', (chunk: Buffer) => {
      if (this.#dropped) return;
      const before = this.#messages.length;
      try {
        this.#reader.push(chunk);
      } catch (error) {
        this.malformed(error as Error);
      }
      if (this.#heldBytes >= holdBytes) stream.pause();
      if (this.#messages.length > before) this.emit('readable');
    });
  }

  protected malformed(error: Error): void {
    this.stream.destroy(error);
  }

  /** What still comes is nobody's any more. */
  protected drop(): void {
    this.#dropped = true;
    this.#messages.length = 0;
    this.stream.resume();
  }

  read(): Buffer | null {
    const message = this.#messages.shift();
    if (!message) return null;
    this.#heldBytes -= message.length;
    if (this.#heldBytes < holdBytes && this.stream.isPaused()) this.stream.resume();
    return message;
  }

  /** Nobody looks at what was read any more. */
  recycle(message: Buffer): void {
    this.#reader.recycle(message);
  }

  write(message: Encoded, written: () => void): void {
    const parts = message.parts ?? [message as unknown as Uint8Array];
    this.stream.cork();
    this.stream.write(frameHeader(message.length));
    parts.forEach((part, index) => this.stream.write(part, index === parts.length - 1 ? written : undefined));
    this.stream.uncork();
  }

  get writableEnded(): boolean {
    return this.stream.writableEnded;
  }
}

/** Emits status, last of all, and error before it when the status is not good. */
export class ClientCall extends BulkCall {
  #status: http2.IncomingHttpHeaders | undefined;
  #failure: Error | undefined;
  #concluded = false;

  constructor(stream: http2.ClientHttp2Stream, maxMessageBytes: number) {
    super(stream, maxMessageBytes);
    stream.on('response', (headers) => {
      if (headers['grpc-status'] !== undefined) this.#status = headers;
      else if (headers[':status'] !== 200) this.#failure = new Error(`HTTP status ${headers[':status']}`);
    });
    stream.on('trailers', (headers) => (this.#status = headers));
    stream.on('error', (error: Error) => (this.#failure ??= error));
    // The trailers are told in the same turn as the end.
    stream.on('end', () => setImmediate(() => this.#conclude()));
    stream.on('close', () => this.#conclude());
  }

  #conclude(): void {
    if (this.#concluded) return;
    this.#concluded = true;
    const error = this.#error();
    if (error) this.emit('error', error);
    else this.emit('end');
    this.emit('status');
    if (!this.stream.closed) this.stream.close(http2.constants.NGHTTP2_NO_ERROR);
    this.emit('close');
  }

  #error(): Error | undefined {
    if (!this.#status) return this.#failure ?? new Error('the line is down, or the other side has ended the call');
    const { 'grpc-status': code, 'grpc-message': details, ...rest } = this.#status;
    if (Number(code) === statusOk) return undefined;
    const metadata = { get: (key: string) => (rest[key] === undefined ? [] : [String(rest[key])]) };
    const text = unescaped(String(details ?? ''));
    return Object.assign(new Error(text), { code: Number(code), details: text, metadata });
  }

  end(): void {
    this.stream.end();
  }

  cancel(): void {
    this.stream.close(http2.constants.NGHTTP2_CANCEL);
  }
}

/** Emits cancelled when the client or the line has ended the call before its status was sent. */
export class ServerCall extends BulkCall {
  readonly #headers: http2.IncomingHttpHeaders;
  #finished = false;
  #failed: ((error: Error) => void) | undefined;

  constructor(stream: http2.ServerHttp2Stream, headers: http2.IncomingHttpHeaders, maxMessageBytes: number) {
    super(stream, maxMessageBytes);
    this.#headers = headers;
    stream.respond(
      { ':status': 200, 'content-type': 'application/grpc+proto' },
      { waitForTrailers: true, endStream: false },
    );
    stream.on('error', () => undefined); // told by close
    stream.on('end', () => this.emit('end'));
    stream.on('close', () => {
      if (!this.#finished) this.emit('cancelled');
      this.emit('close');
    });
  }

  /** As grpc-js names it. */
  getPeer(): string {
    const { remoteAddress, remotePort } = this.stream.session?.socket ?? {};
    return `${remoteAddress}:${remotePort}`;
  }

  header(name: string): string | undefined {
    const value = this.#headers[name];
    return typeof value === 'string' ? value : undefined;
  }

  /** Whether the client has ended the call well; a call that it has reset ends too. */
  get isGood(): boolean {
    return !this.stream.aborted && this.stream.rstCode === 0;
  }

  /** Of a message that is none. */
  onMalformed(failed: (error: Error) => void): void {
    this.#failed = failed;
  }

  protected override malformed(error: Error): void {
    this.#failed?.(error);
  }

  /** Sends the status after all that was written; nothing more is read. */
  finish({ code, details, metadata }: Status): void {
    if (this.#finished || this.stream.destroyed) return;
    this.#finished = true;
    this.drop();
    this.stream.once('wantTrailers', () => {
      this.stream.sendTrailers({ ...metadata, 'grpc-status': String(code), 'grpc-message': escaped(details) });
      setTimeout(() => this.stream.close(http2.constants.NGHTTP2_NO_ERROR), farewellMs).unref();
    });
    this.stream.end();
  }

  end(): void {
    this.finish({ code: statusOk, details: '', metadata: {} });
  }
}

/** Percent-encoding of what is no printable ASCII. */
function escaped(text: string): string {
  return encodeURI(text);
}

function unescaped(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export interface BulkOptions {
  host: string;
  port: number;
  secureContext: SecureContext;
  servername: string | undefined;
  checkServerIdentity: (name: string, certificate: PeerCertificate) => Error | undefined;
  /** Of each stream and of the connection. */
  windowBytes: number;
  /** A line that has not answered for so long is down. */
  keepaliveMs: number;
  maxMessageBytes: number;
}

/** One connection for all calls, dialled by the first one and anew when it is lost. */
export class BulkChannel {
  readonly #options: BulkOptions;
  #session: http2.ClientHttp2Session | undefined;
  #closed = false;

  constructor(options: BulkOptions) {
    this.#options = options;
  }

  /** @throws when the channel is closed */
  call(path: string, headers: Record<string, string>): ClientCall {
    if (this.#closed) throw new Error('the channel has been closed');
    this.#session ??= this.#dial();
    const stream = this.#session.request(
      {
        ':method': 'POST',
        ':path': path,
        'content-type': 'application/grpc',
        te: 'trailers',
        'user-agent': 'replicator-agent',
        ...headers,
      },
      { endStream: false },
    );
    return new ClientCall(stream, this.#options.maxMessageBytes);
  }

  #dial(): http2.ClientHttp2Session {
    const { host, port, windowBytes, keepaliveMs, secureContext, checkServerIdentity, servername } = this.#options;
    const session = http2.connect(`https://${host.includes(':') ? `[${host}]` : host}:${port}`, {
      secureContext,
      checkServerIdentity,
      ...(servername === undefined ? {} : { servername }),
      settings: { initialWindowSize: windowBytes, enablePush: false },
      // Bounded by what each call may queue.
      maxSessionMemory: Number.MAX_SAFE_INTEGER,
    });
    session.on('connect', () => session.setLocalWindowSize(windowBytes));
    session.on('error', () => undefined); // each stream tells
    const forget = (): void => {
      clearInterval(alive);
      if (this.#session === session) this.#session = undefined;
    };
    session.on('close', forget);
    session.on('goaway', forget);
    let answeredMs = performance.now();
    const alive = setInterval(() => {
      if (performance.now() - answeredMs >= keepaliveMs) {
        session.destroy(new Error(`the other side has not answered for ${keepaliveMs / 1000} s`));
      } else if (!session.connecting && !session.destroyed) {
        session.ping((error) => {
          if (!error) answeredMs = performance.now();
        });
      }
    }, keepaliveMs / 3);
    alive.unref();
    return session;
  }

  /** Calls under way go on to their end. */
  close(): void {
    this.#closed = true;
    this.#session?.close();
  }
}
