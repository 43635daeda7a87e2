/** The thread of imagedriver.ts: the calls of CSI, on images in a folder. What it has done is posted, before each answer. */
import * as grpc from '@grpc/grpc-js';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { join } from 'node:path';
import { parentPort, workerData } from 'node:worker_threads';
import protobuf from 'protobufjs';
import { run } from '../loop.ts';
import { blockBytes, ranges } from '../conformance/csidriver.ts';

import { driverName, keptPath, maxKept, type DriverNews, type DriverOrder, type ThreadData } from './imagedriver.ts';

const definition = `syntax = "proto3"; package csi.v1;
message Empty {}
message Info { string name = 1; string vendor_version = 2; }
message Capability { message Type { int32 type = 1; } Type service = 1; }
message Capabilities { repeated Capability capabilities = 1; }
message Source { message Snapshot { string snapshot_id = 1; } message Volume { string volume_id = 1; } Snapshot snapshot = 1; Volume volume = 2; }
message CreateVolume { message Range { int64 required_bytes = 1; } string name = 1; Range capacity_range = 2; Source volume_content_source = 6; }
message Volume { int64 capacity_bytes = 1; string volume_id = 2; Source content_source = 4; }
message CreateVolumeAnswer { Volume volume = 1; }
message DeleteVolume { string volume_id = 1; }
message CreateSnapshot { string source_volume_id = 1; string name = 2; }
message Time { int64 seconds = 1; }
message Snapshot { int64 size_bytes = 1; string snapshot_id = 2; string source_volume_id = 3; Time creation_time = 4; bool ready_to_use = 5; }
message SnapshotAnswer { Snapshot snapshot = 1; }
message DeleteSnapshot { string snapshot_id = 1; }
message ListSnapshots { string snapshot_id = 4; }
message SnapshotList { repeated SnapshotAnswer entries = 1; }
message Allocated { string snapshot_id = 1; int64 starting_offset = 2; }
message Delta { string base_snapshot_id = 1; string target_snapshot_id = 2; int64 starting_offset = 3; }
message Block { int64 byte_offset = 1; int64 size_bytes = 2; }
message Blocks { int32 block_metadata_type = 1; int64 volume_capacity_bytes = 2; repeated Block block_metadata = 3; }
`;

/** Numbers of the specification. */
const pluginServices = { controller: 1, metadata: 4 };
const controllerCalls = { volumes: 1, snapshots: 5, list: 6, clones: 7 };

interface Request {
  name: string;
  volumeId: string;
  sourceVolumeId: string;
  snapshotId: string;
  baseSnapshotId: string;
  targetSnapshotId: string;
  startingOffset: number;
  capacityRange?: { requiredBytes: number };
  volumeContentSource?: { snapshot?: { snapshotId: string }; volume?: { volumeId: string } };
}
type Answer = (request: Request) => object;
type Stream = (request: Request) => Generator<object>;

