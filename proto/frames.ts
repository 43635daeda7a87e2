/**
 * gRPC's messages on an HTTP/2 stream: a byte that says whether it is compressed (never, here), four of length, the message
 * (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
 */
import { ReplicationError } from './errors.ts';
import { maxDataBytes } from './wire.ts';

export const frameHeaderBytes = 5;

/** Of the buffers that are used again: what a message of maxDataBytes takes with all that describes it. */
const slabBytes = maxDataBytes + 65_536;
/** Fewer bytes are not worth keeping a slab from others. */
const leastSlabbed = slabBytes / 2;
const maxSlabs = 4;

export function frameHeader(length: number): Buffer {
  const header = Buffer.allocUnsafe(frameHeaderBytes);
  header.writeUInt8(0, 0);
  header.writeUInt32BE(length, 1);
  return header;
}

/**
 * Puts messages together; each is a buffer of its own, into which every byte is copied once. Large ones come back by `recycle`: new
 * memory for each costs as much as decrypting what goes into it. @throws BadMessage
 */
export class FrameReader {
  readonly #maxBytes: number;
  readonly #onMessage: (message: Buffer) => void;
  readonly #header = Buffer.alloc(frameHeaderBytes);
  #headerBytes = 0;
  #message: Buffer | undefined;
  #messageBytes = 0;
  readonly #slabs: ArrayBuffer[] = [];

  constructor(maxBytes: number, onMessage: (message: Buffer) => void) {
    this.#maxBytes = maxBytes;
    this.#onMessage = onMessage;
  }

  push(chunk: Buffer): void {
    for (let at = 0; at < chunk.length;) {
      if (!this.#message) {
        const copied = chunk.copy(this.#header, this.#headerBytes, at);
        this.#headerBytes += copied;
        at += copied;
        if (this.#headerBytes < frameHeaderBytes) return;
        this.#message = this.#begin();
      }
      const copied = chunk.copy(this.#message, this.#messageBytes, at);
      this.#messageBytes += copied;
      at += copied;
      this.#endIfWhole();
    }
  }

  /** Bytes of a message that is not whole yet. */
  get isInside(): boolean {
    return this.#headerBytes > 0;
  }

  /** Nobody looks at this message any more. */
  recycle(message: Buffer): void {
    const slab = message.buffer as ArrayBuffer;
    if (slab.byteLength === slabBytes && this.#slabs.length < maxSlabs) this.#slabs.push(slab);
  }

  #begin(): Buffer {
    const length = this.#header.readUInt32BE(1);
    if (this.#header[0] !== 0) throw new ReplicationError('BadMessage', 'a compressed message, which nobody asked for');
    if (length > this.#maxBytes)
      throw new ReplicationError('BadMessage', `a message of ${length} bytes, at most ${this.#maxBytes} are taken`);
    this.#messageBytes = 0;
    if (length < leastSlabbed || length > slabBytes) return Buffer.allocUnsafeSlow(length);
    return Buffer.from(this.#slabs.pop() ?? new ArrayBuffer(slabBytes), 0, length);
  }

  #endIfWhole(): void {
    const message = this.#message;
    if (!message || this.#messageBytes < message.length) return;
    this.#message = undefined;
    this.#headerBytes = 0;
    this.#onMessage(message);
  }
}
