/**
 * What happened, for people and for sinks: kept in SQLite, the newest 10,000, to be listed and watched by version.
 *
 * Guarantees: an event that `emit` returned from is durable. The same code, object and message again within a minute is
 * counted into the first one, and counts are written at most once a second, so that no fault in a loop floods disk or
 * readers; a crash may lose the counts of its last second, never an event. Codes from outside that the table does not have
 * become AgentEvent.
 * Not here: sending events anywhere (sinks.ts), and secrets - callers never put any in.
 */
import type { DatabaseSync } from 'node:sqlite';
import { apiVersion } from './resources.ts';
import type { EventView } from './api/schema/event.ts';
import { levels } from './api/schema/event.ts';
import { changed } from './changed.ts';
import { number, text } from './database.ts';
import type { EventInput, Events } from './engine.ts';
import { StoreConflict } from './store.ts';
import type { Clock } from '../proto/effects.ts';
import { transaction } from '../proto/sqlite.ts';

/** Every code, what it belongs to and what it means. */
export const eventCodes = {
  MasterStarted: { service: 'master', text: 'The master is ready; the message has its version.' },
  MasterTookOver: {
    service: 'master',
    text: "This master goes on from a copy of another one's state; the message says of when, and what waits for a person.",
  },
  StateCopied: { service: 'master', text: "The copy of this master's state is written again." },
  StateCopyTrouble: { service: 'master', text: "The copy of this master's state cannot be written; see the message." },
  MasterStopped: { service: 'master', text: 'The master was stopped in order.' },
  Leading: { service: 'master', text: 'This master leads from now on; the others wait.' },
  NotAccepted: {
    service: 'master',
    text: 'A resource made in Kubernetes cannot be taken on yet; the message says why.',
  },
  DeletionWaits: { service: 'master', text: 'A resource is to be deleted and cannot be yet; the message says why.' },
  ActionDone: { service: 'master', text: 'What the annotation of a resource asked for is done.' },
  ActionRefused: { service: 'master', text: 'What the annotation of a resource asks for is refused; see the message.' },
  MasterTrouble: {
    service: 'master',
    text: 'A part of the master does not work as it should; the message says which.',
  },
  ConfigReloaded: { service: 'master', text: 'The configuration was read again; the message says what took effect.' },
  ConfigRefused: {
    service: 'master',
    text: 'The configuration is wrong; the message says where. Nothing was changed.',
  },
  AgentJoined: { service: 'agent', text: 'A node joined with a token and got its certificate.' },
  AgentConnected: { service: 'agent', text: 'The agent is connected.' },
  AgentDisconnected: { service: 'agent', text: 'The line to the agent ended; it dials again by itself.' },
  AgentRevoked: { service: 'agent', text: 'A person revoked the agent; it must join anew with a new token.' },
  AgentReplaced: { service: 'agent', text: 'The same node joined again; its earlier certificates are worthless.' },
  AgentRefused: { service: 'agent', text: 'Someone was not let in: token, certificate or name; the message says why.' },
  BootstrapStarted: { service: 'agent', text: 'An agent is being installed on a host over SSH.' },
  BootstrapCompleted: { service: 'agent', text: 'An agent was installed over SSH and is connected.' },
  BootstrapFailed: {
    service: 'agent',
    text: 'An installation over SSH failed; the message says why and what of it is left on the host.',
  },
  AgentEvent: { service: 'agent', text: 'An agent reports something that this master has no code for.' },
  ReplicationCreated: { service: 'replication', text: 'A replication was created.' },
  ReplicationDeleted: {
    service: 'replication',
    text: 'A replication was deleted; the message says what became of its data.',
  },
  ClusterState: {
    service: 'master',
    text: 'The line to a cluster whose claims may be mirrored: ACTIVE, WARNING (a right is missing), CONN FAILED, NO CONN INFO.',
  },
  SourceMoved: { service: 'replication', text: 'The claim of a replication is at another place, and is read there.' },
  ProtectionRefused: {
    service: 'replication',
    text: 'A claim that asks for protection cannot have it; the message says why.',
  },
  ReplicationState: { service: 'replication', text: 'The state changed (PREPARING, NORMAL, FAILED, ERROR).' },
  PhaseChanged: { service: 'replication', text: 'The phase changed, such as InitialSync to Mirroring.' },
  CaptureChosen: { service: 'replication', text: 'How changes of the source are found, and why this way.' },
  FullScan: { service: 'replication', text: 'The whole source is read; the message says why.' },
  CaptureStarted: { service: 'replication', text: 'What changed before cannot be told; the message says why.' },
  CaptureResumed: { service: 'replication', text: 'What changed while the agent was away is known; see the message.' },
  CaptureLost: { service: 'replication', text: 'Changes were missed; the whole source is compared. See the message.' },
  CutWay: { service: 'replication', text: 'How consistent the points of a volume are, and why not more.' },
  FlagsLeftOut: { service: 'replication', text: 'Files are immutable or append-only, and their copies are not.' },
  HookFailed: { service: 'replication', text: 'A hook around a freeze failed; the message says how.' },
  CutRefused: { service: 'replication', text: 'No consistent cut could be taken; the message says what would help.' },
  SourceTrouble: { service: 'replication', text: 'The source cannot be mirrored as it is; nothing was lost.' },
  TargetTrouble: { service: 'replication', text: 'The target does not take what is sent; it goes on when cured.' },
  ReplicaLost: {
    service: 'replication',
    text: 'The line to the receiver that keeps the replica broke, or it did not open again after a rest; it is opened anew.',
  },
  TroubleEnded: { service: 'replication', text: 'What was wrong with a replication is cured.' },
  VerifyCompleted: { service: 'replication', text: 'Source and replica were compared; they are equal now.' },
  SplitBrain: {
    service: 'replication',
    text: 'Both sides of a promotion were written; a person decides which is right.',
  },
  ForkTrouble: {
    service: 'replication',
    text: 'An old source could not be compared with what was promoted; it is tried again.',
  },
  VerifyMismatch: { service: 'replication', text: 'Source and replica differed; it was repaired.' },
  ReplicaOpened: { service: 'replication', text: 'A replica was opened; the message has what was found.' },
  ReplicaDamaged: { service: 'replication', text: 'Stored bytes do not have their hash; they are fetched again.' },
  Fenced: { service: 'replication', text: 'A writer of an older generation was turned away.' },
  SnapshotReady: { service: 'snapshot', text: 'A snapshot is complete.' },
  SnapshotFailed: { service: 'snapshot', text: 'A snapshot could not be taken; the message says why.' },
  SnapshotDeleted: { service: 'snapshot', text: 'A snapshot and its data are gone.' },
  RecoveryStarted: { service: 'recovery', text: 'A recovery runs.' },
  RecoveryCompleted: { service: 'recovery', text: 'A recovery is complete; the message says where the copy is.' },
  RecoveredCopyVerified: {
    service: 'recovery',
    text: 'What a failover has handed out is proven: its point was read whole.',
  },
  RecoveredCopyDamaged: {
    service: 'recovery',
    text: 'What a failover has handed out has bytes that are not as they were mirrored; the message says where and what to do.',
  },
  RecoveryCancelled: { service: 'recovery', text: 'A recovery was cancelled and what it had made is removed.' },
  RecoveryFailed: { service: 'recovery', text: 'A recovery failed; the message says why.' },
  RecoveryRolledBack: { service: 'recovery', text: 'What a recovery had made is removed.' },
  FailoverWaiting: {
    service: 'recovery',
    text: 'The source is not heard of; an automatic failover begins when the hold-off has passed and a witness agrees.',
  },
  FailoverWithheld: {
    service: 'recovery',
    text: 'The source is gone as far as is known, and is not failed over by itself; the message says why.',
  },
  FailoverStarted: { service: 'recovery', text: 'A failover began by policy; confirm it or roll it back.' },
  SourceHeard: { service: 'recovery', text: 'A source that had not been heard of is there again.' },
  ScheduleMissed: { service: 'recovery', text: 'A planned recovery was not made; the message says why.' },
  SourceDemoted: { service: 'replication', text: 'The source of a replication was demoted after a last cut.' },
  RecoveryConfirmed: { service: 'recovery', text: 'A failover was confirmed: what it recovered is the source now.' },
  SpaceLow: { service: 'storage', text: 'Replicas of a storage class are going to need more than it has.' },
  ClockJumped: {
    service: 'master',
    text: "The machine's clock went ahead; journals and locks follow only after a day.",
  },
  GarbageRemoved: { service: 'storage', text: 'Left-overs on storage were removed on request.' },
  StorageTrouble: { service: 'storage', text: 'A storage class cannot be used as it is.' },
  SinkFailing: { service: 'api', text: 'A sink does not take events; they are tried again. The message says why.' },
  SinkRecovered: { service: 'api', text: 'A sink takes events again.' },
  SessionStarted: { service: 'api', text: 'A user logged in.' },
  LoginFailed: { service: 'api', text: 'Someone tried to log in with a wrong name or password.' },
  UserLocked: { service: 'api', text: 'Five wrong passwords: nobody can log in under this name for 30 seconds.' },
  AuditWrite: { service: 'api', text: 'Someone changed something by the API: who, what, and the answer.' },
} as const satisfies Record<string, { service: string; text: string }>;
export type EventCode = keyof typeof eventCodes;
export type EventLevel = EventInput['level'];

