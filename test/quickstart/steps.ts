/**
 * The steps of the quickstart against a running master: each waits for its end by the API's event stream and throws
 * with the master's own reason when it cannot be reached.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { follow, type Client } from '../../master/cli/client.ts';
import { liveLine, type Paint } from '../../master/cli/format.ts';
import { recoveryLine, replicationLine } from '../../master/cli/progress.ts';
import type { Agent, Recovery, Replication, Snapshot } from '../../master/resources.ts';
import { nameFor, type Source } from './source.ts';

const startSeconds = 60;
/** How long trouble may last before it is the end of the quickstart; mirroring itself would go on trying. */
const patienceSeconds = 120;

export async function endpoints(dataDirectory: string, signal: AbortSignal): Promise<{ http: string; grpc: string }> {
  const path = join(dataDirectory, 'endpoints.json');
  for (const endMs = performance.now() + startSeconds * 1000; performance.now() < endMs;) {
    if (existsSync(path)) return JSON.parse(readFileSync(path, 'utf8')) as { http: string; grpc: string };
    await sleep(50, undefined, { signal });
  }
  throw new Error(`The master was not ready within ${startSeconds} s: ${path} is not there.`);
}

export async function agentActive(client: Client, name: string, signal: AbortSignal): Promise<void> {
  const limit = AbortSignal.any([signal, AbortSignal.timeout(startSeconds * 1000)]);
  try {
    const { items, metadata } = await client.list<Agent>('/agents');
    const active = (agent: Agent) => agent.metadata.name === name && agent.status.state === 'ACTIVE';
    if (items.some(active)) return;
    for await (const { object } of client.watch<Agent>('/agents', metadata.resourceVersion, limit))
      if (active(object)) return;
  } catch (error) {
    if (!limit.aborted || signal.aborted) throw error;
    throw new Error(`The agent did not join within ${startSeconds} s.`, { cause: error });
  }
}

/** The replication of this source: one of an earlier run with the same data, or a new one. */
export async function replicationOf(client: Client, agent: string, source: Source): Promise<Replication> {
  const { items } = await client.list<Replication>('/replications');
  const same = items.find(({ spec }) => spec.source.agent === agent && spec.source.path === source.path);
  if (same !== undefined) return same;
  const taken = new Set(items.map(({ metadata }) => metadata.name));
  let name = nameFor(source.path);
  for (let n = 2; taken.has(name); n++) name = `${nameFor(source.path)}-${n}`;
  return client.send<Replication>('POST', '/replications', {
    metadata: { name },
    spec: {
      source: { agent, path: source.path, volumeMode: source.volumeMode },
      target: { storageClass: 'local' },
      rpoSeconds: 5,
    },
  });
}

/** Until the copy is complete and holds what the source held at `sinceMs`. */
export async function mirrored(
  client: Client,
  replication: Replication,
  sinceMs: number,
  paint: Paint,
  signal: AbortSignal,
): Promise<Replication> {
  const patience = new AbortController();
  const both = AbortSignal.any([signal, patience.signal]);
  const live = liveLine(process.stdout);
  let timer: NodeJS.Timeout | undefined;
  let trouble = '';
  let shownMs = -Infinity;
  try {
    for await (const now of follow<Replication>(
      client,
      '/replications',
      replication.metadata.name,
      both,
      replication,
    )) {
      const { state, recoveryPoint, lastSyncTime, progress } = now.status;
      const done = state === 'NORMAL' && recoveryPoint !== null && Date.parse(lastSyncTime ?? '') >= sinceMs;
      if (done || process.stdout.isTTY || performance.now() - shownMs > 1000) {
        live.show(`  ${replicationLine(now, paint)}`);
        shownMs = performance.now();
      }
      if (done) return now;
      if (state === 'FAILED') throw new Error(`Mirroring failed: ${reasonOf(now)}`);
      // Bytes that move are no trouble, however long they take; an error or a cut that does not come is.
      const moving = state === 'PREPARING' && progress !== null && progress.bytesDone < progress.bytesTotal;
      const current = moving ? '' : `${state}: ${reasonOf(now)}`;
      if (current !== trouble || moving) {
        clearTimeout(timer);
        timer = setTimeout(() => patience.abort(), patienceSeconds * 1000);
        trouble = current;
      }
    }
    throw new Error('The replication was deleted meanwhile.');
  } catch (error) {
    if (!patience.signal.aborted || signal.aborted) throw error;
    throw new Error(`Mirroring did not get on for ${patienceSeconds} s: ${trouble || 'no bytes moved'}`, {
      cause: error,
    });
  } finally {
    clearTimeout(timer);
    live.end();
  }
}

export function reasonOf({ status }: Replication): string {
  const wrong = status.conditions.filter(({ type, status }) => (type === 'Degraded') === (status === 'True'));
  const told = wrong.find(({ type }) => type === 'Degraded') ?? wrong.find(({ message }) => message !== '');
  return told === undefined ? 'no reason is known' : `${told.reason}: ${told.message}`;
}

export async function snapshotOf(client: Client, replication: string, signal: AbortSignal): Promise<Snapshot> {
  const collection = `/replications/${replication}/snapshots`;
  const made = await client.send<Snapshot>('POST', collection, {});
  for await (const snapshot of follow<Snapshot>(client, collection, made.metadata.name, signal, made)) {
    if (snapshot.status.state === 'Ready') return snapshot;
    if (snapshot.status.state === 'Failed') throw new Error(`The snapshot failed: ${snapshot.status.message}`);
  }
  throw new Error('The snapshot was deleted meanwhile.');
}

/** Runs a drill of the newest data. @throws unless the copy was read back whole and is right */
export async function drill(
  client: Client,
  replication: string,
  paint: Paint,
  onCreated: (recovery: Recovery) => void,
  signal: AbortSignal,
): Promise<Recovery> {
  const made = await client.send<Recovery>('POST', '/recoveries', { replication, type: 'drill', point: 'latest-data' });
  onCreated(made);
  const live = liveLine(process.stdout);
  try {
    for await (const recovery of follow<Recovery>(client, '/recoveries', made.metadata.name, signal, made)) {
      if (process.stdout.isTTY) live.show(`  ${recoveryLine(recovery, paint)}`);
      onCreated(recovery);
      const { outcome, message, verified } = recovery.status;
      if (outcome === null) continue;
      if (outcome !== 'success') throw new Error(`The drill ended ${outcome}: ${message ?? 'no reason is known'}`);
      if (verified !== true) throw new Error('The drill ended, but its copy was not verified.');
      return recovery;
    }
  } finally {
    live.end();
  }
  throw new Error('The recovery was deleted meanwhile.');
}
