/** Messages of replicator.proto as TypeScript types; see there for their meaning. Those of a Hold call are in holdwire.ts. */
import type { HoldMessages } from './holdwire.ts';

export type VolumeMode = 'Block' | 'Filesystem';
/** How well the parts of a point fit together, best first; ARCHITECTURE.md says how each is made. */
export type Consistency = 'filesystem' | 'crash' | 'file';

export interface JoinRequest {
  name: string;
  token: string;
  csrDer: Buffer;
  agentVersion: string;
  machineId: string;
}
export interface RenewRequest {
  csrDer: Buffer;
}
export interface JoinReply {
  certificateDer: Buffer;
  caDer: Buffer;
  notAfterUs: number;
}

export interface AgentHello {
  protocolMin: number;
  protocolMax: number;
  agentVersion: string;
  bootId: string;
  defaultRole: string;
  kernel: string;
  tellsLog: boolean;
  kubelet: string;
}
export interface Ping {
  number: number;
  agentUs: number;
  offsetUs: number;
  errorUs: number;
}
export interface Volume {
  path: string;
  kind: string;
  volumeMode: string;
  sizeBytes: number;
  filesystem: string;
  filesystemId: string;
  mountPoint: string;
  csiDriver: string;
  csiVolume: string;
  persistentVolume: string;
  podUid: string;
  claim: string;
  eligible: boolean;
  reason: string;
  write: boolean;
}
export interface Trouble {
  reason: string;
  message: string;
  stops: boolean;
}
export interface Report {
  replicationUid: string;
  phase: string;
  captureMethod: string;
  captureReason: string;
  bytesTotal: number;
  bytesDone: number;
  bytesPerSecond: number;
  dirtyBytes: number;
  troubles: Trouble[];
  readBytes: number;
  sentBytes: number;
  skippedZeroBytes: number;
  skippedSameBytes: number;
  fullScans: number;
  fullScanReason: string;
  cutsMade: number;
  cutsRefused: number;
  cutRefusedReason: string;
  lastFreezeUs: number;
  unchangedSinceUs: number;
  syncRequestDone: number;
  resyncRequestDone: number;
  verifyRequestDone: number;
  freezes: number;
  lostEvents: number;
  dirtyKnown: boolean;
}
export interface AgentEvent {
  code: string;
  level: string;
  replicationUid: string;
  message: string;
  agentUs: number;
}
export interface Probe {
  number: number;
  address: string;
  port: number;
}
/** reached: it accepted or refused; unreachable: no answer; failed: who was asked could not ask. */
export type ProbeOutcome = 'reached' | 'unreachable' | 'failed';
export interface Probed {
  number: number;
  outcome: ProbeOutcome;
  message: string;
}
/** Exactly one of them is set, here and in the other messages of kinds. */
export interface AgentMessage {
  hello?: AgentHello;
  ping?: Ping;
  inventory?: { volumes: Volume[] };
  report?: Report;
  event?: AgentEvent;
  looked?: Volume;
  log?: { text: string };
  probed?: Probed;
}

export interface Pong {
  number: number;
  agentUs: number;
  masterReceivedUs: number;
  masterSentUs: number;
}
export interface Assignment {
  replicationUid: string;
  name: string;
  fencingGeneration: string;
  path: string;
  volumeMode: string;
  include: string[];
  exclude: string[];
  continuous: boolean;
  cutIntervalSeconds: number;
  consistency: string;
  maxFreezeMs: number;
  compression: string;
  bandwidthBytesPerSecond: number;
  readBytesPerSecond: number;
  paused: boolean;
  syncRequest: number;
  resyncRequest: number;
  verifyRequest: number;
  force: boolean;
  beforeFreeze: string[];
  afterThaw: string[];
  hookTimeoutSeconds: number;
  group: string;
  snapshots: boolean;
  clones: boolean;
}
/** A recovery point that is to be written into a volume of the agent's node, or compared with one. */
export interface Restore {
  uid: string;
  name: string;
  replicaUid: string;
  fencingGeneration: string;
  path: string;
  volumeMode: string;
  sizeBytes: number;
  compare: boolean;
  include: string[];
  exclude: string[];
}
export interface Assignments {
  items: Assignment[];
  known: string[];
  knownComplete: boolean;
  restores: Restore[];
}
export interface MasterMessage {
  welcome?: { protocol: number; masterVersion: string };
  pong?: Pong;
  assignments?: Assignments;
  renew?: Record<string, never>;
  look?: { path: string; write: boolean };
  logRequest?: object;
  probe?: Probe;
}

