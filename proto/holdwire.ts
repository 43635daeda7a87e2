/** Messages of a Hold call as TypeScript types: what a master asks of a receiver. See replicator.proto for their meaning. */

export interface HoldRequest {
  id: number;
  nowUs: number;
  trustedUs: number;
  hello?: { protocol: number; term: number };
  open?: { uid: string; name: string; volumeMode: string; hold: string };
  tick?: Record<string, never>;
  cancel?: { id: number };
  fence?: { generation: string };
  advance?: { journalSeconds: number; maxJournalBytes: number; pinned: number[] };
  recover?: { sequence: number; path: string; indexPath: string; verify: boolean };
  snapshot?: HoldSnapshot;
  lock?: HoldSnapshot;
  unsnapshot?: HoldSnapshot;
  drilled?: { sequence: number; us: number };
  remove?: { uid: string };
  locks?: { uid: string };
  usage?: { uid: string };
  list?: Record<string, never>;
  space?: Record<string, never>;
  measure?: { sequence: number; us: number };
}
export interface HoldSnapshot {
  name: string;
  sequence: number;
  untilMs: number;
}

export interface HeldPoint {
  sequence: number;
  sourceUs: number;
  committedUs: number;
  consistency: string;
  digest: Buffer;
  groupCut: string;
  drilledUs: number;
}
export interface HeldSnapshot {
  name: string;
  sizeBytes: number;
  point?: HeldPoint | null | undefined;
}
export interface HoldState {
  sequence: number;
  damaged: boolean;
  owes: boolean;
  writtenBytes: number;
  dropped: number;
  points: HeldPoint[];
  snapshotsTold: boolean;
  snapshots: HeldSnapshot[];
}
export interface HoldDone {
  short: boolean;
  withheld: number;
  verified: boolean;
  readBytes: number;
  untilMs: number;
  uids: string[];
  locked: HoldSnapshot[];
  known: boolean;
  baseBytes: number;
  journalBytes: number;
  snapshotBytes: number;
  capacityBytes: number;
  freeBytes: number;
  reflink: boolean;
  sizeBytes: number;
}
export interface HoldReply {
  id: number;
  state?: HoldState;
  progress?: { step: string; done: number; total: number };
  done?: Partial<HoldDone>;
  failed?: { code: string; message: string };
  doubt?: { message: string };
}

export interface HoldMessages {
  HoldRequest: HoldRequest;
  HoldReply: HoldReply;
}

const requests = [
  ...['hello', 'open', 'tick', 'cancel', 'fence', 'advance', 'recover', 'snapshot', 'lock', 'unsnapshot', 'drilled'],
  ...['remove', 'locks', 'usage', 'list', 'space', 'measure'],
];
export const holdKinds = { requests, replies: ['state', 'progress', 'done', 'failed', 'doubt'] };

/** A lock without end, which no number of JSON or protobuf is. */
const endless = Number.MAX_SAFE_INTEGER;
export function untilOnWire(ms: number): number {
  return Number.isFinite(ms) ? Math.min(ms, endless) : endless;
}
export function untilFromWire(ms: number): number {
  return ms >= endless ? Infinity : ms;
}
