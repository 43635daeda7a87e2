/**
 * What of the configuration a running master takes over: on SIGHUP, and each hour for certificates that were renewed.
 *
 * All or nothing: a file that is wrong is refused as a whole, the event says why, and what was so stays. What cannot be taken over is
 * named.
 */
import { isDeepStrictEqual } from 'node:util';
import type { Clock } from '../proto/effects.ts';
import { messageOf } from '../proto/errors.ts';
import { reloadable } from './configuration.ts';
import type { Configured } from './configuration.ts';
import type { Events } from './engine.ts';

const everyMs = 3_600_000;

export interface Reloading {
  clock: Pick<Clock, 'sleep'>;
  events: Events;
  /** As the master was started. */
  before: Configured;
  read: () => Promise<Configured>;
  /** Takes over the reloadable keys; may be called with what is so already. */
  apply: (configured: Configured) => void;
}

export interface Reload {
  /** Reads and takes over; never throws. `isAsked`: a person did, and hears of it even when nothing has changed. */
  now(isAsked: boolean): Promise<void>;
  /** Once an hour, until the signal aborts. */
  run(signal: AbortSignal): Promise<void>;
}

export function reloads({ clock, events, before, read, apply }: Reloading): Reload {
  let current = before;
  let refused = '';
  const reload: Reload = {
    async now(isAsked) {
      try {
        const next = await read();
        const keys = [...new Set([...Object.keys(current), ...Object.keys(next)])] as (keyof Configured)[];
        const changed = keys.filter((key) => !isDeepStrictEqual(current[key], next[key]));
        const taken = changed.filter((key) => isReloadable(key));
        const left = changed.filter((key) => !isReloadable(key));
        apply(next);
        refused = '';
        // What wants a restart stays to be told of until there was one.
        current = { ...next, ...Object.fromEntries(left.map((key) => [key, current[key]])) };
        if (!isAsked && taken.length === 0) return;
        const restart = left.length === 0 ? '' : `; ${left.join(', ')} will be with the next start`;
        events.emit({
          code: 'ConfigReloaded',
          level: left.length === 0 ? 'INFO' : 'WARNING',
          message: `${taken.length === 0 ? 'nothing has changed that can be taken over' : `${taken.join(', ')} taken over`}${restart}`,
          object: null,
        });
      } catch (error) {
        const message = messageOf(error);
        if (!isAsked && message === refused) return;
        refused = message;
        events.emit({
          code: 'ConfigRefused',
          level: 'ERROR',
          message: `${message} Nothing was changed.`,
          object: null,
        });
      }
    },
    async run(signal) {
      try {
        for (;;) {
          await clock.sleep(everyMs, signal);
          await reload.now(false);
        }
      } catch (error) {
        if (!signal.aborted) throw error;
      }
    },
  };
  return reload;
}

function isReloadable(key: keyof Configured): boolean {
  return (reloadable as readonly (keyof Configured)[]).includes(key);
}
