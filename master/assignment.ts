/** What an agent is told of a replication. Pure. */
import type { Assignment } from '../proto/wire.ts';
import type { Replication } from './resources.ts';

/** Newest requests that the agent has said are durable. */
export interface Done {
  sync: number;
  resync: number;
  verify: number;
}

export function assignmentOf({ metadata, spec, status, requests }: Replication, done: Done): Assignment {
  return {
    replicationUid: metadata.uid,
    name: metadata.name,
    // A source that was fenced off keeps noting what changes there, and is not told who may write now.
    fencingGeneration: requests.fencedBy === undefined ? status.fencingGeneration : '0',
    path: spec.source.path,
    volumeMode: spec.source.volumeMode,
    include: spec.source.include,
    exclude: spec.source.exclude,
    continuous: spec.trigger.continuous === true,
    cutIntervalSeconds: Math.min(60, Math.max(1, spec.rpoSeconds / 2)),
    consistency: spec.consistency ?? '',
    maxFreezeMs: spec.maxFreezeMs,
    compression: spec.compression,
    bandwidthBytesPerSecond: spec.bandwidthBytesPerSecond,
    readBytesPerSecond: spec.readBytesPerSecond,
    paused: spec.paused || requests.fencedBy !== undefined,
    syncRequest: requests.sync > done.sync ? requests.sync : 0,
    resyncRequest: requests.resync > done.resync ? requests.resync : 0,
    verifyRequest: requests.verify > done.verify ? requests.verify : 0,
    // Meant for that resync: later ones, and a source that is emptied later, are asked about again.
    force: requests.force && requests.resync > done.resync,
    beforeFreeze: spec.hooks?.beforeFreeze ?? [],
    afterThaw: spec.hooks?.afterThaw ?? [],
    hookTimeoutSeconds: spec.hooks?.timeoutSeconds ?? 30,
    group: spec.group ?? '',
    snapshots: spec.copyMethod === 'Snapshot' || spec.copyMethod === 'Clone',
    clones: spec.copyMethod === 'Clone',
  };
}
