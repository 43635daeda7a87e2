/**
 * Snapshots of a claim's volume, taken by the storage of its cluster. The agent may not speak to the cluster's API: the master does,
 * and is asked for each step. What differs between two snapshots the driver's own service tells the agent.
 *
 * Failure: what the cluster or the storage refuses is SnapshotFailed with their words, a line that breaks is Disconnected; a snapshot
 * that was made for nobody goes with the next one that is taken.
 */
import * as grpc from '@grpc/grpc-js';
import { checkServerIdentity } from 'node:tls';
import type { Clock, Random } from '../proto/effects.ts';
import { ReplicationError } from '../proto/errors.ts';
import type { Stream } from '../proto/stream.ts';
import type { SnapshotReply, SnapshotRequest } from '../proto/wire.ts';
import type { CsiCbtOptions, VolumeSnapshots } from './capture/csicbt.ts';
import { snapshotMetadata } from './capture/snapshotmetadata.ts';
import type { BlockDevice } from './device.ts';

export interface ClusterSnapshotsOptions {
  replicationUid: string;
  ask(signal: AbortSignal): Stream<SnapshotRequest, SnapshotReply>;
  /** Checked against what may be read on this node. */
  openDevice(path: string): Promise<BlockDevice>;
  clock: Clock;
  random: Random;
  /** Of the agent. */
  signal: AbortSignal;
}

/** @throws SnapshotFailed, Disconnected, NotAssigned */
export async function clusterSnapshots(options: ClusterSnapshotsOptions): Promise<CsiCbtOptions> {
  const { replicationUid, clock, random, signal } = options;

  async function ask(
    action: SnapshotRequest['action'],
    name = '',
    keep: readonly string[] = [],
  ): Promise<SnapshotReply> {
    const stream = options.ask(signal);
    try {
      await stream.send({ replicationUid, action, name, keep: [...keep] });
      stream.end();
      for await (const reply of stream.receive) return reply;
    } finally {
      stream.cancel();
    }
    throw new ReplicationError('Disconnected', 'the master ended the call without an answer');
  }

  const snapshots: VolumeSnapshots = {
    async take(keep) {
      const { names } = await ask('take', '', keep);
      const [name] = names;
      if (name === undefined) throw new ReplicationError('BadMessage', 'SnapshotReply.names is empty');
      return name;
    },
    async open(name) {
      const { path } = await ask('open', name);
      const device = await options.openDevice(path);
      const sizeBytes = await device.size();
      return {
        sizeBytes,
        read: (buffer, position) => device.read(buffer, position),
        nextData: (position) => device.nextData(position),
        nextHole: (position) => device.nextHole(position),
        async release() {
          await device.rest();
          // What shows it goes with the snapshot at the latest.
          await ask('close', name).catch(() => undefined);
        },
      };
    },
    async handle(name) {
      const { handle } = await ask('find', name);
      return handle === '' ? undefined : handle;
    },
    async remove(name) {
      await ask('remove', name);
    },
    list: async () => (await ask('list')).names,
  };

  const { address, caPem, namespace, serverName } = await ask('service');
  if (address === '') return { snapshots, metadata: undefined };
  // What is dialled is an address of the cluster, as a node does not know the cluster's names.
  const credentials = grpc.credentials.createSsl(caPem, null, null, {
    checkServerIdentity: (_, certificate) => checkServerIdentity(serverName, certificate),
  });
  const token = async (): Promise<string> => (await ask('service')).token;
  const metadata = snapshotMetadata({ address, serverName, credentials, namespace, token, clock, random });
  return { snapshots, metadata };
}
