/**
 * Confirming a failover: what it recovered becomes the source, and `<name>-failback` mirrors it into the replica that the old
 * replication had, with all its points, snapshots and locks. Only what differs from the replica is sent.
 *
 * Guarantees: each step may be done again after a crash; the replica has one replication at a time that opens it, and its new
 * writer has a generation above all before. Failure: no agent of this machine can read the copy: it says so, and what to do.
 */
import { readFileSync } from 'node:fs';
import { ReplicationError } from '../../proto/errors.ts';
import type { Events } from '../engine.ts';
import { replicaUid } from '../mirrorstate.ts';
import { claimOfPath } from './claimtarget.ts';
import { volumeOf } from './writeback.ts';
import type { AgentVolume, ClaimRef, Recovery, Replication } from '../resources.ts';
import { snapshotKey, type Store } from '../store.ts';
import { nextGeneration } from './generation.ts';

export interface FailbackOptions {
  store: Store;
  events: Events;
  /** What a path is to a connected agent; undefined: it does not say. */
  look: (agent: string, path: string, write?: boolean) => Promise<AgentVolume | undefined>;
  /** Of this machine; agents of the same one have it too. */
  bootId?: string;
}

/** Answers what a person should know. @throws SourceRefused when nobody can mirror the copy */
export async function handOver(options: FailbackOptions, recovery: Recovery, index: number): Promise<string> {
  const { store, events } = options;
  const task = recovery.status.tasks[index];
  const path = task?.path ?? '';
  const old = store.get('Replication', task?.volume ?? '');
  const name = failbackName(task?.volume ?? '');
  const object = `Replication/${name}`;
  const chosen = volumeOf(recovery.spec, task?.volume ?? '')?.agent;
  const message = `${chosen === undefined ? '' : `${chosen}:`}${path} is mirrored by replication ${name}`;
  if (!old) {
    // A crash after the last step.
    if (store.get('Replication', name)) return message;
    throw new ReplicationError('PointGone', `replication ${task?.volume} was deleted`);
  }
  if (old.requests.fencedBy !== recovery.metadata.uid)
    throw new ReplicationError('Fenced', `${old.metadata.name} is not held by this recovery any more`);
  const made = store.get('Replication', name);
  if (!made) {
    const pvc = claimOfPath(path);
    // The master finds where it is read, once a pod uses it.
    const source = pvc ? { pvc, agent: '', path: '' } : { agent: chosen ?? (await agentFor(options, path)), path };
    store.create('Replication', name, reverse(old, name, source));
    events.emit({ code: 'ReplicationCreated', level: 'INFO', message, object });
  } else if (replicaUid(made) !== replicaUid(old))
    throw new ReplicationError('TargetRefused', `there is a replication ${name} already; delete that first`);
  for (const snapshot of store.list('Snapshot').filter(({ spec }) => spec.replication === old.metadata.name)) {
    const key = snapshotKey(name, snapshot.metadata.name);
    if (!store.get('Snapshot', key))
      store.create('Snapshot', key, { ...snapshot, spec: { ...snapshot.spec, replication: name } });
    store.delete('Snapshot', snapshotKey(old.metadata.name, snapshot.metadata.name));
  }
  for (const group of store.list('Group'))
    store.update('Group', group.metadata.name, ({ spec }) => {
      for (const member of spec.members) if (member.replication === old.metadata.name) member.replication = name;
    });
  // Last: from here on the new one opens the replica.
  store.delete('Replication', old.metadata.name);
  const ended = `ended by the confirmation of ${recovery.metadata.name}; ${name} goes on with its replica`;
  events.emit({
    code: 'ReplicationDeleted',
    level: 'INFO',
    message: ended,
    object: `Replication/${old.metadata.name}`,
  });
  return message;
}

/** There and back: the second confirmation gives the first name again. */
export function failbackName(name: string): string {
  const suffix = '-failback';
  if (name.endsWith(suffix) && name.length > suffix.length) return name.slice(0, -suffix.length);
  return `${name.slice(0, 63 - suffix.length)}${suffix}`;
}

async function agentFor({ store, look, bootId = ownBootId() }: FailbackOptions, path: string): Promise<string> {
  const here = store.list('Agent').filter(({ status }) => status.bootId === bootId && status.state === 'ACTIVE');
  const reasons: string[] = [];
  for (const { metadata } of here) {
    const volume = await look(metadata.name, path);
    if (volume?.eligible === true) return metadata.name;
    reasons.push(`${metadata.name}: ${volume?.reason ?? 'it does not answer'}`);
  }
  const why = reasons.join('; ') || "there is none on the master's machine";
  throw new ReplicationError(
    'SourceRefused',
    `no agent can mirror ${path} from now on (${why}): start one here with --allow ${path}, or confirm with force: then nothing mirrors it`,
  );
}

/** As it is mirrored from now on: the sides changed, the rest as it was. */
export function reverse(
  { apiVersion, kind, metadata, spec, status, requests }: Replication,
  name: string,
  at: { pvc?: ClaimRef; agent: string; path: string },
) {
  const { displayName, namespace, labels, annotations } = metadata;
  // What was recovered is no claim of the old cluster's, nor on its storage.
  const { pvc: _, volumeSnapshotClassName: __, storageClassName: ___, ...source } = spec.source;
  const copyMethod = at.pvc ? spec.copyMethod : 'Direct';
  return {
    apiVersion,
    kind,
    metadata: {
      name,
      ...(displayName === undefined ? {} : { displayName }),
      ...(namespace === undefined ? {} : { namespace }),
      ...(labels === undefined ? {} : { labels }),
      ...(annotations === undefined ? {} : { annotations }),
    },
    spec: { ...spec, replicationState: 'primary' as const, copyMethod, source: { ...source, ...at } },
    status: {
      ...status,
      phase: 'Pending' as const,
      role: 'Secondary' as const,
      fencingGeneration: nextGeneration(status.fencingGeneration),
      captureMethod: null,
      conditions: [],
    },
    // It is another volume by its identity, and meant: compared whole, and only what differs is sent.
    requests: {
      ...{ sync: 0, resync: 1, verify: 0, force: true, replica: requests.replica ?? metadata.uid },
      ...(requests.fork && { fork: requests.fork }),
      ...(requests.damage && { damage: requests.damage }),
    },
  };
}

function ownBootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
}