export interface EventFilter {
  /** This level and all that are worse. */
  level?: EventLevel;
  /** Happened at or after, ms since the epoch. */
  sinceMs?: number;
  /** Such as Replication/orders. */
  object?: string;
  /** Whether who asks may see it; asked last. */
  sees?: (object: string | null, firstMs: number) => boolean;
}

export interface EventLog extends Events {
  /** Newest first, those with a version below `before`. */
  list(filter: EventFilter & { limit: number; before?: number }): { items: EventView[]; next: number | null };
  version(): number;
  /**
   * Every event written or counted up after version `since`, in order, until the signal aborts.
   * @throws StoreConflict expired, when some of them are dropped already
   */
  watch(options: { since: number; filter: EventFilter; signal: AbortSignal }): AsyncIterable<EventChange>;
  /** Writes what is only counted so far. */
  flush(): void;
  close(): void;
}
export interface EventChange {
  type: 'ADDED' | 'MODIFIED';
  version: number;
  object: EventView;
}

const sameMs = 60_000;
const countMs = 1000;
const maxMessage = 4096;
/** Different events of the last minute that repeats are looked for in; the oldest are forgotten first. */
const maxRecent = 1000;
const batchRows = 64;

interface Recent {
  id: number;
  count: number;
  lastMs: number;
  writtenCount: number;
  writtenMs: number;
}

