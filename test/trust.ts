/** A master's trust and transport with real sockets, its control calls answering who is calling. For tests. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Test } from 'tap';
import { type Identity, type IdentityOptions, joinOrLoad } from '../agent/identity.ts';
import { type Authority, openAuthority } from '../master/authority.ts';
import { openDatabase } from '../master/database.ts';
import type { EventInput } from '../master/engine.ts';
import { type ServerOptions, startServer } from '../master/server.ts';
import { sqliteStore } from '../master/store-sqlite.ts';
import type { Clock } from '../proto/effects.ts';
import type { ReplicationError } from '../proto/errors.ts';
import type { Client } from '../proto/rpc.ts';
import { systemClock, systemRandom } from '../proto/system.ts';

export const dayMs = 86_400_000;

/** The real time plus a shift; sleeps end only by `advance` (or the signal). */
export function shiftedClock() {
  const sleepers: { dueMs: number; wake: () => void }[] = [];
  const clock = {
    shiftMs: 0,
    sleepers,
    nowMs: () => systemClock.nowMs() + clock.shiftMs,
    monotonicMs: () => systemClock.monotonicMs() + clock.shiftMs,
    advance(ms: number): void {
      clock.shiftMs += ms;
      for (const sleeper of sleepers.filter(({ dueMs }) => dueMs <= clock.nowMs())) {
        sleepers.splice(sleepers.indexOf(sleeper), 1);
        sleeper.wake();
      }
    },
    sleep: (ms: number, signal?: AbortSignal) =>
      new Promise<void>((resolve, reject) => {
        signal?.throwIfAborted();
        const sleeper = { dueMs: clock.nowMs() + ms, wake: resolve };
        sleepers.push(sleeper);
        signal?.addEventListener('abort', () => {
          if (sleepers.includes(sleeper)) sleepers.splice(sleepers.indexOf(sleeper), 1);
          reject(signal.reason as Error);
        });
      }),
  };
  return clock satisfies Clock;
}

export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const endMs = Date.now() + 20_000;
  while (!(await condition())) {
    if (Date.now() > endMs) throw new Error(`not reached: ${condition.toString()}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

export async function openMaster(t: Test, options: Partial<ServerOptions> = {}) {
  const dir = await mkdtemp(join(tmpdir(), 'replicator-trust-'));
  const database = openDatabase(join(dir, 'master.db'));
  // The server's own loops sleep by another clock than the agents', so that tests see only the agents' sleepers.
  const clock = shiftedClock();
  const serverClock: Clock = { ...systemClock, nowMs: clock.nowMs };
  const store = sqliteStore(database, { clock, random: systemRandom });
  const events: EventInput[] = [];
  const retries: ReplicationError[] = [];
  const opened: Identity[] = [];
  const reopenAuthority = (hosts: string[] = []): Promise<Authority> => openAuthority({ dir, store, clock, hosts });
  const authority = await reopenAuthority();
  const server = await startServer({
    store,
    authority,
    clock: serverClock,
    events: { emit: (event) => void events.push(event) },
    listen: '127.0.0.1:0',
    mirror: async () => undefined,
    restore: async () => undefined,
    snapshots: async () => undefined,
    control: async (agent, stream) => {
      for await (const _ of stream.receive) await stream.send({ welcome: { protocol: 1, masterVersion: agent } });
    },
    ...options,
  });
  t.teardown(async () => {
    for (const identity of opened) identity.close();
    await server.close();
    store.close();
    await rm(dir, { recursive: true });
  });
  const address = `127.0.0.1:${server.port}`;
  return {
    dir,
    clock,
    store,
    events,
    retries,
    authority,
    reopenAuthority,
    server,
    address,
    async join(name: string, change: Partial<IdentityOptions> = {}): Promise<Identity> {
      const identity = await joinOrLoad(
        {
          dataDir: join(dir, name),
          name,
          master: address,
          joinTokenFile: join(dir, 'join.token'),
          caFile: join(dir, 'ca.pem'),
          agentVersion: '1',
          clock,
          random: systemRandom,
          onRetry: (error) => void retries.push(error),
          ...change,
        },
        new AbortController().signal,
      );
      opened.push(identity);
      return identity;
    },
    /** The name under which the master lets this client in. */
    async whoami(client: Client): Promise<string> {
      const stream = client.control();
      await stream.send({ ping: { number: 1, agentUs: 0, offsetUs: 0, errorUs: 0 } });
      for await (const { welcome } of stream.receive) return welcome?.masterVersion ?? '';
      throw new Error('the call ended without an answer');
    },
  };
}
