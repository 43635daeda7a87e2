/**
 * The replications that this agent mirrors: one loop each, started and stopped as the master's list says.
 *
 * Guarantees: at most one loop per replication; a loop whose replication is no longer assigned has ended before another
 * one for it begins. The list stays in force while the master is away.
 */
import type { Logger } from 'pino';
import type { Clock, Random } from '../proto/effects.ts';
import type { AgentEvent, Assignment, Report } from '../proto/wire.ts';
import { mirror, type MirrorDependencies } from './mirror.ts';
import type { MirrorCall } from './sender.ts';
import type { Source } from './source.ts';

export interface AssignmentsOptions {
  /** Its nowMs is what `masterUs` maps. */
  clock: Clock;
  random: Random;
  log: Pick<Logger, 'debug' | 'info' | 'warn'>;
  /** As agent/control.ts: known since the first assignments. */
  masterUs(agentUs: number): number;
  protocol(): number;
  /** @param id of the call, for the logs of both sides */
  connect(signal: AbortSignal, id: string): MirrorCall;
  report(report: Report): void;
  event(event: Omit<AgentEvent, 'agentUs'>): void;
  openSource(assignment: Assignment, event: MirrorDependencies['event']): Promise<Source>;
}

interface Loop {
  assignment: Assignment;
  stop: AbortController;
  ended: Promise<void>;
  changed: Set<() => void>;
}

export interface AssignedMirrors {
  set(items: Assignment[]): void;
  /** Those that are no longer assigned have let go of their volumes. */
  ended(): Promise<void>;
  /** Until the signal aborts and every loop has ended. */
  run(signal: AbortSignal): Promise<void>;
}

export function assignments(options: AssignmentsOptions): AssignedMirrors {
  const loops = new Map<string, Loop>();
  /** By replication: those that were stopped and are not over yet. */
  const ending = new Map<string, Promise<void>>();
  let stopped = false;

  function start(assignment: Assignment, after: Promise<void>): Loop {
    const { replicationUid: uid, name } = assignment;
    const stop = new AbortController();
    const loop: Loop = { assignment, stop, ended: Promise.resolve(), changed: new Set() };
    let call: string | undefined;
    const event: MirrorDependencies['event'] = (one) => {
      options.log[one.level === 'INFO' ? 'info' : 'warn']({ replication: name, call, code: one.code }, one.message);
      options.event({ ...one, replicationUid: uid });
    };
    loop.ended = after.then(() =>
      mirror(
        {
          clock: options.clock,
          random: options.random,
          assignment: () => loop.assignment,
          changed: (signal) => nextChange(loop, signal),
          openSource: (now) => options.openSource(now, event),
          connect(signal) {
            call = options.random.bytes(8).toString('hex');
            options.log.debug({ replication: name, call }, 'a session begins');
            return options.connect(signal, call);
          },
          protocol: () => options.protocol(),
          toMasterUs: async (agentUs) => options.masterUs(agentUs),
          report: (report) => options.report(report),
          event,
        },
        stop.signal,
      ),
    );
    options.log.info({ replication: name, path: assignment.path }, 'mirroring begins');
    return loop;
  }

  function end(loop: Loop): Promise<void> {
    const uid = loop.assignment.replicationUid;
    loop.stop.abort();
    const ended = loop.ended.finally(() => {
      if (ending.get(uid) === ended) ending.delete(uid);
    });
    ending.set(uid, ended);
    return ended;
  }

  return {
    set(items) {
      if (stopped) return;
      const wanted = new Map(items.map((item) => [item.replicationUid, item]));
      for (const [uid, loop] of loops) {
        if (wanted.has(uid)) continue;
        options.log.info({ replication: loop.assignment.name }, 'mirroring ends');
        loops.delete(uid);
        void end(loop);
      }
      for (const [uid, item] of wanted) {
        const loop = loops.get(uid);
        if (!loop) {
          // One of the same replication may still be closing its source; those of others are nothing to wait for.
          loops.set(uid, start(item, ending.get(uid) ?? Promise.resolve()));
        } else if (JSON.stringify(loop.assignment) !== JSON.stringify(item)) {
          loop.assignment = item;
          for (const wake of [...loop.changed]) wake();
        }
      }
    },
    async ended() {
      await Promise.allSettled(ending.values());
    },
    async run(signal) {
      await new Promise<void>((resolve) => {
        if (signal.aborted) return resolve();
        signal.addEventListener('abort', () => resolve(), { once: true });
      });
      stopped = true;
      for (const loop of loops.values()) void end(loop);
      await Promise.allSettled(ending.values());
    },
  };
}

function nextChange(loop: Loop, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const wake = () => {
      loop.changed.delete(wake);
      signal.removeEventListener('abort', wake);
      resolve();
    };
    if (signal.aborted) return resolve();
    loop.changed.add(wake);
    signal.addEventListener('abort', wake);
  });
}