export interface SnapshotRequest {
  replicationUid: string;
  action: SnapshotAction;
  name: string;
  keep: string[];
}
export type SnapshotAction = 'service' | 'take' | 'open' | 'close' | 'remove' | 'list' | 'find';
export interface SnapshotReply {
  names: string[];
  path: string;
  handle: string;
  address: string;
  caPem: Buffer;
  namespace: string;
  token: string;
  serverName: string;
}

export interface MirrorHello {
  protocol: number;
  replicationUid: string;
  fencingGeneration: string;
  volumeMode: string;
  sizeBytes: number;
  sourceId: string;
  force: boolean;
  /** To a receiver only: who writes, and for which hold. */
  writer?: string;
  hold?: string;
}
export interface Offer {
  object: number;
  first: number;
  hashes: Buffer;
}
export interface Run {
  object: number;
  first: number;
  count: number;
  zero: boolean;
  tailBytes: number;
}
export interface Data {
  runs: Run[];
  hashes: Buffer;
  compression: number;
  rawBytes: number;
  payload: Buffer;
}
export interface Xattr {
  name: Buffer;
  value: Buffer;
}
export interface Name {
  parent: number;
  name: Buffer;
}
export interface Node {
  slot: number;
  type: number;
  mode: number;
  uid: number;
  gid: number;
  mtimeSeconds: number;
  mtimeNanoseconds: number;
  sizeBytes: number;
  target: Buffer;
  deviceMajor: number;
  deviceMinor: number;
  xattrs: Xattr[];
  names: Name[];
  contentRoot: Buffer;
}
export interface Nodes {
  nodes: Node[];
}
export interface Commit {
  sequence: number;
  point: boolean;
  sourceUs: number;
  consistency: string;
  sizeBytes: number;
  verified: boolean;
  mismatchedGranules: number;
  startedUs: number;
  sentBytes: number;
  groupCut: string;
  /** Restore: what the volume must hold by now; empty in all others. */
  digest?: Buffer;
}
/** See GroupAsk in replicator.proto. */
export interface GroupAsk {
  cut: string;
  step: 'call' | 'alone' | 'prepare' | 'freeze' | 'thaw' | 'commit' | 'abandon';
  sourceUs: number;
  message: string;
}
export interface GroupAnswer {
  cut: string;
  step: 'ready' | 'prepared' | 'frozen' | 'held' | 'failed';
  message: string;
}
export interface MirrorRequest {
  number: number;
  hello?: MirrorHello;
  offer?: Offer;
  data?: Data;
  nodes?: Nodes;
  commit?: Commit;
  manifest?: Record<string, never>;
  verify?: Record<string, never>;
  group?: GroupAnswer;
}

export interface MirrorWelcome {
  protocol: number;
  headSequence: number;
  initialized: boolean;
  sizeBytes: number;
  digest: Buffer;
  sourceId: string;
  blank: boolean;
  incomplete: boolean;
}
export interface MirrorReply {
  welcome?: MirrorWelcome;
  received?: { number: number; workedUs: number };
  want?: { number: number; bitmap: Buffer };
  committed?: { sequence: number; digest: Buffer; withheld?: number };
  nodes?: Nodes;
  manifestEnd?: Record<string, never>;
  verifyReady?: { readBytes: number; badGranules: number };
  verifyProgress?: { bytesDone: number; bytesTotal: number };
  group?: GroupAsk;
  restore?: { protocol: number; uid: string; hold?: string; sequence?: number };
  refusal?: { code: string; message: string };
}

export interface Messages extends HoldMessages {
  JoinRequest: JoinRequest;
  RenewRequest: RenewRequest;
  JoinReply: JoinReply;
  AgentMessage: AgentMessage;
  MasterMessage: MasterMessage;
  SnapshotRequest: SnapshotRequest;
  SnapshotReply: SnapshotReply;
  MirrorRequest: MirrorRequest;
  MirrorReply: MirrorReply;
  Data: Data;
  Nodes: Nodes;
  Node: Node;
  JournalCommit: Commit & { digest: Buffer; committedUs: number; sourceId: string; generation: string };
  /** A Data whose payload is kept beside it. */
  JournalData: Data;
}