async function serve({ folder, socket }: ThreadData): Promise<void> {
  const root = protobuf.parse(definition).root;
  const refuse: DriverOrder = { deltas: 0, snapshots: 0, clones: 0 };
  const tell = (news: DriverNews): void => parentPort?.postMessage(news);
  /** By volume, oldest first. */
  const kept: Record<string, string[]> = {};
  /** Counts down. */
  const isRefused = (what: keyof DriverOrder): boolean => {
    if (refuse[what] === 0) return false;
    refuse[what]--;
    tell({ refuse });
    return true;
  };
  const took = (id: string, path: string, volume: string): void => {
    tell({ taken: [id, createHash('sha256').update(fs.readFileSync(path)).digest('hex')] });
    const own = (kept[volume] ??= []);
    own.push(keptPath(folder, volume, safe(id)));
    clone(path, own.at(-1) ?? '');
    for (const old of own.splice(0, Math.max(0, own.length - maxKept))) fs.rmSync(old);
  };
  const image = (id: string): string => join(folder, 'volumes', safe(id));
  const snapshot = (id: string): string => join(folder, 'snapshots', safe(id));
  const clone = (from: string, to: string): string => run('cp', '--reflink=always', from, to);
  const capabilities = (...types: number[]): Answer => {
    const all = types.map((type) => ({ service: { type } }));
    return () => ({ capabilities: all });
  };
  const told = (id: string): object => ({
    sizeBytes: fs.statSync(snapshot(id)).size,
    snapshotId: id,
    sourceVolumeId: volumes.get(id) ?? '',
    creationTime: { seconds: Math.floor(fs.statSync(snapshot(id)).mtimeMs / 1000) },
    readyToUse: true,
  });
  /** By snapshot. */
  const volumes = new Map<string, string>();

  function* blocks(target: Buffer, base: Buffer | undefined, from: number): Generator<object> {
    const zeros = Buffer.alloc(blockBytes);
    const differs = (at: number): boolean => {
      const block = target.subarray(at, at + blockBytes);
      return !block.equals((base ?? zeros).subarray(base ? at : 0, (base ? at : 0) + block.length));
    };
    for (const [byteOffset, sizeBytes] of ranges(target.length, from, differs)) {
      if (base) tell({ toldBytes: sizeBytes });
      const blockMetadata = [{ byteOffset, sizeBytes }];
      yield { blockMetadataType: 2, volumeCapacityBytes: target.length, blockMetadata };
    }
  }

  const unary: Record<string, [request: string, answer: string, work: Answer]> = {
    'Identity/GetPluginInfo': ['Empty', 'Info', () => ({ name: driverName, vendorVersion: '1' })],
    'Identity/GetPluginCapabilities': ['Empty', 'Capabilities', capabilities(...Object.values(pluginServices))],
    'Identity/Probe': ['Empty', 'Empty', () => ({})],
    'Controller/ControllerGetCapabilities': ['Empty', 'Capabilities', capabilities(...Object.values(controllerCalls))],
    'Controller/CreateVolume': [
      'CreateVolume',
      'CreateVolumeAnswer',
      ({ name, capacityRange, volumeContentSource }) => {
        const from = volumeContentSource?.snapshot?.snapshotId;
        const source = volumeContentSource?.volume?.volumeId;
        // Asked again until it is known to be there.
        if (!fs.existsSync(image(name))) {
          if (source !== undefined) {
            if (isRefused('clones')) throw Object.assign(new Error('this pool makes no clones'), { code: grpc.status.INVALID_ARGUMENT }); // prettier-ignore
            clone(image(source), image(name));
            took(name, image(name), source);
          } else if (from === undefined) fs.writeFileSync(image(name), '');
          else clone(snapshot(from), image(name));
          fs.truncateSync(image(name), capacityRange?.requiredBytes ?? 0);
        }
        const content = volumeContentSource ? { contentSource: volumeContentSource } : {};
        return { volume: { capacityBytes: fs.statSync(image(name)).size, volumeId: name, ...content } };
      },
    ],
    'Controller/DeleteVolume': [
      'DeleteVolume',
      'Empty',
      ({ volumeId }) => {
        fs.rmSync(image(volumeId), { force: true });
        return {};
      },
    ],
    'Controller/CreateSnapshot': [
      'CreateSnapshot',
      'SnapshotAnswer',
      ({ name, sourceVolumeId }) => {
        if (isRefused('snapshots')) throw Object.assign(new Error('the pool of snapshots is full'), { code: grpc.status.RESOURCE_EXHAUSTED }); // prettier-ignore
        const id = `handle-${name}`;
        if (!fs.existsSync(snapshot(id))) {
          clone(image(sourceVolumeId), snapshot(id));
          volumes.set(id, sourceVolumeId);
          took(id, snapshot(id), sourceVolumeId);
        }
        return { snapshot: told(id) };
      },
    ],
    'Controller/DeleteSnapshot': [
      'DeleteSnapshot',
      'Empty',
      ({ snapshotId }) => {
        fs.rmSync(snapshot(snapshotId), { force: true });
        return {};
      },
    ],
    'Controller/ListSnapshots': [
      'ListSnapshots',
      'SnapshotList',
      ({ snapshotId }) => ({
        entries: fs.existsSync(snapshot(snapshotId)) ? [{ snapshot: told(snapshotId) }] : [],
      }),
    ],
  };
  const streams: Record<string, [request: string, work: Stream]> = {
    'SnapshotMetadata/GetMetadataAllocated': [
      'Allocated',
      ({ snapshotId, startingOffset }) => blocks(fs.readFileSync(snapshot(snapshotId)), undefined, startingOffset),
    ],
    'SnapshotMetadata/GetMetadataDelta': [
      'Delta',
      function* ({ baseSnapshotId, targetSnapshotId, startingOffset }) {
        if (isRefused('deltas')) throw Object.assign(new Error('these two cannot be compared'), { code: grpc.status.FAILED_PRECONDITION }); // prettier-ignore
        yield* blocks(
          fs.readFileSync(snapshot(targetSnapshotId)),
          fs.readFileSync(snapshot(baseSnapshotId)),
          startingOffset,
        );
      },
    ],
  };

  const server = new grpc.Server();
  const coded = (name: string) => {
    const type = root.lookupType(name);
    return {
      encode: (message: object): Buffer => Buffer.from(type.encode(type.fromObject(message)).finish()),
      decode: (bytes: Buffer): Request =>
        type.toObject(type.decode(bytes), { defaults: true, longs: Number }) as Request,
    };
  };
  const method = (path: string, request: string, answer: string, responseStream: boolean) => ({
    path: `/csi.v1.${path}`,
    requestStream: false,
    responseStream,
    requestSerialize: coded(request).encode,
    requestDeserialize: coded(request).decode,
    responseSerialize: coded(answer).encode,
    responseDeserialize: coded(answer).decode,
  });
  const failure = (error: unknown): Partial<grpc.ServiceError> => {
    const { code = grpc.status.INTERNAL, message } = error as Error & { code?: grpc.status };
    return { code: typeof code === 'number' ? code : grpc.status.INTERNAL, details: message };
  };
  for (const [path, [request, answer, work]] of Object.entries(unary))
    server.addService(
      { call: method(path, request, answer, false) },
      {
        call(call: grpc.ServerUnaryCall<Request, object>, callback: grpc.sendUnaryData<object>) {
          try {
            callback(null, work(call.request));
          } catch (error) {
            callback(failure(error));
          }
        },
      },
    );
  for (const [path, [request, work]] of Object.entries(streams))
    server.addService(
      { call: method(path, request, 'Blocks', true) },
      {
        call(call: grpc.ServerWritableStream<Request, object>) {
          try {
            for (const message of work(call.request)) call.write(message);
            call.end();
          } catch (error) {
            call.emit('error', failure(error));
          }
        },
      },
    );
  parentPort?.on('message', (order: DriverOrder) => Object.assign(refuse, order));
  await new Promise<void>((resolve, reject) =>
    server.bindAsync(`unix:${socket}`, grpc.ServerCredentials.createInsecure(), (error) =>
      error ? reject(error) : resolve(),
    ),
  );
  tell({ ready: true });
}

function safe(id: string): string {
  if (!/^[\w-]+$/.test(id)) throw new Error(`${id} is no id of ours`);
  return id;
}

await serve(workerData as ThreadData);
