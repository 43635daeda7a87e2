/**
 * Snapshots and clones of a claim's volume, taken by the storage of its cluster. The agent may not speak to the cluster's API: the master does,
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
import type { CsiCbtOptions, StorageCopies, VolumeSnapshots } from './capture/csicbt.ts';
import { snapshotMetadata } from './capture/snapshotmetadata.ts';
import type { BlockDevice } from './device.ts';
import type { TreeCopies } from './treecopies.ts';

interface Asking {
  replicationUid: string;
  ask(signal: AbortSignal): Stream<SnapshotRequest, SnapshotReply>;
  /** Of the agent. */
  signal: AbortSignal;
}

export interface ClusterSnapshotsOptions extends Asking {
  /** Checked against what may be read on this node. */
  openDevice(path: string): Promise<BlockDevice>;
  clock: Clock;
  random: Random;
}

/** @throws SnapshotFailed, Disconnected, NotAssigned */
type Ask = (action: SnapshotRequest['action'], name?: string, keep?: readonly string[]) => Promise<SnapshotReply>;

function asking(options: Asking): Ask {
  const { replicationUid, signal } = options;
  return async (action, name = '', keep = []) => {
    const stream = options.ask(signal);
    try {
      await stream.send({ replicationUid, action, name, keep: [...keep] });
      stream.end();
      for await (const reply of stream.receive) return reply;
    } finally {
      stream.cancel();
    }
    throw new ReplicationError('Disconnected', 'the master ended the call without an answer');
  };
}

async function takeOne(ask: Ask, keep: readonly string[]): Promise<string> {
  const { names } = await ask('take', '', keep);
  const [name] = names;
  if (name === undefined) throw new ReplicationError('BadMessage', 'SnapshotReply.names is empty');
  return name;
}

export interface ClusterTreesOptions extends Asking {
  kind: StorageCopies;
  /** The path with links followed. @throws SourceRefused when it may not be read on this node */
  mayRead(path: string): Promise<string>;
}

/** Of a file volume: each is there while it is read, and none between cuts. */
export function clusterTrees(options: ClusterTreesOptions): TreeCopies {
  const ask = asking(options);
  return {
    kind: options.kind,
    async take() {
      const name = await takeOne(ask, []);
      const release = async (): Promise<void> => void (await ask('remove', name).catch(() => undefined));
      try {
        const { path } = await ask('open', name);
        return {
          path: await options.mayRead(path),
          release,
          // A volume goes after its claim, which stays as long as its pod: the same pod has had it all the time.
          async lost() {
            const now = await ask('open', name);
            return now.path === path ? undefined : `${path} was taken away while it was read`;
          },
        };
      } catch (error) {
        await release();
        throw error;
      }
    },
  };
}

/** @throws SnapshotFailed, Disconnected, NotAssigned */
export async function clusterSnapshots(options: ClusterSnapshotsOptions): Promise<CsiCbtOptions> {
  const { clock, random } = options;
  const ask = asking(options);
  const snapshots: VolumeSnapshots = {
    take: (keep) => takeOne(ask, keep),
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
