/**
 * Client of a CSI driver's SnapshotMetadata service (proto/snapshotmetadata.proto): which ranges of a snapshot hold data, and
 * which differ between two snapshots of one volume.
 *
 * Guarantees: an answer is whole, or an error is thrown. A call that breaks is taken up again behind the last range received;
 * ranges that are out of order, overlap, or lie outside the volume are an error, as nothing can be built on them.
 * `NoDelta` (FAILED_PRECONDITION, or a snapshot that is gone) means that nobody can tell: everything may differ.
 */
import * as grpc from '@grpc/grpc-js';
import { readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import protobuf from 'protobufjs';
import { backoff } from '../../proto/backoff.ts';
import type { Clock, Random } from '../../proto/effects.ts';
import { messageOf } from '../../proto/errors.ts';

export interface ByteRange {
  offset: number;
  length: number;
}

/** The storage cannot tell what differs. */
export class NoDelta extends Error {
  override name = 'NoDelta';
}

export interface SnapshotMetadataOptions {
  /** HOST:PORT, or unix:PATH. */
  address: string;
  /** That its certificate is for; absent: the address. */
  serverName?: string;
  credentials: grpc.ChannelCredentials;
  /** Of the VolumeSnapshots. */
  namespace: string;
  /** A fresh token for the service's audience. */
  token: () => Promise<string>;
  clock: Clock;
  random: Random;
}

export interface SnapshotMetadata {
  /** In ascending order. @throws NoDelta */
  allocated(snapshot: string, signal: AbortSignal): AsyncGenerator<ByteRange>;
  /** What differs in `target` from `base`, an older snapshot of the same volume, by the handle that the storage has for it. @throws NoDelta */
  delta(base: string, target: string, signal: AbortSignal): AsyncGenerator<ByteRange>;
  close(): void;
}

/** Breaks without a single range between them, after which it is given up. */
const maxBreaks = 6;

const root = protobuf.parse(readFileSync(new URL('../../proto/snapshotmetadata.proto', import.meta.url), 'utf8')).root;
const service = '/snapshotmetadata.SnapshotMetadata';
const fatal: Partial<Record<grpc.status, true>> = {
  [grpc.status.INVALID_ARGUMENT]: true,
  [grpc.status.UNIMPLEMENTED]: true,
  [grpc.status.PERMISSION_DENIED]: true,
};

interface Answer {
  volumeCapacityBytes: number;
  blockMetadata: { byteOffset: number; sizeBytes: number }[];
}

export function snapshotMetadata(options: SnapshotMetadataOptions): SnapshotMetadata {
  const { address, credentials, serverName } = options;
  // A name for TLS, which takes no IP address for one; the certificate is checked by the credentials.
  const named =
    serverName === undefined ? {} : { 'grpc.ssl_target_name_override': isIP(serverName) ? 'ip' : serverName };
  const client = new grpc.Client(address, credentials, named);

  /** One call from an offset on, to its end. */
  async function* call(method: 'Allocated' | 'Delta', fields: object, signal: AbortSignal): AsyncGenerator<Answer> {
    const request = root.lookupType(`snapshotmetadata.GetMetadata${method}Request`);
    const answer = root.lookupType(`snapshotmetadata.GetMetadata${method}Response`);
    const stream = client.makeServerStreamRequest(
      `${service}/GetMetadata${method}`,
      (message: object) => Buffer.from(request.encode(request.fromObject(message)).finish()),
      (bytes: Buffer) => answer.toObject(answer.decode(bytes), { defaults: true, longs: Number }) as Answer,
      { securityToken: await options.token(), namespace: options.namespace, ...fields },
    );
    const cancel = (): void => stream.cancel();
    signal.addEventListener('abort', cancel, { once: true });
    try {
      for await (const message of stream) yield message as Answer;
    } finally {
      signal.removeEventListener('abort', cancel);
      cancel();
    }
  }

  async function* whole(method: 'Allocated' | 'Delta', fields: object, signal: AbortSignal): AsyncGenerator<ByteRange> {
    const pause = backoff(100, 5000, options.random);
    let capacity: number | undefined;
    let end = 0;
    for (let breaks = 0; ;) {
      signal.throwIfAborted();
      try {
        // What is told again after a break may begin before its end.
        let isFirst = end > 0;
        for await (const { volumeCapacityBytes, blockMetadata } of call(
          method,
          { ...fields, startingOffset: end },
          signal,
        )) {
          capacity ??= volumeCapacityBytes;
          if (volumeCapacityBytes !== capacity) throw new NoDelta('the volume changed its size within one answer');
          for (const { byteOffset, sizeBytes } of blockMetadata) {
            const isSound = sizeBytes > 0 && byteOffset >= 0 && byteOffset + sizeBytes <= capacity;
            if (!isSound || (!isFirst && byteOffset < end) || byteOffset + sizeBytes <= end)
              throw new NoDelta(
                `a range of ${sizeBytes} bytes at ${byteOffset} after ${end}, in a volume of ${capacity}`,
              );
            isFirst = false;
            end = byteOffset + sizeBytes;
            breaks = 0;
            yield { offset: byteOffset, length: sizeBytes };
          }
        }
        return;
      } catch (error) {
        signal.throwIfAborted();
        const code = (error as Partial<grpc.ServiceError>).code;
        if (code === undefined) throw error;
        if (code === grpc.status.FAILED_PRECONDITION || code === grpc.status.NOT_FOUND) throw new NoDelta(messageOf(error), { cause: error }); // prettier-ignore
        // Nothing lies behind the offset that was asked for.
        if (code === grpc.status.OUT_OF_RANGE && end > 0) return;
        if (fatal[code] || ++breaks > maxBreaks) throw error;
        await options.clock.sleep(pause.nextMs(), signal);
      }
    }
  }

  return {
    allocated: (snapshot, signal) => whole('Allocated', { snapshotName: snapshot }, signal),
    delta: (base, target, signal) => whole('Delta', { baseSnapshotId: base, targetSnapshotName: target }, signal),
    close: () => client.close(),
  };
}