/** @param onNew told of each event as it is written, not of repeats that are only counted */
export function eventLog(
  database: DatabaseSync,
  clock: Pick<Clock, 'nowMs'>,
  maxEvents = 10_000,
  onNew?: (event: EventInput) => void,
): EventLog {
  const news = changed();
  const closing = new AbortController();
  const recent = new Map<string, Recent>();
  const sql = {
    add: database.prepare(
      'INSERT INTO events (version, id, first_ms, last_ms, count, code, level, message, object) VALUES (?, ?, ?, ?, 1, ?, ?, ?, ?)',
    ),
    count: database.prepare('UPDATE events SET version = ?, count = ?, last_ms = ? WHERE id = ?'),
    tail: database.prepare('SELECT version FROM events ORDER BY version DESC LIMIT 1 OFFSET ?'),
    drop: database.prepare('DELETE FROM events WHERE version <= ?'),
    setDropped: database.prepare('INSERT OR REPLACE INTO events_dropped (rowid, version) VALUES (1, ?)'),
    dropped: database.prepare('SELECT version FROM events_dropped WHERE rowid = 1'),
    ends: database.prepare('SELECT max(version) AS version, max(id) AS id FROM events'),
    before: database.prepare('SELECT * FROM events WHERE version < ? AND last_ms >= ? ORDER BY version DESC LIMIT ?'),
    after: database.prepare('SELECT * FROM events WHERE version > ? ORDER BY version LIMIT ?'),
  };
  let version = number(sql.ends.get()?.['version']);
  let lastId = number(sql.ends.get()?.['id']);

  function writeCount(seen: Recent): void {
    if (seen.count === seen.writtenCount) return;
    version += 1;
    sql.count.run(version, seen.count, seen.lastMs, seen.id);
    seen.writtenCount = seen.count;
    seen.writtenMs = seen.lastMs;
    news.tell();
  }
  function add(event: EventInput, nowMs: number): number {
    lastId += 1;
    version += 1;
    transaction(database, () => {
      sql.add.run(version, lastId, nowMs, nowMs, event.code, event.level, event.message, event.object);
      const tail = sql.tail.get(maxEvents);
      if (tail !== undefined) {
        sql.drop.run(number(tail['version']));
        sql.setDropped.run(number(tail['version']));
      }
    });
    news.tell();
    onNew?.(event);
    return lastId;
  }
  function remember(key: string, seen: Recent): void {
    recent.delete(key); // to the end: the map stays ordered by age
    recent.set(key, seen);
    for (const [oldKey, old] of recent) {
      if (recent.size <= maxRecent && seen.lastMs - old.lastMs <= sameMs) break;
      writeCount(old);
      recent.delete(oldKey);
    }
  }
  function flush(): void {
    for (const seen of recent.values()) writeCount(seen);
  }
  function checkHistory(since: number): void {
    if (since < number(sql.dropped.get()?.['version']) || since > version)
      throw new StoreConflict('expired', `events after ${since} are not known here (any more); list again`);
  }
  async function* follow(since: number, filter: EventFilter, signal: AbortSignal): AsyncGenerator<EventChange> {
    let at = since;
    while (!signal.aborted) {
      checkHistory(at);
      const rows = sql.after.all(at, batchRows);
      for (const row of rows) {
        at = number(row['version']);
        if (!matches(row, filter)) continue;
        yield { type: number(row['count']) === 1 ? 'ADDED' : 'MODIFIED', version: at, object: view(row) };
        if (signal.aborted) return;
      }
      if (rows.length === 0) await news.next(signal);
    }
  }

  return {
    emit(input) {
      const nowMs = clock.nowMs();
      const event = known(input);
      const key = JSON.stringify([event.code, event.object, event.message]);
      const seen = recent.get(key);
      if (seen === undefined || Math.abs(nowMs - seen.lastMs) > sameMs) {
        if (seen !== undefined) writeCount(seen);
        remember(key, { id: add(event, nowMs), count: 1, lastMs: nowMs, writtenCount: 1, writtenMs: nowMs });
        return;
      }
      seen.count += 1;
      seen.lastMs = nowMs;
      if (Math.abs(nowMs - seen.writtenMs) >= countMs) writeCount(seen);
      remember(key, seen);
    },
    list({ limit, before, ...filter }) {
      flush();
      const items: EventView[] = [];
      for (let at = before ?? version + 1; ;) {
        const rows = sql.before.all(at, filter.sinceMs ?? 0, limit + 1);
        for (const row of rows) {
          if (!matches(row, filter)) continue;
          if (items.length === limit) return { items, next: at };
          items.push(view(row));
          at = number(row['version']);
        }
        if (rows.length <= limit) return { items, next: null };
        at = number(rows.at(-1)?.['version']);
      }
    },
    version: () => version,
    watch({ since, filter, signal }) {
      checkHistory(since);
      return follow(since, filter, AbortSignal.any([signal, closing.signal]));
    },
    flush,
    close() {
      if (!closing.signal.aborted && database.isOpen) flush();
      closing.abort();
    },
  };
}

