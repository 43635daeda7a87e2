/**
 * The one error type for the world's faults (a full disk, a cut line, a hostile message). Bugs of ours are `assert`s.
 *
 * Callers branch on `retry` and `code`, never on the text. Every code is listed here with what it means; the type
 * refuses others.
 */

/** never: a person must change something. backoff: the same again later. resync: ask the durable side where it stands. */
export type Retry = 'never' | 'backoff' | 'resync';

export const errorCodes = {
  BadMessage: { retry: 'never', text: 'A message breaks the protocol; the field is named. The sender is at fault.' },
  VersionMismatch: { retry: 'never', text: 'Agent and master share no protocol version. Upgrade the older one.' },
  JoinRefused: {
    retry: 'never',
    text: 'The join token is wrong, used or expired, or the name belongs to another node.',
  },
  NotAuthenticated: {
    retry: 'never',
    text: 'The client certificate is missing, expired, revoked or not ours. Join again.',
  },
  NotAssigned: { retry: 'backoff', text: 'The replication is not (any more) assigned to this agent.' },
  Fenced: { retry: 'resync', text: 'A newer generation may write this replica; the old one must not.' },
  BackupCollision: { retry: 'backoff', text: 'Two writers try to feed one replica; only the first is let in.' },
  HashMismatch: { retry: 'resync', text: 'Bytes do not have the hash that was sent with them; damaged on the way.' },
  ContentMismatch: { retry: 'resync', text: 'A file does not add up to the content root of its node at commit.' },
  SequenceGap: { retry: 'resync', text: 'A commit does not follow the newest durable one.' },
  EpochTooLarge: { retry: 'resync', text: 'More bytes since the last commit than the replica takes.' },
  SourceChanged: {
    retry: 'never',
    text: 'The source is another volume than before. Resync with force if that is meant.',
  },
  SourceShrunk: { retry: 'never', text: 'The source is smaller than its replica. Resync with force if that is meant.' },
  SourceEmptied: { retry: 'never', text: 'The source was suddenly empty. Resync with force if that is meant.' },
  SourceGone: { retry: 'backoff', text: 'The source path does not exist or cannot be read.' },
  SourceInUse: { retry: 'never', text: 'The path is mounted or used in a way that forbids the operation.' },
  SourceHalfWritten: {
    retry: 'never',
    text: 'A recovery has begun to write the volume and has not ended: it holds neither the old content nor the new.',
  },
  SourceRefused: {
    retry: 'never',
    text: 'The path may not be read on this node: allow-list, hostPath, emptyDir, system directory.',
  },
  TargetRefused: {
    retry: 'never',
    text: 'The path may not be written by a recovery: allow-list, or not absent and empty.',
  },
  TargetFull: {
    retry: 'backoff',
    text: 'The storage class has no space left. Free or add space; mirroring goes on by itself.',
  },
  TargetFailed: { retry: 'backoff', text: 'The target storage answered with an error.' },
  ReceiverPending: {
    retry: 'backoff',
    text: 'The pod that keeps the replica is not running yet; the message says what it waits for.',
  },
  ReplicaDamaged: { retry: 'resync', text: 'Stored bytes of the replica do not have their hash.' },
  NoConsistentCut: { retry: 'backoff', text: 'No way to take a consistent cut worked; the message says what would.' },
  SnapshotFailed: {
    retry: 'backoff',
    text: 'The storage of the source takes no snapshot or clone, or shows none; the message has its words or those of the cluster.',
  },
  SnapshotLocked: {
    retry: 'never',
    text: 'The snapshot is locked until a date; before it nothing removes it or its replica.',
  },
  CheckFailed: { retry: 'never', text: 'The command that checks a recovered copy ended with another status than 0.' },
  PointGone: { retry: 'never', text: 'The recovery point is not (any more) in the journal.' },
  Disconnected: { retry: 'backoff', text: 'The line to the other side is down.' },
  Stopped: { retry: 'backoff', text: 'The program is being stopped or the work was cancelled.' },
  Internal: { retry: 'backoff', text: 'A fault that has no code of its own; the cause says more.' },
} as const satisfies Record<string, { retry: Retry; text: string }>;

export type ErrorCode = keyof typeof errorCodes;

export class ReplicationError extends Error {
  readonly code: ErrorCode;
  readonly retry: Retry;

  /** @param message what happened and, where there is one, the cure; no code, no stack, no secret. */
  constructor(code: ErrorCode, message: string, options: { cause?: unknown } = {}) {
    super(message, options);
    this.name = 'ReplicationError';
    this.code = code;
    this.retry = errorCodes[code].retry;
  }
}

/** Any thrown value as a ReplicationError; system errors keep their text. `fallback` is the code for the unknown ones. */
export function asReplicationError(error: unknown, fallback: ErrorCode = 'Internal'): ReplicationError {
  if (error instanceof ReplicationError) return error;
  const system = systemErrorCode(error);
  if (system === 'ENOSPC' || system === 'EDQUOT' || isSqliteFull(error)) {
    return new ReplicationError('TargetFull', `no space left on the target: ${messageOf(error)}`, { cause: error });
  }
  return new ReplicationError(fallback, messageOf(error), { cause: error });
}

/** SQLITE_FULL and SQLITE_IOERR_SHMSIZE (no room for the index of a log), sqlite.org/rescode.html */
function isSqliteFull(error: unknown): boolean {
  const { errcode = 0 } = error as { errcode?: number };
  return systemErrorCode(error) === 'ERR_SQLITE_ERROR' && [13, 4874].includes(errcode);
}

/** `ENOENT` and the like, or undefined. */
export function systemErrorCode(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined;
  return typeof error.code === 'string' ? error.code : undefined;
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
