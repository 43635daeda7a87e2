/**
 * A CSI driver's snapshots and its SnapshotMetadata service, as a real gRPC server: the volume is an image on a filesystem with
 * reflinks, a snapshot is a clone of it, and the differences are found by comparing the bytes. Calls break at random.
 */
import * as grpc from '@grpc/grpc-js';
import protobuf from 'protobufjs';
import fs, { promises, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { VolumeSnapshots } from '../../agent/capture/csicbt.ts';
import { ficlone } from '../../proto/libc.ts';
import { diskFile } from '../../proto/system.ts';

const proto = new URL('../../proto/snapshotmetadata.proto', import.meta.url);
export const blockBytes = 4096;
/** Fewer than the client takes before it gives up: a driver that breaks now and then answers in the end. */
const mostBrokenInRow = 5;

interface Request {
  securityToken: string;
  namespace: string;
  snapshotName: string;
  baseSnapshotId: string;
  targetSnapshotName: string;
  startingOffset: number;
  maxResults: number;
}

export interface Driver {
  address: string;
  snapshots: VolumeSnapshots;
  /** Answers FAILED_PRECONDITION to the next so many deltas. */
  refuse: number;
  /** Of calls that break after some messages. */
  breakChance: number;
  /** Requests as they came. */
  calls: Request[];
  close(): void;
}

/** Ranges of blocks for which `differs`, ascending. */
export function* ranges(size: number, from: number, differs: (at: number) => boolean): Generator<[number, number]> {
  let start = -1;
  for (let at = Math.floor(from / blockBytes) * blockBytes; at < size; at += blockBytes) {
    if (differs(at) && start < 0) start = at;
    else if (!differs(at) && start >= 0) {
      yield [start, at - start];
      start = -1;
    }
  }
  if (start >= 0) yield [start, size - start];
}

export async function startDriver(image: string, folder: string, next: () => number): Promise<Driver> {
  const root = protobuf.parse(readFileSync(proto, 'utf8')).root;
  const snapshot = (name: string): Buffer | undefined => {
    const path = join(folder, name);
    return /^[\w-]+$/.test(name) && fs.existsSync(path) ? fs.readFileSync(path) : undefined;
  };
  let made = 0;
  let brokenInRow = 0;

  const handler =
    (method: 'Allocated' | 'Delta') =>
    (call: grpc.ServerWritableStream<Buffer, object>): void => {
      const type = root.lookupType(`snapshotmetadata.GetMetadata${method}Request`);
      const request = type.toObject(type.decode(call.request), { defaults: true, longs: Number }) as Request;
      driver.calls.push(request);
      const fail = (code: grpc.status, details: string): void => void call.emit('error', Object.assign(new Error(details), { code, details })); // prettier-ignore
      if (request.securityToken !== 'token-for-tests') return fail(grpc.status.UNAUTHENTICATED, 'no such token');
      const target = snapshot(method === 'Delta' ? request.targetSnapshotName : request.snapshotName);
      const base = method === 'Delta' ? snapshot(request.baseSnapshotId.replace(/^handle-/, '')) : Buffer.alloc(0);
      if (!target || !base) return fail(grpc.status.NOT_FOUND, 'there is no such snapshot');
      if (method === 'Delta' && driver.refuse > 0) {
        driver.refuse--;
        return fail(grpc.status.FAILED_PRECONDITION, 'changed blocks of these snapshots are not known');
      }
      const zeros = Buffer.alloc(blockBytes);
      const differs = (at: number): boolean => {
        const block = target.subarray(at, at + blockBytes);
        return !block.equals(method === 'Delta' ? base.subarray(at, at + blockBytes) : zeros.subarray(0, block.length));
      };
      const all = [...ranges(target.length, request.startingOffset, differs)];
      // So many in a row are a driver that does not answer.
      const isBroken = brokenInRow < mostBrokenInRow && next() < driver.breakChance;
      brokenInRow = isBroken ? brokenInRow + 1 : 0;
      const most = isBroken ? Math.floor(next() * all.length) : all.length;
      for (let at = 0; at < most; at += 7) {
        const blockMetadata = all
          .slice(at, Math.min(most, at + 7))
          .map(([byteOffset, sizeBytes]) => ({ byteOffset, sizeBytes }));
        call.write({ blockMetadataType: 2, volumeCapacityBytes: target.length, blockMetadata });
      }
      if (isBroken) fail(grpc.status.UNAVAILABLE, 'the sidecar is being restarted');
      else call.end();
    };

  const definition = (method: 'Allocated' | 'Delta') => ({
    path: `/snapshotmetadata.SnapshotMetadata/GetMetadata${method}`,
    requestStream: false,
    responseStream: true,
    requestSerialize: (bytes: Buffer) => bytes,
    requestDeserialize: (bytes: Buffer) => bytes,
    responseSerialize(message: object) {
      const type = root.lookupType(`snapshotmetadata.GetMetadata${method}Response`);
      return Buffer.from(type.encode(type.fromObject(message)).finish());
    },
    responseDeserialize: (bytes: Buffer) => bytes,
  });
  const server = new grpc.Server();
  server.addService(
    { allocated: definition('Allocated'), delta: definition('Delta') },
    { allocated: handler('Allocated'), delta: handler('Delta') },
  );
  const { promise, resolve, reject } = Promise.withResolvers<number>();
  server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, port) => error ? reject(error) : resolve(port)); // prettier-ignore

  const snapshots: VolumeSnapshots = {
    async take() {
      const name = `snapshot-${++made}-${Date.now()}`;
      await using source = await promises.open(image, 'r');
      await using file = await promises.open(join(folder, name), 'wx+');
      await ficlone(file.fd, source.fd);
      return name;
    },
    async open(name) {
      const file = await promises.open(join(folder, name), 'r');
      const reader = diskFile(file);
      return {
        sizeBytes: await reader.size(),
        read: (buffer, position) => reader.read(buffer, position),
        // A device that was restored from a snapshot has no holes that could be asked for.
        nextData: async (position) => position,
        nextHole: () => reader.size(),
        release: () => file.close(),
      };
    },
    handle: async (name) => (fs.existsSync(join(folder, name)) ? `handle-${name}` : undefined),
    remove: (name) => promises.rm(join(folder, name), { force: true }),
    list: async () => fs.readdirSync(folder),
  };
  const driver: Driver = {
    address: `127.0.0.1:${await promise}`,
    snapshots,
    refuse: 0,
    breakChance: 0,
    calls: [],
    close: () => server.forceShutdown(),
  };
  return driver;
}