function known(event: EventInput): EventInput {
  const isKnown = Object.hasOwn(eventCodes, event.code);
  const message = isKnown ? event.message : `${event.code}: ${event.message}`;
  return {
    code: isKnown ? event.code : 'AgentEvent',
    level: event.level,
    message: message.length > maxMessage ? `${message.slice(0, maxMessage - 3)}...` : message,
    object: event.object?.slice(0, 512) ?? null,
  };
}

function matches(row: Record<string, unknown>, filter: EventFilter): boolean {
  if (filter.sinceMs !== undefined && number(row['last_ms']) < filter.sinceMs) return false;
  if (filter.object !== undefined && row['object'] !== filter.object) return false;
  const isBad =
    filter.level === undefined || levels.indexOf(row['level'] as EventLevel) <= levels.indexOf(filter.level);
  const object = row['object'] === null ? null : text(row['object']);
  return isBad && (filter.sees === undefined || filter.sees(object, number(row['first_ms'])));
}

function view(row: Record<string, unknown>): EventView {
  const code = text(row['code']);
  return {
    apiVersion,
    kind: 'Event',
    id: String(number(row['id'])),
    time: new Date(number(row['last_ms'])).toISOString(),
    firstTime: new Date(number(row['first_ms'])).toISOString(),
    count: number(row['count']),
    code,
    level: row['level'] as EventLevel,
    // A code of a newer program that ran on this file before.
    service: Object.hasOwn(eventCodes, code) ? eventCodes[code as EventCode].service : 'master',
    message: text(row['message']),
    object: row['object'] === null ? null : text(row['object']),
  };
}
